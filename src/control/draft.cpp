#include "control/draft.h"

namespace muster::control {
namespace {
constexpr std::size_t kQueuedJobsScan = 256;  // waiting for a retry or not
}

Draft::Draft(const State& from, const Actor& actor, WallTime at)
    : base(from), wall(at), context_{from.seq, at, from.leader_epoch, actor} {
  state.seq = from.seq, state.last_wall = from.last_wall, state.incarnation = from.incarnation,
  state.leader_epoch = from.leader_epoch;
  state.format_version = from.format_version, state.frozen = from.frozen, state.frozen_since = from.frozen_since,
  state.last = from.last, state.requests_recorded = from.requests_recorded;
}

void Draft::pull_timer(TimerKind kind, std::uint64_t id) {
  const TimerKey key{kind, id, 0};
  if (const auto it = base.timers.find(key); it != base.timers.end()) {
    state.timers[key] = it->second;
    state.timers_due.emplace(it->second, key);
  }
}

bool Draft::pull(LeaseId id) {
  if (state.leases.contains(id)) return true;
  const Lease* lease = base.find_lease(id);
  if (lease == nullptr) return false;
  state.leases[id] = *lease;
  state.leases_by_cluster.emplace(lease->cluster, id);
  if (lease->end == LeaseEnd::None) state.leases_by_node.emplace(lease->node, id);
  if (const Slot* slot = base.find_slot(lease->slot)) state.slots[slot->id] = *slot;
  pull_timer(TimerKind::Lease, id.value);
  return true;
}

bool Draft::pull(JobId id) {
  if (state.jobs.contains(id)) return true;
  const Job* job = base.find_job(id);
  if (job == nullptr) return false;
  state.jobs[id] = *job;
  if (!terminal(job->state))
    (job->state == JobState::Queued ? state.queued_jobs : state.active_jobs).emplace(job->cluster, id);
  pull_timer(TimerKind::Job, id.value);
  return true;
}

bool Draft::pull(NodeId id) {
  if (state.nodes.contains(id)) return true;
  const Node* node = base.find_node(id);
  if (node == nullptr) return false;
  state.nodes[id] = *node;
  for (const LeaseId lease : base.live_leases(id)) pull(lease);
  pull_timer(TimerKind::Offer, id.value);
  return true;
}

bool Draft::pull(ClusterId id) {
  if (state.clusters.contains(id)) return true;
  const Cluster* cluster = base.find_cluster(id);
  if (cluster == nullptr) return false;
  state.clusters[id] = *cluster;
  if (!terminal(cluster->state)) state.cluster_by_name[{cluster->project, cluster->spec.name}] = id;
  for (const LeaseId lease : base.cluster_leases(id))
    if (const Lease* found = base.find_lease(lease); found != nullptr && found->end == LeaseEnd::None) pull(lease);
  for (auto it = base.active_jobs.lower_bound({id, JobId{}}); it != base.active_jobs.end() && it->first == id; ++it)
    pull(it->second);
  std::size_t seen = 0;
  for (auto it = base.queued_jobs.lower_bound({id, JobId{}});
       it != base.queued_jobs.end() && it->first == id && seen < kQueuedJobsScan; ++it, ++seen)
    pull(it->second);
  pull_timer(TimerKind::Cluster, id.value), pull_timer(TimerKind::Budget, id.value);
  return true;
}

void Draft::emit(Event event) {
  apply(state, event, context_);
  events.push_back(std::move(event));
}

const Node* Draft::node(NodeId id) const {
  const Node* pulled = state.find_node(id);
  return pulled != nullptr ? pulled : base.find_node(id);
}
const Lease* Draft::lease(LeaseId id) const {
  const Lease* pulled = state.find_lease(id);
  return pulled != nullptr ? pulled : base.find_lease(id);
}
const Slot* Draft::slot(SlotId id) const {
  const Slot* pulled = state.find_slot(id);
  return pulled != nullptr ? pulled : base.find_slot(id);
}
// The draft's own index holds only what its events changed, by project.
QuotaBounds Draft::quota(ProjectId id) const {
  QuotaBounds bounds = quota_bounds(base, id);
  const auto asked = base.projects.find(id);
  for (const auto& [project, change] : state.held_by_project) {
    if (project == id) add(bounds.in_project, change);
    const auto found = base.projects.find(project);
    if (found != base.projects.end() && asked != base.projects.end() && found->second.org == asked->second.org)
      add(bounds.in_org, change);
  }
  return bounds;
}
Backoff Draft::backoff(ClusterId cluster, NodeId node) const {
  for (const State* s : {static_cast<const State*>(&state), &base})
    if (const auto it = s->backoffs.find({cluster, node}); it != s->backoffs.end()) return it->second;
  return {};
}
std::uint32_t Draft::failures(ClusterId id) const {
  std::map<NodeId, std::uint32_t> by_node;
  for (const State* s : {&base, static_cast<const State*>(&state)})
    for (auto it = s->backoffs.lower_bound({id, NodeId{}}); it != s->backoffs.end() && it->first.first == id; ++it)
      by_node[it->first.second] = it->second.failures;
  std::uint32_t sum = 0;
  for (const auto& [node, count] : by_node) sum += count;
  return sum;
}

}  // namespace muster::control
