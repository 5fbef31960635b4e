#pragma once
// The core's state as the keeper's tables ask for it. A view for the length of one call: under the engine's read lock.
// Header only, so that the simulation drives the keeper exactly as musterd does.
#include <algorithm>
#include <map>
#include <optional>
#include <set>

#include "control/core.h"
#include "session/frames.h"
#include "session/keeper.h"
#include "session/pair_table.h"

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

// What a machine measured of its ways, where its cluster asked for something. As musterd and the simulation do it.
inline void note_pairs(const control::State& state, NodeId node, const session::NetReport& report,
                       session::PairTable& table, LeaseTime now) {
  const Lease* lease = state.find_lease(report.lease);
  const Cluster* cluster = lease == nullptr || lease->node != node ? nullptr : state.find_cluster(lease->cluster);
  if (cluster == nullptr || cluster->spec.pair_kbps <= 0 || lease->end != LeaseEnd::None) return;
  std::map<std::uint32_t, SlotId> slots;
  for (const SlotId id : cluster->slots)
    if (const Slot* slot = state.find_slot(id); slot != nullptr && slot->in_roster) slots.emplace(slot->address, id);
  for (const session::NetPair& pair : report.pairs) {
    const auto to = slots.find(pair.address);
    constexpr auto kOldest = static_cast<std::uint64_t>(session::PairTable::kSampleLife.count());
    if (to == slots.end()) continue;
    // A test that did not fill it says that it is no slower than that, which is enough where it is what is asked for.
    const auto least = static_cast<std::int64_t>(std::min<std::uint64_t>(pair.at_least_bytes_s, 1ULL << 40) / 125);
    if (pair.carries_bytes_s == 0 && least > cluster->spec.pair_kbps && pair.at_least_age_ms <= kOldest)
      table.measured(cluster->id, lease->slot, to->second, least,
                     now - Millis(static_cast<std::int64_t>(pair.at_least_age_ms)), now);
    if (pair.carries_bytes_s == 0 || pair.carries_age_ms > kOldest) continue;
    const auto kbps = static_cast<std::int64_t>(std::min<std::uint64_t>(pair.carries_bytes_s, 1ULL << 40) / 125);
    const LeaseTime at = now - Millis(static_cast<std::int64_t>(pair.carries_age_ms));
    table.measured(cluster->id, lease->slot, to->second, std::max<std::int64_t>(kbps, 1), at, now);
  }
}

// What the core is to be told of a cluster's ways: nothing, where it would change nothing. Told without a change too
// while somebody may be replaced: when the next one may be is the core's to say.
inline std::optional<control::JudgePairs> judge_pairs(const Cluster& cluster, const session::PairTable& table,
                                                      LeaseTime now) {
  std::vector<std::pair<SlotId, SlotId>> held;
  for (const SlowPair& pair : cluster.slow) held.emplace_back(pair.from, pair.to);
  control::JudgePairs out{cluster.id, {}};
  for (const auto& [from, to, kbps, slow] : table.judge(cluster.id, cluster.spec.pair_kbps, held, now))
    if (slow != std::binary_search(held.begin(), held.end(), std::pair(from, to)))
      out.pairs.push_back({from, to, kbps, slow});
  const bool replaces = cluster.replacing || (cluster.spec.replace_slow && !cluster.slow.empty());
  if (out.pairs.empty() && !replaces) return std::nullopt;
  return out;
}

inline constexpr Millis kJudgeEvery{5'000};
inline std::vector<control::JudgePairs> judge_all_pairs(const control::State& state, session::PairTable& table,
                                                        LeaseTime now) {
  std::vector<control::JudgePairs> out;
  for (const ClusterId id : std::set<ClusterId>(table.watched())) {
    const Cluster* cluster = state.find_cluster(id);
    if (cluster == nullptr || cluster->state != ClusterState::Running || cluster->spec.pair_kbps <= 0) {
      table.forget(id);
      continue;
    }
    table.keep_only(id, {cluster->slots.begin(), cluster->slots.end()});
    if (auto told = judge_pairs(*cluster, table, now)) out.push_back(std::move(*told));
  }
  return out;
}
inline void start_pairs(const control::State& state, session::PairTable& table, LeaseTime now) {
  table.start(now);
  for (const auto& [name, id] : state.cluster_by_name)
    if (const Cluster* cluster = state.find_cluster(id); cluster != nullptr && !cluster->slow.empty()) table.watch(id);
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
