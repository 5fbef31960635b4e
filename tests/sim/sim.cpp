#include "sim/sim.h"

#include <unistd.h>

#include <algorithm>

#include "store/sqlite_store.h"
#include "wire/agent_frames.h"

namespace muster::sim {
namespace {
constexpr std::uint32_t kNodes = 10;
}  // namespace

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

namespace {
// Some owners share their GPUs, others have cut one into MIG instances.
void give_parts(std::uint32_t index, NodeFacts& facts) {
  if (index % 3 == 0)
    for (Device& device : facts.devices) device.sharing = GpuSharing::Shared;
  if (index % 3 != 1) return;
  const Device whole = facts.devices.back();
  facts.devices.pop_back();
  facts.capacity.gpus = 1;
  for (const std::int32_t part : {250, 500}) {
    Device instance = whole;
    instance.uuid = "MIG-" + std::to_string(index) + "-" + std::to_string(part);
    instance.sharing = GpuSharing::Mig, instance.part_milli = part, instance.profile = "fake";
    facts.devices.push_back(instance);
  }
}
}  // namespace

Sim::Sim(const RunOptions& options)
    : options_(options),
      world_(options.seed),
      quotas_(options.seed ^ 0x9007a5),
      tiers_(options.seed ^ 0x71e125),
      offers_(options.seed ^ 0x0ffe25),
      headrooms_(options.seed ^ 0x4ead00),
      pairs_(options.seed ^ 0x9a1250),
      parts_(options.seed ^ 0x9a7750) {
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
  server_ = std::make_unique<SimServer>(
      world_, store(), *this,
      [this](std::uint64_t connection, const session::ServerFrame& frame) { deliver(connection, frame); },
      [this](std::uint64_t connection) { server_hung_up(connection); });
}

Sim::~Sim() {
  server_.reset();
  sqlite_.reset();
  if (!dir_.empty()) std::filesystem::remove_all(dir_);
}

namespace {
std::string told(const session::AgentFrame& frame) {
  std::string out;
  const auto leases = [&](const std::vector<ObservedLease>& all) {
    for (const ObservedLease& each : all)
      out += " " + each.lease.str() + ":" + std::to_string(static_cast<int>(each.phase)) + "@" +
             std::to_string(each.roster_epoch) + (each.reason.empty() ? "" : "(" + each.reason + ")");
  };
  const auto jobs = [&](const std::vector<ObservedJob>& all) {
    for (const ObservedJob& each : all)
      out += " " + each.job.str() + "#" + std::to_string(each.attempt) + ":" +
             std::to_string(static_cast<int>(each.state));
  };
  if (const auto* seen = std::get_if<session::Observed>(&frame))
    out = "observed r" + std::to_string(seen->revision), leases(seen->leases), jobs(seen->jobs);
  if (const auto* seen = std::get_if<session::Inventory>(&frame))
    out = "inventory", leases(seen->leases), jobs(seen->jobs);
  if (const auto* hello = std::get_if<session::Hello>(&frame)) out = "hello " + hello->boot_id;
  return out;
}
std::string told(const session::ServerFrame& frame) {
  std::string out;
  if (const auto* desired = std::get_if<session::Desired>(&frame)) {
    out = "desired r" + std::to_string(desired->revision);
    for (const Assignment& each : desired->assignments) {
      out += " " + each.lease.str() + ":" + std::to_string(static_cast<int>(each.want)) + "@" +
             std::to_string(each.roster_epoch);
      for (const JobOrder& job : each.jobs)
        out += "+" + job.job.str() + "#" + std::to_string(job.attempt) + (job.stop ? "!" : "");
    }
  }
  if (const auto* refused = std::get_if<session::Refused>(&frame)) out = "refused " + refused->code;
  return out;
}
}  // namespace

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
  if (world_.verbose)
    if (const std::string text = told(frame); !text.empty()) world_.trace(std::to_string(node.index) + " says " + text);
  const auto it = links_.find(connection);
  if (it == links_.end()) return;
  Bytes bytes = wire::encode(frame);
  const std::int64_t slow = !chaos_.calm && world_.rng.chance(1, 200) ? 9000 : 60;
  it->second.to_server = std::max(it->second.to_server + Millis(1), world_.now() + Millis(world_.rng.between(5, slow)));
  if (node.silent) return;  // lost; the transport notices much later
  const auto arrive = [this, connection, bytes = std::move(bytes)] {
    if (!links_.contains(connection) || links_[connection].node->silent) return;
    const Result<session::AgentFrame> decoded = wire::decode_agent_frame(bytes);
    if (!decoded) return world_.fail("wire: an agent's frame does not decode: " + decoded.error().message);
    const bool word =
        std::holds_alternative<session::Hello>(*decoded) || std::holds_alternative<session::Heartbeat>(*decoded);
    if (word && server_->up()) links_[connection].node->spoke_at = world_.now();
    server_->from_agent(connection, *decoded);
  };
  world_.after(it->second.to_server - world_.now(), arrive);
  // What says how things are may come twice and out of order.
  const bool repeatable = std::holds_alternative<session::Observed>(frame) ||
                          std::holds_alternative<session::Heartbeat>(frame) ||
                          std::holds_alternative<session::LogChunk>(frame);
  if (!chaos_.calm && repeatable && world_.rng.below(100) < chaos_.replay_percent)
    world_.after(it->second.to_server - world_.now() + Millis(world_.rng.between(10, 4000)), arrive);
}

void Sim::deliver(std::uint64_t connection, const session::ServerFrame& frame) {
  const auto it = links_.find(connection);
  if (it == links_.end() || !it->second.open) return;
  Node* node = it->second.node;
  if (world_.verbose)
    if (const std::string text = told(frame); !text.empty())
      world_.trace("server tells " + std::to_string(node->index) + " " + text);
  const Bytes bytes = wire::encode(frame);
  const std::int64_t slow = !chaos_.calm && world_.rng.chance(1, 200) ? 9000 : 60;
  it->second.to_agent = std::max(it->second.to_agent + Millis(1), world_.now() + Millis(world_.rng.between(5, slow)));
  if (std::holds_alternative<session::Desired>(frame) || std::holds_alternative<session::Renewed>(frame) ||
      std::holds_alternative<session::LogAck>(frame)) {
    captured_.emplace_back(node, frame);
    if (captured_.size() > 400) captured_.erase(captured_.begin());
  }
  if (node->silent) return;
  world_.after(it->second.to_agent - world_.now(), [this, node, connection, bytes] {
    if (!links_.contains(connection) || node->silent) return;
    const Result<session::ServerFrame> decoded = wire::decode_server_frame(bytes);
    if (!decoded) return world_.fail("wire: a server's frame does not decode: " + decoded.error().message);
    node->from_server(connection, with_old_roster(*decoded));
    // A hostile path repeats an old frame, or a forged one.
    if (chaos_.calm || captured_.empty() || world_.rng.below(100) >= chaos_.replay_percent) return;
    auto [to, old] = captured_[world_.rng.below(captured_.size())];
    if (auto* desired = std::get_if<session::Desired>(&old); desired != nullptr && world_.rng.chance(1, 4))
      desired->revision += 1000, desired->assignments.clear();
    if (to == node) node->from_server(connection, old);
  });
}

// A roster is signed by itself: a hostile path may put a genuine older one into a genuine order.
session::ServerFrame Sim::with_old_roster(session::ServerFrame frame) {
  auto* desired = std::get_if<session::Desired>(&frame);
  if (desired == nullptr) return frame;
  for (session::SignedRoster& roster : desired->rosters) {
    auto& known = old_rosters_[roster.cluster];
    if (known.empty() || known.back() != roster) known.push_back(roster);
    if (known.size() > 16) known.erase(known.begin());
    if (!chaos_.calm && world_.rng.below(100) < chaos_.replay_percent) roster = known[world_.rng.below(known.size())];
  }
  return frame;
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
  note_shadows(event, after);
  // A liar's word about the end of a job cannot be told from the truth; its log need not exist.
  if (const auto* job = std::get_if<control::JobStateChanged>(&event.event);
      job != nullptr && event.actor.subject.node) {
    told_by_[job->job] = event.actor.subject.node;
    for (const auto& node : nodes_)
      if (node->id == event.actor.subject.node && node->liar) told_by_liars_.insert(job->job);
  }
  checkers_.each([&](Checker& c) { c.durable(event, after, world_); });
}
void Sim::left(std::uint64_t seq, const Bytes& entry) {
  checkers_.each([&](Checker& c) { c.left(seq, entry, store(), world_); });
}
void Sim::answered(const engine::Reply& reply) {
  checkers_.each([&](Checker& c) { c.answered(reply, world_); });
}
void Sim::started(const engine::Base& base) {
  checkers_.each([&](Checker& c) { c.started(base, store(), world_); });
}
void Sim::renewed(NodeId, LeaseId lease) {
  const Lease* found = server_->state().find_lease(lease);
  if (found != nullptr && found->end != LeaseEnd::None)
    world_.fail("I9: " + lease.str() + " was renewed after its end");
  checkers_.each([&](Checker& c) { c.renewed(lease, world_); });
}
// From here on the core takes one of two machines with one key for the reboot of the other: what the other one holds is
// beyond its knowledge. That nothing could tell them apart is checked by no_copy_for_reboot.
void Sim::note_shadows(const engine::DurableEvent& event, const control::State& after) {
  const auto* changed = std::get_if<control::NodeFactsChanged>(&event.event);
  if (changed == nullptr || !clone_ || clone_->id != changed->node) return;
  for (const auto& node : nodes_) {
    if (node->key != clone_->key) continue;
    Node& other = changed->facts.boot_id == clone_->facts.boot_id ? *node : *clone_;
    for (const LeaseId lease : after.live_leases(changed->node)) other.shadowed.insert(lease);
  }
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
  side_project_ = project_;
  if (with_quotas() || tight()) side_project_ = *ProjectId::parse(now_do(control::CreateProject{org_, "side"}));
  if (tight()) {  // where machines are scarce, one of two projects has a guarantee
    now_do(control::SetQuota{org_, {}, {}, Share{100, 12, 24'000}});
    now_do(control::SetQuota{{}, side_project_, {}, Share{200, 8, 8'000}});
  }
  tenant_ = *PrincipalId::parse(now_do(control::CreatePrincipal{"ann", Role::Tenant, org_}));
  stranger_ = *PrincipalId::parse(now_do(control::CreatePrincipal{"eve", Role::Tenant, other_org_}));
  if (with_parts()) {
    guest_org_ = *OrgId::parse(now_do(control::CreateOrg{"guests"}));
    guest_project_ = *ProjectId::parse(now_do(control::CreateProject{guest_org_, "guests"}));
    guest_ = *PrincipalId::parse(now_do(control::CreatePrincipal{"gus", Role::Tenant, guest_org_}));
  }
  for (std::uint32_t i = 0; i < kNodes; ++i) {
    Bytes key(32, static_cast<std::uint8_t>(i + 1));
    const Bytes token(32, static_cast<std::uint8_t>(100 + i));
    now_do(control::CreateJoinToken{other_org_, token, {}, Millis(86'400'000)});
    nodes_.push_back(std::make_unique<Node>(*this, i, key, facts_of(i)));
    Node& node = *nodes_.back();
    node.drift_ppm = world_.rng.between(-300, 300);
    node.facts.boot_id = "enrol";
    if (with_parts()) give_parts(i, node.facts);
    const std::string id = now_do(control::EnrollNode{token, key, "node-" + std::to_string(i), node.facts});
    if (const auto parsed = NodeId::parse(id))
      node.id = *parsed;
    else
      return world_.fail("setup: enrolment gave no id");
    node.boot();
  }
}

RunResult Sim::run() {
  setup();
  world_.after(Millis(3000), [this] { client_step(); });
  world_.after(Millis(30'000), [this] { fault_step(); });
  if (with_quotas()) world_.after(Millis(60'000), [this] { quota_step(); });
  if (with_offers()) world_.after(Millis(5'000), [this] { offer_step(); });
  if (with_pairs()) world_.after(Millis(7'000), [this] { pair_step(); });
  while (world_.steps < options_.steps && world_.failure.empty() && world_.step()) check();
  if (options_.liveness && world_.failure.empty()) {
    heal();
    const auto unmet = [this] {
      const std::string wished = settle_wishes();
      return wished.empty() ? not_converged() : wished;
    };
    if (run_until(unmet, Millis(3'600'000), "no agreement after the heal")) prove_progress();
  }
  RunResult result{world_.failure, world_.hash(), world_.steps, world_.coverage, {}, world_.log()};
  checkers_.each([&](Checker& c) { result.looked[c.invariant()] += c.looked(); });
  return result;
}

RunResult run_simulation(const RunOptions& options) {
  return Sim(options).run();
}

}  // namespace muster::sim
