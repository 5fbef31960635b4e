// Executor, second half: helpers, jobs, blobs, what is found after a restart, and the engine's health.
#include <algorithm>
#include <filesystem>

#include "base/log.h"
#include "host/executor.h"

namespace muster::host {
namespace fs = std::filesystem;
namespace {

constexpr Millis kEngineCheck{5'000};
constexpr Millis kHelperRetry{50};
constexpr std::size_t kLastWordsMax = 2000;

std::optional<JobState> job_state(const std::string& text) {
  if (text == "PENDING") return JobState::Starting;
  if (text == "RUNNING") return JobState::Running;
  if (text == "SUCCEEDED") return JobState::Succeeded;
  if (text == "FAILED") return JobState::Failed;
  if (text == "STOPPED") return JobState::Stopped;
  return {};
}

// "driver_lost: ..." -> the stable code before the colon; other messages are the tenant's and stay here.
std::string job_reason(const HelperJob& job) {
  if (job.state == "STOPPED") return "stopped";
  if (job.state != "FAILED") return {};
  for (const std::string_view code : {"driver_lost", "submit_failed"}) {
    if (job.message.starts_with(code)) return std::string(code);
  }
  return "exit_code";
}

}  // namespace

void Executor::connect_helper(LeaseId lease) {
  const auto it = runs_.find(lease);
  if (it == runs_.end() || it->second.link || it->second.connecting || !it->second.wanted) return;
  if (!engine_up_) return;  // asked again when it is back
  it->second.connecting = true;
  call(VerbKind::Helper, lease, [this, lease](Result<PrivdReply> reply) {
    const auto found = runs_.find(lease);
    if (found == runs_.end()) return;
    Run& run = found->second;
    run.connecting = false;
    if (!run.wanted) return;
    if (!reply.ok() || reply->fds.empty()) {
      poller_.after(kHelperRetry, [this, lease, alive = alive_] {
        if (*alive) connect_helper(lease);
      });
      return;
    }
    run.link = std::make_unique<HelperLink>(
        poller_, std::move(reply->fds[0]), [this, lease](HelperEvent event) { on_helper(lease, std::move(event)); },
        [this, lease] {
          poller_.post([this, lease, alive = alive_] {
            if (*alive) helper_closed(lease);
          });
        });
  });
}

// The line broke: the container ended, or only the line. The engine knows which.
void Executor::helper_closed(LeaseId lease) {
  const auto it = runs_.find(lease);
  if (it == runs_.end()) return;
  it->second.link.reset();
  it->second.hello_seen = false;
  if (it->second.setup != 0) ended_.setups.push_back(std::exchange(it->second.setup, 0));
  if (it->second.drain != 0) succeed(std::exchange(it->second.drain, 0));
  for (const auto& [key, op] : std::exchange(it->second.log_reads, {})) fail_code(op, "helper.missing", false);
  if (!it->second.wanted) return;
  check_engine_in(Millis(200));
  poller_.after(Millis(300), [this, lease, alive = alive_] {
    if (*alive) connect_helper(lease);
  });
}

void Executor::tell_job(LeaseId lease, const HelperJob& job) {
  const auto state = job_state(job.state);
  if (!state) return;
  ObservedJob seen;
  seen.job = job.job;
  seen.attempt = job.attempt;
  seen.state = *state;
  seen.exit_code = job.exit_code;
  seen.reason = job_reason(job);
  seen.log_bytes = job.log_bytes;
  hooks_.event(agent::JobStatus{lease, seen});
}

void Executor::on_helper(LeaseId lease, HelperEvent event) {
  const auto it = runs_.find(lease);
  if (it == runs_.end()) return;
  Run& run = it->second;
  if (const auto* hello = std::get_if<HelperHello>(&event)) {
    run.hello = *hello;
    run.hello_seen = true;
    for (const auto& job : hello->jobs) {
      run.log_bytes[{job.job.value, job.attempt}] = job.log_bytes;
      tell_job(lease, job);
    }
    if (hello->phase == "starting" || hello->phase == "ready") run.ray_started = true;
    if (hello->phase == "ready") hooks_.event(agent::RayReady{lease, hello->ray_node_id});
    if (hello->phase == "exited" && run.ray_started)
      ended_.ray[lease] = {lease, 1, "ray_exited", {}}, check_engine_in(Millis(0));
  } else if (std::holds_alternative<HelperSetupDone>(event)) {
    run.hello.setup_done = true;
    if (run.setup != 0) succeed(std::exchange(run.setup, 0));
  } else if (const auto* failed = std::get_if<HelperSetupFailed>(&event)) {
    log_warn("agent", "{}: setup command {} ended with {}", lease.str(), failed->step + 1, failed->code);
    if (run.setup != 0)
      fail_code(
          std::exchange(run.setup, 0), "setup.failed", true,
          fmt::format("setup command {} ended with exit code {}\n{}", failed->step + 1, failed->code, failed->tail));
  } else if (const auto* ready = std::get_if<HelperRayReady>(&event)) {
    run.ray_started = true;
    run.hello.phase = "ready";
    run.hello.ray_node_id = ready->node_id;
    ended_.ray.erase(lease);
    hooks_.event(agent::RayReady{lease, ready->node_id});
  } else if (const auto* exited = std::get_if<HelperRayExit>(&event)) {
    log_warn("agent", "{}: Ray ended with {}", lease.str(), exited->code);
    run.ray_started = false;
    run.hello.phase = "exited";
    if (!exited->wanted)
      ended_.ray[lease] = {lease, exited->code, "ray_exited", exited->tail}, check_engine_in(Millis(0));
  } else if (std::holds_alternative<HelperDrained>(event)) {
    if (run.drain != 0) succeed(std::exchange(run.drain, 0));
  } else if (const auto* job = std::get_if<HelperJob>(&event)) {
    if (run.log_bytes.size() < 1024) run.log_bytes[{job->job.value, job->attempt}] = job->log_bytes;
    tell_job(lease, *job);
  } else if (const auto* log = std::get_if<HelperJobLog>(&event)) {
    const auto key = std::pair(log->job.value, log->attempt);
    const auto read = run.log_reads.find(key);
    if (read == run.log_reads.end()) return;
    const auto op = read->second;
    run.log_reads.erase(read);
    agent::LogData data{log->data, std::max(run.log_bytes[key], log->offset + log->data.size())};
    hooks_.result(agent::OpResult{op, true, {}, false, std::move(data)});
  } else if (auto* report = std::get_if<HelperReport>(&event)) {
    hooks_.event(agent::RayReported{
        RayReport{run.assignment.cluster, lease, std::move(report->nodes), std::move(report->demands)}});
  } else if (const auto* fault = std::get_if<HelperFault>(&event)) {
    log_debug("helper", "{}: fault in {}", lease.str(), fault->op);
    if (fault->op == "setup" && run.setup != 0) fail_code(std::exchange(run.setup, 0), "setup.failed", true);
    if (fault->op == "ray_drain" && run.drain != 0) succeed(std::exchange(run.drain, 0));
  }
}

// ---- jobs
void Executor::perform(agent::OpId id, const agent::SubmitJob& op) {
  if (op.order.working_dir_blob.empty()) return send_job(id, op);
  auto source = blobs_.open(op.order.working_dir_blob);
  if (!source.ok()) return fail(id, source.error(), "blob.missing");
  Verb verb;
  verb.kind = VerbKind::Blob;
  verb.lease = op.lease.str();
  verb.blob = op.order.working_dir_blob + ".zip";
  privd_.call(std::move(verb),
              [this, id, op](Result<PrivdReply> reply) {
                if (!reply.ok()) return fail(id, reply.error(), "blob.copy");
                send_job(id, op);
              },
              {}, {source->get()});
}

void Executor::send_job(agent::OpId id, const agent::SubmitJob& op) {
  const auto it = runs_.find(op.lease);
  if (it == runs_.end() || !it->second.link) return fail_code(id, "helper.missing", false);
  json::object message{{"op", "job_submit"},
                       {"job", op.order.job.str()},
                       {"attempt", op.order.attempt},
                       {"entrypoint", op.order.entrypoint}};
  json::object metadata;
  for (const auto& [key, value] : op.order.metadata) metadata[key] = value;
  message["metadata"] = metadata;
  message["runtime_env"] = json::object{};
  if (!op.order.runtime_env_json.empty()) {
    const auto runtime_env = parse_object(op.order.runtime_env_json);
    if (!runtime_env.ok()) return fail_code(id, "job.runtime_env", true);
    message["runtime_env"] = *runtime_env;
  }
  message["driver"] = json::object{};
  if (!op.order.driver_json.empty()) {
    const auto driver = parse_object(op.order.driver_json);
    if (!driver.ok()) return fail_code(id, "job.driver", true);
    message["driver"] = *driver;
  }
  message["working_dir"] = op.order.working_dir_blob.empty()
                               ? json::value(nullptr)
                               : json::value("/muster/run/blobs/" + op.order.working_dir_blob + ".zip");
  it->second.link->send(message);
  succeed(id);
}

void Executor::perform(agent::OpId id, const agent::StopJob& op) {
  const auto it = runs_.find(op.lease);
  if (it == runs_.end() || !it->second.link) return fail_code(id, "helper.missing", false);
  it->second.link->send(json::object{{"op", "job_stop"}, {"job", op.job.str()}, {"attempt", op.attempt}});
  succeed(id);
}

void Executor::perform(agent::OpId id, const agent::ReadJobLog& op) {
  const auto it = runs_.find(op.lease);
  if (it == runs_.end() || !it->second.link) return fail_code(id, "helper.missing", false);
  const auto key = std::pair(op.job.value, op.attempt);
  if (const auto old = it->second.log_reads.find(key); old != it->second.log_reads.end())
    fail_code(old->second, "superseded", false);
  it->second.log_reads[key] = id;
  it->second.link->send(json::object{{"op", "job_log"},
                                     {"job", op.job.str()},
                                     {"attempt", op.attempt},
                                     {"offset", op.offset},
                                     {"max", std::min<std::uint32_t>(op.bytes_max, 65'536)}});
  poller_.after(Millis(10'000), [this, id, lease = op.lease, key, alive = alive_] {
    const auto run = *alive ? runs_.find(lease) : runs_.end();
    if (!*alive || run == runs_.end()) return;
    const auto read = run->second.log_reads.find(key);
    if (read == run->second.log_reads.end() || read->second != id) return;
    run->second.log_reads.erase(read);
    fail_code(id, "helper.silent", false);
  });
}

// ---- blobs
void Executor::perform(agent::OpId id, const agent::FindBlob& op) {
  const auto state = blobs_.find(op.blob);
  if (!state.ok()) return fail(id, state.error(), "blob");
  hooks_.result(agent::OpResult{id, true, {}, false, *state});
}

void Executor::perform(agent::OpId id, const agent::WriteBlob& op) {
  const auto state = blobs_.write(op.blob, op.offset, op.data, op.last);
  if (!state.ok()) return fail(id, state.error(), "blob");
  hooks_.result(agent::OpResult{id, true, {}, false, *state});
}

// ---- what runs already
void Executor::adopt(std::function<void(agent::Found)> done) {
  call(VerbKind::List, LeaseId{}, [this, done = std::move(done)](Result<PrivdReply> reply) mutable {
    if (!reply.ok()) {
      // Without privd or engine nothing can be known; leases must not be given up for that.
      poller_.after(Millis(500), [this, done = std::move(done), alive = alive_]() mutable {
        if (*alive) adopt(std::move(done));
      });
      return;
    }
    engine_life_ = static_cast<std::uint64_t>(int_at(reply->fields, {"engine_life"}));
    adopt_listed(reply->fields, std::move(done));
    std::set<LeaseId> leases;
    for (const auto& [lease, run] : runs_) leases.insert(lease);
    overlay_.keep_only(leases);
  });
}

void Executor::adopt_listed(const json::object& listed, std::function<void(agent::Found)> done) {
  std::vector<LeaseId> running, known;
  if (const auto* rows = listed.if_contains("leases"); rows != nullptr && rows->is_array()) {
    for (const auto& row : rows->get_array()) {
      const auto lease = LeaseId::parse(text_at(row, {"lease"}));
      if (!lease) continue;
      Run& run = runs_[*lease];
      if (run.assignment.lease != *lease && !load_assignment(*lease, run)) {
        log_warn("agent", "{} runs but nothing is known about it: it is removed", lease->str());
        runs_.erase(*lease);
        call(VerbKind::Remove, *lease, [](const Result<PrivdReply>&) {});
        continue;
      }
      known.push_back(*lease);
      if (!bool_at(row, {"running"}) || !bool_at(row, {"namespace_up"})) continue;
      running.push_back(*lease);
      run.wanted = true;
      connect_helper(*lease);
      overlay_.attach({*lease, run.assignment.address, run.assignment.prefix_bits},
                      [this, lease = *lease](const Result<OverlayPort::Attached>& attached) {
                        const auto it = runs_.find(lease);
                        if (!attached.ok() || it == runs_.end()) return;
                        it->second.overlay_key = attached->key;
                        if (attached->roster_epoch != 0) it->second.roster_epoch = attached->roster_epoch;
                      });
    }
  }
  poller_.after(running.empty() ? Millis(0) : Millis(1'500),
                [this, running, known, done = std::move(done), alive = alive_] {
                  if (!*alive) return;
                  done(found_now(running, known));
                  check_engine_in(ended_.empty() ? kEngineCheck : Millis(0));
                });
}

agent::Found Executor::found_now(const std::vector<LeaseId>& running, const std::vector<LeaseId>& known) {
  agent::Found found;
  for (const LeaseId lease : known) {
    const auto it = runs_.find(lease);
    if (it == runs_.end()) continue;
    const Run& run = it->second;
    agent::AdoptedLease adopted;
    adopted.assignment = run.assignment;
    adopted.container_running = std::find(running.begin(), running.end(), lease) != running.end();
    const bool spoke = adopted.container_running && run.hello_seen;
    // A helper that was not heard yet says nothing about a Ray that ran.
    adopted.ray_running = spoke ? run.hello.phase == "starting" || run.hello.phase == "ready"
                                : adopted.container_running && run.ray_started;
    adopted.ray_ready = spoke && run.hello.phase == "ready";
    // Setup commands may have nothing to do, then the helper never heard of them: a Ray that runs had its setup.
    adopted.setup_done = spoke && (run.hello.setup_done || adopted.ray_running);
    if (adopted.container_running) adopted.roster_epoch = run.roster_epoch;
    adopted.overlay_key = run.overlay_key;
    adopted.overlay_signature = run.overlay_signature;
    adopted.ray_node_id = run.hello.ray_node_id;
    adopted.pinned = run.pinned;
    adopted.lock = lock_of(run.pinned);
    if (const auto probe = probes_.find(run.digest); probe != probes_.end())
      adopted.probe = probe->second, adopted.packages = packages_.of(run.digest);
    found.leases.push_back(std::move(adopted));
  }
  return found;
}

void Executor::check_engine_in(Millis delay) {
  poller_.cancel(engine_timer_);
  engine_timer_ = poller_.after(delay, [this, alive = alive_] {
    if (*alive) check_engine();
  });
}

// Level-triggered watch over the engine: is it there, and does what should run still run.
void Executor::check_engine() {
  if (checking_ || adopting_) return;  // asked again after it
  checking_ = true;
  asked_ = std::exchange(ended_, {});
  call(VerbKind::List, LeaseId{}, [this](Result<PrivdReply> reply) {
    checking_ = false;
    if (reply.ok()) {
      listed(*reply);
    } else if (reply.error().field != "privd.gone") {
      engine_gone(reply.error().message);
    } else {  // nothing is known yet
      ended_.ray.merge(asked_.ray);
      ended_.setups.insert(ended_.setups.end(), asked_.setups.begin(), asked_.setups.end());
    }
    asked_ = {};
    check_engine_in(!engine_up_ || !ended_.empty() ? Millis(1'000) : kEngineCheck);
  });
}

void Executor::engine_gone(const std::string& why) {
  if (!engine_up_) return;
  log_warn("agent", "the container engine does not answer: {}", why);
  engine_up_ = false;
  hooks_.event(agent::EngineGone{});
}

// What it took along shows in what is found; nothing of that is a fault of the work.
void Executor::engine_back(const PrivdReply& reply) {
  engine_up_ = true;
  log_info("agent", "the container engine is back");
  adopting_ = true;
  adopt_listed(reply.fields, [this](const agent::Found& found) {
    adopting_ = false;
    hooks_.event(agent::EngineBack{found});
    for (const auto& each : found.leases) {
      if (each.container_running) continue;
      Run& run = runs_[each.assignment.lease];
      run.wanted = run.ray_started = run.hello_seen = false;
      run.link.reset();
    }
  });
}

// Why a container ended is often only in what it printed; that is the tenant's, so it stays in this machine's log.
void Executor::tell_last_words(LeaseId lease, const std::string& reason, std::int32_t code) {
  call(VerbKind::Logs, lease, [lease, reason, code](const Result<PrivdReply>& reply) {
    std::string text = reply.ok() ? text_at(reply->fields, {"text"}) : std::string();
    if (text.size() > kLastWordsMax) text.erase(0, text.size() - kLastWordsMax);
    log_warn("agent", "{}: {} with code {}; its last output: {}", lease.str(), reason, code,
             text.empty() ? "none" : text);
  });
}

// The engine was there all the time: what ended did so by itself. Of a whole container that ended is told elsewhere.
void Executor::tell_ends(const PrivdReply& reply) {
  for (const agent::OpId setup : asked_.setups) fail_code(setup, "container.exited", false);
  const auto* rows = reply.fields.if_contains("leases");
  if (rows == nullptr || !rows->is_array()) return;
  for (const auto& row : rows->get_array()) {
    const auto lease = LeaseId::parse(text_at(row, {"lease"}));
    const auto ended = lease ? asked_.ray.find(*lease) : asked_.ray.end();
    if (ended != asked_.ray.end() && bool_at(row, {"running"}) && bool_at(row, {"namespace_up"}))
      hooks_.event(ended->second);
  }
}

void Executor::listed(const PrivdReply& reply) {
  const auto life = static_cast<std::uint64_t>(int_at(reply.fields, {"engine_life"}));
  if (std::exchange(engine_life_, life) != life && engine_up_) engine_gone("it was restarted");
  if (!engine_up_) return engine_back(reply);
  tell_ends(reply);
  const auto* rows = reply.fields.if_contains("leases");
  if (rows == nullptr || !rows->is_array()) return;
  for (const auto& row : rows->get_array()) {
    const auto lease = LeaseId::parse(text_at(row, {"lease"}));
    const auto it = lease ? runs_.find(*lease) : runs_.end();
    if (it == runs_.end() || !it->second.wanted || !bool_at(row, {"exists"})) continue;
    if (bool_at(row, {"running"}) && bool_at(row, {"namespace_up"})) {
      connect_helper(*lease);
      continue;
    }
    it->second.wanted = false;
    it->second.ray_started = it->second.hello_seen = false;
    it->second.link.reset();
    const std::string halted = text_at(row, {"reason"});
    const std::string reason = !halted.empty()         ? halted
                               : bool_at(row, {"oom"}) ? "container.out_of_memory"
                                                       : "container.exited";
    const auto code = static_cast<std::int32_t>(int_at(row, {"exit_code"}));
    tell_last_words(*lease, reason, code);
    hooks_.event(agent::ContainerExited{*lease, code, reason});
  }
}

}  // namespace muster::host
