#include "scheduler/backfill.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <set>

#include "base/rng.h"
#include "scheduler/scheduler.h"

namespace muster::scheduler::backfill_test {
namespace {

constexpr WallTime kT0{1'000'000'000};

NodeView node(std::uint64_t id, bool busy = false, const std::string& region = "a") {
  NodeView n;
  n.node = NodeId{id}, n.supplier = OrgId{1}, n.arch = "x86_64", n.schedulable = true;
  n.capacity.cpu_milli = 1'000, n.capacity.memory_bytes = 1 << 30;
  if (!busy) n.free = n.capacity;
  n.whole = !busy;
  n.runtimes = {RuntimeKind::Docker};
  n.labels["region"] = region;
  return n;
}
// A gang that needs one machine for each letter: of region a, of region b, or any (*).
Request request(std::uint64_t id, const std::string& regions, WallTime since, Millis longest = 0ms) {
  Request r;
  r.cluster = ClusterId{id}, r.tenant = OrgId{id}, r.since = since, r.pool = "market", r.arch = "x86_64";
  r.longest = longest;
  for (const char region : regions) {
    Bundle b;
    b.role = r.gang.empty() ? SlotRole::Head : SlotRole::Worker, b.request.resources.cpu_milli = 1'000;
    if (region != '*') b.request.constraints["region"] = std::string(1, region);
    r.gang.push_back(b);
  }
  return r;
}
LeaseView lease(std::uint64_t cluster, std::uint64_t node, WallTime since) {
  LeaseView l;
  l.lease = LeaseId{cluster * 100 + node}, l.cluster = ClusterId{cluster}, l.node = NodeId{node};
  l.resources.cpu_milli = 1'000, l.resources.memory_bytes = 1 << 30, l.since = since;
  return l;
}
std::set<std::uint64_t> started(const std::vector<Group>& groups) {
  std::set<std::uint64_t> out;
  for (const Group& g : groups) out.insert(g.cluster.value);
  return out;
}
void run(Scheduler& s, const Group& group, WallTime now, Millis longest) {  // the core accepts
  for (const Place& p : group.places) {
    s.apply(NodeChanged{node(p.node.value, true)});
    s.apply(LeaseChanged{lease(group.cluster.value, p.node.value, now)});
  }
  s.apply(RequestGone{group.cluster});
  s.apply(TermsChanged{group.cluster, {}, longest});
}
void end(Scheduler& s, std::uint64_t cluster, std::uint64_t id) {
  s.apply(LeaseGone{lease(cluster, id, {}).lease});
  s.apply(NodeChanged{node(id)});
  s.apply(TermsGone{ClusterId{cluster}});
}
// A gang of two keeps machine 1 and waits for machine 2, which is free in three hours if `promised`.
Scheduler one_kept(bool promised, bool backfill = true) {
  Scheduler s{Options{.backfill = backfill}};
  s.apply(NodeChanged{node(1)}), s.apply(NodeChanged{node(2, true)});
  s.apply(LeaseChanged{lease(99, 2, kT0)});
  if (promised) s.apply(TermsChanged{ClusterId{99}, kT0 + 3h});
  s.apply(RequestChanged{request(1, "**", kT0 - 15min)});
  EXPECT_TRUE(s.plan({}, kT0).empty());
  return s;
}

TEST(Backfill, WhatIsGoneInTimeGetsAMachineThatIsKept) {
  Scheduler s = one_kept(true);
  s.apply(RequestChanged{request(2, "*", kT0)});
  s.apply(RequestChanged{request(3, "*", kT0, 3h)});
  EXPECT_TRUE(s.plan({}, kT0).empty()) << "one without an end, one whose end is after the gang's start";
  s.apply(RequestChanged{request(4, "*", kT0, 2h)});
  const auto groups = s.plan({}, kT0);
  ASSERT_EQ(started(groups), (std::set<std::uint64_t>{4})) << "two hours, half of one to start, a minute to leave";
  run(s, groups[0], kT0, 2h);
  EXPECT_TRUE(s.plan({}, kT0 + 1min).empty());
  Scheduler off = one_kept(true, false);
  off.apply(RequestChanged{request(4, "*", kT0, 2h)});
  EXPECT_TRUE(off.plan({}, kT0).empty()) << "it waited before";

  // It ends at once. The machine is the gang's still: what has no end does not get it, and what is short enough does.
  end(s, 4, 1);
  s.apply(RequestChanged{request(5, "*", kT0 + 1min, 2h)});
  const auto again = s.plan({}, kT0 + 2min);
  ASSERT_EQ(started(again), (std::set<std::uint64_t>{5}));
  run(s, again[0], kT0 + 2min, 2h);
  end(s, 99, 2);  // earlier than promised: the gang waits for its own machine, and keeps this one too
  EXPECT_TRUE(s.plan({}, kT0 + 3min).empty());
  EXPECT_EQ(s.queue_of(ClusterId{2}, kT0 + 3min).reason.code, "behind_older");
  EXPECT_EQ(s.queue_of(ClusterId{1}, kT0 + 3min).expected_start, kT0 + 2min + 2h + 30min + 1min);
  end(s, 5, 1);
  EXPECT_EQ(started(s.plan({}, kT0 + 2h)), (std::set<std::uint64_t>{1}));
}

// What a gang needs whole, though others work on a part of it now, does not get more work that stays longer.
TEST(Backfill, APartOfAMachineThatIsNeededWholeIsKeptToo) {
  Scheduler s;
  NodeView wide = node(1);
  wide.capacity.cpu_milli = 2'000, wide.free.cpu_milli = 1'000, wide.whole = false;
  s.apply(NodeChanged{wide});
  s.apply(LeaseChanged{lease(99, 1, kT0)}), s.apply(TermsChanged{ClusterId{99}, kT0 + 3h});
  Request gang = request(1, "*", kT0 - 15min);
  gang.gang[0].request.resources.cpu_milli = 2'000;
  s.apply(RequestChanged{gang});
  s.apply(RequestChanged{request(2, "*", kT0)}), s.apply(RequestChanged{request(3, "*", kT0, 3h)});
  EXPECT_TRUE(s.plan({}, kT0).empty());
  const QueueView view = s.queue_of(ClusterId{1}, kT0);
  EXPECT_EQ(view.expected_start, kT0 + 3h + 1min);
  EXPECT_EQ(view.reason.params.at("reserved"), "1") << view.reason.text;
  s.apply(RequestChanged{request(4, "*", kT0, 2h)});
  EXPECT_EQ(started(s.plan({}, kT0)), (std::set<std::uint64_t>{4}));
}

// The gang needs one of the four CPUs of each machine, and all of machine 2 is taken: what it does not need of machine
// 1 is not idle, and what it needs is there when the other machine is.
TEST(Backfill, WhatAGangDoesNotNeedOfTheMachinesItKeepsIsNotIdle) {
  for (const bool backfill : {true, false}) {
    Scheduler s{Options{.backfill = backfill}};
    NodeView wide = node(1);
    wide.capacity.cpu_milli = wide.free.cpu_milli = 4'000;
    s.apply(NodeChanged{wide}), s.apply(NodeChanged{node(2, true)});
    s.apply(RequestChanged{request(1, "**", kT0 - 15min)});
    EXPECT_TRUE(s.plan({}, kT0).empty());
    for (std::uint64_t id = 2; id <= 5; ++id) s.apply(RequestChanged{request(id, "*", kT0 + Millis(id))});
    const auto groups = s.plan({}, kT0 + 1s);
    if (!backfill) {
      EXPECT_TRUE(groups.empty()) << "a machine is kept as it is";
      continue;
    }
    EXPECT_EQ(started(groups), (std::set<std::uint64_t>{2, 3, 4})) << "and not the fourth CPU";
    s.apply(NodeChanged{node(2)});
    EXPECT_EQ(started(s.plan({}, kT0 + 2s)), (std::set<std::uint64_t>{1}));
  }
}

// The same with GPUs; where not every GPU would do for the gang, all of them are kept, as nobody says which is its.
TEST(Backfill, OfGpusTooIfAnyWouldDo) {
  for (const bool mixed : {false, true}) {
    Scheduler s;
    NodeView wide = node(1);
    wide.capacity.cpu_milli = wide.free.cpu_milli = 8'000;
    for (const std::string uuid : {"a", "b", "c"})
      wide.devices.push_back({uuid, mixed && uuid == "a" ? "L4" : "A100", std::int64_t{40} << 30});
    wide.free_devices = {"a", "b", "c"}, wide.free.gpus = wide.capacity.gpus = 3;
    s.apply(NodeChanged{wide}), s.apply(NodeChanged{node(2, true)});
    Request gang = request(1, "**", kT0 - 15min);
    gang.gang[0].request.resources.gpus = 1, gang.gang[0].request.gpu_model = "A100";
    s.apply(RequestChanged{gang});
    EXPECT_TRUE(s.plan({}, kT0).empty());
    Request small = request(2, "*", kT0), next = request(3, "*", kT0 + 1s);
    small.gang[0].request.resources.gpus = 2, next.gang[0].request.resources.gpus = 1;
    s.apply(RequestChanged{small}), s.apply(RequestChanged{next});
    EXPECT_EQ(started(s.plan({}, kT0 + 2s)), mixed ? (std::set<std::uint64_t>{}) : (std::set<std::uint64_t>{2}));
  }
}

// Two machines, each of which ends its work every ten minutes, never both at once, and work of a better tier that waits
// without end: a gang of a later tier has them after it has waited as long as ageing counts, and not before.
TEST(Backfill, NobodyIsPassedForEver) {
  Scheduler s;
  s.apply(NodeChanged{node(1, true)}), s.apply(NodeChanged{node(2, true)});
  std::map<std::uint64_t, std::uint64_t> runs;  // machine -> cluster
  for (std::uint64_t i = 1; i <= 2; ++i) s.apply(LeaseChanged{lease(900 + i, i, kT0)}), runs[i] = 900 + i;
  Request gang = request(1, "**", kT0);
  gang.tier = 3;
  s.apply(RequestChanged{gang});
  std::uint64_t next = 2;
  Millis waited{-1};
  for (Millis t{0}; t < 6h && waited < 0ms; t += 5min) {
    const WallTime now = kT0 + t;
    Request better = request(next++, "*", now);
    better.tier = 1;
    s.apply(RequestChanged{better});
    const std::uint64_t machine = 1 + static_cast<std::uint64_t>(t / 5min) % 2;
    if (runs[machine] != 0) end(s, std::exchange(runs[machine], 0), machine);
    for (const Group& g : s.plan({}, now)) {
      if (g.cluster == ClusterId{1}) waited = t;
      run(s, g, now, 0ms);
      for (const Place& p : g.places) runs[p.node.value] = g.cluster.value;
    }
  }
  EXPECT_GE(waited, 200min);
  EXPECT_LE(waited, 215min) << "ten minutes more until both are free";
}

// Two wait for machines whose work never ends: they do not have the turn of everybody for ever.
TEST(Backfill, WhoCannotBeServedGivesTheTurnToOthers) {
  Scheduler s;
  for (std::uint64_t i = 1; i <= 3; ++i) {
    s.apply(NodeChanged{node(i, true, i == 3 ? "b" : "a")});
    s.apply(LeaseChanged{lease(900 + i, i, kT0 - 24h)});
  }
  for (std::uint64_t id = 1; id <= 2; ++id) s.apply(RequestChanged{request(id, "aa", kT0 - 300min)});
  Request later = request(3, "b", kT0 - 250min);
  later.tier = 3;
  s.apply(RequestChanged{later});
  std::uint64_t next = 10;
  Millis waited{-1};
  for (Millis t{0}; t < 4h && waited < 0ms; t += 10min) {
    Request better = request(next++, "b", kT0 + t);
    better.tier = 0;
    s.apply(RequestChanged{better});
    end(s, t == 0ms ? 903 : next - 2, 3);
    s.apply(NodeChanged{node(3, false, "b")});
    for (const Group& g : s.plan({}, kT0 + t)) {
      if (g.cluster == ClusterId{3}) waited = t;
      s.apply(NodeChanged{node(3, true, "b")});
      s.apply(LeaseChanged{lease(g.cluster.value, 3, kT0 + t)});
      s.apply(RequestGone{g.cluster});
    }
  }
  EXPECT_GE(waited, 2h);
  EXPECT_LE(waited, 2h + 20min);
}

// Behind the first of its kind another has its machines as soon as all of its start is certain.
TEST(Backfill, TheNextOfAKindIsNotPutOffEither) {
  const auto four = [](Millis longest) {
    Scheduler s;
    s.apply(NodeChanged{node(1)}), s.apply(NodeChanged{node(2)});
    s.apply(NodeChanged{node(3, true, "b")}), s.apply(NodeChanged{node(4, true, "b")});
    s.apply(LeaseChanged{lease(93, 3, kT0)}), s.apply(TermsChanged{ClusterId{93}, kT0 + 2h});
    s.apply(LeaseChanged{lease(94, 4, kT0)}), s.apply(TermsChanged{ClusterId{94}, kT0 + 6h});
    s.apply(RequestChanged{request(1, "ab", kT0 - 16min, longest)});
    s.apply(RequestChanged{request(2, "ab", kT0 - 15min, longest)});
    s.apply(RequestChanged{request(3, "a", kT0)});
    return s;
  };
  Scheduler s = four(0ms);
  EXPECT_TRUE(s.plan({}, kT0).empty()) << "neither of the free machines is for what has no end";
  EXPECT_EQ(s.queue_of(ClusterId{1}, kT0).expected_start, kT0 + 2h + 1min);
  EXPECT_EQ(s.queue_of(ClusterId{2}, kT0).expected_start, kT0 + 6h + 1min) << "the first has no end";
  s.apply(RequestChanged{request(4, "a", kT0, 5h)});
  EXPECT_EQ(started(s.plan({}, kT0)), (std::set<std::uint64_t>{4})) << "it is gone before the second starts";

  Scheduler brief = four(1h);
  EXPECT_TRUE(brief.plan({}, kT0).empty());
  EXPECT_EQ(brief.queue_of(ClusterId{1}, kT0).expected_start, kT0 + 2h + 1min);
  EXPECT_EQ(brief.queue_of(ClusterId{2}, kT0).expected_start, kT0 + 2h + 1min + 5s + 1h + 30min + 1min)
      << "when the first is over";
  const auto one_more = [&](Scheduler& of, int after_minutes) {  // of the kind, that has not waited long enough
    of.apply(RequestChanged{request(5, "ab", kT0 - 5min, 1h)});
    EXPECT_TRUE(of.plan({}, kT0 + Millis(after_minutes * 60'000)).empty());
    return of.queue_of(ClusterId{5}, kT0).reason.params.contains("reserved");
  };
  EXPECT_FALSE(one_more(brief, 0));
  EXPECT_TRUE(one_more(brief, 6));
}

// Not even what has the higher priority gets between when the short work is gone.
TEST(Backfill, AKeptMachineStaysKeptUnderShortWork) {
  Scheduler s;
  s.apply(NodeChanged{node(1)}), s.apply(NodeChanged{node(2, true)}), s.apply(NodeChanged{node(3, true)});
  for (std::uint64_t i : {2, 3})
    s.apply(LeaseChanged{lease(90 + i, i, kT0)}), s.apply(TermsChanged{ClusterId{90 + i}, kT0 + 5h});
  s.apply(RequestChanged{request(1, "***", kT0 - 15min)});
  s.apply(RequestChanged{request(2, "*", kT0, 1h)});
  const auto groups = s.plan({}, kT0);
  ASSERT_EQ(started(groups), (std::set<std::uint64_t>{2}));
  run(s, groups[0], kT0, 1h);
  end(s, 93, 3);  // kept too
  EXPECT_TRUE(s.plan({}, kT0 + 1min).empty());
  Request urgent = request(3, "*", kT0 + 1min);
  urgent.priority = 50;
  s.apply(RequestChanged{urgent});
  end(s, 2, 1);
  EXPECT_TRUE(s.plan({}, kT0 + 2min).empty());
  s.apply(NodeChanged{node(4)});
  const auto other = s.plan({}, kT0 + 3min);
  ASSERT_EQ(started(other), (std::set<std::uint64_t>{3})) << "it takes the one that nobody has";
  run(s, other[0], kT0 + 3min, 0ms);
  end(s, 92, 2);
  EXPECT_EQ(started(s.plan({}, kT0 + 4min)), (std::set<std::uint64_t>{1}));
}

TEST(Backfill, NothingAgainstAnUnknownShadowAndSleepersWakeWhenItIsKnown) {
  Scheduler s = one_kept(false);
  s.apply(RequestChanged{request(2, "*", kT0, 1h)});
  EXPECT_TRUE(s.plan({}, kT0).empty());
  EXPECT_FALSE(s.queue_of(ClusterId{2}, kT0).reason.params.contains("backfill_minutes"));
  s.apply(TermsChanged{ClusterId{99}, kT0 + 70min});
  EXPECT_TRUE(s.plan({}, kT0 + 1min).empty()) << "too near";
  s.apply(TermsChanged{ClusterId{99}, kT0 + 5h});
  EXPECT_EQ(started(s.plan({}, kT0 + 2min)), (std::set<std::uint64_t>{2}));
}

// A cluster that starts has no end yet, but a latest one; a scheduler that is built anew knows it too.
TEST(Backfill, AStartingClusterHasALatestEnd) {
  Scheduler s;
  s.apply(NodeChanged{node(1)}), s.apply(NodeChanged{node(2, true)});
  s.apply(LeaseChanged{lease(99, 2, kT0)});
  s.apply(TermsChanged{ClusterId{99}, {}, 2h});
  s.apply(RequestChanged{request(1, "**", kT0 - 15min)});
  s.apply(RequestChanged{request(2, "*", kT0)});
  EXPECT_TRUE(s.plan({}, kT0).empty());
  EXPECT_EQ(s.queue_of(ClusterId{1}, kT0).expected_start, kT0 + 2h + kStartAllowance + 1min);
  Scheduler rebuilt;
  for (const Change& change : s.snapshot()) rebuilt.apply(change);
  EXPECT_TRUE(rebuilt.plan({}, kT0).empty());
  EXPECT_EQ(rebuilt.queue(kT0), s.queue(kT0));
  EXPECT_EQ(s.queue_of(ClusterId{2}, kT0).reason.params.at("backfill_minutes"), "105");
  s.apply(TermsChanged{ClusterId{99}, kT0 + 90min, 2h});  // two promises: the nearer counts
  EXPECT_EQ(s.queue_of(ClusterId{1}, kT0).expected_start, kT0 + 91min);
  s.apply(TermsGone{ClusterId{99}});
  EXPECT_FALSE(s.queue_of(ClusterId{1}, kT0).known);
}

TEST(Backfill, WhoAsksAgainAsTheReasonSaysStarts) {
  int told = 0;
  for (std::uint64_t seed = 1; seed <= 300; ++seed) {
    Rng rng(seed);
    Scheduler s;
    const std::uint64_t machines = 2 + rng.below(6);
    for (std::uint64_t i = 1; i <= machines; ++i) {
      const bool busy = rng.chance(1, 2);
      s.apply(NodeChanged{node(i, busy, rng.chance(1, 2) ? "a" : "b")});
      if (!busy) continue;
      s.apply(LeaseChanged{lease(90 + i, i, kT0)});
      if (rng.chance(3, 4)) s.apply(TermsChanged{ClusterId{90 + i}, kT0 + Millis(rng.below(20 * 3'600'000))});
    }
    constexpr std::array<const char*, 8> kShapes{"*", "**", "ab", "aa*", "a", "b", "***", "a**"};
    for (std::uint64_t g = 1; g <= 3; ++g)
      s.apply(RequestChanged{request(g, kShapes[rng.below(8)], kT0 - Millis(1'200'000 - g))});
    const std::string shape = kShapes[rng.below(8)];
    s.apply(RequestChanged{request(9, shape, kT0, rng.chance(1, 2) ? 0ms : 24h)});
    while (!s.plan({}, kT0).empty()) {
    }
    const QueueView view = s.queue_of(ClusterId{9}, kT0);
    const auto minutes = view.reason.params.find("backfill_minutes");
    if (minutes == view.reason.params.end()) continue;
    ++told;
    const WallTime asked = kT0 + Millis(rng.below(600'000));
    s.apply(RequestChanged{request(9, shape, asked, Millis(std::stoll(minutes->second) * 60'000))});
    EXPECT_TRUE(started(s.plan({}, asked)).contains(9)) << "seed " << seed << ": " << view.reason.text;
  }
  EXPECT_GT(told, 15);
}

TEST(Backfill, LengthsAreRoundedUpToFewSteps) {
  std::set<std::int64_t> steps;
  for (std::int64_t ms = 1; ms <= std::int64_t{366} * 24 * 3'600'000; ms += 59'999) {
    const std::int64_t step = length_step(ms);
    ASSERT_GE(step, ms);
    ASSERT_LE(step, std::max(ms + 15 * 60'000, ms + ms / 8 + 1));
    ASSERT_EQ(length_step(step), step);
    steps.insert(step);
    const std::int64_t within = step_within(ms);
    ASSERT_LE(within, ms);
    if (within > 0) ASSERT_EQ(length_step(within), within);
  }
  EXPECT_LT(steps.size(), 110U);
  for (const Millis whole : {Millis(1h), Millis(2h), Millis(8h), Millis(12h), Millis(24h)})
    EXPECT_EQ(length_step(whole.count()), whole.count());
  for (const std::int64_t none : {std::int64_t{0}, std::int64_t{-1}, std::numeric_limits<std::int64_t>::max()})
    EXPECT_EQ(length_step(none), 0);
}

// What is limited is not put where the owner wants the machine back before, nor where only shorter work is taken.
TEST(Backfill, OffersHoldForTheLongestThatItCanLast) {
  Scheduler s;
  NodeView evening = node(1), brief = node(2);
  evening.offer.hours = {{kT0, kT0 + 4h}};
  brief.offer.longest = 2h;
  s.apply(NodeChanged{evening});
  s.apply(RequestChanged{request(1, "*", kT0, 4h)});
  EXPECT_TRUE(s.plan({}, kT0).empty());
  s.apply(NodeChanged{brief});
  EXPECT_TRUE(s.plan({}, kT0).empty());
  s.apply(RequestChanged{request(2, "*", kT0, 3h)}), s.apply(RequestChanged{request(3, "*", kT0, 90min)});
  EXPECT_EQ(started(s.plan({}, kT0)), (std::set<std::uint64_t>{2, 3}));
}

TEST(Backfill, MatchingsAreAsLargeAsCanBe) {
  for (std::uint64_t seed = 1; seed <= 1'000; ++seed) {
    Rng rng(seed);
    const std::uint32_t machines = 1 + static_cast<std::uint32_t>(rng.below(5)),
                        needs = 1 + static_cast<std::uint32_t>(rng.below(3));
    std::vector<std::uint32_t> counts, slots;
    for (std::uint32_t n = 0; n < needs; ++n) {
      counts.push_back(1 + static_cast<std::uint32_t>(rng.below(2)));
      slots.insert(slots.end(), counts.back(), n);
    }
    Matching matching(counts);
    std::set<std::pair<std::uint32_t, std::uint32_t>> edges;
    std::set<std::uint32_t> before;
    for (int step = 0; step < 12; ++step) {
      const std::pair edge{static_cast<std::uint32_t>(rng.below(machines)),
                           static_cast<std::uint32_t>(rng.below(needs))};
      if (!edges.insert(edge).second) continue;
      matching.add(edge.first, edge.second);
      std::size_t most = 0;  // by trying everything: a bit for each slot
      std::set<std::uint32_t> reach{0};
      for (std::uint32_t m = 0; m < machines; ++m)
        for (const std::uint32_t taken : std::set(reach))
          for (std::uint32_t slot = 0; slot < slots.size(); ++slot)
            if ((taken >> slot & 1U) == 0 && edges.contains({m, slots[slot]})) reach.insert(taken | 1U << slot);
      for (const std::uint32_t taken : reach)
        most = std::max<std::size_t>(most, static_cast<std::size_t>(std::popcount(taken)));
      std::set<std::uint32_t> matched;
      for (std::uint32_t m = 0; m < machines; ++m)
        if (matching.matched(m)) matched.insert(m);
      ASSERT_EQ(matched.size(), most) << "seed " << seed << " step " << step;
      ASSERT_EQ(matching.complete(), most == slots.size());
      ASSERT_TRUE(std::includes(matched.begin(), matched.end(), before.begin(), before.end()));
      before = std::move(matched);
    }
  }
}

constexpr int kForever = 100'000, kNever = 1'000'000;

// ---- a small world in which everything runs, minute by minute, with and without backfill
struct Job {
  std::uint64_t id = 0;
  std::string regions;
  int arrives = 0, starting = 0, longest = 0, lasts = 0; /* minutes; longest 0 = no limit */
};
struct World {
  std::vector<std::string> regions;       // of machines
  std::vector<std::pair<int, int>> busy;  // from the beginning: until when, and what is promised (0 = nothing)
  std::vector<Job> jobs;                  // the first is the gang
  int horizon = 0;
  bool exact = false;
};
World world_of(std::uint64_t seed, bool exact) {
  Rng rng(seed);
  World w;
  w.exact = exact, w.horizon = 900;
  const std::size_t machines = 3 + rng.below(4);
  for (std::size_t i = 0; i < machines; ++i) {
    w.regions.emplace_back(rng.chance(1, 2) ? "a" : "b");
    const int promise = rng.chance(5, 6) ? static_cast<int>(30 + rng.below(600)) : 0;
    const int until = exact ? (promise == 0 ? kForever : promise)
                            : 1 + static_cast<int>(rng.below(promise == 0 ? 900 : static_cast<std::uint64_t>(promise)));
    w.busy.emplace_back(rng.chance(1, 2) ? until : 0, promise);
  }
  const auto shape = [&](std::size_t most) {
    std::string out;
    for (std::size_t i = 0, n = 1 + rng.below(most); i < n; ++i) out += "*ab"[rng.below(3)];
    return out;
  };
  w.jobs.push_back({1, shape(4), 0, 0, 0, kForever});
  const std::size_t others = 4 + rng.below(10);
  for (std::uint64_t i = 0; i < others; ++i) {
    Job job{i + 2, shape(2), static_cast<int>(1 + rng.below(400)), static_cast<int>(rng.below(31)), 0, 0};
    if (rng.chance(4, 5)) job.longest = static_cast<int>(5 + rng.below(240));
    const int most = job.longest == 0 ? 600 : job.longest;
    job.lasts = exact ? (job.longest == 0 ? kForever : most)
                      : 1 + static_cast<int>(rng.below(static_cast<std::uint64_t>(most)));
    w.jobs.push_back(job);
  }
  return w;
}

struct Outcome {
  int gang = kNever;      // when it started
  int promised = kNever;  // the earliest time that anybody could have promised it
  int ahead = 0;          // how many others started while it kept machines
  std::int64_t used = 0;  // machine minutes
};

// Every way to give the gang's members distinct machines, each free by then.
bool can_start(const World& w, const std::vector<int>& free_at, int at) {
  const std::string& needs = w.jobs[0].regions;
  std::vector<std::size_t> order(w.regions.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  if (needs.size() > order.size()) return false;
  do {
    bool fits = true;
    for (std::size_t i = 0; fits && i < needs.size(); ++i)
      fits = free_at[order[i]] <= at && (needs[i] == '*' || w.regions[order[i]][0] == needs[i]);
    if (fits) return true;
  } while (std::next_permutation(order.begin(), order.end()));
  return false;
}

Outcome play(const World& w, bool backfill, std::uint64_t seed) {
  Rng rng(seed);  // for what only others notice
  struct Held {
    std::uint64_t cluster = 0; /* 0: free */
    int until = 0, promised = 0;
  };
  auto s = std::make_unique<Scheduler>(Options{.backfill = backfill});
  std::vector<Held> held(w.regions.size());
  const auto at = [](int minute) { return kT0 + Millis(std::int64_t{minute} * 60'000); };
  const auto view = [&](std::size_t i) { return NodeChanged{node(i + 1, held[i].cluster != 0, w.regions[i])}; };
  for (std::size_t i = 0; i < held.size(); ++i) {
    if (w.busy[i].first > 0) {
      held[i] = {900 + i, w.busy[i].first, w.busy[i].second};
      s->apply(LeaseChanged{lease(900 + i, i + 1, kT0)});
      if (held[i].promised > 0) s->apply(TermsChanged{ClusterId{900 + i}, at(held[i].promised)});
    }
    s->apply(view(i));
  }
  Outcome out;
  std::map<int, std::vector<std::pair<std::uint64_t, int>>> begins;  // when clusters run, and their ends
  bool changed = true;
  for (int minute = 0; minute <= w.horizon; ++minute) {
    for (std::size_t i = 0; i < held.size(); ++i) {
      if (held[i].cluster == 0 || held[i].until > minute) continue;
      s->apply(LeaseGone{lease(held[i].cluster, i + 1, {}).lease});
      s->apply(TermsGone{ClusterId{held[i].cluster}});
      held[i] = {}, changed = true;
      s->apply(view(i));
    }
    for (const auto& [cluster, end] : begins[minute]) {
      bool there = false;
      for (const Held& h : held) there = there || h.cluster == cluster;
      if (!there) continue;
      s->apply(TermsChanged{ClusterId{cluster}, at(end)});
      for (Held& h : held)
        if (h.cluster == cluster) h.promised = end, changed = true;
    }
    bool news = changed || minute % 10 == 0;  // else nobody has anything to plan for
    for (const Job& job : w.jobs)
      if (job.arrives == minute) {
        news = true;
        s->apply(RequestChanged{request(job.id, job.regions, at(minute), Millis(std::int64_t{job.longest} * 60'000))});
      }
    if (rng.chance(1, 400)) {  // another follower takes over
      auto rebuilt = std::make_unique<Scheduler>(Options{.backfill = backfill});
      for (const Change& change : s->snapshot()) rebuilt->apply(change);
      s = std::move(rebuilt);
    }
    while (news) {
      const auto groups = s->plan({}, at(minute));
      for (const Group& g : groups) {
        const Job& job =
            *std::find_if(w.jobs.begin(), w.jobs.end(), [&](const Job& j) { return j.id == g.cluster.value; });
        if (job.id != 1 && rng.chance(1, 10)) continue;  // refused
        if (job.id == 1) out.gang = minute;
        if (out.gang == kNever && minute >= 10) ++out.ahead;
        const int begin = minute + job.starting;
        if (job.longest > 0) begins[begin].emplace_back(job.id, begin + job.longest);
        for (const Place& p : g.places) {
          Held& h = held[p.node.value - 1];
          if (h.cluster != 0) ADD_FAILURE() << "given twice";
          changed = true;
          h = {job.id, begin + job.lasts, job.longest > 0 ? minute + 30 + job.longest : 0};
          s->apply(view(p.node.value - 1));
          s->apply(LeaseChanged{lease(job.id, p.node.value, at(minute))});
        }
        s->apply(RequestGone{g.cluster});
        s->apply(TermsChanged{g.cluster, {}, Millis(std::int64_t{job.longest} * 60'000)});
      }
      if (groups.empty()) break;
    }
    for (const Held& h : held) out.used += h.cluster != 0 ? 1 : 0;
    if (minute < 10 || out.gang < kNever || !std::exchange(changed, false)) continue;  // it keeps machines from now on
    std::vector<int> free_at;
    std::set<int> times;
    for (const Held& h : held) {
      free_at.push_back(h.cluster == 0 ? minute : h.promised == 0 ? kNever : std::max(h.promised, minute + 1));
      times.insert(free_at.back());
    }
    for (const int time : times)
      if (time < out.promised && can_start(w, free_at, time)) out.promised = time;
  }
  return out;
}

// Whatever could have been promised to the gang at any moment holds: short work in between ends before.
TEST(Backfill, APromiseToTheGangIsNeverBroken) {
  int ahead = 0, waited = 0, later = 0;
  std::int64_t used = 0, used_before = 0;
  for (std::uint64_t seed = 1; seed <= 80; ++seed) {
    const World w = world_of(seed, false);
    const Outcome on = play(w, true, seed), off = play(w, false, seed);
    if (on.promised <= w.horizon) ASSERT_LE(on.gang, on.promised) << "seed " << seed;
    ahead += on.ahead - off.ahead, waited += on.gang > 10 ? 1 : 0, later += on.gang > off.gang ? 1 : 0;
    used += on.used, used_before += off.used;
  }
  // An end that comes early helps nobody whom it was not promised to: the gang may start later than without backfill
  // then, never later than it was told.
  EXPECT_LT(later, 100);
  EXPECT_GT(waited, 15);
  EXPECT_GT(ahead, 15) << "nothing was put in between";
  EXPECT_GE(used, used_before);
}

// When work lasts as long as it may, the gang starts in the very minute in which it would without backfill.
TEST(Backfill, TheGangStartsNoLaterThanWithoutIt) {
  int ahead = 0;
  std::int64_t used = 0, used_before = 0;
  for (std::uint64_t seed = 1; seed <= 80; ++seed) {
    const World w = world_of(seed, true);
    const Outcome on = play(w, true, seed), off = play(w, false, seed);
    ASSERT_LE(on.gang, off.gang) << "seed " << seed;
    ahead += on.ahead - off.ahead;
    used += on.used, used_before += off.used;
  }
  EXPECT_GT(ahead, 15);
  EXPECT_GE(used, used_before);
}

// ---- the first few of a kind, on machines of one or two parts, among others that come and go
struct Few {
  int told = 0, told_behind = 0, ahead = 0; /* promises; of those not to the first; starts of others while any stood */
};
Few play_few(std::uint64_t seed) {
  struct Part {
    std::uint64_t cluster = 0, lease = 0;
    int until = 0, parts = 1;
  };
  struct Site {
    int parts = 1;
    std::vector<Part> held;
    int free() const {
      int out = parts;
      for (const Part& p : held) out -= p.parts;
      return out;
    }
  };
  Rng rng(seed);
  Few out;
  auto s = std::make_unique<Scheduler>();
  std::vector<Site> sites(3 + rng.below(4));
  std::uint64_t leases = 0;
  const auto at = [](int minute) { return kT0 + Millis(std::int64_t{minute} * 60'000); };
  const auto tell = [&](std::size_t i) {
    NodeView n = node(i + 1);
    n.capacity.cpu_milli = std::int64_t{sites[i].parts} * 1'000,
    n.free.cpu_milli = std::int64_t{sites[i].free()} * 1'000;
    n.whole = sites[i].held.empty();
    s->apply(NodeChanged{n});
  };
  const auto begin = [&](std::size_t i, std::uint64_t cluster, int minute, int until, int parts) {
    sites[i].held.push_back({cluster, ++leases, until, parts});
    LeaseView l = lease(cluster, i + 1, at(minute));
    l.lease = LeaseId{leases}, l.resources.cpu_milli = std::int64_t{parts} * 1'000, l.resources.memory_bytes = 0;
    s->apply(LeaseChanged{l});
    tell(i);
  };
  for (std::size_t i = 0; i < sites.size(); ++i) {
    sites[i].parts = 1 + static_cast<int>(rng.below(2));
    tell(i);
    if (!rng.chance(2, 3)) continue;
    const int promise = 30 + static_cast<int>(rng.below(300));
    begin(i, 900 + i, 0, rng.chance(1, 6) ? kForever : 1 + static_cast<int>(rng.below(static_cast<unsigned>(promise))),
          1);
    if (sites[i].held[0].until < kForever) s->apply(TermsChanged{ClusterId{900 + i}, at(promise)});
  }
  // Gangs of one kind come first, and then what might delay them.
  struct Work {
    int arrives = 0, starting = 0, longest = 0, lasts = 0, machines = 1, parts = 1;
  };
  std::map<std::uint64_t, Work> works;
  const std::uint64_t gangs = 2 + rng.below(5);
  const Work gang{0,
                  0,
                  rng.chance(1, 2) ? 0 : 15 * (1 + static_cast<int>(rng.below(8))),
                  0,
                  1 + static_cast<int>(rng.below(3)),
                  1 + static_cast<int>(rng.below(2))};
  for (std::uint64_t id = 1; id <= gangs + 12; ++id) {
    Work w = gang;
    if (id > gangs) {
      w = {1 + static_cast<int>(rng.below(300)), 0, 0, 0, 1 + static_cast<int>(rng.below(2)),
           1 + static_cast<int>(rng.below(2))};
      if (rng.chance(5, 6)) w.longest = 5 + static_cast<int>(rng.below(200));
    }
    w.starting = static_cast<int>(rng.below(31));
    w.lasts = w.longest == 0 ? kForever : 1 + static_cast<int>(rng.below(static_cast<unsigned>(w.longest)));
    works.emplace(id, w);
  }
  std::map<std::uint64_t, int> told;  // by gang: the minute it was promised, the earliest
  std::map<int, std::vector<std::pair<std::uint64_t, int>>> begins;  // when clusters run, and their ends
  std::set<std::uint64_t> waits;
  for (int minute = 0; minute <= 500; ++minute) {
    bool news = minute % 10 == 0;
    for (std::size_t i = 0; i < sites.size(); ++i) {
      const std::size_t before = sites[i].held.size();
      for (const Part& p : sites[i].held)
        if (p.until <= minute) s->apply(LeaseGone{LeaseId{p.lease}}), s->apply(TermsGone{ClusterId{p.cluster}});
      std::erase_if(sites[i].held, [&](const Part& p) { return p.until <= minute; });
      if (sites[i].held.size() != before) tell(i), news = true;
    }
    for (const auto& [cluster, end] : begins[minute])
      if (std::any_of(sites.begin(), sites.end(), [&](const Site& site) {
            return std::any_of(site.held.begin(), site.held.end(), [&](const Part& p) { return p.cluster == cluster; });
          }))
        s->apply(TermsChanged{ClusterId{cluster}, at(end)});
    for (const auto& [id, w] : works) {
      if (w.arrives != minute) continue;
      Request r = request(id, std::string(static_cast<std::size_t>(w.machines), '*'), at(minute),
                          Millis(std::int64_t{w.longest} * 60'000));
      for (Bundle& b : r.gang) b.request.resources.cpu_milli = std::int64_t{w.parts} * 1'000;
      s->apply(RequestChanged{r});
      waits.insert(id), news = true;
    }
    if (rng.chance(1, 200)) {  // another follower takes over
      auto rebuilt = std::make_unique<Scheduler>();
      for (const Change& change : s->snapshot()) rebuilt->apply(change);
      s = std::move(rebuilt);
      news = true;
    }
    while (news) {
      const auto groups = s->plan({}, at(minute));
      for (const Group& g : groups) {
        const std::uint64_t id = g.cluster.value;
        if (const auto promise = told.find(id); promise != told.end())
          EXPECT_LE(minute, promise->second) << "seed " << seed << " gang " << id;
        if (id > gangs && !told.empty()) ++out.ahead;
        const Work& w = works.at(id);
        const int runs = minute + w.starting;
        if (w.longest > 0) begins[runs].emplace_back(id, runs + w.longest);
        for (const Place& p : g.places) begin(p.node.value - 1, id, minute, runs + w.lasts, w.parts);
        s->apply(RequestGone{g.cluster});
        s->apply(TermsChanged{g.cluster, {}, Millis(std::int64_t{w.longest} * 60'000)});
        waits.erase(id), told.erase(id);
      }
      if (groups.empty()) break;
    }
    for (std::size_t i = 0; i < sites.size(); ++i)
      if (sites[i].free() < 0) ADD_FAILURE() << "given twice";
    if (!news) continue;
    std::uint64_t first = 0;
    for (std::uint64_t id = 1; id <= gangs; ++id) {
      if (!waits.contains(id)) continue;
      if (first == 0) first = id;
      const QueueView view = s->queue_of(ClusterId{id}, at(minute));
      if (!view.reason.params.contains("reserved")) continue;
      const int start = static_cast<int>((view.expected_start.ms - kT0.ms + 59'999) / 60'000);
      const auto [promise, fresh] = told.try_emplace(id, start);
      promise->second = std::min(promise->second, start);
      if (fresh) ++out.told, out.told_behind += id != first ? 1 : 0;
    }
  }
  for (const auto& [id, promise] : told) EXPECT_GT(promise, 500) << "seed " << seed << " gang " << id << " still waits";
  return out;
}

TEST(Backfill, NoPromiseToTheFirstFewOfAKindIsBroken) {
  Few all;
  for (std::uint64_t seed = 1; seed <= 150; ++seed) {
    const Few few = play_few(seed);
    all.told += few.told, all.told_behind += few.told_behind, all.ahead += few.ahead;
  }
  EXPECT_GT(all.told, 100);
  EXPECT_GT(all.told_behind, 30);
  EXPECT_GT(all.ahead, 100) << "nothing was put in between";
}

}  // namespace
}  // namespace muster::scheduler::backfill_test
