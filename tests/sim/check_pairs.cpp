// I16: who is replaced for slow ways is a worker of a running cluster that asked for that, outside of a freeze;
// machines said at least four times, over a minute, that a way of it was full and below what is asked for; another one
// is granted with that; not within ten minutes of the last, and longer each time; and for an hour its machine is not
// taken again.
#include <algorithm>

#include "sim/checkers.h"

namespace muster::sim {
namespace {

using control::State;
using engine::DurableEvent;

class SparingReplacement final : public Checker {
 public:
  SparingReplacement() : Checker("I16") {}
  void sent(const Node& node, const session::AgentFrame& frame, World& world) override {
    const auto* net = std::get_if<session::NetReport>(&frame);
    if (net == nullptr) return;
    const auto held = node.containers.find(net->lease);
    if (held == node.containers.end()) return;
    const Assignment& assignment = held->second.assignment;
    for (const session::NetPair& pair : net->pairs)
      if (static_cast<std::int64_t>(pair.carries_bytes_s) / 125 < kPairNeed)
        for (const std::uint32_t end : {assignment.address, pair.address})
          said_[{assignment.cluster, end}][{assignment.address, pair.address}].push_back(world.now());
  }
  void durable(const DurableEvent& event, const State& after, World& world) override {
    if (const auto* granted = std::get_if<control::LeaseGranted>(&event.event)) {
      leaving_.erase(granted->lease.cluster);
      const auto left = left_.find({granted->lease.cluster, granted->lease.node});
      if (left != left_.end() && event.at - left->second < Millis(3'600'000))
        fail(world, granted->lease.cluster.str() + " took " + granted->lease.node.str() + " again at once");
    }
    const auto* sought = std::get_if<control::ReplacementSought>(&event.event);
    if (sought != nullptr && sought->slot) {
      const Slot* slot = after.find_slot(sought->slot);
      if (slot == nullptr || slot->role != SlotRole::Worker)
        fail(world, sought->slot.str() + " is no worker and is to be replaced");
    }
    const auto* changed = std::get_if<control::LeaseWantChanged>(&event.event);
    if (changed != nullptr && changed->reason == "slow_pair")
      look(after, changed->lease, event.at, world);
    else if (!leaving_.empty() && !std::holds_alternative<control::TimerSet>(event.event) &&
             !std::holds_alternative<control::SlotLeft>(event.event))
      fail(world, leaving_.begin()->str() + " had a worker told to leave, and no other granted with that");
  }

 private:
  void look(const State& state, LeaseId id, WallTime at, World& world) {
    const Lease* lease = state.find_lease(id);
    const Slot* slot = lease == nullptr ? nullptr : state.find_slot(lease->slot);
    const Cluster* cluster = lease == nullptr ? nullptr : state.find_cluster(lease->cluster);
    if (slot == nullptr || cluster == nullptr) return;
    looked_at();
    if (slot->role != SlotRole::Worker) return fail(world, id.str() + " is no worker and was replaced");
    if (state.frozen) return fail(world, id.str() + " was replaced in a freeze");
    if (cluster->state != ClusterState::Running || !cluster->spec.replace_slow)
      return fail(world, cluster->id.str() + " never asked for that");
    leaving_.insert(cluster->id);
    left_[{cluster->id, lease->node}] = at;
    auto& [count, last] = done_[cluster->id];
    const Millis pause = Millis(600'000) * (std::int64_t{1} << std::min(count > 0 ? count - 1 : 0, 5));
    if (count > 0 && at - last < pause)
      return fail(world, cluster->id.str() + " had one replaced too soon after the last");
    ++count, last = at;
    for (const auto& [way, times] : said_[{cluster->id, slot->address}])
      if (times.size() >= 4 && times.back() - times.front() >= Millis(55'000)) return;
    fail(world, id.str() + " was replaced, and nobody said often enough that a way of it was slow");
  }

  using Way = std::pair<std::uint32_t, std::uint32_t>;
  std::map<std::pair<ClusterId, std::uint32_t>, std::map<Way, std::vector<LeaseTime>>> said_;
  std::map<std::pair<ClusterId, NodeId>, WallTime> left_;
  std::map<ClusterId, std::pair<int, WallTime>> done_;
  std::set<ClusterId> leaving_;  // until the other one is granted
};

}  // namespace

CheckerPtr sparing_replacement() {
  return std::make_unique<SparingReplacement>();
}

}  // namespace muster::sim
