#include <gtest/gtest.h>

#include "control/control_world.h"
#include "control/life.h"

namespace muster::control {
namespace {

ClusterSpec wide(const std::string& name, std::uint8_t tier, std::int64_t head_cpus, std::int64_t worker_cpus) {
  ClusterSpec s = World::spec();
  s.name = name, s.tier = tier;
  s.head.resources.cpu_milli = head_cpus * 1000, s.groups[0].request.resources.cpu_milli = worker_cpus * 1000;
  return s;
}

// Three machines of four CPUs: the head of the first takes one, its workers two each; the second needs three
// everywhere.
struct Full {
  World w;
  ClusterId cheap, urgent;
  explicit Full(std::uint8_t cheap_tier = 3, std::uint8_t urgent_tier = 1) {
    for (const char* name : {"a", "b", "c"}) w.enrol(name);
    cheap = w.up(wide("cheap", cheap_tier, 1, 2));
    urgent = ClusterId::parse(w.must(CreateCluster{w.project, wide("urgent", urgent_tier, 3, 3)}, w.user()).id).value();
  }
};

TEST(Preemption, WorkersOfALaterTierLeaveAndComeBack) {
  Full f;
  World& w = f.w;
  w.rounds();
  EXPECT_EQ(w.cluster(f.urgent).state, ClusterState::Queued) << "they have not had their two minutes";
  w.pass(2min);
  w.plan();
  std::vector<LeaseId> told;
  for (const Slot* slot : w.slots(f.cheap, SlotRole::Worker)) {
    const Lease& lease = w.lease_of(slot);
    EXPECT_EQ(lease.want, LeaseWant::Drain);
    EXPECT_EQ(lease.reason, kPreempted);
    told.push_back(lease.id);
  }
  ASSERT_EQ(told.size(), 2U);
  EXPECT_EQ(w.planner.queue_of(f.urgent, w.now.wall).reason.code, "making_room");
  scheduler::Scheduler rebuilt;  // a restart of the server in between takes nothing back
  for (const auto& change : planner_snapshot(w.state)) rebuilt.apply(change);
  EXPECT_TRUE(rebuilt.plan({}, w.now.wall).empty());
  EXPECT_EQ(rebuilt.queue_of(f.urgent, w.now.wall).reason.code, "making_room");
  EXPECT_TRUE(w.report(told[0], LeasePhase::Draining).ok());
  EXPECT_EQ(w.state.leases.at(told[0]).reason, kPreempted) << "why it leaves is told until it has";
  w.rounds();
  EXPECT_EQ(w.cluster(f.urgent).state, ClusterState::Running);
  EXPECT_EQ(w.cluster(f.cheap).state, ClusterState::Running) << "its head stays";
  EXPECT_EQ(w.cluster(f.cheap).reason, "workers_below_min");
  EXPECT_EQ(w.slots(f.cheap, SlotRole::Worker).size(), 0U);
  w.must(StopCluster{f.urgent, ""}, w.user());
  w.rounds();
  EXPECT_EQ(w.slots(f.cheap, SlotRole::Worker).size(), 2U);
  EXPECT_EQ(w.cluster(f.cheap).reason, "");
}

TEST(Preemption, TiersThatDidNotAgreeAreLeftAlone) {
  for (const auto& [cheap, urgent] : {std::pair<std::uint8_t, std::uint8_t>{1, 0}, {2, 2}, {2, 3}}) {
    Full f(cheap, urgent);
    f.w.pass(1h);
    f.w.rounds();
    EXPECT_EQ(f.w.cluster(f.urgent).state, ClusterState::Queued);
    EXPECT_EQ(f.w.slots(f.cheap, SlotRole::Worker).size(), 2U);
  }
}

TEST(Preemption, TheCoreLooksAgain) {
  Full f;
  World& w = f.w;
  w.pass(2min);
  const auto groups = w.planner.plan({}, w.now.wall);
  ASSERT_EQ(groups.size(), 1U);
  ASSERT_EQ(groups[0].victims.size(), 2U);
  const auto refused = [&](const std::vector<scheduler::Group>& proposal, const char* why) {
    const std::size_t before = w.journal.size();
    w.must(ApplyPlan{proposal});
    EXPECT_EQ(w.journal.size(), before) << why;
  };
  auto head = groups;
  head[0].victims.push_back(w.head(f.cheap).id);
  refused(head, "a head never leaves, and then nobody does");
  auto unknown = groups;
  unknown[0].victims.push_back(LeaseId{999});
  refused(unknown, "no such lease");
  auto upwards = groups;
  upwards[0].cluster = f.cheap;
  refused(upwards, "for a cluster that does not wait");
  auto late = groups;
  w.now.wall = w.now.wall + 1min;
  refused(late, "too old");
  const auto fresh = w.planner.plan({}, w.now.wall);
  ASSERT_EQ(fresh.size(), 1U);
  w.must(SetFreeze{true, "silence"});
  refused(fresh, "frozen");
  w.must(SetFreeze{false, ""});
  w.must(SetQuota{{}, w.project, Quota{0, 10'000, 0}}, w.as(Role::Operator, {}));
  refused(fresh, "its quota would not let it start");
  w.must(SetQuota{{}, w.project, Quota{}}, w.as(Role::Operator, {}));
  w.must(NodeSuspect{w.lease_of(w.slots(f.cheap, SlotRole::Worker).at(0)).node});
  refused(fresh, "one of them does not hear us");
}

}  // namespace
}  // namespace muster::control
