// What goes wrong in safety mode, and how often it met which state of a machine.
#include <algorithm>

#include "sim/sim.h"
#include "store/memory_store.h"

namespace muster::sim {

const std::vector<std::string>& fault_names() {
  static const std::vector<std::string> names = {
      "server crash",   "server pause",   "upgrade",       "store fault",    "snapshot damage",
      "request storm",  "agent kill",     "power off",     "suspend",        "partition",
      "long partition", "mass partition", "link drop",     "container exit", "ray exit",
      "engine restart", "disk full",      "network stuck", "liar",           "clone",
      "clock step",     "owner pause",    "drain",         "disable",        "revoke"};
  return names;
}

const std::vector<std::string>& state_words() {
  static const std::vector<std::string> words = {"off",      "asleep",   "no agent", "offline",  "idle",
                                                 "pulling",  "creating", "standby",  "starting", "ready",
                                                 "draining", "stopped",  "failed"};
  return words;
}

Node& Sim::any_node() {
  return *nodes_[world_.rng.below(nodes_.size())];
}

std::string Sim::state_word(const Node& node) const {
  if (!node.powered) return "off";
  if (node.asleep) return "asleep";
  if (!node.core) return "no agent";
  LeasePhase worst = LeasePhase::Pending;
  bool any = false;
  for (const ObservedLease& lease : node.core->observed_leases()) any = true, worst = std::max(worst, lease.phase);
  static const char* const words[] = {"pulling", "pulling",  "creating", "standby", "starting",
                                      "ready",   "draining", "stopped",  "failed"};
  if (!node.core->online()) return "offline";
  return any ? words[static_cast<std::size_t>(worst)] : "idle";
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
  // One seed in three is a storm, the others leave time to come up and run.
  world_.after(Millis(world_.rng.between(1000, options_.seed % 3 == 0 ? 25'000 : 90'000)), [this] { fault_step(); });
  const std::string& name = fault_names()[world_.rng.below(fault_names().size())];
  Node& node = any_node();
  const std::string state = state_word(node);
  world_.note("fault " + name + " " + std::to_string(node.index));
  if (platform_fault(name) || machine_fault(name, node) || people_fault(name, node)) ++world_.coverage[{name, state}];
}

// Of the control plane and its disk.
bool Sim::platform_fault(const std::string& name) {
  Rng& rng = world_.rng;
  if (name == "server crash" || name == "server pause") {
    if (!server_->up()) return false;
    server_->crash();
    if (memory_) memory_->settle();
    const Millis length(name == "server crash" ? rng.between(100, 20'000) : rng.between(20'000, 150'000));
    world_.after(length, [this] {
      if (!server_->up()) server_->start();
    });
    return true;
  }
  if (name == "upgrade") {  // of everything, in any order
    if (!server_->up()) return false;
    server_->crash();
    if (memory_) memory_->settle();
    world_.after(Millis(rng.between(2000, 25'000)), [this] {
      if (!server_->up()) server_->start();
    });
    for (const auto& node : nodes_) {
      Node* each = node.get();
      world_.after(Millis(rng.between(0, 30'000)), [each] { each->kill_agent(); });
      world_.after(Millis(rng.between(30'000, 35'000)), [each] { each->start_agent(); });
    }
    return true;
  }
  if (name == "store fault" && memory_) {
    static constexpr store::Fault faults[] = {store::Fault::AmbiguousWritten, store::Fault::AmbiguousLost,
                                              store::Fault::AmbiguousLate, store::Fault::DiskFull, store::Fault::Error};
    const store::Fault fault = faults[rng.below(std::size(faults))];
    memory_->inject(fault, static_cast<std::uint32_t>(rng.below(3)));
    world_.after(Millis(rng.between(500, 5000)), [this] { memory_->settle(), memory_->set_disk_full(false); });
    return true;
  }
  if (name == "snapshot damage" && memory_) {
    memory_->corrupt_newest_snapshot();
    return true;
  }
  if (name == "request storm" && server_->up()) {
    const JobId nothing{1'000'000'000};
    for (int i = 0; i < 1500; ++i)
      server_->submit(control::Lane::Tenant, control::StopJob{nothing}, tenant(""), [](const auto&) {});
    return true;
  }
  return false;
}

bool Sim::machine_fault(const std::string& name, Node& node) {
  Rng& rng = world_.rng;
  if (name == "agent kill") {
    if (!node.core) return false;
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
    // Now and then longer than any lease.
    const Millis length(rng.chance(1, 4) ? rng.between(230'000, 330'000) : rng.between(15'000, 140'000));
    for (const auto& each : nodes_) {
      if (rng.below(100) < 75) cut(*each, length);
    }
  } else if (name == "link drop") {
    if (node.connection == 0) return false;
    server_->disconnect(node.connection), server_hung_up(node.connection);
  } else if (name == "container exit" || name == "ray exit") {
    if (!node.powered || node.asleep) return false;
    node.container_fault(name == "ray exit");
  } else if (name == "engine restart") {
    if (!node.core) return false;
    node.engine_restart();
  } else if (name == "disk full") {
    node.disk_full = true;
    world_.after(Millis(30'000), [&node] { node.disk_full = false; });
  } else if (name == "network stuck") {
    stuck_network(node);
  } else if (name == "liar") {
    node.liar = true;
  } else if (name == "clone") {
    return clone(node);
  } else if (name == "clock step") {
    if (rng.chance(1, 2))
      world_.wall_offset += rng.between(-3'600'000, 3'600'000);
    else
      node.wall_step = rng.between(-86'400'000, 86'400'000);
  } else {
    return false;
  }
  return true;
}

// The machine beats and works, but no roster gets into its networks any more; and somebody leaves one of them.
void Sim::stuck_network(Node& node) {
  Rng& rng = world_.rng;
  node.network_stuck = true;
  world_.after(Millis(rng.between(20'000, 240'000)), [&node] { node.network_stuck = false; });
  if (!server_->up()) return;
  for (const auto& [id, c] : node.containers) {
    const Cluster* cluster = server_->state().find_cluster(c.assignment.cluster);
    if (!c.running || c.roster_epoch == 0 || cluster == nullptr) continue;
    for (const SlotId slot_id : cluster->slots) {
      const Slot* slot = server_->state().find_slot(slot_id);
      const Lease* lease = slot == nullptr ? nullptr : server_->state().find_lease(slot->lease);
      if (lease == nullptr || lease->node == node.id || slot->role == SlotRole::Head) continue;
      for (const auto& other : nodes_)
        if (other->id == lease->node) return cut(*other, Millis(rng.between(30'000, 150'000)));
    }
  }
}

// A copy of the disk, or of the key alone, on another machine.
bool Sim::clone(Node& node) {
  if (clone_ || !node.core || !node.core->online() || node.silent || node.asleep) return false;
  clone_ = std::make_unique<Node>(*this, 100 + node.index, node.key, node.facts);
  clone_->id = node.id;
  if (world_.rng.chance(1, 2)) clone_->disk = node.disk;
  clone_->boot();
  // Its owner ends the quarantine when the copy is gone; now and then too early, and they are found out again.
  const std::int64_t gone = world_.rng.between(30'000, 400'000);
  world_.after(Millis(gone), [this] { clone_->power_off(); });
  if (world_.rng.chance(1, 3)) {
    const Millis early(world_.rng.between(gone / 3, gone));
    world_.after(early, [this, id = node.id] { end_quarantine(id); });
  }
  world_.after(Millis(gone + world_.rng.between(5000, 60'000)), [this, id = node.id] { end_quarantine(id); });
  return true;
}

void Sim::end_quarantine(NodeId id) {
  const muster::Node* node = server_->up() ? server_->state().find_node(id) : nullptr;
  if (node == nullptr || node->state != NodeState::Quarantined) return;
  server_->submit(control::Lane::Operator, control::SetNode{id, control::SetNode::Action::Enable},
                  SimServer::system_actor(), [](const auto&) {});
}

bool Sim::people_fault(const std::string& name, Node& node) {
  Rng& rng = world_.rng;
  // Asked once: whether it takes effect is not the point, that the way back comes after it is.
  const auto set = [this, id = node.id](control::SetNode::Action action) {
    if (!chaos_.calm && server_->up())
      server_->submit(control::Lane::Operator, control::SetNode{id, action}, SimServer::system_actor(),
                      [](const auto&) {});
  };
  if (name == "owner pause") {
    node.owner(rng.chance(1, 2) ? agent::OwnerAction::Pause : agent::OwnerAction::PauseNow);
    world_.after(Millis(rng.between(20'000, 90'000)), [&node] { node.owner(agent::OwnerAction::Resume); });
  } else if (name == "drain") {
    set(control::SetNode::Action::Drain);
    world_.after(Millis(rng.between(20'000, 120'000)), [set] { set(control::SetNode::Action::Undrain); });
  } else if (name == "disable") {
    set(control::SetNode::Action::Disable);
    world_.after(Millis(rng.between(20'000, 120'000)), [set] { set(control::SetNode::Action::Enable); });
  } else if (name == "revoke") {
    if (revoked_ || !rng.chance(1, 3)) return false;
    revoked_ = node.id;
    set(control::SetNode::Action::Revoke);
  } else {
    return false;
  }
  return true;
}

}  // namespace muster::sim
