#include <algorithm>
#include <utility>

#include "agent/core_impl.h"
#include "base/mutant.h"

namespace muster::agent {
namespace {
constexpr std::uint32_t kFaultsMax = 6;  // tries of one operation in a row
constexpr Millis kLogsWait{120'000};     // how long a removal waits, with the link up, for the server to take the logs
constexpr Millis kPersistLag{60'000};    // a renewal is written down at most so often; losing it only ends sooner
constexpr Millis kFaultBackoffMax{60'000};
constexpr std::uint32_t kEngineMissesMax = 60;  // a second each: then it is not the engine's absence

Millis backoff_of(std::uint32_t faults) {
  return std::min(Millis(1000) * (1U << std::min(faults, 6U)), kFaultBackoffMax);
}
}  // namespace

void Core::Impl::on_desired(const session::Desired& desired, Now now) {
  const auto version = std::pair(desired.incarnation, desired.revision);
  const bool older = version < std::pair(memory.incarnation, memory.revision);
  if (older && !MUSTER_MUTANT("agent.accept_old_desired")) return;
  if (desired.assignments.size() > kLeasesMax) return;
  if (hooks.desired_genuine && !hooks.desired_genuine(desired)) return;
  desired_seen = true;
  desired_here = true;
  std::tie(memory.incarnation, memory.revision) = version;
  memory_dirty = true;
  for (auto& [id, run] : leases) run.in_desired = MUSTER_MUTANT("agent.keep_dropped_lease");
  for (const Assignment& assignment : desired.assignments) take_assignment(assignment, now);
  for (const session::LeaseSecrets& secrets : desired.secrets) {
    const auto it = leases.find(secrets.lease);
    if (it == leases.end()) continue;
    const session::LeaseSecrets& known = it->second.secrets;
    if (known.relay_token != secrets.relay_token || known.psk != secrets.psk || known.relays != secrets.relays)
      it->second.secrets_sent = false;
    it->second.secrets = secrets;
  }
  take_rosters(desired);
}

void Core::Impl::take_rosters(const session::Desired& desired) {
  if (!hooks.open_roster) return;
  for (const session::SignedRoster& roster : desired.rosters) {
    const Result<OpenedRoster> opened = hooks.open_roster(roster, link.welcome().roster_key);
    if (!opened || opened->cluster != roster.cluster) continue;
    if (!memory.roster_epochs.contains(roster.cluster) && memory.roster_epochs.size() >= kClustersRemembered) continue;
    std::uint64_t& highest = memory.roster_epochs[roster.cluster];
    if (opened->epoch < highest && !MUSTER_MUTANT("agent.accept_old_roster")) continue;
    if (opened->epoch > highest) memory_dirty = true;
    highest = std::max(highest, opened->epoch);
    for (auto& [id, run] : leases) {
      if (run.want.cluster != roster.cluster) continue;
      run.roster = roster;
      run.opened = *opened;
    }
  }
}

void Core::Impl::take_assignment(const Assignment& assignment, Now now) {
  const auto known = memory.leases.find(assignment.lease);
  if (known != memory.leases.end() && assignment.epoch < known->second.epoch) {
    // Of an older leader: what we hold under the newer epoch stays as it is.
    if (const auto it = leases.find(assignment.lease); it != leases.end()) it->second.in_desired = true;
    return;
  }
  const bool fresh_epoch = known == memory.leases.end() || known->second.epoch < assignment.epoch;
  auto it = leases.find(assignment.lease);
  if (it == leases.end()) {
    it = leases.try_emplace(assignment.lease).first;
    it->second.want = assignment;
  }
  LeaseRun& run = it->second;
  run.in_desired = true;
  if (fresh_epoch) {
    // Counted from a moment before the server can have sent this grant.
    const LeaseTime end = link.granted_from() + link.welcome().lease;
    memory.leases[assignment.lease] = LeaseMemory{assignment.epoch, end, false, false, {}};
    memory_dirty = true;
    run.end = end;
    run.over = run.failed = run.stopped = run.removed = false;
    run.reason.clear();
    if (assignment.want == LeaseWant::Stop && !run.touched) run.over = true;
  } else if (run.end == LeaseTime{0}) {
    run.end = known->second.end;
    run.over = known->second.over;
    run.failed = known->second.failed;
    run.reason = known->second.reason;
  }
  // Resources and devices are fixed for the life of a lease; role, want, jobs and labels move. The image moves once,
  // from its name to what the cluster's first member found behind it.
  const bool other_image = change_image(run, assignment.image);
  if (run.op != 0 && other_image) cancel(std::exchange(run.op, 0));
  if (other_image) lease_event(run, "image_moved", true, now);
  run.want.epoch = assignment.epoch;
  run.want.role = assignment.role;
  run.want.want = assignment.want;
  run.want.group = assignment.group;
  run.want.jobs = assignment.jobs;
  run.want.ray_labels = assignment.ray_labels;
  run.want.head_address = assignment.head_address;
  run.want.roster_epoch = assignment.roster_epoch;
  run.want.image_policies = assignment.image_policies;
  run.want.image_asked = assignment.image_asked;
  for (const std::string& feature : assignment.must_understand) {
    if (std::find(options.features.begin(), options.features.end(), feature) != options.features.end()) continue;
    run.over = run.failed = true;
    run.reason = "unsupported_feature";
  }
}

void Core::Impl::adopt_found(const Found& found, bool same_boot, Now now) {
  for (const AdoptedLease& each : found.leases) {
    LeaseRun& run = leases[each.assignment.lease];
    adopt(run, each, now);
    const auto known = memory.leases.find(each.assignment.lease);
    const bool ours = known != memory.leases.end() && known->second.epoch == each.assignment.epoch;
    if (!ours) {
      fence(run, "unknown_after_restart", now);
      run.in_desired = false;
      continue;
    }
    run.end = known->second.end;
    if (known->second.over) run.over = true, run.failed = known->second.failed, run.reason = known->second.reason;
    if (!same_boot && !MUSTER_MUTANT("agent.forget_boot_id")) fence(run, "rebooted", now);
    // Meanwhile the container may have ended: its drivers died with it, Ray is started again in place.
    if (!run.ray_started && run.want.role == SlotRole::Head) drivers_died(run.want.lease, "driver_lost");
  }
  for (auto& [id, known] : memory.leases) {
    if (same_boot || known.over || MUSTER_MUTANT("agent.forget_boot_id")) continue;
    known.over = true;
    known.reason = "rebooted";
    drivers_died(id, "rebooted");
    memory_dirty = true;
  }
}

void Core::Impl::renew(const session::Renewal& renewal, Now now) {
  for (const LeaseId id : renewal.leases) {
    const auto it = leases.find(id);
    if (it == leases.end() || it->second.over || it->second.end <= now.lease) continue;
    LeaseRun& run = it->second;
    run.end = std::max(run.end, renewal.from + renewal.lease);
    LeaseMemory& known = memory.leases[id];
    if (run.end - known.end < kPersistLag) continue;
    known.end = run.end;
    memory_dirty = true;
  }
}

void Core::Impl::fence(LeaseRun& run, const std::string& reason, Now) {
  if (run.over) return;
  run.over = true;
  run.reason = reason;
  LeaseMemory& known = memory.leases[run.want.lease];
  known.epoch = run.want.epoch;
  known.over = true;
  known.reason = reason;
  memory_dirty = true;
  drivers_died(run.want.lease, reason);
}

void Core::Impl::lease_event(LeaseRun& run, const std::string& reason, bool container, Now now) {
  if (container ? !run.created : !run.ray_started) return;  // known already, or we stopped it ourselves
  if (run.want.role == SlotRole::Head) drivers_died(run.want.lease, "driver_lost");
  crash(run, reason.empty() ? (container ? "container_exited" : "ray_exited") : reason, container, options, now,
        Millis(rng.between(0, 1000)));
}

void Core::Impl::network_result(LeaseRun& run, const Op& op, const OpResult& result, Now now) {
  run.network_op = 0;
  if (!run.network) return;  // the container ended meanwhile; its network begins anew
  if (result.ok) {
    run.network_faults = 0;
    run.network_retry_at = LeaseTime{0};
    const LeaseTime retry_at = run.retry_at;
    const std::uint32_t faults = run.faults;
    succeed(run, op, result, now);
    run.retry_at = retry_at;  // of the operation beside it
    run.faults = faults;
    return;
  }
  const Millis wait = backoff_of(++run.network_faults);
  run.network_retry_at = now.lease + wait + Millis(rng.between(0, wait.count() / 2));
  if (!result.permanent && run.network_faults < kFaultsMax) return;
  run.over = run.failed = true;
  run.reason = result.reason.empty() ? "runtime_failed" : result.reason;
  drivers_died(run.want.lease, run.reason);
}

void Core::Impl::settle_network(LeaseRun& run, const LeaseView& view, Now now) {
  if (run.network_op != 0) {
    if (must_stop(run, view.stop_all) || !run.network) cancel(std::exchange(run.network_op, 0));
    return;
  }
  if (std::optional<Op> op = network_op(run, view)) run.network_op = issue(std::move(*op), now);
}

void Core::Impl::identity_result(LeaseRun& run, const Op& op, const OpResult& result, Now now) {
  run.identity_op = 0;
  if (!run.created) return;  // the container ended meanwhile
  if (result.ok) {
    const auto* put = std::get_if<PutIdentity>(&op);
    if (put != nullptr) run.identities[put->token.name] = put->token.token;
    run.identity_faults = 0;
    run.identity_retry_at = LeaseTime{0};
    return;
  }
  const Millis wait = backoff_of(++run.identity_faults);
  run.identity_retry_at = now.lease + wait + Millis(rng.between(0, wait.count() / 2));
  // What runs already goes on with the token that it has; what does not may need one.
  if (run.setup_done || (!result.permanent && run.identity_faults < kFaultsMax)) return;
  run.over = run.failed = true;
  run.reason = result.reason.empty() ? "runtime_failed" : result.reason;
}

void Core::Impl::settle_identity(LeaseRun& run, const LeaseView& view, Now now) {
  if (run.identity_op != 0) {
    if (must_stop(run, view.stop_all) || !run.created) cancel(std::exchange(run.identity_op, 0));
    return;
  }
  if (std::optional<Op> op = identity_op(run, view)) run.identity_op = issue(std::move(*op), now);
}

void Core::Impl::lease_result(LeaseRun& run, const Op& op, const OpResult& result, Now now) {
  run.op = 0;
  if (result.ok) return succeed(run, op, result, now);
  // No fault of what was tried; soon the runtime says itself that the engine is gone.
  if (result.reason == kEngineGone && ++run.engine_misses <= kEngineMissesMax) {
    run.retry_at = now.lease + Millis(1000);
    return;
  }
  ++run.faults;
  run.output = last_lines(result.output);
  const Millis wait = backoff_of(run.faults);
  run.retry_at = now.lease + wait + Millis(rng.between(0, wait.count() / 2));
  const bool ending = std::holds_alternative<StopLease>(op) || std::holds_alternative<RemoveLease>(op);
  if (ending) return;  // for ever: a lease must not stay half stopped
  if (std::holds_alternative<DrainRay>(op)) {
    run.drained = run.faults >= 2;
    return;
  }
  const bool once = std::holds_alternative<RunSetup>(op);
  if (!result.permanent && !once && run.faults < kFaultsMax) return;
  run.over = run.failed = true;
  run.reason = result.reason.empty() ? "runtime_failed" : result.reason;
  run.retry_at = LeaseTime{0};
  drivers_died(run.want.lease, run.reason);
}

// Nobody else has them; of a GPU that the owner shares, nobody has so much that the share is not left.
bool Core::Impl::devices_free(const LeaseRun& run) const {
  for (const std::string& uuid : run.want.devices) {
    const auto device =
        std::find_if(facts.devices.begin(), facts.devices.end(), [&](const Device& each) { return each.uuid == uuid; });
    const bool shared = device != facts.devices.end() && device->sharing == GpuSharing::Shared;
    const auto taken = [&](const Assignment& by) {
      return shared && by.gpu_share_milli > 0 ? by.gpu_share_milli : kGpuMilli;
    };
    std::int32_t all = taken(run.want);
    for (const auto& [id, other] : leases) {
      if (id == run.want.lease || !other.touched || other.stopped) continue;
      const auto& theirs = other.want.devices;
      if (std::find(theirs.begin(), theirs.end(), uuid) != theirs.end()) all += taken(other.want);
      if (all > kGpuMilli) return false;
    }
  }
  return true;
}

LeaseView Core::Impl::view_of(const LeaseRun& run, Now now) {
  LeaseView view;
  view.now = now;
  view.stop_all = memory.leaving || (memory.paused && memory.pause_now);
  view.engine_up = engine_up;
  view.devices_free = devices_free(run);
  view.logs_done = logs_done(run, now) || now.lease - run.gone_at >= kLogsWait;
  view.options = &options;
  view.relays = &link.welcome().relays;
  return view;
}

void Core::Impl::settle_lease(LeaseRun& run, Now now) {
  if (!run.over && run.end <= now.lease && !MUSTER_MUTANT("agent.ignore_lease_end")) fence(run, "lease_ended", now);
  if (run.ray_started && !run.ray_ready && !run.over && now.lease - run.started_at >= options.ray_ready_timeout) {
    lease_event(run, "ray_not_ready", false, now);
  }
  const bool nobody_asks = !link.online() && !memory.leaving;  // the server cannot take the logs now
  if (!run.in_desired && (run.gone_at == LeaseTime{0} || nobody_asks)) run.gone_at = now.lease;
  if (run.in_desired) run.gone_at = LeaseTime{0};
  LeaseView view = view_of(run, now);
  const bool stopping = must_stop(run, view.stop_all);
  if (stopping && !run.stopping) run.retry_at = LeaseTime{0};
  run.stopping = stopping;
  if (stopping && !run.stopped) drivers_died(run.want.lease, run.reason.empty() ? "stopped" : run.reason);
  if (!stopping && run.digest.empty()) {
    const std::string lock = lock_blob(run.want);
    view.lock_ready = lock.empty() || blob_ready(lock, now);
    if (!lock.empty() && blob_failed(lock)) run.over = run.failed = true, run.reason = "venv.lock_missing";
  }
  if (!stopping && run.created && !run.setup_done) {
    for (const FileMount& file : run.want.files) {
      if (!blob_ready(file.blob, now)) view.blobs_ready = false;
      if (blob_failed(file.blob)) run.over = run.failed = true, run.reason = "file_mount_missing";
    }
  }
  settle_network(run, view, now);
  settle_identity(run, view, now);
  if (run.op != 0) {
    // A stop overtakes whatever is under way.
    const Op& busy = in_flight.at(run.op).op;
    const bool ending = std::holds_alternative<StopLease>(busy) || std::holds_alternative<RemoveLease>(busy);
    if (!stopping || ending || !run.touched) return;
    cancel(run.op);
    run.op = 0;
    run.retry_at = LeaseTime{0};
  }
  std::optional<Op> op = next_op(run, view);
  if (!op) return;
  run.touched = true;
  run.stopped = run.stopped && std::holds_alternative<RemoveLease>(*op);
  run.op = issue(std::move(*op), now);
}

// What was told to stop, or failed, stays so when the agent starts again: the server may have ended it on our word.
void Core::Impl::remember_end(const LeaseRun& run) {
  if (!must_stop(run, false)) return;
  LeaseMemory& known = memory.leases[run.want.lease];
  if (known.over) return;
  known.epoch = run.want.epoch;
  known.over = true;
  known.failed = run.failed;
  known.reason = run.reason;
  memory_dirty = true;
}

void Core::Impl::forget_gone(Now) {
  for (auto it = leases.begin(); it != leases.end();) {
    const LeaseRun& run = it->second;
    const bool gone =
        !run.in_desired && run.op == 0 && run.network_op == 0 && run.identity_op == 0 && (run.removed || !run.touched);
    if (!gone) {
      ++it;
      continue;
    }
    const LeaseId id = it->first;
    const ClusterId cluster = run.want.cluster;
    it = leases.erase(it);
    memory.leases.erase(id);
    std::erase_if(memory.jobs, [&](const auto& job) { return job.second.lease == id; });
    std::erase_if(jobs, [&](const auto& job) {
      return !memory.jobs.contains(job.first) && job.second.op == 0 && job.second.read_op == 0;
    });
    const bool last = std::none_of(leases.begin(), leases.end(),
                                   [&](const auto& other) { return other.second.want.cluster == cluster; });
    // The highest roster epoch outlives the last lease: an old roster must not come back with the next one.
    if (last && memory.roster_epochs.size() >= kClustersRemembered)
      memory.roster_epochs.erase(memory.roster_epochs.begin());
    memory_dirty = true;
  }
}

}  // namespace muster::agent
