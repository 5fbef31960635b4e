#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <map>

#include "base/rng.h"
#include "scheduler/run_times.h"
#include "scheduler/scheduler.h"

namespace muster::scheduler::forward_test {
namespace {

constexpr WallTime kT0{1'700'000'000'000};
constexpr OrgId kLab{9};

NodeView machine(std::uint64_t id, std::int64_t cpus) {
  NodeView n;
  n.node = NodeId{id}, n.supplier = OrgId{1}, n.arch = "x86_64", n.schedulable = true;
  n.capacity.cpu_milli = cpus * 1000, n.capacity.memory_bytes = std::int64_t{64} << 30;
  n.free = n.capacity, n.runtimes = {RuntimeKind::Docker};
  return n;
}
Request asks(std::uint64_t id, std::int64_t cpus, WallTime since, std::uint8_t tier = 1) {
  Request r;
  r.cluster = ClusterId{id}, r.tenant = kLab, r.since = since, r.pool = "market", r.arch = "x86_64", r.image = "ray";
  r.tier = tier;
  Bundle b;
  b.role = SlotRole::Head, b.request.resources.cpu_milli = cpus * 1000;
  r.gang.push_back(b);
  return r;
}
LeaseView lease(std::uint64_t id, std::uint64_t cluster, std::uint64_t node, std::int64_t cpus, WallTime since) {
  LeaseView l;
  l.lease = LeaseId{id}, l.cluster = ClusterId{cluster}, l.node = NodeId{node}, l.role = SlotRole::Head;
  l.resources.cpu_milli = cpus * 1000, l.tenant = kLab, l.since = since;
  return l;
}
// One machine of four CPUs, taken by work that began a while ago.
Scheduler busy(Millis age) {
  Scheduler s;
  NodeView n = machine(1, 4);
  n.free.cpu_milli = 0, n.whole = false;
  s.apply(NodeChanged{n});
  s.apply(LeaseChanged{lease(1, 50, 1, 4, kT0 - age)});
  return s;
}
void lasted(Scheduler& s, Millis length, int times = 20) {
  for (int i = 0; i < times; ++i) {
    LeaseView l = lease(1'000'000, 999, 77, 1, kT0 - 24h);
    s.apply(LeaseChanged{l});
    s.apply(LeaseGone{l.lease, l.since + length});
  }
}

TEST(RunTimes, QuantilesAreThoseOfWhatEnded) {
  Rng rng(3);
  RunTimes t;
  std::vector<std::int64_t> lengths;
  EXPECT_FALSE(t.length(kLab, 0ms, 0).has_value());
  for (int i = 0; i < 2000; ++i) {
    std::int64_t ms = 20'000;
    while (rng.chance(4, 5) && ms < 40'000'000) ms = ms * rng.between(11, 17) / 10;
    lengths.push_back(ms);
    t.add(kLab, Millis(ms));
  }
  std::sort(lengths.begin(), lengths.end());
  for (const std::int64_t over : {0, 30'000, 200'000}) {  // of those that last longer
    const auto from = std::upper_bound(lengths.begin(), lengths.end(), over);
    for (const int percent : {10, 50, 90}) {
      const auto real = *(from + (lengths.end() - from) * percent / 100);
      const auto said =
          t.length(kLab, Millis(over), static_cast<std::uint32_t>((std::uint64_t{1} << 32) * percent / 100));
      EXPECT_GT(said->count(), over);
      EXPECT_NEAR(static_cast<double>(said->count()), static_cast<double>(real), static_cast<double>(real) * 0.25)
          << percent << " after " << over;
    }
  }
  EXPECT_TRUE(t.length(OrgId{77}, 0ms, 0).has_value()) << "everybody's work speaks for a new tenant";
  const auto long_past = t.length(kLab, 400h, 1U << 31);
  EXPECT_GT(*long_past, 400h);
  EXPECT_LT(*long_past, 800h);
  RunTimes again;
  for (const auto& runs : t.all()) again.restore(runs);
  EXPECT_EQ(again.length(kLab, 7s, 12345), t.length(kLab, 7s, 12345));
  for (const Millis hostile : {Millis::min(), Millis::max(), Millis(-1)}) {
    t.add(kLab, hostile);
    EXPECT_GE(*t.length(kLab, hostile, ~0U), 0ms);
  }
}

// The planner's own play, and the sketch of it that long queues get.
class Play : public testing::TestWithParam<std::uint32_t> {};
INSTANTIATE_TEST_SUITE_P(Forward, Play, testing::Values(1'000U, 0U),
                         [](const auto& info) { return info.param > 0 ? "Exact" : "Sketch"; });

TEST_P(Play, APromisedEndIsKnownToTheMinute) {
  Scheduler s = busy(10min);
  s.apply(TermsChanged{ClusterId{50}, kT0 + 1h});
  s.apply(RequestChanged{asks(1, 4, kT0)});
  const auto starts = s.starts(kT0, {.exact_max = GetParam()});
  ASSERT_EQ(starts.size(), 1U);
  EXPECT_EQ(starts[0].cluster, ClusterId{1});
  EXPECT_EQ(starts[0].p50, kT0 + 61min);
  EXPECT_EQ(starts[0].p90, kT0 + 61min);
}

TEST_P(Play, WhatNobodyKnowsIsNotSaid) {
  Scheduler s = busy(10min);
  s.apply(RequestChanged{asks(1, 4, kT0)});
  s.apply(RequestChanged{asks(2, 64, kT0)});
  for (const auto& start : s.starts(kT0, {.exact_max = GetParam()})) EXPECT_EQ(start.p50.ms, 0);
  lasted(s, 20min);
  const auto starts = s.starts(kT0, {.exact_max = GetParam()});
  EXPECT_GT(starts[0].p50, kT0);
  EXPECT_EQ(starts[1].p90.ms, 0) << "no machine can ever do that";
}

TEST_P(Play, HistoryTellsHowLongTheRestTakes) {
  Scheduler s = busy(4min);
  lasted(s, 10min);
  for (std::uint64_t i = 1; i <= 3; ++i) s.apply(RequestChanged{asks(i, 4, kT0 + Millis(i))});
  const auto starts = s.starts(kT0, {.exact_max = GetParam()});
  ASSERT_EQ(starts.size(), 3U);
  for (std::size_t i = 0; i < 3; ++i) {  // each in its turn, ten minutes and a minute to clear up apart
    const auto expected = 7min + i * 11min;
    EXPECT_NEAR(static_cast<double>((starts[i].p50 - kT0).count()), static_cast<double>(Millis(expected).count()),
                static_cast<double>(Millis(expected).count()) * 0.25);
    EXPECT_LE(starts[i].p50, starts[i].p90);
  }
  // Work that has a limit ends by it, whatever was usual.
  s.apply(TermsChanged{ClusterId{50}, kT0 + 1min});
  EXPECT_EQ(s.starts(kT0, {.exact_max = GetParam()})[0].p90, kT0 + 2min);
}

TEST_P(Play, CountsTheRoomThatLaterTiersMake) {
  Scheduler s = busy(10min);
  LeaseView l = lease(1, 50, 1, 4, kT0 - 10min);
  l.role = SlotRole::Worker, l.tier = 3;
  s.apply(LeaseChanged{l});
  s.apply(RequestChanged{asks(1, 4, kT0)});
  EXPECT_EQ(s.starts(kT0, {.exact_max = GetParam()})[0].p90, kT0 + 1min);
}

TEST(Forward, ChangesNothingAndSaysTheSameAgain) {
  Scheduler s = busy(4min), other = busy(4min);
  for (Scheduler* each : {&s, &other}) {
    lasted(*each, 10min);
    NodeView n = machine(2, 2);
    each->apply(NodeChanged{n});
    for (std::uint64_t i = 1; i <= 6; ++i) each->apply(RequestChanged{asks(i, 1 + i % 4, kT0)});
  }
  const auto first = s.starts(kT0);
  EXPECT_EQ(first, s.starts(kT0));
  Scheduler rebuilt;
  for (const Change& change : s.snapshot()) rebuilt.apply(change);
  EXPECT_EQ(rebuilt.starts(kT0), first);
  EXPECT_EQ(s.queue(kT0), other.queue(kT0));
  EXPECT_EQ(s.plan({}, kT0), other.plan({}, kT0));
}

TEST_P(Play, WhatComesLaterAndGoesFirstIsExpected) {
  // One machine; every ten minutes somebody of tier 0 came for ten minutes of it, and goes before who waits in tier 1.
  Scheduler quiet = busy(4min), lively = busy(4min);
  for (Scheduler* s : {&quiet, &lively}) lasted(*s, 10min);
  for (std::uint64_t i = 1; i <= 12; ++i) {
    lively.apply(RequestChanged{asks(100 + i, 4, kT0 - 12 * 9min + i * 9min, 0)});
    lively.apply(RequestGone{ClusterId{100 + i}});
  }
  for (Scheduler* s : {&quiet, &lively}) s->apply(RequestChanged{asks(1, 4, kT0, 1)});
  EXPECT_LT(quiet.starts(kT0, {.exact_max = GetParam()})[0].p90, kT0 + 12min);
  const auto start = lively.starts(kT0, {.exact_max = GetParam()})[0];
  EXPECT_TRUE(start.p90.ms == 0 || start.p90 > kT0 + 25min);
  Scheduler rebuilt;
  for (const Change& change : lively.snapshot()) rebuilt.apply(change);
  EXPECT_EQ(rebuilt.starts(kT0, {.exact_max = GetParam()}), lively.starts(kT0, {.exact_max = GetParam()}));
}

// A market plays on with lengths that nobody told: of those that waited, about nine in ten start by their p90 and about
// half by their p50.
TEST_P(Play, QuantilesHoldInARunningMarket) {
  int waited = 0, by50 = 0, by90 = 0;
  for (std::uint64_t seed = 1; seed <= 2; ++seed) {
    Rng rng(seed);
    const auto length = [&] {
      std::int64_t ms = 60'000;
      while (rng.chance(3, 4)) ms += rng.between(30'000, 600'000);
      return Millis(ms);
    };
    Scheduler s;
    std::map<NodeId, NodeView> nodes;
    for (std::uint64_t i = 1; i <= 4; ++i) s.apply(NodeChanged{nodes[NodeId{i}] = machine(i, 8)});
    struct Running {
      LeaseView lease;
      WallTime end;
    };
    std::map<LeaseId, Running> running;
    std::map<ClusterId, Request> waiting;
    std::map<ClusterId, StartForecast> said;
    WallTime now = kT0;
    std::uint64_t next = 1;
    const auto change = [&](const LeaseView& l, std::int64_t sign) {
      NodeView& n = nodes.at(l.node);
      n.free.cpu_milli += sign * l.resources.cpu_milli;
      n.whole = n.free.cpu_milli == n.capacity.cpu_milli;
      s.apply(NodeChanged{n});
    };
    for (int step = 0; step < 900; ++step) {
      now = now + 30s;
      std::vector<LeaseId> over;
      for (const auto& [id, r] : running)
        if (r.end + 1min <= now) over.push_back(id);
      for (const LeaseId id : over) {
        s.apply(LeaseGone{id, running.at(id).end});
        change(running.at(id).lease, +1);
        running.erase(id);
      }
      if (rng.chance(1, 4) && waiting.size() < 12) {
        const Request r = asks(next, rng.between(1, 5), now);
        ++next;
        waiting[r.cluster] = r;
        s.apply(RequestChanged{r});
      }
      for (const Group& g : s.plan({}, now)) {
        for (const Place& p : g.places) {
          LeaseView l = lease(g.cluster.value, g.cluster.value, p.node.value, p.resources.cpu_milli / 1000, now);
          running[l.lease] = {l, now + length()};
          s.apply(LeaseChanged{l});
          change(l, -1);
        }
        if (const auto it = said.find(g.cluster); it != said.end() && it->second.p90.ms != 0) {
          ++waited;
          by50 += now <= it->second.p50 + 30s ? 1 : 0;
          by90 += now <= it->second.p90 + 30s ? 1 : 0;
        }
        waiting.erase(g.cluster);
        s.apply(RequestGone{g.cluster});
      }
      if (step > 300 && step % 8 == 0)
        for (const StartForecast& f : s.starts(
                 now,
                 {.samples = 16, .seed = seed * 1'000 + static_cast<std::uint64_t>(step), .exact_max = GetParam()}))
          said.try_emplace(f.cluster, f);  // what they were told first
    }
  }
  ASSERT_GT(waited, 70);
  EXPECT_GT(by90, waited * 74 / 100) << by90 << " of " << waited;
  EXPECT_LT(by90, waited * 97 / 100) << by90 << " of " << waited;
  EXPECT_GT(by50, waited * 33 / 100) << by50 << " of " << waited;
  EXPECT_LT(by50, waited * 70 / 100) << by50 << " of " << waited;
}

// Two leases have a half each of the one GPU and end one after the other: who wants all of it starts after the second.
TEST(Forward, AGpuIsFreeWhenItsLastShareEnds) {
  Scheduler s;
  NodeView n = machine(1, 8);
  n.devices = {{"gpu-0", "T4", std::int64_t{16} << 30}};
  n.capacity.gpus = 1, n.whole = false;
  n.shared = {{"gpu-0", Sharing::TenantShares, 0, kLab, 0}};
  s.apply(NodeChanged{n});
  for (const std::uint64_t i : {1, 2}) {
    LeaseView half = lease(i, 50 + i, 1, 1, kT0 - 10min);
    half.devices = {"gpu-0"};
    s.apply(LeaseChanged{half});
    s.apply(TermsChanged{half.cluster, kT0 + (i == 1 ? 5min : 60min), {}});
  }
  Request r = asks(1, 1, kT0);
  r.gang.front().request.resources.gpus = 1;
  s.apply(RequestChanged{r});
  ASSERT_TRUE(s.plan({}, kT0).empty());
  const auto starts = s.starts(kT0);
  ASSERT_EQ(starts.size(), 1U);
  EXPECT_GE(starts[0].p50, kT0 + 60min);
  EXPECT_LE(starts[0].p50, kT0 + 65min);
}

}  // namespace
}  // namespace muster::scheduler::forward_test
