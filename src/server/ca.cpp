#include "server/ca.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <sstream>

#include "base/log.h"
#include "crypto/file.h"
#include "crypto/hash.h"
#include "crypto/random.h"
#include "server/identity.h"

namespace muster::server {
namespace {

namespace fs = std::filesystem;
constexpr std::size_t kHistoryMax = 32;

class CaLock {
 public:
  explicit CaLock(const DataDir& dir) : fd_(::open(dir.key("ca.lock").c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600)) {
    if (fd_ >= 0) ::flock(fd_, LOCK_EX);
  }
  ~CaLock() {
    if (fd_ >= 0) ::close(fd_);
  }
  CaLock(const CaLock&) = delete;
  CaLock& operator=(const CaLock&) = delete;

 private:
  int fd_;
};

Result<std::string> key_text(const DataDir& dir, const std::string& path) {
  const Bytes bytes = TRY(dir.read(path));
  return as_string(bytes);
}

std::string history_name(std::uint64_t revision) {
  return fmt::format("trust-{:06}.pem", revision);
}

// What is signed goes to the history first, so that no machine is ever told a revision which another, later, cannot be
// led to.
Status write_trust(const DataDir& dir, const crypto::Trust& trust) {
  const std::string text = crypto::trust_text(trust);
  TRY_VOID(dir.write(dir.key(history_name(trust.revision)), as_bytes(text)));
  TRY_VOID(dir.write(dir.key("trust.pem"), as_bytes(text)));
  return crypto::write_public_file(dir.root + "/ca.pem", as_bytes(crypto::roots_pem(trust)));
}

std::string new_name(std::string_view kind, const std::string& server_id) {
  return fmt::format("Muster {} {} {}", kind, server_id, hex(crypto::random_bytes(4)));
}

Status keep_root(const DataDir& dir, const crypto::KeyAndCert& root, const std::string& root_out) {
  if (root_out.empty()) return dir.write(dir.key("root.key.pem"), as_bytes(root.key_pem));
  if (fs::exists(root_out))
    return error(Code::AlreadyExists,
                 fmt::format("{} exists already; a root's key never goes over another file", root_out));
  return crypto::write_secret_file(root_out, as_bytes(root.key_pem + root.cert_pem));
}

Result<crypto::KeyAndCert> read_root_file(const std::string& path) {
  const Bytes bytes = TRY(crypto::read_secret_file(path));
  const std::string text = as_string(bytes);
  const auto cert = text.find("-----BEGIN CERTIFICATE-----");
  if (cert == std::string::npos)
    return error(Code::InvalidArgument, fmt::format("{} is no root's file: it must hold a key and a certificate, as "
                                                    "--root-out wrote them",
                                                    path));
  crypto::KeyAndCert root{text.substr(0, cert), text.substr(cert)};
  if (!crypto::key_fits(root))
    return error(Code::InvalidArgument, fmt::format("the key in {} is not that of its certificate", path));
  return root;
}

// The key of the newest root. In a folder of before roots that is the CA itself.
Result<crypto::KeyAndCert> newest_root(const DataDir& dir, const CaSet& set, const std::string& file) {
  const std::string& cert = set.trust.roots.front();
  if (!file.empty()) {
    crypto::KeyAndCert root = TRY(read_root_file(file));
    if (ca_id(root.cert_pem) != ca_id(cert))
      return error(Code::FailedPrecondition,
                   fmt::format("{} holds the root {}, but the newest of this control plane is {}", file,
                               ca_id(root.cert_pem), ca_id(cert)));
    return root;
  }
  if (set.trust.revision == 0) return set.ca;
  if (!set.root_here)
    return error(Code::FailedPrecondition,
                 "the root's key is not kept here: name its file with --root, or let it sign where it is (ca request, "
                 "ca sign, ca install)");
  return crypto::KeyAndCert{TRY(key_text(dir, dir.key("root.key.pem"))), cert};
}

// The first of the newest root's CAs, or of another's, whose key this is; in a folder of before roots the CA itself.
std::string certificate_of(const crypto::Trust& trust, const std::string& key_pem) {
  for (const auto* list : {&trust.intermediates, &trust.roots}) {
    for (const std::string& cert : *list) {
      if (crypto::key_fits({key_pem, cert})) return cert;
    }
  }
  return {};
}

Status needs_roots(const CaSet& set) {
  if (set.trust.revision != 0) return {};
  return error(Code::FailedPrecondition,
               "this control plane has one CA that signs everything and no root yet; give it one with: musterd ca "
               "new-root");
}

Status install(const DataDir& dir, CaSet& set, const crypto::KeyAndCert& next) {
  set.trust.intermediates.insert(set.trust.intermediates.begin(), next.cert_pem);
  TRY_VOID(write_trust(dir, set.trust));  // believed first, then used
  TRY_VOID(dir.write(dir.key("ca.key.pem"), as_bytes(next.key_pem)));
  return dir.write(dir.key("ca.cert.pem"), as_bytes(next.cert_pem));
}

Status no_machine_behind(const DataDir& dir, const CaSet& set) {
  const auto behind = read_behind(dir);
  const std::string advice = "; see musterd ca status, or say --now: those must then join anew";
  if (!behind.ok() || behind->revision != set.trust.revision)
    return error(Code::FailedPrecondition,
                 "no musterd that serves has said which machines know the newest roots" + advice);
  if (behind->machines.empty()) return {};
  return error(Code::FailedPrecondition, fmt::format("{} machines do not know the newest roots yet, {} among them{}",
                                                     behind->machines.size(), behind->machines.front(), advice));
}

// The next CA is the newest root's alone: who does not know that root would refuse the server.
Status may_follow(const DataDir& dir, const CaSet& set, When when) {
  TRY_VOID(needs_roots(set));
  return set.trust.roots.size() > 1 && when == When::Safe ? no_machine_behind(dir, set) : Status();
}

Status retire_root(const DataDir& dir, CaSet& set, const std::string& id, When when) {
  if (ca_id(set.trust.roots.front()) == id)
    return error(Code::FailedPrecondition, "that is the newest root, which stays; make another first (ca new-root)");
  if (when != When::Now) TRY_VOID(no_machine_behind(dir, set));
  std::erase_if(set.trust.roots, [&](const std::string& cert) { return ca_id(cert) == id; });
  return {};
}

bool same_key(const std::string& one, const std::string& other) {
  return !crypto::chain_of({{}, 0, {}, {one}, {}, {}}, other).empty();
}

Status retire_intermediate(CaSet& set, const std::string& cert, When when, WallTime now) {
  if (same_key(cert, set.ca.cert_pem))
    return error(Code::FailedPrecondition, "that CA is in use; make another first (ca rotate)");
  for (const std::string& root : set.trust.roots) {
    if (same_key(cert, root))
      return error(Code::FailedPrecondition,
                   fmt::format("its key is the root {}'s too; retire that one first", ca_id(root)));
  }
  const auto since = TRY(crypto::certificate_validity(set.ca.cert_pem)).not_before + crypto::kBackdate;
  if (when != When::Now && now - since < kCaSettles)
    return error(Code::FailedPrecondition,
                 fmt::format("machines may hold what it signed until {}; retire it then, or --now if its key leaked",
                             format_utc(since + kCaSettles)));
  auto& list = set.trust.intermediates;
  for (const std::string& each : list) {
    if (same_key(cert, each)) set.trust.given_up.push_back(each);
  }
  std::erase_if(list, [&](const std::string& each) { return crypto::gave_up(set.trust, each); });
  return {};
}

}  // namespace

std::string ca_id(std::string_view cert_pem) {
  const auto digest = crypto::certificate_sha256(cert_pem);
  return digest.ok() ? hex(*digest).substr(0, 16) : std::string();
}

Status create_cas(const DataDir& dir, const std::string& server_id, const std::string& root_out, WallTime now) {
  const crypto::KeyAndCert root = TRY(crypto::create_root(new_name("root", server_id), now));
  TRY_VOID(keep_root(dir, root, root_out));
  crypto::KeyAndCert ca{crypto::new_ca_key(), {}};
  const std::string request = TRY(crypto::make_ca_request(ca.key_pem, new_name("CA", server_id)));
  ca.cert_pem = TRY(crypto::certify_ca(root, request, now, kCaLifetime));
  crypto::Trust trust;
  trust.server_id = server_id;
  trust.revision = 1;
  trust.roots = {root.cert_pem};
  trust.intermediates = {ca.cert_pem};
  TRY_VOID(crypto::sign_trust(trust, root));
  TRY_VOID(write_trust(dir, trust));
  TRY_VOID(dir.write(dir.key("ca.cert.pem"), as_bytes(ca.cert_pem)));
  return dir.write(dir.key("ca.key.pem"), as_bytes(ca.key_pem));
}

Result<CaSet> load_cas(const DataDir& dir) {
  CaSet out;
  out.ca.key_pem = TRY(key_text(dir, dir.key("ca.key.pem")));
  const bool rooted = fs::exists(dir.key("trust.pem"));
  const std::string text = TRY(key_text(dir, dir.key(rooted ? "trust.pem" : "ca.cert.pem")));
  out.trust = TRY(crypto::parse_trust(text));
  out.ca.cert_pem = certificate_of(out.trust, out.ca.key_pem);
  if (out.ca.cert_pem.empty())
    return error(Code::DataLoss, fmt::format("{} is not the key of a CA that {} knows; restore both from one backup",
                                             dir.key("ca.key.pem"), dir.key(rooted ? "trust.pem" : "ca.cert.pem")));
  CaSet known = TRY(ca_set(out.ca.cert_pem, text));
  known.ca.key_pem = std::move(out.ca.key_pem);
  out = std::move(known);
  out.root_here = fs::exists(dir.key("root.key.pem"));
  const std::uint64_t first = out.trust.revision > kHistoryMax ? out.trust.revision - kHistoryMax : 1;
  for (std::uint64_t revision = first; revision < out.trust.revision; ++revision) {
    auto earlier = key_text(dir, dir.key(history_name(revision)));
    if (earlier.ok()) out.history.push_back({revision, std::move(*earlier)});
  }
  return out;
}

Result<CaSet> ca_set(const std::string& ca_cert_pem, const std::string& trust_text) {
  CaSet out;
  out.ca.cert_pem = ca_cert_pem;
  out.trust = TRY(crypto::parse_trust(trust_text));
  out.text = crypto::trust_text(out.trust);
  out.ever = crypto::roots_pem(out.trust);
  for (const auto* list : {&out.trust.intermediates, &out.trust.given_up}) {
    for (const std::string& cert : *list) out.ever += cert;
  }
  out.pin = TRY(crypto::certificate_sha256(out.trust.roots.front()));
  return out;
}

Status follow_ca(const DataDir& dir, WallTime now) {
  const CaSet set = TRY(load_cas(dir));
  if (!set.root_here || set.trust.revision == 0) return {};
  const auto life = TRY(crypto::certificate_validity(set.ca.cert_pem));
  if (life.not_after - now >= (life.not_after - life.not_before) / 3) return {};
  const Status followed = rotate_ca(dir, {}, When::Safe, now);
  if (!followed.ok())
    log_warn("musterd", "the CA nears its end and could not be followed by another: {}", followed.error().message);
  return {};
}

Status rotate_ca(const DataDir& dir, const std::string& root, When when, WallTime now) {
  const CaLock lock(dir);
  CaSet set = TRY(load_cas(dir));
  TRY_VOID(may_follow(dir, set, when));
  const crypto::KeyAndCert newest = TRY(newest_root(dir, set, root));
  crypto::KeyAndCert next{crypto::new_ca_key(), {}};
  const std::string request = TRY(crypto::make_ca_request(next.key_pem, new_name("CA", set.trust.server_id)));
  next.cert_pem = TRY(crypto::certify_ca(newest, request, now, kCaLifetime));
  return install(dir, set, next);
}

Result<std::string> request_ca(const DataDir& dir) {
  const CaLock lock(dir);
  const CaSet set = TRY(load_cas(dir));
  TRY_VOID(needs_roots(set));
  const std::string key = crypto::new_ca_key();
  std::string request = TRY(crypto::make_ca_request(key, new_name("CA", set.trust.server_id)));
  TRY_VOID(dir.write(dir.key("next.key.pem"), as_bytes(key)));
  return request;
}

Result<std::string> sign_request(const std::string& root, std::string_view request_pem, WallTime now) {
  return crypto::certify_ca(TRY(read_root_file(root)), request_pem, now, kCaLifetime);
}

Status install_ca(const DataDir& dir, std::string_view cert_pem, When when, WallTime now) {
  const CaLock lock(dir);
  CaSet set = TRY(load_cas(dir));
  TRY_VOID(may_follow(dir, set, when));
  crypto::KeyAndCert next{TRY(key_text(dir, dir.key("next.key.pem"))), std::string(cert_pem)};
  if (!crypto::key_fits(next))
    return error(Code::InvalidArgument, "this certificate is not for the key that the last `ca request` made");
  if (!crypto::issued_by(next.cert_pem, set.trust.roots.front()))
    return error(Code::InvalidArgument, "this certificate is not signed by the newest root of this control plane");
  TRY_VOID(crypto::verify_chain(next.cert_pem, crypto::roots_pem(set.trust), now));
  TRY_VOID(install(dir, set, next));
  ::unlink(dir.key("next.key.pem").c_str());
  return {};
}

Status add_root(const DataDir& dir, const std::string& root, const std::string& root_out, WallTime now) {
  const CaLock lock(dir);
  CaSet set = TRY(load_cas(dir));
  if (set.trust.server_id.empty()) set.trust.server_id = TRY(key_text(dir, dir.key("server_id")));
  const crypto::KeyAndCert before = TRY(newest_root(dir, set, root));
  const crypto::KeyAndCert fresh = TRY(crypto::create_root(new_name("root", set.trust.server_id), now));
  const std::string name = TRY(crypto::common_name(set.ca.cert_pem));
  const std::string request = TRY(crypto::make_ca_request(set.ca.key_pem, name));
  set.trust.intermediates.insert(set.trust.intermediates.begin(),
                                 TRY(crypto::certify_ca(fresh, request, now, kCaLifetime)));
  set.trust.roots.insert(set.trust.roots.begin(), fresh.cert_pem);
  ++set.trust.revision;
  set.trust.signatures.clear();
  TRY_VOID(crypto::sign_trust(set.trust, before));
  TRY_VOID(crypto::sign_trust(set.trust, fresh));
  // Its key before anything that speaks of it. One kept here takes the place of the root before, which has spoken its
  // last.
  TRY_VOID(keep_root(dir, fresh, root_out));
  if (!root_out.empty()) ::unlink(dir.key("root.key.pem").c_str());
  return write_trust(dir, set.trust);
}

Status retire_ca(const DataDir& dir, const std::string& id, const std::string& root, When when, WallTime now) {
  const CaLock lock(dir);
  CaSet set = TRY(load_cas(dir));
  TRY_VOID(needs_roots(set));
  const crypto::KeyAndCert newest = TRY(newest_root(dir, set, root));
  const auto named = [&](const std::string& cert) { return ca_id(cert) == id; };
  const auto& below = set.trust.intermediates;
  if (std::any_of(set.trust.roots.begin(), set.trust.roots.end(), named)) {
    TRY_VOID(retire_root(dir, set, id, when));
  } else if (const auto found = std::find_if(below.begin(), below.end(), named); found != below.end()) {
    TRY_VOID(retire_intermediate(set, std::string(*found), when, now));
  } else {
    return error(Code::NotFound, fmt::format("{} names no root and no CA that is believed; see musterd ca status", id));
  }
  ++set.trust.revision;
  set.trust.signatures.clear();
  TRY_VOID(crypto::sign_trust(set.trust, newest));
  return write_trust(dir, TRY(crypto::parse_trust(crypto::trust_text(set.trust))));
}

Status take_root_out(const DataDir& dir, const std::string& root_out) {
  const CaLock lock(dir);
  const CaSet set = TRY(load_cas(dir));
  TRY_VOID(needs_roots(set));
  if (!set.root_here) return error(Code::NotFound, "the root's key is not kept here");
  TRY_VOID(keep_root(dir, TRY(newest_root(dir, set, {})), root_out));
  ::unlink(dir.key("root.key.pem").c_str());
  return {};
}

Status write_behind(const DataDir& dir, const Behind& behind) {
  return write_behind_file(dir, "trust-behind", behind);
}
Result<Behind> read_behind(const DataDir& dir) {
  return read_behind_file(dir, "trust-behind");
}

Status write_behind_file(const DataDir& dir, const std::string& name, const Behind& behind) {
  std::string text = fmt::format("{}\n", behind.revision);
  for (const std::string& machine : behind.machines) text += machine + "\n";
  return dir.write(dir.root + "/" + name, as_bytes(text));
}

Result<Behind> read_behind_file(const DataDir& dir, const std::string& name) {
  std::istringstream in(TRY(key_text(dir, dir.root + "/" + name)));
  Behind out;
  std::string line;
  std::getline(in, line);
  std::from_chars(line.data(), line.data() + line.size(), out.revision);
  while (std::getline(in, line)) out.machines.push_back(line);
  return out;
}

}  // namespace muster::server
