#include "sim/sim.h"

#include <unistd.h>

#include <algorithm>

#include "store/sqlite_store.h"
#include "wire/agent_frames.h"

namespace muster::sim {
namespace {
constexpr std::uint32_t kNodes = 10;
const char* const kNames[] = {"alpha", "beta", "gamma", "delta"};

NodeFacts facts_of(std::uint32_t index) {
  NodeFacts facts;
  facts.hostname = "host-" + std::to_string(index);
  facts.arch = "x86_64";
  facts.os = "Debian 12";
  facts.kernel = "6.1";
  facts.agent_version = "sim";
  facts.region = index % 2 == 0 ? "eu" : "us";
  facts.capacity.cpu_milli = 8000;
  facts.capacity.memory_bytes = std::int64_t{32} << 30;
  facts.capacity.disk_bytes = std::int64_t{500} << 30;
  facts.capacity.gpus = 2;
  for (int i = 0; i < 2; ++i)
    facts.devices.push_back(
        {"GPU-" + std::to_string(index) + "-" + std::to_string(i), "RTX 4090", std::int64_t{24} << 30});
  facts.runtimes = {RuntimeKind::Docker};
  return facts;
}
}  // namespace

Sim::Sim(const RunOptions& options) : options_(options), world_(options.seed) {
  world_.verbose = options.verbose;
  const bool sqlite = options.seed % 8 == 7;
  if (sqlite) {
    dir_ = std::filesystem::temp_directory_path() /
           ("muster-sim-" + std::to_string(::getpid()) + "-" + std::to_string(options.seed));
    std::filesystem::remove_all(dir_);
    std::filesystem::create_directories(dir_);
    store::SqliteStore::Options sqlite_options;
    sqlite_options.path = (dir_ / "journal.db").string();
    sqlite_options.threaded = false;
    auto opened = store::SqliteStore::open(sqlite_options);
    if (opened.ok())
      sqlite_ = std::move(*opened);
    else
      world_.fail("store: " + opened.error().message);
  }
  if (!sqlite_) memory_ = std::make_unique<store::MemoryStore>();
  journal::Store& store = sqlite_ ? *sqlite_ : static_cast<journal::Store&>(*memory_);
  server_ = std::make_unique<SimServer>(
      world_, store, *this,
      [this](std::uint64_t connection, const session::ServerFrame& frame) { deliver(connection, frame); },
      [this](std::uint64_t connection) { server_hung_up(connection); });
}

Sim::~Sim() {
  server_.reset();
  sqlite_.reset();
  if (!dir_.empty()) std::filesystem::remove_all(dir_);
}

// ---- network

void Sim::dial(Node& node, std::uint64_t connection) {
  const Millis way(world_.rng.between(5, 200));
  world_.after(way, [this, &node, connection] {
    const bool reach = !node.silent && server_->up();
    if (node.connection != connection) return;
    if (!reach) return world_.after(Millis(2000), [&node, connection] { node.connection_down(connection); });
    links_[connection] = Link{&node, true, world_.now(), world_.now()};
    node.connection_up(connection);
    server_->connect(connection);
  });
}

void Sim::hang_up(Node& node, std::uint64_t connection) {
  const auto it = links_.find(connection);
  if (it == links_.end()) return;
  it->second.open = false;
  if (node.silent) return;  // nobody hears of it: the server's end stays half open
  world_.after(Millis(world_.rng.between(5, 100)), [this, connection] {
    server_->disconnect(connection);
    links_.erase(connection);
  });
}

void Sim::server_hung_up(std::uint64_t connection) {
  const auto it = links_.find(connection);
  if (it == links_.end() || !it->second.open) return;
  Node* node = it->second.node;
  it->second.open = false;
  world_.after(Millis(world_.rng.between(5, 100)), [this, node, connection] {
    links_.erase(connection);
    node->connection_down(connection);
  });
}

void Sim::to_server(Node& node, std::uint64_t connection, const session::AgentFrame& frame) {
  checkers_.each([&](Checker& c) { c.sent(node, frame, world_); });
  const auto it = links_.find(connection);
  if (it == links_.end()) return;
  Bytes bytes = wire::encode(frame);
  const std::int64_t slow = !chaos_.calm && world_.rng.chance(1, 200) ? 9000 : 60;
  it->second.to_server = std::max(it->second.to_server + Millis(1), world_.now() + Millis(world_.rng.between(5, slow)));
  if (node.silent) return;  // lost; the transport notices much later
  world_.after(it->second.to_server - world_.now(), [this, connection, bytes = std::move(bytes)] {
    if (!links_.contains(connection) || links_[connection].node->silent) return;
    const Result<session::AgentFrame> decoded = wire::decode_agent_frame(bytes);
    if (!decoded) return world_.fail("wire: an agent's frame does not decode: " + decoded.error().message);
    server_->from_agent(connection, *decoded);
  });
}

void Sim::deliver(std::uint64_t connection, const session::ServerFrame& frame) {
  const auto it = links_.find(connection);
  if (it == links_.end() || !it->second.open) return;
  Node* node = it->second.node;
  const Bytes bytes = wire::encode(frame);
  const std::int64_t slow = !chaos_.calm && world_.rng.chance(1, 200) ? 9000 : 60;
  it->second.to_agent = std::max(it->second.to_agent + Millis(1), world_.now() + Millis(world_.rng.between(5, slow)));
  if (std::holds_alternative<session::Desired>(frame)) {
    captured_.emplace_back(node, frame);
    if (captured_.size() > 200) captured_.erase(captured_.begin());
  }
  if (node->silent) return;
  world_.after(it->second.to_agent - world_.now(), [this, node, connection, bytes] {
    if (!links_.contains(connection) || node->silent) return;
    const Result<session::ServerFrame> decoded = wire::decode_server_frame(bytes);
    if (!decoded) return world_.fail("wire: a server's frame does not decode: " + decoded.error().message);
    node->from_server(connection, *decoded);
    // A hostile path repeats an old frame, or a forged one.
    if (chaos_.calm || captured_.empty() || world_.rng.below(100) >= chaos_.replay_percent) return;
    auto [to, old] = captured_[world_.rng.below(captured_.size())];
    if (world_.rng.chance(1, 4))
      std::get<session::Desired>(old).revision += 1000, std::get<session::Desired>(old).assignments.clear();
    if (to == node) node->from_server(connection, old);
  });
}

const Container* Sim::find_head(ClusterId cluster, std::uint32_t address, SlotId member, const Bytes& member_key) {
  for (const auto& node : nodes_) {
    if (!node->powered || node->asleep) continue;
    for (const auto& [lease, c] : node->containers) {
      if (c.assignment.cluster != cluster || c.assignment.address != address || !c.ray_ready) continue;
      for (const RosterEntry& entry : c.entries) {
        if (entry.slot == member && entry.overlay_key == member_key) return &c;
      }
    }
  }
  return nullptr;
}

// ---- observers

void Sim::driver_started(Node& node, LeaseId lease, JobId job, std::uint32_t attempt) {
  checkers_.each([&](Checker& c) { c.driver(node, lease, job, attempt, world_); });
}
void Sim::op_started(Node& node, const agent::Op& op) {
  if (const auto* create = std::get_if<agent::CreateLease>(&op)) {
    node.allowed.try_emplace(create->assignment.lease, node.hello_sent + kLease);
  }
  world_.note("op " + std::to_string(node.index) + " " + std::to_string(op.index()));
  const control::State* state = server_->up() ? &server_->state() : nullptr;
  checkers_.each([&](Checker& c) { c.op(node, op, state, world_); });
}
void Sim::durable(const engine::DurableEvent& event, const control::State& after) {
  checkers_.each([&](Checker& c) { c.durable(event, after, world_); });
}
void Sim::renewed(NodeId, LeaseId lease) {
  const Lease* found = server_->state().find_lease(lease);
  if (found != nullptr && found->end != LeaseEnd::None)
    world_.fail("I9: " + lease.str() + " was renewed after its end");
  checkers_.each([&](Checker& c) { c.renewed(lease, world_); });
}
void Sim::check() {
  const View view{world_,
                  nodes_,
                  clone_.get(),
                  server_->up() ? &server_->state() : nullptr,
                  server_->queued(),
                  server_->leading(),
                  server_->up() && server_->state().frozen};
  checkers_.each([&](Checker& c) { c.step(view); });
}

// ---- setting up

void Sim::setup() {
  server_->start();
  std::vector<std::string> ids;
  const auto now_do = [&](control::Command command) {
    std::string id;
    bool done = false;
    server_->submit(control::Lane::Operator, std::move(command), SimServer::system_actor(),
                    [&](const Result<engine::Reply>& reply) {
                      done = true;
                      if (reply.ok())
                        id = reply->outcome.id;
                      else
                        world_.fail("setup: " + reply.error().message);
                    });
    while (!done && world_.failure.empty() && world_.step()) {
    }
    return id;
  };
  org_ = *OrgId::parse(now_do(control::CreateOrg{"tenants"}));
  other_org_ = *OrgId::parse(now_do(control::CreateOrg{"suppliers"}));
  project_ = *ProjectId::parse(now_do(control::CreateProject{org_, "main"}));
  tenant_ = *PrincipalId::parse(now_do(control::CreatePrincipal{"ann", Role::Tenant, org_}));
  stranger_ = *PrincipalId::parse(now_do(control::CreatePrincipal{"eve", Role::Tenant, other_org_}));
  for (std::uint32_t i = 0; i < kNodes; ++i) {
    Bytes key(32, static_cast<std::uint8_t>(i + 1));
    const Bytes token(32, static_cast<std::uint8_t>(100 + i));
    now_do(control::CreateJoinToken{other_org_, token, {}, Millis(86'400'000)});
    nodes_.push_back(std::make_unique<Node>(*this, i, key, facts_of(i)));
    Node& node = *nodes_.back();
    node.drift_ppm = world_.rng.between(-300, 300);
    node.facts.boot_id = "enrol";
    const std::string id = now_do(control::EnrollNode{token, key, "node-" + std::to_string(i), node.facts});
    if (const auto parsed = NodeId::parse(id))
      node.id = *parsed;
    else
      return world_.fail("setup: enrolment gave no id");
    node.boot();
  }
}

// ---- clients

control::Actor Sim::tenant(const std::string& request_id) {
  control::Actor actor;
  actor.subject.principal = tenant_;
  actor.subject.role = Role::Tenant;
  actor.subject.org = org_;
  actor.request_id = request_id;
  actor.request_hash = Bytes(32, static_cast<std::uint8_t>(request_id.size()));
  return actor;
}

ClusterSpec Sim::random_spec() {
  ClusterSpec spec;
  spec.name = kNames[world_.rng.below(std::size(kNames))];
  spec.image = "muster/ray:2.55.1";
  spec.head.resources.cpu_milli = 1000;
  spec.head.resources.memory_bytes = std::int64_t{2} << 30;
  WorkerGroup group;
  group.name = "workers";
  group.min = 1 + static_cast<std::uint32_t>(world_.rng.below(2));
  group.max = group.min + static_cast<std::uint32_t>(world_.rng.below(2));
  group.request.resources.cpu_milli = 1000;
  group.request.resources.memory_bytes = std::int64_t{2} << 30;
  group.request.resources.gpus = world_.rng.chance(1, 2) ? 1 : 0;
  spec.groups.push_back(group);
  spec.spares = static_cast<std::uint32_t>(world_.rng.below(2));
  spec.priority = static_cast<std::int32_t>(world_.rng.between(-5, 5));
  return spec;
}

// Asks until it is answered, with the same idempotency key: crashes must neither lose nor double it.
void Sim::ask(Request request, std::uint32_t tries) {
  auto answered = std::make_shared<bool>(false);
  const auto again = [this, request, tries, answered] {
    if (*answered || tries > 40) return;
    *answered = true;
    ask(request, tries + 1);
  };
  world_.after(Millis(5000), again);
  server_->submit(
      control::Lane::Tenant, request.command, request.actor,
      [this, request, tries, answered](const Result<engine::Reply>& reply) {
        if (*answered) return;
        *answered = true;
        if (!reply.ok()) {
          if (reply.error().code == Code::Unavailable || reply.error().code == Code::ResourceExhausted) {
            if (tries <= 40)
              world_.after(Millis(world_.rng.between(500, 4000)), [this, request, tries] { ask(request, tries + 1); });
          }
          return;
        }
        if (request.must_fail) return world_.fail("I9: " + request.kind + " was accepted");
        const std::string id = reply->outcome.id;
        const auto [known, fresh] = request_ids_.try_emplace(request.actor.request_id, id);
        if (!fresh && known->second != id)
          world_.fail("I2: the repeated request " + request.actor.request_id + " made " + id + " beside " +
                      known->second);
        const bool there =
            !server_->up() ||
            (request.kind == "cluster"
                 ? server_->state().find_cluster(ClusterId::parse(id).value_or(ClusterId{})) != nullptr
             : request.kind == "job" ? server_->state().find_job(JobId::parse(id).value_or(JobId{})) != nullptr
                                     : true);
        if (!there) world_.fail("I2: " + id + " was acknowledged and is not there");
        // The answer got lost on its way now and then: the same key once more, and once with another body.
        if (tries < 3 && world_.rng.chance(1, 6)) world_.after(Millis(700), [this, request] { ask(request, 30); });
        if (fresh && world_.rng.chance(1, 6)) {
          Request other = request;
          other.actor.request_hash = Bytes(32, 0xEE);
          other.must_fail = true;
          other.kind = "another request under the same idempotency key";
          ask(other, 38);
        }
      });
}

void Sim::client_step() {
  if (chaos_.calm) return;
  world_.after(Millis(world_.rng.between(2000, 15'000)), [this] { client_step(); });
  if (!server_->up()) return;
  const control::State& state = server_->state();
  const std::string key = "r" + std::to_string(next_request_++);
  std::vector<ClusterId> live;
  for (const auto& [id, cluster] : state.clusters) {
    if (cluster.state <= ClusterState::Running) live.push_back(id);
  }
  const std::uint64_t dice = world_.rng.below(10);
  if (dice < 3 || live.empty())
    return ask({control::CreateCluster{project_, random_spec()}, tenant(key), "cluster", "", false});
  const ClusterId any = live[world_.rng.below(live.size())];
  if (dice < 7) {
    JobSpec job;
    job.name = "job";
    job.entrypoint = "python main.py";
    job.retries = static_cast<std::uint32_t>(world_.rng.below(3));
    if (world_.rng.chance(1, 5)) {
      job.ephemeral = true;
      job.cluster_spec = random_spec();
      job.cluster_spec.name = "job-" + key;
    } else {
      job.cluster = state.clusters.at(any).spec.name;
    }
    return ask({control::CreateJob{project_, job}, tenant(key), "job", "", false});
  }
  if (dice == 7) {
    ClusterSpec spec = state.clusters.at(any).spec;
    spec.groups[0].min = 1 + static_cast<std::uint32_t>(world_.rng.below(2));
    spec.groups[0].max = spec.groups[0].min + 1;
    return ask({control::UpdateCluster{any, spec, 0}, tenant(key), "update", "", false});
  }
  if (dice == 8) return ask({control::StopCluster{any, "asked"}, tenant(key), "stop", "", false});
  Request foreign{control::StopCluster{any, "foreign"}, tenant(key), "a stranger's stop of a cluster", "", true};
  foreign.actor.subject.principal = stranger_;
  foreign.actor.subject.org = other_org_;
  ask(foreign, 38);
  if (world_.rng.chance(1, 2)) {
    Request reuse{control::EnrollNode{Bytes(32, 100), Bytes(32, static_cast<std::uint8_t>(200 + world_.rng.below(50))),
                                      "copy", facts_of(90)},
                  SimServer::system_actor(), "a second enrolment with a used join token", "", true};
    ask(reuse, 38);
  }
}

// ---- faults

Node& Sim::any_node() {
  return *nodes_[world_.rng.below(nodes_.size())];
}

std::string Sim::state_word(const Node& node) const {
  if (!node.powered) return "off";
  if (!node.core) return "no agent";
  LeasePhase worst = LeasePhase::Pending;
  bool any = false;
  for (const ObservedLease& lease : node.core->observed_leases()) any = true, worst = std::max(worst, lease.phase);
  static const char* const words[] = {"pending", "pulling",  "creating", "standby", "starting",
                                      "ready",   "draining", "stopped",  "failed"};
  return any ? words[static_cast<std::size_t>(worst)] : node.core->online() ? "idle" : "offline";
}

void Sim::cut(Node& node, Millis length) {
  if (node.silent) return;
  node.silent = true;
  node.cut_at = world_.now();
  node.cut_online = node.core && node.core->online() && !node.asleep;
  world_.after(length, [this, &node, at = node.cut_at] {
    if (node.cut_at != at) return;  // healed meanwhile, and cut again since
    node.silent = false;
    // What stood half open breaks when packets flow again.
    std::vector<std::uint64_t> stale;
    for (const auto& [id, link] : links_) {
      if (link.node == &node && id != node.connection) stale.push_back(id);
    }
    for (const std::uint64_t id : stale) server_->disconnect(id), links_.erase(id);
  });
}

void Sim::fault_step() {
  if (chaos_.calm) return;
  world_.after(Millis(world_.rng.between(1000, 25'000)), [this] { fault_step(); });
  static const char* const names[] = {"server crash",   "agent kill",  "power off",      "suspend",    "partition",
                                      "mass partition", "link drop",   "container exit", "ray exit",   "engine restart",
                                      "disk full",      "liar",        "clone",          "clock step", "store fault",
                                      "long partition", "owner pause", "server pause"};
  fault(names[world_.rng.below(std::size(names))]);
}

void Sim::fault(const std::string& name) {
  Node& node = any_node();
  if (clone_ && clone_->powered && clone_->key == node.key) return;
  ++world_.coverage[{name, state_word(node)}];
  world_.note("fault " + name + " " + std::to_string(node.index));
  Rng& rng = world_.rng;
  if (name == "server crash" || name == "server pause") {
    if (!server_->up()) return;
    server_->crash();
    if (memory_) memory_->settle();
    world_.after(name == "server crash" ? Millis(rng.between(100, 20'000)) : Millis(rng.between(20'000, 150'000)),
                 [this] {
                   if (!server_->up()) server_->start();
                 });
  } else if (name == "agent kill") {
    node.kill_agent();
    world_.after(Millis(rng.between(500, 8000)), [&node] { node.start_agent(); });
  } else if (name == "power off") {
    node.power_off();
    world_.after(Millis(rng.between(5000, 240'000)), [&node] {
      if (!node.powered) node.boot();
    });
  } else if (name == "suspend") {
    node.suspend(Millis(rng.between(2000, 260'000)));
  } else if (name == "partition") {
    cut(node, Millis(rng.between(3000, 60'000)));
  } else if (name == "long partition") {
    cut(node, Millis(rng.between(150'000, 400'000)));
  } else if (name == "mass partition") {
    const Millis length(rng.between(15'000, 140'000));
    for (const auto& each : nodes_) {
      if (rng.below(100) < 75) cut(*each, length);
    }
  } else if (name == "link drop") {
    if (node.connection != 0) server_->disconnect(node.connection), server_hung_up(node.connection);
  } else if (name == "container exit" || name == "ray exit") {
    if (node.powered && !node.asleep) node.container_fault(name == "ray exit");
  } else if (name == "engine restart") {
    if (node.core) node.engine_restart();
  } else if (name == "disk full") {
    node.disk_full = true;
    world_.after(Millis(30'000), [&node] { node.disk_full = false; });
  } else if (name == "liar") {
    node.liar = true;
  } else if (name == "clone") {
    if (clone_ || !node.core || !node.core->online() || node.silent || node.asleep) return;
    clone_ = std::make_unique<Node>(*this, 100 + node.index, node.key, node.facts);
    clone_->id = node.id;
    clone_->boot();
    world_.after(Millis(60'000), [this] {
      if (clone_) clone_->power_off();
    });
  } else if (name == "clock step") {
    if (rng.chance(1, 2))
      world_.wall_offset += rng.between(-3'600'000, 3'600'000);
    else
      node.wall_step = rng.between(-86'400'000, 86'400'000);
  } else if (name == "store fault" && memory_) {
    static constexpr store::Fault faults[] = {store::Fault::AmbiguousWritten, store::Fault::AmbiguousLost,
                                              store::Fault::AmbiguousLate, store::Fault::DiskFull, store::Fault::Error};
    memory_->inject(faults[rng.below(std::size(faults))], static_cast<std::uint32_t>(rng.below(3)));
    world_.after(Millis(rng.between(500, 5000)), [this] { memory_->settle(), memory_->set_disk_full(false); });
  } else if (name == "owner pause") {
    node.owner(rng.chance(1, 2) ? agent::OwnerAction::Pause : agent::OwnerAction::PauseNow);
    world_.after(Millis(rng.between(20'000, 90'000)), [&node] { node.owner(agent::OwnerAction::Resume); });
  }
}

// ---- liveness

void Sim::heal() {
  chaos_.calm = true;
  world_.note("heal");
  if (memory_) memory_->settle(), memory_->set_disk_full(false), memory_->inject(store::Fault::None);
  if (clone_) clone_->power_off();
  for (const auto& node : nodes_) {
    node->silent = node->disk_full = node->liar = false;
    node->wall_step = 0;
    if (!node->powered) node->boot();
    node->kill_agent();  // also clears a refusal for good
    node->start_agent();
    if (node->core && node->core->paused()) node->owner(agent::OwnerAction::Resume);
  }
  if (!server_->up()) server_->start();
}

std::string Sim::not_converged() const {
  if (!server_->leading()) return "the server does not lead";
  const control::State& state = server_->state();
  if (state.frozen) return "still frozen";
  for (const auto& node : nodes_) {
    const muster::Node* known = state.find_node(node->id);
    if (known == nullptr || known->state != NodeState::Online)
      return "node " + std::to_string(node->index) + " is not online: state " +
             (known == nullptr ? "unknown" : std::to_string(static_cast<int>(known->state))) +
             (known != nullptr && known->draining ? ", draining" : "") +
             (node->core && node->core->paused() ? ", paused" : "");
    if (!node->core || !node->core->online())
      return "agent " + std::to_string(node->index) +
             " has no session: " + (node->core ? node->core->last_refusal() : "");
    const std::vector<LeaseId> live = state.live_leases(node->id);
    const std::vector<ObservedLease> seen = node->core->observed_leases();
    if (live.size() != seen.size())
      return "node " + std::to_string(node->index) + " holds " + std::to_string(seen.size()) + " leases, the journal " +
             std::to_string(live.size());
    for (const ObservedLease& lease : seen) {
      const Lease* granted = state.find_lease(lease.lease);
      if (granted == nullptr || granted->want == LeaseWant::Stop) return lease.lease.str() + " is not let go of";
      if (granted->phase != lease.phase) return lease.lease.str() + " is seen differently";
    }
  }
  for (const auto& [id, cluster] : state.clusters) {
    if (control::terminal(cluster.state)) continue;
    if (cluster.state != ClusterState::Running)
      return id.str() + " does not run: state " + std::to_string(static_cast<int>(cluster.state)) + " " +
             cluster.reason;
    std::map<std::string, std::uint32_t> ready;
    for (const SlotId slot_id : cluster.slots) {
      const Slot* slot = state.find_slot(slot_id);
      const Lease* lease = slot == nullptr ? nullptr : state.find_lease(slot->lease);
      if (lease == nullptr) return id.str() + " has a slot without a lease";
      const LeasePhase wanted = slot->role == SlotRole::Spare ? LeasePhase::Standby : LeasePhase::Ready;
      if (lease->phase != wanted)
        return id.str() + ": " + slot_id.str() + " is in phase " + std::to_string(static_cast<int>(lease->phase)) +
               " " + lease->reason;
      if (slot->role == SlotRole::Worker) ++ready[slot->group];
    }
    for (const WorkerGroup& group : cluster.spec.groups) {
      if (ready[group.name] < group.min) return id.str() + " lacks workers";
    }
  }
  for (const auto& [id, job] : state.jobs) {
    if (!control::terminal(job.state))
      return id.str() + " has not ended: state " + std::to_string(static_cast<int>(job.state)) + " " + job.reason;
    if (job.state != JobState::Succeeded) continue;
    const auto log = server_->logs.find({id, job.attempt});
    const auto lines = log == server_->logs.end() ? 0 : std::count(log->second.begin(), log->second.end(), '\n');
    const bool archived_early = job.log_bytes == 0;
    if (!archived_early && (log == server_->logs.end() || log->second.size() < job.log_bytes))
      return "the log of " + id.str() + " has " + std::to_string(lines) + " lines only";
  }
  return {};
}

bool Sim::run_until(const std::function<std::string()>& unmet, Millis limit, const std::string& what) {
  const LeaseTime end = world_.now() + limit;
  std::string why = "nothing happened";
  LeaseTime looked{0};
  while (world_.now() < end && world_.failure.empty()) {
    if (!world_.step()) break;
    check();
    if (world_.now() - looked < Millis(1000)) continue;
    looked = world_.now();
    why = unmet();
    if (why.empty()) return true;
  }
  if (world_.failure.empty()) world_.fail("I8: " + what + ": " + why);
  return false;
}

// After the heal a fresh request must come true, a change must take, a spare must step in, and a stop must end, each in
// good time.
void Sim::prove_progress() {
  std::map<std::string, std::string> done;
  const auto request = [&](control::Command command, const std::string& name) {
    server_->submit(control::Lane::Tenant, std::move(command), tenant("final-" + name),
                    [&done, name](const Result<engine::Reply>& reply) {
                      done[name] = reply.ok() ? reply->outcome.id : "error: " + reply.error().message;
                    });
  };
  ClusterSpec spec = random_spec();
  spec.name = "final";
  spec.spares = 1;
  spec.groups[0].min = 1;
  request(control::CreateCluster{project_, spec}, "cluster");
  const auto cluster = [&]() -> const Cluster* {
    const auto id = ClusterId::parse(done["cluster"]);
    return id && server_->up() ? server_->state().find_cluster(*id) : nullptr;
  };
  if (!run_until(
          [&] {
            return cluster() != nullptr && cluster()->state == ClusterState::Running ? not_converged()
                                                                                     : "no cluster: " + done["cluster"];
          },
          Millis(240'000), "a fresh cluster did not come up"))
    return;
  JobSpec job;
  job.name = "final";
  job.entrypoint = "true";
  job.cluster = "final";
  job.retries = 2;
  request(control::CreateJob{project_, job}, "job");
  const auto job_done = [&]() -> std::string {
    const auto id = JobId::parse(done["job"]);
    const Job* found = id ? server_->state().find_job(*id) : nullptr;
    return found != nullptr && control::terminal(found->state) ? "" : "job " + done["job"];
  };
  if (!run_until(job_done, Millis(90'000), "a fresh job did not end")) return;
  const std::uint64_t number = JobId::parse(done["job"])->value;
  const Job* ended = server_->state().find_job(JobId{number});
  if (number % 11 != 10 && ended->state != JobState::Succeeded)
    return world_.fail("I8: the fresh job did not succeed: " + ended->reason);
  // A worker's machine vanishes; the spare steps in.
  Node* victim = nullptr;
  for (const SlotId slot_id : cluster()->slots) {
    const Slot* slot = server_->state().find_slot(slot_id);
    if (slot->role != SlotRole::Worker) continue;
    const NodeId on = server_->state().find_lease(slot->lease)->node;
    bool heads = false;
    for (const LeaseId lease : server_->state().live_leases(on))
      heads = heads || server_->state().find_slot(server_->state().leases.at(lease).slot)->role == SlotRole::Head;
    for (const auto& node : nodes_) {
      if (node->id == on && !heads) victim = node.get();
    }
  }
  if (victim != nullptr) {
    const NodeId on = victim->id;
    cut(*victim, Millis(60'000));
    const auto replaced = [&]() -> std::string {
      std::uint32_t ready = 0;
      for (const SlotId slot_id : cluster()->slots) {
        const Slot* slot = server_->state().find_slot(slot_id);
        const Lease* lease = server_->state().find_lease(slot->lease);
        if (slot->role == SlotRole::Worker && lease->node == on) return "the lost worker is still a member";
        if (slot->role == SlotRole::Worker && lease->phase == LeasePhase::Ready) ++ready;
      }
      return ready >= 1 ? "" : "no worker is ready";
    };
    if (!run_until(replaced, Millis(45'000), "a lost worker was not replaced")) return;
  }
  // What was granted while all is well lives on well past one lease time.
  if (!run_until([&]() -> std::string { return not_converged(); }, Millis(400'000), "no agreement after the loss"))
    return;
  const LeaseTime later = world_.now() + kLease + Millis(60'000);
  if (!run_until([&]() -> std::string { return world_.now() >= later ? not_converged() : "waiting"; },
                 kLease + Millis(90'000), "leases do not outlive their first term"))
    return;
  if (cluster() == nullptr || cluster()->state != ClusterState::Running)
    return world_.fail("I6: a healthy cluster ended by itself");
  request(control::StopCluster{*ClusterId::parse(done["cluster"]), "done"}, "stop");
  run_until(
      [&]() -> std::string {
        return cluster() != nullptr && cluster()->state == ClusterState::Stopped ? "" : "not stopped";
      },
      Millis(60'000), "a stop did not end");
}

RunResult Sim::run() {
  setup();
  world_.after(Millis(3000), [this] { client_step(); });
  world_.after(Millis(30'000), [this] { fault_step(); });
  while (world_.steps < options_.steps && world_.failure.empty() && world_.step()) check();
  if (options_.liveness && world_.failure.empty()) {
    heal();
    if (run_until([this] { return not_converged(); }, Millis(3'600'000), "no agreement after the heal"))
      prove_progress();
  }
  return {world_.failure, world_.hash(), world_.steps, world_.coverage, world_.log()};
}

RunResult run_simulation(const RunOptions& options) {
  return Sim(options).run();
}

}  // namespace muster::sim
