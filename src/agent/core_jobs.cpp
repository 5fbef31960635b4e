#include <algorithm>

#include "agent/core_impl.h"
#include "base/mutant.h"

namespace muster::agent {
namespace {
constexpr std::uint32_t kLogReadBytes = 32 << 10;
constexpr std::uint64_t kLogUnackedMax = 256 << 10;
constexpr Millis kAckWait{15'000};
constexpr std::uint32_t kSubmitTries = 5;

bool terminal(JobState state) {
  return state == JobState::Succeeded || state == JobState::Failed || state == JobState::Stopped;
}
}  // namespace

const JobOrder* Core::Impl::order_of(const JobKey& key) const {
  for (const auto& [id, run] : leases) {
    if (!run.in_desired) continue;
    for (const JobOrder& order : run.want.jobs) {
      if (order.job == key.first && order.attempt == key.second) return &order;
    }
  }
  return nullptr;
}

// A driver that died with its head ends that attempt; whether there is another one is the server's retry rule.
void Core::Impl::drivers_died(LeaseId lease, const std::string& reason) {
  for (auto& [key, known] : memory.jobs) {
    if (known.lease != lease || terminal(known.state)) continue;
    const JobOrder* order = order_of(key);
    known.state = order != nullptr && order->stop ? JobState::Stopped : JobState::Failed;
    known.reason = reason;
    memory_dirty = true;
  }
}

void Core::Impl::job_status(LeaseId lease, const ObservedJob& seen) {
  const auto it = memory.jobs.find({seen.job, seen.attempt});
  if (it == memory.jobs.end() || it->second.lease != lease)
    return;  // not ours: the runtime's word alone starts nothing
  JobMemory& known = it->second;
  known.log_bytes = std::max(known.log_bytes, seen.log_bytes);
  if (terminal(known.state)) return;  // the first end counts
  if (seen.state == known.state ||
      (!terminal(seen.state) && seen.state != JobState::Running && seen.state != JobState::Stopping))
    return;
  known.state = seen.state;
  known.exit_code = seen.exit_code;
  known.reason = seen.reason;
  if (terminal(seen.state)) memory_dirty = true;
}

void Core::Impl::job_result(const Op& op, const OpResult& result, Now now) {
  if (const auto* submit = std::get_if<SubmitJob>(&op)) {
    const JobKey key{submit->order.job, submit->order.attempt};
    JobRun& job = jobs[key];
    job.op = 0;
    if (result.ok) {
      job.submitted = true;
      job.faults = 0;
      return;
    }
    job.retry_at = now.lease + Millis(1000) * (1U << std::min(++job.faults, 6U));
    JobMemory& known = memory.jobs[key];
    if ((!result.permanent && job.faults < kSubmitTries) || terminal(known.state)) return;
    known.state = JobState::Failed;
    known.reason = result.reason.empty() ? "submit_failed" : result.reason;
    memory_dirty = true;
  } else if (const auto* stop = std::get_if<StopJob>(&op)) {
    JobRun& job = jobs[{stop->job, stop->attempt}];
    job.op = 0;
    // Told again until its end is seen.
    job.retry_at = now.lease + Millis(5000);
  } else if (const auto* read = std::get_if<ReadJobLog>(&op)) {
    const JobKey key{read->job, read->attempt};
    JobRun& job = jobs[key];
    job.read_op = 0;
    const auto known = memory.jobs.find(key);
    const auto* log = std::get_if<LogData>(&result.value);
    if (!result.ok || log == nullptr || known == memory.jobs.end()) {
      job.read_retry_at = now.lease + Millis(5000);
      if (result.permanent && known != memory.jobs.end())
        known->second.log_bytes = known->second.acked;  // the log is gone
      return;
    }
    known->second.log_bytes = std::max(known->second.log_bytes, log->log_bytes);
    if (!link.online() || read->offset != job.sent) return;
    if (log->data.empty()) {
      job.read_retry_at = now.lease + Millis(1000);
      return;
    }
    send(session::LogChunk{key.first, key.second, read->offset, log->data});
    job.sent = read->offset + log->data.size();
    job.sent_at = now.lease;
    if (MUSTER_MUTANT("agent.log_ack_at_send")) known->second.acked = job.sent;
  }
}

void Core::Impl::on_log_ack(const session::LogAck& ack, Now) {
  const auto it = memory.jobs.find({ack.job, ack.attempt});
  if (it == memory.jobs.end()) return;
  JobMemory& known = it->second;
  if (ack.offset <= known.acked || ack.offset > known.log_bytes) return;
  known.acked = ack.offset;  // written down with the next change; forgetting it only sends again
  JobRun& job = jobs[it->first];
  job.sent = std::max(job.sent, known.acked);
}

void Core::Impl::restart_logs() {
  for (auto& [key, known] : memory.jobs) {
    JobRun& job = jobs[key];
    job.sent = known.acked;
    job.read_retry_at = LeaseTime{0};
  }
}

void Core::Impl::read_log(const JobKey& key, JobRun& job, JobMemory& known, Now now) {
  if (!link.online() || !engine_up || job.read_op != 0 || now.lease < job.read_retry_at) return;
  if (job.sent > known.acked && now.lease - job.sent_at >= kAckWait) job.sent = known.acked;
  if (job.sent >= known.log_bytes || job.sent - known.acked >= kLogUnackedMax) return;
  job.read_op = issue(ReadJobLog{known.lease, key.first, key.second, job.sent, kLogReadBytes}, now);
}

bool Core::Impl::logs_done(const LeaseRun& run, Now) const {
  return std::none_of(memory.jobs.begin(), memory.jobs.end(), [&](const auto& job) {
    return job.second.lease == run.want.lease && job.second.acked < job.second.log_bytes;
  });
}

void Core::Impl::settle_job(const JobKey& key, JobRun& job, Now now) {
  JobMemory& known = memory.jobs.at(key);
  read_log(key, job, known, now);
  const JobOrder* order = order_of(key);
  const auto lease = leases.find(known.lease);
  if (terminal(known.state) || job.op != 0 || order == nullptr || lease == leases.end() || now.lease < job.retry_at)
    return;
  if (!lease->second.ray_ready || lease->second.over || !engine_up) return;
  if (order->stop) {
    if (job.submitted || known.state != JobState::Starting) {
      job.op = issue(StopJob{known.lease, key.first, key.second}, now);
    } else {
      known.state = JobState::Stopped;
      known.reason = "stopped";
      memory_dirty = true;
    }
    return;
  }
  if (job.submitted || known.state != JobState::Starting) return;
  if (!order->working_dir_blob.empty()) {
    if (blob_failed(order->working_dir_blob)) {
      known.state = JobState::Failed;
      known.reason = "working_dir_missing";
      memory_dirty = true;
      return;
    }
    if (!blob_ready(order->working_dir_blob, now)) return;
  }
  job.op = issue(SubmitJob{known.lease, *order}, now);
}

void Core::Impl::settle_jobs(Now now) {
  for (auto& [id, run] : leases) {
    if (!run.in_desired || run.over) continue;
    for (const JobOrder& order : run.want.jobs) {
      const JobKey key{order.job, order.attempt};
      if (memory.jobs.contains(key) || memory.jobs.size() >= kJobsMax || (!run.ray_ready && !order.stop)) continue;
      // Known before it is submitted: after a crash in between it is submitted again (idempotent) or ends as lost.
      memory.jobs[key] = JobMemory{id, JobState::Starting, -1, {}, 0, 0};
      memory_dirty = true;
      jobs[key];
    }
  }
  for (auto it = memory.jobs.begin(); it != memory.jobs.end();) {
    JobRun& job = jobs[it->first];
    settle_job(it->first, job, now);
    // An order that is gone means that the server has taken the end; that no order came yet means nothing.
    const bool settled = desired_here || MUSTER_MUTANT("agent.forget_untold_job");
    const bool forgotten = terminal(it->second.state) && settled && order_of(it->first) == nullptr &&
                           it->second.acked >= it->second.log_bytes && job.op == 0 && job.read_op == 0;
    if (forgotten) {
      jobs.erase(it->first);
      it = memory.jobs.erase(it);
      memory_dirty = true;
    } else {
      ++it;
    }
  }
}

}  // namespace muster::agent
