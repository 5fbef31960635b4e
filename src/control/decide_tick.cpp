// What time alone brings about. Every due timer is either set anew by its step or cleared, so no timer fires twice.
#include "control/decide.h"
#include "control/terms.h"

namespace muster::control {
namespace {

constexpr std::size_t kTimersAtOnce = 256, kEventsAtOnce = 2000;
constexpr std::uint64_t kRequestsAtOnce = 2000;
constexpr Millis kRequestAge{std::int64_t{24} * 3'600'000};
constexpr Millis kLookAgain{600'000}, kFrozenAgain{30'000};

std::size_t size(const Archived& a) {
  return a.clusters.size() + a.leases.size() + a.jobs.size() + a.tokens.size();
}

void on_cluster(Draft& d, ClusterId id, Archived& archive) {
  if (!d.pull(id)) return d.emit(TimerSet{TimerKind::Cluster, id.value, {}});
  const Cluster& cluster = d.cluster(id);
  if (!terminal(cluster.state)) return stop_cluster(d, id, "max_lifetime");
  bool busy = false;
  for (const LeaseId lease : d.base.cluster_leases(id)) busy = busy || d.base.find_lease(lease)->end == LeaseEnd::None;
  const auto has_jobs = [&](const auto& index) {
    const auto it = index.lower_bound({id, JobId{}});
    return it != index.end() && it->first == id;
  };
  busy = busy || has_jobs(d.base.active_jobs) || has_jobs(d.base.queued_jobs);
  if (busy)
    d.emit(TimerSet{TimerKind::Cluster, id.value, d.wall + kLookAgain});
  else
    archive.clusters.push_back(id);
}

// Its owner wants the machine back, as was known when it was granted.
void leave_owner(Draft& d, const Lease& lease, const Slot& slot) {
  if (lease.leaves_at > d.wall) return d.emit(TimerSet{TimerKind::Lease, lease.id.value, lease.leaves_at});
  // While everybody is silent nobody could be told; his machine holds his own limits.
  if (d.base.frozen) return d.emit(TimerSet{TimerKind::Lease, lease.id.value, d.wall + kFrozenAgain});
  const std::string reason(kOfferEnds);
  if (slot.role == SlotRole::Head) return stop_cluster(d, lease.cluster, reason);
  if (slot.role == SlotRole::Worker)
    drain_slot(d, slot.id, reason);
  else
    lose_slot(d, slot.id, reason);
  settle(d, lease.cluster);
}

void on_budget(Draft& d, ClusterId id) {
  if (!d.pull(id)) return d.emit(TimerSet{TimerKind::Budget, id.value, {}});
  if (watch_budget(d, id)) stop_cluster(d, id, std::string(kBudget));
}

// The planner is told anew when the machine is open.
void on_offer(Draft& d, NodeId id) {
  const bool has_hours = d.pull(id) && !d.node(id)->offer.hours.empty();
  d.emit(TimerSet{TimerKind::Offer, id.value, has_hours ? d.wall + kHoursAnew : WallTime{}});
}

void on_lease(Draft& d, LeaseId id, Archived& archive) {
  if (!d.pull(id)) return d.emit(TimerSet{TimerKind::Lease, id.value, {}});
  const Lease lease = *d.lease(id);
  if (lease.end != LeaseEnd::None) {
    archive.leases.push_back(id);
    return;
  }
  if (!d.pull(lease.cluster)) return;
  const Slot* slot = d.slot(lease.slot);
  if (lease.want == LeaseWant::Drain && slot != nullptr) lose_slot(d, slot->id, lease.reason);
  const bool wanted = lease.want == LeaseWant::Run || lease.want == LeaseWant::Standby;
  if (wanted && slot != nullptr && lease.leaves_at.ms != 0) return leave_owner(d, lease, *slot);
  settle(d, lease.cluster);
}

void on_job(Draft& d, JobId id, Archived& archive) {
  if (!d.pull(id)) return d.emit(TimerSet{TimerKind::Job, id.value, {}});
  const Job job = d.state.jobs.at(id);
  switch (job.state) {
    case JobState::Queued:
      d.emit(TimerSet{TimerKind::Job, id.value, {}});
      if (d.pull(job.cluster)) start_jobs(d, job.cluster);
      return;
    case JobState::Starting:
    case JobState::Running:
      d.emit(JobStateChanged{id, JobState::Stopping, job.attempt, -1, "timeout", d.wall + kJobStopMax});
      return;
    case JobState::Stopping:
      finish_job(d, id, job.reason == "timeout" ? JobState::Failed : JobState::Stopped, -1, job.reason);
      if (d.pull(job.cluster)) start_jobs(d, job.cluster);
      return;
    default:
      archive.jobs.push_back(id);
  }
}

void fire(Draft& d, const TimerKey& key, Archived& archive) {
  const auto [kind, id, id2] = key;
  switch (kind) {
    case TimerKind::Cluster:
      return on_cluster(d, ClusterId{id}, archive);
    case TimerKind::Lease:
      return on_lease(d, LeaseId{id}, archive);
    case TimerKind::Job:
      return on_job(d, JobId{id}, archive);
    case TimerKind::Backoff:
      return d.emit(BackoffEnded{ClusterId{id}, NodeId{id2}});
    case TimerKind::ClusterJobs:
      d.emit(TimerSet{kind, id, {}});
      if (d.pull(ClusterId{id})) end_jobs(d, ClusterId{id});
      return;
    case TimerKind::Token:
      archive.tokens.push_back(TokenId{id});
      return;
    case TimerKind::Grant:
      if (const auto it = d.base.grants.find(GrantId{id}); it != d.base.grants.end())
        return d.emit(GrantEnded{it->second, "its time is over"});
      return d.emit(TimerSet{kind, id, {}});
    case TimerKind::Offer:
      return on_offer(d, NodeId{id});
    case TimerKind::Budget:
      return on_budget(d, ClusterId{id});
  }
}

}  // namespace

Decided decide(const Asking& a, const Tick&) {
  TRY_VOID(a.system_only("make time pass"));
  Draft d(a.base, a.actor, a.wall);
  Archived archive;
  std::size_t fired = 0;
  for (auto it = a.base.timers_due.begin(); it != a.base.timers_due.end() && it->first <= a.wall; ++it) {
    if (++fired > kTimersAtOnce || d.events.size() > kEventsAtOnce) break;
    const auto& [at, key] = *it;
    // An earlier timer of this tick may have moved this one.
    const auto [kind, id, id2] = key;
    const auto moved = d.state.timers.find(key);
    const bool pulled = kind == TimerKind::Cluster || kind == TimerKind::Budget
                            ? d.state.clusters.contains(ClusterId{id})
                        : kind == TimerKind::Lease ? d.state.leases.contains(LeaseId{id})
                        : kind == TimerKind::Job   ? d.state.jobs.contains(JobId{id})
                                                   : false;
    if (pulled && (moved == d.state.timers.end() || moved->second > a.wall)) continue;
    const std::size_t archived = size(archive);
    fire(d, key, archive);
    if (archived != size(archive)) continue;
    const auto left = d.state.timers.find(key);
    if (left != d.state.timers.end() && left->second <= a.wall && kind != TimerKind::ClusterJobs)
      d.emit(TimerSet{kind, id, {}});
  }
  if (size(archive) > 0) d.emit(std::move(archive));
  std::uint64_t aged = 0;
  for (auto it = a.base.requests_by_order.begin(); it != a.base.requests_by_order.end() && aged < kRequestsAtOnce;
       ++it, ++aged)
    if (a.base.requests.at(it->second).at + kRequestAge > a.wall) break;
  if (aged > 0) d.emit(RequestsAged{aged});
  return done(d);
}

}  // namespace muster::control
