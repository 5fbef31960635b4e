#include "agent/core.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "agent/core_impl.h"
#include "base/mutant.h"
#include "session/digest.h"

namespace muster::agent {
namespace {
constexpr Millis kRefresh{60'000};  // an unchanged Observed is repeated: a lost one must not stay lost
constexpr Millis kPauseTaken{5'000};
constexpr std::size_t kRayNodesMax = 4096, kRayDemandsMax = 4096;

Millis timeout_of(const Op& op, const Options& options) {
  if (std::holds_alternative<EnsureImage>(op)) return Millis(300'000);  // without progress
  if (std::holds_alternative<RunSetup>(op)) return Millis(1'800'000);
  if (std::holds_alternative<DrainRay>(op)) return options.drain_deadline + Millis(30'000);
  if (std::holds_alternative<StopLease>(op)) return options.stop_grace + Millis(30'000);
  if (std::holds_alternative<ConfigureNetwork>(op) || std::holds_alternative<ReadJobLog>(op) ||
      std::holds_alternative<PutIdentity>(op))
    return Millis(30'000);
  return Millis(120'000);
}

LeaseId lease_of(const Op& op) {
  return std::visit(
      [](const auto& each) {
        using T = std::decay_t<decltype(each)>;
        if constexpr (std::is_same_v<T, CreateLease>)
          return each.assignment.lease;
        else if constexpr (std::is_same_v<T, FindBlob> || std::is_same_v<T, WriteBlob>)
          return LeaseId{};
        else
          return each.lease;
      },
      op);
}

bool is_job_op(const Op& op) {
  return std::holds_alternative<SubmitJob>(op) || std::holds_alternative<StopJob>(op) ||
         std::holds_alternative<ReadJobLog>(op);
}
bool is_blob_op(const Op& op) {
  return std::holds_alternative<FindBlob>(op) || std::holds_alternative<WriteBlob>(op);
}
}  // namespace

Core::Impl::Impl(Options o, Hooks h, NodeFacts f)
    : options(std::move(o)),
      hooks(std::move(h)),
      facts(std::move(f)),
      rng(options.seed ^ 0x6167656e74ULL),
      link({options.agent_version, options.boot_id, options.certificate_pem, options.features, options.seed, hooks.sign,
            hooks.sign_tpm}) {}

void Core::Impl::start(ByteView persisted, const Found& found, Now now) {
  memory = decode_memory(persisted).value_or(Memory{});
  const bool same_boot = memory.boot_id == options.boot_id;
  started = true;
  last_now = now.lease;
  adopt_found(found, same_boot, now);
  memory.boot_id = options.boot_id;
  memory_dirty = true;
  link.set_inventory_digest(session::inventory_digest(facts));
  link.start(now.lease);
  settle(now);
}

OpId Core::Impl::issue(Op op, Now now) {
  const OpId id = next_op_id++;
  in_flight[id] = InFlight{op, now.lease + timeout_of(op, options)};
  actions.emplace_back(StartOp{id, std::move(op)});
  return id;
}

void Core::Impl::cancel(OpId id) {
  in_flight.erase(id);
  actions.emplace_back(CancelOp{id});
}

void Core::Impl::on_frame(const session::ServerFrame& frame, Now now) {
  if (link.on_frame(frame, now.lease)) {
    pump_link(now);
  } else if (!link.online()) {
    return;
  } else if (const auto* desired = std::get_if<session::Desired>(&frame)) {
    on_desired(*desired, now);
  } else if (const auto* ack = std::get_if<session::LogAck>(&frame)) {
    on_log_ack(*ack, now);
  } else if (const auto* chunk = std::get_if<session::BlobChunk>(&frame)) {
    on_blob_chunk(*chunk, now);
  } else if (const auto* watch = std::get_if<session::Watch>(&frame)) {
    actions.emplace_back(SetTelemetry{watch->live});
  }
  settle(now);
}

void Core::Impl::pump_link(Now now) {
  session::LinkOut out = link.take();
  if (out.revoked) {
    // Nobody will renew or end these leases any more: what runs ends now, its workspace stays until `leave`.
    for (auto& [id, run] : leases) fence(run, "node_revoked", now);
  }
  if (!out.drop.empty()) actions.emplace_back(DropLink{out.drop});
  if (out.dial) actions.emplace_back(Dial{});
  for (session::AgentFrame& frame : out.send) send(std::move(frame));
  if (out.renewal) {
    renew(*out.renewal, now);
    // The server answers in order: what was sent well before this heartbeat has arrived and is stored.
    if (memory.pause_untold && pause_told && out.renewal->from - pause_told_at >= kPauseTaken) {
      memory.pause_untold = false;
      memory_dirty = true;
    }
  }
  if (!out.welcomed) return;
  told = desired_seen = false;
  restart_logs();
  forget_blob_requests();
  locks_offered.clear();
  packages_offered.clear();
  pause_told = false;
  memory_dirty = memory_dirty || (memory.paused && !memory.pause_untold);
  memory.pause_untold = memory.pause_untold || memory.paused;
  if (link.welcome().want_inventory) {
    // Facts first; the lists in it are what Observed would say.
    told = true;
    told_revision = memory.revision;
    told_leases = observed_leases();
    told_jobs = observed_jobs();
    told_at = now.lease;
    offer_locks();
    offer_packages();
    send(session::Inventory{facts, told_leases, told_jobs});
  }
}

void Core::Impl::on_result(const OpResult& result, Now now) {
  const auto it = in_flight.find(result.op);
  if (it == in_flight.end()) return;  // cancelled, or asked again since
  const Op op = std::move(it->second.op);
  in_flight.erase(it);
  if (is_job_op(op)) {
    job_result(op, result, now);
  } else if (is_blob_op(op)) {
    blob_result(op, result, now);
  } else if (const auto lease = leases.find(lease_of(op)); lease != leases.end()) {
    if (lease->second.op == result.op) lease_result(lease->second, op, result, now);
    if (lease->second.network_op == result.op) network_result(lease->second, op, result, now);
    if (lease->second.identity_op == result.op) identity_result(lease->second, op, result, now);
  }
  settle(now);
}

void Core::Impl::on_event(const RuntimeEvent& event, Now now) {
  const auto run_of = [&](LeaseId id) -> LeaseRun* {
    const auto it = leases.find(id);
    return it == leases.end() || it->second.over ? nullptr : &it->second;
  };
  if (const auto* exited = std::get_if<ContainerExited>(&event)) {
    if (LeaseRun* run = run_of(exited->lease)) lease_event(*run, exited->reason, true, now);
  } else if (const auto* ended = std::get_if<RayExited>(&event)) {
    if (LeaseRun* run = run_of(ended->lease)) {
      run->output = last_lines(ended->output);
      lease_event(*run, ended->reason, false, now);
    }
  } else if (const auto* ready = std::get_if<RayReady>(&event)) {
    LeaseRun* run = run_of(ready->lease);
    if (run != nullptr && run->ray_started && !run->ray_ready) {
      run->ray_ready = true;
      run->ready_since = now.lease;
      run->ray_node_id = ready->ray_node_id.substr(0, 128);
    }
  } else if (const auto* status = std::get_if<JobStatus>(&event)) {
    job_status(status->lease, status->job);
  } else if (const auto* reported = std::get_if<RayReported>(&event)) {
    const RayReport& report = reported->report;
    const bool sane = report.nodes.size() <= kRayNodesMax && report.demands.size() <= kRayDemandsMax;
    if (sane && link.online() && lease_running(report.lease)) send(session::RayReportFrame{report});
  } else if (const auto* progress = std::get_if<PullProgress>(&event)) {
    if (LeaseRun* run = run_of(progress->lease); run != nullptr && in_flight.contains(run->op)) {
      in_flight[run->op].deadline = now.lease + timeout_of(in_flight[run->op].op, options);
      if (link.online()) send(session::PullReport{progress->lease, progress->done_bytes, progress->total_bytes});
    }
  } else if (std::holds_alternative<EngineGone>(event)) {
    engine_up = false;
  } else if (const auto* back = std::get_if<EngineBack>(&event)) {
    engine_up = true;
    for (auto& [id, run] : leases) {
      const auto it = std::find_if(back->found.leases.begin(), back->found.leases.end(),
                                   [&](const AdoptedLease& each) { return each.assignment.lease == id; });
      const bool runs = it != back->found.leases.end() && it->container_running;
      run.faults = run.engine_misses = 0;
      run.retry_at = LeaseTime{0};
      if (run.created && !runs) {
        if (run.want.role == SlotRole::Head) drivers_died(id, "driver_lost");
        interrupt(run);
      }
      if (run.ray_started && runs && !it->ray_running) lease_event(run, "ray_exited", false, now);
      for (OpId* op : {&run.op, &run.network_op, &run.identity_op})
        if (*op != 0) cancel(std::exchange(*op, 0));  // asked of an engine that is gone
    }
  }
  settle(now);
}

void Core::Impl::on_owner(OwnerAction action, const std::string& reason, Now now) {
  if (action == OwnerAction::Leave) {
    memory.leaving = true;
  } else {
    const bool pause = action != OwnerAction::Resume;
    memory.pause_untold = true;
    pause_told = false;
    pause_reason = reason.substr(0, 200);
    memory.pause_now = action == OwnerAction::PauseNow;
    memory.paused = pause;
  }
  memory_dirty = true;
  settle(now);
}

// With the link up a plain pause is the server's to carry out (it drains and moves the work); now and leave never wait
// for it.
void Core::Impl::owner_told(Now now) {
  if (memory.pause_now && memory.paused) {
    for (auto& [id, run] : leases) {
      if (!run.over) fence(run, "owner_paused", now);
    }
  }
  if (memory.leaving) {
    for (auto& [id, run] : leases) {
      if (!run.over) fence(run, "owner_left", now);
      run.in_desired = false;
      if (run.gone_at == LeaseTime{0}) run.gone_at = now.lease;
    }
  }
  if (link.online() && memory.pause_untold && !pause_told) {
    send(session::OwnerPause{memory.paused, memory.pause_now, pause_reason});
    pause_told = true;
    pause_told_at = now.lease;
  }
}

// Before the report that names the lock, so that the server can give it to the other members.
void Core::Impl::offer_locks() {
  for (auto& [id, run] : leases) {
    if (run.lock.empty() || run.pinned.empty() || locks_offered.contains(run.pinned)) continue;
    locks_offered.insert(run.pinned);
    send(session::LockOffer{id, run.lock});
  }
}

// To a server that takes them, and an image once for each connection.
void Core::Impl::offer_packages() {
  const auto& takes = link.welcome().features;
  if (std::find(takes.begin(), takes.end(), "packages") == takes.end()) return;
  for (auto& [id, run] : leases) {
    if (run.packages.empty() || !run.probed || run.over) continue;
    const std::string image = observed_of(run).probe.digest;
    if (!packages_offered.insert(image).second) continue;
    send(session::PackagesOffer{id, image, run.packages});
  }
}

void Core::Impl::tell_observed(Now now) {
  if (!link.online()) return;
  offer_locks();
  offer_packages();
  std::vector<ObservedLease> leases_now = observed_leases();
  std::vector<ObservedJob> jobs_now = observed_jobs();
  const bool same = told && told_revision == memory.revision && leases_now == told_leases && jobs_now == told_jobs;
  if (same && now.lease - told_at < kRefresh) return;
  told = true;
  told_revision = memory.revision;
  told_leases = std::move(leases_now);
  told_jobs = std::move(jobs_now);
  told_at = now.lease;
  send(session::Observed{told_revision, told_leases, told_jobs});
}

void Core::Impl::settle(Now now) {
  last_now = now.lease;
  owner_told(now);
  for (auto& [id, run] : leases) settle_lease(run, now), remember_end(run);
  settle_jobs(now);
  settle_blobs(now);
  forget_gone(now);
  tell_observed(now);
  if (memory.leaving && leases.empty() && !leave_done) {
    if (link.online() && !goodbye_sent) send(session::Goodbye{"the owner leaves the platform", true});
    goodbye_sent = leave_done = true;
    actions.emplace_back(OwnerDone{"leave"});
  }
  std::vector<LeaseId> alive;
  for (const auto& [id, run] : leases) {
    if (!run.over) alive.push_back(id);
  }
  link.set_leases(std::move(alive));
  link.set_seen(memory.incarnation, memory.revision);
  pump_link(now);
}

void Core::Impl::tick(Now now) {
  std::vector<OpId> late;
  for (const auto& [id, each] : in_flight) {
    if (now.lease >= each.deadline) late.push_back(id);
  }
  for (const OpId id : late) {
    // The result is lost or the runtime hangs: the operation is idempotent, so it counts as failed once and is asked
    // again.
    on_result(OpResult{id, false, "timeout", false, {}}, now);
    actions.emplace_back(CancelOp{id});
  }
  link.tick(now.lease);
  pump_link(now);
  settle(now);
}

std::vector<ObservedLease> Core::Impl::observed_leases() const {
  std::vector<ObservedLease> out;
  for (const auto& [id, run] : leases) out.push_back(observed_of(run));
  return out;
}

std::vector<ObservedJob> Core::Impl::observed_jobs() const {
  std::vector<ObservedJob> out;
  for (const auto& [key, known] : memory.jobs) {
    const bool ended =
        known.state == JobState::Succeeded || known.state == JobState::Failed || known.state == JobState::Stopped;
    // A growing log is no news: its size is told once, at the end.
    out.push_back({key.first, key.second, known.state, known.exit_code, known.reason, ended ? known.log_bytes : 0});
  }
  return out;
}

LeaseTime Core::Impl::next_deadline() const {
  LeaseTime next = link.next_deadline();
  bool busy = !in_flight.empty() || !blobs.empty();
  for (const auto& [id, run] : leases) {
    if (!run.over) next = std::min(next, run.end);
    busy = busy || run.over || run.retry_at > last_now || run.network_retry_at > last_now ||
           run.identity_retry_at > last_now || run.ray_started != run.ray_ready || !run.in_desired;
  }
  for (const auto& [key, known] : memory.jobs)
    busy = busy || known.acked < known.log_bytes || known.state <= JobState::Stopping;
  if (busy) next = std::min(next, last_now + Millis(1000));
  if (link.online()) next = std::min(next, told_at + kRefresh);
  return next;
}

Core::Core(Options options, Hooks hooks, NodeFacts facts)
    : impl_(std::make_unique<Impl>(std::move(options), std::move(hooks), std::move(facts))) {}
Core::~Core() = default;
Core::Core(Core&&) noexcept = default;
Core& Core::operator=(Core&&) noexcept = default;

void Core::start(ByteView persisted, const Found& found, Now now) {
  impl_->start(persisted, found, now);
}

void Core::on_link_up(Now now) {
  impl_->link.on_up(now.lease);
  impl_->settle(now);
}

void Core::on_link_down(Now now) {
  impl_->link.on_down(now.lease);
  impl_->settle(now);
}

void Core::on_frame(const session::ServerFrame& frame, Now now) {
  impl_->on_frame(frame, now);
}
void Core::on_result(const OpResult& result, Now now) {
  impl_->on_result(result, now);
}
void Core::on_event(const RuntimeEvent& event, Now now) {
  impl_->on_event(event, now);
}
void Core::on_owner(OwnerAction action, const std::string& reason, Now now) {
  impl_->on_owner(action, reason, now);
}

void Core::set_facts(NodeFacts facts, Now now) {
  if (facts == impl_->facts) return;
  impl_->facts = std::move(facts);
  impl_->link.set_inventory_digest(session::inventory_digest(impl_->facts));
  if (impl_->link.online())
    impl_->send(session::Inventory{impl_->facts, impl_->observed_leases(), impl_->observed_jobs()});
  impl_->settle(now);
}

void Core::set_certificate(std::string pem) {
  impl_->link.set_certificate(std::move(pem));
}
void Core::tick(Now now) {
  impl_->tick(now);
}

std::vector<Action> Core::take_actions() {
  std::vector<Action> out = std::exchange(impl_->actions, {});
  if (impl_->memory_dirty) {
    impl_->memory_dirty = false;
    out.insert(out.begin(), Persist{encode(impl_->memory)});
  }
  return out;
}

LeaseTime Core::next_deadline() const {
  return impl_->next_deadline();
}
bool Core::online() const {
  return impl_->link.online();
}
bool Core::ready() const {
  return impl_->link.online() && impl_->desired_seen;
}
bool Core::Impl::lease_running(LeaseId lease) const {
  const auto it = leases.find(lease);
  return it != leases.end() && !it->second.over && it->second.created && !it->second.stopped;
}
bool Core::lease_running(LeaseId lease) const {
  return impl_->lease_running(lease);
}

std::optional<Assignment> Core::assignment(LeaseId lease) const {
  const auto it = impl_->leases.find(lease);
  return it == impl_->leases.end() ? std::nullopt : std::optional(it->second.want);
}

std::optional<LeaseTime> Core::lease_end(LeaseId lease) const {
  const auto it = impl_->leases.find(lease);
  return it == impl_->leases.end() ? std::nullopt : std::optional(it->second.end);
}

std::vector<ObservedLease> Core::observed_leases() const {
  return impl_->observed_leases();
}
std::vector<ObservedJob> Core::observed_jobs() const {
  return impl_->observed_jobs();
}
bool Core::paused() const {
  return impl_->memory.paused;
}
bool Core::paused_now() const {
  return impl_->memory.paused && impl_->memory.pause_now;
}
std::string Core::held() const {
  return impl_->link.held();
}
std::string Core::last_refusal() const {
  return impl_->link.refusal();
}

}  // namespace muster::agent
