// The planner's view of the state: machines with what is free, clusters with what they lack.
#include "control/planner.h"

#include <algorithm>
#include <set>

#include "control/gpus.h"
#include "control/images.h"
#include "control/life.h"
#include "control/mutants.h"
#include "control/terms.h"
#include "control/traffic.h"
#include "model/node_labels.h"
#include "model/offer.h"

namespace muster::control {
namespace {

// The hours reach so far ahead and are told anew every week; both are said from the beginning of a day on, so that
// whoever is told on the same day hears the same.
constexpr std::int64_t kDayMs = 24 * 3'600'000;
constexpr Millis kHoursAhead{16 * kDayMs};

scheduler::Offer offer_of(const State& state, const Node& node) {
  scheduler::Offer out;
  const Offer& offer = node.offer;
  if (offer.version == 0 || MUSTER_MUTANT(mutants::kIgnoreOffer)) return out;
  out.price_version = offer.version, out.currency = offer.currency;
  out.price_per_hour = offer.price, out.price_per_gpu_hour = offer.gpu_price;
  out.floor_per_hour = offer.floor, out.floor_per_gpu_hour = offer.gpu_floor;
  out.tenants = offer.tenants, out.images = offer.images, out.longest = offer.longest, out.notice = offer.notice;
  if (!out.tenants.empty()) out.tenants.push_back(node.supplier);
  const WallTime from{state.last_wall.ms / kDayMs * kDayMs};
  for (const auto& [begin, end] : open_intervals(offer, from, from + kHoursAhead)) out.hours.push_back({begin, end});
  return out;
}

scheduler::NodeView view_of(const State& state, const Node& node) {
  scheduler::NodeView view;
  view.node = node.id, view.supplier = node.supplier, view.tier = node.tier, view.arch = node.facts.arch;
  view.free = free_resources(state, node), view.free_devices = free_devices(state, node),
  view.devices = node.facts.devices, view.capacity = node.facts.capacity;
  view.shared = shared_devices(state, node);
  view.runtimes = node.facts.runtimes, view.images = node.facts.images, view.image_bytes = node.facts.image_bytes,
  view.egress = node.facts.egress_allowed;
  view.labels = node.facts.labels;
  for (const auto& [key, value] : node.labels) view.labels[key] = value;  // the platform's word goes over the agent's
  // A pool is a right of the organisation whose join token it stands on, never the agent's claim; nor is it believed
  // whose law it stands under.
  if (const std::string law(kJurisdictionLabel); !node.labels.contains(law)) view.labels.erase(law);
  view.labels.erase("pool");
  if (std::string pool = pool_of(node); !pool.empty()) view.labels["pool"] = std::move(pool);
  view.labels["region"] = region_of(node);
  view.site = site_of(node), view.traffic = stated_traffic(state, node.id);
  const LinkSaid link = link_of(node);
  view.link.up_kbps = link.up_kbps, view.link.down_kbps = link.down_kbps, view.link.lan_kbps = link.lan_kbps;
  view.link.own_up_kbps = link.own_up_kbps, view.link.own_down_kbps = link.own_down_kbps;
  view.link.quota_bytes = link.volume_left;
  view.schedulable = schedulable(node), view.version = node.revision, view.backoff_until = node.backoff_until;
  view.whole = state.live_leases(node.id).empty();
  view.offer = offer_of(state, node);
  return view;
}

scheduler::LeaseView view_of(const State& state, const Lease& lease) {
  scheduler::LeaseView view;
  view.lease = lease.id, view.cluster = lease.cluster, view.node = lease.node;
  if (const Slot* slot = state.find_slot(lease.slot)) view.role = slot->role, view.group = slot->group;
  view.resources = lease.resources, view.devices = lease.devices, view.since = lease.granted_at;
  view.share_milli = lease.share_milli;
  view.leaving = lease.want == LeaseWant::Drain || lease.want == LeaseWant::Stop;
  view.moved = view.leaving && lease.reason == kMoved;
  view.preempted = view.moved || (view.leaving && lease.reason == kPreempted);
  if (const Cluster* cluster = state.find_cluster(lease.cluster)) {
    view.tier = cluster->spec.tier, view.project = cluster->project;
    if (const auto it = state.projects.find(cluster->project); it != state.projects.end()) view.tenant = it->second.org;
  }
  return view;
}

void add_bundles(std::vector<scheduler::Bundle>& out, SlotRole role, const std::string& group,
                 const NodeRequest& request, std::uint32_t count, bool failover = false) {
  if (count > 0) out.push_back({role, group, request, count, failover});
}

scheduler::Request terms_of_request(const State& state, ClusterId id, const Cluster& cluster) {
  scheduler::Request r;
  const ClusterSpec& spec = cluster.spec;
  r.cluster = id, r.project = cluster.project, r.tier = spec.tier, r.priority = spec.priority,
  r.since = cluster.created_at;
  if (const auto it = state.projects.find(cluster.project); it != state.projects.end()) r.tenant = it->second.org;
  r.pool = spec.pool, r.arch = spec.arch, r.runtime = spec.runtime, r.image = spec.image, r.egress = spec.egress;
  r.policy = spec.policy, r.min_trust = spec.min_trust;
  r.max_price = spec.max_price, r.currency = spec.currency, r.may_end_early = spec.may_end_early;
  r.pair_kbps = spec.pair_kbps;
  r.longest = longest_of(state, cluster);
  return r;
}

// What its workers would need elsewhere; nothing, where they may not be moved.
scheduler::ShapeChanged shape_of(const State& state, ClusterId id) {
  scheduler::ShapeChanged out{id, {}};
  const Cluster* cluster = state.find_cluster(id);
  if (cluster == nullptr || cluster->state != ClusterState::Running || cluster->spec.tier < scheduler::kPreemptibleTier)
    return out;
  out.request = terms_of_request(state, id, *cluster);
  for (const WorkerGroup& group : cluster->spec.groups)
    add_bundles(out.request.gang, SlotRole::Worker, group.name, group.request, 1);
  return out;
}

scheduler::Change request_of(const State& state, ClusterId id, const Cluster* cluster) {
  if (cluster == nullptr) return scheduler::RequestGone{id};
  const auto find = [&](NodeId node) { return state.find_node(node); };
  const Missing missing = within_quota(state, *cluster, missing_of(state, *cluster, find));
  // What runs goes on when a policy turns against its image, and gets no more machines.
  if (missing.none() || (cluster->state == ClusterState::Running && image_refusal(state, *cluster)))
    return scheduler::RequestGone{id};
  scheduler::Request r = terms_of_request(state, id, *cluster);
  const ClusterSpec& spec = cluster->spec;
  auto& bundles = cluster->state == ClusterState::Queued ? r.gang : r.grow;
  if (missing.head) add_bundles(bundles, SlotRole::Head, "", spec.head, 1);
  const auto failovers = failovers_of(state, *cluster, find);
  for (const WorkerGroup& group : spec.groups) {
    const auto it = missing.workers.find(group.name);
    if (it == missing.workers.end()) continue;
    const auto lost = failovers.find(group.name);
    const std::uint32_t replaced = lost == failovers.end() ? 0 : std::min(lost->second, it->second);
    add_bundles(bundles, SlotRole::Worker, group.name, group.request, replaced, true);
    add_bundles(bundles, SlotRole::Worker, group.name, group.request, it->second - replaced);
  }
  if (missing.spares > 0)
    add_bundles(bundles, SlotRole::Spare, spec.groups.front().name, spec.groups.front().request, missing.spares, true);
  for (const LeaseId lease : state.cluster_leases(id))
    if (const Lease* found = state.find_lease(lease); found != nullptr && found->end == LeaseEnd::None)
      r.avoid.push_back(found->node);
  for (auto it = state.backoffs.lower_bound({id, NodeId{}}); it != state.backoffs.end() && it->first.first == id; ++it)
    if (it->second.until.ms != 0) r.backoff.emplace_back(it->first.second, it->second.until);
  return scheduler::RequestChanged{std::move(r)};
}

scheduler::Change request_of(const State& state, ClusterId id) {
  return request_of(state, id, state.find_cluster(id));
}

scheduler::Change lease_of(const State& state, LeaseId id) {
  const Lease* lease = state.find_lease(id);
  if (lease == nullptr) return scheduler::LeaseGone{id};
  if (lease->end != LeaseEnd::None) return scheduler::LeaseGone{id, lease->ended_at};
  return scheduler::LeaseChanged{view_of(state, *lease)};
}

// The end that is promised: of the cluster's life, or of the one job that a cluster was made for. While one of the two
// has not begun, how long it can last from its start.
scheduler::Change terms_of(const State& state, ClusterId id) {
  const Cluster* cluster = state.find_cluster(id);
  if (cluster == nullptr || (cluster->state != ClusterState::Running && cluster->state != ClusterState::Starting))
    return scheduler::TermsGone{id};
  WallTime end;
  if (const auto timer = state.timers.find({TimerKind::Cluster, id.value, 0});
      timer != state.timers.end() && cluster->state == ClusterState::Running)
    end = timer->second;
  const Job* job = cluster->ephemeral_for ? state.find_job(cluster->ephemeral_for) : nullptr;
  if (job != nullptr && job->state == JobState::Running && job->spec.timeout.count() > 0 && job->spec.retries == 0) {
    const WallTime timeout = job->started_at + job->spec.timeout;
    end = end.ms == 0 ? timeout : std::min(end, timeout);
  }
  const bool begun = cluster->state == ClusterState::Running && (job == nullptr || job->state == JobState::Running);
  return scheduler::TermsChanged{id, end, begun ? Millis{0} : longest_of(state, *cluster)};
}

// Ended clusters count until they are archived: the recent past is what is expected.
scheduler::Change demand_of(const State& state, ClusterId id) {
  scheduler::DemandChanged demand{id, {}};
  if (const Cluster* cluster = state.find_cluster(id)) {
    demand.needs.emplace_back(cluster->spec.head, 1);
    for (const WorkerGroup& group : cluster->spec.groups)
      demand.needs.emplace_back(group.request, std::max<std::uint32_t>(group.min, 1));
  }
  return demand;
}

scheduler::Change share_of(const Org& org) {
  return scheduler::ShareChanged{org.id, {}, true, org.share};
}
scheduler::Change share_of(const Project& project) {
  return scheduler::ShareChanged{project.org, project.id, false, project.share};
}

// The order among equal machines is another one every day (UTC), so that no supplier is always first.
scheduler::Change day_of(const State& state) {
  return scheduler::DayChanged{static_cast<std::uint64_t>(state.last_wall.ms / kDayMs)};
}

scheduler::Change tier_shares_of(const State& state) {
  scheduler::TierSharesChanged out;
  for (const auto& [tier, permille] : state.tier_shares) out.permille.at(tier) = static_cast<std::int32_t>(permille);
  return out;
}

scheduler::Change headroom_of(const State& state) {
  scheduler::HeadroomChanged out;
  for (const auto& [model, row] : state.headroom) out.rows.push_back(row);
  return out;
}

struct Affected {
  const State& state;
  std::set<NodeId> nodes;
  std::set<ClusterId> clusters, demands, terms;
  std::set<LeaseId> leases;
  bool freeze = false;
  std::vector<scheduler::Change> shares = {};
  bool headroom = false, tier_shares = false;

  void slot(SlotId id) {
    if (const Slot* found = state.find_slot(id)) clusters.insert(found->cluster), leases.insert(found->lease);
  }
  void lease(LeaseId id) {
    if (const Lease* found = state.find_lease(id)) clusters.insert(found->cluster);
  }
  // What is held of a quota has changed: for some there is room now, for others no more.
  void quota(ClusterId id) {
    if (const Cluster* found = state.find_cluster(id))
      for (const ClusterId each : sharing_quota(state, found->project)) clusters.insert(each);
  }
  void quota_of(ProjectId id) {
    for (const ClusterId each : living_clusters(state, id)) clusters.insert(each);
  }
  void operator()(const QuotaSet& e) {
    if (const auto project = state.projects.find(e.project); project != state.projects.end()) {
      shares.push_back(share_of(project->second));
      return quota_of(e.project);
    }
    if (const auto org = state.orgs.find(e.org); org != state.orgs.end()) shares.push_back(share_of(org->second));
    for (const ProjectId project : projects_of(state, e.org)) quota_of(project);
  }
  void operator()(const ImagePolicySet& e) {
    for (const ClusterId id : bound_by(state, e)) clusters.insert(id);
  }
  void operator()(const NodeEnrolled& e) { nodes.insert(e.node.id); }
  void operator()(const NodeFactsChanged& e) { nodes.insert(e.node); }
  void operator()(const NodeTierChanged& e) { nodes.insert(e.node); }
  void operator()(const NodeOffered& e) { nodes.insert(e.node); }
  void operator()(const TimerSet& e) {
    if (e.kind == TimerKind::Offer) nodes.insert(NodeId{e.id});
  }
  void operator()(const NodeStruck& e) { nodes.insert(e.node); }
  void operator()(const NodeStateChanged& e) {
    nodes.insert(e.node);
    for (const LeaseId id : state.live_leases(e.node)) lease(id);  // lost members are missing members
    if (e.state != NodeState::Online) return;
    for (const ProjectId project : state.limited_projects)  // a smaller machine may be what fits a quota
      for (const ClusterId id : living_clusters(state, project))
        if (const Cluster* found = state.find_cluster(id); found != nullptr && takes_whole_machines(found->spec))
          clusters.insert(id);
  }
  void operator()(const FreezeSet&) { freeze = true; }
  void operator()(const HeadroomSet&) { headroom = true; }
  void operator()(const TierShareSet&) { tier_shares = true; }
  void operator()(const BackoffSet& e) { clusters.insert(e.cluster); }
  void operator()(const BackoffEnded& e) { clusters.insert(e.cluster); }
  void operator()(const ClusterCreated& e) { clusters.insert(e.cluster.id), demands.insert(e.cluster.id); }
  void operator()(const ClusterUpdated& e) {
    clusters.insert(e.cluster), demands.insert(e.cluster), terms.insert(e.cluster);
  }
  void operator()(const ClusterStateChanged& e) {
    clusters.insert(e.cluster), terms.insert(e.cluster);
    quota(e.cluster);
  }
  void operator()(const ClusterWanted& e) { clusters.insert(e.cluster); }
  void operator()(const ReplacementSought& e) { clusters.insert(e.cluster); }
  void operator()(const LeaseGranted& e) {
    nodes.insert(e.lease.node), leases.insert(e.lease.id);
    // The gang of a start is told when its last event, the change to Starting, is folded.
    const Cluster* cluster = state.find_cluster(e.lease.cluster);
    if (cluster == nullptr || cluster->state == ClusterState::Queued) return;
    clusters.insert(e.lease.cluster);
    quota(e.lease.cluster);
  }
  void operator()(const SlotLeft& e) { slot(e.slot); }
  void operator()(const SlotPromoted& e) { slot(e.slot); }
  void operator()(const LeaseWantChanged& e) { lease(e.lease), leases.insert(e.lease); }
  void operator()(const JobStateChanged& e) {
    if (const Job* job = state.find_job(e.job); job != nullptr && job->spec.ephemeral) terms.insert(job->cluster);
  }
  void operator()(const LeaseEnded& e) {
    lease(e.lease), leases.insert(e.lease);
    if (const Lease* found = state.find_lease(e.lease)) nodes.insert(found->node), quota(found->cluster);
  }
  void operator()(const Archived& e) {
    clusters.insert(e.clusters.begin(), e.clusters.end());
    demands.insert(e.clusters.begin(), e.clusters.end());
    terms.insert(e.clusters.begin(), e.clusters.end()), leases.insert(e.leases.begin(), e.leases.end());
  }
  void operator()(const auto&) {}
};

}  // namespace

std::vector<scheduler::Change> planner_changes(const State& state, const Event& event) {
  Affected affected{state, {}, {}, {}, {}, {}, false};
  std::visit(affected, event);
  std::vector<scheduler::Change> out{day_of(state)};
  out.insert(out.end(), affected.shares.begin(), affected.shares.end());
  for (const NodeId id : affected.nodes)
    if (const Node* node = state.find_node(id)) out.emplace_back(scheduler::NodeChanged{view_of(state, *node)});
  for (const LeaseId id : affected.leases) out.push_back(lease_of(state, id));
  for (const ClusterId id : affected.terms) out.push_back(terms_of(state, id)), out.push_back(shape_of(state, id));
  for (const ClusterId id : affected.demands) out.push_back(demand_of(state, id));
  for (const ClusterId id : affected.clusters) out.push_back(request_of(state, id));
  if (affected.freeze) out.emplace_back(scheduler::FreezeChanged{state.frozen});
  if (affected.headroom) out.push_back(headroom_of(state));
  if (affected.tier_shares) out.push_back(tier_shares_of(state));
  return out;
}

std::vector<scheduler::Change> planner_snapshot(const State& state) {
  std::vector<scheduler::Change> out;
  planner_snapshot(state, [&](scheduler::Change change) { out.push_back(std::move(change)); });
  return out;
}

void planner_snapshot(const State& state, const std::function<void(scheduler::Change)>& each) {
  each(day_of(state));
  for (const auto& [id, org] : state.orgs)
    if (org.share != Share{}) each(share_of(org));
  for (const auto& [id, project] : state.projects)
    if (project.share != Share{}) each(share_of(project));
  for (const auto& [id, node] : state.nodes) each(scheduler::NodeChanged{view_of(state, node)});
  for (const auto& [id, lease] : state.leases) {  // ended ones too: what was held lately counts
    if (lease.end != LeaseEnd::None && state.find_cluster(lease.cluster) == nullptr) continue;
    each(scheduler::LeaseChanged{view_of(state, lease)});
    if (lease.end != LeaseEnd::None) each(scheduler::LeaseGone{id, lease.ended_at});
  }
  for (const auto& [id, cluster] : state.clusters)
    if (auto change = terms_of(state, id); std::holds_alternative<scheduler::TermsChanged>(change))
      each(std::move(change));
  for (const auto& [id, cluster] : state.clusters)
    if (auto shape = shape_of(state, id); !shape.request.gang.empty()) each(std::move(shape));
  for (const auto& [id, cluster] : state.clusters) each(demand_of(state, id));
  for (const auto& [id, cluster] : state.clusters)
    if (auto change = request_of(state, id); std::holds_alternative<scheduler::RequestChanged>(change))
      each(std::move(change));
  each(scheduler::FreezeChanged{state.frozen});
  if (!state.headroom.empty()) each(headroom_of(state));
  if (!state.tier_shares.empty()) each(tier_shares_of(state));
}

Result<WhatIf> what_if(const State& state, const CreateCluster& command, const Actor& actor, Now now) {
  CreateCluster asked = command;  // a cluster of that name may run already
  for (int i = 1; state.cluster_by_name.contains({asked.project, asked.spec.name}) && i < 1'000; ++i)
    asked.spec.name = "what-if-" + std::to_string(i);
  const Decision decision = TRY(decide(state, asked, actor, now));
  WhatIf out;
  for (const Event& event : decision.events)
    if (const auto* made = std::get_if<ClusterCreated>(&event)) out.cluster = made->cluster;
  out.cluster.spec.name = command.spec.name;
  out.quota = quota_wait(state, out.cluster);
  out.request = request_of(state, out.cluster.id, &out.cluster);
  return out;
}

}  // namespace muster::control
