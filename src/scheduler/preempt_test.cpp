#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <set>

#include "base/rng.h"
#include "scheduler/market_world.h"

namespace muster::scheduler::preempt_test {
namespace {

constexpr WallTime kT0{1'000'000'000};

struct Market : MarketWorld {
  struct Waiting {
    Request request;
    std::int64_t length_ms = 0;
  };
  std::map<ClusterId, Waiting> waiting;

  Market() : MarketWorld(kT0) {}
  LeaseId run(std::uint64_t cluster, std::uint64_t on, std::int64_t cpus, std::uint8_t tier, Millis age,
              SlotRole role = SlotRole::Worker) {
    LeaseView l;
    l.cluster = ClusterId{cluster};
    return begin(l, on, cpus, tier, age, role);
  }
  void ask(std::uint64_t id, std::vector<std::int64_t> cpus, std::uint8_t tier, std::int64_t length_ms = 0) {
    Request r = gang(id, cpus, tier);
    r.tenant = OrgId{9};
    waiting[r.cluster] = {r, length_ms};
    s.apply(RequestChanged{r});
  }
  std::vector<Group> plan() { return s.plan({}, now); }
};

TEST(Preempt, WorkOfALaterTierLeavesAndItsPlaceIsKept) {
  Market m;
  m.machine(1, 4);
  const LeaseId victim = m.run(50, 1, 4, 3, 10min);
  m.ask(1, {2}, 1);
  const auto groups = m.plan();
  ASSERT_EQ(groups.size(), 1U);
  EXPECT_EQ(groups[0].kind, ActionKind::Preempt);
  EXPECT_EQ(groups[0].cluster, ClusterId{1});
  EXPECT_EQ(groups[0].victims, std::vector<LeaseId>{victim});
  EXPECT_TRUE(groups[0].places.empty());
  EXPECT_EQ(m.s.queue_of(ClusterId{1}, m.now).reason.code, "making_room");
  m.tell_to_leave(victim);
  EXPECT_TRUE(m.plan().empty()) << "once is enough";
  m.now = m.now + 10s;  // what was proposed is long past
  EXPECT_TRUE(m.plan().empty());
  m.ask(2, {1}, 1);  // came later: the place is not for it
  m.ask(3, {1}, 3);
  m.end(victim);
  const auto starts = m.plan();
  ASSERT_FALSE(starts.empty());
  EXPECT_EQ(starts[0].kind, ActionKind::Start);
  EXPECT_EQ(starts[0].cluster, ClusterId{1});
}

// One GPU of which two leases have a half each: it is free when both are gone, and the way there costs both.
TEST(Preempt, AGpuIsFreeWhenTheLastShareOfItIs) {
  for (const bool both : {true, false}) {
    Market m;
    m.machine(1, 8);
    NodeView& n = m.nodes.at(NodeId{1});
    n.devices = {{"gpu-0", "T4", std::int64_t{16} << 30}};
    n.capacity.gpus = 1;
    n.shared = {{"gpu-0", Sharing::TenantShares, 0, OrgId{5}, 0}};
    LeaseView half;
    half.cluster = ClusterId{50}, half.tenant = OrgId{5}, half.devices = {"gpu-0"};
    std::vector<LeaseId> halves{m.begin(half, 1, 1, 3, 10min, SlotRole::Worker)};
    half.cluster = ClusterId{51};
    halves.push_back(m.begin(half, 1, 1, 3, 10min, both ? SlotRole::Worker : SlotRole::Head));  // a head stays
    Request r = m.gang(1, {1}, 1);
    r.tenant = OrgId{9}, r.gang.front().request.resources.gpus = 1;
    m.s.apply(RequestChanged{r});
    EXPECT_EQ(m.victims(), both ? halves : std::vector<LeaseId>{}) << both;
  }
}

TEST(Preempt, NothingElseIsTouched) {
  for (const char* why : {"head", "consent", "same tier", "too young", "frozen", "unreachable", "running"}) {
    const std::string_view w = why;
    Market m;
    m.machine(1, 4);
    m.run(50, 1, 4, w == "consent" ? 1 : 3, w == "too young" ? 1min : 10min,
          w == "head" ? SlotRole::Head : SlotRole::Worker);
    if (w == "frozen") m.s.apply(FreezeChanged{true});
    if (w == "unreachable") m.nodes.at(NodeId{1}).schedulable = false, m.shift(NodeId{1}, 0);
    m.ask(1, {2}, w == "same tier" ? 3 : 0);
    if (w == "running") {  // what grows waits for what is free
      Request r = m.waiting.at(ClusterId{1}).request;
      std::swap(r.gang, r.grow), r.running = true;
      m.s.apply(RequestChanged{r});
    }
    EXPECT_TRUE(m.plan().empty()) << why;
  }
}

TEST(Preempt, AFreezeHoldsItUpAndNoMore) {
  Market m;
  m.machine(1, 4);
  const LeaseId victim = m.run(50, 1, 4, 2, 10min);
  m.s.apply(FreezeChanged{true});
  m.ask(1, {4}, 1);
  EXPECT_TRUE(m.plan().empty());
  m.s.apply(FreezeChanged{false});
  EXPECT_EQ(m.victims(), std::vector<LeaseId>{victim});
}

TEST(Preempt, WhatIsTooYoungIsAskedWhenItIsOldEnough) {
  Market m;
  m.machine(1, 4);
  const LeaseId victim = m.run(50, 1, 4, 2, 30s);
  m.ask(1, {4}, 1);
  EXPECT_TRUE(m.plan().empty());
  m.now = m.now + 89s;
  EXPECT_TRUE(m.plan().empty());
  m.now = m.now + 1s;
  EXPECT_EQ(m.victims(), std::vector<LeaseId>{victim});
}

TEST(Preempt, TheCheapestLeaves) {
  Market m;
  for (std::uint64_t i = 1; i <= 3; ++i) m.machine(i, 4);
  m.run(50, 1, 4, 3, 5h);
  const LeaseId young = m.run(51, 2, 4, 3, 10min);
  m.run(52, 3, 4, 3, 2h);
  m.ask(1, {4}, 1);
  EXPECT_EQ(m.victims(), std::vector<LeaseId>{young});

  Market n;  // of one machine only as much as it takes
  n.machine(1, 4);
  n.run(50, 1, 1, 3, 5h);
  const LeaseId later = n.run(51, 1, 1, 3, 10min);
  n.run(52, 1, 1, 3, 3h);
  n.run(53, 1, 1, 3, 4h);
  n.ask(1, {1}, 1);
  EXPECT_EQ(n.victims(), std::vector<LeaseId>{later});

  Market o;  // a spare costs nothing, and the dear one is not needed beside it
  o.machine(1, 4);
  o.run(50, 1, 1, 3, 10min);
  const LeaseId spare = o.run(51, 1, 3, 3, 10h, SlotRole::Spare);
  o.ask(1, {3}, 1);
  EXPECT_EQ(o.victims(), std::vector<LeaseId>{spare});
}

TEST(Preempt, AllThatItTakesOrNothing) {
  Market m;
  m.machine(1, 4), m.machine(2, 4), m.machine(3, 4);
  m.run(50, 1, 4, 3, 10min), m.run(51, 2, 4, 1, 10min);
  m.run(52, 3, 1, 1, 10min);
  m.ask(1, {4, 4}, 1);
  EXPECT_TRUE(m.plan().empty()) << "one machine alone would be no use";
  m.ask(2, {3, 4}, 1);  // the free part of machine 3 and machine 1
  const auto groups = m.plan();
  ASSERT_EQ(groups.size(), 1U);
  EXPECT_EQ(groups[0].cluster, ClusterId{2});
  EXPECT_EQ(groups[0].victims.size(), 1U);
}

TEST(Preempt, WhatLeavesAnywayIsWaitedFor) {
  Market m;
  m.machine(1, 4), m.machine(2, 4);
  m.run(50, 1, 4, 3, 10min);
  const LeaseId leaves = m.run(51, 2, 4, 1, 10min);
  m.leases.at(leaves).leaving = true;
  m.s.apply(LeaseChanged{m.leases.at(leaves)});
  m.ask(1, {4}, 1);
  EXPECT_TRUE(m.plan().empty());
  m.end(leaves);
  ASSERT_EQ(m.plan().at(0).kind, ActionKind::Start);
}

TEST(Preempt, ARefusedDecisionIsMadeAnew) {
  Market m;
  m.machine(1, 4), m.machine(2, 4);
  const LeaseId first = m.run(50, 1, 4, 3, 10min);
  m.run(51, 2, 4, 3, 20min);
  m.ask(1, {4}, 1);
  ASSERT_EQ(m.victims(), std::vector<LeaseId>{first});
  // The core refused without a word: the machine is not heard from.
  m.nodes.at(NodeId{1}).schedulable = false, m.shift(NodeId{1}, 0);
  m.now = m.now + 1s;
  EXPECT_TRUE(m.plan().empty());
  m.now = m.now + 5s;
  EXPECT_EQ(m.victims().size(), 1U);
}

// A market that runs: every decision names only leases of later tiers that may leave, nobody is asked twice, what was
// cleared is used by whom it was cleared for, and the first of the best tier never waits while work that could make
// room for it runs on.
TEST(Preempt, LawsHoldInARunningMarket) {
  int preempted = 0, started_after = 0, compared = 0;
  for (std::uint64_t seed = 1; seed <= 60; ++seed) {
    Rng rng(seed);
    Market m;
    const std::uint64_t machines = 2 + rng.below(4);
    for (std::uint64_t i = 1; i <= machines; ++i) m.machine(i, rng.between(2, 6));
    std::map<LeaseId, WallTime> ends;
    std::map<ClusterId, WallTime> cleared;
    std::uint64_t next = 1;
    for (int step = 0; step < 120; ++step) {
      m.now = m.now + Millis(rng.between(1'000, 60'000));
      if (m.waiting.size() < 6 && rng.chance(1, 2)) {
        std::vector<std::int64_t> cpus(1 + rng.below(std::min<std::uint64_t>(machines, 3)));
        for (auto& c : cpus) c = rng.between(1, 4);
        m.ask(next++, cpus, static_cast<std::uint8_t>(rng.below(4)), rng.between(60'000, 1'800'000));
      }
      std::vector<LeaseId> over;
      for (const auto& [id, end] : ends)
        if (end <= m.now) over.push_back(id);
      for (const LeaseId id : over) ends.erase(id), m.end(id);
      for (const Group& g : m.plan()) {
        if (g.kind == ActionKind::Preempt) {
          const Request& by = m.waiting.at(g.cluster).request;
          ASSERT_FALSE(g.victims.empty());
          ASSERT_TRUE(cleared.try_emplace(g.cluster, m.now).second || m.now - cleared[g.cluster] >= Millis(5'000))
              << seed;
          std::set<LeaseId> distinct;
          for (const LeaseId v : g.victims) {
            const LeaseView& l = m.leases.at(v);
            ASSERT_TRUE(distinct.insert(v).second);
            ASSERT_TRUE(l.role != SlotRole::Head && !l.leaving && l.tier > by.tier && l.tier >= kPreemptibleTier);
            ASSERT_GE(m.now - l.since, kPreemptAfter);
          }
          for (const LeaseId v : g.victims) {
            m.tell_to_leave(v);
            ends[v] = std::min(ends.at(v), m.now + Millis(rng.between(0, 60'000)));
            ++preempted;
          }
          // With them gone, and what leaves besides, it fits: every bundle on a machine of its own.
          std::vector<std::int64_t> room;
          for (const auto& [id, n] : m.nodes) {
            std::int64_t free = n.free.cpu_milli;
            for (const auto& [lid, l] : m.leases)
              if (l.node == id && l.leaving) free += l.resources.cpu_milli;
            room.push_back(free);
          }
          std::vector<std::int64_t> need;
          for (const Bundle& b : by.gang) need.push_back(b.request.resources.cpu_milli);
          std::sort(room.rbegin(), room.rend()), std::sort(need.rbegin(), need.rend());
          ASSERT_GE(room.size(), need.size());
          for (std::size_t i = 0; i < need.size(); ++i) ASSERT_GE(room[i], need[i]) << seed;
          continue;
        }
        const Market::Waiting w = m.waiting.at(g.cluster);
        for (const Place& p : g.places) {
          ASSERT_GE(m.nodes.at(p.node).free.cpu_milli, p.resources.cpu_milli) << seed;
          const LeaseId id =
              m.run(g.cluster.value, p.node.value, p.resources.cpu_milli / 1000, w.request.tier, 0ms, p.role);
          ends[id] = m.now + Millis(w.length_ms);
        }
        if (cleared.erase(g.cluster) > 0) ++started_after;
        m.waiting.erase(g.cluster);
        m.s.apply(RequestGone{g.cluster});
      }
      // An oracle for the first of the best tier, with one bundle, when nothing is kept or on its way.
      if (m.waiting.empty() || !cleared.empty()) continue;
      const auto queue = m.s.queue(m.now);
      const Request& first = m.waiting.at(queue[0].cluster).request;
      const bool young = std::all_of(m.waiting.begin(), m.waiting.end(), [&](const auto& w) {
        return m.now - w.second.request.since < Millis(500'000);  // older ones keep machines
      });
      if (first.gang.size() != 1 || !young || !m.plan().empty()) continue;
      ++compared;
      for (const auto& [id, n] : m.nodes) {
        std::int64_t free = n.free.cpu_milli;
        bool ripe = false;
        for (const auto& [lid, l] : m.leases)
          if (l.node == id && l.role != SlotRole::Head && !l.leaving && l.tier >= kPreemptibleTier &&
              l.tier > first.tier && m.now - l.since >= kPreemptAfter)
            free += l.resources.cpu_milli, ripe = true;
        const bool others_leave =
            std::any_of(m.leases.begin(), m.leases.end(), [](const auto& l) { return l.second.leaving; });
        ASSERT_TRUE(!ripe || others_leave || free < first.gang[0].request.resources.cpu_milli)
            << "seed " << seed << " step " << step;
      }
    }
  }
  EXPECT_GT(preempted, 50);
  EXPECT_GT(started_after, 20);
  EXPECT_GT(compared, 20);
}

TEST(Preempt, WhatIfSaysThatRoomWouldBeMade) {
  Market m;
  m.machine(1, 4);
  m.run(50, 1, 4, 3, 10min);
  Market other;
  other.ask(1, {2}, 1);
  const Forecast f = forecast(m.s.snapshot(), RequestChanged{other.waiting.at(ClusterId{1}).request}, m.now);
  EXPECT_TRUE(f.group.places.empty());
  EXPECT_EQ(f.view.reason.code, "making_room");
}

}  // namespace
}  // namespace muster::scheduler::preempt_test
