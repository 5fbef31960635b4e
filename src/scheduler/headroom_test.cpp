// What is kept back for failovers, against counting all machines by hand.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <set>

#include "base/rng.h"
#include "scheduler/market_world.h"

namespace muster::scheduler::headroom_test {
namespace {

using namespace std::chrono_literals;

constexpr WallTime kHeadroomT0{1'000'000'000};

struct Kept : MarketWorld {
  std::map<ClusterId, Request> waiting;
  Kept() : MarketWorld(kHeadroomT0) {}
  void keep(std::uint32_t machines, std::uint8_t tier) { s.apply(HeadroomChanged{{{"", machines, tier}}}); }
  void run(std::uint64_t cluster, std::uint64_t on, std::int64_t cpus, std::uint8_t tier = 1, Millis age = 10min) {
    LeaseView l;
    l.cluster = ClusterId{cluster};
    begin(l, on, cpus, tier, age, SlotRole::Worker);
  }
  void ask(std::uint64_t id, const std::vector<std::int64_t>& cpus, std::uint8_t tier) { tell(gang(id, cpus, tier)); }
  // A running cluster lost a worker, or wants another one.
  void lacks(std::uint64_t id, std::int64_t cpus, std::uint8_t tier, bool failover) {
    Request r = gang(id, {cpus}, tier);
    r.gang[0].role = SlotRole::Worker, r.gang[0].group = "w", r.gang[0].failover = failover;
    std::swap(r.gang, r.grow), r.running = true;
    tell(r);
  }
  void tell(const Request& r) {
    waiting[r.cluster] = r;
    s.apply(RequestChanged{r});
  }
  std::vector<Group> plan() { return s.plan({}, now); }
  std::string why(std::uint64_t id) const { return s.queue_of(ClusterId{id}, now).reason.code; }
};

TEST(Headroom, StartsLeaveItAloneAndFailoversOfTheTierUseIt) {
  Kept m;
  m.machine(1, 4), m.machine(2, 4);
  m.keep(1, 1);
  m.ask(1, {4}, 0);
  const auto first = m.plan();
  ASSERT_EQ(first.size(), 1U) << "one of the two is for everybody";
  m.run(1, first[0].places[0].node.value, 4);
  m.s.apply(RequestGone{ClusterId{1}});
  m.ask(2, {4}, 0);
  EXPECT_TRUE(m.plan().empty()) << "not even the best tier starts on the last";
  const QueueView view = m.s.queue_of(ClusterId{2}, m.now);
  EXPECT_EQ(view.reason.code, "held_for_failover");
  EXPECT_EQ(view.reason.params.at("held_back"), "1");
  EXPECT_EQ(view.reason.params.at("tier"), "1");
  EXPECT_NE(view.reason.text.find("tier 1 or better"), std::string::npos) << view.reason.text;
  EXPECT_FALSE(view.known) << "what is kept back opens for nobody";
  m.lacks(3, 4, 1, false);
  m.lacks(4, 4, 2, true);
  EXPECT_TRUE(m.plan().empty()) << "growth, and what a later tier lost, wait";
  EXPECT_EQ(m.why(3), "held_for_failover");
  EXPECT_EQ(m.why(4), "held_for_failover");
  m.lacks(5, 4, 1, true);
  const auto groups = m.plan();
  ASSERT_EQ(groups.size(), 1U);
  EXPECT_EQ(groups[0].cluster, ClusterId{5});
}

TEST(Headroom, WhoWaitedStartsWhenItIsGivenUp) {
  Kept m;
  m.machine(1, 4);
  m.keep(1, 0);
  m.ask(1, {2}, 1);
  EXPECT_TRUE(m.plan().empty());
  m.keep(0, 0);
  EXPECT_EQ(m.plan().size(), 1U);
}

TEST(Headroom, ThePartlyUsedStandInUntilEnoughAreFree) {
  Kept m;
  m.machine(1, 4), m.machine(2, 4);
  m.run(50, 1, 1), m.run(51, 2, 2);
  m.keep(1, 1);
  m.ask(1, {2}, 1);
  const auto groups = m.plan();  // machine 1 has more room, so it is the one that may become free
  ASSERT_EQ(groups.size(), 1U);
  EXPECT_EQ(groups[0].places[0].node, NodeId{2});
}

TEST(Headroom, NobodyLeavesForIt) {
  Kept m;
  m.machine(1, 4), m.machine(2, 4);
  m.run(50, 1, 4, 3);
  m.keep(1, 1);
  m.ask(1, {4}, 1);
  const auto groups = m.plan();
  ASSERT_EQ(groups.size(), 1U);
  EXPECT_EQ(groups[0].kind, ActionKind::Preempt) << "machine 2 is kept back, so the work of tier 3 makes room";
  Kept n;
  n.machine(1, 4);
  n.run(50, 1, 4, 3);
  n.keep(1, 1);
  n.ask(1, {4}, 1);
  EXPECT_TRUE(n.plan().empty()) << "what it left would be kept back at once";
}

TEST(Headroom, OwnMachinesAndNamedPoolsAreNotKeptFromTheirOwners) {
  Kept m;
  m.machine(1, 4);
  m.keep(1, 1);
  Request own = m.gang(1, {2}, 1);
  own.pool = "own", own.tenant = OrgId{99};
  m.tell(own);
  EXPECT_EQ(m.plan().size(), 1U);
}

TEST(Headroom, WhatIfAndARebuiltPlannerSayTheSame) {
  Kept m;
  m.machine(1, 4);
  m.keep(1, 1);
  Kept other;
  const Forecast f = forecast(m.s.snapshot(), RequestChanged{other.gang(1, {2}, 1)}, m.now);
  EXPECT_TRUE(f.group.places.empty());
  EXPECT_EQ(f.view.reason.code, "held_for_failover");
}

// The law, counted by hand over random markets: nothing but failovers that may ever takes a wholly free machine when
// so many or fewer are left; and the planner starts whatever fits beside what is kept back.
TEST(Headroom, IsNeverTakenAndNothingElseIsKeptIdle) {
  int held = 0, used = 0, compared = 0, told = 0;
  for (std::uint64_t seed = 1; seed <= 300; ++seed) {
    Rng rng(seed);
    Kept m;
    const std::uint64_t machines = 2 + rng.below(5);
    for (std::uint64_t i = 1; i <= machines; ++i) m.machine(i, 4);
    std::uint32_t keep = static_cast<std::uint32_t>(rng.below(3));
    std::uint8_t tier = static_cast<std::uint8_t>(rng.below(3));
    m.keep(keep, tier);
    std::uint64_t next = 1;
    for (int step = 0; step < 40; ++step) {
      m.now = m.now + Millis(rng.between(1'000, 15'000));
      if (rng.chance(1, 20)) m.keep(keep = static_cast<std::uint32_t>(rng.below(3)), tier);
      if (m.waiting.size() < 5 && rng.chance(1, 2)) {
        const auto t = static_cast<std::uint8_t>(rng.below(2));
        if (rng.chance(1, 2))
          m.ask(next++, {rng.chance(1, 2) ? 4 : 1}, t);
        else
          m.lacks(next++, 4, static_cast<std::uint8_t>(rng.below(4)), rng.chance(1, 2));
      }
      if (!m.leases.empty() && rng.chance(1, 3)) {
        auto it = m.leases.begin();
        std::advance(it, static_cast<std::ptrdiff_t>(rng.below(m.leases.size())));
        m.end(it->first);
      }
      const auto whole = [&] {
        return static_cast<std::uint32_t>(std::count_if(m.nodes.begin(), m.nodes.end(), [](const auto& n) {
          return n.second.free.cpu_milli == n.second.capacity.cpu_milli;
        }));
      };
      for (bool more = true; more;) {
        const auto groups = m.plan();
        more = !groups.empty();
        for (const Group& g : groups) {
          ASSERT_NE(g.kind, ActionKind::Preempt) << "nobody agreed";
          const Request r = m.waiting.at(g.cluster);
          ASSERT_EQ(g.places.size(), 1U);
          const NodeView& node = m.nodes.at(g.places[0].node);
          const bool may = !r.grow.empty() && r.grow[0].failover && r.tier <= tier;
          if (node.free.cpu_milli == node.capacity.cpu_milli && whole() <= keep) {
            ASSERT_TRUE(may) << "seed " << seed << " step " << step << ": it took what is kept back";
            ++used;
          }
          m.run(g.cluster.value, node.node.value, g.places[0].resources.cpu_milli / 1000, 1, 0ms);
          m.waiting.erase(g.cluster);
          m.s.apply(RequestGone{g.cluster});
        }
      }
      // Whoever waits for a whole machine finds none beside what is kept back, and is told the truth.
      for (const auto& [id, r] : m.waiting) {
        const bool starts = r.grow.empty();
        const Bundle& b = starts ? r.gang[0] : r.grow[0];
        if (b.request.resources.cpu_milli < 4'000) continue;
        const bool may = !starts && b.failover && r.tier <= tier;
        ++compared;
        ASSERT_LE(whole(), may ? 0U : keep) << "seed " << seed << " step " << step;
        const std::string code = m.s.queue_of(id, m.now).reason.code;
        if (whole() > 0) ++held;
        ASSERT_EQ(code, whole() > 0 ? "held_for_failover" : "machines_busy") << "seed " << seed << " step " << step;
        // Doing what the reason says helps: with nothing kept back it starts, or one before it does.
        if (code == "held_for_failover" && rng.chance(1, 4)) {
          Scheduler without;
          for (const Change& change : m.s.snapshot()) without.apply(change);
          without.apply(HeadroomChanged{});
          ASSERT_FALSE(without.plan({}, m.now).empty());
          Scheduler rebuilt;
          for (const Change& change : m.s.snapshot()) rebuilt.apply(change);
          ASSERT_TRUE(rebuilt.plan({}, m.now).empty());
          ++told;
        }
      }
    }
  }
  EXPECT_GT(held, 200);
  EXPECT_GT(used, 50);
  EXPECT_GT(compared, 500);
  EXPECT_GT(told, 30);
}

}  // namespace
}  // namespace muster::scheduler::headroom_test
