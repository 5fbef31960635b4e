#include "control/life.h"

#include <algorithm>

#include "control/mutants.h"
#include "control/terms.h"

namespace muster::control {
namespace {

bool live(ClusterState state) {
  return state == ClusterState::Queued || state == ClusterState::Starting || state == ClusterState::Running;
}

// Why a running cluster is not all it should be; empty = all well.
std::string shortcoming(const Draft& d, const Cluster& cluster, const Lease* head,
                        const std::map<std::string, std::uint32_t>& ready) {
  if (head != nullptr) {
    const Node* node = d.node(head->node);
    if (node != nullptr && node->state == NodeState::Lost) return "head_unreachable";
    if (head->phase != LeasePhase::Ready && cluster.state == ClusterState::Running) return "head_restarting";
    if (cluster.reason == "head_unreachable" && cluster.state != ClusterState::Running) return {};
  }
  if (cluster.state != ClusterState::Running) return cluster.reason;
  for (const WorkerGroup& group : cluster.spec.groups) {
    const auto it = ready.find(group.name);
    if (group.min > (it == ready.end() ? 0 : it->second)) return "workers_below_min";
  }
  return {};
}

std::vector<SlotId> slots_of(const Cluster& cluster) {
  return cluster.slots;
}  // a copy: the steps change the list

// More than wanted: the newest leave first, they hold the least state.
void shed_surplus(Draft& d, ClusterId id) {
  if (d.state.frozen) return;
  std::map<std::string, std::uint32_t> keep = d.cluster(id).wanted;
  std::uint32_t spares = d.cluster(id).spec.spares;
  for (const SlotId slot_id : slots_of(d.cluster(id))) {
    const Slot* slot = d.slot(slot_id);
    const Lease* lease = slot == nullptr ? nullptr : d.lease(slot->lease);
    if (lease == nullptr || lease->want == LeaseWant::Drain || lease->want == LeaseWant::Stop) continue;
    if (slot->role == SlotRole::Worker) {
      auto& left = keep[slot->group];
      if (left == 0)
        drain_slot(d, slot_id, "scaled_down");
      else
        --left;
    } else if (slot->role == SlotRole::Spare) {
      if (spares == 0)
        lose_slot(d, slot_id, "scaled_down");
      else
        --spares;
    }
  }
}

void stop_leases(Draft& d, ClusterId id, const std::string& reason) {
  for (const LeaseId lease : d.state.cluster_leases(id))
    if (const Lease* found = d.state.find_lease(lease);
        found != nullptr && found->end == LeaseEnd::None && found->want != LeaseWant::Stop)
      d.emit(LeaseWantChanged{lease, LeaseWant::Stop, reason, {}});
}

bool any_live_lease(const Draft& d, ClusterId id) {
  const auto leases = d.state.cluster_leases(id);
  return std::any_of(leases.begin(), leases.end(),
                     [&](LeaseId lease) { return d.state.find_lease(lease)->end == LeaseEnd::None; });
}

}  // namespace

const WorkerGroup* find_group(const ClusterSpec& spec, const std::string& name) {
  for (const WorkerGroup& group : spec.groups)
    if (group.name == name) return &group;
  return nullptr;
}

bool fits(const Resources& need, const Resources& have) {
  return need.cpu_milli <= have.cpu_milli && need.memory_bytes <= have.memory_bytes && need.gpus <= have.gpus &&
         need.disk_bytes <= have.disk_bytes;
}

WallTime end_of_life(const Cluster& cluster, WallTime now) {
  if (cluster.spec.max_lifetime.count() == 0) return {};
  return (cluster.started_at.ms != 0 ? cluster.started_at : now) + cluster.spec.max_lifetime;
}

SlotId worker_to_replace(const State& state, const Cluster& cluster, const FindNode& find_node) {
  if (!cluster.replacing || state.frozen || cluster.state != ClusterState::Running) return {};
  const Slot* slot = state.find_slot(cluster.replacing);
  const Lease* lease = slot == nullptr ? nullptr : state.find_lease(slot->lease);
  const Node* node = lease == nullptr ? nullptr : find_node(lease->node);
  const bool works = node != nullptr && node->state != NodeState::Lost && lease->want == LeaseWant::Run &&
                     lease->phase == LeasePhase::Ready && lease->end == LeaseEnd::None &&
                     slot->role == SlotRole::Worker;
  return works ? cluster.replacing : SlotId{};
}

Missing missing_of(const State& state, const Cluster& cluster, const FindNode& find_node) {
  Missing missing;
  if (!live(cluster.state)) return missing;
  std::map<std::string, std::uint32_t> have;
  std::uint32_t spares = 0;
  bool head = false;
  const SlotId replaced = worker_to_replace(state, cluster, find_node);
  for (const SlotId id : cluster.slots) {
    const Slot* slot = state.find_slot(id);
    const Lease* lease = slot == nullptr ? nullptr : state.find_lease(slot->lease);
    if (lease == nullptr || (replaced && id == replaced)) continue;
    if (slot->role == SlotRole::Head) head = true;
    if (lease->want != LeaseWant::Run && lease->want != LeaseWant::Standby) continue;
    const Node* node = find_node(lease->node);
    if (node != nullptr && node->state == NodeState::Lost) continue;
    if (slot->role == SlotRole::Worker) ++have[slot->group];
    if (slot->role == SlotRole::Spare) ++spares;
  }
  missing.head = !head && cluster.state == ClusterState::Queued;
  for (const WorkerGroup& group : cluster.spec.groups) {
    const auto it = cluster.wanted.find(group.name);
    const std::uint32_t wanted = it == cluster.wanted.end() ? group.min : it->second;
    if (wanted > have[group.name]) missing.workers[group.name] = wanted - have[group.name];
  }
  // Spares come when the cluster runs: until then they would only take time from those it waits for.
  if (cluster.state == ClusterState::Running && cluster.spec.spares > spares)
    missing.spares = cluster.spec.spares - spares;
  return missing;
}

std::map<std::string, std::uint32_t> failovers_of(const State& state, const Cluster& cluster,
                                                  const FindNode& find_node) {
  std::map<std::string, std::uint32_t> out;
  if (cluster.state != ClusterState::Starting && cluster.state != ClusterState::Running) return out;
  const Missing missing = missing_of(state, cluster, find_node);
  std::map<std::string, std::uint32_t> lost;
  for (const SlotId id : cluster.slots) {
    const Slot* slot = state.find_slot(id);
    const Lease* lease = slot == nullptr ? nullptr : state.find_lease(slot->lease);
    if (lease == nullptr || slot->role != SlotRole::Worker || lease->want != LeaseWant::Run) continue;
    const Node* node = find_node(lease->node);
    if (node != nullptr && node->state == NodeState::Lost) ++lost[slot->group];
  }
  const Slot* replaced = state.find_slot(worker_to_replace(state, cluster, find_node));  // it is there: not lost
  for (const WorkerGroup& group : cluster.spec.groups) {
    const auto found = missing.workers.find(group.name);
    if (found == missing.workers.end()) continue;
    const std::uint32_t lacks = found->second - (replaced != nullptr && replaced->group == group.name ? 1 : 0);
    const auto it = cluster.wanted.find(group.name);
    const std::uint32_t wanted = it == cluster.wanted.end() ? group.min : it->second;
    const std::uint32_t have = wanted - lacks, least = std::min(wanted, group.min);
    const std::uint32_t below = least > have ? least - have : 0;
    if (const std::uint32_t n = std::min(lacks, std::max(lost[group.name], below)); n > 0) out[group.name] = n;
  }
  return out;
}

namespace {
// Would the group lack a worker without this one? Others may have come back since it was replaced.
bool missed(const Draft& d, const Cluster& cluster, const WorkerGroup& group, SlotId without) {
  const auto it = cluster.wanted.find(group.name);
  const std::uint32_t wanted = it == cluster.wanted.end() ? group.min : it->second;
  std::uint32_t have = 0;
  for (const SlotId id : cluster.slots) {
    const Slot* slot = d.slot(id);
    const Lease* lease = slot == nullptr || id == without ? nullptr : d.lease(slot->lease);
    if (lease == nullptr || slot->role != SlotRole::Worker || slot->group != group.name) continue;
    const Node* node = d.node(lease->node);
    if (lease->want == LeaseWant::Run && node != nullptr && node->state != NodeState::Lost) ++have;
  }
  return have < wanted;
}
}  // namespace

bool replace_by_spare(Draft& d, SlotId lost_id, const std::string& reason) {
  const Slot lost = *d.slot(lost_id);
  const Cluster& cluster = d.cluster(lost.cluster);
  const WorkerGroup* group = find_group(cluster.spec, lost.group);
  if (lost.role != SlotRole::Worker || group == nullptr || !live(cluster.state)) return false;
  if (!missed(d, cluster, *group, lost_id)) return false;
  for (const SlotId id : slots_of(cluster)) {
    const Slot* spare = d.slot(id);
    const Lease* lease = spare == nullptr ? nullptr : d.lease(spare->lease);
    if (lease == nullptr || spare->role != SlotRole::Spare || !spare->in_roster) continue;
    if (lease->phase != LeasePhase::Standby || lease->want != LeaseWant::Standby) continue;
    const Node* node = d.node(lease->node);
    if (node == nullptr || node->state != NodeState::Online) continue;
    if (!group->request.whole_machine && !fits(group->request.resources, lease->resources)) continue;
    d.emit(SlotLeft{lost_id, reason, cluster.roster_epoch + (lost.in_roster ? 1 : 0)});
    d.emit(SlotPromoted{id, lost.group, cluster.roster_epoch + 1});
    return true;
  }
  return false;
}

void lose_slot(Draft& d, SlotId id, const std::string& reason) {
  const Slot* slot = d.slot(id);
  if (slot == nullptr) return;
  const Cluster& cluster = d.cluster(slot->cluster);
  if (std::find(cluster.slots.begin(), cluster.slots.end(), id) == cluster.slots.end()) return;  // it left before
  const Lease* lease = d.lease(slot->lease);
  const bool leaving = lease == nullptr || lease->want == LeaseWant::Drain;  // nobody misses it
  if (!leaving && replace_by_spare(d, id, reason)) return;
  d.emit(SlotLeft{id, reason, cluster.roster_epoch + (slot->in_roster ? 1 : 0)});
}

void drain_slot(Draft& d, SlotId id, const std::string& reason) {
  const Slot* slot = d.slot(id);
  const Lease* lease = slot == nullptr ? nullptr : d.lease(slot->lease);
  if (lease == nullptr || lease->want != LeaseWant::Run) return;
  if (lease->phase < LeasePhase::Starting) return lose_slot(d, id, reason);  // Ray is not in it yet
  d.emit(LeaseWantChanged{lease->id, LeaseWant::Drain, reason, d.wall + kDrainMax});
}

void end_lease(Draft& d, LeaseId id, LeaseEnd end, const std::string& reason) {
  const Lease* lease = d.lease(id);
  if (lease == nullptr || lease->end != LeaseEnd::None) return;
  if (MUSTER_MUTANT(mutants::kStopNeverConfirmed) && end == LeaseEnd::Confirmed) return;
  if (d.pull(lease->cluster) && live(d.cluster(lease->cluster).state)) lose_slot(d, lease->slot, reason);
  const ClusterId cluster = lease->cluster;
  d.emit(LeaseEnded{id, end, reason, d.wall + kArchiveAfter});
  if (d.pull(cluster)) watch_budget(d, cluster);
}

void back_off(Draft& d, ClusterId cluster, NodeId node) {
  const std::uint32_t failures = std::min<std::uint32_t>(d.backoff(cluster, node).failures + 1, 1000);
  const Millis pause =
      std::min(kBackoffMax, kBackoffFirst * (std::int64_t{1} << std::min<std::uint32_t>(failures - 1, 10)));
  d.emit(BackoffSet{cluster, node, failures, d.wall + pause});
}

void finish_job(Draft& d, JobId id, JobState state, std::int32_t exit_code, const std::string& reason) {
  const Job* found = d.state.find_job(id);
  if (found == nullptr || terminal(found->state)) return;
  const ClusterId cluster = found->cluster;
  d.emit(JobStateChanged{id, state, found->attempt, exit_code, reason, d.wall + kArchiveAfter});
  if (found->spec.ephemeral && d.pull(cluster) && d.cluster(cluster).ephemeral_for == id &&
      live(d.cluster(cluster).state))
    stop_cluster(d, cluster, "job_ended");
}

void end_jobs(Draft& d, ClusterId id) {
  std::size_t ended = 0;
  using Index = const std::set<std::pair<ClusterId, JobId>>*;
  for (const Index index : {Index{&d.state.active_jobs}, Index{&d.state.queued_jobs}, Index{&d.base.active_jobs},
                            Index{&d.base.queued_jobs}}) {
    std::vector<JobId> jobs;
    for (auto it = index->lower_bound({id, JobId{}});
         it != index->end() && it->first == id && ended + jobs.size() < kJobsEndedAtOnce; ++it) {
      const Job* drafted = d.state.find_job(it->second);
      if (drafted == nullptr || !terminal(drafted->state)) jobs.push_back(it->second);
    }
    for (const JobId job : jobs) {
      d.pull(job);
      const Job& found = d.state.jobs.at(job);
      if (terminal(found.state)) continue;
      ++ended;
      const bool asked = found.state == JobState::Stopping && found.reason != "timeout";
      finish_job(d, job, asked ? JobState::Stopped : JobState::Failed, -1, asked ? found.reason : "cluster_gone");
    }
  }
  if (ended >= kJobsEndedAtOnce) d.emit(TimerSet{TimerKind::ClusterJobs, id.value, d.wall});  // Tick goes on
}

void stop_cluster(Draft& d, ClusterId id, const std::string& reason) {
  if (!live(d.cluster(id).state)) return;
  d.emit(ClusterStateChanged{id, ClusterState::Stopping, reason, {}});
  stop_leases(d, id, reason);
  end_jobs(d, id);
  settle(d, id);
}

void fail_cluster(Draft& d, ClusterId id, const std::string& reason) {
  if (!live(d.cluster(id).state)) return;
  d.emit(ClusterStateChanged{id, ClusterState::Failed, reason, d.wall + kArchiveAfter});
  stop_leases(d, id, reason);
  end_jobs(d, id);
}

void start_jobs(Draft& d, ClusterId id) {
  const Cluster& cluster = d.cluster(id);
  const Slot* head = d.state.find_head(cluster);
  const Lease* lease = head == nullptr ? nullptr : d.lease(head->lease);
  if (cluster.state != ClusterState::Running || lease == nullptr || lease->phase != LeasePhase::Ready ||
      lease->want != LeaseWant::Run)
    return;
  auto active = static_cast<std::size_t>(std::distance(d.state.active_jobs.lower_bound({id, JobId{}}),
                                                       d.state.active_jobs.lower_bound({{id.value + 1}, JobId{}})));
  std::vector<JobId> due;
  for (auto it = d.state.queued_jobs.lower_bound({id, JobId{}});
       it != d.state.queued_jobs.end() && it->first == id && active < kActiveJobsMax; ++it) {
    const auto timer = d.state.timers.find({TimerKind::Job, it->second.value, 0});
    if (timer != d.state.timers.end() && timer->second > d.wall) continue;  // waits for its retry
    due.push_back(it->second);
    ++active;
  }
  for (const JobId job : due)
    d.emit(JobStateChanged{job, JobState::Starting, d.state.jobs.at(job).attempt + 1, -1, "", {}});
}

void settle(Draft& d, ClusterId id) {
  const Cluster& cluster = d.cluster(id);
  if (cluster.state == ClusterState::Stopping) {
    if (!any_live_lease(d, id))
      d.emit(ClusterStateChanged{id, ClusterState::Stopped, cluster.reason, d.wall + kArchiveAfter});
    return;
  }
  if (cluster.state != ClusterState::Starting && cluster.state != ClusterState::Running) return;
  std::map<std::string, std::uint32_t> ready;
  const Lease* head = nullptr;
  for (const SlotId slot_id : cluster.slots) {
    const Slot* slot = d.slot(slot_id);
    const Lease* lease = slot == nullptr ? nullptr : d.lease(slot->lease);
    if (lease == nullptr) continue;
    if (slot->role == SlotRole::Head) head = lease;
    if (slot->role == SlotRole::Worker && lease->phase == LeasePhase::Ready && lease->want == LeaseWant::Run)
      ++ready[slot->group];
  }
  const bool head_ready = head != nullptr && head->phase == LeasePhase::Ready;
  const bool complete =
      head_ready && std::all_of(cluster.spec.groups.begin(), cluster.spec.groups.end(), [&](const WorkerGroup& group) {
        return group.min == 0 || (ready.contains(group.name) && ready.at(group.name) >= group.min);
      });
  if (cluster.state == ClusterState::Starting && complete)
    d.emit(ClusterStateChanged{id, ClusterState::Running, "", end_of_life(cluster, d.wall)});
  if (const std::string reason = shortcoming(d, cluster, head, ready); reason != cluster.reason)
    d.emit(ClusterStateChanged{id, cluster.state, reason,
                               cluster.state == ClusterState::Running ? end_of_life(cluster, d.wall) : WallTime{}});
  shed_surplus(d, id);
  start_jobs(d, id);
}

}  // namespace muster::control
