#pragma once
// The core's state as the keeper's tables ask for it. A view for the length of one call: under the engine's read lock.
// Header only, so that the simulation drives the keeper exactly as musterd does.
#include "control/core.h"
#include "session/keeper.h"

namespace muster::server {

class CoreState final : public session::CoreView {
 public:
  explicit CoreState(const control::State& state) : state_(state) {}
  bool frozen() const override { return state_.frozen; }
  std::optional<NodeState> state_of(NodeId id) const override {
    const Node* node = state_.find_node(id);
    return node == nullptr ? std::nullopt : std::optional(node->state);
  }
  std::optional<Roster> roster_of(ClusterId id) const override {
    const Cluster* cluster = state_.find_cluster(id);
    if (cluster == nullptr || cluster->state >= ClusterState::Stopping) return std::nullopt;  // nobody is to stay
    const Slot* head = state_.find_head(*cluster);
    Roster roster{cluster->roster_epoch, {}};
    for (const LeaseId lease : control::roster_leases(state_, *cluster))
      roster.members.push_back({lease, head != nullptr && head->lease == lease});
    return roster;
  }

 private:
  const control::State& state_;
};

// What the journal says when leadership begins.
inline session::Keeper::Start keeper_start(const control::State& state) {
  session::Keeper::Start start;
  start.frozen = state.frozen;
  for (const NodeId id : control::awaited_nodes(state))
    start.nodes.emplace_back(id, control::failure_domain(state.nodes.at(id)));
  for (const auto& [node, lease] : state.leases_by_node) start.leases.push_back(lease);
  for (const auto& [name, cluster] : state.cluster_by_name) start.clusters.push_back(cluster);
  return start;
}

// The cluster whose roster an event may have changed.
inline ClusterId roster_changed_by(const control::State& state, const control::Event& event) {
  SlotId slot;
  if (const auto* keyed = std::get_if<control::SlotKeyed>(&event)) slot = keyed->slot;
  if (const auto* left = std::get_if<control::SlotLeft>(&event)) slot = left->slot;
  if (const auto* promoted = std::get_if<control::SlotPromoted>(&event)) slot = promoted->slot;
  if (const auto* ended = std::get_if<control::LeaseEnded>(&event)) {
    const Lease* lease = state.find_lease(ended->lease);
    return lease == nullptr ? ClusterId{} : lease->cluster;
  }
  if (const auto* changed = std::get_if<control::ClusterStateChanged>(&event)) return changed->cluster;
  const Slot* found = state.find_slot(slot);
  return found == nullptr ? ClusterId{} : found->cluster;
}

}  // namespace muster::server
