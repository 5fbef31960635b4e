// Each named policy does what it says, on instances small enough to see it; and the trust floor.
#include "scheduler/policy.h"

#include <gtest/gtest.h>

#include <set>

#include "scheduler/scheduler.h"

namespace muster::scheduler::policy_test {
namespace {

constexpr WallTime kT0{1'000'000'000};

NodeView machine(std::uint64_t id, std::int64_t cpus = 8, int gpus = 0) {
  NodeView n;
  n.node = NodeId{id}, n.supplier = OrgId{id}, n.arch = "x86_64", n.schedulable = true;
  n.free.cpu_milli = cpus * 1000, n.free.memory_bytes = std::int64_t{64} << 30, n.free.gpus = gpus;
  for (int i = 0; i < gpus; ++i) {
    n.devices.push_back({std::to_string(id) + "-" + std::to_string(i), "A10", std::int64_t{24} << 30});
    n.free_devices.push_back(n.devices.back().uuid);
  }
  n.capacity = n.free, n.runtimes = {RuntimeKind::Docker};
  return n;
}
Request gang(Policy policy, std::uint32_t machines, std::int64_t cpus = 4, std::int64_t gpus = 0) {
  Request r;
  r.cluster = ClusterId{1}, r.tenant = OrgId{500}, r.since = kT0, r.pool = "market", r.arch = "x86_64", r.image = "ray",
  r.policy = policy;
  Bundle b;
  b.group = "w", b.count = machines;
  b.request.resources.cpu_milli = cpus * 1000, b.request.resources.gpus = gpus;
  r.gang = {b};
  return r;
}
std::set<std::uint64_t> places(const std::vector<NodeView>& nodes, const Request& request) {
  Scheduler s;
  for (const NodeView& n : nodes) s.apply(NodeChanged{n});
  s.apply(RequestChanged{request});
  std::set<std::uint64_t> out;
  for (const Group& g : s.plan({}, kT0))
    for (const Place& p : g.places) out.insert(p.node.value);
  return out;
}

// One has the image and would waste a little by its use; the other is just right and has to pull.
TEST(Policy, PackLooksAtWasteAlone) {
  NodeView warm = machine(1, 8), tight = machine(2, 4);
  warm.images = {"ray"};
  EXPECT_EQ(places({warm, tight}, gang(Policy::Balanced, 1)), std::set<std::uint64_t>{1});
  EXPECT_EQ(places({warm, tight}, gang(Policy::Pack, 1)), std::set<std::uint64_t>{2});
}

TEST(Policy, CheapTakesTheCheapestThoughItWastes) {
  NodeView dear = machine(1, 4), cheap = machine(2, 32, 4);
  dear.offer.price_per_hour = 900'000, cheap.offer.price_per_gpu_hour = 300'000;
  EXPECT_EQ(places({dear, cheap}, gang(Policy::Balanced, 1)), std::set<std::uint64_t>{1});
  EXPECT_EQ(places({dear, cheap}, gang(Policy::Cheap, 1)), std::set<std::uint64_t>{2});
  cheap.offer.price_per_gpu_hour = dear.offer.price_per_hour;
  EXPECT_EQ(places({dear, cheap}, gang(Policy::Cheap, 1)), std::set<std::uint64_t>{1}) << "of equal prices, less waste";
}

// Numbers of different currencies say nothing beside each other.
TEST(Policy, CheapComparesWithinOneCurrencyOnly) {
  std::vector<NodeView> nodes;
  for (std::uint64_t i = 1; i <= 5; ++i) {
    nodes.push_back(machine(i, 8));
    nodes.back().offer.price_per_hour = i <= 3 ? 400'000 + static_cast<std::int64_t>(i) * 100'000 : 90'000;
    nodes.back().offer.currency = i <= 3 ? "EUR" : "USD";
  }
  EXPECT_EQ(places(nodes, gang(Policy::Cheap, 2)), (std::set<std::uint64_t>{1, 2})) << "what most ask is compared";
  EXPECT_EQ(places(nodes, gang(Policy::Cheap, 5)).size(), 5U) << "the others will do, after those";
  Request dollars = gang(Policy::Cheap, 1);
  dollars.currency = "USD";
  EXPECT_GE(*places(nodes, dollars).begin(), 4U) << "who names one has that";
  nodes[4].offer = {};
  EXPECT_EQ(places(nodes, gang(Policy::Cheap, 1)), std::set<std::uint64_t>{5}) << "what is free is free in any";
}

TEST(Policy, SpreadStaysApartAsLongAsItCan) {
  std::vector<NodeView> nodes;
  for (std::uint64_t i = 1; i <= 8; ++i) {
    nodes.push_back(machine(i, 4));
    nodes.back().supplier = OrgId{i <= 6 ? 1 : i};  // six of one supplier, one each of two others
  }
  const auto suppliers = [&](const std::set<std::uint64_t>& of) {
    std::set<std::uint64_t> out;
    for (const std::uint64_t id : of) out.insert(nodes[id - 1].supplier.value);
    return out;
  };
  const auto three = places(nodes, gang(Policy::Spread, 3));
  EXPECT_EQ(three.size(), 3U);
  EXPECT_EQ(suppliers(three).size(), 3U);
  EXPECT_EQ(places(nodes, gang(Policy::Spread, 5)).size(), 5U) << "then it takes what there is";
  for (NodeView& n : nodes) n.site = n.node.value == 8 ? "attic" : "hall";  // one supplier's word is not all
  EXPECT_TRUE(places(nodes, gang(Policy::Spread, 2)).contains(8));
  Request grows = gang(Policy::Spread, 1);  // what it has counts
  grows.grow = std::move(grows.gang), grows.gang.clear(), grows.running = true, grows.avoid = {NodeId{8}};
  EXPECT_FALSE(places(nodes, grows).contains(8));
  grows.avoid = {NodeId{1}};
  EXPECT_EQ(places(nodes, grows), std::set<std::uint64_t>{8});
}

TEST(Policy, FastNetworkKeepsAGangOnOneSite) {
  std::vector<NodeView> nodes;
  for (std::uint64_t i = 1; i <= 9; ++i) {
    nodes.push_back(machine(i, i <= 3 ? 4 : 8));  // the tightest are spread over all sites
    nodes.back().site = i % 3 == 0 ? "a" : i % 3 == 1 ? "b" : "c";
    nodes.back().labels["region"] = i % 3 == 0 ? "eu" : "us";
  }
  nodes[8].site = "b";  // four in b, two in a, three in c
  const auto sites = [&](const std::set<std::uint64_t>& of) {
    std::set<std::string> out;
    for (const std::uint64_t id : of) out.insert(nodes[id - 1].site);
    return out;
  };
  EXPECT_EQ(sites(places(nodes, gang(Policy::Balanced, 3))).size(), 3U);
  EXPECT_EQ(sites(places(nodes, gang(Policy::FastNetwork, 3))), std::set<std::string>{"c"}) << "where it just fits";
  EXPECT_EQ(sites(places(nodes, gang(Policy::FastNetwork, 4))), std::set<std::string>{"b"});
  const auto five = places(nodes, gang(Policy::FastNetwork, 5));
  EXPECT_EQ(five.size(), 5U) << "no site is large enough";
  EXPECT_EQ(sites(five).size(), 2U);
  Request grows = gang(Policy::FastNetwork, 1);
  grows.grow = std::move(grows.gang), grows.gang.clear(), grows.running = true, grows.avoid = {NodeId{3}};
  EXPECT_EQ(sites(places(nodes, grows)), std::set<std::string>{"a"}) << "with the machines that it has";
  for (NodeView& n : nodes) n.site.clear();
  std::set<std::string> regions;
  for (const std::uint64_t id : places(nodes, gang(Policy::FastNetwork, 3)))
    regions.insert(nodes[id - 1].labels["region"]);
  EXPECT_EQ(regions.size(), 1U) << "where no sites are known, the region";
}

PathSeen path(std::uint64_t from, std::uint64_t to, PathKind kind, std::int64_t mbps = 0) {
  return {NodeId{from}, NodeId{to}, kind, mbps * 1'000, 0, kT0 - 1h};
}
std::set<std::uint64_t> placed(Scheduler& s) {
  std::set<std::uint64_t> out;
  for (const Group& g : s.plan({}, kT0))
    for (const Place& p : g.places) out.insert(p.node.value);
  return out;
}

TEST(Policy, FastNetworkTakesWhatWasMeasuredOverWhatIsSaid) {
  Scheduler s;
  for (std::uint64_t i = 1; i <= 6; ++i) {
    NodeView n = machine(i);
    n.site = i <= 3 ? "hall" : "attic";
    s.apply(NodeChanged{n});
  }
  // In the hall they go by a switch of 10 Mbit/s, in the attic one pair is slow and another goes by the relay.
  s.apply(PathsChanged{{path(1, 2, PathKind::Lan, 10), path(3, 1, PathKind::Lan, 10), path(2, 3, PathKind::Lan, 10)}});
  s.apply(PathsChanged{{path(4, 5, PathKind::Direct, 9), path(5, 6, PathKind::Relay), path(4, 6, PathKind::Lan, 400)}});
  s.apply(RequestChanged{gang(Policy::FastNetwork, 2)});
  EXPECT_EQ(placed(s), (std::set<std::uint64_t>{4, 6}));
  Scheduler forked;  // what was measured goes along
  for (const Change& change : s.snapshot()) forked.apply(change);
  forked.apply(RequestGone{ClusterId{1}}), forked.apply(RequestChanged{gang(Policy::FastNetwork, 2)});
  EXPECT_EQ(placed(forked), (std::set<std::uint64_t>{4, 6}));
}

// So many lost in so many hours.
Reliability lost(std::int64_t times, std::int64_t hours) {
  const std::int64_t mean = (times + 1) * 1'000'000 / (hours + 200);
  return {mean, times > 3 ? mean / 2 : mean, hours, {}};
}

TEST(Policy, LongWorkStaysOffMachinesThatAreOftenLost) {
  // The unreliable one has the image, and is the tighter fit.
  std::vector<NodeView> nodes{machine(1, 4), machine(2, 5)};
  nodes[0].images = {"ray"};
  nodes[0].reliability = lost(20, 400), nodes[1].reliability = lost(1, 2'000);
  Request r = gang(Policy::Balanced, 1);
  EXPECT_EQ(places(nodes, r), std::set<std::uint64_t>{2});
  r.policy = Policy::Pack;
  EXPECT_EQ(places(nodes, r), std::set<std::uint64_t>{1}) << "waste and nothing else";
  r.policy = Policy::Balanced, r.longest = 10min;
  EXPECT_EQ(places(nodes, r), std::set<std::uint64_t>{1}) << "short work has little to lose";
  nodes[1].reliability = nodes[0].reliability;
  r.longest = Millis{0};
  EXPECT_EQ(places(nodes, r), std::set<std::uint64_t>{1}) << "where all are alike it does not count";
}

TEST(Policy, WhatWasToldOfReliabilityOutlastsNewsOfAMachine) {
  std::vector<NodeView> nodes{machine(1, 4), machine(2, 5)};
  Scheduler s;
  for (const NodeView& n : nodes) s.apply(NodeChanged{n});
  s.apply(ReliabilityChanged{{{NodeId{1}, lost(20, 400)}, {NodeId{2}, lost(1, 2'000)}, {NodeId{77}, lost(1, 1)}}});
  nodes[0].version = 5;
  s.apply(NodeChanged{nodes[0]});
  Scheduler forked;
  for (const Change& change : s.snapshot()) forked.apply(change);
  forked.apply(NodeChanged{nodes[0]});
  for (Scheduler* each : {&s, &forked}) {
    each->apply(RequestChanged{gang(Policy::Balanced, 1)});
    EXPECT_EQ(placed(*each), std::set<std::uint64_t>{2});
  }
}

TEST(Policy, NewcomersHaveTheirTurnAndNeverAHead) {
  int days = 0;
  for (std::uint64_t day = 1; day <= 60; ++day) {
    Scheduler s;
    s.apply(DayChanged{day});
    NodeView known = machine(1, 4), fresh = machine(2, 5);
    known.reliability = lost(2, 1'000), fresh.reliability = lost(0, 0);
    s.apply(NodeChanged{known}), s.apply(NodeChanged{fresh});
    Request r = gang(Policy::Balanced, 1);
    Scheduler head;
    for (const Change& change : s.snapshot()) head.apply(change);
    r.gang.front().role = SlotRole::Worker, r.gang.front().group = "w", r.running = true;
    std::swap(r.gang, r.grow);
    s.apply(RequestChanged{r});
    days += placed(s) == std::set<std::uint64_t>{2} ? 1 : 0;
    Request starts = gang(Policy::Balanced, 1);
    starts.gang.front().role = SlotRole::Head;
    head.apply(RequestChanged{starts});
    EXPECT_EQ(placed(head), std::set<std::uint64_t>{1}) << "day " << day;
  }
  EXPECT_GT(days, 5);
  EXPECT_LT(days, 25) << "about one day in four";
}

TEST(Policy, FastNetworkStaysNearByWhatRoundTripsForetell) {
  const auto build = [](std::uint64_t count) {
    Scheduler s;
    CoordinatesChanged places;
    for (std::uint64_t i = 1; i <= count; ++i) {
      s.apply(NodeChanged{machine(i)});
      // Every third lives on another continent; nobody says so, and nobody of them ever met.
      places.places.emplace_back(NodeId{i},
                                 Coordinate{i % 3 == 0 ? 90'000 : 0, static_cast<std::int32_t>(i * 10), 800});
    }
    s.apply(places);
    return s;
  };
  const auto thirds = [](const std::set<std::uint64_t>& of) {
    return std::count_if(of.begin(), of.end(), [](std::uint64_t id) { return id % 3 == 0; });
  };
  for (const std::uint64_t count : {9, 300}) {
    Scheduler s = build(count);
    s.apply(RequestChanged{gang(Policy::FastNetwork, 4)});
    const auto start = placed(s);
    ASSERT_EQ(start.size(), 4U);
    EXPECT_EQ(thirds(start), 0) << "of " << count;
    Request grows = gang(Policy::FastNetwork, 2);
    grows.grow = std::move(grows.gang), grows.gang.clear(), grows.running = true, grows.avoid = {NodeId{3}};
    Scheduler beside = build(count), forked;
    for (const Change& change : beside.snapshot()) forked.apply(change);
    for (Scheduler* each : {&beside, &forked}) {
      each->apply(RequestChanged{grows});
      const auto more = placed(*each);
      ASSERT_EQ(more.size(), 2U);
      EXPECT_EQ(thirds(more), 2) << "beside the machine that it has, of " << count;
    }
  }
}

TEST(Policy, WhoSaysWhatPairsShouldCarryGetsNoneThatIsKnownToCarryLess) {
  Scheduler s;
  for (std::uint64_t i = 1; i <= 4; ++i) s.apply(NodeChanged{machine(i)});
  for (const auto& [a, b] : {std::pair{1, 2}, {1, 3}, {2, 3}, {2, 4}, {3, 4}})
    s.apply(PathsChanged{{path(a, b, PathKind::Direct, 5)}});
  Request start = gang(Policy::Pack, 2);
  start.pair_kbps = 100'000;
  s.apply(RequestChanged{start});
  EXPECT_EQ(placed(s), (std::set<std::uint64_t>{1, 4})) << "whatever the policy packs";
}

TEST(Policy, AnotherMachineForASlowOneIsNotSlowToo) {
  Scheduler s;
  for (std::uint64_t i = 1; i <= 3; ++i) s.apply(NodeChanged{machine(i)});
  Request grows = gang(Policy::Balanced, 1);
  std::swap(grows.gang, grows.grow);
  grows.avoid = {NodeId{1}}, grows.backoff = {{NodeId{2}, kT0 + 60min}}, grows.pair_kbps = 100'000;
  s.apply(PathsChanged{{path(1, 3, PathKind::Direct, 20)}});
  s.apply(RequestChanged{grows});
  EXPECT_TRUE(placed(s).empty()) << "the only one that is free is known to be as bad";
  s.apply(PathsChanged{{path(3, 1, PathKind::Direct, 200)}});
  EXPECT_TRUE(placed(s).empty()) << "the other direction says nothing of this one";
  s.apply(PathsChanged{{path(1, 3, PathKind::Direct, 150)}});
  EXPECT_EQ(placed(s), (std::set<std::uint64_t>{3})) << "it wakes up when that has changed";
}

TEST(Policy, FastNetworkWaitsRatherThanGoByTheRelay) {
  Scheduler s;
  s.apply(NodeChanged{machine(1)}), s.apply(NodeChanged{machine(2)});
  s.apply(PathsChanged{{path(1, 2, PathKind::Relay)}});
  s.apply(RequestChanged{gang(Policy::FastNetwork, 2)});
  EXPECT_TRUE(placed(s).empty());
  EXPECT_TRUE(s.plan({}, kT0 + 20min).empty());
  Request other = gang(Policy::Balanced, 1);
  other.cluster = ClusterId{2}, other.since = kT0 + 20min;
  s.apply(RequestChanged{other});
  ASSERT_EQ(s.plan({}, kT0 + 20min).size(), 1U) << "it keeps nothing from others, however long it waits";
  s.apply(RequestGone{ClusterId{2}});
  EXPECT_TRUE(s.plan({}, kT0 + 21min).empty());
  const Reason reason = s.queue_of(ClusterId{1}, kT0 + 21min).reason;
  EXPECT_EQ(reason.code, "network");
  EXPECT_NE(reason.text.find("relay"), std::string::npos) << reason.text;
  Scheduler any;
  any.apply(NodeChanged{machine(1)}), any.apply(NodeChanged{machine(2)});
  any.apply(PathsChanged{{path(1, 2, PathKind::Relay)}});
  any.apply(RequestChanged{gang(Policy::Balanced, 2)});
  EXPECT_EQ(placed(any).size(), 2U) << "the others do not mind";
  s.apply(PathsChanged{{path(2, 1, PathKind::Direct)}});
  EXPECT_EQ(s.plan({}, kT0 + 22min).size(), 1U) << "who waits is looked at again";

  Scheduler grown;  // what it has counts
  grown.apply(NodeChanged{machine(1)}), grown.apply(NodeChanged{machine(2)}), grown.apply(NodeChanged{machine(3)});
  grown.apply(PathsChanged{{path(1, 2, PathKind::Relay)}});
  Request grows = gang(Policy::FastNetwork, 2);
  grows.grow = std::move(grows.gang), grows.gang.clear(), grows.running = true, grows.avoid = {NodeId{1}};
  grown.apply(RequestChanged{grows});
  EXPECT_EQ(placed(grown), std::set<std::uint64_t>{3});
}

TEST(Policy, FastNetworkFindsASiteInALargePool) {
  Scheduler s;
  for (std::uint64_t i = 1; i <= 6'000; ++i) {
    NodeView n = machine(i);
    n.site = i % 1'000 == 7 ? "hall" : i % 3 == 0 ? "shed-" + std::to_string(i / 12) : "";
    s.apply(NodeChanged{n});
  }
  s.apply(RequestChanged{gang(Policy::FastNetwork, 6)});
  const auto chosen = placed(s);
  EXPECT_EQ(chosen.size(), 6U);
  for (const std::uint64_t id : chosen) EXPECT_EQ(id % 1'000, 7U) << "the only site with six";
}

TEST(Policy, BalancedIsTheDefaultAndUnknownOnesAreBalanced) {
  EXPECT_EQ(Request{}.policy, Policy::Balanced);
  EXPECT_EQ(&rules_of(static_cast<Policy>(99)), &rules_of(Policy::Balanced));
  EXPECT_EQ(rules_of(Policy::Balanced).other.cold, 512'000);
}

TEST(Trust, AFloorIsKeptAndSaid) {
  std::vector<NodeView> nodes{machine(1), machine(2)};
  nodes[1].tier = TrustTier::Verified;
  Request r = gang(Policy::Balanced, 1);
  r.min_trust = TrustTier::Verified;
  EXPECT_EQ(places(nodes, r), std::set<std::uint64_t>{2});
  r.min_trust = TrustTier::Platform;
  Scheduler s;
  for (const NodeView& n : nodes) s.apply(NodeChanged{n});
  s.apply(RequestChanged{r});
  EXPECT_TRUE(s.plan({}, kT0).empty());
  const Reason reason = s.queue_of(r.cluster, kT0).reason;
  EXPECT_EQ(reason.code, "no_such_machines");
  EXPECT_EQ(reason.params.at("min_trust"), "platform");
  EXPECT_NE(reason.text.find("trust platform"), std::string::npos) << reason.text;
  nodes[0].tier = TrustTier::Platform;
  s.apply(NodeChanged{nodes[0]});
  EXPECT_EQ(s.plan({}, kT0).size(), 1U) << "it was promoted";
}

}  // namespace
}  // namespace muster::scheduler::policy_test
