#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <limits>

#include "model/node_labels.h"
#include "muster/v1/api.pb.h"
#include "wire/message_json.h"
#include "wire/names.h"
#include "wire/rest.h"
#include "wire/rest_spec.h"

namespace muster::wire {
namespace {

// Texts that machines sent may be any bytes; JSON must stay UTF-8.
std::string clean(const std::string& value) {
  if (valid_utf8(value)) return value;
  std::string out;
  for (const char c : value) out += static_cast<unsigned char>(c) < 0x80 ? c : '?';
  return out;
}

void write(const PrincipalView& from, v1::Principal& to) {
  to.set_id(from.principal.id.str());
  to.set_name(from.principal.name);
  to.set_role(std::string(text(from.principal.role)));
  to.set_org_id(from.principal.org.str());
  to.set_disabled(from.principal.disabled);
  to.set_org(from.org);
  to.set_default_project(from.default_project);
  to.set_second_factor(from.second_factor);
  to.set_service(from.principal.service);
}
void write(const LoginView& from, v1::LoginResponse& to) {
  to.set_token(from.token);
  to.set_expires_at(time_text(from.expires));
  write(from.principal, *to.mutable_principal());
  to.set_second_factor_needed(from.second_factor_needed);
  to.set_refresh_token(from.refresh_token);
  to.set_refresh_expires_at(time_text(from.refresh_expires));
  to.set_expires_in_seconds(from.lifetime.count() / 1000);
}
void write(const QueueView& from, v1::QueueEntry& to) {
  to.set_cluster_id(from.cluster.str());
  to.set_name(from.name);
  to.set_position(from.position);
  to.set_reason_code(from.reason_code);
  to.set_reason(from.reason);
  to.set_expected_start(time_text(from.expected_start));
  to.set_tier(from.tier);
  to.set_priority(from.priority);
  to.set_waiting_since(time_text(from.since));
  to.mutable_reason_params()->insert(from.reason_params.begin(), from.reason_params.end());
  to.set_start_p50(time_text(from.start_p50));
  to.set_start_p90(time_text(from.start_p90));
}
void write(const ImagePolicyScope& from, v1::ImagePolicyScope& to) {
  to.set_id(from.id);
  to.set_name(from.name);
  wire::write(from.policy, *to.mutable_policy());
  for (const auto& each : from.fingerprints) to.add_key_fingerprints(each);
}
void write(const QuotaScope& from, v1::QuotaScope& to) {
  to.set_id(from.id);
  to.set_name(from.name);
  wire::write(from.limit, *to.mutable_limit());
  wire::write(from.held, *to.mutable_held());
  wire::write(from.share, *to.mutable_share());
}
void write(const SlotView& from, v1::Slot& to) {
  to.set_id(from.slot.id.str());
  to.set_role(std::string(text(from.slot.role)));
  to.set_group(from.slot.group);
  to.set_address(address_text(from.slot.address));
  to.set_node_id(from.node.str());
  to.set_node_name(from.node_name);
  to.set_lease_id(from.slot.lease.str());
  to.set_phase(std::string(text(from.phase)));
  to.set_want(std::string(text(from.want)));
  to.set_reason(clean(from.reason));
  to.set_in_roster(from.slot.in_roster);
  to.set_ray_node_id(clean(from.ray_node_id));
  to.set_ray_alive(from.ray_alive);
  to.set_pull_done_bytes(static_cast<std::int64_t>(from.pull_done_bytes));
  to.set_pull_total_bytes(static_cast<std::int64_t>(from.pull_total_bytes));
  to.set_price_micros(from.price);
  to.set_currency(from.currency);
  to.set_leaves_at(time_text(from.leaves_at));
  to.set_gpu_share(static_cast<double>(from.gpu_share_milli) / kGpuMilli);
}

}  // namespace

std::string to_json(const PrincipalView& view) {
  v1::Principal m;
  write(view, m);
  return write_message(m);
}
std::string to_json(const LoginView& view) {
  v1::LoginResponse m;
  write(view, m);
  return write_message(m);
}
std::string to_json(const SsoStartView& view) {
  v1::SsoStart m;
  m.set_handle(view.handle);
  m.set_url(view.url);
  m.set_state(view.state);
  m.set_user_code(clean(view.user_code));
  m.set_verification_url(view.verification_url);
  m.set_verification_url_complete(view.verification_url_complete);
  m.set_interval_seconds(view.interval.count() / 1000);
  m.set_expires_at(time_text(view.expires));
  return write_message(m);
}
std::string to_json(const SsoAnswerView& view) {
  v1::SsoAnswer m;
  m.set_pending(view.pending);
  m.set_retry_seconds((view.retry.count() + 999) / 1000);
  if (view.login) write(*view.login, *m.mutable_login());
  m.set_project(view.project);
  return write_message(m);
}
std::string to_json(const PasswordView& view) {
  v1::ChangePasswordResponse m;
  m.set_revoked_tokens(static_cast<std::int64_t>(view.revoked_tokens));
  return write_message(m);
}
std::string to_json(const TotpView& view) {
  v1::TotpStatus m;
  m.set_enabled(view.enabled);
  m.set_since(time_text(view.since));
  m.set_recovery_codes_left(static_cast<std::int32_t>(view.recovery_codes_left));
  return write_message(m);
}
std::string to_json(const TotpEnrolmentView& view) {
  v1::TotpEnrolment m;
  m.set_secret(view.secret);
  m.set_uri(view.uri);
  m.set_expires_at(time_text(view.expires));
  return write_message(m);
}
std::string to_json(const TotpRecoveryView& view) {
  v1::TotpRecovery m;
  for (const auto& code : view.codes) m.add_recovery_codes(code);
  m.set_revoked_tokens(static_cast<std::int64_t>(view.revoked_tokens));
  m.set_log_in_again(view.log_in_again);
  return write_message(m);
}
std::string to_json(const Org& view, const Quota& held) {
  v1::Org m;
  m.set_id(view.id.str());
  m.set_name(view.name);
  write(view.quota, *m.mutable_quota());
  write(held, *m.mutable_held());
  return write_message(m);
}
std::string to_json(const Project& view, const Quota& held) {
  v1::Project m;
  m.set_id(view.id.str());
  m.set_org_id(view.org.str());
  m.set_name(view.name);
  write(view.quota, *m.mutable_quota());
  write(held, *m.mutable_held());
  return write_message(m);
}
std::string to_json(const QuotaView& view) {
  v1::QuotaView m;
  if (view.project) write(*view.project, *m.mutable_project());
  write(view.org, *m.mutable_org());
  return write_message(m);
}
std::string to_json(const ImagePolicyView& view) {
  v1::ImagePolicyView m;
  write(view.platform, *m.mutable_platform());
  if (view.org) write(*view.org, *m.mutable_org());
  if (view.project) write(*view.project, *m.mutable_project());
  return write_message(m);
}
std::string to_json(const TiersView& view) {
  v1::TiersView m;
  for (const auto& [row, held] : view.rows) {
    v1::TierRow& to = *m.add_rows();
    to.set_tier(row.tier);
    to.set_guarantee_permille(row.permille);
    to.set_held_permille(held);
  }
  return write_message(m);
}
std::string to_json(const HeadroomView& view) {
  v1::HeadroomView m;
  for (const auto& [row, free] : view.rows) {
    v1::Headroom& to = *m.add_rows();
    to.set_gpu_model(row.gpu_model);
    to.set_machines(row.machines);
    to.set_tier(row.tier);
    to.set_free(free);
  }
  return write_message(m);
}
std::string to_json(const ServiceAccountView& view) {
  v1::ServiceAccount m;
  m.set_id(view.principal.id.str());
  m.set_name(view.principal.name);
  m.set_role(std::string(text(view.principal.role)));
  m.set_org_id(view.principal.org.str());
  m.set_org(view.org);
  m.set_disabled(view.principal.disabled);
  m.set_note(view.principal.note);
  m.set_made_by(view.principal.made_by.str());
  m.set_made_at(time_text(view.principal.made_at));
  m.set_tokens(view.tokens);
  return write_message(m);
}
std::string to_json(const GrantView& view) {
  v1::Grant m;
  const Grant& grant = view.grant;
  m.set_id(grant.id.str());
  m.set_break_glass(grant.break_glass);
  m.set_owner_org_id(grant.owner.str());
  m.set_owner_org(view.owner);
  m.set_project_id(grant.project.str());
  m.set_cluster_id(grant.cluster.str());
  m.set_cluster(view.cluster);
  if (!view.hide_operator) m.set_to(grant.to ? grant.to.str() : grant.to_org.str());
  m.set_right(std::string(text(grant.right)));
  m.set_reason(grant.reason);
  if (!view.hide_operator) m.set_given_by(grant.by.str());
  m.set_given_at(time_text(grant.at));
  m.set_ends_at(time_text(grant.until));
  return write_message(m);
}
std::string to_json(const ApiTokenView& view) {
  v1::ApiToken m;
  m.set_id(view.token.id.str());
  m.set_owner_id(view.token.owner.str());
  m.set_label(view.token.label);
  for (const auto& scope : view.token.scopes) m.add_scopes(scope);
  m.set_expires_at(time_text(view.token.expires));
  m.set_revoked(view.token.revoked);
  m.set_secret(view.secret);
  m.set_login(!view.token.refresh.empty());
  return write_message(m);
}
std::string to_json(const JoinTokenView& view) {
  v1::JoinToken m;
  m.set_id(view.token.id.str());
  m.set_supplier_org_id(view.token.supplier.str());
  m.mutable_labels()->insert(view.token.labels.begin(), view.token.labels.end());
  m.set_expires_at(time_text(view.token.expires));
  m.set_used_by(view.token.used_by.str());
  m.set_revoked(view.token.revoked);
  m.set_secret(view.secret);
  return write_message(m);
}
std::string to_json(const EnrollView& view) {
  v1::EnrollResponse m;
  m.set_node_id(view.node.str());
  m.set_certificate_pem(view.certificate_pem);
  m.set_ca_pem(view.ca_pem);
  m.set_trust(view.trust);
  m.set_roster_key(base64(view.roster_key));
  m.set_command_key(base64(view.command_key));
  for (const auto& relay : view.relays) m.add_relays(relay);
  m.set_server_id(view.server_id);
  return write_message(m);
}

std::string to_json(const NodeView& view) {
  v1::Node m;
  const Node& node = view.node;
  m.set_id(node.id.str());
  m.set_name(node.name);
  m.set_supplier_org_id(node.supplier.str());
  m.set_state(std::string(text(node.state)));
  m.set_tier(std::string(text(node.tier)));
  m.set_arch(clean(node.facts.arch));
  m.set_hostname(clean(node.facts.hostname));
  m.set_os(clean(node.facts.os));
  m.set_kernel(clean(node.facts.kernel));
  m.set_agent_version(clean(node.facts.agent_version));
  m.set_region(clean(region_of(node)));
  m.set_region_claimed(region_is_claimed(node));
  write(node.facts.capacity, *m.mutable_capacity());
  write(view.free, *m.mutable_free());
  for (const auto& device : node.facts.devices) {
    auto& out = *m.add_devices();
    write(device, out);
    out.set_uuid(clean(device.uuid));
    out.set_model(clean(device.model));
    out.set_profile(clean(device.profile));
    if (const auto free = view.parts_free.find(device.uuid); free != view.parts_free.end())
      out.set_free(static_cast<double>(free->second) / kGpuMilli);
  }
  for (const auto& [key, value] : node.labels) (*m.mutable_labels())[clean(key)] = clean(value);
  for (const auto& [key, value] : node.facts.labels)
    if (key != "pool" && !node.labels.contains(key)) (*m.mutable_claimed_labels())[clean(key)] = clean(value);
  for (const RuntimeKind runtime : node.facts.runtimes) m.add_runtimes(std::string(text(runtime)));
  m.set_egress_allowed(node.facts.egress_allowed);
  m.set_draining(node.draining);
  m.set_enrolled_at(time_text(node.enrolled_at));
  m.set_state_since(time_text(node.state_since));
  for (const auto& lease : view.leases) {
    auto& out = *m.add_leases();
    out.set_id(lease.lease.id.str());
    out.set_cluster(lease.cluster);
    out.set_role(std::string(text(lease.role)));
    out.set_phase(std::string(text(lease.lease.phase)));
    out.set_want(std::string(text(lease.lease.want)));
    out.set_reason(clean(lease.lease.reason));
    out.set_price_micros(lease.lease.price);
    out.set_currency(lease.lease.currency);
    out.set_leaves_at(time_text(lease.lease.leaves_at));
  }
  m.set_not_hired(view.not_hired);
  for (const std::string& image : view.images) m.add_images(clean(image));
  for (const NodeHoleView& hole : view.holes) {
    auto& out = *m.add_holes();
    out.set_id(clean(hole.id)), out.set_component(clean(hole.component)), out.set_version(clean(hole.version));
    out.set_fixed(clean(hole.fixed)), out.set_state(hole.state), out.set_what(clean(hole.what));
    out.set_why(clean(hole.why)), out.set_source(clean(hole.source)), out.set_blocks(hole.blocks);
  }
  if (view.hours_between > 0) {
    auto& out = *m.mutable_reliability();
    out.set_hours(view.lease_hours);
    out.set_lost(view.leases_lost);
    out.set_hours_between(view.hours_between);
    out.set_newcomer(view.newcomer);
  }
  if (node.offer.version != 0) {
    write(node.offer, view.offer_tenants, *m.mutable_offer());
    m.mutable_offer()->set_open_until(time_text(view.open_until));
    m.mutable_offer()->set_opens_at(time_text(view.opens_at));
  }
  return write_message(m);
}

std::string to_json(const NodeWaysView& view) {
  v1::NodeWays m;
  m.set_node_id(view.node.str());
  for (const NodeWayView& way : view.ways) {
    auto& out = *m.add_ways();
    out.set_node_id(way.node.str());
    out.set_node_name(clean(way.node_name));
    out.set_path(way.path);
    out.set_kbps(way.kbps);
    out.set_samples(way.samples);
    out.set_confidence(way.confidence);
    out.set_measured_at(time_text(way.measured));
    out.set_seen_at(time_text(way.seen));
    out.set_rtt_ms(static_cast<double>(way.rtt_us) / 1000);
  }
  m.set_place_error(view.place_error);
  m.set_place_from(view.place_from);
  m.set_foretold_rtt_ms(static_cast<double>(view.foretold_rtt_us) / 1000);
  m.set_seq(view.seq);
  return write_message(m);
}

std::string to_json(const CarriedView& view) {
  v1::Carried m;
  m.set_day(format_utc(WallTime{view.day * 86'400'000}).substr(0, 10));
  m.set_node_id(view.node.str());
  m.set_node_name(clean(view.node_name));
  m.set_supplier_org_id(view.supplier.str());
  m.set_cluster_id(view.cluster.str());
  m.set_cluster_name(clean(view.cluster_name));
  m.set_tenant_org_id(view.tenant.str());
  m.set_bytes(view.bytes);
  return write_message(m);
}

std::string to_json(const NodeRefusalsView& view) {
  v1::NodeRefusals m;
  m.set_node_id(view.node.str());
  m.set_waiting(view.waiting);
  for (const auto& [code, count] : view.refused) (*m.mutable_refused())[code] = count;
  m.set_seq(view.seq);
  return write_message(m);
}

std::string to_json(const QueueView& view) {
  v1::QueueEntry m;
  write(view, m);
  return write_message(m);
}

std::string to_json(const ClusterView& view) {
  v1::Cluster m;
  const Cluster& cluster = view.cluster;
  m.set_id(cluster.id.str());
  m.set_name(cluster.spec.name);
  m.set_project_id(cluster.project.str());
  m.set_state(std::string(text(cluster.state)));
  m.set_reason(clean(cluster.reason));
  write(cluster.spec, *m.mutable_spec());
  m.set_generation(cluster.generation);
  for (const auto& slot : view.slots) write(slot, *m.add_slots());
  for (const auto& node : view.ray_nodes) {
    auto& out = *m.add_ray_nodes();
    out.set_ray_node_id(clean(node.ray_node_id));
    out.set_address(address_text(node.address));
    out.set_alive(node.alive);
    Resources total = node.total;
    total.custom_milli.clear();
    for (const auto& [name, amount] : node.total.custom_milli) total.custom_milli[clean(name)] = amount;
    write(total, *out.mutable_total());
    out.set_idle_seconds(node.idle.count() / 1000);
  }
  for (const auto& difference : view.differences) m.add_differences(clean(difference));
  for (const auto& warning : view.warnings) m.add_warnings(clean(warning));
  m.set_ray_version(clean(cluster.probe->ray_version));
  m.set_python_version(clean(cluster.probe->python_version));
  m.set_head_recovery(cluster.probe->rocksdb);
  m.set_image_digest(clean(cluster.probe->digest));
  m.set_created_at(time_text(cluster.created_at));
  m.set_started_at(time_text(cluster.started_at));
  m.set_ended_at(time_text(cluster.ended_at));
  if (view.queue) write(*view.queue, *m.mutable_queue());
  m.set_roster_epoch(cluster.roster_epoch);
  for (const auto& failure : view.failures) {
    auto& out = *m.add_failures();
    out.set_slot(failure.slot.str());
    out.set_role(std::string(text(failure.role)));
    out.set_node_name(clean(failure.node_name));
    out.set_reason(clean(failure.reason));
    out.set_output(clean(failure.output));
    out.set_at(time_text(failure.at));
  }
  const auto money = [](const std::map<std::string, std::int64_t>& from, auto& to) {
    for (const auto& [currency, micros] : from) {
      auto& out = *to.Add();
      out.set_micros(micros);
      out.set_currency(clean(currency));
    }
  };
  money(view.per_hour, *m.mutable_per_hour());
  money(view.so_far, *m.mutable_cost_so_far());
  for (const SlowPair& pair : cluster.slow) {
    auto& out = *m.add_slow_pairs();
    out.set_from(pair.from.str());
    out.set_to(pair.to.str());
    out.set_kbps(pair.kbps);
    out.set_since(time_text(pair.since));
  }
  if (cluster.replacing) m.set_replacing(cluster.replacing.str());
  m.set_replaced(cluster.replaced);
  return write_message(m);
}

namespace {
std::string_view path_name(session::NetPath path, bool relay_udp) {
  if (path == session::NetPath::Relay && relay_udp) return "relay-udp";
  static constexpr std::array<std::string_view, 5> kNames = {"none", "relay", "lan", "direct", "peer"};
  return kNames.at(static_cast<std::size_t>(path));
}
std::string_view origin_name(session::NetOrigin origin) {
  static constexpr std::array<std::string_view, 4> kNames = {"roster", "told", "heard", "offered"};
  return kNames.at(static_cast<std::size_t>(origin));
}
double millis_of(std::uint32_t micros) {
  return static_cast<double>(micros) / 1000;
}
void write(const NetMemberView& from, v1::NetMember& to) {
  to.set_slot(from.slot.str());
  to.set_role(std::string(text(from.role)));
  to.set_node_name(from.node_name);
  to.set_address(address_text(from.address));
  to.set_reported(from.at.ms != 0);
  to.set_at(time_text(from.at));
  to.set_relay_up(from.relay_up);
  to.set_relay(clean(from.relay));
  to.set_udp(from.udp);
  for (const auto& each : from.seen_as) to.add_seen_as(each);
  to.set_others(from.others);
  for (const auto& relay : from.relays) {
    auto& out = *to.add_relays();
    out.set_address(clean(relay.address));
    out.set_region(clean(relay.region));
    out.set_up(relay.up);
    out.set_rtt_ms(millis_of(relay.rtt_us));
    out.set_udp_rtt_ms(millis_of(relay.udp_rtt_us));
    out.set_by_udp(relay.by_udp);
  }
  to.set_carries(from.carries);
  for (const auto& forwarded : from.forwarded) {
    auto& out = *to.add_forwarded();
    out.set_from(forwarded.from.str());
    out.set_to(forwarded.to.str());
    out.set_bytes(forwarded.bytes);
    out.set_signed_from(forwarded.signed_from);
    out.set_signed_to(forwarded.signed_to);
  }
  to.set_mapped(clean(from.mapped));
}
void write(const NetPairView& from, v1::NetPair& to) {
  const session::NetPair& pair = from.pair;
  to.set_from(from.from.str());
  to.set_to(from.to.str());
  to.set_path(std::string(path_name(pair.path, pair.relay_udp)));
  to.set_rtt_ms(millis_of(pair.rtt_us));
  to.set_relay_rtt_ms(millis_of(pair.relay_rtt_us));
  to.set_loss(pair.asked == 0 ? 0 : static_cast<double>(std::min(pair.lost, pair.asked)) / pair.asked);
  to.set_probes(pair.asked);
  to.set_changes(pair.changes);
  to.set_age_seconds(static_cast<std::int64_t>(pair.age_ms / 1000));
  to.set_handshake_seconds(static_cast<std::int64_t>(pair.handshake_age_ms / 1000));
  to.set_rx_bytes(pair.rx_bytes);
  to.set_tx_bytes(pair.tx_bytes);
  to.set_rx_bytes_s(pair.rx_bytes_s);
  to.set_tx_bytes_s(pair.tx_bytes_s);
  to.set_carries_bytes_s(pair.carries_bytes_s);
  to.set_carries_age_seconds(static_cast<std::int64_t>(pair.carries_age_ms / 1000));
  to.set_why(from.why);
  to.set_address(from.address);
  for (const auto& [tried, path, outcome, address] : from.tries) {
    auto& out = *to.add_tries();
    out.set_path(path);
    out.set_origin(std::string(origin_name(tried.origin)));
    out.set_sent(tried.sent);
    out.set_answered(tried.answered);
    out.set_full_size(tried.full);
    out.set_rtt_ms(millis_of(tried.rtt_us));
    out.set_outcome(outcome);
    out.set_address(address);
  }
  to.set_relay(clean(from.relay));
  for (const auto& [tried, address, region, in_use] : from.relays) {
    auto& out = *to.add_relays();
    out.set_address(clean(address));
    out.set_region(clean(region));
    out.set_rtt_ms(millis_of(tried.rtt_us));
    out.set_sent(tried.sent);
    out.set_answered(tried.answered);
    out.set_in_use(in_use);
  }
  if (from.by) to.set_by(from.by->str());
  to.set_slow(from.slow);
  to.set_tested(pair.tested);
  to.set_at_least_bytes_s(pair.at_least_bytes_s);
  to.set_at_least_age_seconds(static_cast<std::int64_t>(pair.at_least_age_ms / 1000));
}
}  // namespace
std::string to_json(const NetView& view) {
  v1::ClusterNet m;
  m.set_cluster_id(view.cluster.str());
  m.set_name(view.name);
  for (const auto& member : view.members) write(member, *m.add_members());
  for (const auto& pair : view.pairs) write(pair, *m.add_pairs());
  m.set_seq(view.seq);
  m.set_pair_kbps(view.pair_kbps);
  return write_message(m);
}
std::string to_json(const PlanView& view) {
  v1::Plan m;
  m.set_starts_now(!view.places.empty());
  for (const auto& place : view.places) {
    auto& out = *m.add_places();
    out.set_role(std::string(text(place.role)));
    out.set_group(place.group);
    out.set_gpu_model(clean(place.gpu_model));
    out.set_gpus(place.gpus);
    out.set_region(clean(place.region));
    out.set_tier(std::string(text(place.tier)));
    out.set_image_present(place.image_present);
    out.set_price_micros(place.price);
    out.set_currency(place.currency);
    out.set_leaves_at(time_text(place.leaves_at));
    out.set_gpu_share(static_cast<double>(place.gpu_share_milli) / kGpuMilli);
  }
  if (view.queue) write(*view.queue, *m.mutable_queue());
  return write_message(m);
}

std::string to_json(const JobView& view) {
  v1::Job m;
  const Job& job = view.job;
  m.set_id(job.id.str());
  m.set_name(job.spec.name);
  m.set_project_id(job.project.str());
  m.set_cluster_id(job.cluster.str());
  m.set_cluster(view.cluster);
  m.set_entrypoint(job.spec.entrypoint);
  m.set_state(std::string(text(job.state)));
  m.set_attempt(job.attempt);
  m.set_exit_code(job.exit_code);
  m.set_reason(clean(job.reason));
  m.set_log_bytes(job.log_bytes);
  m.set_created_at(time_text(job.created_at));
  m.set_started_at(time_text(job.started_at));
  m.set_ended_at(time_text(job.ended_at));
  m.set_retries(job.spec.retries);
  m.set_timeout_seconds(job.spec.timeout.count() / 1000);
  m.mutable_metadata()->insert(job.spec.metadata.begin(), job.spec.metadata.end());
  return write_message(m);
}

std::string to_json(const ImageScanView& view) {
  v1::ImageScan m;
  m.set_image(clean(view.image));
  m.set_verdict(view.verdict);
  m.set_why(clean(view.why));
  m.set_system(clean(view.system));
  m.set_packages(view.packages);
  m.set_suppliers(view.suppliers);
  m.set_database_at(time_text(view.database));
  for (const ImageFindingView& each : view.findings) {
    v1::ImageFinding& finding = *m.add_findings();
    finding.set_id(clean(each.id));
    finding.set_severity(each.severity);
    finding.set_package(clean(each.package));
    finding.set_version(clean(each.version));
    finding.set_fixed(clean(each.fixed));
    finding.set_waived_by(clean(each.waived_by));
  }
  m.set_found(view.found);
  for (const ClusterId id : view.clusters) m.add_clusters(id.str());
  return write_message(m);
}

std::string to_json(const RegistryView& view) {
  v1::Registry m;
  m.set_host(clean(view.host));
  m.set_username(clean(view.username));
  m.set_expires_at(time_text(view.expires));
  return write_message(m);
}

std::string to_json(const BlobView& view) {
  v1::Blob m;
  m.set_digest(view.digest);
  m.set_bytes(static_cast<std::int64_t>(view.bytes));
  return write_message(m);
}
std::string to_json(const EventView& view) {
  v1::Event m;
  m.set_seq(view.seq);
  m.set_at(time_text(view.at));
  m.set_type(view.type);
  m.set_subject(view.subject);
  m.set_text(clean(view.text));
  m.set_actor(view.actor);
  for (const auto& [key, value] : view.data) (*m.mutable_data())[key] = clean(value);
  return write_message(m);
}
std::string to_json(const TelemetryView& view) {
  const session::Telemetry& t = view.sample;
  const auto whole = [](std::uint64_t value) {
    return static_cast<std::int64_t>(std::min<std::uint64_t>(value, std::numeric_limits<std::int64_t>::max()));
  };
  v1::TelemetryView m;
  m.set_node_id(view.node.str());
  m.set_node_name(view.node_name);
  m.set_at(time_text(t.at));
  m.set_cpus_used(static_cast<double>(t.cpu_milli) / 1000);
  m.set_cpus_total(static_cast<double>(t.cpu_total_milli) / 1000);
  m.set_cpus_peak(static_cast<double>(t.cpu_peak_milli) / 1000);
  m.set_memory_used_bytes(whole(t.memory_used_bytes));
  m.set_memory_total_bytes(whole(t.memory_total_bytes));
  m.set_disk_free_bytes(whole(t.disk_free_bytes));
  m.set_disk_total_bytes(whole(t.disk_total_bytes));
  m.set_disk_read_bytes_s(whole(t.disk_read_bytes_s));
  m.set_disk_write_bytes_s(whole(t.disk_write_bytes_s));
  m.set_net_rx_bytes_s(whole(t.net_rx_bytes_s));
  m.set_net_tx_bytes_s(whole(t.net_tx_bytes_s));
  m.set_window_seconds(static_cast<double>(t.window.count()) / 1000);
  m.set_owner(clean(t.owner));
  for (const auto& [gpu, model, lease] : view.gpus) {
    auto& out = *m.add_gpus();
    out.set_uuid(clean(gpu.uuid));
    out.set_model(clean(model));
    if (lease) out.set_lease_id(lease.str());
    out.set_use_percent(gpu.use_percent);
    out.set_temperature_c(gpu.temperature_c);
    out.set_power_w(gpu.power_w);
    out.set_power_limit_w(gpu.power_limit_w);
    out.set_memory_used_bytes(gpu.memory_used_bytes);
    out.set_memory_total_bytes(gpu.memory_total_bytes);
    out.set_sm_mhz(gpu.sm_mhz);
    out.set_memory_mhz(gpu.memory_mhz);
    out.set_ecc_corrected(gpu.ecc_corrected);
    out.set_ecc_uncorrected(gpu.ecc_uncorrected);
    out.set_xid(gpu.xid);
    out.set_xid_count(gpu.xid_count);
  }
  for (const auto& container : view.containers) {
    auto& out = *m.add_containers();
    out.set_lease_id(container.sample.lease.str());
    out.set_cluster(container.cluster);
    out.set_role(std::string(text(container.role)));
    out.set_cpus_used(static_cast<double>(container.sample.cpu_milli) / 1000);
    out.set_memory_bytes(whole(container.sample.memory_bytes));
    out.set_pids(whole(container.sample.pids));
    out.set_net_rx_bytes_s(whole(container.sample.net_rx_bytes_s));
    out.set_net_tx_bytes_s(whole(container.sample.net_tx_bytes_s));
    out.set_gpu_memory_bytes(whole(container.sample.gpu_memory_bytes));
    for (const auto& gpu : container.gpus) out.add_gpus(clean(gpu));
  }
  return write_message(m);
}
std::string to_json(const ServerView& view) {
  v1::ServerInfo m;
  m.set_version(view.version);
  m.set_server_id(view.server_id);
  m.set_seq(view.seq);
  m.set_read_only(view.read_only);
  m.set_ca_sha256(view.ca_sha256);
  for (const auto& relay : view.relays) m.add_relays(relay);
  m.set_incarnation(view.incarnation);
  m.set_trust(view.trust);
  return write_message(m);
}

std::string list_json(const std::vector<std::string>& items, std::string_view next_cursor, std::uint64_t seq) {
  std::string out = "{\"items\":[";
  for (std::size_t i = 0; i < items.size(); ++i) {
    if (i) out += ',';
    out += items[i];
  }
  out += "],\"nextCursor\":";
  append_json_string(out, next_cursor);
  out += fmt::format(",\"seq\":\"{}\"}}", seq);
  return out;
}

}  // namespace muster::wire
