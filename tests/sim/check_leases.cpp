// I4: nothing runs, and so nothing is billed, outside of the granted interval. I5: an agent that cannot reach the
// server stops by the lease's end. I6: an outage shorter than the lease disturbs nothing.
#include <algorithm>

#include "sim/checkers.h"

namespace muster::sim {
namespace {

using control::State;
using engine::DurableEvent;

// Who just woke or started needs a moment to stop what ended meanwhile.
bool settled(const Node& node, const View& view) {
  return node.core && view.world.now() - node.alive_since > Millis(8000);
}

class WithinLease final : public Checker {
 public:
  WithinLease() : Checker("I4") {}
  void step(const View& view) override {
    if (view.state == nullptr) return;
    for (const auto& node : view.nodes) look(*node, view);
    if (view.clone != nullptr) look(*view.clone, view);
  }

 private:
  void look(const Node& node, const View& view) {
    if (node.liar || !node.powered || node.asleep || !settled(node, view)) return;
    for (const auto& [id, c] : node.containers) {
      looked_at();
      const Lease* lease = view.state->find_lease(id);
      if (!c.running || lease == nullptr || lease->end == LeaseEnd::None || lease->epoch != c.assignment.epoch)
        continue;
      // A copy of this machine was taken for its reboot, and nothing told them apart (see no_copy_for_reboot).
      if (node.shadowed.contains(id)) continue;
      fail(view.world, id.str() + " still runs on " + std::to_string(node.index) + " after its lease ended (" +
                           lease->reason + ")");
    }
  }
};

// Counted from the send of the last renewed heartbeat, never later.
class SelfFence final : public Checker {
 public:
  SelfFence() : Checker("I5") {}
  void op(const Node& node, const agent::Op& op, const State*, World& world) override {
    const auto* create = std::get_if<agent::CreateLease>(&op);
    if (create == nullptr) return;
    const LeaseId id = create->assignment.lease;
    const auto [boot, first] = boots_.try_emplace({node.index, id}, node.facts.boot_id);
    if (!first && boot->second != node.facts.boot_id) fail(world, id.str() + " was started again after a reboot");
  }
  void step(const View& view) override {
    for (const auto& node : view.nodes) {
      if (!node->powered || node->asleep || !node->core || !settled(*node, view)) continue;
      for (const auto& [id, end] : node->allowed) {
        looked_at();
        if (const auto counted = node->core->lease_end(id); counted && *counted > end) {
          fail(view.world,
               id.str() + " counts " + std::to_string((*counted - end).count()) + " ms more than its renewal allows");
        }
        const auto c = node->containers.find(id);
        if (c != node->containers.end() && c->second.running && node->time() > end + Millis(8000))
          fail(view.world, id.str() + " runs past the end of its lease on node " + std::to_string(node->index));
      }
    }
  }

 private:
  std::map<std::pair<std::uint32_t, LeaseId>, std::string> boots_;
};

class NoEarlyFence final : public Checker {
 public:
  NoEarlyFence() : Checker("I6") {}
  void renewed(LeaseId lease, World& world) override { last_[lease] = world.now(); }
  void started(const engine::Base&, const journal::Store&, World& world) override { started_ = world.now(); }
  void step(const View& view) override {
    if (!spoke_.empty() && view.world.steps % 16 != 0) return;
    for (const auto& node : view.nodes) spoke_[node->id] = node->spoke_at;
    if (view.clone != nullptr) spoke_[view.clone->id] = std::max(spoke_[view.clone->id], view.clone->spoke_at);
  }
  void sent(const Node& node, const session::AgentFrame& frame, World& world) override {
    const auto* seen = std::get_if<session::Observed>(&frame);
    if (seen == nullptr || node.liar) return;
    for (const ObservedLease& lease : seen->leases) {
      const auto allowed = node.allowed.find(lease.lease);
      if (lease.reason != "lease_ended" || allowed == node.allowed.end() || !told_.insert(lease.lease).second) continue;
      looked_at();
      // What the server renewed counts once the answer arrived: it may come a moment after the end of a long outage's
      // lease. 60 s may be lost by a restart of the agent, since renewals are written down that seldom.
      if (node.time() < allowed->second - Millis(62'000))
        fail(world, lease.lease.str() + " was fenced though it was renewed lately");
    }
  }
  void durable(const DurableEvent& event, const State&, World& world) override {
    // A restart of ours makes nobody lost: who was not heard since has time to come back.
    const auto* changed = std::get_if<control::NodeStateChanged>(&event.event);
    if (changed != nullptr && changed->state == NodeState::Lost && changed->reason == "silent") {
      looked_at();
      if (world.now() - started_ < Millis(75'000) && spoke_[changed->node] < started_)
        fail(world, changed->node.str() + " was given up before it could come back after our restart");
    }
    const auto* ended = std::get_if<control::LeaseEnded>(&event.event);
    if (ended == nullptr || ended->end != LeaseEnd::Expired || !last_.contains(ended->lease)) return;
    looked_at();
    if (world.now() - last_[ended->lease] < kLease)
      fail(world, ended->lease.str() + " was ended as expired though it was renewed lately");
  }

 private:
  std::map<LeaseId, LeaseTime> last_;
  std::map<NodeId, LeaseTime> spoke_;
  LeaseTime started_{0};
  std::set<LeaseId> told_;
};

}  // namespace

CheckerPtr within_lease() {
  return std::make_unique<WithinLease>();
}
CheckerPtr self_fence() {
  return std::make_unique<SelfFence>();
}
CheckerPtr no_early_fence() {
  return std::make_unique<NoEarlyFence>();
}

}  // namespace muster::sim
