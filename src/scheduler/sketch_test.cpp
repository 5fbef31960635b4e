#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "base/rng.h"
#include "scheduler/scheduler.h"
#include "scheduler/tournament.h"

namespace muster::scheduler::sketch_test {
namespace {

constexpr WallTime kSketchNow{1'700'000'000'000};
constexpr std::int64_t kSketchGib = std::int64_t{1} << 30;

TEST(Tournament, FindsTheFirstThatFits) {
  Rng rng(4);
  const auto some = [&] {
    return Bound{static_cast<std::uint32_t>(rng.below(9)), static_cast<std::uint32_t>(rng.below(9)),
                 static_cast<std::uint32_t>(rng.below(3)), std::uint64_t{1} << rng.below(5)};
  };
  for (int round = 0; round < 200; ++round) {
    std::vector<Bound> leaves(1 + rng.below(40));
    for (Bound& leaf : leaves) leaf = some();
    Tournament<true> needs;
    Tournament<false> have;
    needs.assign(leaves), have.assign(leaves);
    for (int i = 0; i < 60; ++i) {
      const std::size_t at = rng.below(leaves.size());
      if (rng.chance(1, 3)) {
        leaves[at] = rng.chance(1, 2) ? Tournament<true>::nobody() : some();
        needs.set(static_cast<std::uint32_t>(at), leaves[at]);
        have.set(static_cast<std::uint32_t>(at), leaves[at]);
      }
      Bound other = some();
      other.kinds |= std::uint64_t{1} << rng.below(5);
      const auto fits = [](const Bound& need, const Bound& has) {
        return need.cpu <= has.cpu && need.memory <= has.memory && need.gpus <= has.gpus &&
               (need.kinds & has.kinds) != 0;
      };
      std::uint32_t first = kNone, most = kNone;
      for (std::size_t k = leaves.size(); k-- > at;) {
        if (fits(leaves[k], other)) first = static_cast<std::uint32_t>(k);
        if (fits(other, leaves[k])) most = static_cast<std::uint32_t>(k);
      }
      EXPECT_EQ(needs.first(static_cast<std::uint32_t>(at), other), first);
      EXPECT_EQ(have.first(static_cast<std::uint32_t>(at), other), most);
    }
  }
}

// A full market: machines of two models and without GPUs, work of two tiers on them, and many times as much waiting.
struct Crowd {
  Scheduler s;
  std::vector<Request> waiting;

  NodeView machine(std::uint64_t id, Rng& rng) {
    NodeView n;
    n.node = NodeId{id}, n.supplier = OrgId{1 + id % 7}, n.arch = "x86_64", n.schedulable = true;
    n.runtimes = {RuntimeKind::Docker};
    const std::int64_t gpus = id % 4 == 0 ? 0 : std::int64_t{1} << rng.below(3);
    n.capacity.cpu_milli = std::max<std::int64_t>(8, gpus * 8) * 1'000, n.capacity.memory_bytes = 64 * kSketchGib;
    n.capacity.gpus = gpus;
    for (std::int64_t i = 0; i < gpus; ++i)
      n.devices.push_back(
          {std::to_string(id) + "-" + std::to_string(i), id % 3 == 0 ? "H100" : "A100", 80 * kSketchGib});
    return n;
  }
  Crowd(std::uint64_t seed, std::uint64_t machines, std::uint64_t requests, bool gangs = true) {
    Rng rng(seed);
    for (int i = 0; i < 400; ++i) {  // what lasted how long
      LeaseView l;
      l.lease = LeaseId{9'000'000}, l.cluster = ClusterId{9'000'000}, l.node = NodeId{9'000'000};
      l.role = SlotRole::Head, l.tenant = OrgId{1 + rng.below(5)}, l.since = kSketchNow - 90'000'000ms;
      s.apply(LeaseChanged{l});
      s.apply(LeaseGone{l.lease, l.since + Millis(rng.between(600'000, 6'000'000))});
    }
    for (std::uint64_t id = 1; id <= machines; ++id) {
      NodeView n = machine(id, rng);
      LeaseView l;
      l.lease = LeaseId{id}, l.cluster = ClusterId{100'000 + id}, l.node = n.node, l.resources = n.capacity;
      for (const Device& d : n.devices) l.devices.push_back(d.uuid);
      l.role = id % 5 == 0 ? SlotRole::Worker : SlotRole::Head, l.tier = id % 5 == 0 ? 3 : 1;
      l.tenant = OrgId{1 + rng.below(5)}, l.since = kSketchNow - Millis(rng.between(130'000, 3'000'000));
      n.free = {}, n.whole = false;
      s.apply(NodeChanged{n});
      s.apply(LeaseChanged{l});
    }
    for (std::uint64_t i = 0; i < requests; ++i) {
      Request r;
      r.cluster = ClusterId{1 + i}, r.tenant = OrgId{1 + rng.below(5)}, r.project = ProjectId{r.tenant.value};
      r.since = kSketchNow - 3'600'000ms + Millis(static_cast<std::int64_t>(i * 3'500'000 / requests));
      r.pool = "market", r.arch = "x86_64", r.tier = rng.chance(1, 3) ? 3 : 1;
      Bundle head;
      head.role = SlotRole::Head;
      head.request.resources.cpu_milli = rng.between(1, 6) * 1'000, head.request.resources.memory_bytes = kSketchGib;
      if (rng.chance(2, 3)) head.request.resources.gpus = rng.between(1, 2);
      if (head.request.resources.gpus > 0 && rng.chance(1, 3))
        head.request.gpu_model = rng.chance(1, 2) ? "H100" : "A100";
      r.gang = {head};
      if (gangs && rng.chance(1, 12)) {
        Bundle workers = head;
        workers.role = SlotRole::Worker, workers.group = "w",
        workers.count = static_cast<std::uint32_t>(rng.between(1, 5));
        r.gang.push_back(workers);
      }
      waiting.push_back(r);
      s.apply(RequestChanged{r});
    }
  }
};

struct Apart {
  double median = 0, ninth = 0, bias = 0; /* of how far the times are off: parts of the wait and ten minutes */
  double never = 0;                       /* of all, that one says never start and the other does not */
};
Apart apart(const std::vector<StartForecast>& exact, const std::vector<StartForecast>& sketched) {
  std::vector<double> off;
  double sum = 0, either = 0, both = 0;
  const auto minutes = [](WallTime t) { return static_cast<double>((t - kSketchNow).count()) / 60e3; };
  for (std::size_t i = 0; i < exact.size(); ++i)
    for (const auto& [a, b] : {std::pair(exact[i].p50, sketched[i].p50), std::pair(exact[i].p90, sketched[i].p90)}) {
      if (a.ms == 0 || b.ms == 0) {
        ++either, both += a == b ? 1 : 0;
        continue;
      }
      const double by = (minutes(b) - minutes(a)) / (minutes(a) + 10);
      off.push_back(std::abs(by)), sum += by;
    }
  std::sort(off.begin(), off.end());
  return {off[off.size() / 2], off[off.size() * 9 / 10], sum / static_cast<double>(off.size()),
          (either - both) / static_cast<double>(2 * exact.size())};
}

// Beside the planner's own play of the same futures.
TEST(Sketch, SaysAboutWhatTheExactPlaySays) {
  for (std::uint64_t seed = 1; seed <= 3; ++seed)
    for (const bool gangs : {false, true}) {
      Crowd crowd(seed, 60, 500, gangs);
      crowd.s.plan({}, kSketchNow);
      // As far as a sketch of so many plays: what comes later is unknown to both.
      ForwardOptions options{
          .samples = 16, .horizon = 5h, .events_max = 100'000, .events_all = 10'000'000, .exact_max = 10'000};
      const auto exact = crowd.s.starts(kSketchNow, options);
      options.exact_max = 0;
      const auto sketched = crowd.s.starts(kSketchNow, options);
      ASSERT_EQ(exact.size(), sketched.size());
      const Apart a = apart(exact, sketched);
      const std::string what = fmt::format("seed {} gangs {}: median {:.3f} ninth {:.3f} bias {:.3f} never {:.3f}",
                                           seed, gangs, a.median, a.ninth, a.bias, a.never);
      EXPECT_LT(a.median, 0.20) << what;
      EXPECT_LT(a.ninth, 0.60) << what;
      EXPECT_LT(std::abs(a.bias), 0.20) << what;
      EXPECT_LT(a.never, 0.15) << what;
    }
}

TEST(Sketch, SaysTheSameAgainAndChangesNothing) {
  Crowd crowd(5, 40, 200), other(5, 40, 200);
  const ForwardOptions options{.samples = 8, .exact_max = 0};
  const auto first = crowd.s.starts(kSketchNow, options);
  EXPECT_EQ(first, crowd.s.starts(kSketchNow, options));
  EXPECT_EQ(crowd.s.queue(kSketchNow), other.s.queue(kSketchNow));
  EXPECT_EQ(crowd.s.plan({}, kSketchNow), other.s.plan({}, kSketchNow));
}

// What can start at once is the planner's own plan.
TEST(Sketch, WhatIsFreeIsTakenNow) {
  Crowd crowd(6, 10, 40);
  Rng rng(1);
  NodeView n = crowd.machine(77, rng);
  n.free = n.capacity, n.whole = true;
  for (const Device& d : n.devices) n.free_devices.push_back(d.uuid);
  crowd.s.apply(NodeChanged{n});
  std::map<ClusterId, WallTime> said;
  for (const auto& start : crowd.s.starts(kSketchNow, {.samples = 8, .exact_max = 0})) said[start.cluster] = start.p90;
  std::size_t begun = 0;
  for (const Group& group : crowd.s.plan({}, kSketchNow))
    if (group.kind == ActionKind::Start) {
      ++begun;
      EXPECT_EQ(said.at(group.cluster), kSketchNow);
    }
  EXPECT_GT(begun, 0U);
}

// A machine outside its owner's hours helps from when it opens, and not after it closed.
TEST(Sketch, KnowsTheHoursOfMachines) {
  Scheduler s;
  Rng rng(1);
  Crowd none(1, 0, 0);
  NodeView n = none.machine(4, rng);
  n.free = n.capacity;
  n.offer.hours = {{kSketchNow + 2h, kSketchNow + 4h}};
  s.apply(NodeChanged{n});
  Request r;
  r.cluster = ClusterId{1}, r.tenant = OrgId{1}, r.since = kSketchNow, r.pool = "market", r.arch = "x86_64";
  Bundle head;
  head.role = SlotRole::Head, head.request.resources.cpu_milli = 8'000;
  r.gang = {head}, r.longest = Millis(1h);
  s.apply(RequestChanged{r});
  r.cluster = ClusterId{2};
  s.apply(RequestChanged{r});
  const auto starts = s.starts(kSketchNow, {.samples = 4, .exact_max = 0});
  EXPECT_EQ(starts[0].p90, kSketchNow + 2h);
  EXPECT_EQ(starts[1].p90.ms, 0) << "an hour and a half after the first it would not be done in time";
}

}  // namespace
}  // namespace muster::scheduler::sketch_test
