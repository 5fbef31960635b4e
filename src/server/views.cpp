#include "server/views.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <tuple>

#include "control/quota.h"
#include "control/terms.h"
#include "crypto/pem_key.h"
#include "model/node_labels.h"
#include "model/offer.h"
#include "model/reason.h"
#include "wire/names.h"

namespace muster::server {
namespace {

OrgId org_of(const control::State& state, ProjectId project) {
  const auto found = state.projects.find(project);
  return found == state.projects.end() ? OrgId{} : found->second.org;
}

}  // namespace

access::Object object_of(const control::State& state, const Cluster& cluster) {
  return control::access_object(state, cluster);
}
access::Object object_of(const control::State& state, const Job& job) {
  return control::access_object(state, job);
}
access::Object object_of(const Node& node) {
  return {access::Kind::Node, node.supplier, node.id, {}};
}
access::Object object_of(const Principal& principal) {
  return {.kind = principal.service ? access::Kind::ServiceAccount : access::Kind::Principal,
          .owner = principal.org,
          .principal = principal.id,
          .role = principal.role};
}
access::Object object_of(const control::State& state, const ApiToken& token) {
  const auto owner = state.principals.find(token.owner);
  if (owner == state.principals.end()) return {access::Kind::ApiToken, {}, {}, token.owner};
  // Those of a service account are its organisation's business.
  access::Object object = object_of(owner->second);
  if (!owner->second.service) object.kind = access::Kind::ApiToken;
  return object;
}
access::Object object_of(const Grant& grant) {
  return {grant.break_glass ? access::Kind::BreakGlass : access::Kind::Grant, grant.owner, {}, grant.to};
}
access::Object object_of(const JoinToken& token) {
  return {access::Kind::JoinToken, token.supplier, {}, {}};
}
access::Object object_of(const Project& project) {
  return {access::Kind::Project, project.org, {}, {}};
}
access::Object object_of(const Org& org) {
  return {access::Kind::Org, org.id, {}, {}};
}

const Cluster* find_cluster(const control::State& state, const access::Subject& caller, const std::string& text) {
  if (const auto id = ClusterId::parse(text)) return state.find_cluster(*id);
  const Cluster* only = nullptr;
  const bool anywhere = caller.role == Role::Operator || caller.role == Role::Auditor;
  for (const auto& [id, project] : state.projects) {
    if (!anywhere && project.org != caller.org) continue;
    const auto found = state.cluster_by_name.find({id, text});
    if (found == state.cluster_by_name.end()) continue;
    if (project.org == caller.org) return state.find_cluster(found->second);
    if (only != nullptr) return nullptr;  // ambiguous: the id is needed
    only = state.find_cluster(found->second);
  }
  if (only != nullptr) return only;
  // An ended cluster keeps its name readable until it is archived: the newest one of that name.
  for (auto it = state.clusters.rbegin(); it != state.clusters.rend(); ++it) {
    if (it->second.spec.name == text && (anywhere || org_of(state, it->second.project) == caller.org))
      return &it->second;
  }
  return nullptr;
}

const Job* find_job(const control::State& state, const access::Subject& caller, const std::string& text) {
  if (const auto id = JobId::parse(text)) return state.find_job(*id);
  const bool anywhere = caller.role == Role::Operator || caller.role == Role::Auditor;
  for (auto it = state.jobs.rbegin(); it != state.jobs.rend(); ++it) {
    if (it->second.spec.name == text && (anywhere || org_of(state, it->second.project) == caller.org))
      return &it->second;
  }
  return nullptr;
}

const Node* find_node(const control::State& state, const access::Subject& caller, const std::string& text) {
  if (const auto id = NodeId::parse(text)) return state.find_node(*id);
  const bool anywhere = caller.role == Role::Operator || caller.role == Role::Auditor;
  const Node* only = nullptr;
  for (const auto& [id, node] : state.nodes) {
    if (node.name != text || node.state == NodeState::Revoked || (!anywhere && node.supplier != caller.org)) continue;
    if (only != nullptr) return nullptr;
    only = &node;
  }
  return only;
}

const Principal* find_principal(const control::State& state, const std::string& text) {
  auto id = PrincipalId::parse(text);
  if (const auto named = state.principal_by_name.find(text); !id && named != state.principal_by_name.end())
    id = named->second;
  const auto found = id ? state.principals.find(*id) : state.principals.end();
  return found == state.principals.end() || found->second.service ? nullptr : &found->second;
}

const Principal* find_service(const control::State& state, const access::Subject& caller, const std::string& text) {
  if (const auto id = PrincipalId::parse(text)) {
    const auto found = state.principals.find(*id);
    return found == state.principals.end() || !found->second.service ? nullptr : &found->second;
  }
  if (const auto own = state.service_by_name.find({caller.org, text}); own != state.service_by_name.end())
    return &state.principals.at(own->second);
  if (caller.role != Role::Operator && caller.role != Role::Auditor) return nullptr;
  const Principal* only = nullptr;
  for (const auto& [key, id] : state.service_by_name) {
    if (key.second != text) continue;
    if (only != nullptr) return nullptr;  // ambiguous: the id is needed
    only = &state.principals.at(id);
  }
  return only;
}

std::optional<OrgId> find_org(const control::State& state, const std::string& text) {
  if (const auto id = OrgId::parse(text)) return state.orgs.contains(*id) ? id : std::nullopt;
  const auto found = state.org_by_name.find(text);
  return found == state.org_by_name.end() ? std::nullopt : std::optional(found->second);
}
Result<OrgId> wanted_org(const control::State& state, const access::Subject& subject, const std::string& text) {
  if (text.empty()) return subject.org;
  const auto org = find_org(state, text);
  const bool known = org && (*org == subject.org || access::visible(subject, object_of(state.orgs.find(*org)->second)));
  if (!known) return error(Code::NotFound, fmt::format("there is no organisation {} among yours", text), "org");
  return *org;
}

Result<ProjectId> find_project(const control::State& state, const access::Subject& caller, const std::string& text) {
  if (const auto id = ProjectId::parse(text)) {
    const auto found = state.projects.find(*id);
    if (found != state.projects.end() && access::visible(caller, object_of(found->second))) return *id;
  }
  if (!text.empty()) {
    const auto found = state.project_by_name.find({caller.org, text});
    if (found != state.project_by_name.end()) return found->second;
    return error(Code::NotFound,
                 fmt::format("there is no project {} in your organisation; list them with GET /api/v1/projects", text),
                 "project");
  }
  for (const auto& [id, project] : state.projects) {
    if (project.org == caller.org) return id;
  }
  return error(Code::FailedPrecondition, "your organisation has no project yet; make one with POST /api/v1/projects",
               "project");
}

namespace {

// The planner is not told of what a quota holds back. It stands behind those that wait for machines, in the same order.
void add_quota_waits(const control::State& state, std::map<ClusterId, wire::QueueView>& views) {
  auto waits = control::quota_waits(state);
  if (waits.empty()) return;
  std::stable_sort(waits.begin(), waits.end(), [&](const auto& a, const auto& b) {
    const Cluster &x = *state.find_cluster(a.cluster), &y = *state.find_cluster(b.cluster);
    return std::tuple(-x.spec.priority, x.created_at) < std::tuple(-y.spec.priority, y.created_at);
  });
  std::map<std::uint32_t, std::uint32_t> last;  // place taken, by tier
  for (const auto& [id, view] : views) last[view.tier] = std::max(last[view.tier], view.position);
  for (auto& wait : waits) {
    const Cluster& cluster = *state.find_cluster(wait.cluster);
    auto [it, fresh] = views.try_emplace(wait.cluster);
    wire::QueueView& view = it->second;
    if (fresh) view.position = ++last[cluster.spec.tier];
    view.cluster = wait.cluster, view.name = cluster.spec.name, view.tier = cluster.spec.tier;
    view.priority = cluster.spec.priority, view.since = cluster.created_at, view.expected_start = {};
    view.reason_code = wait.reason.code, view.reason = wait.reason.text, view.reason_params = wait.reason.params;
  }
}

}  // namespace

std::map<ClusterId, wire::QueueView> queue_views(const control::State& state, const scheduler::Scheduler& scheduler,
                                                 WallTime now) {
  std::map<ClusterId, wire::QueueView> out;
  for (const auto& waiting : scheduler.queue(now)) {
    const Cluster* cluster = state.find_cluster(waiting.cluster);
    if (cluster == nullptr) continue;
    wire::QueueView view{waiting.cluster,     cluster->spec.name,     waiting.position,
                         waiting.reason.code, waiting.reason.text,    {},
                         cluster->spec.tier,  cluster->spec.priority, cluster->created_at};
    view.reason_params = waiting.reason.params;
    if (waiting.known) view.expected_start = waiting.expected_start;
    out.emplace(waiting.cluster, std::move(view));
  }
  add_quota_waits(state, out);
  return out;
}

namespace {
template <class Holder>
wire::ImagePolicyScope policy_scope(const Holder& holder) {
  wire::ImagePolicyScope out{holder.id.str(), holder.name, holder.images, {}};
  for (const std::string& key : holder.images.keys) {
    const auto read = crypto::PemKey::parse(key);
    out.fingerprints.push_back(read.ok() ? read->fingerprint() : "");
  }
  return out;
}
}  // namespace

wire::ImagePolicyView image_policy_view(const control::State& state, OrgId id) {
  wire::ImagePolicyView view;
  if (const auto platform = state.orgs.find(kPlatformOrg); platform != state.orgs.end())
    view.platform = policy_scope(platform->second);
  if (const auto org = state.orgs.find(id); org != state.orgs.end() && id != kPlatformOrg)
    view.org = policy_scope(org->second);
  return view;
}
Result<wire::ImagePolicyView> image_policy_view(const control::State& state, ProjectId id) {
  const auto project = state.projects.find(id);
  if (project == state.projects.end()) return error(Code::NotFound, "the project is gone");
  wire::ImagePolicyView view = image_policy_view(state, project->second.org);
  view.project = policy_scope(project->second);
  return view;
}

Result<wire::QuotaView> quota_view(const control::State& state, OrgId id) {
  const auto org = state.orgs.find(id);
  if (org == state.orgs.end()) return error(Code::NotFound, "the organisation is gone");
  return wire::QuotaView{
      {}, {id.str(), org->second.name, org->second.quota, control::held_of(state, id), org->second.share}};
}
Result<wire::QuotaView> quota_view(const control::State& state, ProjectId id) {
  const auto project = state.projects.find(id);
  if (project == state.projects.end()) return error(Code::NotFound, "the project is gone");
  wire::QuotaView view = TRY(quota_view(state, project->second.org));
  view.project = {id.str(), project->second.name, project->second.quota, control::held_of(state, id),
                  project->second.share};
  return view;
}

wire::TiersView tiers_view(const control::State& state, const scheduler::Scheduler& scheduler) {
  wire::TiersView view;
  const auto held = scheduler.held_by_tiers();
  for (std::uint8_t tier = 0; tier <= kTierMax; ++tier) {
    const auto row = state.tier_shares.find(tier);
    const std::uint32_t guaranteed = row == state.tier_shares.end() ? 0 : row->second;
    if (guaranteed > 0 || held.at(tier) > 0) view.rows.push_back({{tier, guaranteed}, held.at(tier)});
  }
  return view;
}

wire::HeadroomView headroom_view(const control::State& state) {
  wire::HeadroomView view;
  for (const auto& [model, row] : state.headroom) view.rows.push_back({row, 0});
  if (view.rows.empty()) return view;
  for (const auto& [id, node] : state.nodes) {
    if (!control::schedulable(node) || !pool_of(node).empty() || !state.live_leases(id).empty()) continue;
    const std::string model = node.facts.devices.empty() ? "" : node.facts.devices.front().model;
    for (auto& [row, free] : view.rows)
      if (row.gpu_model == model) ++free;
  }
  return view;
}

wire::PrincipalView principal_view(const control::State& state, const Principal& principal) {
  wire::PrincipalView view{principal, {}, {}, false};
  if (const auto org = state.orgs.find(principal.org); org != state.orgs.end()) view.org = org->second.name;
  for (const auto& [id, project] : state.projects) {
    if (project.org != principal.org) continue;
    view.default_project = id.str();
    break;
  }
  return view;
}

wire::NodeView node_view(const control::State& state, const access::Subject& caller, const Node& node,
                         const std::string& owner, const std::vector<scan::HoleFinding>& holes) {
  wire::NodeView view{node, control::free_resources(state, node), {}, {}};
  for (const LeaseId id : state.live_leases(node.id)) {
    const Lease* lease = state.find_lease(id);
    if (lease == nullptr) continue;
    wire::NodeLeaseView shown{*lease, SlotRole::Worker, {}};
    if (const Slot* slot = state.find_slot(lease->slot)) shown.role = slot->role;
    const Cluster* cluster = state.find_cluster(lease->cluster);
    // A supplier sees that a lease runs, not whose it is.
    if (cluster != nullptr && access::visible(caller, object_of(state, *cluster))) shown.cluster = cluster->spec.name;
    view.leases.push_back(std::move(shown));
  }
  view.parts_free = control::parts_free(state, node);
  // Names say whose work it was: they are the platform's to know. A supplier gets the digests.
  const bool platform = caller.role == Role::Operator || caller.role == Role::Auditor;
  for (const std::string& image : node.facts.images)
    if (platform || image.starts_with("sha256:")) view.images.push_back(image);
  if (node.offer.version != 0) {
    for (const OrgId tenant : node.offer.tenants) {
      const auto org = state.orgs.find(tenant);
      view.offer_tenants.push_back(org == state.orgs.end() ? tenant.str() : org->second.name);
    }
    if (const Openness now = openness(node.offer, read_clocks().wall); now.until.ms != 0)
      (now.open ? view.open_until : view.opens_at) = now.until;
  }
  // Which holes a machine has is its owner's and the platform's to know.
  const bool sees_versions = platform || caller.org == node.supplier;
  std::erase_if(view.node.facts.labels, [&](const auto& label) {
    return label.first == kHeldLabel || (!sees_versions && label.first.starts_with(kVersionLabelPrefix));
  });
  if (sees_versions) {
    for (const scan::HoleFinding& each : holes)
      view.holes.push_back({each.id, each.component, each.version, each.fixed, std::string(scan::text(each.state)),
                            each.what, each.why, each.source, each.blocks});
  }
  const std::string held = held_for(node);
  if (!owner.empty() && (node.state == NodeState::Online || node.state == NodeState::Draining)) {
    view.not_hired = owner;
  } else if (node.barred) {
    view.not_hired = "an operator disabled the machine; only an operator can enable it";
  } else if (node.state != NodeState::Online) {
    view.not_hired = fmt::format("the machine is {}", wire::text(node.state));
  } else if (node.draining) {
    view.not_hired = "the machine drains: it gets no new work";
  } else if (!held.empty()) {
    view.not_hired = sees_versions ? "known holes: " + held + "; update it, then it is judged anew by itself"
                                   : "the platform found a known hole in its software";
  } else if (node.backoff_until > state.last_wall) {
    view.not_hired = fmt::format(
        "the starts of {} clusters in a row failed on it: it gets nothing for {} minutes, or until `muster nodes "
        "enable`; `muster-agent doctor` on it may say why",
        node.strikes, (node.backoff_until - state.last_wall).count() / 60'000 + 1);
  } else if (view.free.cpu_milli <= 0 || view.free.memory_bytes <= 0) {
    view.not_hired = "everything it offers is hired";
  } else if (view.opens_at.ms != 0) {
    view.not_hired = fmt::format("outside the hours of its offer; they begin at {}", format_utc(view.opens_at));
  } else if (view.leases.empty()) {
    view.not_hired = node.offer.version == 0 ? "no waiting request fits it right now"
                                             : "no waiting request fits it and its offer right now; `muster nodes "
                                               "explain` says what the offer refused";
  }
  return view;
}

bool hires_from(const control::State& state, const access::Subject& caller, const Node& node) {
  for (const LeaseId id : state.live_leases(node.id)) {
    const Lease* lease = state.find_lease(id);
    const Cluster* cluster = lease == nullptr ? nullptr : state.find_cluster(lease->cluster);
    if (cluster != nullptr && access::visible(caller, object_of(state, *cluster))) return true;
  }
  return false;
}

wire::TelemetryView telemetry_view(const control::State& state, const access::Subject& caller, const Node& node,
                                   const session::Telemetry& sample, Sight sight) {
  wire::TelemetryView view;
  view.node = node.id;
  view.node_name = node.name;
  if (sight == Sight::Machine) view.sample = sample;
  view.sample.at = sample.at;
  view.sample.window = sample.window;
  view.sample.gpus.clear();
  view.sample.containers.clear();
  std::map<std::string, LeaseId> used;  // GPU -> the lease that has it
  std::set<LeaseId> shown;
  for (const LeaseId id : state.live_leases(node.id)) {
    const Lease* lease = state.find_lease(id);
    if (lease == nullptr) continue;
    const Cluster* cluster = state.find_cluster(lease->cluster);
    const bool own = cluster != nullptr && access::visible(caller, object_of(state, *cluster));
    if (sight != Sight::Machine && !own) continue;
    shown.insert(id);
    for (const auto& device : lease->devices) used[device] = id;
    const auto found = std::find_if(sample.containers.begin(), sample.containers.end(),
                                    [&](const session::ContainerSample& each) { return each.lease == id; });
    if (found == sample.containers.end()) continue;
    wire::ContainerView container{*found, {}, SlotRole::Worker, lease->devices};
    if (own) container.cluster = cluster->spec.name;
    if (const Slot* slot = state.find_slot(lease->slot)) container.role = slot->role;
    view.containers.push_back(std::move(container));
  }
  for (const auto& gpu : sample.gpus) {
    const auto lease = used.find(gpu.uuid);
    if (sight != Sight::Machine && lease == used.end()) continue;
    wire::GpuView each{gpu, {}, lease == used.end() ? LeaseId{} : lease->second};
    for (const auto& device : node.facts.devices) {
      if (device.uuid == gpu.uuid) each.model = device.model;
    }
    view.gpus.push_back(std::move(each));
  }
  return view;
}

std::vector<std::string> differences(const wire::ClusterView& view, const RayFacts* ray) {
  std::vector<std::string> out;
  if (ray == nullptr || view.cluster.state != ClusterState::Running) return out;
  std::map<std::uint32_t, const RayNodeReport*> alive;
  for (const auto& node : ray->report.nodes) {
    if (node.alive) alive[node.address] = &node;
  }
  std::set<std::uint32_t> known;
  for (const auto& slot : view.slots) {
    const bool should = slot.slot.role != SlotRole::Spare && slot.phase == LeasePhase::Ready && slot.slot.in_roster;
    if (slot.phase == LeasePhase::Ready || slot.phase == LeasePhase::Draining || slot.phase == LeasePhase::Starting)
      known.insert(slot.slot.address);
    if (should && !alive.contains(slot.slot.address)) {
      out.push_back(fmt::format("{} ({}, {}): the machine reports ready, Ray does not list it as alive",
                                slot.slot.id.str(), wire::address_text(slot.slot.address), slot.node_name));
    }
  }
  for (const auto& [address, node] : alive) {
    if (!known.contains(address))
      out.push_back(
          fmt::format("{}: Ray lists it as alive, no machine reports a ready slot there", wire::address_text(address)));
  }
  return out;
}

wire::ClusterView cluster_view(const control::State& state, const Cluster& cluster, const RayFacts* ray,
                               const FindPull& pull) {
  wire::ClusterView view;
  view.cluster = cluster;
  for (const SlotId id : cluster.slots) {
    const Slot* slot = state.find_slot(id);
    if (slot == nullptr) continue;
    wire::SlotView shown;
    shown.slot = *slot;
    if (const Lease* lease = state.find_lease(slot->lease)) {
      shown.node = lease->node;
      shown.phase = lease->phase;
      shown.want = lease->want;
      shown.reason = lease->reason;
      shown.price = lease->price, shown.currency = lease->currency, shown.leaves_at = lease->leaves_at;
      shown.gpu_share_milli = lease->share_milli;
      if (const Node* node = state.find_node(lease->node)) shown.node_name = node->name;
      if (const auto facts = pull && lease->phase <= LeasePhase::Pulling ? pull(lease->id) : std::nullopt) {
        shown.pull_done_bytes = facts->done_bytes;
        shown.pull_total_bytes = facts->total_bytes;
      }
    }
    if (ray != nullptr) {
      for (const auto& node : ray->report.nodes) {
        if (node.address != slot->address) continue;
        shown.ray_node_id = node.ray_node_id;
        shown.ray_alive = shown.ray_alive || node.alive;
        if (node.alive) break;
      }
    }
    view.slots.push_back(std::move(shown));
  }
  if (ray != nullptr && !control::terminal(cluster.state)) view.ray_nodes = ray->report.nodes;
  control::Spending spending = control::spending_of(state, cluster, read_clocks().wall);
  view.per_hour = std::move(spending.per_hour), view.so_far = std::move(spending.so_far);
  view.differences = differences(view, ray);
  if (state.frozen) view.warnings.push_back("evictions are frozen: " + state.freeze_reason);
  if (!cluster.probe->digest.empty() && !cluster.probe->rocksdb)
    view.warnings.push_back("this image's Ray has no RocksDB: the head's state is lost when its container restarts");
  if (const auto sentence = reason_sentence(cluster.reason); !sentence.empty()) view.warnings.emplace_back(sentence);
  for (const auto& slot : view.slots) {
    if (!slot.reason.empty())
      view.warnings.push_back(
          fmt::format("{} on {}: {}", slot.slot.id.str(), slot.node_name, with_sentence(slot.reason)));
  }
  return view;
}

wire::PlanView plan_view(const control::State& state, const control::WhatIf& asked,
                         const scheduler::Forecast& forecast) {
  wire::PlanView view;
  const Cluster& cluster = asked.cluster;
  for (const auto& place : forecast.group.places) {
    wire::PlanPlaceView shown{
        .role = place.role, .group = place.group, .gpus = static_cast<std::uint32_t>(place.devices.size())};
    shown.gpu_share_milli = place.share_milli;
    if (const Node* node = state.find_node(place.node)) {
      for (const Device& device : node->facts.devices)
        if (!place.devices.empty() && device.uuid == place.devices.front()) shown.gpu_model = device.model;
      const auto& images = node->facts.images;
      shown.image_present = std::find(images.begin(), images.end(), cluster.spec.image) != images.end();
      shown.region = region_of(*node);
      shown.tier = node->tier;
      if (const auto terms = control::terms_for(state, cluster, *node, static_cast<std::int64_t>(place.devices.size()),
                                                place.share_milli, state.last_wall))
        shown.price = terms->price, shown.currency = terms->currency, shown.leaves_at = terms->leaves_at;
    }
    view.places.push_back(std::move(shown));
  }
  if (!view.places.empty()) return view;
  const auto& waits = forecast.view;
  const auto& reason = asked.quota ? *asked.quota : waits.reason;
  view.queue = wire::QueueView{cluster.id, cluster.spec.name, waits.position,        reason.code,       reason.text,
                               {},         cluster.spec.tier, cluster.spec.priority, cluster.created_at};
  view.queue->reason_params = reason.params;
  if (waits.known) view.queue->expected_start = waits.expected_start;
  return view;
}

wire::JobView job_view(const control::State& state, const Job& job) {
  wire::JobView view{job, {}};
  if (const Cluster* cluster = state.find_cluster(job.cluster)) view.cluster = cluster->spec.name;
  if (view.cluster.empty()) view.cluster = job.spec.cluster;
  return view;
}

}  // namespace muster::server
