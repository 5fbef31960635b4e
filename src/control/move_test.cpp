#include <gtest/gtest.h>

#include "control/control_world.h"
#include "control/life.h"

namespace muster::control {
namespace {

ClusterSpec move_spec(const std::string& name, std::uint8_t tier, std::int64_t head, std::int64_t worker) {
  ClusterSpec s = World::spec(worker > 0 ? 1 : 0, 1);
  s.name = name, s.tier = tier;
  s.head.resources.cpu_milli = head * 1000;
  s.groups[0].request.resources.cpu_milli = std::max<std::int64_t>(worker, 1) * 1000;
  return s;
}

// Machines of four CPUs. The small cluster has its head on one and a worker of one CPU on another; on the fourth, where
// a cluster that never agreed to anything works, one CPU is free. The large one wants four CPUs on one machine.
struct Scattered {
  World w;
  ClusterId small, other, large;
  NodeId from, to;
  NodeId enrol_in(const std::string& region) {
    NodeFacts facts = w.state.nodes.begin()->second.facts;
    facts.hostname = facts.region = region;
    return w.enrol(region, std::move(facts), w.supplier);
  }
  explicit Scattered(std::uint8_t small_tier = 2, std::uint8_t large_tier = 2) {
    w.enrol("a"), w.enrol("b");
    small = w.up(move_spec("small", small_tier, 4, 1));
    from = w.lease_of(w.slots(small, SlotRole::Worker).at(0)).node;
    ClusterSpec spec = move_spec("other", 1, 4, 3);
    enrol_in("c"), to = enrol_in("d");
    spec.head.constraints = {{"region", "c"}}, spec.groups[0].request.constraints = {{"region", "d"}};
    other = w.up(spec);
    large =
        ClusterId::parse(w.must(CreateCluster{w.project, move_spec("large", large_tier, 4, 0)}, w.user()).id).value();
    w.rounds();
    EXPECT_EQ(w.cluster(large).state, ClusterState::Queued);
  }
};

TEST(Moves, AWorkerGoesOnElsewhereAndTheLargeClusterStarts) {
  Scattered s;
  World& w = s.w;
  const LeaseId old = w.slots(s.small, SlotRole::Worker).at(0)->lease;
  w.pass(9min);
  w.plan();
  EXPECT_EQ(w.state.leases.at(old).want, LeaseWant::Run) << "it has not had its ten minutes";
  w.pass(2min);
  w.plan();
  EXPECT_EQ(w.state.leases.at(old).want, LeaseWant::Drain);
  EXPECT_EQ(w.state.leases.at(old).reason, kMoved);
  const auto workers = w.slots(s.small, SlotRole::Worker);
  ASSERT_EQ(workers.size(), 2U) << "the other one is granted by the same decision";
  EXPECT_EQ(w.lease_of(workers[1]).node, s.to);
  const auto view = w.planner.queue_of(s.large, w.now.wall);
  EXPECT_EQ(view.reason.code, "making_room");
  EXPECT_EQ(view.reason.params.at("moves"), "true");
  scheduler::Scheduler rebuilt;  // a restart of the server in between takes nothing back
  for (const auto& change : planner_snapshot(w.state)) rebuilt.apply(change);
  EXPECT_TRUE(rebuilt.plan({}, w.now.wall).empty());
  EXPECT_EQ(rebuilt.queue_of(s.large, w.now.wall).reason, view.reason);
  EXPECT_TRUE(w.report(old, LeasePhase::Draining).ok());
  EXPECT_EQ(w.state.leases.at(old).reason, kMoved) << "why it leaves is told until it has";
  w.rounds();
  EXPECT_EQ(w.cluster(s.large).state, ClusterState::Running);
  EXPECT_EQ(w.head(s.large).node, s.from);
  EXPECT_EQ(w.cluster(s.small).state, ClusterState::Running);
  ASSERT_EQ(w.slots(s.small, SlotRole::Worker).size(), 1U);
  EXPECT_EQ(w.lease_of(w.slots(s.small, SlotRole::Worker).at(0)).node, s.to);
  EXPECT_EQ(w.cluster(s.small).reason, "");
  EXPECT_EQ(w.cluster(s.other).state, ClusterState::Running);
}

TEST(Moves, TiersThatDidNotAgreeAndBetterOnesStay) {
  for (const auto& [small, large] : {std::pair<std::uint8_t, std::uint8_t>{1, 1}, {1, 0}, {2, 3}}) {
    Scattered s(small, large);
    s.w.pass(5h);
    s.w.rounds();
    EXPECT_EQ(s.w.cluster(s.large).state, ClusterState::Queued);
    EXPECT_EQ(s.w.lease_of(s.w.slots(s.small, SlotRole::Worker).at(0)).node, s.from);
  }
}

TEST(Moves, TheCoreLooksAgain) {
  Scattered s;
  World& w = s.w;
  w.pass(11min);
  const auto good = w.planner.plan({}, w.now.wall);
  ASSERT_EQ(good.size(), 1U);
  ASSERT_EQ(good[0].kind, scheduler::ActionKind::Move);
  ASSERT_EQ(good[0].places.at(0).node, s.to);
  const auto refused = [&](const std::vector<scheduler::Group>& groups, const char* why) {
    const std::size_t before = w.journal.size();
    w.must(ApplyPlan{groups});
    EXPECT_EQ(w.journal.size(), before) << why;
  };
  auto head = good;
  head[0].victims[0] = w.head(s.small).id;
  refused(head, "a head never moves");
  auto there = good;
  there[0].places[0].node = w.head(s.small).node;
  refused(there, "its cluster has a member there");
  auto full = good;
  full[0].places[0].node = w.head(s.other).node;
  refused(full, "there is no room");
  auto none = good;
  none[0].places.clear();
  refused(none, "no place for it");
  auto both = good;
  both[0].victims.push_back(LeaseId{999}), both[0].places.push_back(good[0].places[0]);
  refused(both, "one of the two is gone: then nobody moves");
  auto runs = good;
  runs[0].cluster = s.other;
  refused(runs, "for a cluster that does not wait");
  w.must(SetFreeze{true, "silence"});
  refused(good, "frozen");
  w.must(SetFreeze{false, ""});
  w.must(SetQuota{{}, w.project, Quota{0, 15'000, 0}}, w.as(Role::Operator, {}));
  refused(good, "its quota would not let it start");
  w.must(SetQuota{{}, w.project, Quota{}}, w.as(Role::Operator, {}));
  w.must(ApplyPlan{good});
  ASSERT_EQ(w.slots(s.small, SlotRole::Worker).size(), 2U);
  refused(good, "it leaves already");
}

TEST(Moves, NotBeforeItsTime) {
  Scattered s;
  World& w = s.w;
  w.pass(11min);
  const auto good = w.planner.plan({}, w.now.wall);
  ASSERT_EQ(good.size(), 1U);
  w.now.wall = w.now.wall - 3min;  // as if it had been proposed sooner
  const std::size_t before = w.journal.size();
  State younger = w.state;
  younger.last_wall = w.now.wall;
  const auto decision = decide(younger, ApplyPlan{good}, World::system(), w.now);
  ASSERT_TRUE(decision.ok());
  EXPECT_TRUE(decision->events.empty());
  EXPECT_EQ(w.journal.size(), before);
}

}  // namespace
}  // namespace muster::control
