#include "sim/node.h"

#include <algorithm>

#include "crypto/hash.h"
#include "journal/codec.h"
#include "wire/agent_frames.h"

namespace muster::sim {

Bytes controller_key() {
  return Bytes(32, 0xC0);
}

Bytes sim_sign(const Bytes& key, ByteView message) {
  const crypto::Digest digest = crypto::hmac_sha256(key, message);
  return Bytes(digest.begin(), digest.end());
}

Bytes encode_roster(ClusterId cluster, std::uint64_t epoch, const std::vector<RosterEntry>& entries) {
  journal::Writer out;
  out.number(cluster.value);
  out.number(epoch);
  out.number(entries.size());
  for (const RosterEntry& entry : entries) {
    out.number(entry.slot.value);
    out.byte(static_cast<std::uint8_t>(entry.role));
    out.number(entry.address);
    out.number(entry.node.value);
    out.sized(entry.overlay_key);
  }
  return out.take();
}

Result<agent::OpenedRoster> open_roster(const session::SignedRoster& roster, const Bytes& roster_key) {
  if (roster.signatures.size() != 1 || roster.signatures[0] != sim_sign(roster_key, roster.bytes)) {
    return error(Code::Unauthenticated, "roster not signed by the controller");
  }
  journal::Reader in(roster.bytes);
  agent::OpenedRoster opened;
  opened.cluster = ClusterId{in.number()};
  opened.epoch = in.number();
  for (std::uint64_t n = in.number(); n > 0 && in.ok(); --n) {
    RosterEntry entry;
    entry.slot = SlotId{in.number()};
    entry.role = static_cast<SlotRole>(in.byte());
    entry.address = static_cast<std::uint32_t>(in.number());
    entry.node = NodeId{in.number()};
    const ByteView key = in.sized();
    entry.overlay_key = Bytes(key.begin(), key.end());
    opened.entries.push_back(std::move(entry));
  }
  if (!in.done()) return error(Code::InvalidArgument, "roster bytes");
  return opened;
}

Node::Node(Environment& env, std::uint32_t number, Bytes device_key, NodeFacts node_facts)
    : index(number), key(std::move(device_key)), facts(std::move(node_facts)), env_(&env) {}

LeaseTime Node::time() const {
  const std::int64_t up = (env_->world().now() - booted_).count();
  return LeaseTime{1000 + up + up * drift_ppm / 1'000'000};
}

Now Node::clocks() const {
  return {env_->world().wall() + Millis(wall_step), time()};
}

void Node::boot() {
  powered = true;
  asleep = false;
  booted_ = env_->world().now();
  ++boots_;
  facts.boot_id = "boot-" + std::to_string(index) + "-" + std::to_string(boots_);
  for (auto& [lease, container] : containers)
    container.running = container.ray = container.ray_ready = false, ++container.life;
  allowed.clear();
  beats.clear();
  start_agent();
}

void Node::power_off() {
  kill_agent();
  for (auto& [lease, container] : containers)
    container.running = container.ray = container.ray_ready = false, ++container.life;
  for (auto& [key_, job] : jobs) ++job.run;
  powered = false;
  held_.clear();
}

agent::Found Node::found() const {
  agent::Found out;
  for (const auto& [lease, c] : containers) {
    agent::AdoptedLease each;
    each.assignment = c.assignment;
    each.container_running = c.running;
    each.ray_running = c.ray;
    each.ray_ready = c.ray_ready;
    each.setup_done = c.setup;
    each.roster_epoch = c.roster_epoch;
    each.overlay_key = c.key;
    each.overlay_signature = c.signature;
    each.probe = {c.digest, "2.55.1", "3.11", true, true};
    out.leases.push_back(std::move(each));
  }
  return out;
}

void Node::start_agent() {
  if (!powered || core) return;
  ++agent_life_;
  alive_since = env_->world().now();
  agent::Options options;
  options.agent_version = "sim";
  options.boot_id = facts.boot_id;
  options.certificate_pem = hex(key);
  options.features = {"egress", "standby", "gpu_share"};
  options.seed = env_->world().rng.next();
  agent::Hooks hooks;
  hooks.sign = [this](ByteView message) { return sim_sign(key, message); };
  hooks.desired_genuine = [this](const session::Desired& desired) {
    return desired.signature == sim_sign(controller_key(), wire::desired_signing_bytes(id, desired));
  };
  hooks.open_roster = open_roster;
  core = std::make_unique<agent::Core>(options, hooks, facts);
  beats.clear();
  core->start(disk, found(), clocks());
  // Jobs that ran on meanwhile tell their state again.
  for (const auto& [job_key, job] : jobs) {
    const auto& [lease, id_, attempt] = job_key;
    if (const auto it = containers.find(lease); it != containers.end() && it->second.ray) {
      tell(agent::JobStatus{lease, {id_, attempt, job.state, job.exit_code, "", job.log.size()}});
    }
  }
  poke();
}

void Node::kill_agent() {
  if (!core) return;
  core.reset();
  ++agent_life_;
  cancelled_.clear();
  alarm_at_ = LeaseTime{0};
  if (connection != 0) env_->hang_up(*this, connection);
  connection = 0;
}

void Node::suspend(Millis length) {
  if (!powered || asleep) return;
  asleep = true;
  env_->world().after(length, [this] {
    if (!asleep) return;
    asleep = false;
    alive_since = env_->world().now();
    auto held = std::exchange(held_, {});
    if (core) core->tick(clocks()), poke();
    for (auto& f : held) f();
  });
}

void Node::alarm() {
  if (!core) return;
  const LeaseTime due = core->next_deadline();
  const Millis wait = std::clamp(due - time(), Millis(1), Millis(60'000));
  const LeaseTime at = env_->world().now() + wait;
  if (alarm_at_ > env_->world().now() && alarm_at_ <= at) return;
  alarm_at_ = at;
  env_->world().after(wait, [this, at, life = agent_life_] {
    if (alarm_at_ == at) alarm_at_ = LeaseTime{0};
    if (life != agent_life_ || !core || asleep) return;
    core->tick(clocks());
    poke();
  });
}

void Node::poke() {
  if (!core) return;
  for (const agent::Action& action : core->take_actions()) {
    perform(action);
    if (!core) return;
  }
  alarm();
}

void Node::send(session::AgentFrame frame) {
  if (connection == 0) return;
  if (const auto* beat = std::get_if<session::Heartbeat>(&frame)) beats[beat->echo] = time();
  if (std::holds_alternative<session::Hello>(frame)) hello_sent = time();
  if (liar && std::holds_alternative<session::Observed>(frame)) {
    auto& seen = std::get<session::Observed>(frame);
    Rng& rng = env_->world().rng;
    for (int i = 0; i < 3; ++i) {
      ObservedLease lie;
      lie.lease = LeaseId{1 + rng.below(40)};
      lie.epoch = {1, 1 + rng.below(4), rng.below(60)};
      lie.phase = static_cast<LeasePhase>(rng.below(9));
      lie.overlay_key = Bytes(32, static_cast<std::uint8_t>(rng.below(256)));
      seen.leases.push_back(lie);
      seen.jobs.push_back({JobId{1 + rng.below(20)}, 1 + static_cast<std::uint32_t>(rng.below(2)),
                           static_cast<JobState>(1 + rng.below(7)), 0, "", rng.below(99)});
    }
  }
  env_->to_server(*this, connection, frame);
}

void Node::perform(const agent::Action& action) {
  if (const auto* frame = std::get_if<agent::SendFrame>(&action)) {
    send(frame->frame);
  } else if (const auto* op = std::get_if<agent::StartOp>(&action)) {
    run_op(op->id, op->op);
  } else if (const auto* cancel = std::get_if<agent::CancelOp>(&action)) {
    cancelled_.insert(cancel->id);
  } else if (std::holds_alternative<agent::Dial>(action)) {
    connection = env_->world().rng.next() | 1;
    env_->dial(*this, connection);
  } else if (std::holds_alternative<agent::DropLink>(action)) {
    if (connection != 0) env_->hang_up(*this, connection);
    connection = 0;
  } else if (const auto* persist = std::get_if<agent::Persist>(&action)) {
    disk = persist->bytes;
  }
}

void Node::connection_up(std::uint64_t which) {
  if (!core || which != connection) return;
  beats.clear();
  core->on_link_up(clocks());
  poke();
}

void Node::connection_down(std::uint64_t which) {
  if (!core || which != connection) return;
  connection = 0;
  core->on_link_down(clocks());
  poke();
}

void Node::from_server(std::uint64_t which, const session::ServerFrame& frame) {
  if (asleep) return held_.push_back([this, which, frame] { from_server(which, frame); });
  if (!core || which != connection) return;
  if (const auto* renewed = std::get_if<session::Renewed>(&frame)) {
    if (const auto beat = beats.find(renewed->echo); beat != beats.end()) {
      for (const LeaseId lease : renewed->leases)
        allowed[lease] = std::max(allowed[lease], beat->second + renewed->lease);
      hello_sent = std::max(hello_sent, beat->second);
      beats.erase(beats.begin(), std::next(beat));
    }
  }
  core->on_frame(frame, clocks());
  poke();
}

void Node::owner(agent::OwnerAction action) {
  if (asleep) return held_.push_back([this, action] { owner(action); });
  if (!core) return;
  core->on_owner(action, "owner", clocks());
  poke();
}

void Node::tell(const agent::RuntimeEvent& event) {
  if (asleep) return held_.push_back([this, event] { tell(event); });
  if (!core) return;
  core->on_event(event, clocks());
  poke();
}

void Node::result(agent::OpId op, agent::OpResult value, std::uint64_t life) {
  if (asleep) return held_.push_back([this, op, value, life] { result(op, value, life); });
  if (!core || life != agent_life_) return;
  value.op = op;
  core->on_result(value, clocks());
  poke();
}

void Node::run_op(agent::OpId op_id, const agent::Op& op) {
  env_->op_started(*this, op);
  World& world = env_->world();
  const bool stuck = network_stuck && std::holds_alternative<agent::ConfigureNetwork>(op);
  const bool lost = stuck || (!env_->chaos().calm && world.rng.chance(1, 100));
  const bool slow = std::holds_alternative<agent::EnsureImage>(op) || std::holds_alternative<agent::RunSetup>(op);
  const Millis first(world.rng.between(5, slow ? 15'000 : 800)), second(world.rng.between(1, 50));
  world.after(first, [this, op_id, op, second, lost, stuck, life = agent_life_] {
    if (life != agent_life_ || !core || !powered) return;
    if (cancelled_.erase(op_id) != 0) return;
    const auto act = [this, op_id, op, second, lost, stuck, life] {
      if (!powered || stuck || life != agent_life_) return;
      agent::OpResult value = do_op(op);
      if (!lost) env_->world().after(second, [this, op_id, value, life] { result(op_id, value, life); });
    };
    if (asleep)
      held_.push_back(act);
    else
      act();
  });
}

agent::OpResult Node::do_op(const agent::Op& op) {
  World& world = env_->world();
  agent::OpResult out;
  const bool ending = std::holds_alternative<agent::StopLease>(op) || std::holds_alternative<agent::RemoveLease>(op);
  if (!ending && !env_->chaos().calm && world.rng.below(100) < env_->chaos().op_fault_percent)
    return out.ok = false, out.reason = "injected", out;
  if (const auto* image = std::get_if<agent::EnsureImage>(&op)) {
    if (disk_full) return out.ok = false, out.reason = "disk_full", out;
    out.value = agent::ImageReady{"sha256:" + image->image};
    const std::string& name = image->asked.empty() ? image->image : image->asked;
    if (std::find(facts.images.begin(), facts.images.end(), name) == facts.images.end() && facts.images.size() < 16) {
      facts.images.push_back(name);
      facts.image_bytes[name] = std::int64_t{1} << 30;
      if (core) core->set_facts(facts, clocks());
    }
  } else if (const auto* probe = std::get_if<agent::ProbeImage>(&op)) {
    out.value = ImageProbe{probe->digest, "2.55.1", "3.11", true, true};
  } else if (const auto* create = std::get_if<agent::CreateLease>(&op)) {
    if (disk_full) return out.ok = false, out.reason = "disk_full", out;
    Container& c = containers[create->assignment.lease];
    if (!c.running) {
      c.assignment = create->assignment;
      c.digest = create->digest;
      c.running = true;
      c.ray = c.ray_ready = c.setup = false;
      c.life = next_life_++;
      if (c.key.empty()) c.key = sim_sign(key, as_bytes("overlay" + std::to_string(create->assignment.lease.value)));
      c.signature = Bytes(64, 7);
    }
    out.value = agent::LeaseCreated{c.key, c.signature};
  } else if (const auto* network = std::get_if<agent::ConfigureNetwork>(&op)) {
    Container& c = containers[network->lease];
    if (c.running)
      c.roster_epoch = network->roster_epoch, c.entries = network->entries;
    else
      out.ok = false, out.reason = "not_running";
  } else if (const auto* setup = std::get_if<agent::RunSetup>(&op)) {
    Container& c = containers[setup->lease];
    if (c.running)
      c.setup = true;
    else
      out.ok = false, out.reason = "not_running";
  } else if (const auto* start = std::get_if<agent::StartRay>(&op)) {
    Container& c = containers[start->lease];
    if (!c.running) return out.ok = false, out.reason = "not_running", out;
    c.assignment.role = start->role;
    if (!c.ray) {
      c.ray = true;
      world.after(Millis(world.rng.between(500, 6000)),
                  [this, lease = start->lease, life = c.life] { poll_ray(lease, life); });
    }
  } else if (const auto* stop = std::get_if<agent::StopLease>(&op)) {
    if (const auto it = containers.find(stop->lease); it != containers.end()) kill_container(it->second, false);
  } else if (const auto* remove = std::get_if<agent::RemoveLease>(&op)) {
    if (const auto it = containers.find(remove->lease); it != containers.end()) {
      kill_container(it->second, false);
      containers.erase(it);
    }
    std::erase_if(jobs, [&](const auto& job) { return std::get<0>(job.first) == remove->lease; });
  } else if (const auto* submit = std::get_if<agent::SubmitJob>(&op)) {
    const auto it = containers.find(submit->lease);
    if (it == containers.end() || !it->second.ray_ready) return out.ok = false, out.reason = "ray_not_ready", out;
    const auto [job, fresh] = jobs.try_emplace({submit->lease, submit->order.job, submit->order.attempt});
    if (fresh) {
      env_->driver_started(*this, submit->lease, submit->order.job, submit->order.attempt);
      world.after(Millis(500), [this, key_ = job->first, run = job->second.run] {
        run_job(std::get<0>(key_), std::get<1>(key_), std::get<2>(key_), run);
      });
    }
  } else if (const auto* stop_job = std::get_if<agent::StopJob>(&op)) {
    const auto it = jobs.find({stop_job->lease, stop_job->job, stop_job->attempt});
    if (it != jobs.end() && it->second.state == JobState::Running) {
      it->second.state = JobState::Stopped;
      ++it->second.run;
      tell(agent::JobStatus{
          stop_job->lease,
          {stop_job->job, stop_job->attempt, JobState::Stopped, -1, "stopped", it->second.log.size()}});
    }
  } else if (const auto* read = std::get_if<agent::ReadJobLog>(&op)) {
    const auto it = jobs.find({read->lease, read->job, read->attempt});
    agent::LogData data;
    if (it != jobs.end() && read->offset <= it->second.log.size()) {
      data.data =
          to_bytes(std::string_view(it->second.log).substr(read->offset, std::min<std::size_t>(read->bytes_max, 200)));
      data.log_bytes = it->second.log.size();
    }
    out.value = data;
  } else if (std::holds_alternative<agent::FindBlob>(op) || std::holds_alternative<agent::WriteBlob>(op)) {
    out.value = agent::BlobState{true, 1};
  }
  return out;
}

void Node::poll_ray(LeaseId lease, std::uint64_t life) {
  const auto it = containers.find(lease);
  if (it == containers.end() || it->second.life != life || !it->second.ray || it->second.ray_ready || !powered) return;
  Container& c = it->second;
  bool ready = c.assignment.role == SlotRole::Head;
  if (!ready && !asleep) {
    const Container* head = env_->find_head(c.assignment.cluster, c.assignment.head_address, c.assignment.slot, c.key);
    const bool known = head != nullptr && std::any_of(c.entries.begin(), c.entries.end(),
                                                      [&](const RosterEntry& e) { return e.overlay_key == head->key; });
    ready = known;
  }
  if (!ready) {
    env_->world().after(Millis(1000), [this, lease, life] { poll_ray(lease, life); });
    return;
  }
  c.ray_ready = true;
  tell(agent::RayReady{lease, "ray-" + std::to_string(life)});
}

void Node::run_job(LeaseId lease, JobId job, std::uint32_t attempt, std::uint64_t run) {
  const auto it = jobs.find({lease, job, attempt});
  const auto container = containers.find(lease);
  if (it == jobs.end() || it->second.run != run || it->second.state != JobState::Running || !powered) return;
  if (container == containers.end() || !container->second.ray) return;
  SimJob& sim = it->second;
  const std::uint64_t lines = 3 + job.value % 7;
  const std::uint64_t line = static_cast<std::uint64_t>(std::count(sim.log.begin(), sim.log.end(), '\n'));
  if (!asleep)
    sim.log += job.str() + " attempt " + std::to_string(attempt) + " line " + std::to_string(line) +
               std::string(100, '.') + "\n";
  if (line + 1 >= lines && !asleep) {
    sim.state = job.value % 11 == 10 ? JobState::Failed : JobState::Succeeded;
    sim.exit_code = sim.state == JobState::Failed ? 3 : 0;
  }
  tell(agent::JobStatus{lease, {job, attempt, sim.state, sim.exit_code, "", sim.log.size()}});
  if (sim.state != JobState::Running) return;
  env_->world().after(Millis(2000), [this, lease, job, attempt, run] { run_job(lease, job, attempt, run); });
}

void Node::kill_container(Container& c, bool ray_only) {
  c.ray = c.ray_ready = false;
  if (!ray_only) c.running = c.setup = false, c.roster_epoch = 0, c.entries.clear();
  ++c.life;
  for (auto& [key_, job] : jobs) {
    if (std::get<0>(key_) == c.assignment.lease && job.state == JobState::Running)
      ++job.run, job.state = JobState::Failed;
  }
}

void Node::container_fault(bool ray_only) {
  for (auto& [lease, c] : containers) {
    if (!c.running || (ray_only && !c.ray)) continue;
    kill_container(c, ray_only);
    if (ray_only)
      tell(agent::RayExited{lease, 137, "ray_exited"});
    else
      tell(agent::ContainerExited{lease, 137, "container_exited"});
    return;
  }
}

void Node::engine_restart() {
  tell(agent::EngineGone{});
  env_->world().after(Millis(3000), [this] { tell(agent::EngineBack{found()}); });
}

}  // namespace muster::sim
