#include "agent/lease_run.h"

#include <algorithm>

#include "model/venv_image.h"

namespace muster::agent {

bool must_stop(const LeaseRun& run, bool stop_all) {
  return run.over || !run.in_desired || stop_all || run.want.want == LeaseWant::Stop ||
         (run.want.want == LeaseWant::Drain && run.drained);
}

const RosterEntry* roster_self(const LeaseRun& run) {
  for (const RosterEntry& entry : run.opened.entries) {
    if (entry.slot == run.want.slot && entry.address == run.want.address) return &entry;
  }
  return nullptr;
}

// A head needs itself in the roster, a worker also the head that it will join.
bool roster_allows_ray(const LeaseRun& run) {
  if (roster_self(run) == nullptr || run.want.role == SlotRole::Spare) return false;
  if (run.want.role == SlotRole::Head) return true;
  return std::any_of(run.opened.entries.begin(), run.opened.entries.end(),
                     [](const RosterEntry& entry) { return entry.role == SlotRole::Head; });
}

namespace {

// Not there yet, or an older one is.
const session::IdentityToken* missing_identity(const LeaseRun& run) {
  for (const session::IdentityToken& each : run.secrets.identities) {
    const auto there = run.identities.find(each.name);
    if (there == run.identities.end() || there->second != each.token) return &each;
  }
  return nullptr;
}

std::optional<Op> stop_op(const LeaseRun& run, const LeaseView& view) {
  if (run.touched && !run.stopped) return StopLease{run.want.lease, view.options->stop_grace, run.reason};
  // The workspace outlives the stop until the server has let go of the lease and has the logs.
  if (!run.in_desired && run.touched && !run.removed && view.logs_done) return RemoveLease{run.want.lease};
  return {};
}

Op configure_op(const LeaseRun& run, const LeaseView& view) {
  ConfigureNetwork op;
  op.lease = run.want.lease;
  op.cluster = run.want.cluster;
  op.roster_epoch = run.opened.epoch;
  op.roster = *run.roster;
  op.entries = run.opened.entries;
  op.relay_token = run.secrets.relay_token;
  op.psk = run.secrets.psk;
  op.relays = *view.relays;
  op.grants = run.secrets.relays;
  return op;
}

Op start_ray_op(const LeaseRun& run) {
  StartRay op;
  op.lease = run.want.lease;
  op.role = run.want.role;
  op.address = run.want.address;
  op.head_address = run.want.head_address;
  op.ray_token = run.secrets.ray_token;
  op.resources = run.want.resources;
  op.labels = run.want.ray_labels;
  op.restarts = run.restarts;
  return op;
}

}  // namespace

std::optional<Op> next_op(const LeaseRun& run, const LeaseView& view) {
  if (!view.engine_up || view.now.lease < run.retry_at) return {};
  if (must_stop(run, view.stop_all)) return stop_op(run, view);
  const Assignment& want = run.want;
  if (want.want == LeaseWant::Drain) {
    if (run.drained) return {};
    return DrainRay{want.lease, view.options->drain_deadline};
  }
  if (run.digest.empty()) {
    if (!view.lock_ready) return {};
    return EnsureImage{want.lease,
                       want.image,
                       want.runtime,
                       lock_blob(want),
                       run.secrets.registry_user,
                       run.secrets.registry_password,
                       want.image_asked,
                       want.image_policies};
  }
  if (!run.probed) return ProbeImage{want.lease, run.digest, want.runtime};
  if (!run.created) {
    if (!view.devices_free) return {};
    CreateLease op{want, run.digest, run.pinned};
    op.assignment.roster.clear();
    op.assignment.jobs.clear();
    return op;
  }
  if (!run.network) return run.roster ? std::optional<Op>(configure_op(run, view)) : std::nullopt;
  if (!run.setup_done) {
    // What is run may use its identity from the first moment on.
    if (roster_self(run) == nullptr || !view.blobs_ready || missing_identity(run) != nullptr) return {};
    return RunSetup{want.lease, want.setup_commands, want.files};
  }
  if (want.want == LeaseWant::Run && !run.ray_started && roster_allows_ray(run)) return start_ray_op(run);
  return {};
}

std::optional<Op> network_op(const LeaseRun& run, const LeaseView& view) {
  if (!run.created || !run.network || !run.roster || view.now.lease < run.network_retry_at) return {};
  if (must_stop(run, view.stop_all) || (run.configured_epoch == run.opened.epoch && run.secrets_sent)) return {};
  return configure_op(run, view);
}

std::optional<Op> identity_op(const LeaseRun& run, const LeaseView& view) {
  if (!run.created || must_stop(run, view.stop_all) || view.now.lease < run.identity_retry_at) return {};
  const session::IdentityToken* missing = missing_identity(run);
  return missing == nullptr ? std::nullopt : std::optional<Op>(PutIdentity{run.want.lease, *missing});
}

void succeed(LeaseRun& run, const Op& op, const OpResult& result, Now now) {
  run.faults = run.engine_misses = 0;
  run.retry_at = LeaseTime{0};
  if (const auto* ensured = std::get_if<EnsureImage>(&op)) {
    const auto* image = std::get_if<ImageReady>(&result.value);
    // Meanwhile the cluster's image may have been settled to another one: then this was for nothing.
    if (image != nullptr && (ensured->image == run.want.image || image->pinned == run.want.image)) {
      run.digest = image->digest;
      run.pinned = image->pinned;
      run.lock = image->lock;
    }
  } else if (std::holds_alternative<ProbeImage>(op)) {
    if (const auto* probe = std::get_if<ImageProbe>(&result.value)) run.probe = *probe, run.packages = result.packages;
    run.probed = true;
    if (!run.probe.token_auth) run.over = run.failed = true, run.reason = "image_probe.no_token_auth";
  } else if (std::holds_alternative<CreateLease>(op)) {
    run.created = true;
    if (const auto* made = std::get_if<LeaseCreated>(&result.value)) {
      run.overlay_key = made->overlay_key;
      run.overlay_signature = made->overlay_signature;
    }
  } else if (const auto* network = std::get_if<ConfigureNetwork>(&op)) {
    run.network = true;
    // Newer ones may have come meanwhile.
    run.secrets_sent = network->relay_token == run.secrets.relay_token && network->psk == run.secrets.psk &&
                       network->grants == run.secrets.relays;
    run.configured_epoch = network->roster_epoch;
  } else if (std::holds_alternative<RunSetup>(op)) {
    run.setup_done = true;
  } else if (std::holds_alternative<StartRay>(op)) {
    run.ray_started = true;
    run.started_at = now.lease;
  } else if (std::holds_alternative<DrainRay>(op)) {
    run.drained = true;
  } else if (std::holds_alternative<StopLease>(op)) {
    run.stopped = true;
    run.created = run.network = run.setup_done = run.ray_started = run.ray_ready = false;
    run.identities.clear();
  } else if (std::holds_alternative<RemoveLease>(op)) {
    run.removed = true;
  }
}

void crash(LeaseRun& run, const std::string& reason, bool container, const Options& options, Now now, Millis jitter) {
  if (run.over || run.stopped) return;
  if (run.ready_since != LeaseTime{0} && now.lease - run.ready_since >= options.restart_window) run.in_a_row = 0;
  run.ready_since = LeaseTime{0};
  run.ray_started = run.ray_ready = false;
  run.ray_node_id.clear();
  if (container) run.created = run.network = run.setup_done = false, run.identities.clear();
  ++run.restarts;
  ++run.in_a_row;
  const std::uint32_t limit = run.want.role == SlotRole::Head ? options.head_restarts_max : options.worker_restarts_max;
  // The workspace outlives a restart, so a full one would be full again.
  const bool hopeless = reason == "container.workspace_full" || reason == "container.disk_reserve";
  if (run.in_a_row > limit || hopeless) {
    run.over = run.failed = true;
    run.reason = reason;
    return;
  }
  Millis wait = run.in_a_row == 1 ? Millis(0) : Millis(1000) * (1U << std::min(run.in_a_row - 1, 6U));
  run.retry_at = now.lease + std::min(wait, Millis(60'000)) + (wait > Millis(0) ? jitter : Millis(0));
}

std::string last_lines(const std::string& text) {
  if (text.size() <= kOutputBytes) return text;
  const std::string end = text.substr(text.size() - kOutputBytes);
  const auto line = end.find('\n');
  return line == std::string::npos || line + 1 == end.size() ? end : end.substr(line + 1);
}

void interrupt(LeaseRun& run) {
  if (run.over || run.stopped) return;
  run.ready_since = LeaseTime{0};
  run.created = run.network = run.setup_done = run.ray_started = run.ray_ready = false;
  run.identities.clear();
  run.ray_node_id.clear();
  ++run.restarts;
}

std::string lock_blob(const Assignment& want) {
  if (want.runtime != RuntimeKind::Venv) return {};
  const auto image = parse_venv_image(want.image);
  return image.ok() ? image->lock : std::string();
}

bool change_image(LeaseRun& run, const std::string& image) {
  if (run.want.image == image) return false;
  run.want.image = image;
  if (run.digest.empty() || run.pinned == image) return false;
  run.digest.clear();
  run.pinned.clear();
  run.lock.clear();
  run.probe = {};
  run.packages.clear();
  run.probed = false;
  return run.created;
}

void adopt(LeaseRun& run, const AdoptedLease& found, Now now) {
  run.want = found.assignment;
  run.pinned = found.pinned;
  run.lock = found.lock;
  run.touched = true;
  run.digest = found.probe.digest.empty() ? found.assignment.image : found.probe.digest;
  run.probe = found.probe;
  run.packages = found.packages;
  run.probed = !found.probe.digest.empty();
  if (!run.probed) run.digest.clear();
  run.created = found.container_running;
  run.network = run.created && found.roster_epoch != 0;
  run.configured_epoch = found.roster_epoch;
  run.setup_done = run.created && found.setup_done;
  run.ray_started = run.created && found.ray_running;
  run.ray_ready = run.ray_started && found.ray_ready;
  run.overlay_key = found.overlay_key;
  run.overlay_signature = found.overlay_signature;
  run.ray_node_id = found.ray_node_id;
  run.started_at = now.lease;
  if (run.ray_ready) run.ready_since = now.lease;
}

LeasePhase phase_of(const LeaseRun& run) {
  const bool quiet = !run.touched || run.stopped;
  const bool let_go = !run.in_desired || run.want.want == LeaseWant::Stop;
  // Failed and Stopped both say that nothing of it runs and its devices are free: never before the runtime confirmed
  // the stop.
  if (run.over || let_go)
    return !quiet ? LeasePhase::Draining : run.failed && !let_go ? LeasePhase::Failed : LeasePhase::Stopped;
  if (run.stopped) return LeasePhase::Stopped;
  if (run.want.want == LeaseWant::Drain) return LeasePhase::Draining;
  if (run.digest.empty() || !run.probed) return run.touched ? LeasePhase::Pulling : LeasePhase::Pending;
  if (!run.created) return run.restarts > 0 ? LeasePhase::Starting : LeasePhase::Creating;
  if (run.ray_ready) return LeasePhase::Ready;
  return run.ray_started || run.restarts > 0 ? LeasePhase::Starting : LeasePhase::Standby;
}

ObservedLease observed_of(const LeaseRun& run) {
  ObservedLease seen;
  seen.lease = run.want.lease;
  seen.epoch = run.want.epoch;
  seen.phase = phase_of(run);
  seen.reason = run.reason;
  seen.overlay_key = run.overlay_key;
  seen.overlay_signature = run.overlay_signature;
  seen.roster_epoch = run.configured_epoch;
  seen.probe = run.probe;
  if (!run.pinned.empty() && !seen.probe.digest.empty()) seen.probe.digest = run.pinned;
  seen.restarts = run.restarts;
  seen.ray_node_id = run.ray_node_id;
  seen.output = run.output;
  return seen;
}

}  // namespace muster::agent
