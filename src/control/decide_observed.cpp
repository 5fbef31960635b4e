// What agents see. Level-triggered: a report may come late, twice or out of order; only real transitions make events,
// and a report about another epoch or another machine's lease changes nothing.
#include <algorithm>

#include "control/decide.h"
#include "control/images.h"
#include "control/mutants.h"
#include "model/image_name.h"

namespace muster::control {
namespace {

constexpr std::size_t kReportedMax = 4096;
constexpr std::size_t kReasonMax = 200;

const Lease* believed(const State& base, NodeId node, const ObservedLease& o) {
  const Lease* lease = base.find_lease(o.lease);
  if (lease == nullptr || lease->end != LeaseEnd::None || o.phase > LeasePhase::Failed) return nullptr;
  if (contested(*lease) && !MUSTER_MUTANT(mutants::kBelieveContested)) return nullptr;
  if (lease->node != node && !MUSTER_MUTANT(mutants::kAcceptWrongNode)) return nullptr;
  if (lease->epoch != o.epoch && !MUSTER_MUTANT(mutants::kSkipEpochCheck)) return nullptr;
  return lease;
}

bool takes_key(const Slot* slot, const Lease& lease, const ObservedLease& o) {
  if (slot == nullptr || o.overlay_key.size() != 32 || o.overlay_signature.empty() || o.overlay_signature.size() > 128)
    return false;
  if (lease.want == LeaseWant::Stop || o.phase >= LeasePhase::Stopped) return false;
  if (!slot->in_roster) return true;
  // A new key for a slot in the roster: only of a container that begins anew (the machine was rebooted).
  return slot->overlay_key != o.overlay_key && o.phase < LeasePhase::Ready;
}

// Does the report say anything that the state does not hold? Keeps the common case free of copies.
bool is_news(const State& base, const Lease& lease, const ObservedLease& o) {
  if (lease.phase != o.phase || lease.restarts < o.restarts) return true;
  if (lease.want == LeaseWant::Stop && o.phase >= LeasePhase::Stopped) return true;
  if (takes_key(base.find_slot(lease.slot), lease, o)) return true;
  const Cluster* cluster = base.find_cluster(lease.cluster);
  if (cluster == nullptr || o.probe.ray_version.empty() || terminal(cluster->state)) return false;
  return cluster->probe->ray_version != o.probe.ray_version ||
         cluster->probe->python_version != o.probe.python_version || !o.probe.token_auth;
}

// What the first member found behind the name is what all others will run: another name is none of its business.
bool of_this_name(const ClusterSpec& spec, const std::string& found) {
  if (spec.runtime != RuntimeKind::Docker || !image_pinned(found)) return true;
  return image_repository(found) == image_repository(spec.image) &&
         (!image_pinned(spec.image) || image_digest(found) == image_digest(spec.image));
}
std::vector<std::string> digests_of(const ImageProbe& probe) {
  std::string digest = image_digest(probe.digest);
  if (digest.empty()) digest = probe.digest;
  return {std::move(digest)};
}

// One Ray and Python version per cluster, with token authentication; false: the cluster failed.
bool check_probe(Draft& d, ClusterId id, const ImageProbe& probe) {
  if (probe.ray_version.empty()) return true;
  if (probe.ray_version.size() > 64 || probe.python_version.size() > 64 || probe.digest.size() > 512) return true;
  if (!probe.token_auth) {
    fail_cluster(d, id, "image_probe.no_token_auth");
    return false;
  }
  const Cluster& cluster = d.cluster(id);
  const ImageProbe& known = cluster.probe;
  if (known.ray_version.empty()) {
    if (!of_this_name(cluster.spec, probe.digest)) {
      fail_cluster(d, id, "image_probe.other_image");
      return false;
    }
    if (const auto refusal = image_refusal(d.base, cluster.project, cluster.spec.image, digests_of(probe))) {
      fail_cluster(d, id, refusal->code);
      return false;
    }
    d.emit(ClusterProbed{id, probe});
    return true;
  }
  if (known.ray_version == probe.ray_version && known.python_version == probe.python_version) return true;
  fail_cluster(d, id, "image_probe.mixed_versions");
  return false;
}

// What the cluster brings along itself, so that other machines would very likely see it too.
bool of_its_own(const std::string& reason) {
  return reason.starts_with("setup.") || reason.starts_with("ray_") || reason == "container.exited" ||
         reason == "container.out_of_memory" || reason == "container.root_full" || reason == "file_mount_missing";
}

// The machines may be as well as they like: a start whose workers fail again and again ends, and says of what.
bool gives_up(const Draft& d, const Cluster& cluster, const std::string& reason) {
  if (cluster.state != ClusterState::Starting || !of_its_own(reason)) return false;
  const auto limit = reason.starts_with("setup.") ? kSetupFailuresMax : kStartFailuresMax;
  return d.failures(cluster.id) >= limit;
}

// Of the request: another machine would see it too. Or of the owner, who said so himself.
bool of_the_request(const std::string& reason) {
  constexpr std::string_view kCodes[] = {"image_moved",
                                         "image_pull.denied",
                                         "image_pull.not_found",
                                         "venv.hash_mismatch",
                                         "image_pull.wrong_architecture",
                                         "venv.lock",
                                         "venv.lock_missing",
                                         "venv.no_such_package",
                                         "image_signature.denied",
                                         "image_signature.missing",
                                         "image_signature.wrong"};
  return of_its_own(reason) || reason.starts_with("image_probe.") || reason.starts_with("image_policy.") ||
         reason.starts_with("owner.") || std::find(std::begin(kCodes), std::end(kCodes), reason) != std::end(kCodes);
}

// A machine that is always free because nothing starts on it would be given to one after the other.
void strike(Draft& d, const Lease& lease, const std::string& reason) {
  if (lease.phase >= LeasePhase::Ready || lease.phase == LeasePhase::Standby || of_the_request(reason) ||
      d.base.format_version < kStrikeFormat || !d.pull(lease.node))
    return;
  const Node& node = *d.node(lease.node);
  if (node.struck_by == lease.cluster) return;  // one cluster alone condemns no machine
  const std::uint32_t strikes = std::min<std::uint32_t>(node.strikes + 1, 1'000);
  WallTime until;
  if (strikes >= kStrikesMax)
    until = d.wall + std::min(kStruckMax, kStruckFirst * (std::int64_t{1} << std::min(strikes - kStrikesMax, 10U)));
  d.emit(NodeStruck{node.id, strikes, lease.cluster, until});
}
void forgive(Draft& d, NodeId id) {
  const Node* node = d.node(id);
  if (node != nullptr && node->strikes > 0 && d.pull(id)) d.emit(NodeStruck{id, 0, {}, {}});
}

void observe_end(Draft& d, const Lease& lease, const Slot* slot, const ObservedLease& o, const std::string& reason) {
  const bool failed = o.phase == LeasePhase::Failed;
  const bool wanted = lease.want == LeaseWant::Run || lease.want == LeaseWant::Standby;
  if (!wanted || slot == nullptr) {
    end_lease(d, lease.id, LeaseEnd::Confirmed, lease.reason.empty() ? reason : lease.reason);
    return;
  }
  if (failed) strike(d, lease, reason);
  if (slot->role == SlotRole::Head) {
    // Its agent has restarted it in place as often as that may help: what it calls failed or stopped stays so.
    const std::string what = failed ? "head_failed" : "head_stopped";
    fail_cluster(d, lease.cluster, reason.empty() ? what : what + ":" + reason);
    end_lease(d, lease.id, LeaseEnd::Confirmed, reason);
    return;
  }
  if (failed) back_off(d, lease.cluster, lease.node);
  const Cluster& cluster = d.cluster(lease.cluster);
  end_lease(d, lease.id, LeaseEnd::Confirmed, reason.empty() ? "worker_failed" : reason);
  if (failed && cluster.state == ClusterState::Starting) {
    const std::string why = "worker_failed:" + reason;
    if (gives_up(d, cluster, reason)) return fail_cluster(d, cluster.id, why);
    if (cluster.reason != why) d.emit(ClusterStateChanged{cluster.id, cluster.state, why, {}});
  }
}

void observe_lease(Draft& d, const ObservedLease& o) {
  const Lease lease = *d.lease(o.lease);
  const std::string reason = o.reason.substr(0, kReasonMax);
  const Slot* slot = d.slot(lease.slot);
  const bool here = d.pull(lease.cluster) && slot != nullptr;
  if (!here) {
    if (o.phase >= LeasePhase::Stopped) end_lease(d, lease.id, LeaseEnd::Confirmed, reason);
    return;
  }
  const bool stale_cluster = terminal(d.cluster(lease.cluster).state);
  if (lease.want != LeaseWant::Stop && !stale_cluster && !check_probe(d, lease.cluster, o.probe)) {
    if (o.phase < LeasePhase::Stopped) return;
  }
  if (takes_key(slot, lease, o))
    d.emit(SlotKeyed{slot->id, o.overlay_key, o.overlay_signature, d.cluster(lease.cluster).roster_epoch + 1});
  if (o.phase >= LeasePhase::Stopped) {
    observe_end(d, *d.lease(lease.id), d.slot(lease.slot), o, reason);
  } else if (o.phase != lease.phase || o.restarts > lease.restarts) {
    const std::uint32_t restarts = std::min<std::uint32_t>(std::max(o.restarts, lease.restarts), 1'000'000);
    d.emit(LeaseObserved{lease.id, o.phase, reason, restarts});
    if (o.phase == LeasePhase::Ready) forgive(d, lease.node);
  }
  settle(d, lease.cluster);
}

// ---- jobs
bool on_head(const State& base, NodeId node, const Job& job) {
  const Cluster* cluster = base.find_cluster(job.cluster);
  const Slot* head = cluster == nullptr ? nullptr : base.find_head(*cluster);
  const Lease* lease = head == nullptr ? nullptr : base.find_lease(head->lease);
  if (lease == nullptr || lease->end != LeaseEnd::None) return false;
  return lease->node == node || MUSTER_MUTANT(mutants::kAcceptWrongNode);
}

void attempt_failed(Draft& d, const Job& job, const ObservedJob& o, const std::string& reason) {
  const std::uint32_t limit = job.spec.retries + (MUSTER_MUTANT(mutants::kRetryPastLimit) ? 1 : 0);
  if (job.attempt > limit)
    return finish_job(d, job.id, JobState::Failed, o.exit_code, reason.empty() ? "exit_code" : reason);
  const Millis pause =
      std::min(kRetryMax, kRetryFirst * (std::int64_t{1} << std::min<std::uint32_t>(job.attempt - 1, 9)));
  d.emit(JobStateChanged{job.id, JobState::Queued, job.attempt, o.exit_code, reason, d.wall + pause});
}

void observe_job(Draft& d, const ObservedJob& o) {
  d.pull(o.job);
  const Job job = d.state.jobs.at(o.job);
  if (terminal(job.state) || job.state == JobState::Queued || job.attempt != o.attempt) return;
  const std::string reason = o.reason.substr(0, kReasonMax);
  const bool stopping = job.state == JobState::Stopping;
  if (o.state == JobState::Running && job.state == JobState::Starting) {
    const WallTime end = job.spec.timeout.count() == 0 ? WallTime{} : d.wall + job.spec.timeout;
    d.emit(JobStateChanged{job.id, JobState::Running, job.attempt, -1, "", end});
    return;
  }
  if (!terminal(o.state)) return;
  if (o.log_bytes != job.log_bytes) d.emit(JobLogSet{job.id, job.attempt, o.log_bytes});
  if (o.state == JobState::Succeeded)
    finish_job(d, job.id, JobState::Succeeded, o.exit_code, "");
  else if (stopping && job.reason == "timeout")
    finish_job(d, job.id, JobState::Failed, o.exit_code, "timeout");
  else if (stopping)
    finish_job(d, job.id, JobState::Stopped, o.exit_code, job.reason);
  else if (o.state == JobState::Stopped)
    finish_job(d, job.id, JobState::Stopped, o.exit_code, reason);
  else
    attempt_failed(d, job, o, reason);
  if (d.pull(job.cluster)) start_jobs(d, job.cluster);
}

bool is_news(const State& base, NodeId node, const ObservedJob& o) {
  const Job* job = base.find_job(o.job);
  if (job == nullptr || terminal(job->state) || job->attempt != o.attempt || o.state > JobState::Stopped ||
      !on_head(base, node, *job))
    return false;
  return terminal(o.state) || (o.state == JobState::Running && job->state == JobState::Starting);
}

}  // namespace

void observe_jobs(Draft& d, NodeId node, const std::vector<ObservedJob>& jobs) {
  for (std::size_t i = 0; i < std::min(jobs.size(), kReportedMax); ++i)
    if (is_news(d.base, node, jobs[i])) observe_job(d, jobs[i]);
}

void observe_leases(Draft& d, NodeId node, const std::vector<ObservedLease>& leases) {
  for (std::size_t i = 0; i < std::min(leases.size(), kReportedMax); ++i) {
    const Lease* lease = believed(d.base, node, leases[i]);
    if (lease == nullptr || !is_news(d.base, *lease, leases[i])) continue;
    d.pull(lease->id);
    if (d.lease(lease->id)->end == LeaseEnd::None) observe_lease(d, leases[i]);
  }
}

Decided decide(const Asking& a, const ReportObserved& c) {
  TRY_VOID(a.device_only(c.node));
  if (!a.base.nodes.contains(c.node)) return missing("machine", c.node.str());
  Draft d(a.base, a.actor, a.wall);
  observe_jobs(d, c.node, c.jobs);
  observe_leases(d, c.node, c.leases);
  return done(d, c.node.str());
}

}  // namespace muster::control
