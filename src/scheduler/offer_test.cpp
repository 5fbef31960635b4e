// What owners ask decides who gets their machines, and both sides are told why not.
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "base/rng.h"
#include "scheduler/scheduler.h"

namespace muster::scheduler::offer_test {
namespace {

constexpr WallTime kT0{1'000'000'000};

NodeView asking(std::uint64_t id, std::int64_t price, int gpus = 0) {
  NodeView n;
  n.node = NodeId{id}, n.supplier = OrgId{id}, n.arch = "x86_64", n.schedulable = true;
  n.free.cpu_milli = 8'000, n.free.memory_bytes = std::int64_t{16} << 30, n.free.gpus = gpus;
  for (int i = 0; i < gpus; ++i) {
    n.devices.push_back({std::to_string(id) + "-" + std::to_string(i), "A10", std::int64_t{24} << 30});
    n.free_devices.push_back(n.devices.back().uuid);
  }
  n.capacity = n.free, n.runtimes = {RuntimeKind::Docker};
  n.offer.price_version = 1, n.offer.currency = "EUR";
  n.offer.price_per_hour = n.offer.floor_per_hour = price;
  return n;
}
Request asks(std::uint64_t id, std::int64_t max_price = 0, std::uint32_t machines = 1, std::int64_t gpus = 0) {
  Request r;
  r.cluster = ClusterId{id}, r.tenant = OrgId{500}, r.since = kT0 + Millis(static_cast<std::int64_t>(id)),
  r.pool = "market", r.arch = "x86_64", r.image = "ray";
  r.max_price = max_price;
  if (max_price > 0) r.currency = "EUR";
  Bundle b;
  b.group = "w", b.count = machines, b.request.resources.cpu_milli = 4'000, b.request.resources.gpus = gpus;
  r.gang = {b};
  return r;
}
std::set<std::uint64_t> placed(const std::vector<Group>& groups) {
  std::set<std::uint64_t> out;
  for (const Group& g : groups)
    for (const Place& p : g.places) out.insert(p.node.value);
  return out;
}
Reason why(const Scheduler& s, std::uint64_t id) {
  return s.queue_of(ClusterId{id}, kT0).reason;
}

TEST(Offers, WhoMayPayLessWaitsAndIsToldThePrice) {
  Scheduler s;
  s.apply(NodeChanged{asking(1, 1'350'000)});
  s.apply(NodeChanged{asking(2, 2'000'000)});
  s.apply(RequestChanged{asks(1, 1'200'000)});
  EXPECT_TRUE(s.plan({}, kT0).empty());
  const Reason reason = why(s, 1);
  EXPECT_EQ(reason.code, "price");
  EXPECT_EQ(
      reason.text,
      "needs 1 machine with 4 CPU free for at most 1.20 EUR an hour; the cheapest that fits asks 1.35 and is free");
  EXPECT_EQ(reason.params.at("price_micros"), "1350000");
  EXPECT_EQ(s.refused_by(NodeId{1}, kT0), (std::map<std::string, std::uint32_t>{{"price", 1}}));
  s.apply(RequestChanged{asks(1, 1'350'000)});
  EXPECT_EQ(placed(s.plan({}, kT0)), std::set<std::uint64_t>{1}) << "who asks as the reason says starts";
}

TEST(Offers, ALowerPriceWakesWhoWaitsForIt) {
  Scheduler s;
  s.apply(NodeChanged{asking(1, 1'205'000)});
  s.apply(RequestChanged{asks(1, 1'200'000)});
  EXPECT_TRUE(s.plan({}, kT0).empty());
  NodeView cheaper = asking(1, 1'200'000);
  cheaper.offer.price_version = 2;
  s.apply(NodeChanged{cheaper});
  EXPECT_EQ(placed(s.plan({}, kT0)), std::set<std::uint64_t>{1});
}

TEST(Offers, OfAGangTheDearestThatIsNeededDecides) {
  Scheduler s;
  for (std::uint64_t i = 1; i <= 4; ++i) s.apply(NodeChanged{asking(i, static_cast<std::int64_t>(i) * 1'000'000)});
  s.apply(RequestChanged{asks(1, 1'000'000, 3)});
  EXPECT_TRUE(s.plan({}, kT0).empty());
  EXPECT_EQ(why(s, 1).params.at("price_micros"), "3000000") << why(s, 1).text;
  s.apply(RequestChanged{asks(1, 3'000'000, 3)});
  EXPECT_EQ(placed(s.plan({}, kT0)), (std::set<std::uint64_t>{1, 2, 3}));
}

TEST(Offers, GpusCostByTheirNumber) {
  Scheduler s;
  NodeView n = asking(1, 100'000, 4);
  n.offer.price_per_gpu_hour = n.offer.floor_per_gpu_hour = 500'000;
  s.apply(NodeChanged{n});
  s.apply(RequestChanged{asks(1, 1'599'999, 1, 3)});
  EXPECT_TRUE(s.plan({}, kT0).empty());
  s.apply(RequestChanged{asks(1, 1'600'000, 1, 3)});
  EXPECT_EQ(placed(s.plan({}, kT0)), std::set<std::uint64_t>{1});
}

TEST(Offers, AFloorTakesWhoMayPayNoMore) {
  Scheduler s;
  NodeView n = asking(1, 2'000'000);
  n.offer.floor_per_hour = 1'500'000;
  s.apply(NodeChanged{n});
  s.apply(RequestChanged{asks(1, 1'499'999)});
  EXPECT_TRUE(s.plan({}, kT0).empty());
  EXPECT_EQ(why(s, 1).params.at("price_micros"), "2000000") << "what the least is stays its owner's";
  s.apply(RequestChanged{asks(1, 1'500'000)});
  EXPECT_EQ(placed(s.plan({}, kT0)), std::set<std::uint64_t>{1});
}

TEST(Offers, ItsOwnersPayNothingAndCurrenciesDoNotMix) {
  Scheduler s;
  NodeView dollars = asking(1, 1);
  dollars.offer.currency = "USD";
  s.apply(NodeChanged{dollars});
  s.apply(RequestChanged{asks(1, 9'000'000)});
  EXPECT_TRUE(s.plan({}, kT0).empty());
  EXPECT_NE(why(s, 1).text.find("another currency"), std::string::npos) << why(s, 1).text;
  Request own = asks(2, 1);
  own.tenant = OrgId{1};
  s.apply(RequestChanged{own});
  const auto groups = s.plan({}, kT0);
  ASSERT_EQ(groups.size(), 1U);
  EXPECT_EQ(groups[0].cluster, ClusterId{2});
  Request budget = asks(3);
  budget.currency = "EUR";
  Scheduler t;
  t.apply(NodeChanged{dollars});
  t.apply(RequestChanged{budget});
  EXPECT_TRUE(t.plan({}, kT0).empty()) << "a budget in one currency counts nothing in another";
}

TEST(Offers, WhatHasNoEndStaysOffMachinesThatEnd) {
  NodeView evening = asking(1, 0), brief = asking(2, 0);
  evening.offer.hours = {{kT0 - 1h, kT0 + 4h}, {kT0 + 24h, kT0 + 29h}}, evening.offer.notice = 30min;
  brief.offer.longest = 2h;
  for (const NodeView& only : {evening, brief}) {
    Scheduler s;
    s.apply(NodeChanged{only});
    s.apply(RequestChanged{asks(1)});
    EXPECT_TRUE(s.plan({}, kT0).empty());
    EXPECT_EQ(why(s, 1).code, "machine_hours") << why(s, 1).text;
    EXPECT_NE(why(s, 1).text.find("may_end_early"), std::string::npos) << why(s, 1).text;
    EXPECT_EQ(s.refused_by(only.node, kT0), (std::map<std::string, std::uint32_t>{{"length", 1}}));
    Request agrees = asks(1);
    agrees.may_end_early = true;
    s.apply(RequestChanged{agrees});
    EXPECT_EQ(placed(s.plan({}, kT0)), std::set<std::uint64_t>{only.node.value});
  }
  Scheduler s;
  s.apply(NodeChanged{evening});
  Request late = asks(1);
  late.longest = 3h;  // and half an hour to start: no more than four hours less the notice
  s.apply(RequestChanged{late});
  EXPECT_EQ(placed(s.plan({}, kT0)).size(), 1U);
  Scheduler t;
  t.apply(NodeChanged{evening});
  late.longest = 3h + 15min;
  t.apply(RequestChanged{late});
  EXPECT_TRUE(t.plan({}, kT0).empty());
  s.apply(NodeGone{NodeId{1}}), s.apply(NodeChanged{evening});
  late.cluster = ClusterId{2}, late.longest = 5h;
  s.apply(RequestChanged{late});
  EXPECT_TRUE(s.plan({}, kT0).empty());
  EXPECT_NE(why(s, 2).text.find("ask for less time"), std::string::npos) << why(s, 2).text;
}

TEST(Offers, OutsideItsHoursAMachineIsNoneAndComesBack) {
  Scheduler s;
  NodeView evening = asking(1, 0);
  evening.offer.hours = {{kT0 + 1h, kT0 + 5h}};
  s.apply(NodeChanged{evening});
  Request r = asks(1);
  r.longest = 1h;
  s.apply(RequestChanged{r});
  EXPECT_TRUE(s.plan({}, kT0).empty());
  EXPECT_EQ(why(s, 1).code, "machines_busy");
  EXPECT_NE(why(s, 1).text.find("outside its owner's hours"), std::string::npos) << why(s, 1).text;
  EXPECT_EQ(s.refused_by(NodeId{1}, kT0), (std::map<std::string, std::uint32_t>{{"hours", 1}}));
  EXPECT_TRUE(s.plan({}, kT0 + 30min).empty());
  EXPECT_EQ(placed(s.plan({}, kT0 + 1h)), std::set<std::uint64_t>{1});
}

TEST(Offers, WhatOpensLaterIsCountedIntoTheStart) {
  NodeView evening = asking(1, 0);
  evening.offer.hours = {{kT0 + 1h, kT0 + 3h}, {kT0 + 20h, kT0 + 30h}}, evening.offer.notice = 15min;
  const auto told = [&](Millis longest, bool may_end_early = false) {
    Scheduler s;
    s.apply(NodeChanged{evening});
    Request r = asks(1);
    r.longest = longest, r.may_end_early = may_end_early;
    s.apply(RequestChanged{r});
    EXPECT_TRUE(s.plan({}, kT0).empty());
    const QueueView view = s.queue_of(r.cluster, kT0);
    const auto likely = s.starts(kT0);
    EXPECT_EQ(likely.size(), 1U);
    if (!view.known) return WallTime{};
    EXPECT_EQ(likely[0].p50, view.expected_start);
    EXPECT_EQ(likely[0].p90, view.expected_start);
    return view.expected_start;
  };
  EXPECT_EQ(told(1h), kT0 + 1h);
  EXPECT_EQ(told(90min), kT0 + 20h) << "half an hour to start, and the owner's notice: the first evening is too short";
  EXPECT_EQ(told(0ms), WallTime{}) << "it has no end";
  EXPECT_EQ(told(0ms, true), kT0 + 1h);
  evening.offer.hours.insert(evening.offer.hours.begin(), {kT0 - 1h, kT0 + 1h});  // open now, not for long enough
  EXPECT_EQ(told(1h), kT0 + 1h);
}

// Alone in the queue, with machines that open and close and ends that are promised: it starts in the minute it was
// told.
TEST(Offers, TheToldStartComesTrueWhenAllKeepTheirHours) {
  int known = 0, by_opening = 0;
  for (std::uint64_t seed = 1; seed <= 200; ++seed) {
    Rng rng(seed);
    Scheduler s;
    const std::uint64_t machines = 1 + rng.below(4);
    std::map<int, std::vector<std::uint64_t>> ends;  // minutes
    std::set<int> times{0};
    const auto view = [&](std::uint64_t id, bool busy, const std::vector<Interval>& hours) {
      NodeView n = asking(id, 0);
      n.offer.hours = hours, n.offer.notice = 10min;
      if (busy) n.free.cpu_milli = 0, n.whole = false;
      return n;
    };
    std::vector<std::vector<Interval>> hours(machines + 1);
    for (std::uint64_t id = 1; id <= machines; ++id) {
      int minute = static_cast<int>(rng.below(200)) - 100;
      for (int i = 0; i < 3 && rng.chance(5, 6); ++i) {
        const int to = minute + 20 + static_cast<int>(rng.below(200));
        hours[id].push_back({kT0 + Millis(minute * 60'000), kT0 + Millis(to * 60'000)});
        times.insert(minute), times.insert(to);
        minute = to + 1 + static_cast<int>(rng.below(100));
      }
      const bool busy = rng.chance(1, 2);
      s.apply(NodeChanged{view(id, busy, hours[id])});
      if (!busy) continue;
      const int end = 1 + static_cast<int>(rng.below(300));
      LeaseView l;
      l.lease = LeaseId{id}, l.cluster = ClusterId{100 + id}, l.node = NodeId{id}, l.resources.cpu_milli = 8'000;
      l.since = kT0;
      s.apply(LeaseChanged{l}), s.apply(TermsChanged{l.cluster, kT0 + Millis(end * 60'000)});
      ends[end + 1].push_back(id), times.insert(end + 1);
    }
    Request r = asks(1, 0, 1 + static_cast<std::uint32_t>(rng.below(2)));
    r.longest = Millis(15 * 60'000 * static_cast<std::int64_t>(1 + rng.below(6)));
    r.since = kT0;
    s.apply(RequestChanged{r});
    bool started = !s.plan({}, kT0).empty();
    if (started) continue;
    const QueueView told = s.queue_of(r.cluster, kT0);
    if (told.known) ++known;
    int start = -1;
    for (const int minute : times) {
      if (minute < 0 || started) continue;
      const WallTime now = kT0 + Millis(minute * 60'000);
      if (const auto ending = ends.find(minute); ending != ends.end())
        for (const std::uint64_t id : ending->second) {
          s.apply(LeaseGone{LeaseId{id}, now});
          s.apply(NodeChanged{view(id, false, hours[id])});
        }
      started = !s.plan({}, now).empty();
      if (started) start = minute;
    }
    // A gang needs machines that are open at the same time; each is counted from when it opens.
    if (r.gang[0].count > 1) {
      if (started) EXPECT_TRUE(!told.known || told.expected_start <= kT0 + Millis(start * 60'000)) << "seed " << seed;
      continue;
    }
    EXPECT_EQ(told.known, started) << "seed " << seed;
    if (!started || !told.known) continue;
    EXPECT_EQ(told.expected_start, kT0 + Millis(start * 60'000)) << "seed " << seed;
    if (!ends.contains(start)) ++by_opening;
  }
  EXPECT_GT(known, 60);
  EXPECT_GT(by_opening, 20);
}

TEST(Offers, TenantsAndImagesAreCountedForTheOwner) {
  Scheduler s;
  NodeView choosy = asking(1, 0);
  choosy.offer.tenants = {OrgId{7}};
  s.apply(NodeChanged{choosy});
  for (std::uint64_t id = 1; id <= 3; ++id) s.apply(RequestChanged{asks(id)});
  EXPECT_TRUE(s.plan({}, kT0).empty());
  EXPECT_EQ(why(s, 1).code, "owner_terms") << why(s, 1).text;
  EXPECT_EQ(s.refused_by(NodeId{1}, kT0), (std::map<std::string, std::uint32_t>{{"tenants", 3}}));
  choosy.offer.tenants.clear(), choosy.offer.images = {"muster/", "sha256:ab"};
  s.apply(NodeChanged{choosy});
  Request pinned = asks(4);
  pinned.image = "x/y@sha256:abcd";
  s.apply(RequestChanged{pinned});
  EXPECT_EQ(s.plan({}, kT0).size(), 1U) << "by its digest";
  EXPECT_EQ(s.refused_by(NodeId{1}, kT0), (std::map<std::string, std::uint32_t>{{"images", 3}}));
  EXPECT_TRUE(s.refused_by(NodeId{99}, kT0).empty());
}

TEST(Offers, CheapComparesWholeMachinesWithSingleGpus) {
  NodeView by_hour = asking(1, 8'000'000, 8), by_gpu = asking(2, 0, 8);
  by_gpu.offer.price_per_gpu_hour = by_gpu.offer.floor_per_gpu_hour = 2'000'000;
  Scheduler s;
  s.apply(NodeChanged{by_hour});
  s.apply(NodeChanged{by_gpu});
  Request r = asks(1, 0, 1, 1);
  r.policy = Policy::Cheap;
  s.apply(RequestChanged{r});
  EXPECT_EQ(placed(s.plan({}, kT0)), std::set<std::uint64_t>{1}) << "an eighth of eight is less than two";
}

// Random offers and requests: whatever is placed keeps the terms of both, and what a reason says holds.
TEST(Offers, NothingIsPlacedAgainstAnOfferAndThePriceNamedSuffices) {
  int placed_some = 0, told = 0;
  for (std::uint64_t seed = 1; seed <= 300; ++seed) {
    Rng rng(seed);
    std::vector<NodeView> nodes;
    Scheduler s;
    for (std::uint64_t id = 1; id <= 1 + rng.below(8); ++id) {
      NodeView n = asking(id, static_cast<std::int64_t>(rng.below(5)) * 500'000);
      if (rng.chance(1, 3)) n.offer.floor_per_hour /= 2;
      if (rng.chance(1, 5)) n.offer.currency = "USD";
      if (rng.chance(1, 4)) n.offer.tenants = {OrgId{500 + rng.below(2)}};
      if (rng.chance(1, 4)) n.offer.longest = Millis(static_cast<std::int64_t>(1 + rng.below(4)) * 3'600'000);
      if (rng.chance(1, 3))
        n.offer.hours = {{kT0 - 1h, kT0 + Millis(static_cast<std::int64_t>(rng.below(6)) * 3'600'000)}};
      nodes.push_back(n);
      s.apply(NodeChanged{n});
    }
    Request r =
        asks(1, static_cast<std::int64_t>(rng.below(4)) * 600'000, 1 + static_cast<std::uint32_t>(rng.below(2)));
    r.tenant = OrgId{500 + rng.below(2)};
    r.longest = Millis(static_cast<std::int64_t>(rng.below(4)) * 3'600'000);
    r.may_end_early = rng.chance(1, 4);
    s.apply(RequestChanged{r});
    const auto groups = s.plan({}, kT0);
    for (const std::uint64_t id : placed(groups)) {
      ++placed_some;
      const Offer& o = nodes[id - 1].offer;
      const bool named = std::find(o.tenants.begin(), o.tenants.end(), r.tenant) != o.tenants.end();
      EXPECT_TRUE(o.tenants.empty() || named) << seed;
      if (r.max_price > 0 && o.price_per_hour > 0) {
        EXPECT_EQ(o.currency, "EUR") << seed;
        EXPECT_LE(std::min(o.price_per_hour, o.floor_per_hour), r.max_price) << seed;
      }
      const Millis there = o.hours.empty() ? Millis(1'000h) : o.hours[0].to - kT0;
      EXPECT_GT(there, Millis(0)) << seed;
      if (r.may_end_early) continue;
      EXPECT_TRUE((o.hours.empty() && o.longest.count() == 0) || r.longest.count() > 0) << seed;
      EXPECT_LE(r.longest, there) << seed;
      if (o.longest.count() > 0) EXPECT_LE(r.longest, o.longest) << seed;
    }
    if (!groups.empty()) continue;
    const Reason reason = why(s, 1);
    const auto price = reason.params.find("price_micros");
    if (price == reason.params.end() || !reason.text.ends_with("and is free")) continue;
    ++told;
    Request again = r;
    again.max_price = std::stoll(price->second);
    s.apply(RequestChanged{again});
    EXPECT_EQ(s.plan({}, kT0).size(), 1U) << "seed " << seed << ": " << reason.text;
  }
  EXPECT_GT(placed_some, 40);
  EXPECT_GT(told, 8);
}

}  // namespace
}  // namespace muster::scheduler::offer_test
