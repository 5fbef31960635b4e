// Fair share: what is held and was held counts against those who wait, within a bound.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <set>

#include "base/rng.h"
#include "scheduler/order.h"
#include "scheduler/scheduler.h"
#include "scheduler/usage.h"

namespace muster::scheduler::fair_test {
namespace {

constexpr WallTime kT0{1'700'000'040'000};  // on a minute
constexpr std::int64_t kGib = std::int64_t{1} << 30;
constexpr OrgId kA{1}, kB{2};

NodeView machine(std::uint64_t id, std::int64_t cpus, std::int64_t gib, int gpus = 0) {
  NodeView n;
  n.node = NodeId{id}, n.supplier = OrgId{99}, n.arch = "x86_64", n.schedulable = true;
  n.free.cpu_milli = cpus * 1000, n.free.memory_bytes = gib * kGib, n.free.gpus = gpus;
  for (int i = 0; i < gpus; ++i) {
    n.devices.push_back({"gpu-" + std::to_string(id) + "-" + std::to_string(i), "A10", 24 * kGib});
    n.free_devices.push_back(n.devices.back().uuid);
  }
  n.capacity = n.free, n.runtimes = {RuntimeKind::Docker};
  return n;
}
Request request(std::uint64_t id, OrgId tenant, WallTime since, std::int64_t cpus = 1, std::int64_t gib = 1,
                std::int64_t gpus = 0) {
  Request r;
  r.cluster = ClusterId{id}, r.tenant = tenant, r.project = ProjectId{tenant.value}, r.since = since;
  r.pool = "market", r.arch = "x86_64", r.image = "ray";
  Bundle head;
  head.role = SlotRole::Head;
  head.request.resources = {.cpu_milli = cpus * 1000, .memory_bytes = gib * kGib, .gpus = gpus};
  r.gang.push_back(head);
  return r;
}
LeaseView lease(std::uint64_t id, OrgId tenant, WallTime since, std::int64_t cpus, std::int64_t gib = 0) {
  LeaseView l;
  l.lease = LeaseId{id}, l.cluster = ClusterId{100'000 + id}, l.node = NodeId{1}, l.tenant = tenant,
  l.project = ProjectId{tenant.value}, l.since = since;
  l.resources.cpu_milli = cpus * 1000, l.resources.memory_bytes = gib * kGib;
  return l;
}
std::vector<std::uint64_t> started(const std::vector<Group>& groups) {
  std::vector<std::uint64_t> out;
  for (const Group& g : groups) out.push_back(g.cluster.value);
  return out;
}
std::vector<std::uint64_t> waiting(const std::vector<QueueView>& queue) {
  std::vector<std::uint64_t> out;
  for (const QueueView& view : queue) out.push_back(view.cluster.value);
  return out;
}
// A hundred machines of one CPU each.
Scheduler pool_of_a_hundred() {
  Scheduler s;
  for (std::uint64_t i = 1; i <= 100; ++i) s.apply(NodeChanged{machine(i, 1, 1)});
  return s;
}

TEST(Fair, HalfOfAHalfLifeIsTheRootOfAHalf) {
  constexpr std::uint64_t kHalf = std::uint64_t{1} << 63;
  const auto close = [](std::uint64_t a, std::uint64_t b) { return (a > b ? a - b : b - a) < 64; };
  EXPECT_TRUE(close(kept_after(kHalfLifeMs), kHalf));
  EXPECT_TRUE(close(kept_after(2 * kHalfLifeMs), kHalf / 2));
  EXPECT_TRUE(close(kept_after(kHalfLifeMs / 2), 0xb504f333f9de6484U));
  EXPECT_EQ(kept_after(0), ~std::uint64_t{0});
  EXPECT_EQ(kept_after(std::numeric_limits<std::int64_t>::min()), ~std::uint64_t{0});
  EXPECT_EQ(kept_after(std::numeric_limits<std::int64_t>::max()), 0U);
  for (std::int64_t ms = 1; ms < 3 * kHalfLifeMs; ms += 12'345'678) EXPECT_GT(kept_after(ms - 1), kept_after(ms));
}

TEST(Fair, ThePastFadesByHalvesAndThePresentCountsAtOnce) {
  Usage usage;
  const NodeView all = machine(1, 100, 100);
  usage.machine(0, &all);
  const Usage::Owner a = usage.owner(kA, ProjectId{1});
  const auto permille = [&](Millis later) { return usage.share(a.tenant, kT0 + later).permille; };
  const LeaseView held = lease(1, kA, WallTime{}, 40);  // since for ever
  usage.begin(held);
  EXPECT_EQ(permille(0h), 400);
  usage.end(held, kT0);
  EXPECT_EQ(permille(0h), 200) << "nothing is held, the average is what it was";
  EXPECT_EQ(permille(24h), 100);
  EXPECT_EQ(permille(48h), 50) << "two half-lives: a quarter";
  EXPECT_EQ(permille(24h * 60), 0);
  usage.begin(lease(2, kA, kT0 + 48h, 40));
  EXPECT_EQ(permille(48h), 250);
  EXPECT_EQ(permille(72h), 325) << "half of 40 % now, half of 20 % and 5 % on average";
}

TEST(Fair, TheHandicapIsConcaveAndBounded) {
  Usage usage;
  const NodeView all = machine(1, 1'000, 1'000);
  usage.machine(0, &all);
  std::int64_t last = -1;
  for (std::uint64_t percent = 0; percent <= 120; ++percent) {
    const OrgId tenant{1 + percent};
    usage.begin(lease(1 + percent, tenant, WallTime{}, static_cast<std::int64_t>(10 * percent)));
    usage.turn(kT0);
    const std::int64_t handicap = usage.handicap_ms(usage.owner(tenant, ProjectId{tenant.value}));
    EXPECT_TRUE(percent > 100 ? handicap == last : handicap > last) << percent;
    last = handicap;
    if (percent == 10) EXPECT_EQ(handicap, 4 * kAgeStepMs);
    if (percent == 25) EXPECT_EQ(handicap, 8 * kAgeStepMs);
    if (percent == 50) EXPECT_EQ(handicap, 12 * kAgeStepMs);
  }
  EXPECT_EQ(last, 16 * kAgeStepMs);
  EXPECT_LT(last, kAgedMs) << "who waits long enough goes before who just came";
}

// Whatever order leases are told of in, and whether while they live or after.
TEST(Fair, TheOrderOfTheNewsDoesNotMatter) {
  for (std::uint64_t seed = 1; seed <= 50; ++seed) {
    Rng rng(seed);
    Usage live, after;
    const NodeView all = machine(1, 200, 200);
    live.machine(0, &all), after.machine(0, &all);
    struct Told {
      WallTime at;
      LeaseView lease;
      bool ends;
    };
    std::vector<Told> told;
    std::vector<std::pair<LeaseView, WallTime>> leases;
    for (std::uint64_t i = 1; i <= 30; ++i) {
      LeaseView l =
          lease(i, OrgId{1 + rng.below(2)}, kT0 + Millis(rng.below(100'000'000)), rng.between(1, 9), rng.between(1, 9));
      l.project = ProjectId{rng.below(3)};
      const WallTime end = l.since + Millis(rng.below(50'000'000));
      leases.emplace_back(l, end);
      told.push_back({l.since, l, false}), told.push_back({end, l, true});
    }
    std::sort(told.begin(), told.end(), [](const Told& a, const Told& b) {
      return std::tuple(a.at, a.ends, a.lease.lease) < std::tuple(b.at, b.ends, b.lease.lease);
    });
    for (const Told& t : told) t.ends ? live.end(t.lease, t.at) : live.begin(t.lease);
    for (const auto& [l, end] : leases) {
      after.begin(l);
      if (rng.chance(1, 4)) after.undo(l), after.begin(l);
      after.end(l, end);
    }
    for (std::uint64_t tenant = 1; tenant <= 2; ++tenant)
      for (std::uint64_t project = 0; project < 3; ++project) {
        const auto x = live.owner(OrgId{tenant}, ProjectId{project}),
                   y = after.owner(OrgId{tenant}, ProjectId{project});
        for (const Millis later : {Millis(150'000'000), Millis(300'000'000)}) {
          EXPECT_NEAR(live.share(x.tenant, kT0 + later).handicap_ms, after.share(y.tenant, kT0 + later).handicap_ms,
                      100);
          EXPECT_NEAR(live.share(x.project, kT0 + later).handicap_ms, after.share(y.project, kT0 + later).handicap_ms,
                      100);
        }
      }
  }
}

// A thousand of A were there first; B's ten get their turns all the same.
TEST(Fair, ABacklogLetsOthersInBetween) {
  Scheduler s = pool_of_a_hundred();
  for (std::uint64_t i = 1; i <= 1'000; ++i) s.apply(RequestChanged{request(i, kA, kT0)});
  for (std::uint64_t i = 0; i < 10; ++i) s.apply(RequestChanged{request(5'000 + i, kB, kT0 + 1min)});
  const auto queue = s.queue(kT0 + 2min);
  const auto order = started(s.plan({100}, kT0 + 2min));
  ASSERT_EQ(order.size(), 100U);
  EXPECT_EQ(std::vector(order.begin(), order.begin() + 3), (std::vector<std::uint64_t>{1, 5'000, 2}));
  const auto last = std::find(order.begin(), order.end(), 5'009U);
  EXPECT_LT(last - order.begin(), 22) << "as many of A as of B, about";
  EXPECT_EQ(waiting(queue).front(), 1U);
  for (std::size_t i = 0; i < order.size(); ++i) ASSERT_EQ(queue[i].cluster.value, order[i]) << i;
  // What a plan proposed counts until it is answered, and no longer.
  EXPECT_TRUE(s.plan({100}, kT0 + 3min).size() > 0) << "the proposals are old by now";
}

TEST(Fair, EqualUseIsFirstComeFirstServed) {
  Scheduler s = pool_of_a_hundred();
  for (std::uint64_t i = 1; i <= 2; ++i) s.apply(LeaseChanged{lease(i, OrgId{i}, kT0 - 5h, 20)});
  std::uint64_t id = 0;
  for (int i = 0; i < 40; ++i) s.apply(RequestChanged{request(++id, i % 2 == 0 ? kB : kA, kT0 + Millis(i * 200'000))});
  const auto order = started(s.plan({40}, kT0 + 3h));
  ASSERT_EQ(order.size(), 40U);
  for (std::size_t i = 0; i < order.size(); ++i) EXPECT_EQ(order[i], i + 1);
}

TEST(Fair, WhoUsedMuchGoesAfterWhoUsedNothingButNotForEver) {
  Scheduler s = pool_of_a_hundred();
  s.apply(LeaseChanged{lease(1, kA, WallTime{}, 100)});  // all of it, for ever
  s.apply(LeaseGone{LeaseId{1}, kT0});
  const auto first = [&](Millis waited, WallTime now) {
    s.apply(RequestChanged{request(1, kA, now - waited)});
    s.apply(RequestChanged{request(2, kB, now)});
    const auto queue = s.queue(now);
    const auto order = started(s.plan({}, now));
    EXPECT_EQ(waiting(queue), order);
    s.apply(RequestGone{ClusterId{1}}), s.apply(RequestGone{ClusterId{2}});
    return order.front();
  };
  EXPECT_EQ(first(0min, kT0), 2U);
  EXPECT_EQ(first(119min, kT0), 2U);
  EXPECT_EQ(first(121min, kT0), 1U) << "half the pool counts as twelve points, two hours";
  EXPECT_EQ(first(79min, kT0 + 24h), 2U) << "a day later a quarter: eight points";
  EXPECT_EQ(first(81min, kT0 + 24h), 1U);
  s.apply(LeaseChanged{lease(2, kA, WallTime{}, 100)});
  EXPECT_EQ(first(159min, kT0 + 48h), 2U);
  EXPECT_EQ(first(161min, kT0 + 48h), 1U) << "sixteen points at most, even while it holds everything";
}

TEST(Fair, PriorityCountsAsItDid) {
  Scheduler s = pool_of_a_hundred();
  s.apply(LeaseChanged{lease(1, kA, WallTime{}, 100)});
  Request urgent = request(1, kA, kT0), other = request(2, kB, kT0);
  urgent.priority = 17;
  s.apply(RequestChanged{urgent}), s.apply(RequestChanged{other});
  EXPECT_EQ(started(s.plan({}, kT0)), (std::vector<std::uint64_t>{1, 2})) << "above the sixteen points";
  s.apply(RequestGone{ClusterId{1}}), s.apply(RequestGone{ClusterId{2}});
  urgent.priority = 15;
  s.apply(RequestChanged{urgent}), s.apply(RequestChanged{other});
  EXPECT_EQ(started(s.plan({}, kT0)), (std::vector<std::uint64_t>{2, 1}));
}

TEST(Fair, TenantsFirstThenProjectsWithinATenant) {
  Scheduler s = pool_of_a_hundred();
  s.apply(LeaseChanged{lease(1, kA, WallTime{}, 30)});  // of A's project 1
  s.apply(LeaseChanged{lease(2, kB, WallTime{}, 15)});
  Request used = request(1, kA, kT0), fresh = request(2, kA, kT0), other = request(3, kB, kT0);
  fresh.project = ProjectId{77};
  for (const Request& r : {used, fresh, other}) s.apply(RequestChanged{r});
  EXPECT_EQ(started(s.plan({}, kT0)), (std::vector<std::uint64_t>{3, 2, 1}));
}

// The example of the paper: 9 CPUs and 18 GiB, one tenant needs <1 CPU, 4 GiB>, the other <3 CPU, 1 GiB>: with three
// and two of them each has two thirds of what it needs most.
TEST(Fair, DominantSharesBecomeEqual) {
  Scheduler s;
  for (std::uint64_t i = 1; i <= 10; ++i) s.apply(NodeChanged{machine(i, 90, 180)});
  std::uint64_t id = 0;
  for (int i = 0; i < 300; ++i) s.apply(RequestChanged{request(++id, kA, kT0, 1, 4)});
  for (int i = 0; i < 300; ++i) s.apply(RequestChanged{request(++id, kB, kT0, 3, 1)});
  std::int64_t a = 0, b = 0;
  for (int plans = 0; plans < 20; ++plans)
    for (const Group& g : s.plan({30}, kT0)) ++(g.cluster.value <= 300 ? a : b);
  const std::int64_t memory = a * 4 * 1000 / 1800, cpus = b * 3 * 1000 / 900;  // of the pool, in thousandths
  EXPECT_NEAR(memory, cpus, 60);
  EXPECT_GT(memory, 550);
}

TEST(Fair, AGpuAndACpuTenantShareMachines) {
  Scheduler s;
  for (std::uint64_t i = 1; i <= 50; ++i) s.apply(NodeChanged{machine(i, 16, 64, 4)});
  std::uint64_t id = 0;
  for (int i = 0; i < 400; ++i) s.apply(RequestChanged{request(++id, kA, kT0, 1, 1, 1)});
  for (int i = 0; i < 400; ++i) s.apply(RequestChanged{request(++id, kB, kT0, 4, 1, 0)});
  std::int64_t a = 0, b = 0;
  for (const Group& g : s.plan({120}, kT0)) ++(g.cluster.value <= 400 ? a : b);
  ASSERT_EQ(a + b, 120);
  EXPECT_NEAR(a * 1000 / 200, b * 4 * 1000 / 800, 10) << "as many GPUs as fourfold CPUs";
}

// What the queue shows is the order in which the planner starts, for all that the queue foresees; the place of one is
// what the whole queue says, also beyond.
TEST(Fair, PositionsAreTheOrderOfThePlanner) {
  for (std::uint64_t seed = 1; seed <= 15; ++seed) {
    Rng rng(seed);
    Scheduler s;
    for (std::uint64_t i = 1; i <= 300; ++i) s.apply(NodeChanged{machine(i, 8, 32)});
    for (std::uint64_t i = 1; i <= 12; ++i) {
      LeaseView l = lease(i, OrgId{1 + rng.below(5)}, kT0 - Millis(rng.below(200'000'000)), rng.between(1, 200));
      l.project = ProjectId{l.tenant.value * 10 + rng.below(3)};
      s.apply(LeaseChanged{l});
      if (rng.chance(1, 3)) s.apply(LeaseGone{l.lease, l.since + Millis(rng.below(100'000'000))});
    }
    const bool many = seed % 4 == 0;
    const std::uint64_t requests = many ? 700 : 200;
    for (std::uint64_t i = 1; i <= requests; ++i) {
      Request r = request(i, OrgId{1 + rng.below(5)}, kT0 - Millis(rng.below(20'000'000)), rng.between(1, 8));
      r.project = ProjectId{r.tenant.value * 10 + rng.below(3)};
      r.priority = static_cast<std::int32_t>(rng.between(-4, 4)), r.tier = static_cast<std::uint8_t>(rng.below(3));
      s.apply(RequestChanged{r});
    }
    (void)s.plan({0}, kT0);
    const auto queue = s.queue(kT0);
    ASSERT_EQ(queue.size(), requests);
    for (std::size_t i = 0; i < queue.size(); i += many ? 7 : 1)
      ASSERT_EQ(s.queue_of(queue[i].cluster, kT0), queue[i]) << "seed " << seed << ", " << i;
    if (many) continue;
    ASSERT_EQ(started(s.plan({1'000}, kT0)), waiting(queue)) << "seed " << seed;
  }
}

TEST(Fair, AReasonSaysWhatItsOwnTenantUsed) {
  Scheduler s;
  NodeView full = machine(1, 100, 100);
  full.free = {}, full.whole = false;
  s.apply(NodeChanged{full});
  s.apply(LeaseChanged{lease(1, kA, WallTime{}, 25)});
  s.apply(LeaseChanged{lease(2, kB, WallTime{}, 10)});
  s.apply(RequestChanged{request(1, kA, kT0)});
  EXPECT_FALSE(s.queue_of(ClusterId{1}, kT0).reason.params.contains("fair_share_points")) << "it is behind nobody";
  s.apply(RequestChanged{request(2, kB, kT0)});
  const QueueView behind = s.queue_of(ClusterId{1}, kT0), first = s.queue_of(ClusterId{2}, kT0);
  EXPECT_EQ(behind.position, 2U);
  EXPECT_EQ(behind.reason.params.at("fair_share_points"), "8");
  EXPECT_EQ(behind.reason.params.at("fair_share_minutes"), "80");
  EXPECT_NE(behind.reason.text.find("your project used 25 % of the pool lately"), std::string::npos)
      << behind.reason.text;
  EXPECT_FALSE(first.reason.params.contains("fair_share_points"));
  EXPECT_EQ(s.queue(kT0), (std::vector{first, behind}));
}

// Ends, decay and machines that join let somebody forward at the next plan, without anything else that happens.
TEST(Fair, AHandicapThatFallsIsSeenAtOnce) {
  Scheduler s;
  for (std::uint64_t i = 1; i <= 100; ++i) s.apply(NodeChanged{machine(i, 1, 1)});
  for (std::uint64_t i = 0; i < 30; ++i) s.apply(LeaseChanged{lease(1 + i, kA, kT0, 1)});
  for (std::uint64_t i = 0; i < 10; ++i) s.apply(LeaseChanged{lease(50 + i, kB, kT0, 1)});
  for (std::uint64_t i = 1; i <= 3; ++i)
    s.apply(RequestChanged{request(i, kA, kT0)}), s.apply(RequestChanged{request(10 + i, kB, kT0)});
  ASSERT_EQ(started(s.plan({1}, kT0)), (std::vector<std::uint64_t>{11}));
  for (std::uint64_t i = 0; i < 30; ++i) s.apply(LeaseGone{LeaseId{1 + i}, kT0});
  EXPECT_EQ(started(s.plan({1}, kT0 + 10ms)), (std::vector<std::uint64_t>{1}));
}

TEST(Fair, ASnapshotCarriesThePast) {
  Scheduler s = pool_of_a_hundred();
  s.apply(LeaseChanged{lease(1, kA, kT0 - 30h, 60)});
  s.apply(LeaseGone{LeaseId{1}, kT0 - 2h});
  s.apply(LeaseChanged{lease(2, kA, kT0 - 1h, 3)});
  s.apply(LeaseChanged{lease(3, kB, kT0 - 7h, 5)});
  s.apply(RequestChanged{request(1, kA, kT0)}), s.apply(RequestChanged{request(2, kB, kT0 + 1s)});
  Scheduler again;
  for (const Change& change : s.snapshot()) again.apply(change);
  const auto usage_of = [](const Scheduler& of) {
    std::vector<UsageChanged> out;
    for (const Change& change : of.snapshot())
      if (const auto* usage = std::get_if<UsageChanged>(&change)) out.push_back(*usage);
    std::sort(out.begin(), out.end(), [](const UsageChanged& x, const UsageChanged& y) {
      return std::tuple(x.tenant, x.project) < std::tuple(y.tenant, y.project);
    });
    return out;
  };
  ASSERT_EQ(usage_of(s).size(), 4U);
  EXPECT_EQ(usage_of(s), usage_of(again));
  EXPECT_EQ(s.queue(kT0 + 1min), again.queue(kT0 + 1min));
  EXPECT_EQ(started(again.plan({}, kT0 + 1min)), (std::vector<std::uint64_t>{2, 1}));
}

}  // namespace
}  // namespace muster::scheduler::fair_test
