// Work that is moved together, against trying every set of workers and every place for them.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <set>

#include "base/rng.h"
#include "scheduler/market_world.h"

namespace muster::scheduler::move_test {
namespace {

using namespace std::chrono_literals;

constexpr WallTime kMoveT0{1'000'000'000};

struct Floor : MarketWorld {
  std::map<ClusterId, Request> waiting;
  Floor() : MarketWorld(kMoveT0) {}
  LeaseId run(std::uint64_t cluster, std::uint64_t on, std::int64_t cpus, std::uint8_t tier, Millis age = 30min,
              SlotRole role = SlotRole::Worker, bool movable = true) {
    LeaseView l;
    l.cluster = ClusterId{cluster}, l.group = role == SlotRole::Worker ? "w" : "";
    const LeaseId id = begin(l, on, cpus, tier, age, role);
    if (tier >= kPreemptibleTier && role == SlotRole::Worker && movable) shape(cluster, cpus, tier);
    return id;
  }
  void shape(std::uint64_t cluster, std::int64_t cpus, std::uint8_t tier) {
    Request r = gang(cluster, {cpus}, tier);
    r.gang[0].role = SlotRole::Worker, r.gang[0].group = "w";
    s.apply(ShapeChanged{ClusterId{cluster}, r});
  }
  void ask(std::uint64_t id, const std::vector<std::int64_t>& cpus, std::uint8_t tier, Millis waited = 5h) {
    Request r = gang(id, cpus, tier);
    r.since = now - waited;
    waiting[r.cluster] = r;
    s.apply(RequestChanged{r});
  }
  std::vector<Group> plan() { return s.plan({}, now); }
  // What the core does with it.
  void commit(const Group& g, std::vector<LeaseId>& leave) {
    for (std::size_t i = 0; i < g.victims.size(); ++i) {
      LeaseView& l = leases.at(g.victims[i]);
      l.leaving = l.preempted = l.moved = true;
      s.apply(LeaseChanged{l});
      leave.push_back(l.lease);
      LeaseView again;
      again.cluster = l.cluster, again.group = l.group, again.tenant = l.tenant;
      begin(again, g.places[i].node.value, l.resources.cpu_milli / 1000, l.tier, 0ms, SlotRole::Worker);
    }
  }
};

TEST(Move, SmallWorkMovesTogetherAndTheLargeRequestStarts) {
  Floor m;
  m.machine(1, 4), m.machine(2, 4);
  const LeaseId small = m.run(50, 1, 1, 2, 30min);
  m.run(51, 2, 1, 2, 5h);
  m.ask(1, {4}, 2);
  auto groups = m.plan();
  ASSERT_EQ(groups.size(), 1U);
  EXPECT_EQ(groups[0].kind, ActionKind::Move);
  EXPECT_EQ(groups[0].cluster, ClusterId{1});
  EXPECT_EQ(groups[0].victims, std::vector<LeaseId>{small}) << "the younger one loses less";
  ASSERT_EQ(groups[0].places.size(), 1U);
  EXPECT_EQ(groups[0].places[0].node, NodeId{2});
  EXPECT_EQ(groups[0].places[0].group, "w");
  const QueueView view = m.s.queue_of(ClusterId{1}, m.now);
  EXPECT_EQ(view.reason.code, "making_room");
  EXPECT_EQ(view.reason.params.at("moves"), "true");
  EXPECT_TRUE(m.plan().empty()) << "once is enough";
  m.ask(2, {3}, 2, 1min);
  EXPECT_TRUE(m.plan().empty()) << "what is reserved for the one that moves is nobody else's";
  std::vector<LeaseId> leave;
  m.commit(groups[0], leave);
  EXPECT_TRUE(m.plan().empty());
  EXPECT_EQ(m.s.queue_of(ClusterId{1}, m.now).reason.params.at("moves"), "true");
  m.now = m.now + 20s;
  EXPECT_TRUE(m.plan().empty()) << "it is on its way";
  m.end(leave[0]);
  groups = m.plan();
  ASSERT_FALSE(groups.empty());
  EXPECT_EQ(groups[0].kind, ActionKind::Start);
  EXPECT_EQ(groups[0].cluster, ClusterId{1});
  EXPECT_EQ(groups[0].places[0].node, NodeId{1});
}

TEST(Move, NothingElseIsTouched) {
  for (const char* why : {"head", "consent", "a better tier", "too young", "frozen", "no place", "its own machine",
                          "not worth it", "unknown needs"}) {
    const std::string_view w = why;
    Floor m;
    m.machine(1, 4), m.machine(2, w == "no place" ? 1 : 4);
    const std::uint8_t tier = w == "consent" ? 1 : w == "a better tier" ? 2 : 3;
    m.run(50, 1, 1, tier, w == "too young" ? 9min : 30min, w == "head" ? SlotRole::Head : SlotRole::Worker,
          w != "unknown needs");
    if (w != "no place") m.run(51, 2, 1, 1, 5h);
    if (w == "no place") m.run(51, 2, 1, 1, 5h);
    if (w == "its own machine") m.run(50, 2, 1, 3, 5h, SlotRole::Head);
    if (w == "frozen") m.s.apply(FreezeChanged{true});
    m.ask(1, {4}, 3, w == "not worth it" ? 5min : 5h);
    EXPECT_TRUE(m.plan().empty()) << why;
  }
}

TEST(Move, ItIsMadeWhenWaitingHasBecomeDearer) {
  Floor m;
  m.machine(1, 4), m.machine(2, 4);
  m.run(50, 1, 1, 2, 60min), m.run(51, 2, 1, 1, 5h);
  m.ask(1, {4}, 2, 0ms);
  // Four CPUs that wait for t against one that loses 65 minutes and t: from 22 minutes on.
  for (int minute = 0; minute < 21; ++minute) {
    EXPECT_TRUE(m.plan().empty()) << minute;
    m.now = m.now + 1min;
  }
  m.now = m.now + 2min;
  const auto groups = m.plan();
  ASSERT_EQ(groups.size(), 1U);
  EXPECT_EQ(groups[0].kind, ActionKind::Move);
}

TEST(Move, WhatIsToEndSoonIsWaitedFor) {
  Floor m;
  m.machine(1, 4), m.machine(2, 4);
  m.run(50, 1, 1, 2, 60min), m.run(51, 2, 1, 1, 5h);
  m.s.apply(TermsChanged{ClusterId{50}, m.now + 10min, {}});
  m.ask(1, {4}, 2, 5h);
  EXPECT_TRUE(m.plan().empty()) << "it starts in ten minutes anyway, and they would cost an hour";
}

TEST(Move, WhatMayBePreemptedMovesInsteadWhereItFindsAPlace) {
  Floor m;
  m.machine(1, 4), m.machine(2, 4);
  m.run(50, 1, 1, 3, 30min), m.run(51, 2, 2, 1, 5h);
  m.ask(1, {4}, 1, 0ms);
  auto groups = m.plan();
  ASSERT_EQ(groups.size(), 1U);
  EXPECT_EQ(groups[0].kind, ActionKind::Move);
  // The core refuses without a word: then it is preempted.
  m.now = m.now + 6s;
  groups = m.plan();
  ASSERT_EQ(groups.size(), 1U);
  EXPECT_EQ(groups[0].kind, ActionKind::Preempt);
}

TEST(Move, WhatIfSaysThatWorkWouldMove) {
  Floor m;
  m.machine(1, 4), m.machine(2, 4);
  m.run(50, 1, 1, 2, 30min), m.run(51, 2, 1, 1, 5h);
  Floor other;
  other.ask(1, {4}, 2, 5h);
  const Forecast f = forecast(m.s.snapshot(), RequestChanged{other.waiting.at(ClusterId{1})}, m.now);
  EXPECT_TRUE(f.group.places.empty());
  EXPECT_EQ(f.view.reason.code, "making_room");
  EXPECT_EQ(f.view.reason.params.at("moves"), "true");
}

// ---- the oracle
struct Hand {  // what may happen to one worker
  LeaseId id;
  ClusterId cluster;
  std::int64_t cpus = 0, cost = 0;
  std::size_t at = 0;
  bool later = false;  // of a later tier than who asks
};
struct Oracle {
  std::vector<NodeId> nodes;
  std::vector<std::int64_t> free;  // CPUs, now
  std::vector<Hand> movable;
  std::vector<std::set<ClusterId>> clusters;  // on each machine
  std::vector<std::int64_t> needs;
  std::int64_t wins = 0;
  std::int64_t best = -1;  // the least that it costs, where that is worth it

  bool fits(std::vector<std::int64_t> room) const {
    std::vector<std::int64_t> need = needs;
    std::sort(room.rbegin(), room.rend()), std::sort(need.rbegin(), need.rend());
    if (room.size() < need.size()) return false;
    for (std::size_t i = 0; i < need.size(); ++i)
      if (room[i] < need[i]) return false;
    return true;
  }
  void look() { look(0, free, free, clusters, 0, true); }
  // now: what is free for those that move; then: when they have left.
  void look(std::size_t i, const std::vector<std::int64_t>& now, const std::vector<std::int64_t>& then,
            const std::vector<std::set<ClusterId>>& on, std::int64_t cost, bool later) {
    if (best >= 0 && cost >= best) return;
    if (cost > 0 && (later || cost < wins) && fits(then)) best = cost;
    if (i == movable.size()) return;
    look(i + 1, now, then, on, cost, later);
    const Hand& h = movable[i];
    for (std::size_t n = 0; n < nodes.size(); ++n) {
      if (n == h.at || now[n] < h.cpus || on[n].contains(h.cluster)) continue;
      auto now2 = now, then2 = then;
      auto on2 = on;
      now2[n] -= h.cpus, then2[n] -= h.cpus, then2[h.at] += h.cpus;
      on2[n].insert(h.cluster);
      look(i + 1, now2, then2, on2, cost + h.cost, later && h.later);
    }
  }
};

TEST(Move, LawsAndPriceAgainstTryingEverything) {
  int moved = 0, none = 0, missed = 0, best = 0;
  std::int64_t paid = 0, least = 0;
  for (std::uint64_t seed = 1; seed <= 4'000; ++seed) {
    Rng rng(seed);
    Floor m;
    const std::uint64_t machines = 2 + rng.below(3);
    for (std::uint64_t i = 1; i <= machines; ++i) m.machine(i, rng.between(3, 6));
    std::uint64_t cluster = 50;
    for (std::uint64_t i = 1; i <= machines; ++i)
      for (std::uint64_t k = rng.below(3); k > 0; --k) {
        const std::int64_t cpus = rng.between(1, 2);
        if (m.nodes.at(NodeId{i}).free.cpu_milli < cpus * 1000) continue;
        if (rng.chance(1, 3)) ++cluster;
        const auto tier = static_cast<std::uint8_t>(2 + cluster % 3 - (cluster % 5 == 0 ? 1 : 0));
        const bool there = std::any_of(m.leases.begin(), m.leases.end(), [&](const auto& l) {
          return l.second.cluster == ClusterId{cluster} && l.second.node == NodeId{i};
        });
        if (there) ++cluster;
        // All workers of a cluster are alike here, as one group's are.
        std::int64_t size = cpus;
        for (const auto& [id, l] : m.leases)
          if (l.cluster == ClusterId{cluster} && l.role == SlotRole::Worker) size = l.resources.cpu_milli / 1000;
        if (m.nodes.at(NodeId{i}).free.cpu_milli < size * 1000) continue;
        m.run(cluster, i, size, there ? static_cast<std::uint8_t>(2 + cluster % 3 - (cluster % 5 == 0 ? 1 : 0)) : tier,
              Millis(rng.between(1, 120) * 60'000), rng.chance(1, 6) ? SlotRole::Head : SlotRole::Worker);
      }
    const bool frozen = rng.chance(1, 10);
    m.s.apply(FreezeChanged{frozen});
    std::vector<std::int64_t> cpus{rng.between(2, 6)};
    if (rng.chance(1, 3)) cpus.push_back(rng.between(2, 6));
    const auto tier = static_cast<std::uint8_t>(rng.between(1, 4));
    const Millis waited(rng.between(0, 60) * 60'000);
    m.ask(1, cpus, tier, waited);

    Oracle o;
    o.needs = cpus;
    for (const auto& [id, n] : m.nodes)
      o.nodes.push_back(id), o.free.push_back(n.free.cpu_milli / 1000), o.clusters.emplace_back();
    std::int64_t size = 0;
    for (const std::int64_t c : cpus) size += c;
    o.wins = size * waited.count();
    for (const auto& [id, l] : m.leases) {
      const auto at = static_cast<std::size_t>(l.node.value - 1);
      o.clusters[at].insert(l.cluster);
      if (l.role == SlotRole::Worker && l.tier >= kPreemptibleTier && l.tier >= tier && m.now - l.since >= kMoveAfter)
        o.movable.push_back({id, l.cluster, l.resources.cpu_milli / 1000,
                             l.resources.cpu_milli / 1000 * ((m.now - l.since).count() + 300'000), at, l.tier > tier});
    }
    const bool starts = o.fits(o.free);
    o.look();
    const auto groups = m.plan();
    const Group* move = nullptr;
    for (const Group& g : groups)
      if (g.kind == ActionKind::Move) move = &g;
    if (starts || frozen) {
      ASSERT_EQ(move, nullptr) << seed;
      continue;
    }
    if (move == nullptr) {
      if (o.best >= 0)
        ++missed;
      else
        ++none;
      continue;
    }
    ++moved;
    ASSERT_GE(o.best, 0) << "seed " << seed << ": it moves what is not worth it";
    ASSERT_EQ(move->victims.size(), move->places.size());
    auto now = o.free, then = o.free;
    auto on = o.clusters;
    std::int64_t cost = 0;
    bool later = true;
    std::set<LeaseId> distinct;
    for (std::size_t i = 0; i < move->victims.size(); ++i) {
      ASSERT_TRUE(distinct.insert(move->victims[i]).second);
      const auto hand =
          std::find_if(o.movable.begin(), o.movable.end(), [&](const Hand& h) { return h.id == move->victims[i]; });
      ASSERT_NE(hand, o.movable.end()) << "seed " << seed << ": it may not be moved";
      const auto to = static_cast<std::size_t>(move->places[i].node.value - 1);
      ASSERT_NE(to, hand->at);
      ASSERT_FALSE(on[to].contains(hand->cluster)) << seed;
      on[to].insert(hand->cluster);
      now[to] -= hand->cpus, then[to] -= hand->cpus, then[hand->at] += hand->cpus;
      ASSERT_GE(now[to], 0) << "seed " << seed << ": there is no room now";
      cost += hand->cost, later = later && hand->later;
    }
    ASSERT_TRUE(o.fits(then)) << "seed " << seed << ": it would not start";
    ASSERT_TRUE(later || cost < o.wins) << seed;
    ASSERT_GE(cost, o.best) << "the oracle is wrong";
    paid += cost, least += o.best;
    if (cost == o.best) ++best;
  }
  EXPECT_GT(moved, 200);
  EXPECT_GT(none, 200);
  RecordProperty("moved", moved);
  RecordProperty("missed", missed);
  RecordProperty("at_least_cost", best);
  EXPECT_LE(missed * 20, moved) << "of " << moved << " it finds all but " << missed;
  EXPECT_GE(best * 10, moved * 8) << "the cheapest in " << best << " of " << moved;
  EXPECT_LE(paid * 10, least * 12) << "what they cost in all, against the least";
}

// A market that runs, all of one tier, so that nobody can be preempted: with moves those that wait are served sooner,
// nobody who runs is put back, nobody moves twice within his time, and what was cleared is used by whom it was for.
TEST(Move, ARunningMarketIsServedSoonerAndNothingGoesRound) {
  std::int64_t wait_with = 0, wait_without = 0;
  int moves = 0, used = 0;
  for (std::uint64_t seed = 1; seed <= 60; ++seed)
    for (const bool with : {false, true}) {
      Rng rng(seed);
      Floor m;
      for (std::uint64_t i = 1; i <= 5; ++i) m.machine(i, 4);
      std::map<ClusterId, Millis> lengths;
      std::map<ClusterId, WallTime> ends, cleared;
      std::map<ClusterId, WallTime> last_move;
      std::map<LeaseId, WallTime> leave;
      std::uint64_t next = 1;
      for (int step = 0; step < 300; ++step) {
        m.now = m.now + 60s;
        if (rng.chance(1, 3)) {
          const bool large = rng.chance(1, 4);
          lengths[ClusterId{next}] = Millis(rng.between(30, 240) * 60'000);
          Request r = m.gang(next, {large ? 4 : 1}, 2);
          r.gang[0].role = SlotRole::Worker, r.gang[0].group = "w";
          if (m.waiting.size() < 8) m.waiting[r.cluster] = r, m.s.apply(RequestChanged{r});
          ++next;
        }
        std::vector<LeaseId> over;
        for (const auto& [id, l] : m.leases) {
          const auto told = leave.find(id);
          if (ends.at(l.cluster) <= m.now || (told != leave.end() && told->second <= m.now)) over.push_back(id);
        }
        for (const LeaseId id : over) leave.erase(id), m.end(id);
        for (const Group& g : m.plan()) {
          if (g.kind == ActionKind::Move) {
            ASSERT_TRUE(with);
            ASSERT_TRUE(m.waiting.contains(g.cluster));
            ASSERT_TRUE(cleared.try_emplace(g.cluster, m.now).second) << "seed " << seed << ": twice for one";
            for (std::size_t i = 0; i < g.victims.size(); ++i) {
              const LeaseView& l = m.leases.at(g.victims[i]);
              ASSERT_FALSE(l.leaving);
              ASSERT_GE(m.nodes.at(g.places[i].node).free.cpu_milli, l.resources.cpu_milli);
              if (const auto last = last_move.find(l.cluster); last != last_move.end())
                ASSERT_GE(m.now - last->second, kMoveAfter);
              last_move[l.cluster] = m.now;
              ends[l.cluster] = ends.at(l.cluster) + (m.now - l.since) + 5min;  // it begins anew
              ++moves;
            }
            std::vector<LeaseId> told;
            m.commit(g, told);
            for (const LeaseId id : told) leave[id] = m.now + 45s;
            continue;
          }
          ASSERT_EQ(g.kind, ActionKind::Start);
          const std::int64_t cpus = g.places[0].resources.cpu_milli / 1000;
          ends[g.cluster] = m.now + lengths.at(g.cluster);
          LeaseView l;
          l.cluster = g.cluster, l.group = "w";
          m.begin(l, g.places[0].node.value, cpus, 2, 0ms, SlotRole::Worker);
          if (with) m.shape(g.cluster.value, cpus, 2);
          if (cleared.erase(g.cluster) > 0) ++used;
          m.waiting.erase(g.cluster);
          m.s.apply(RequestGone{g.cluster});
        }
        (with ? wait_with : wait_without) += static_cast<std::int64_t>(m.waiting.size());
      }
      ASSERT_LE(cleared.size(), 1U) << "what was cleared waits for nobody";
    }
  EXPECT_GT(moves, 20);
  EXPECT_GT(used, 10);
  EXPECT_LT(wait_with, wait_without);
}

}  // namespace
}  // namespace muster::scheduler::move_test
