// What a cluster grows and shrinks by: the report of the helper on its head.
#include "control/control_world.h"

namespace muster::control {
namespace {

using namespace std::chrono_literals;

Resources cpus(std::int64_t n) {
  return {.cpu_milli = n * 1000};
}

// A cluster whose workers have two CPUs each, and what its Ray says.
struct Rig {
  World w;
  ClusterId id;
  explicit Rig(ClusterSpec spec, int machines = 6) {
    for (int i = 0; i < machines; ++i) w.enrol("m" + std::to_string(i));
    spec.idle_timeout = 5min;
    id = w.up(spec);
  }
  // `busy`: how many workers, the oldest first, have nothing free and do not idle.
  void report(std::vector<RayDemand> demands, std::size_t busy = 0, Millis idle = 1s) {
    RayReport r{id, w.head(id).id, {}, std::move(demands)};
    for (const Slot* slot : w.slots(id, SlotRole::Worker)) {
      const bool works = r.nodes.size() < busy;
      r.nodes.push_back({"n", slot->address, true, works ? Millis(0) : idle, cpus(2), works ? Resources{} : cpus(2)});
    }
    w.must(ReportRay{w.head(id).node, r}, World::device(w.head(id).node));
  }
  std::uint32_t wanted() { return w.cluster(id).wanted.at("workers"); }
};

TEST(Demand, WhatFitsIntoFreeRoomRaisesNothing) {
  Rig rig(World::spec(1, 4));
  rig.report({{cpus(1), 2}});
  EXPECT_EQ(rig.wanted(), 1U);
  rig.report({{cpus(1), 2}}, 1);
  EXPECT_EQ(rig.wanted(), 2U) << "the worker is busy: one more holds both";
  rig.report({{cpus(1), 2}}, 1);
  EXPECT_EQ(rig.wanted(), 2U) << "one is on its way already";
  rig.report({{cpus(1), 2}, {cpus(3), 1}}, 1);
  EXPECT_EQ(rig.wanted(), 2U) << "no worker could ever hold it";
}

TEST(Demand, StrictSpreadCountsOverAllBundlesOfTheGroup) {
  Rig rig(World::spec(1, 4));
  rig.report({{cpus(1), 1, true, 7}, {cpus(2), 1, true, 7}});
  EXPECT_EQ(rig.wanted(), 2U) << "two shapes of one group need two workers";
  Rig two(World::spec(1, 4));
  two.report({{cpus(1), 1, true, 7}, {cpus(1), 1, true, 8}});
  EXPECT_EQ(two.wanted(), 1U) << "two groups may share a worker";
}

TEST(Demand, AStandingRequestIsAFloorOfTheWholeCluster) {
  Rig rig(World::spec(1, 4));
  rig.report({{.bundle = cpus(2), .count = 3, .standing = true}}, 1);
  EXPECT_EQ(rig.wanted(), 3U) << "the busy one counts too";
  rig.w.rounds();
  ASSERT_EQ(rig.w.slots(rig.id, SlotRole::Worker).size(), 3U);
  rig.report({{.bundle = cpus(2), .count = 3, .standing = true}}, 0, 10min);
  EXPECT_EQ(rig.wanted(), 3U) << "they idle, but are asked for";
  rig.report({{.bundle = cpus(2), .count = 2, .standing = true}}, 0, 10min);
  EXPECT_EQ(rig.wanted(), 2U) << "one more than asked for leaves";
  rig.report({{.bundle = cpus(2), .count = 900, .standing = true}});
  EXPECT_EQ(rig.wanted(), 4U) << "never above max";
  rig.report({}, 0, 10min);
  EXPECT_EQ(rig.wanted(), 1U) << "idle ones leave, and those without a machine are not waited for";
}

TEST(Demand, ARequestThatWentAwayWithdrawsWhatHasNoMachineYet) {
  Rig rig(World::spec(1, 4), 2);
  rig.report({{cpus(2), 3}}, 1);
  EXPECT_EQ(rig.wanted(), 4U);
  rig.w.rounds();
  ASSERT_EQ(rig.w.slots(rig.id, SlotRole::Worker).size(), 1U) << "no machine is free";
  rig.report({{cpus(2), 1}}, 1);
  EXPECT_EQ(rig.wanted(), 2U);
  rig.report({}, 1);
  EXPECT_EQ(rig.wanted(), 1U);
}

TEST(Demand, WhatCanNeverFitKeepsNobody) {
  Rig rig(World::spec(1, 4));
  rig.report({{cpus(2), 2}}, 1);
  rig.w.rounds();
  ASSERT_EQ(rig.w.slots(rig.id, SlotRole::Worker).size(), 3U);
  rig.report({{cpus(64), 1}}, 0, 10min);
  EXPECT_EQ(rig.wanted(), 1U) << "a task for 64 CPUs is no reason to keep idle workers of 2";
}

TEST(Demand, MaxWorkersBoundsAllGroupsTogether) {
  ClusterSpec spec = World::spec(1, 4);
  spec.groups.push_back(spec.groups[0]);
  spec.groups[1].name = "more", spec.groups[1].min = 0;
  spec.max_workers = 3;
  Rig rig(spec, 9);
  rig.report({{cpus(2), 50}}, 1);
  EXPECT_EQ(rig.w.cluster(rig.id).wanted.at("workers") + rig.w.cluster(rig.id).wanted.at("more"), 3U);
  spec.idle_timeout = 5min, spec.max_workers = 2;
  rig.w.must(UpdateCluster{rig.id, spec, 0}, rig.w.user());
  EXPECT_EQ(rig.w.cluster(rig.id).wanted.at("workers") + rig.w.cluster(rig.id).wanted.at("more"), 2U);
  spec.groups[0].min = 3;
  EXPECT_EQ(rig.w.run(UpdateCluster{rig.id, spec, 0}, rig.w.user()).error().field, "spec.groups");
}

}  // namespace
}  // namespace muster::control
