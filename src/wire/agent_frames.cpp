#include "wire/agent_frames.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <google/protobuf/stubs/logging.h>

#include "wire/agent_values.h"

namespace muster::wire {
namespace {

using namespace session;

constexpr std::size_t kPemMax = 64 << 10, kPasswordMax = 8 << 10, kIdentityTokenMax = 8 << 10, kLockMax = 512 << 10,
                      kPackagesMax = 920 << 10;

std::vector<LeaseId> get_ids(const google::protobuf::RepeatedField<std::uint64_t>& in, const char* field,
                             Check& check) {
  std::vector<LeaseId> out;
  if (!check.count(in, kListMax, field)) return out;
  for (std::uint64_t id : in) out.push_back({id});
  return out;
}
Bytes get_chunk(const std::string& in, Check& check) {
  return check.bytes(in, kChunkBytesMax, "data");
}

std::uint16_t get_u16(std::uint32_t in, const char* field, Check& c) {
  return static_cast<std::uint16_t>(c.below(in, 65'535, field));
}

// ---- server frames
void put(const Challenge& v, pb::ServerFrame& f) {
  auto& o = *f.mutable_challenge();
  o.set_nonce(raw(v.nonce));
  o.set_server_id(utf8(v.server_id));
  o.set_version_min(v.version_min);
  o.set_version_max(v.version_max);
}
Challenge get(const pb::Challenge& in, Check& c) {
  return {c.bytes(in.nonce(), 64, "nonce"), c.text(in.server_id(), kNameMax, "server_id"), in.version_min(),
          in.version_max()};
}

void put(const Welcome& v, pb::ServerFrame& f) {
  auto& o = *f.mutable_welcome();
  o.set_node(v.node.value);
  o.set_session(v.session);
  o.set_heartbeat_ms(v.heartbeat.count());
  o.set_lease_ms(v.lease.count());
  o.set_server_time_ms(v.server_time.ms);
  o.set_incarnation(v.incarnation);
  o.set_roster_key(raw(v.roster_key));
  for (const auto& relay : v.relays) o.add_relays(utf8(relay));
  o.set_want_inventory(v.want_inventory);
  for (const auto& feature : v.features) o.add_features(utf8(feature));
  for (const auto& relay : v.probe_relays) o.add_probe_relays(utf8(relay));
}
Welcome get(const pb::Welcome& in, Check& c) {
  return {{in.node()},
          in.session(),
          c.millis(in.heartbeat_ms(), "heartbeat_ms"),
          c.millis(in.lease_ms(), "lease_ms"),
          {c.between(in.server_time_ms(), 0, kMillisMax, "server_time_ms")},
          in.incarnation(),
          c.bytes(in.roster_key(), 64, "roster_key"),
          c.texts(in.relays(), 64, kNameMax, "relays"),
          in.want_inventory(),
          c.texts(in.features(), 64, kNameMax, "features"),
          c.texts(in.probe_relays(), kRelaysMax, kNameMax, "probe_relays")};
}

void put(const Refused& v, pb::ServerFrame& f) {
  auto& o = *f.mutable_refused();
  o.set_code(utf8(v.code));
  o.set_message(utf8(v.message));
  o.set_retry_after_ms(v.retry_after.count());
}
Refused get(const pb::Refused& in, Check& c) {
  return {c.text(in.code(), kNameMax, "code"), c.text(in.message(), kReasonMax, "message"),
          c.millis(in.retry_after_ms(), "retry_after_ms")};
}

void put_desired(const Desired& v, pb::Desired& o) {
  o.set_incarnation(v.incarnation);
  o.set_revision(v.revision);
  put_list(v.assignments, *o.mutable_assignments());
  for (const auto& secret : v.secrets) {
    auto& s = *o.add_secrets();
    s.set_lease(secret.lease.value);
    s.set_ray_token(raw(secret.ray_token));
    s.set_relay_token(raw(secret.relay_token));
    s.set_psk(raw(secret.psk));
    s.set_registry_user(utf8(secret.registry_user));
    s.set_registry_password(raw(secret.registry_password));
    for (const auto& relay : secret.relays) {
      auto& r = *s.add_relays();
      r.set_address(utf8(relay.address));
      r.set_region(utf8(relay.region));
      r.set_token(raw(relay.token));
    }
    for (const auto& identity : secret.identities) {
      auto& i = *s.add_identities();
      i.set_name(utf8(identity.name));
      i.set_token(raw(identity.token));
    }
  }
  for (const auto& roster : v.rosters) {
    auto& r = *o.add_rosters();
    r.set_cluster(roster.cluster.value);
    r.set_bytes(raw(roster.bytes));
    for (const auto& signature : roster.signatures) r.add_signatures(raw(signature));
    r.set_machines(raw(roster.machines));
    for (const auto& key : roster.keys) r.add_keys(raw(key));
  }
  o.set_signature(raw(v.signature));
  o.set_signature_key(raw(v.signature_key));
}
void put(const Desired& v, pb::ServerFrame& f) {
  put_desired(v, *f.mutable_desired());
}
Desired get(const pb::Desired& in, Check& c) {
  Desired v{in.incarnation(),
            in.revision(),
            {},
            {},
            {},
            c.bytes(in.signature(), 512, "signature"),
            c.bytes(in.signature_key(), 32, "signature_key")};
  get_list(in.assignments(), v.assignments, kListMax, "assignments", c);
  if (c.count(in.secrets(), kListMax, "secrets")) {
    for (const auto& s : in.secrets()) {
      v.secrets.push_back({{s.lease()},
                           c.bytes(s.ray_token(), kReasonMax, "secrets.ray_token"),
                           c.bytes(s.relay_token(), kReasonMax, "secrets.relay_token"),
                           c.bytes(s.psk(), 64, "secrets.psk"),
                           c.text(s.registry_user(), kNameMax, "secrets.registry_user"),
                           c.bytes(s.registry_password(), kPasswordMax, "secrets.registry_password")});
      if (!c.count(s.relays(), static_cast<int>(kRelaysMax), "secrets.relays")) break;
      for (const auto& r : s.relays())
        v.secrets.back().relays.push_back({c.text(r.address(), kNameMax, "relays.address"),
                                           c.text(r.region(), kNameMax, "relays.region"),
                                           c.bytes(r.token(), kReasonMax, "relays.token")});
      if (!c.count(s.identities(), static_cast<int>(kIdentitiesMax), "secrets.identities")) break;
      for (const auto& i : s.identities())
        v.secrets.back().identities.push_back(
            {c.text(i.name(), 64, "identities.name"), c.bytes(i.token(), kIdentityTokenMax, "identities.token")});
    }
  }
  if (c.count(in.rosters(), kListMax, "rosters")) {
    for (const auto& r : in.rosters()) {
      SignedRoster roster{{r.cluster()}, c.bytes(r.bytes(), kFrameBytesMax, "rosters.bytes"), {}};
      if (!c.count(r.signatures(), 8, "rosters.signatures")) break;
      for (const auto& signature : r.signatures())
        roster.signatures.push_back(c.bytes(signature, 512, "rosters.signatures"));
      roster.machines = c.bytes(r.machines(), kFrameBytesMax, "rosters.machines");
      if (!c.count(r.keys(), 8, "rosters.keys")) break;
      for (const auto& key : r.keys()) roster.keys.push_back(c.bytes(key, 32, "rosters.keys"));
      v.rosters.push_back(std::move(roster));
    }
  }
  return v;
}

void put(const Renewed& v, pb::ServerFrame& f) {
  auto& o = *f.mutable_renewed();
  o.set_echo(v.echo);
  for (LeaseId id : v.leases) o.add_leases(id.value);
  o.set_lease_ms(v.lease.count());
  o.set_held(utf8(v.held));
}
Renewed get(const pb::Renewed& in, Check& c) {
  return {in.echo(), get_ids(in.leases(), "leases", c), c.millis(in.lease_ms(), "lease_ms"),
          c.text(in.held(), 1024, "held")};
}

void put(const LogAck& v, pb::ServerFrame& f) {
  auto& o = *f.mutable_log_ack();
  o.set_job(v.job.value);
  o.set_attempt(v.attempt);
  o.set_offset(v.offset);
}
LogAck get(const pb::LogAck& in, Check&) {
  return {{in.job()}, in.attempt(), in.offset()};
}

void put(const BlobChunk& v, pb::ServerFrame& f) {
  auto& o = *f.mutable_blob_chunk();
  o.set_blob(utf8(v.blob));
  o.set_offset(v.offset);
  o.set_data(raw(v.data));
  o.set_last(v.last);
  o.set_error(utf8(v.error));
}
BlobChunk get(const pb::BlobChunk& in, Check& c) {
  return {c.text(in.blob(), kNameMax, "blob"), in.offset(), get_chunk(in.data(), c), in.last(),
          c.text(in.error(), kReasonMax, "error")};
}

void put(const Watch& v, pb::ServerFrame& f) {
  f.mutable_watch()->set_live(v.live);
}
Watch get(const pb::Watch& in, Check&) {
  return {in.live()};
}
void put(const CertIssued& v, pb::ServerFrame& f) {
  f.mutable_cert_issued()->set_der_chain_pem(raw(v.der_chain_pem));
}
CertIssued get(const pb::CertIssued& in, Check& c) {
  return {c.bytes(in.der_chain_pem(), kPemMax, "der_chain_pem")};
}

void put(const TrustTold& v, pb::ServerFrame& f) {
  f.mutable_trust_told()->set_pem(raw(v.pem));
}
TrustTold get(const pb::TrustTold& in, Check& c) {
  return {c.bytes(in.pem(), kPemMax, "pem")};
}
void put(const TrustTaken& v, pb::AgentFrame& f) {
  f.mutable_trust_taken()->set_revision(v.revision);
  f.mutable_trust_taken()->set_sha256(raw(v.sha256));
}
TrustTaken get(const pb::TrustTaken& in, Check& c) {
  return {in.revision(), c.bytes(in.sha256(), 32, "sha256")};
}
void put(const KeysTold& v, pb::ServerFrame& f) {
  f.mutable_keys_told()->set_text(raw(v.text));
}
KeysTold get(const pb::KeysTold& in, Check& c) {
  return {c.bytes(in.text(), kPemMax, "text")};
}
void put(const KeysTaken& v, pb::AgentFrame& f) {
  f.mutable_keys_taken()->set_revision(v.revision);
  f.mutable_keys_taken()->set_sha256(raw(v.sha256));
}
KeysTaken get(const pb::KeysTaken& in, Check& c) {
  return {in.revision(), c.bytes(in.sha256(), 32, "sha256")};
}

void put(const StreamOpen& v, pb::ServerFrame& f) {
  auto& o = *f.mutable_stream_open();
  o.set_stream(v.stream);
  o.set_lease(v.lease.value);
  o.set_kind(static_cast<std::uint32_t>(v.kind));
  for (const auto& arg : v.argv) o.add_argv(utf8(arg));
  o.set_tty(v.tty);
  o.set_rows(v.rows);
  o.set_cols(v.cols);
  o.set_port(v.port);
  o.set_path(utf8(v.path));
}
StreamOpen get(const pb::StreamOpen& in, Check& c) {
  return {in.stream(),
          {in.lease()},
          c.choice(in.kind(), StreamKind::Exec, StreamKind::WriteFile, "kind"),
          c.texts(in.argv(), kListMax, 2 * kTextMax, "argv"),
          in.tty(),
          get_u16(in.rows(), "rows", c),
          get_u16(in.cols(), "cols", c),
          get_u16(in.port(), "port", c),
          c.text(in.path(), kReasonMax, "path")};
}
void put(const StreamResize& v, pb::ServerFrame& f) {
  auto& o = *f.mutable_stream_resize();
  o.set_stream(v.stream);
  o.set_rows(v.rows);
  o.set_cols(v.cols);
}
StreamResize get(const pb::StreamResize& in, Check& c) {
  return {in.stream(), get_u16(in.rows(), "rows", c), get_u16(in.cols(), "cols", c)};
}

// ---- frames of both ways
template <typename Frame>
void put(const StreamData& v, Frame& f) {
  auto& o = *f.mutable_stream_data();
  o.set_stream(v.stream);
  o.set_channel(v.channel);
  o.set_data(raw(v.data));
}
StreamData get(const pb::StreamData& in, Check& c) {
  return {in.stream(), static_cast<std::uint8_t>(c.below(in.channel(), 255, "channel")), get_chunk(in.data(), c)};
}
template <typename Frame>
void put(const StreamWindow& v, Frame& f) {
  f.mutable_stream_window()->set_stream(v.stream);
  f.mutable_stream_window()->set_credit(v.credit);
}
StreamWindow get(const pb::StreamWindow& in, Check&) {
  return {in.stream(), in.credit()};
}
template <typename Frame>
void put(const StreamEof& v, Frame& f) {
  f.mutable_stream_eof()->set_stream(v.stream);
}
StreamEof get(const pb::StreamEof& in, Check&) {
  return {in.stream()};
}
template <typename Frame>
void put(const StreamClose& v, Frame& f) {
  auto& o = *f.mutable_stream_close();
  o.set_stream(v.stream);
  o.set_exit_code(v.exit_code);
  o.set_error(utf8(v.error));
}
StreamClose get(const pb::StreamClose& in, Check& c) {
  return {in.stream(), in.exit_code(), c.text(in.error(), kReasonMax, "error")};
}

// ---- agent frames
void put(const Hello& v, pb::AgentFrame& f) {
  auto& o = *f.mutable_hello();
  o.set_version(v.version);
  o.set_certificate_pem(utf8(v.certificate_pem));
  o.set_signature(raw(v.signature));
  o.set_agent_version(utf8(v.agent_version));
  o.set_boot_id(utf8(v.boot_id));
  o.set_inventory_digest(raw(v.inventory_digest));
  o.set_revision_seen(v.revision_seen);
  o.set_incarnation_seen(v.incarnation_seen);
  for (const auto& feature : v.features) o.add_features(utf8(feature));
  o.set_uptime_ms(static_cast<std::uint64_t>(std::max<std::int64_t>(v.uptime.count(), 0)));
  o.set_tpm_key(raw(v.tpm_key));
  o.set_tpm_signature(raw(v.tpm_signature));
}
Hello get(const pb::Hello& in, Check& c) {
  return {in.version(),
          c.text(in.certificate_pem(), kPemMax, "certificate_pem"),
          c.bytes(in.signature(), 512, "signature"),
          c.text(in.agent_version(), kNameMax, "agent_version"),
          c.text(in.boot_id(), kNameMax, "boot_id"),
          c.bytes(in.inventory_digest(), 64, "inventory_digest"),
          in.revision_seen(),
          in.incarnation_seen(),
          c.texts(in.features(), 256, kNameMax, "features"),
          Millis(static_cast<std::int64_t>(std::min<std::uint64_t>(in.uptime_ms(), 1'000'000'000'000))),
          c.bytes(in.tpm_key(), 256, "tpm_key"),
          c.bytes(in.tpm_signature(), 128, "tpm_signature")};
}

void put(const Inventory& v, pb::AgentFrame& f) {
  auto& o = *f.mutable_inventory();
  wire::put(v.facts, *o.mutable_facts());
  put_list(v.leases, *o.mutable_leases());
  put_list(v.jobs, *o.mutable_jobs());
}
Inventory get(const pb::Inventory& in, Check& c) {
  Inventory v;
  wire::get(in.facts(), v.facts, c);
  get_list(in.leases(), v.leases, kListMax, "leases", c);
  get_list(in.jobs(), v.jobs, kListMax, "jobs", c);
  return v;
}

void put(const Observed& v, pb::AgentFrame& f) {
  auto& o = *f.mutable_observed();
  o.set_revision(v.revision);
  put_list(v.leases, *o.mutable_leases());
  put_list(v.jobs, *o.mutable_jobs());
}
Observed get(const pb::Observed& in, Check& c) {
  Observed v{in.revision(), {}, {}};
  get_list(in.leases(), v.leases, kListMax, "leases", c);
  get_list(in.jobs(), v.jobs, kListMax, "jobs", c);
  return v;
}

void put(const Heartbeat& v, pb::AgentFrame& f) {
  f.mutable_heartbeat()->set_echo(v.echo);
  for (LeaseId id : v.leases) f.mutable_heartbeat()->add_leases(id.value);
  f.mutable_heartbeat()->set_incarnation(v.incarnation);
  f.mutable_heartbeat()->set_revision(v.revision);
}
Heartbeat get(const pb::Heartbeat& in, Check& c) {
  return {in.echo(), get_ids(in.leases(), "leases", c), in.incarnation(), in.revision()};
}

void put(const LogChunk& v, pb::AgentFrame& f) {
  auto& o = *f.mutable_log_chunk();
  o.set_job(v.job.value);
  o.set_attempt(v.attempt);
  o.set_offset(v.offset);
  o.set_data(raw(v.data));
}
LogChunk get(const pb::LogChunk& in, Check& c) {
  return {{in.job()}, in.attempt(), in.offset(), get_chunk(in.data(), c)};
}

void put(const RayReportFrame& v, pb::AgentFrame& f) {
  wire::put(v.report, *f.mutable_ray_report());
}
RayReportFrame get(const pb::RayReport& in, Check& c) {
  RayReportFrame v;
  wire::get(in, v.report, c);
  return v;
}

void put(const BlobRequest& v, pb::AgentFrame& f) {
  f.mutable_blob_request()->set_blob(utf8(v.blob));
  f.mutable_blob_request()->set_offset(v.offset);
}
BlobRequest get(const pb::BlobRequest& in, Check& c) {
  return {c.text(in.blob(), kNameMax, "blob"), in.offset()};
}
void put(const PullReport& v, pb::AgentFrame& f) {
  auto& o = *f.mutable_pull_report();
  o.set_lease(v.lease.value);
  o.set_done_bytes(v.done_bytes);
  o.set_total_bytes(v.total_bytes);
}
PullReport get(const pb::PullReport& in, Check&) {
  return {{in.lease()}, in.done_bytes(), in.total_bytes()};
}
void put(const LockOffer& v, pb::AgentFrame& f) {
  f.mutable_lock_offer()->set_lease(v.lease.value);
  f.mutable_lock_offer()->set_lock(raw(v.lock));
}
LockOffer get(const pb::LockOffer& in, Check& c) {
  return {{in.lease()}, c.bytes(in.lock(), kLockMax, "lock")};
}
void put(const PackagesOffer& v, pb::AgentFrame& f) {
  f.mutable_packages_offer()->set_lease(v.lease.value);
  f.mutable_packages_offer()->set_image(v.image);
  f.mutable_packages_offer()->set_packages(v.packages);
}
PackagesOffer get(const pb::PackagesOffer& in, Check& c) {
  return {{in.lease()}, c.text(in.image(), kNameMax, "image"), c.text(in.packages(), kPackagesMax, "packages")};
}
void put(const CertRequest& v, pb::AgentFrame& f) {
  f.mutable_cert_request()->set_csr_pem(raw(v.csr_pem));
}
CertRequest get(const pb::CertRequest& in, Check& c) {
  return {c.bytes(in.csr_pem(), kPemMax, "csr_pem")};
}

void put(const Telemetry& v, pb::AgentFrame& f) {
  auto& o = *f.mutable_telemetry();
  o.set_at_ms(v.at.ms);
  o.set_cpu_milli(v.cpu_milli);
  o.set_memory_used_bytes(v.memory_used_bytes);
  o.set_memory_total_bytes(v.memory_total_bytes);
  o.set_disk_free_bytes(v.disk_free_bytes);
  o.set_net_rx_bytes_s(v.net_rx_bytes_s);
  o.set_net_tx_bytes_s(v.net_tx_bytes_s);
  for (const auto& gpu : v.gpus) {
    auto& g = *o.add_gpus();
    g.set_uuid(utf8(gpu.uuid));
    g.set_use_percent(gpu.use_percent);
    g.set_temperature_c(gpu.temperature_c);
    g.set_power_w(gpu.power_w);
    g.set_memory_used_bytes(gpu.memory_used_bytes);
    g.set_memory_total_bytes(gpu.memory_total_bytes);
    g.set_power_limit_w(gpu.power_limit_w);
    g.set_sm_mhz(gpu.sm_mhz);
    g.set_memory_mhz(gpu.memory_mhz);
    g.set_ecc_corrected(gpu.ecc_corrected);
    g.set_ecc_uncorrected(gpu.ecc_uncorrected);
    g.set_xid(gpu.xid);
    g.set_xid_count(gpu.xid_count);
  }
  for (const auto& container : v.containers) {
    auto& k = *o.add_containers();
    k.set_lease(container.lease.value);
    k.set_cpu_milli(container.cpu_milli);
    k.set_memory_bytes(container.memory_bytes);
    k.set_pids(container.pids);
    k.set_net_rx_bytes_s(container.net_rx_bytes_s);
    k.set_net_tx_bytes_s(container.net_tx_bytes_s);
    k.set_gpu_memory_bytes(container.gpu_memory_bytes);
  }
  o.set_cpu_peak_milli(v.cpu_peak_milli);
  o.set_cpu_total_milli(v.cpu_total_milli);
  o.set_disk_total_bytes(v.disk_total_bytes);
  o.set_disk_read_bytes_s(v.disk_read_bytes_s);
  o.set_disk_write_bytes_s(v.disk_write_bytes_s);
  o.set_window_ms(v.window.count());
  o.set_owner(utf8(v.owner));
  for (const auto& relay : v.relays) {
    auto& r = *o.add_relays();
    r.set_address(utf8(relay.address));
    r.set_rtt_us(relay.rtt_us);
  }
}
Telemetry get(const pb::Telemetry& in, Check& c) {
  Telemetry v{{c.between(in.at_ms(), 0, kMillisMax, "at_ms")},
              in.cpu_milli(),
              in.memory_used_bytes(),
              in.memory_total_bytes(),
              in.disk_free_bytes(),
              in.net_rx_bytes_s(),
              in.net_tx_bytes_s(),
              {},
              {}};
  if (c.count(in.gpus(), 256, "gpus")) {
    for (const auto& g : in.gpus()) {
      v.gpus.push_back({c.text(g.uuid(), kNameMax, "gpus.uuid"), g.use_percent(), g.temperature_c(), g.power_w(),
                        g.memory_used_bytes(), g.memory_total_bytes(), g.power_limit_w(), g.sm_mhz(), g.memory_mhz(),
                        g.ecc_corrected(), g.ecc_uncorrected(), g.xid(), g.xid_count()});
    }
  }
  if (c.count(in.containers(), kListMax, "containers")) {
    for (const auto& k : in.containers())
      v.containers.push_back({{k.lease()},
                              k.cpu_milli(),
                              k.memory_bytes(),
                              k.pids(),
                              k.net_rx_bytes_s(),
                              k.net_tx_bytes_s(),
                              k.gpu_memory_bytes()});
  }
  v.cpu_peak_milli = in.cpu_peak_milli();
  v.cpu_total_milli = in.cpu_total_milli();
  v.disk_total_bytes = in.disk_total_bytes();
  v.disk_read_bytes_s = in.disk_read_bytes_s();
  v.disk_write_bytes_s = in.disk_write_bytes_s();
  v.window = Millis(c.between(in.window_ms(), 0, kMillisMax, "window_ms"));
  v.owner = c.text(in.owner(), kReasonMax, "owner");
  if (c.count(in.relays(), static_cast<int>(kRelaysMax), "relays"))
    for (const auto& r : in.relays()) v.relays.push_back({c.text(r.address(), kNameMax, "relays.address"), r.rtt_us()});
  return v;
}

void put_place(const NetPlace& v, pb::NetPlace& o) {
  o.set_ip(v.ip);
  o.set_port(v.port);
  o.set_six(raw(v.six));
}
NetPlace get_place(const pb::NetPlace& in, Check& c) {
  if (!in.six().empty() && in.six().size() != 16) c.fail("six", "is not the sixteen bytes of an IPv6 address");
  return {in.ip(), get_u16(in.port(), "port", c), c.bytes(in.six(), 16, "six")};
}
void put_pair(const NetPair& v, pb::NetPair& o) {
  o.set_address(v.address);
  o.set_path(static_cast<std::uint32_t>(v.path));
  put_place(v.at, *o.mutable_at());
  o.set_rtt_us(v.rtt_us);
  o.set_relay_rtt_us(v.relay_rtt_us);
  o.set_asked(v.asked);
  o.set_lost(v.lost);
  o.set_changes(v.changes);
  o.set_age_ms(v.age_ms);
  o.set_handshake_age_ms(v.handshake_age_ms);
  o.set_rx_bytes(v.rx_bytes);
  o.set_tx_bytes(v.tx_bytes);
  for (const auto& tried : v.tries) {
    auto& t = *o.add_tries();
    put_place(tried.at, *t.mutable_at());
    t.set_origin(static_cast<std::uint32_t>(tried.origin));
    t.set_sent(tried.sent);
    t.set_answered(tried.answered);
    t.set_full(tried.full);
    t.set_rtt_us(tried.rtt_us);
    t.set_tunnel(tried.tunnel);
  }
  o.set_rx_bytes_s(v.rx_bytes_s);
  o.set_tx_bytes_s(v.tx_bytes_s);
  o.set_carries_bytes_s(v.carries_bytes_s);
  o.set_carries_age_ms(v.carries_age_ms);
  o.set_mtu(v.mtu);
  o.set_relay_udp(v.relay_udp);
  o.set_tested(v.tested);
  o.set_at_least_bytes_s(v.at_least_bytes_s);
  o.set_at_least_age_ms(v.at_least_age_ms);
  o.set_relay(v.relay);
  for (const auto& tried : v.relays) {
    auto& t = *o.add_relays();
    t.set_relay(tried.relay);
    t.set_sent(tried.sent);
    t.set_answered(tried.answered);
    t.set_rtt_us(tried.rtt_us);
  }
  o.set_by(v.by);
  o.set_hidden(v.hidden);
}
NetPair get_pair(const pb::NetPair& in, Check& c) {
  NetPair v;
  v.address = in.address();
  v.path = c.choice(in.path(), NetPath::None, NetPath::Peer, "pairs.path");
  v.at = get_place(in.at(), c);
  v.rtt_us = in.rtt_us();
  v.relay_rtt_us = in.relay_rtt_us();
  v.asked = in.asked();
  v.lost = in.lost();
  v.changes = in.changes();
  v.age_ms = in.age_ms();
  v.handshake_age_ms = in.handshake_age_ms();
  v.rx_bytes = in.rx_bytes();
  v.tx_bytes = in.tx_bytes();
  v.rx_bytes_s = in.rx_bytes_s();
  v.tx_bytes_s = in.tx_bytes_s();
  v.carries_bytes_s = in.carries_bytes_s();
  v.carries_age_ms = in.carries_age_ms();
  v.mtu = in.mtu();
  v.relay_udp = in.relay_udp();
  v.tested = in.tested();
  v.at_least_bytes_s = in.at_least_bytes_s();
  v.at_least_age_ms = in.at_least_age_ms();
  v.relay = in.relay();
  v.by = in.by();
  v.hidden = in.hidden();
  if (!c.count(in.relays(), static_cast<int>(kRelaysMax), "pairs.relays")) return v;
  for (const auto& t : in.relays()) v.relays.push_back({t.relay(), t.sent(), t.answered(), t.rtt_us()});
  if (!c.count(in.tries(), static_cast<int>(kNetTriesMax), "pairs.tries")) return v;
  for (const auto& t : in.tries())
    v.tries.push_back({get_place(t.at(), c),
                       c.choice(t.origin(), NetOrigin::Roster, NetOrigin::Offered, "tries.origin"), t.sent(),
                       t.answered(), t.full(), t.rtt_us(), t.tunnel()});
  return v;
}
void put(const NetReport& v, pb::AgentFrame& f) {
  auto& o = *f.mutable_net_report();
  o.set_version(v.version);
  o.set_lease(v.lease.value);
  o.set_relay_up(v.relay_up);
  o.set_relay(utf8(v.relay));
  o.set_udp_port(v.udp_port);
  for (const auto& place : v.seen) put_place(place, *o.add_seen());
  o.set_others(v.others);
  for (const auto& pair : v.pairs) put_pair(pair, *o.add_pairs());
  for (const auto& relay : v.relays) {
    auto& r = *o.add_relays();
    r.set_address(utf8(relay.address));
    r.set_region(utf8(relay.region));
    r.set_up(relay.up);
    r.set_rtt_us(relay.rtt_us);
    r.set_udp_rtt_us(relay.udp_rtt_us);
    r.set_by_udp(relay.by_udp);
  }
  o.set_carries(v.carries);
  o.set_counted_from_ms(v.counted_from.ms);
  for (const auto& carried : v.carried) {
    auto& r = *o.add_carried();
    r.set_by(carried.by);
    r.set_with(carried.with);
    r.set_sent(carried.sent);
    r.set_received(carried.received);
  }
  for (const auto& forwarded : v.forwarded) {
    auto& r = *o.add_forwarded();
    r.set_from(forwarded.from);
    r.set_to(forwarded.to);
    r.set_bytes(forwarded.bytes);
  }
  o.set_counts_signature(raw(v.counts_signature));
  o.set_large_udp(static_cast<std::uint32_t>(v.large_udp));
  o.set_large_tun(static_cast<std::uint32_t>(v.large_tun));
  o.set_relay_only(v.relay_only);
  o.set_in_tunnel(v.in_tunnel);
  o.set_mapped(utf8(v.mapped));
}
NetReport get(const pb::NetReport& in, Check& c) {
  NetReport v;
  v.version = in.version();
  v.lease = {in.lease()};
  if (v.version != kNetReportVersion) return v;  // whoever takes it drops it
  v.relay_up = in.relay_up();
  v.relay = c.text(in.relay(), kNameMax, "relay");
  v.udp_port = get_u16(in.udp_port(), "udp_port", c);
  if (c.count(in.seen(), static_cast<int>(kNetSeenMax), "seen"))
    for (const auto& place : in.seen()) v.seen.push_back(get_place(place, c));
  v.others = in.others();
  if (c.count(in.pairs(), static_cast<int>(kNetPairsMax), "pairs"))
    for (const auto& pair : in.pairs()) v.pairs.push_back(get_pair(pair, c));
  if (c.count(in.relays(), static_cast<int>(kRelaysMax), "relays"))
    for (const auto& r : in.relays())
      v.relays.push_back({c.text(r.address(), kNameMax, "relays.address"),
                          c.text(r.region(), kNameMax, "relays.region"), r.up(), r.rtt_us(), r.udp_rtt_us(),
                          r.by_udp()});
  v.carries = in.carries();
  v.counted_from = {c.between(in.counted_from_ms(), 0, kMillisMax, "counted_from_ms")};
  if (c.count(in.carried(), static_cast<int>(kNetCarriedMax), "carried"))
    for (const auto& r : in.carried()) v.carried.push_back({r.by(), r.with(), r.sent(), r.received()});
  if (c.count(in.forwarded(), static_cast<int>(kNetForwardedMax), "forwarded"))
    for (const auto& r : in.forwarded()) v.forwarded.push_back({r.from(), r.to(), r.bytes()});
  v.counts_signature = c.bytes(in.counts_signature(), 512, "counts_signature");
  v.large_udp = c.choice(in.large_udp(), NetLarge::None, NetLarge::Lost, "large_udp");
  v.large_tun = c.choice(in.large_tun(), NetLarge::None, NetLarge::Lost, "large_tun");
  v.relay_only = in.relay_only();
  v.in_tunnel = in.in_tunnel();
  v.mapped = c.text(in.mapped(), kNetMappedMax, "mapped");
  return v;
}

void put(const Goodbye& v, pb::AgentFrame& f) {
  f.mutable_goodbye()->set_reason(utf8(v.reason));
  f.mutable_goodbye()->set_leave(v.leave);
}
Goodbye get(const pb::Goodbye& in, Check& c) {
  return {c.text(in.reason(), kReasonMax, "reason"), in.leave()};
}
void put(const OwnerPause& v, pb::AgentFrame& f) {
  auto& o = *f.mutable_owner_pause();
  o.set_paused(v.paused);
  o.set_now(v.now);
  o.set_reason(utf8(v.reason));
}
OwnerPause get(const pb::OwnerPause& in, Check& c) {
  return {in.paused(), in.now(), c.text(in.reason(), kReasonMax, "reason")};
}

// ---- envelopes
template <typename Message>
Bytes serialise(const Message& message) {
  Bytes out(message.ByteSizeLong());
  google::protobuf::io::ArrayOutputStream array(out.data(), static_cast<int>(out.size()));
  google::protobuf::io::CodedOutputStream stream(&array);
  stream.SetSerializationDeterministic(true);  // maps sorted: equal values give equal bytes
  message.SerializeWithCachedSizes(&stream);
  return out;
}

template <typename Message, typename Frame>
Bytes encode_frame(const Frame& frame) {
  Message message;
  std::visit([&](const auto& value) { put(value, message); }, frame);
  return serialise(message);
}

template <typename Message>
Status parse(ByteView bytes, Message& message) {
  [[maybe_unused]] static const auto quiet = google::protobuf::SetLogHandler(nullptr);  // a peer must not write our log
  if (bytes.size() > kFrameBytesMax) {
    return error(Code::TooLarge, "the frame has " + std::to_string(bytes.size()) + " bytes, at most " +
                                     std::to_string(kFrameBytesMax) + " are allowed");
  }
  if (!message.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
    return error(Code::InvalidArgument, "the frame is not a valid message of muster.v1.agent");
  }
  if (message.kind_case() == Message::KIND_NOT_SET) {
    return error(Code::Unsupported,
                 "the peer sent a frame of a kind that this version does not know; update this side");
  }
  return {};
}

template <typename Frame, typename Message>
Result<Frame> checked(const Message& in) {
  Check check;
  Frame frame = get(in, check);
  if (!check.ok()) return check.take_error();
  return frame;
}

}  // namespace

Bytes encode(const ServerFrame& frame) {
  return encode_frame<pb::ServerFrame>(frame);
}
Bytes encode(const AgentFrame& frame) {
  return encode_frame<pb::AgentFrame>(frame);
}

Result<ServerFrame> decode_server_frame(ByteView bytes) {
  pb::ServerFrame m;
  TRY_VOID(parse(bytes, m));
  switch (m.kind_case()) {
    case pb::ServerFrame::kChallenge:
      return checked<ServerFrame>(m.challenge());
    case pb::ServerFrame::kWelcome:
      return checked<ServerFrame>(m.welcome());
    case pb::ServerFrame::kRefused:
      return checked<ServerFrame>(m.refused());
    case pb::ServerFrame::kDesired:
      return checked<ServerFrame>(m.desired());
    case pb::ServerFrame::kRenewed:
      return checked<ServerFrame>(m.renewed());
    case pb::ServerFrame::kLogAck:
      return checked<ServerFrame>(m.log_ack());
    case pb::ServerFrame::kBlobChunk:
      return checked<ServerFrame>(m.blob_chunk());
    case pb::ServerFrame::kWatch:
      return checked<ServerFrame>(m.watch());
    case pb::ServerFrame::kCertIssued:
      return checked<ServerFrame>(m.cert_issued());
    case pb::ServerFrame::kStreamOpen:
      return checked<ServerFrame>(m.stream_open());
    case pb::ServerFrame::kStreamData:
      return checked<ServerFrame>(m.stream_data());
    case pb::ServerFrame::kStreamWindow:
      return checked<ServerFrame>(m.stream_window());
    case pb::ServerFrame::kStreamResize:
      return checked<ServerFrame>(m.stream_resize());
    case pb::ServerFrame::kStreamEof:
      return checked<ServerFrame>(m.stream_eof());
    case pb::ServerFrame::kStreamClose:
      return checked<ServerFrame>(m.stream_close());
    case pb::ServerFrame::kTrustTold:
      return checked<ServerFrame>(m.trust_told());
    case pb::ServerFrame::kKeysTold:
      return checked<ServerFrame>(m.keys_told());
    case pb::ServerFrame::KIND_NOT_SET:
      break;
  }
  return error(Code::Unsupported, "unknown frame kind");
}

Result<AgentFrame> decode_agent_frame(ByteView bytes) {
  pb::AgentFrame m;
  TRY_VOID(parse(bytes, m));
  switch (m.kind_case()) {
    case pb::AgentFrame::kHello:
      return checked<AgentFrame>(m.hello());
    case pb::AgentFrame::kInventory:
      return checked<AgentFrame>(m.inventory());
    case pb::AgentFrame::kObserved:
      return checked<AgentFrame>(m.observed());
    case pb::AgentFrame::kHeartbeat:
      return checked<AgentFrame>(m.heartbeat());
    case pb::AgentFrame::kLogChunk:
      return checked<AgentFrame>(m.log_chunk());
    case pb::AgentFrame::kRayReport:
      return checked<AgentFrame>(m.ray_report());
    case pb::AgentFrame::kBlobRequest:
      return checked<AgentFrame>(m.blob_request());
    case pb::AgentFrame::kTrustTaken:
      return checked<AgentFrame>(m.trust_taken());
    case pb::AgentFrame::kKeysTaken:
      return checked<AgentFrame>(m.keys_taken());
    case pb::AgentFrame::kPullReport:
      return checked<AgentFrame>(m.pull_report());
    case pb::AgentFrame::kLockOffer:
      return checked<AgentFrame>(m.lock_offer());
    case pb::AgentFrame::kPackagesOffer:
      return checked<AgentFrame>(m.packages_offer());
    case pb::AgentFrame::kCertRequest:
      return checked<AgentFrame>(m.cert_request());
    case pb::AgentFrame::kTelemetry:
      return checked<AgentFrame>(m.telemetry());
    case pb::AgentFrame::kNetReport:
      return checked<AgentFrame>(m.net_report());
    case pb::AgentFrame::kGoodbye:
      return checked<AgentFrame>(m.goodbye());
    case pb::AgentFrame::kOwnerPause:
      return checked<AgentFrame>(m.owner_pause());
    case pb::AgentFrame::kStreamData:
      return checked<AgentFrame>(m.stream_data());
    case pb::AgentFrame::kStreamWindow:
      return checked<AgentFrame>(m.stream_window());
    case pb::AgentFrame::kStreamEof:
      return checked<AgentFrame>(m.stream_eof());
    case pb::AgentFrame::kStreamClose:
      return checked<AgentFrame>(m.stream_close());
    case pb::AgentFrame::KIND_NOT_SET:
      break;
  }
  return error(Code::Unsupported, "unknown frame kind");
}

Bytes desired_signing_bytes(NodeId node, const Desired& desired) {
  pb::DesiredToSign message;
  message.set_node(node.value);
  put_desired(desired, *message.mutable_desired());
  message.mutable_desired()->clear_signature();
  message.mutable_desired()->clear_signature_key();
  // Proofs, tokens and names of keys speak for themselves, and agents that do not know them must come to the same
  // bytes.
  for (auto& roster : *message.mutable_desired()->mutable_rosters()) roster.clear_machines(), roster.clear_keys();
  for (auto& secrets : *message.mutable_desired()->mutable_secrets())
    secrets.clear_relays(), secrets.clear_identities();
  Bytes out = to_bytes("muster-desired-v1");
  out.push_back(0);
  const Bytes body = serialise(message);
  out.insert(out.end(), body.begin(), body.end());
  return out;
}

}  // namespace muster::wire
