#include "server/signing_desk.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <filesystem>

#include "crypto/file.h"
#include "crypto/random.h"
#include "crypto/workload_token.h"
#include "model/validate.h"
#include "model/workload_identity.h"
#include "net/net.h"
#include "overlay/roster.h"
#include "server/at_rest.h"
#include "server/journal_head.h"

namespace muster::server {
namespace {

namespace fs = std::filesystem;
constexpr std::string_view kOrderPrefix{"muster-desired-v1\0", 18};
constexpr std::size_t kOrderBytesMax = 2 << 20;

const char* op_name(SignOp op) {
  constexpr std::array<const char*, kSignOps + 1> names{
      "?",    "view",   "device",      "server",       "proof",       "roster",   "order",        "relay-token",
      "head", "behind", "keys-behind", "access-token", "access-keys", "workload", "workload-keys"};
  return names[static_cast<std::size_t>(op)];
}

Status want(const Signer::Fields& fields, std::size_t count) {
  if (fields.size() == count) return {};
  return error(Code::InvalidArgument, fmt::format("{} values are expected, not {}", count, fields.size()));
}
Result<crypto::Key32> read_key(const Bytes& field) {
  const auto key = crypto::key32(field);
  if (!key) return error(Code::InvalidArgument, "a key has 32 bytes");
  return *key;
}
std::string key_id(const crypto::SigningKey& key) {
  return audit_key_id(key.public_key());
}
Bytes id_field(const crypto::SigningKey& key) {
  return crypto::short_key_id(key.public_key());
}
Signer::Fields believed_fields(const AccessKeySet& keys) {
  Signer::Fields out;
  for (const crypto::AccessKey& each : keys.believed) {
    out.push_back({each.key.begin(), each.key.end()});
    out.push_back(number_field(static_cast<std::uint64_t>(each.until.ms)));
  }
  return out;
}
Status not_signed(std::string why) {
  return error(Code::PermissionDenied, "the signer refuses: " + std::move(why));
}

}  // namespace

// What a platform of 100,000 machines needs on its busiest day; far below what a thief would want.
std::array<SigningDesk::Rate, kSignOps + 1> SigningDesk::default_rates() {
  std::array<Rate, kSignOps + 1> out{};
  const auto set = [&](SignOp op, std::uint64_t burst, std::uint64_t a_minute) {
    out[static_cast<std::size_t>(op)] = {burst, a_minute};
  };
  set(SignOp::View, 100, 60);
  set(SignOp::Device, 120'000, 12'000);
  set(SignOp::Server, 20, 1);
  set(SignOp::Proof, 400'000, 60'000);
  set(SignOp::Roster, 1'000'000, 600'000);
  set(SignOp::Order, 1'000'000, 600'000);
  set(SignOp::RelayToken, 1'000'000, 600'000);
  set(SignOp::Head, 60, 60);
  set(SignOp::Behind, 100, 60);
  set(SignOp::KeysBehind, 100, 60);
  set(SignOp::AccessToken, 120'000, 30'000);
  set(SignOp::AccessKeys, 1000, 600);
  set(SignOp::WorkloadToken, 400'000, 60'000);
  set(SignOp::WorkloadKeys, 1000, 600);
  return out;
}

Result<std::unique_ptr<SigningDesk>> SigningDesk::open(const DataDir& dir, Options options) {
  std::unique_ptr<SigningDesk> desk(new SigningDesk(dir, std::move(options)));
  for (std::size_t i = 0; i < desk->left_.size(); ++i)
    desk->left_[i] = {desk->options_.rates[i].burst * 1000, read_clocks().lease};
  TRY_VOID(ensure_audit_key(dir));  // folders of older programs have none
  TRY_VOID(desk->load());
  return desk;
}

Status SigningDesk::load() {
  TRY_VOID(follow_ca(dir_, options_.wall()));
  const auto text = [&](const char* name) -> Result<std::string> {
    const Bytes bytes = TRY(dir_.read(dir_.key(name)));
    return as_string(bytes);
  };
  CaSet cas = TRY(load_cas(dir_));
  std::string server_id = TRY(text("server_id"));
  KeySet own = TRY(load_signing_keys(dir_, cas, server_id, options_.wall()));
  AccessKeySet access = TRY(load_short_keys(dir_, ShortKey::Access, options_.wall()));
  AccessKeySet workload = TRY(load_short_keys(dir_, ShortKey::Workload, options_.wall()));
  auto prover = TRY(crypto::MachineProver::create(cas.ca));
  std::string id = ca_id(cas.ca.cert_pem);
  auto keys = std::make_shared<Keys>(Keys{std::move(own),
                                          std::move(access),
                                          std::move(workload),
                                          std::move(cas),
                                          std::move(prover),
                                          std::move(id),
                                          std::move(server_id),
                                          {}});
  keys->sans = lines_of(TRY(text("sans")));
  const auto relays = TRY(read_relays(dir_, keys->server_id));
  relays_ = std::make_unique<RelayBook>(dir_, keys->server_id, relays);
  keys_ = std::move(keys);
  return {};
}

Status SigningDesk::within_rate(SignOp op) {
  const auto index = static_cast<std::size_t>(op);
  const Rate& rate = options_.rates[index];
  Left& left = left_[index];
  const LeaseTime now = read_clocks().lease;
  const auto passed = static_cast<std::uint64_t>(std::clamp<std::int64_t>((now - left.at).count(), 0, 86'400'000));
  left = {std::min(rate.burst * 1000, left.thousandths + passed * rate.a_minute / 60), now};
  if (left.thousandths < 1000)
    return error(Code::ResourceExhausted,
                 fmt::format("the signer was asked for too many signatures of the kind '{}'", op_name(op)));
  left.thousandths -= 1000;
  return {};
}

Status SigningDesk::write_line(const std::string& line) {
  const std::string path = dir_.root + "/signer.log";
  std::error_code fault;
  const auto size = fs::file_size(path, fault);
  if (log_.is_open() && !fault && size > options_.log_bytes_max) {
    log_.close();
    fs::rename(path, path + ".1", fault);
  }
  if (!log_.is_open() || !fs::exists(path, fault)) {
    log_.close();
    log_.clear();
    log_.open(path, std::ios::app | std::ios::binary);
    ::chmod(path.c_str(), 0600);
  }
  log_ << (dir_.at_rest ? seal_lines(*dir_.at_rest->ring, "signer.log", line) : line) << std::flush;
  if (log_) return {};
  log_.close();
  log_.clear();
  return error(Code::Unavailable,
               fmt::format("{} cannot be written, so nothing is signed; check the disk and its owner", path));
}

Result<Signer::Fields> SigningDesk::ask_as(const std::string& who, SignOp op, const Fields& fields) {
  const std::lock_guard lock(mutex_);
  Asked asked;
  Status done = within_rate(op);
  // The time of a key that was announced has come.
  if (done.ok() && keys_->own.next.ms != 0 && options_.wall() >= keys_->own.next) done = load();
  if (done.ok()) done = perform(op, fields, asked);
  std::string line = fmt::format("{} {} {}", format_utc(options_.wall()), who, op_name(op));
  if (!asked.key.empty()) line += " key=" + asked.key;
  if (!asked.about.empty()) line += " " + asked.about;
  line += done.ok() ? std::string(" ok\n") : fmt::format(" refused: {}\n", done.error().message);
  const bool signs = op != SignOp::View && op != SignOp::Behind && op != SignOp::KeysBehind &&
                     op != SignOp::AccessKeys && op != SignOp::WorkloadKeys;
  if (signs || !done.ok()) TRY_VOID(write_line(line));
  if (!done.ok()) return done.error();
  return std::move(asked.answer);
}

Status SigningDesk::perform(SignOp op, const Fields& fields, Asked& out) {
  switch (op) {
    case SignOp::View: {
      TRY_VOID(want(fields, 0));
      TRY_VOID(load());
      SignerView view{keys_->own.roster.public_key(), keys_->own.order.public_key(), keys_->own.relay.public_key(),
                      keys_->cas, keys_->own.text};
      out.answer = view_fields(view);
      return {};
    }
    case SignOp::Device:
      return sign_device(fields, out);
    case SignOp::Server:
      return sign_server(fields, out);
    case SignOp::Proof:
      return sign_proof(fields, out);
    case SignOp::Roster:
      return sign_roster(fields, out);
    case SignOp::Order:
      return sign_order(fields, out);
    case SignOp::RelayToken:
      return sign_relay_token(fields, out);
    case SignOp::Head:
      return sign_head_of(fields, out);
    case SignOp::Behind:
    case SignOp::KeysBehind:
      return note_behind(op, fields);
    case SignOp::AccessToken:
      return sign_access(fields, out);
    case SignOp::AccessKeys:
      return tell_access_keys(fields, out);
    case SignOp::WorkloadToken:
      return sign_workload(fields, out);
    case SignOp::WorkloadKeys:
      return tell_workload_keys(fields, out);
  }
  return error(Code::Unsupported, "the signer does not know this kind of signature");
}

Status SigningDesk::note_behind(SignOp op, const Fields& fields) {
  if (fields.empty() || fields.size() > 1'000'001) return error(Code::InvalidArgument, "a revision is expected");
  Behind behind{TRY(read_number(fields[0])), {}};
  for (std::size_t i = 1; i < fields.size(); ++i) {
    std::string machine = as_string(fields[i]);
    std::replace(machine.begin(), machine.end(), '\n', ' ');
    behind.machines.push_back(std::move(machine));
  }
  return op == SignOp::Behind ? write_behind(dir_, behind) : write_keys_behind(dir_, behind);
}

Status SigningDesk::sign_device(const Fields& fields, Asked& out) {
  if (fields.size() != 4) TRY_VOID(want(fields, 3));
  const Bytes tpm = fields.size() == 4 ? fields[3] : Bytes();
  const NodeId node{TRY(read_number(fields[0]))};
  const crypto::Key32 device = TRY(read_key(fields[1]));
  const Millis lifetime(static_cast<std::int64_t>(std::min<std::uint64_t>(TRY(read_number(fields[2])), INT64_MAX / 2)));
  out.key = keys_->ca;
  out.about = fmt::format("{} device={} seconds={}", node.str(), audit_key_id(device), lifetime.count() / 1000);
  if (!tpm.empty()) out.about += " tpm=" + hex(tpm).substr(0, 16);
  if (!node) return not_signed("a certificate names a machine");
  if (fields.size() == 4 && tpm.size() != 32) return not_signed("a TPM's key is named by its SHA-256");
  if (lifetime <= Millis(0) || lifetime > kDeviceLifetimeMax)
    return not_signed("a machine's certificate holds for seven days at most");
  const std::string cert =
      TRY(crypto::issue_device_certificate(keys_->cas.ca, device, node.str(), options_.wall(), lifetime, tpm));
  out.answer = {to_bytes(cert)};
  return {};
}

Status SigningDesk::sign_server(const Fields& fields, Asked& out) {
  TRY_VOID(want(fields, 2));
  const std::uint64_t role = TRY(read_number(fields[0]));
  if (role > static_cast<std::uint64_t>(crypto::ServerRole::Relay)) return not_signed("there is no such role");
  const bool relay = role == static_cast<std::uint64_t>(crypto::ServerRole::Relay);
  out.key = keys_->ca;
  out.about = relay ? "role=relay" : "role=server";
  const std::vector<std::string> names = relay ? std::vector{std::string(net::kRelayName)} : keys_->sans;
  const WallTime now = options_.wall();
  const auto end = TRY(crypto::certificate_expiry(keys_->cas.ca.cert_pem));
  const std::string cert = TRY(crypto::certify_server(keys_->cas.ca, static_cast<crypto::ServerRole>(role),
                                                      relay ? net::kRelayName : "muster", names, as_string(fields[1]),
                                                      now, std::min(kServerLifetime, end - now)));
  out.answer = {to_bytes(cert)};
  return {};
}

Status SigningDesk::sign_proof(const Fields& fields, Asked& out) {
  TRY_VOID(want(fields, 2));
  const NodeId node{TRY(read_number(fields[0]))};
  const crypto::Key32 device = TRY(read_key(fields[1]));
  out.key = keys_->ca;
  out.about = fmt::format("{} device={}", node.str(), audit_key_id(device));
  if (!node) return not_signed("a proof is for a machine");
  const auto proof = TRY(keys_->prover.prove(node.value, device, options_.wall()));
  out.answer = {crypto::encode_machine_proofs({proof})};
  return {};
}

void SigningDesk::note_incarnation(std::uint64_t incarnation) {
  if (incarnation > incarnation_) head_seq_ = 0;
  incarnation_ = incarnation;
}

Status SigningDesk::sign_roster(const Fields& fields, Asked& out) {
  TRY_VOID(want(fields, 1));
  const auto roster = TRY(overlay::decode_roster(fields[0]));
  out.key = key_id(keys_->own.roster);
  out.about = fmt::format("cluster={} incarnation={} epoch={} members={}", roster.cluster, roster.incarnation,
                          roster.epoch, roster.members.size());
  if (roster.incarnation < incarnation_) return not_signed("that roster is of an incarnation that has passed");
  note_incarnation(roster.incarnation);
  out.answer = {overlay::sign_roster(keys_->own.roster, fields[0]), id_field(keys_->own.roster)};
  return {};
}

Status SigningDesk::sign_order(const Fields& fields, Asked& out) {
  TRY_VOID(want(fields, 1));
  out.key = key_id(keys_->own.order);
  out.about = fmt::format("bytes={}", fields[0].size());
  const ByteView head = ByteView(fields[0]).first(std::min(fields[0].size(), kOrderPrefix.size()));
  if (fields[0].size() > kOrderBytesMax || as_string(head) != kOrderPrefix)
    return not_signed("that is no order to a machine");
  out.answer = {keys_->own.order.sign(fields[0]), id_field(keys_->own.order)};
  return {};
}

Status SigningDesk::sign_relay_token(const Fields& fields, Asked& out) {
  TRY_VOID(want(fields, 4));
  overlay::RelayToken token;
  token.relay = as_string(fields[0]);
  token.cluster = TRY(read_number(fields[1]));
  token.overlay_key = TRY(read_key(fields[2]));
  token.not_after = WallTime{static_cast<std::int64_t>(TRY(read_number(fields[3])) & INT64_MAX)};
  out.key = key_id(keys_->own.relay);
  out.about = fmt::format("cluster={} overlay={}", token.cluster, audit_key_id(token.overlay_key));
  relays_->refresh();
  const auto relays = relays_->relays();
  const bool ours =
      std::any_of(relays->begin(), relays->end(), [&](const auto& each) { return each.id == token.relay; });
  if (!ours && !(relays->empty() && token.relay == keys_->server_id))
    return not_signed("that relay is not this platform's; list it where the signing keys lie: musterd relay add");
  if (token.not_after - options_.wall() > kRelayTokenMax) return not_signed("a relay's token holds for twelve hours");
  // Relays of before know neither other keys nor their ids.
  const auto form = ever_changed(keys_->own.statement, crypto::KeyKind::RelayToken) ? overlay::TokenForm::Named
                                                                                    : overlay::TokenForm::Plain;
  out.answer = {overlay::sign_relay_token(keys_->own.relay, token, form)};
  return {};
}

Status SigningDesk::sign_head_of(const Fields& fields, Asked& out) {
  TRY_VOID(want(fields, 3));
  const std::uint64_t incarnation = TRY(read_number(fields[0]));
  journal::Tail tail;
  tail.seq = TRY(read_number(fields[1]));
  tail.hash = fields[2];
  out.about = fmt::format("incarnation={} seq={}", incarnation, tail.seq);
  if (incarnation < incarnation_ || (incarnation == incarnation_ && tail.seq < head_seq_))
    return not_signed("a later head was signed already");
  const auto head = TRY(sign_head(dir_, keys_->server_id, incarnation, tail, options_.wall()));
  out.key = head.key_id;
  note_incarnation(incarnation);
  head_seq_ = tail.seq;
  out.answer = {to_bytes(wire::to_json(head))};
  return {};
}

Status SigningDesk::sign_access(const Fields& fields, Asked& out) {
  TRY_VOID(want(fields, 3));
  const PrincipalId account{TRY(read_number(fields[0]))};
  const TokenId session{TRY(read_number(fields[1]))};
  const Millis lifetime(static_cast<std::int64_t>(std::min<std::uint64_t>(TRY(read_number(fields[2])), INT64_MAX / 2)));
  out.key = key_id(keys_->access.own);
  out.about = fmt::format("{} login={} seconds={}", account.str(), session.str(), lifetime.count() / 1000);
  if (!account || !session) return not_signed("an access token names an account and a login");
  if (lifetime <= Millis(0) || lifetime > crypto::kAccessLifetimeMax)
    return not_signed("an access token holds for ten minutes at most");
  const WallTime now = options_.wall();
  const std::string text = crypto::make_access_token(
      keys_->access.own, {keys_->server_id, account.str(), session.str(), now, now + lifetime});
  out.answer = {to_bytes(text)};
  return {};
}

Status SigningDesk::tell_access_keys(const Fields& fields, Asked& out) {
  TRY_VOID(want(fields, 0));
  keys_->access = TRY(load_short_keys(dir_, ShortKey::Access, options_.wall()));
  out.answer = believed_fields(keys_->access);
  return {};
}

Status SigningDesk::sign_workload(const Fields& fields, Asked& out) {
  constexpr std::size_t kBefore = 10;  // the audiences
  if (fields.size() <= kBefore || fields.size() > kBefore + kAudiencesMax)
    return error(Code::InvalidArgument, "an identity token is for one to eight audiences");
  const auto number = [&](std::size_t at) { return read_number(fields[at]); };
  const OrgId org{TRY(number(4))};
  const ProjectId project{TRY(number(5))};
  const ClusterId cluster{TRY(number(6))};
  const LeaseId lease{TRY(number(7))};
  const JobId job{TRY(number(8))};
  const Millis lifetime(static_cast<std::int64_t>(std::min<std::uint64_t>(TRY(number(9)), INT64_MAX / 2)));
  const WallTime now = options_.wall();
  crypto::WorkloadClaims claims;
  claims.issuer = as_string(fields[0]);
  claims.org = as_string(fields[1]), claims.project = as_string(fields[2]), claims.cluster = as_string(fields[3]);
  claims.org_id = org.str(), claims.project_id = project.str(), claims.cluster_id = cluster.str();
  claims.lease_id = lease.str();
  if (job) claims.job = job.str();
  for (std::size_t i = kBefore; i < fields.size(); ++i) claims.audiences.push_back(as_string(fields[i]));
  claims.id = hex(crypto::random_bytes(16));
  claims.issued = now, claims.expires = now + lifetime;
  out.key = key_id(keys_->workload.own);
  if (!valid_name(claims.org) || !valid_name(claims.project) || !valid_name(claims.cluster) || !org || !project ||
      !cluster || !lease)
    return not_signed("an identity token names organisation, project, cluster and lease");
  out.about = fmt::format("{} {} seconds={}", crypto::workload_subject(claims), lease.str(), lifetime.count() / 1000);
  if (!crypto::valid_issuer(claims.issuer)) return not_signed("the issuer of an identity token is an https address");
  if (!std::all_of(claims.audiences.begin(), claims.audiences.end(), valid_audience))
    return not_signed("that is no audience of an identity token");
  if (lifetime <= Millis(0) || lifetime > crypto::kWorkloadLifetimeMax)
    return not_signed("an identity token holds for an hour at most");
  out.answer = {to_bytes(crypto::make_workload_token(keys_->workload.own, claims))};
  return {};
}

Status SigningDesk::tell_workload_keys(const Fields& fields, Asked& out) {
  TRY_VOID(want(fields, 0));
  keys_->workload = TRY(load_short_keys(dir_, ShortKey::Workload, options_.wall()));
  out.answer = believed_fields(keys_->workload);
  return {};
}

}  // namespace muster::server
