#include "host/identity.h"

#include <fmt/format.h>
#include <pwd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include "base/log.h"
#include "crypto/cert.h"
#include "crypto/file.h"
#include "crypto/hash.h"
#include "crypto/token.h"
#include "host/facts.h"
#include "host/json.h"
#include "host/unix_socket.h"
#include "net/net.h"
#include "wire/rest.h"

namespace muster::host {
namespace fs = std::filesystem;
namespace {

Status owned_dir(const std::string& path, uid_t uid, gid_t gid, mode_t mode) {
  std::error_code failure;
  fs::create_directories(path, failure);
  if (failure) return error(Code::Unavailable, fmt::format("cannot make {}: {}", path, failure.message()));
  if (geteuid() == 0 && chown(path.c_str(), uid, gid) != 0)
    return error(Code::Unavailable, fmt::format("cannot hand over {}: {}", path, errno_text(errno)));
  if (chmod(path.c_str(), mode) != 0)
    return error(Code::Unavailable, fmt::format("cannot protect {}: {}", path, errno_text(errno)));
  return {};
}

Status hand_over(const std::string& path, const Accounts& accounts) {
  if (geteuid() == 0 && chown(path.c_str(), accounts.agent_uid, accounts.agent_gid) != 0)
    return error(Code::Unavailable, fmt::format("cannot hand over {}: {}", path, errno_text(errno)));
  return {};
}

// The key of an enrolment that was begun and not finished, or a new one; on disk before anybody hears of it.
Result<crypto::SigningKey> own_key(const Layout& layout, const Accounts& accounts) {
  std::ifstream begun(layout.device_key());
  std::stringstream text;
  text << begun.rdbuf();
  if (begun) {
    auto known = crypto::SigningKey::from_pem(text.str());
    if (known.ok()) return known;
  }
  auto key = crypto::SigningKey::generate();
  TRY_VOID(crypto::write_secret_file(layout.device_key(), as_bytes(key.to_pem())));
  TRY_VOID(hand_over(layout.device_key(), accounts));
  return key;
}

// Asks again when no answer came: the control plane gives the same one for the same key and token.
Result<net::Response> ask_enrolment(const net::Endpoint& endpoint, const std::string& body) {
  constexpr int kTries = 4;
  for (int i = 1;; ++i) {
    net::Client client(endpoint);
    auto response = client.call({.method = "POST",
                                 .target = "/api/v1/enroll",
                                 .headers = {{"content-type", "application/json"}},
                                 .body = body});
    const bool lost =
        response.ok() ? response->status >= 500
                      : response.error().code == Code::Unavailable || response.error().code == Code::DeadlineExceeded;
    if (!lost || i == kTries) return response;
    std::this_thread::sleep_for(Millis(500 << i));
  }
}

// nullopt: none is used.
Result<std::optional<crypto::TpmKey>> own_tpm_key(const JoinOptions& options) {
  const std::string path = options.layout.tpm_key();
  unlink(path.c_str());
  const bool there = !options.tpm_at.empty() || crypto::tpm_present();
  if (options.tpm == TpmUse::Off || (options.tpm == TpmUse::Auto && !there)) return std::optional<crypto::TpmKey>();
  if (!there)
    return error(
        Code::FailedPrecondition,
        "--tpm require: this machine has no TPM 2.0 (/dev/tpmrm0); switch it on in the firmware, or join without");
  auto key = crypto::TpmKey::create(options.tpm_at);
  if (!key.ok() && options.tpm == TpmUse::Auto) {
    log_warn("agent", "there is a TPM, and it is not used: {}", key.error().message);
    return std::optional<crypto::TpmKey>();
  }
  if (!key.ok()) return key.error();
  TRY_VOID(crypto::write_secret_file(path, as_bytes(key->wrapped_pem())));
  return std::optional(std::move(*key));
}

// What the pinned root leads to at once; where it does not, the control plane says it again once there is a link.
Status keep_trust(const Layout& layout, const Accounts& accounts, const Config& config, const std::string& told) {
  const auto first = crypto::parse_trust(config.ca_pem), said = crypto::parse_trust(told);
  auto believed = first.ok() && said.ok() ? crypto::believe(*first, *said) : Result<crypto::Trust>(Error{});
  if (!believed.ok() || believed->server_id != config.server_id) {
    unlink(layout.trust().c_str());
    return {};
  }
  TRY_VOID(crypto::write_secret_file(layout.trust(), as_bytes(crypto::trust_text(*believed))));
  return hand_over(layout.trust(), accounts);
}

}  // namespace

Accounts find_accounts() {
  Accounts out;
  if (const passwd* entry = getpwnam("muster-agent")) out.agent_uid = entry->pw_uid, out.agent_gid = entry->pw_gid;
  if (const passwd* entry = getpwnam("muster-netd")) out.netd_uid = entry->pw_uid, out.netd_gid = entry->pw_gid;
  if (const passwd* entry = getpwnam("muster-egress")) out.egress_uid = entry->pw_uid, out.egress_gid = entry->pw_gid;
  return out;
}

Status make_directories(const Layout& layout, const Accounts& accounts) {
  TRY_VOID(owned_dir(layout.root, 0, 0, 0755));
  TRY_VOID(owned_dir(layout.leases(), 0, 0, 0711));
  TRY_VOID(owned_dir(layout.sockets(), 0, 0, 0755));
  TRY_VOID(owned_dir(layout.agent(), accounts.agent_uid, accounts.agent_gid, 0700));
  TRY_VOID(owned_dir(layout.netd(), accounts.netd_uid, accounts.netd_gid, 0700));
  return {};
}

Result<Config> load_config(const Layout& layout) {
  std::ifstream file(layout.config());
  if (!file)
    return error(Code::FailedPrecondition,
                 fmt::format("{} is not enrolled; run: muster-agent join https://HOST --token-file FILE", layout.root));
  std::stringstream text;
  text << file.rdbuf();
  const json::object object = TRY(parse_object(text.str()));
  Fields f(object);
  Config c;
  c.server = f.text("server");
  c.node_id = f.text("node_id", 32);
  c.machine = f.text("machine", 64);
  c.name = f.text_or("name", {}, 256);
  c.server_id = f.text_or("server_id", {}, 256);
  c.ca_pem = f.text("ca_pem", 65'536);
  c.roster_key = unbase64(f.text("roster_key", 128)).value_or(Bytes{});
  c.command_key = unbase64(f.text_or("command_key", {}, 128)).value_or(Bytes{});
  c.relays = f.texts("relays", 64, 512);
  c.labels = f.text_map("labels", 64, 256);
  c.tpm_key = unbase64(f.text_or("tpm_key", {}, 512)).value_or(Bytes{});
  c.tpm = f.text_or("tpm", {}, 256);
  TRY_VOID(f.finish_lenient("config.json"));
  return c;
}

Status save_config(const Layout& layout, const Config& c) {
  json::array relays;
  for (const auto& relay : c.relays) relays.emplace_back(relay);
  json::object labels;
  for (const auto& [key, value] : c.labels) labels[key] = value;
  const json::object object{{"server", c.server},
                            {"node_id", c.node_id},
                            {"machine", c.machine},
                            {"name", c.name},
                            {"server_id", c.server_id},
                            {"ca_pem", c.ca_pem},
                            {"roster_key", base64(c.roster_key)},
                            {"command_key", base64(c.command_key)},
                            {"relays", relays},
                            {"labels", labels},
                            {"tpm_key", base64(c.tpm_key)},
                            {"tpm", c.tpm}};
  return crypto::write_public_file(layout.config(), as_bytes(to_text(object)));
}

crypto::Trust load_trust(const Layout& layout, const Config& config) {
  std::ifstream file(layout.trust());  // the agent's own, so not for read_secret_file
  std::stringstream text;
  text << file.rdbuf();
  if (auto learnt = crypto::parse_trust(text.str()); learnt.ok() && learnt->server_id == config.server_id)
    return std::move(*learnt);
  auto first = crypto::parse_trust(config.ca_pem);
  return first.ok() ? std::move(*first) : crypto::Trust{};
}

Result<crypto::TpmKey> load_tpm_key(const Layout& layout, const Config& config) {
  const Bytes pem = TRY(crypto::read_secret_file(layout.tpm_key()));
  auto key = TRY(crypto::TpmKey::load(as_string(pem), config.tpm));
  if (key.public_der() != config.tpm_key)
    return error(Code::DataLoss, layout.tpm_key() + " is not the key that this machine joined with", "tpm");
  return key;
}

crypto::SigningKeys load_signing_keys(const Layout& layout, const Config& config) {
  std::ifstream file(layout.signing_keys());
  std::stringstream text;
  text << file.rdbuf();
  if (auto learnt = crypto::parse_signing_keys(text.str()); learnt.ok() && learnt->server_id == config.server_id)
    return std::move(*learnt);
  crypto::SigningKeys first;
  first.server_id = config.server_id;
  if (const auto key = crypto::key32(config.roster_key)) first.keys.push_back({crypto::KeyKind::Roster, *key, {}, {}});
  if (const auto key = crypto::key32(config.command_key)) first.keys.push_back({crypto::KeyKind::Order, *key, {}, {}});
  return first;
}

Result<RenewalPlan> plan_renewal(const std::string& pem, const std::string& ca_pem, double jitter) {
  const WallTime end = TRY(crypto::certificate_expiry(pem));
  const auto certificate = TRY(crypto::verify_device_certificate(pem, ca_pem, end - Millis(1)));
  const WallTime issued = certificate.not_before + crypto::kBackdate;
  const Millis life = std::max(Millis(1000), end - issued);
  RenewalPlan plan;
  plan.ends_at = end;
  plan.renew_at =
      issued + life * 2 / 3 + Millis(static_cast<std::int64_t>(static_cast<double>(life.count()) / 10 * jitter));
  plan.check_every = std::clamp(life / 30, Millis(1'000), Millis(60'000));
  return plan;
}

Result<Config> join(const JoinOptions& options) {
  const Layout& layout = options.layout;
  if (fs::exists(layout.config())) {
    return error(
        Code::FailedPrecondition,
        fmt::format("{} is enrolled already; `muster-agent leave` first, or use another --state-dir", layout.root));
  }
  const Accounts accounts = find_accounts();
  const crypto::JoinTokenParts token = TRY(crypto::parse_join_token(options.token));
  net::Endpoint endpoint = TRY(net::parse_url(options.server));
  endpoint.ca_sha256 = token.ca_sha256;
  TRY_VOID(make_directories(layout, accounts));

  crypto::SigningKey key = TRY(own_key(layout, accounts));
  wire::EnrollRequest request;
  request.token = options.token;
  request.name = options.name.empty() ? host_name() : options.name;
  request.csr_pem = TRY(crypto::make_csr(key, request.name));
  request.facts = gather_facts(layout, options.labels);
  auto tpm = TRY(own_tpm_key(options));
  if (tpm) {
    request.tpm_key = tpm->public_der();
    request.tpm_signature = TRY(tpm->sign(crypto::kTpmEnrolDomain, key.public_key()));
  }
  net::Response response = TRY(ask_enrolment(endpoint, wire::to_json(request)));
  if (tpm && options.tpm == TpmUse::Auto && response.status == 400 &&
      response.body.find("tpmKey") != std::string::npos) {
    log_warn("agent", "this control plane is older and knows no TPM keys; the machine joins without");
    tpm.reset();
    unlink(layout.tpm_key().c_str());
    request.tpm_key.clear(), request.tpm_signature.clear();
    response = TRY(ask_enrolment(endpoint, wire::to_json(request)));
  }
  if (response.status / 100 != 2) {
    const auto problem = parse_object(response.body);
    const std::string detail = problem.ok() ? text_at(*problem, {"detail"}) : std::string();
    // A key that was refused for good is of no use to the next try.
    if (response.status / 100 == 4) unlink(layout.device_key().c_str());
    return error(Code::PermissionDenied, fmt::format("the control plane refused this machine ({}): {}", response.status,
                                                     detail.empty() ? "no reason given" : detail));
  }
  const json::object said = TRY(parse_object(response.body));
  Fields f(said);
  Config config;
  config.server = options.server;
  config.node_id = f.text("nodeId", 32);
  config.name = request.name;
  config.machine = hex(crypto::sha256(key.public_key())).substr(0, 12);
  const std::string certificate = f.text("certificatePem", 65'536);
  const std::string roots = f.text("caPem", 65'536), trust = f.text_or("trust", {}, 65'536);
  config.roster_key = unbase64(f.text("rosterKey", 128)).value_or(Bytes{});
  config.command_key = unbase64(f.text_or("commandKey", {}, 128)).value_or(Bytes{});
  config.server_id = f.text_or("serverId", {}, 256);
  config.relays = f.texts("relays", 64, 512);
  config.labels = options.labels;
  if (tpm) config.tpm_key = tpm->public_der(), config.tpm = options.tpm_at;
  TRY_VOID(f.finish_lenient("enrolment answer"));
  // The CA that it names must be the one that the token pins, whatever the connection was.
  const auto pinned = crypto::find_certificate(roots, token.ca_sha256);
  if (!pinned.ok())
    return error(Code::PermissionDenied,
                 "the control plane's CA is not the one named in the join token; nothing was written");
  config.ca_pem = *pinned;
  TRY_VOID(keep_trust(layout, accounts, config, trust));
  unlink(layout.signing_keys().c_str());  // of an enrolment before
  if (config.roster_key.size() != 32) return error(Code::Unavailable, "the control plane sent no roster key");
  TRY_VOID(crypto::write_secret_file(layout.certificate(), as_bytes(certificate)));
  TRY_VOID(hand_over(layout.certificate(), accounts));
  TRY_VOID(save_config(layout, config));
  return config;
}

}  // namespace muster::host
