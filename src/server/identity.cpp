#include "server/identity.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>

#include "base/log.h"
#include "crypto/file.h"
#include "crypto/hash.h"
#include "crypto/random.h"
#include "net/net.h"
#include "server/journal_head.h"
#include "server/relay_book.h"
#include "server/signing_desk.h"

namespace muster::server {
namespace fs = std::filesystem;
namespace {

Status make_dir(const std::string& path, mode_t mode) {
  std::error_code fault;
  fs::create_directories(path, fault);
  if (fault || ::chmod(path.c_str(), mode) != 0) {
    return error(Code::Unavailable,
                 fmt::format("cannot make the directory {}: {}; check its owner and the disk", path, fault.message()));
  }
  return {};
}
std::string join(const std::vector<std::string>& lines) {
  std::string out;
  for (const auto& line : lines) out += line + "\n";
  return out;
}
Result<std::string> read_text(const DataDir& dir, const char* name) {
  const Bytes bytes = TRY(dir.read(dir.key(name)));
  return as_string(bytes);
}

// No certificate outlives the CA that signed it.
Millis tls_life(const CaSet& cas, WallTime now) {
  const auto end = crypto::certificate_expiry(cas.ca.cert_pem);
  return end.ok() ? std::min(kServerLifetime, *end - now) : kServerLifetime;
}

// A new key, and a certificate for it.
Result<crypto::KeyAndCert> new_pair(const Identity& id, crypto::ServerRole role) {
  crypto::KeyAndCert out{crypto::new_ca_key(), {}};
  const std::string request = TRY(crypto::make_ca_request(out.key_pem, "muster"));
  out.cert_pem = TRY(id.signer->server_certificate(role, request));
  return out;
}

Status issue_tls(const DataDir& dir, Identity& id) {
  id.tls = TRY(new_pair(id, crypto::ServerRole::ControlPlane));
  TRY_VOID(dir.write(dir.key("tls.key.pem"), as_bytes(id.tls.key_pem)));
  TRY_VOID(dir.write(dir.key("tls.cert.pem"), as_bytes(id.tls.cert_pem)));
  return {};
}

// What is damaged, half written, of the wrong role, another CA's or near its end is made again.
bool good(const std::string& cert_pem, crypto::ServerRole wanted, const CaSet& cas, WallTime now) {
  const auto role = crypto::server_role(cert_pem);
  const auto expiry = crypto::certificate_expiry(cert_pem);
  return role.ok() && *role == wanted && expiry.ok() && *expiry - now >= tls_life(cas, now) / 3 &&
         crypto::issued_by(cert_pem, cas.ca.cert_pem);
}
bool good_for_relay(const DataDir& dir, const CaSet& cas, WallTime now) {
  std::ifstream in(dir.relay() + "/cert.pem", std::ios::binary);
  const std::string cert{std::istreambuf_iterator<char>(in), {}};
  if (!good(cert, crypto::ServerRole::Relay, cas, now) || !cert.ends_with(cas.chain())) return false;
  const auto key = crypto::read_secret_file(dir.relay() + "/key.pem");
  // One that was given to the relay's own user is not ours to read.
  return key.ok() ? crypto::key_fits({as_string(*key), cert}) : key.error().code != Code::NotFound;
}

// What muster-relay may know: a key of its own and the public half of the key that signs relay tokens. Its certificate
// names no host, so that not even a program that only looks at the host's name takes it for musterd's.
Status write_relay_files(const DataDir& dir, const Identity& id) {
  return write_relay_folder(id, dir.relay(), id.relay_id());
}

// A relay that was told of another key while it ran finds it here when it starts. Where the folder is another user's,
// he keeps it himself, and musterd tells him again.
void bring_relay_keys(const DataDir& dir, const Identity& id) {
  const auto bring = [&](const char* name, const std::string& text) {
    const std::string path = dir.relay() + "/" + name;
    std::ifstream in(path, std::ios::binary);
    if (std::string{std::istreambuf_iterator<char>(in), {}} == text) return;
    if (const Status done = crypto::write_public_file(path, as_bytes(text)); !done.ok())
      log_debug("musterd", "{}", done.error().message);
  };
  bring("trust.pem", id.cas.text);
  bring("controller.pub", base64(id.relay_key));
  if (!id.keys.empty()) bring("signing-keys.pem", id.keys);
}

}  // namespace

Status write_relay_folder(const Identity& id, const std::string& folder, const std::string& relay_id) {
  const crypto::KeyAndCert own = TRY(new_pair(id, crypto::ServerRole::Relay));
  TRY_VOID(make_dir(folder, 0700));
  TRY_VOID(crypto::write_secret_file(folder + "/key.pem", as_bytes(own.key_pem)));
  TRY_VOID(crypto::write_secret_file(folder + "/cert.pem", as_bytes(own.cert_pem + id.cas.chain())));
  TRY_VOID(crypto::write_public_file(folder + "/ca.pem", as_bytes(crypto::roots_pem(id.cas.trust))));
  TRY_VOID(crypto::write_public_file(folder + "/trust.pem", as_bytes(id.cas.text)));
  TRY_VOID(crypto::write_public_file(folder + "/controller.pub", as_bytes(base64(id.relay_key))));
  if (!id.keys.empty()) TRY_VOID(crypto::write_public_file(folder + "/signing-keys.pem", as_bytes(id.keys)));
  TRY_VOID(crypto::write_public_file(folder + "/relay_id", as_bytes(relay_id + "\n")));
  return {};
}

Result<Identity> create_identity(const DataDir& dir, const NewIdentity& wanted, WallTime now) {
  if (holds_platform(dir)) {
    return error(
        Code::AlreadyExists,
        fmt::format("{} holds a control plane already; choose another --data directory or serve this one", dir.root));
  }
  TRY_VOID(make_dir(dir.root, 0700));
  TRY_VOID(make_dir(dir.root + "/keys", 0700));
  TRY_VOID(make_dir(dir.logs(), 0700));
  TRY_VOID(make_dir(dir.blobs(), 0700));
  TRY_VOID(make_dir(dir.relay(), 0700));
  Identity id;
  id.server_id = "srv-" + hex(crypto::random_bytes(8));
  id.sans = wanted.sans;
  if (std::find(id.sans.begin(), id.sans.end(), "muster") == id.sans.end()) id.sans.push_back("muster");
  id.secret = crypto::Secret32(crypto::random_key32());
  TRY_VOID(dir.write(dir.key("server_id"), as_bytes(id.server_id)));
  TRY_VOID(dir.write(dir.key("sans"), as_bytes(join(id.sans))));
  TRY_VOID(dir.write(dir.key("relays"), as_bytes(join(wanted.relays))));
  TRY_VOID(dir.write(dir.key("secret"), id.secret.view()));
  for (const char* name : {"roster.pem", "command.pem", "relay.pem"})
    TRY_VOID(dir.write(dir.key(name), as_bytes(crypto::SigningKey::generate().to_pem())));
  TRY_VOID(ensure_audit_key(dir));
  TRY_VOID(create_cas(dir, id.server_id, wanted.root_out, now));  // last: ca.key.pem means complete
  return load_identity(dir, now);
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> out;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) {
    if (!line.empty()) out.push_back(line);
  }
  return out;
}

bool holds_platform(const DataDir& dir) {
  return fs::exists(dir.key("ca.key.pem")) || fs::exists(dir.key("signer-apart"));
}

Result<Identity> load_identity(const DataDir& dir, WallTime now, std::shared_ptr<Signer> signer) {
  if (!holds_platform(dir)) {
    return error(Code::NotFound,
                 fmt::format("{} holds no control plane; run: musterd init --data {} --name HOST", dir.root, dir.root));
  }
  if (!signer && fs::exists(dir.key("signer-apart")))
    return error(
        Code::FailedPrecondition,
        fmt::format("the signing keys of {} are kept apart: start musterd signer with their folder, and name its "
                    "socket with --signer",
                    dir.root));
  if (!signer) {
    SigningDesk::Options options;
    options.wall = [ahead = now - read_clocks().wall] { return read_clocks().wall + ahead; };
    signer = TRY(SigningDesk::open(dir, std::move(options)));
  }
  Identity id;
  id.signer = std::move(signer);
  id.server_id = TRY(read_text(dir, "server_id"));
  id.sans = lines_of(TRY(read_text(dir, "sans")));
  id.relay_list = parse_relay_lines(TRY(read_text(dir, "relays")), id.server_id);
  SignerView view = TRY(id.signer->view());
  id.cas = std::move(view.cas);
  id.keys = std::move(view.keys);
  id.roster_key = view.roster_key, id.command_key = view.command_key, id.relay_key = view.relay_key;
  if (fs::exists(dir.key("tls.cert.pem")) && fs::exists(dir.key("tls.key.pem"))) {
    id.tls.cert_pem = TRY(read_text(dir, "tls.cert.pem"));
    id.tls.key_pem = TRY(read_text(dir, "tls.key.pem"));
  }
  const Bytes secret = TRY(dir.read(dir.key("secret")));
  const auto master = crypto::key32(secret);
  if (!master)
    return error(Code::DataLoss,
                 fmt::format("{} is damaged: it must hold 32 bytes; restore it from a backup", dir.key("secret")));
  id.secret = crypto::Secret32(*master);
  if (!good(id.tls.cert_pem, crypto::ServerRole::ControlPlane, id.cas, now) || !crypto::key_fits(id.tls))
    TRY_VOID(issue_tls(dir, id));
  if (!good_for_relay(dir, id.cas, now))
    TRY_VOID(write_relay_files(dir, id));
  else
    bring_relay_keys(dir, id);
  return id;
}

}  // namespace muster::server
