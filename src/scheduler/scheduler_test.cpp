#include "scheduler/scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <limits>
#include <set>

#include "base/rng.h"

namespace muster::scheduler::scheduler_test {
namespace {

constexpr WallTime kT0{1'000'000'000};

NodeView node(std::uint64_t id, std::int64_t cpus = 4) {
  NodeView n;
  n.node = NodeId{id}, n.supplier = OrgId{1}, n.arch = "x86_64", n.schedulable = true;
  n.free.cpu_milli = cpus * 1000, n.free.memory_bytes = std::int64_t{8} << 30;
  n.capacity.cpu_milli = 64'000, n.capacity.memory_bytes = std::int64_t{8} << 30;
  n.runtimes = {RuntimeKind::Docker};
  return n;
}
NodeView gpu_node(std::uint64_t id, int gpus, const std::string& model) {
  NodeView n = node(id, 16);
  for (int i = 0; i < gpus; ++i) {
    n.devices.push_back({"gpu-" + std::to_string(id) + "-" + std::to_string(i), model, std::int64_t{24} << 30});
    n.free_devices.push_back(n.devices.back().uuid);
  }
  n.free.gpus = gpus;
  return n;
}
Bundle bundle(SlotRole role, std::int64_t cpus = 1) {
  Bundle b;
  b.role = role, b.group = role == SlotRole::Head ? "" : "w", b.request.resources.cpu_milli = cpus * 1000;
  return b;
}
Request request(std::uint64_t id, int workers, std::int64_t cpus = 1, std::int64_t age_ms = 0) {
  Request r;
  r.cluster = ClusterId{id}, r.tenant = OrgId{9}, r.since = kT0 - Millis(age_ms), r.pool = "market", r.arch = "x86_64",
  r.image = "ray";
  r.gang.push_back(bundle(SlotRole::Head, cpus));
  for (int i = 0; i < workers; ++i) r.gang.push_back(bundle(SlotRole::Worker, cpus));
  return r;
}
std::vector<ClusterId> clusters(const std::vector<Group>& groups) {
  std::vector<ClusterId> out;
  for (const Group& g : groups) out.push_back(g.cluster);
  return out;
}
NodeView after(NodeView n, const Place& place) {
  n.free.cpu_milli -= place.resources.cpu_milli;
  n.free.gpus -= place.resources.gpus;
  n.whole = false;
  std::erase_if(n.free_devices, [&](const std::string& d) {
    return std::find(place.devices.begin(), place.devices.end(), d) != place.devices.end();
  });
  return n;
}

// Each arrival once put the first of its line into the heap again, and a pass came no further than those.
TEST(Scheduler, ThousandsThatComeAtOnceStartAtOnce) {
  Scheduler s;
  for (std::uint64_t id = 1; id <= 1'000; ++id) s.apply(NodeChanged{node(id)});
  s.apply(RequestChanged{request(1, 0)});
  ASSERT_EQ(s.plan({100}, kT0).size(), 1U);
  for (std::uint64_t id = 2; id <= 3'001; ++id) {
    Request r = request(id, 0);
    r.priority = id % 3 == 0 ? 1 : 0;  // some go before those that came first
    s.apply(RequestChanged{r});
  }
  for (int pass = 0; pass < 30; ++pass) ASSERT_EQ(s.plan({100}, kT0 + Millis(20 * pass)).size(), 100U) << pass;
  s.apply(RequestChanged{request(5'000, 0)});
  EXPECT_EQ(clusters(s.plan({100}, kT0 + Millis(700))), std::vector{ClusterId{5'000}});
}

TEST(Scheduler, GangIsAllOrNothingOnDistinctNodes) {
  Scheduler s;
  s.apply(RequestChanged{request(1, 2)});
  s.apply(NodeChanged{node(1)});
  s.apply(NodeChanged{node(2)});
  EXPECT_TRUE(s.plan({}, kT0).empty());
  EXPECT_EQ(s.queue_of(ClusterId{1}, kT0).reason.code, "no_such_machines");
  s.apply(NodeChanged{node(3)});
  const auto groups = s.plan({}, kT0);
  ASSERT_EQ(groups.size(), 1U);
  EXPECT_EQ(groups[0].kind, ActionKind::Start);
  ASSERT_EQ(groups[0].places.size(), 3U);
  EXPECT_EQ(groups[0].places[0].role, SlotRole::Head);
  std::set<NodeId> distinct;
  for (const Place& p : groups[0].places) distinct.insert(p.node);
  EXPECT_EQ(distinct.size(), 3U);
}

TEST(Scheduler, OrderIsTierThenAgedPriorityThenFifo) {
  Scheduler s;
  Request a = request(1, 0), b = request(2, 0), c = request(3, 0), d = request(4, 0, 1, 60 * 60'000);
  b.tier = 0;
  c.priority = 5;
  s.apply(RequestChanged{a}), s.apply(RequestChanged{b}), s.apply(RequestChanged{c}), s.apply(RequestChanged{d});
  for (std::uint64_t i = 1; i <= 4; ++i) s.apply(NodeChanged{node(i)});
  // d waited an hour: six points, above c's five.
  EXPECT_EQ(clusters(s.plan({}, kT0)),
            (std::vector<ClusterId>{ClusterId{2}, ClusterId{4}, ClusterId{3}, ClusterId{1}}));
}

TEST(Scheduler, AgeingIsBounded) {
  Scheduler s;
  Request old = request(1, 0, 1, std::int64_t{48} * 3'600'000);  // twenty points at most
  Request urgent = request(2, 0);
  urgent.priority = 21;
  Request less_urgent = request(3, 0);
  less_urgent.priority = 19;
  s.apply(RequestChanged{old}), s.apply(RequestChanged{urgent}), s.apply(RequestChanged{less_urgent});
  for (std::uint64_t id = 4; id <= 5; ++id)  // older still: so many go before everything, not more
    s.apply(RequestChanged{request(id, 0, 1, std::int64_t{49} * 3'600'000)});
  for (std::uint64_t id = 1; id <= 5; ++id) s.apply(NodeChanged{node(id)});
  EXPECT_EQ(clusters(s.plan({}, kT0)),
            (std::vector<ClusterId>{ClusterId{4}, ClusterId{5}, ClusterId{2}, ClusterId{1}, ClusterId{3}}));
}

TEST(Scheduler, ALargeRequestDoesNotBlockOthersUntilItIsOld) {
  Scheduler s;
  s.apply(NodeChanged{node(1, 8)});
  NodeView busy = node(2, 8);
  busy.free.cpu_milli = 0;
  s.apply(NodeChanged{busy});
  s.apply(RequestChanged{request(1, 1, 8)});  // needs both
  Request small = request(2, 0);
  small.since = kT0 + 1ms;
  s.apply(RequestChanged{small});
  EXPECT_EQ(clusters(s.plan({}, kT0 + 1s)), (std::vector<ClusterId>{ClusterId{2}}));
  // Twelve minutes later the large one holds its machines back.
  s.apply(RequestGone{ClusterId{2}});
  s.apply(NodeChanged{node(1, 8)});
  EXPECT_TRUE(s.plan({}, kT0 + 12min).empty());
  Request late = request(3, 0);
  late.since = kT0 + 12min;
  s.apply(RequestChanged{late});
  EXPECT_TRUE(s.plan({}, kT0 + 12min).empty());
  EXPECT_EQ(s.queue_of(ClusterId{3}, kT0 + 12min).reason.code, "behind_older");
  s.apply(NodeChanged{node(2, 8)});
  EXPECT_EQ(clusters(s.plan({}, kT0 + 12min)), (std::vector<ClusterId>{ClusterId{1}}));
}

TEST(Scheduler, Constraints) {
  Scheduler s;
  NodeView arm = node(1), eu = node(2), own = node(3), backing_off = node(4), venv = node(5);
  arm.arch = "aarch64";
  eu.labels["region"] = "eu";
  own.supplier = OrgId{9};
  backing_off.backoff_until = kT0 + 1min;
  venv.runtimes = {RuntimeKind::Venv};
  for (const NodeView& n : {arm, eu, own, backing_off, venv}) s.apply(NodeChanged{n});
  const auto where = [&](Request r) -> std::uint64_t {
    s.apply(RequestChanged{r});
    const auto groups = s.plan({}, kT0);
    s.apply(RequestGone{r.cluster});
    return groups.empty() ? 0 : groups[0].places[0].node.value;
  };
  Request r = request(1, 0);
  r.arch = "aarch64";
  EXPECT_EQ(where(r), 1U);
  r = request(1, 0);
  r.gang[0].request.constraints["region"] = "eu";
  EXPECT_EQ(where(r), 2U);
  r = request(1, 0);
  r.pool = "own";
  EXPECT_EQ(where(r), 3U);
  r = request(1, 0);
  r.gang[0].request.pinned = {NodeId{4}};
  EXPECT_EQ(where(r), 0U) << "it backs off";
  r = request(1, 0);
  r.egress = true;
  EXPECT_EQ(where(r), 0U);
  r = request(1, 0);
  r.runtime = RuntimeKind::Venv;
  EXPECT_EQ(where(r), 5U);
  r = request(1, 0);
  r.avoid = {NodeId{2}};
  EXPECT_EQ(where(r), 3U);
  r = request(1, 0);
  r.pool = "pool:lab";
  EXPECT_EQ(where(r), 0U);
  eu.labels["pool"] = "lab";
  s.apply(NodeChanged{eu});
  EXPECT_EQ(where(r), 2U);
}

TEST(Scheduler, GpusByModelAndDisjoint) {
  Scheduler s;
  s.apply(NodeChanged{gpu_node(1, 2, "A100")});
  s.apply(NodeChanged{gpu_node(2, 2, "H100")});
  s.apply(NodeChanged{node(3)});
  Request cpu_only = request(1, 0);
  Request h100 = request(2, 0);
  h100.gang[0].request.resources.gpus = 2;
  h100.gang[0].request.gpu_model = "H100";
  s.apply(RequestChanged{cpu_only});
  s.apply(RequestChanged{h100});
  const auto groups = s.plan({}, kT0);
  ASSERT_EQ(groups.size(), 2U);
  EXPECT_EQ(groups[0].places[0].node, NodeId{3}) << "GPUs are left to those who need them";
  EXPECT_EQ(groups[1].places[0].devices, (std::vector<std::string>{"gpu-2-0", "gpu-2-1"}));
}

TEST(Scheduler, PrefersCachedImageAndBestTierForTheHead) {
  Scheduler s;
  NodeView cached = node(1), trusted = node(2);
  cached.images = {"ray"};
  trusted.tier = TrustTier::Platform;
  s.apply(NodeChanged{cached}), s.apply(NodeChanged{trusted}), s.apply(NodeChanged{node(3)});
  s.apply(RequestChanged{request(1, 1)});
  const auto groups = s.plan({}, kT0);
  ASSERT_EQ(groups.size(), 1U);
  EXPECT_EQ(groups[0].places[0].node, NodeId{2});
  EXPECT_EQ(groups[0].places[1].node, NodeId{1});
}

TEST(Scheduler, AProposalHoldsItsMachinesUntilItIsAnsweredOrOld) {
  Scheduler s;
  s.apply(NodeChanged{node(1, 1)});
  s.apply(RequestChanged{request(1, 0)});
  s.apply(RequestChanged{request(2, 0)});
  ASSERT_EQ(clusters(s.plan({}, kT0)), (std::vector<ClusterId>{ClusterId{1}}));
  EXPECT_TRUE(s.plan({}, kT0 + 1s).empty()) << "neither twice nor to another";
  EXPECT_EQ(clusters(s.plan({}, kT0 + 10s)), (std::vector<ClusterId>{ClusterId{1}}))
      << "dropped by the core: proposed again";
}

TEST(Scheduler, QueueSaysWhatIsMissing) {
  Scheduler s;
  NodeView busy = node(2);
  busy.free.cpu_milli = 0;
  s.apply(NodeChanged{node(1)}), s.apply(NodeChanged{busy});
  s.apply(RequestChanged{request(1, 1)});
  EXPECT_TRUE(s.plan({}, kT0).empty());
  const QueueView view = s.queue_of(ClusterId{1}, kT0);
  EXPECT_EQ(view.position, 1U);
  EXPECT_EQ(view.reason.code, "machines_busy");
  EXPECT_FALSE(view.known);
  EXPECT_EQ(view.reason.text, "needs 2 machines with 1 CPU free; 1 is free");
}

LeaseView lease(std::uint64_t id, std::uint64_t cluster, std::uint64_t node, std::int64_t cpus) {
  LeaseView l;
  l.lease = LeaseId{id}, l.cluster = ClusterId{cluster}, l.node = NodeId{node}, l.resources.cpu_milli = cpus * 1000;
  return l;
}

TEST(Scheduler, ExpectsAStartWhenMachinesArePromisedToBeFree) {
  Scheduler s;
  for (std::uint64_t i = 1; i <= 3; ++i) {
    NodeView busy = node(i, 2);
    busy.free.cpu_milli = 0, busy.whole = false;
    s.apply(NodeChanged{busy});
    s.apply(LeaseChanged{lease(i, 100 + i, i, 2)});
  }
  s.apply(TermsChanged{ClusterId{101}, kT0 + 2h});
  s.apply(TermsChanged{ClusterId{102}, kT0 + 1h});  // the third never ends
  for (std::uint64_t i = 1; i <= 3; ++i) {
    Request r = request(i, 0, 2);
    r.since = kT0 + Millis(i);
    s.apply(RequestChanged{r});
  }
  const auto queue = s.queue(kT0 + 1s);
  ASSERT_EQ(queue.size(), 3U);
  EXPECT_EQ(queue[0].expected_start, kT0 + 1h + 1min) << "the end, and a minute to clear up";
  EXPECT_EQ(queue[1].expected_start, kT0 + 2h + 1min) << "behind the first";
  EXPECT_FALSE(queue[2].known) << "nothing promises a third machine";
  EXPECT_EQ(s.queue_of(ClusterId{2}, kT0 + 1s), queue[1]);
  s.apply(RequestChanged{request(4, 1, 2)});  // two machines, and it waited longest
  EXPECT_EQ(s.queue_of(ClusterId{4}, kT0 + 1s).expected_start, kT0 + 2h + 1min);
  s.apply(LeaseGone{LeaseId{2}});
  s.apply(NodeChanged{node(2, 2)});
  s.apply(RequestGone{ClusterId{4}});
  EXPECT_EQ(s.queue_of(ClusterId{1}, kT0 + 1s).expected_start, kT0 + 1s);
  LeaseView leaving = lease(3, 103, 3, 2);
  leaving.leaving = true;
  s.apply(LeaseChanged{leaving});
  EXPECT_EQ(s.queue_of(ClusterId{2}, kT0 + 1s).expected_start, kT0 + 1s + 1min);
}

// After any changes, what the incremental scheduler plans and shows is what one built from the final snapshot would.
TEST(Scheduler, FlexibleWorkLeavesAScarceModelToThoseWhoNeedIt) {
  Scheduler s;
  for (std::uint64_t i = 1; i <= 6; ++i) s.apply(NodeChanged{gpu_node(i, 1, i == 1 ? "T4" : "A10")});
  Request any = request(1, 0, 1, 60'000), only = request(2, 0);
  any.gang[0].request.resources.gpus = only.gang[0].request.resources.gpus = 1;
  only.gang[0].request.gpu_model = "T4";
  for (const Request& r : {any, only})
    s.apply(DemandChanged{r.cluster, {{r.gang[0].request, 1}}}), s.apply(RequestChanged{r});
  const auto groups = s.plan({}, kT0);
  EXPECT_EQ(clusters(groups),
            (std::vector{ClusterId{1}, ClusterId{2}}));  // by node id alone the first would take the only T4
}

TEST(Scheduler, SmallGpuWorkKeepsLargeMachinesWhole) {
  Scheduler s;
  NodeView used = gpu_node(2, 4, "A10");
  used.free_devices.resize(1), used.free.gpus = 1, used.whole = false;
  s.apply(NodeChanged{gpu_node(1, 4, "A10")}), s.apply(NodeChanged{used});
  Request small = request(1, 0, 1, 60'000), large = request(2, 0);
  small.gang[0].request.resources.gpus = 1, large.gang[0].request.resources.gpus = 4;
  s.apply(RequestChanged{small}), s.apply(RequestChanged{large});
  const auto groups = s.plan({}, kT0);
  ASSERT_EQ(clusters(groups), (std::vector{ClusterId{1}, ClusterId{2}}));
  EXPECT_EQ(groups[0].places[0].node, NodeId{2});
}

TEST(Scheduler, IncrementalEqualsRebuilt) {
  for (std::uint64_t seed = 1; seed <= 25; ++seed) {
    Rng rng(seed);
    Scheduler incremental;
    std::map<NodeId, NodeView> nodes;
    std::map<ClusterId, Request> requests;
    std::map<ClusterId, std::vector<std::pair<NodeRequest, std::uint32_t>>> asked;  // outlives the request
    std::map<LeaseId, LeaseView> leases;
    WallTime now = kT0;
    for (int step = 0; step < 60; ++step) {
      now = now + 1s;
      const std::uint64_t id = 1 + rng.below(12);
      switch (rng.below(7)) {
        case 0:
        case 1: {
          NodeView n = rng.chance(1, 3)
                           ? gpu_node(id, 1 + static_cast<int>(rng.below(4)), rng.chance(1, 2) ? "A10" : "T4")
                           : node(id, rng.between(0, 6));
          n.schedulable = rng.chance(4, 5);
          if (rng.chance(1, 3)) n.labels["region"] = "eu";
          nodes[n.node] = n;
          incremental.apply(NodeChanged{n});
          break;
        }
        case 2: {
          Request r = request(id, static_cast<int>(rng.below(4)), rng.between(1, 4));
          r.priority = static_cast<std::int32_t>(rng.between(-3, 3));
          r.since = now;
          r.tenant = OrgId{1 + rng.below(3)}, r.project = ProjectId{rng.below(2)};
          if (rng.chance(1, 4)) r.gang[0].request.constraints["region"] = "eu";
          if (rng.chance(1, 2)) r.gang.back().request.resources.gpus = rng.between(1, 2);
          if (rng.chance(1, 4)) r.gang.back().request.gpu_model = "T4";
          if (rng.chance(1, 4)) r.avoid = {NodeId{1 + rng.below(12)}};
          if (rng.chance(1, 4)) r.grow = std::move(r.gang), r.gang.clear();
          requests[r.cluster] = r;
          asked[r.cluster] = {
              {(r.gang.empty() ? r.grow : r.gang).back().request, static_cast<std::uint32_t>(1 + rng.below(3))}};
          incremental.apply(DemandChanged{r.cluster, asked[r.cluster]});
          incremental.apply(RequestChanged{r});
          break;
        }
        case 3:
          requests.erase(ClusterId{id});
          incremental.apply(RequestGone{ClusterId{id}});
          break;
        case 4: {  // somebody holds something, or something else
          LeaseView l = lease(id, 100 + id, 1 + rng.below(12), rng.between(1, 40));
          l.tenant = OrgId{1 + rng.below(3)}, l.project = ProjectId{rng.below(2)};
          l.since = now - Millis(rng.below(200'000'000));
          leases[l.lease] = l;
          incremental.apply(LeaseChanged{l});
          break;
        }
        case 5:
          leases.erase(LeaseId{id});
          incremental.apply(LeaseGone{LeaseId{id}, rng.chance(1, 4) ? WallTime{} : now - Millis(rng.below(9'000))});
          break;
        default:
          nodes.erase(NodeId{id});
          incremental.apply(NodeGone{NodeId{id}});
      }
      Scheduler rebuilt;
      for (const auto& [nid, n] : nodes) rebuilt.apply(NodeChanged{n});
      for (const auto& [cid, needs] : asked) rebuilt.apply(DemandChanged{cid, needs});
      for (const auto& [cid, r] : requests) rebuilt.apply(RequestChanged{r});
      for (const auto& [lid, l] : leases) rebuilt.apply(LeaseChanged{l});
      for (const Change& change : incremental.snapshot())  // what it learned and what was held are a part of it
        if (std::holds_alternative<LearnedChanged>(change) || std::holds_alternative<UsageChanged>(change))
          rebuilt.apply(change);
      const auto expected = rebuilt.plan({}, now);
      const auto planned = incremental.plan({}, now);
      ASSERT_EQ(clusters(planned), clusters(expected)) << "seed " << seed << " step " << step;
      for (std::size_t i = 0; i < planned.size(); ++i)
        ASSERT_EQ(planned[i], expected[i]) << "seed " << seed << " step " << step;
      ASSERT_EQ(incremental.queue(now), rebuilt.queue(now)) << "seed " << seed << " step " << step;
      for (const Group& g : planned) {  // the core accepts: the places are taken, the request is gone
        for (const Place& p : g.places) {
          nodes[p.node] = after(nodes[p.node], p);
          incremental.apply(NodeChanged{nodes[p.node]});
        }
        requests.erase(g.cluster);
        incremental.apply(RequestGone{g.cluster});
      }
    }
  }
}

// A gang starts exactly when some assignment to distinct machines exists.
TEST(Scheduler, GangsStartWheneverAnAssignmentExists) {
  int started = 0, waited = 0;
  for (std::uint64_t seed = 1; seed <= 500; ++seed) {
    Rng rng(seed);
    std::vector<NodeView> nodes;
    Scheduler s;
    for (std::uint64_t i = 1; i <= 3 + rng.below(4); ++i) {
      NodeView n =
          rng.chance(1, 2) ? gpu_node(i, 1 + static_cast<int>(rng.below(2)), rng.chance(1, 2) ? "A10" : "T4") : node(i);
      n.free.cpu_milli = rng.between(1, 4) * 1000;
      if (rng.chance(1, 2)) n.labels["region"] = "eu";
      nodes.push_back(n);
      s.apply(NodeChanged{n});
    }
    Request r = request(1, static_cast<int>(1 + rng.below(4)));
    for (Bundle& b : r.gang) {
      b.request.resources.cpu_milli = rng.between(1, 4) * 1000;
      if (rng.chance(1, 3)) b.request.resources.gpus = 1;
      if (rng.chance(1, 3)) b.request.constraints["region"] = "eu";
      if (b.request.resources.gpus > 0 && rng.chance(1, 2)) b.request.gpu_model = "T4";
    }
    s.apply(RequestChanged{r});
    std::vector<std::size_t> order(nodes.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
    const auto fits = [](const NodeView& n, const NodeRequest& q) {
      return n.free.cpu_milli >= q.resources.cpu_milli && n.free.gpus >= q.resources.gpus &&
             (q.constraints.empty() || n.labels.contains("region")) &&
             (q.gpu_model.empty() || (!n.devices.empty() && n.devices[0].model == q.gpu_model));
    };
    bool possible = false;
    do {
      possible = r.gang.size() <= nodes.size();
      for (std::size_t i = 0; possible && i < r.gang.size(); ++i) possible = fits(nodes[order[i]], r.gang[i].request);
    } while (!possible && std::next_permutation(order.begin(), order.end()));
    const auto groups = s.plan({}, kT0);
    ASSERT_EQ(!groups.empty(), possible) << "seed " << seed;
    ++(possible ? started : waited);
    if (groups.empty()) continue;
    std::set<NodeId> distinct;
    ASSERT_EQ(groups[0].places.size(), r.gang.size());
    for (const Place& p : groups[0].places) distinct.insert(p.node);
    ASSERT_EQ(distinct.size(), r.gang.size());
  }
  EXPECT_GT(started, 100);
  EXPECT_GT(waited, 100);
}

std::int64_t hostile(Rng& rng) {
  constexpr std::int64_t kMax = std::numeric_limits<std::int64_t>::max(),
                         kMin = std::numeric_limits<std::int64_t>::min();
  constexpr std::array<std::int64_t, 12> kValues{kMin, kMin + 1, -1'000'000, -1,      0,        1,
                                                 63,   64,       1'000,      1 << 30, kMax - 1, kMax};
  return kValues[rng.below(kValues.size())];
}

// A worker with a share of the machine's first device.
LeaseView part_lease(std::uint64_t id, std::uint64_t cluster, const NodeView& on, std::int32_t share) {
  LeaseView l = lease(id, cluster, on.node.value, 3);
  l.tenant = OrgId{9}, l.tier = 3, l.devices = {on.devices[0].uuid}, l.share_milli = share, l.resources.gpus = 1;
  return l;
}

TEST(Scheduler, SharesThatAreHeldCountAsWhatTheyAre) {
  Scheduler s;
  NodeView n = gpu_node(1, 1, "A10");
  n.capacity.gpus = 1, n.free_devices.clear();
  n.shared = {{n.devices[0].uuid, Sharing::TenantShares, 700, OrgId{9}}};
  s.apply(NodeChanged{n});
  s.apply(LeaseChanged{part_lease(1, 1, n, 300)});
  EXPECT_EQ(s.held_by_tiers()[3], 300U) << "of the pool's one GPU";
}

TEST(Scheduler, NobodyLeavesAMigInstanceForWhoWantsAWholeGpu) {
  for (const bool mig : {true, false}) {
    Scheduler s;
    NodeView n = gpu_node(1, 2, "A10");  // the second one is whole, and of work that never leaves
    n.free_devices.clear(), n.whole = false;
    n.shared = {{n.devices[0].uuid, mig ? Sharing::Instance : Sharing::TenantShares, 0, OrgId{9}, 0, 500}};
    s.apply(NodeChanged{n});
    s.apply(LeaseChanged{part_lease(1, 1, n, 500)});
    LeaseView whole = lease(3, 3, 1, 1);
    whole.devices = {n.devices[1].uuid};
    s.apply(LeaseChanged{whole});
    Request r = request(2, 0);
    r.gang[0].request.resources.gpus = 1;
    s.apply(RequestChanged{r});
    const auto groups = s.plan({}, kT0 + kPreemptAfter);
    EXPECT_EQ(groups.size(), mig ? 0U : 1U) << "an instance never becomes one; a shared GPU does";
  }
}

// Nothing that a peer or a user can send breaks it or makes it promise more than there is.
TEST(Scheduler, TakesHostileNumbers) {
  for (std::uint64_t seed = 1; seed <= 25; ++seed) {
    Rng rng(seed);
    Scheduler s;
    WallTime now = kT0;
    std::map<NodeId, NodeView> nodes;
    for (int step = 0; step < 40; ++step) {
      const auto small = [&] { return static_cast<std::int32_t>(hostile(rng)); };
      NodeView n = rng.chance(1, 2) ? gpu_node(1 + rng.below(5), static_cast<int>(rng.below(70)), "A10")
                                    : node(1 + rng.below(5));
      n.free = {hostile(rng), hostile(rng), hostile(rng), hostile(rng), hostile(rng), {}};
      n.capacity = {hostile(rng), hostile(rng), hostile(rng), hostile(rng), 0, {}};
      for (Device& d : n.devices) d.memory_bytes = hostile(rng);
      if (rng.chance(1, 2))
        for (const Device& d : n.devices)
          n.shared.push_back({d.uuid, static_cast<Sharing>(rng.below(4)), small(), OrgId{rng.below(2)},
                              static_cast<std::uint8_t>(rng.next() & 0xff), small()});
      n.link = {hostile(rng), hostile(rng), hostile(rng), hostile(rng), hostile(rng), rng.chance(1, 2)};
      n.reliability = {hostile(rng), hostile(rng), hostile(rng), {}};
      n.offer.price_per_gpu_hour = hostile(rng), n.offer.price_per_hour = hostile(rng),
      n.offer.notice = Millis(hostile(rng) / 2);
      n.offer.shortest = Millis(hostile(rng)), n.offer.longest = Millis(hostile(rng));
      if (rng.chance(1, 3)) n.offer.hours = {{{hostile(rng)}, {hostile(rng)}}, {kT0, {kT0.ms + 5'000}}};
      n.backoff_until = {hostile(rng)};
      nodes[n.node] = n;
      s.apply(NodeChanged{n});
      s.apply(CoordinatesChanged{{{n.node, {small(), small(), small()}}, {NodeId{rng.below(9)}, {}}}});
      Request r = request(1 + rng.below(4), static_cast<int>(rng.below(3)));
      if (rng.chance(1, 4)) r.policy = Policy::FastNetwork;
      r.priority = small(), r.since = {hostile(rng)}, r.tier = static_cast<std::uint8_t>(rng.next());
      for (Bundle& b : r.gang) {
        b.count = rng.chance(1, 2) ? 1 : static_cast<std::uint32_t>(rng.below(4));
        b.request.resources = {hostile(rng), hostile(rng), hostile(rng), hostile(rng), hostile(rng), {}};
        b.request.gpu_share_milli = small(), b.request.gpu_memory_bytes = hostile(rng);
        if (rng.chance(1, 4)) b.request.gpu_any = {{"A10", small()}, {"", small()}};
        if (rng.chance(1, 4)) b.request.whole_machine = true;
      }
      r.backoff.emplace_back(NodeId{1 + rng.below(5)}, WallTime{hostile(rng)});
      s.apply(RequestChanged{r});
      LeaseView l = lease(1 + rng.below(3), 1 + rng.below(4), 1 + rng.below(5), 1);
      l.resources = {hostile(rng), hostile(rng), hostile(rng), hostile(rng), 0, {}};
      l.tenant = OrgId{rng.below(3)}, l.project = ProjectId{rng.below(2)}, l.since = {hostile(rng)};
      l.share_milli = small();
      r.tenant = OrgId{rng.below(3)}, r.project = ProjectId{rng.below(2)};
      if (rng.chance(1, 2)) s.apply(RequestChanged{r});
      s.apply(LeaseChanged{l});
      if (rng.chance(1, 2)) s.apply(LeaseGone{LeaseId{1 + rng.below(3)}, {hostile(rng)}});
      if (rng.chance(1, 4))
        s.apply(UsageChanged{
            r.tenant, r.project, rng.chance(1, 2), hostile(rng), hostile(rng), hostile(rng), {hostile(rng)}});
      s.apply(TermsChanged{ClusterId{1 + rng.below(4)}, {hostile(rng)}});
      now = now + Millis(rng.between(-100'000, 900'000));
      for (const Group& g : s.plan({4}, now))
        for (const Place& p : g.places) {
          const NodeView& view = nodes.at(p.node);
          ASSERT_LE(p.resources.cpu_milli, std::max<std::int64_t>(0, view.free.cpu_milli)) << seed;
          for (const std::string& uuid : p.devices)
            ASSERT_TRUE(
                std::any_of(view.devices.begin(), view.devices.end(), [&](const Device& d) { return d.uuid == uuid; }));
        }
      (void)s.queue(now);
    }
    Scheduler again;
    for (const Change& change : s.snapshot()) again.apply(change);
    EXPECT_EQ(again.waiting(), s.waiting());
  }
}

TEST(Scheduler, NothingChangedCostsNothing) {
  Scheduler s;
  for (std::uint64_t i = 1; i <= 2000; ++i) s.apply(NodeChanged{node(i, 1)});
  for (std::uint64_t i = 1; i <= 20'000; ++i) s.apply(RequestChanged{request(i, 1, 2)});  // nobody has two CPUs
  while (!s.plan({}, kT0).empty()) {
  }
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < 1000; ++i) ASSERT_TRUE(s.plan({}, kT0 + Millis(i)).empty());
  EXPECT_LT(std::chrono::steady_clock::now() - begin, 200ms);
  EXPECT_EQ(s.queue_page(kT0, 10, 5).size(), 5U);
  EXPECT_EQ(s.queue_page(kT0, 10, 1).at(0).position, 11U);
}

}  // namespace
}  // namespace muster::scheduler::scheduler_test
