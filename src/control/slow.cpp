#include "control/slow.h"

#include <algorithm>

#include "control/decide.h"
#include "control/mutants.h"

namespace muster::control {
namespace {

constexpr std::size_t kJudgedAtOnce = 1'024;

bool member(const Draft& d, const Cluster& cluster, SlotId id) {
  const Slot* slot = d.slot(id);
  return slot != nullptr && slot->in_roster &&
         std::find(cluster.slots.begin(), cluster.slots.end(), id) != cluster.slots.end();
}

bool replaceable(const Draft& d, const Slot& slot) {
  const Lease* lease = d.lease(slot.lease);
  const Node* node = lease == nullptr ? nullptr : d.node(lease->node);
  return node != nullptr && (slot.role == SlotRole::Worker || MUSTER_MUTANT(mutants::kReplaceHead)) &&
         lease->want == LeaseWant::Run && lease->phase == LeasePhase::Ready && node->state == NodeState::Online;
}

void note(Draft& d, ClusterId id, const PairJudgement& judged) {
  Cluster& cluster = d.cluster(id);
  const auto at = find_slow(cluster.slow, judged.from, judged.to);
  const bool known = at != cluster.slow.end() && at->from == judged.from && at->to == judged.to;
  if (known == judged.slow) return;
  if (judged.slow && (cluster.slow.size() >= kSlowPairsMax || judged.from == judged.to ||
                      !member(d, cluster, judged.from) || !member(d, cluster, judged.to)))
    return;
  d.emit(PairJudged{id, judged.from, judged.to, std::clamp<std::int64_t>(judged.kbps, 0, std::int64_t{1} << 40),
                    cluster.spec.pair_kbps, judged.slow});
}

// Sought for until the ways are good again, it leaves, or nobody wants that any more.
void seek(Draft& d, ClusterId id) {
  const Cluster& cluster = d.cluster(id);
  const bool wanted = cluster.spec.replace_slow && !d.base.frozen;
  if (cluster.replacing) {
    const bool slow = std::any_of(cluster.slow.begin(), cluster.slow.end(), [&](const SlowPair& pair) {
      return pair.from == cluster.replacing || pair.to == cluster.replacing;
    });
    if (!wanted || !slow) d.emit(ReplacementSought{id, {}, cluster.replaced, cluster.replace_from});
    return;
  }
  if (!wanted || cluster.slow.empty() || (d.wall < cluster.replace_from && !MUSTER_MUTANT(mutants::kReplaceAtOnce)))
    return;
  if (const SlotId worst = worst_worker(d, cluster))
    d.emit(ReplacementSought{id, worst, cluster.replaced, cluster.replace_from});
}

}  // namespace

std::vector<SlowPair>::iterator find_slow(std::vector<SlowPair>& all, SlotId from, SlotId to) {
  return std::lower_bound(all.begin(), all.end(), std::pair(from, to),
                          [](const SlowPair& pair, const auto& key) { return std::pair(pair.from, pair.to) < key; });
}

void forget_ways(Cluster& cluster, SlotId slot) {
  std::erase_if(cluster.slow, [&](const SlowPair& pair) { return pair.from == slot || pair.to == slot; });
  if (cluster.replacing == slot) cluster.replacing = {};
}

SlotId worst_worker(const Draft& d, const Cluster& cluster) {
  std::map<SlotId, std::set<SlotId>> with;
  for (const SlowPair& pair : cluster.slow) with[pair.from].insert(pair.to), with[pair.to].insert(pair.from);
  SlotId worst;
  std::size_t most = 0;
  for (const SlowPair& pair : cluster.slow) {
    const Slot *a = d.slot(pair.from), *b = d.slot(pair.to);
    if (a == nullptr || b == nullptr) continue;
    const auto rank = [&](const Slot& slot) {
      return std::tuple(with[slot.id].size(), slot.role != SlotRole::Head, slot.id);
    };
    const Slot& fault = rank(*a) > rank(*b) ? *a : *b;
    const std::size_t ways = with[fault.id].size();
    if (!replaceable(d, fault) || ways < most || (ways == most && fault.id < worst)) continue;
    worst = fault.id, most = ways;
  }
  return worst;
}

SlotId replaced_by_next(const State& state, const Cluster& cluster, const Missing& missing, const std::string& group,
                        const FindNode& find_node) {
  const SlotId replaced = worker_to_replace(state, cluster, find_node);
  const Slot* slot = replaced ? state.find_slot(replaced) : nullptr;
  const auto lacks = missing.workers.find(group);
  return slot != nullptr && slot->group == group && lacks != missing.workers.end() && lacks->second == 1 ? replaced
                                                                                                         : SlotId{};
}

void replace_slow(Draft& d, SlotId id) {
  const Slot slot = *d.slot(id);
  const NodeId node = d.lease(slot.lease)->node;
  const Cluster& cluster = d.cluster(slot.cluster);
  const Millis pause = kReplaceAgain * (std::int64_t{1} << std::min(cluster.replaced, kReplaceDoublings));
  d.emit(ReplacementSought{slot.cluster, {}, cluster.replaced + 1, d.wall + pause});
  if (!MUSTER_MUTANT(mutants::kForgetApart))
    d.emit(BackoffSet{slot.cluster, node, d.backoff(slot.cluster, node).failures, d.wall + kApart});
  drain_slot(d, id, std::string(kSlowWays));
}

Decided decide(const Asking& a, const JudgePairs& c) {
  TRY_VOID(a.system_only("judge how fast members reach each other"));
  const Cluster* cluster = a.base.find_cluster(c.cluster);
  if (cluster == nullptr || cluster->state != ClusterState::Running || a.base.format_version < kPairFormat ||
      (cluster->spec.pair_kbps <= 0 && cluster->slow.empty()))
    return Decision{};  // a late word of something that ended
  Draft d(a.base, a.actor, a.wall);
  d.pull(c.cluster);
  for (std::size_t i = 0; i < std::min(c.pairs.size(), kJudgedAtOnce); ++i) note(d, c.cluster, c.pairs[i]);
  seek(d, c.cluster);
  return done(d, c.cluster.str());
}

}  // namespace muster::control
