// The planner proposes, the core disposes: every group is checked again against the state as it is now; a group that no
// longer holds is dropped without a word, since the planner will see the same change and propose anew.
#include <algorithm>

#include "control/decide.h"
#include "control/gpus.h"
#include "control/headroom.h"
#include "control/images.h"
#include "control/mutants.h"
#include "control/reclaim.h"
#include "control/slow.h"
#include "control/terms.h"
#include "control/traffic.h"

namespace muster::control {
namespace {

using scheduler::Place;

constexpr std::size_t kGroupsMax = 4096;
constexpr Millis kTooLargeFor{60'000};

const NodeRequest* request_of(const Cluster& cluster, const Place& place) {
  if (place.role == SlotRole::Head) return &cluster.spec.head;
  const WorkerGroup* group = find_group(cluster.spec, place.group);
  return group == nullptr ? nullptr : &group->request;
}

bool holds_lease_there(const Draft& d, ClusterId cluster, NodeId node) {
  for (const LeaseId id : d.state.live_leases(node))
    if (d.state.find_lease(id)->cluster == cluster) return true;
  return false;
}

bool labels_match(const Node& node, const std::map<std::string, std::string>& constraints) {
  return std::all_of(constraints.begin(), constraints.end(), [&](const auto& wish) {
    return wish.first == "region" ? region_of(node) == wish.second : label_of(node, wish.first) == wish.second;
  });
}

bool admits(const Draft& d, const Cluster& cluster, const NodeRequest& request, const Node& node) {
  const ClusterSpec& spec = cluster.spec;
  const auto& runtimes = node.facts.runtimes;
  return schedulable(node) && node.tier >= spec.min_trust && node.backoff_until <= d.wall &&
         node.facts.arch == spec.arch && std::find(runtimes.begin(), runtimes.end(), spec.runtime) != runtimes.end() &&
         (!spec.egress || node.facts.egress_allowed) && in_pool(node, spec.pool, org_of(d.base, cluster.project)) &&
         labels_match(node, request.constraints) && d.backoff(cluster.id, node.id).until <= d.wall &&
         (request.pinned.empty() ||
          std::find(request.pinned.begin(), request.pinned.end(), node.id) != request.pinned.end());
}

bool gpu_suits(const NodeRequest& request, const Device& device) {
  if (device.memory_bytes < request.gpu_memory_bytes) return false;
  if (request.gpu_any.empty()) return request.gpu_model.empty() || device.model == request.gpu_model;
  return std::any_of(request.gpu_any.begin(), request.gpu_any.end(),
                     [&](const GpuChoice& choice) { return choice.model == device.model; });
}

// As many as are asked for, each once, and of each there is enough: all of it, or the share.
bool devices_ok(const Draft& d, const Cluster& cluster, const NodeRequest& request, const Node& node,
                const Place& place, std::int64_t count) {
  if (static_cast<std::int64_t>(place.devices.size()) != count || place.share_milli != request.gpu_share_milli)
    return false;
  if (count == 0) return true;
  const auto held = held_devices(d.state, node.id, d.base);
  const OrgId tenant = org_of(d.base, cluster.project);
  for (std::size_t i = 0; i < place.devices.size(); ++i) {
    const std::string& uuid = place.devices[i];
    if (std::find(place.devices.begin(), place.devices.begin() + static_cast<std::ptrdiff_t>(i), uuid) !=
        place.devices.begin() + static_cast<std::ptrdiff_t>(i))
      return false;
    const Device* device = find_device(node, uuid);
    if (device == nullptr || !gpu_suits(request, *device) ||
        !device_has_room(*device, request.gpu_share_milli, tenant, cluster.spec.runtime, held))
      return false;
  }
  return true;
}

// What the lease would hold, or nothing when the node cannot give it now.
std::optional<Resources> can_host(Draft& d, const Cluster& cluster, const Place& place, TrafficLeft traffic = {}) {
  const NodeRequest* request = request_of(cluster, place);
  if (request == nullptr || !d.pull(place.node)) return {};
  const Node& node = d.state.nodes.at(place.node);
  if (!admits(d, cluster, *request, node) || holds_lease_there(d, cluster.id, node.id)) return {};
  const Resources free = free_resources(d.state, node);
  Resources need = request->resources;
  if (request->whole_machine) {
    if (!d.state.live_leases(node.id).empty()) return {};
    need = free;
    need.gpus = static_cast<std::int64_t>(node.facts.devices.size());
    need.custom_milli = request->resources.custom_milli;
    need.traffic = request->resources.traffic;
    if (!fits(request->resources, need)) return {};
  }
  Resources beside_gpus = need;  // of a share the machine may have no whole one
  if (request->gpu_share_milli > 0) beside_gpus.gpus = 0;
  if (!fits(beside_gpus, free) && !MUSTER_MUTANT(mutants::kGrantDevicesTwice)) return {};
  if (!devices_ok(d, cluster, *request, node, place, need.gpus)) return {};
  if (!terms_for(d.base, cluster, node, need.gpus, request->gpu_share_milli, d.wall)) return {};
  if (!traffic.take(d, place.node, need.traffic)) return {};
  return need;
}

// A slot on a lost node that stayed because nobody could take its place: now somebody can.
void leave_lost_slot(Draft& d, const Cluster& cluster, const Place& place) {
  for (const SlotId id : std::vector<SlotId>(cluster.slots)) {
    const Slot* slot = d.slot(id);
    const Lease* lease = slot == nullptr ? nullptr : d.lease(slot->lease);
    const Node* node = lease == nullptr ? nullptr : d.node(lease->node);
    if (node == nullptr || node->state != NodeState::Lost || slot->role != place.role || slot->role == SlotRole::Head)
      continue;
    if (slot->role == SlotRole::Worker && slot->group != place.group) continue;
    d.emit(SlotLeft{id, "node_lost", cluster.roster_epoch + (slot->in_roster ? 1 : 0)});
    return;
  }
}

void grant(Draft& d, const Cluster& cluster, const Place& place, Resources resources) {
  leave_lost_slot(d, cluster, place);
  const bool head = place.role == SlotRole::Head;
  std::uint32_t n = head ? 1 : std::max<std::uint32_t>(cluster.next_address, 2);
  if (MUSTER_MUTANT(mutants::kReuseAddress) && n > 2) --n;
  Slot slot;
  slot.id = SlotId{d.state.last.slot + 1};
  slot.cluster = cluster.id, slot.role = place.role, slot.group = place.group, slot.address = kSubnet + n;
  Lease lease;
  lease.id = LeaseId{d.state.last.lease + 1};
  lease.node = place.node, lease.cluster = cluster.id, lease.slot = slot.id;
  lease.epoch = {d.state.incarnation, d.state.leader_epoch, d.state.last.epoch + 1};
  lease.resources = std::move(resources), lease.devices = place.devices, lease.granted_at = d.wall;
  lease.share_milli = place.share_milli;
  lease.want = place.role == SlotRole::Spare ? LeaseWant::Standby : LeaseWant::Run;
  if (const auto terms =
          terms_for(d.base, cluster, *d.node(place.node), lease.resources.gpus, lease.share_milli, d.wall))
    lease.offer_version = terms->version, lease.price = terms->price, lease.currency = terms->currency,
    lease.leaves_at = terms->leaves_at;
  slot.lease = lease.id;
  d.emit(LeaseGranted{std::move(slot), std::move(lease)});
}

// Exactly the head and every group's minimum, each on a node of its own.
bool whole_gang(const Cluster& cluster, const scheduler::Group& group, const Missing& missing) {
  std::map<std::string, std::uint32_t> workers;
  std::set<NodeId> nodes;
  std::uint32_t heads = 0;
  for (const Place& place : group.places) {
    if (place.role == SlotRole::Head)
      ++heads;
    else if (place.role == SlotRole::Worker)
      ++workers[place.group];
    else
      return false;
    if (!nodes.insert(place.node).second) return false;
  }
  return cluster.state == ClusterState::Queued && heads == 1 && missing.head && workers == missing.workers;
}

// Others may have used up the quota since this was proposed. A machine that is had whole may be too large, which the
// planner does not know: it leaves that one alone for a minute.
bool quota_allows(Draft& d, const Cluster& cluster, const Quota& more) {
  return !d.quota(cluster.project).lack(more) || MUSTER_MUTANT(mutants::kIgnoreQuota);
}
void leave_too_large(Draft& d, const Cluster& cluster, const Place& place) {
  const NodeRequest* request = request_of(cluster, place);
  if (request != nullptr && request->whole_machine)
    d.emit(BackoffSet{cluster.id, place.node, d.backoff(cluster.id, place.node).failures, d.wall + kTooLargeFor});
}

// The policy may be younger than the request: a start fails then, what runs gets no more machines.
bool barred(Draft& d, const Cluster& cluster) {
  const auto refusal = image_refusal(d.base, cluster);
  if (refusal && cluster.state != ClusterState::Running) fail_cluster(d, cluster.id, refusal->code);
  return refusal.has_value();
}

void start(Draft& d, ClusterId id, const scheduler::Group& group, HeadroomLeft& headroom) {
  const Cluster& cluster = d.cluster(id);
  if (barred(d, cluster)) return;
  const auto nodes = [&](NodeId node) { return d.node(node); };
  if (!whole_gang(cluster, group, missing_of(d.state, cluster, nodes))) return;
  std::vector<std::pair<const Place*, Resources>> places;
  TrafficLeft traffic;
  for (const Place& place : group.places) {
    auto resources = can_host(d, cluster, place, traffic);
    if (!resources || !traffic.take(d, place.node, resources->traffic)) return;
    if (place.role == SlotRole::Head)
      places.insert(places.begin(), {&place, std::move(*resources)});
    else
      places.emplace_back(&place, std::move(*resources));
  }
  std::vector<NodeId> on;
  for (const Place& place : group.places) on.push_back(place.node);
  if (!headroom.allows(d, cluster, on, false)) return;
  Quota need{0, 0, 1};
  for (const auto& [place, resources] : places) add(need, amount_of(resources, place->share_milli));
  if (!quota_allows(d, cluster, need)) {
    const auto largest = std::max_element(places.begin(), places.end(), [](const auto& x, const auto& y) {
      return std::pair(x.second.gpus, x.second.cpu_milli) < std::pair(y.second.gpus, y.second.cpu_milli);
    });
    return leave_too_large(d, cluster, *largest->first);
  }
  if (MUSTER_MUTANT(mutants::kPartialGang) && places.size() > 1) places.pop_back();
  for (auto& [place, resources] : places) {
    headroom.took(d, place->node);
    grant(d, cluster, *place, std::move(resources));
  }
  d.emit(ClusterStateChanged{id, ClusterState::Starting, "", {}});
  watch_budget(d, id);
}

void grow(Draft& d, ClusterId id, const scheduler::Group& group, HeadroomLeft& headroom) {
  const Cluster& cluster = d.cluster(id);
  if (cluster.state != ClusterState::Starting && cluster.state != ClusterState::Running) return;
  if (barred(d, cluster)) return;
  const auto nodes = [&](NodeId node) { return d.node(node); };
  for (const Place& place : group.places) {
    const Missing missing = missing_of(d.state, cluster, nodes);
    const bool worker = place.role == SlotRole::Worker && missing.workers.contains(place.group);
    const bool spare = place.role == SlotRole::Spare && missing.spares > 0;
    if (!worker && !spare && (!MUSTER_MUTANT(mutants::kStalePlan) || place.role == SlotRole::Head)) continue;
    auto resources = can_host(d, cluster, place);
    if (!resources) continue;
    // Only when nobody else is missing does it take the place of one that is to be replaced.
    const SlotId replaced = worker ? replaced_by_next(d.state, cluster, missing, place.group, nodes) : SlotId{};
    const bool failover = spare || failovers_of(d.state, cluster, nodes).contains(place.group);
    if (!headroom.allows(d, cluster, {place.node}, failover)) continue;
    if (!quota_allows(d, cluster, amount_of(*resources, place.share_milli))) {
      leave_too_large(d, cluster, place);
      continue;
    }
    headroom.took(d, place.node);
    if (replaced) replace_slow(d, replaced);
    grant(d, cluster, place, std::move(*resources));
  }
  watch_budget(d, id);
}

// Work that agreed to be interrupted, of a running cluster of a later tier or of the same (then it must be
// reclaimable), on a machine that hears us; never a head.
bool may_preempt(Draft& d, const Cluster& by, LeaseId id) {
  if (!d.pull(id)) return false;
  const Lease lease = *d.lease(id);
  if (lease.end != LeaseEnd::None || (lease.want != LeaseWant::Run && lease.want != LeaseWant::Standby) ||
      d.wall < lease.granted_at + scheduler::kPreemptAfter || !d.pull(lease.cluster) || !d.pull(lease.node))
    return false;
  const Slot* slot = d.slot(lease.slot);
  const Cluster& cluster = d.cluster(lease.cluster);
  return slot != nullptr && slot->role != SlotRole::Head && cluster.state == ClusterState::Running &&
         cluster.spec.tier >= scheduler::kPreemptibleTier && cluster.spec.tier >= by.spec.tier &&
         schedulable(*d.node(lease.node));
}

// All of them or none: a start that still lacks a machine afterwards would have cost them their work for nothing.
void preempt(Draft& d, ClusterId id, const scheduler::Group& group) {
  if (d.base.frozen || d.cluster(id).state != ClusterState::Queued) return;
  if (!quota_allows(d, d.cluster(id), start_need(d.cluster(id).spec))) return;
  for (const LeaseId victim : group.victims)
    if (!may_preempt(d, d.cluster(id), victim)) return;
  if (!reclaimable(d, d.cluster(id), group.victims)) return;
  for (const LeaseId victim : group.victims) {
    const SlotId slot = d.lease(victim)->slot;
    if (d.slot(slot)->role == SlotRole::Spare)
      d.emit(SlotLeft{slot, std::string(kPreempted),
                      d.cluster(d.slot(slot)->cluster).roster_epoch + (d.slot(slot)->in_roster ? 1 : 0)});
    else
      drain_slot(d, slot, std::string(kPreempted));
  }
}

// A worker that may be told to leave and had its time where it is, of a group that lacks nobody; it gets the place that
// was found for it, by all the rules of a grant.
bool move_one(Draft& d, const Cluster& by, LeaseId id, const Place& place, HeadroomLeft& headroom) {
  if (!may_preempt(d, by, id)) return false;
  const Lease lease = *d.lease(id);
  const Slot slot = *d.slot(lease.slot);
  Cluster& cluster = d.cluster(lease.cluster);
  const auto nodes = [&](NodeId node) { return d.node(node); };
  if (slot.role != SlotRole::Worker || place.role != SlotRole::Worker || place.group != slot.group ||
      lease.want != LeaseWant::Run || lease.phase != LeasePhase::Ready ||
      d.wall < lease.granted_at + scheduler::kMoveAfter ||
      missing_of(d.state, cluster, nodes).workers.contains(slot.group) || image_refusal(d.base, cluster))
    return false;
  auto resources = can_host(d, cluster, place);
  if (!resources || !headroom.allows(d, cluster, {place.node}, false) ||
      !quota_allows(d, cluster, amount_of(*resources, place.share_milli)))
    return false;
  drain_slot(d, slot.id, std::string(kMoved));
  headroom.took(d, place.node);
  grant(d, cluster, place, std::move(*resources));
  watch_budget(d, lease.cluster);
  return true;
}

// All of them or none, each to its place: tried first on a copy.
void move_work(Draft& d, ClusterId id, const scheduler::Group& group, HeadroomLeft& headroom) {
  if (d.base.frozen || d.cluster(id).state != ClusterState::Queued || group.victims.size() != group.places.size())
    return;
  if (!quota_allows(d, d.cluster(id), start_need(d.cluster(id).spec))) return;
  const auto all = [&](Draft& draft, HeadroomLeft& left) {
    for (std::size_t i = 0; i < group.victims.size(); ++i)
      if (!move_one(draft, draft.cluster(id), group.victims[i], group.places[i], left)) return false;
    return true;
  };
  Draft trial(d);
  HeadroomLeft left(headroom);
  if (all(trial, left)) all(d, headroom);
}

}  // namespace

Decided decide(const Asking& a, const ApplyPlan& c) {
  TRY_VOID(a.system_only("place leases"));
  Draft d(a.base, a.actor, a.wall);
  HeadroomLeft headroom;
  for (std::size_t i = 0; i < std::min(c.groups.size(), kGroupsMax); ++i) {
    const scheduler::Group& group = c.groups[i];
    if (group.expires.ms != 0 && group.expires < a.wall) continue;
    if (!d.pull(group.cluster)) continue;
    if (group.kind == scheduler::ActionKind::Start)
      start(d, group.cluster, group, headroom);
    else if (group.kind == scheduler::ActionKind::Grow)
      grow(d, group.cluster, group, headroom);
    else if (group.kind == scheduler::ActionKind::Preempt)
      preempt(d, group.cluster, group);
    else if (group.kind == scheduler::ActionKind::Move)
      move_work(d, group.cluster, group, headroom);
  }
  return done(d);
}

}  // namespace muster::control
