// I14: who is told to leave to make room agreed to that by its tier, is no head, had its two minutes, and somebody of a
// better tier waits; in a freeze nobody is.
#include "sim/checkers.h"

namespace muster::sim {
namespace {

using control::State;
using engine::DurableEvent;

class FairPreemption final : public Checker {
 public:
  FairPreemption() : Checker("I14") {}
  void durable(const DurableEvent& event, const State& after, World& world) override {
    if (const auto* changed = std::get_if<control::LeaseWantChanged>(&event.event);
        changed != nullptr && changed->reason == "preempted")
      look(after, changed->lease, event.at, world);
    if (const auto* left = std::get_if<control::SlotLeft>(&event.event); left != nullptr && left->reason == "preempted")
      if (const Slot* slot = after.find_slot(left->slot)) look(after, slot->lease, event.at, world);
  }

 private:
  void look(const State& state, LeaseId id, WallTime at, World& world) {
    if (!told_.insert(id).second) return;
    const Lease* lease = state.find_lease(id);
    const Slot* slot = lease == nullptr ? nullptr : state.find_slot(lease->slot);
    const Cluster* cluster = lease == nullptr ? nullptr : state.find_cluster(lease->cluster);
    if (slot == nullptr || cluster == nullptr) return;
    looked_at();
    if (slot->role == SlotRole::Head) return fail(world, id.str() + " is a head and was told to make room");
    if (state.frozen) return fail(world, id.str() + " was told to make room in a freeze");
    if (cluster->spec.tier < 2) return fail(world, id.str() + " never agreed to make room");
    if (at - lease->granted_at < Millis(120'000))
      return fail(world, id.str() + " had " + std::to_string((at - lease->granted_at).count()) + " ms only");
    for (const auto& [other, each] : state.clusters)
      if (each.state == ClusterState::Queued && each.spec.tier < cluster->spec.tier) return;
    fail(world, id.str() + " was told to make room for nobody");
  }
  std::set<LeaseId> told_;
};

}  // namespace

CheckerPtr fair_preemption() {
  return std::make_unique<FairPreemption>();
}

}  // namespace muster::sim
