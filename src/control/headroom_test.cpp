#include <gtest/gtest.h>

#include "control/control_world.h"

namespace muster::control {
namespace {

ClusterSpec kept_spec(const std::string& name, std::uint8_t tier, std::uint32_t workers, std::int64_t cpus = 3) {
  ClusterSpec s = World::spec(workers, std::max(workers, 1U));
  s.name = name, s.tier = tier;
  s.head.resources.cpu_milli = cpus * 1000, s.groups[0].request.resources.cpu_milli = cpus * 1000;
  return s;
}
std::string queued(World& w, const ClusterSpec& spec) {
  return w.must(CreateCluster{w.project, spec}, w.user()).id;
}

TEST(Headroom, WhoMaySetItAndWhatItMayBe) {
  World w;
  const auto set = [&](const Headroom& row, const Actor& actor) { return w.run(SetHeadroom{row}, actor); };
  const Actor boss = w.as(Role::Operator, {});
  for (const Actor& actor : {w.user(), w.as(Role::Supplier, w.supplier), w.as(Role::Auditor, {})})
    EXPECT_FALSE(set({"A100", 1, 1}, actor).ok());
  EXPECT_EQ(set({"A100", 1, 10}, boss).error().field, "tier");
  EXPECT_EQ(set({"A100", kHeadroomMachinesMax + 1, 1}, boss).error().field, "machines");
  EXPECT_EQ(set({std::string(65, 'x'), 1, 1}, boss).error().field, "gpuModel");
  EXPECT_EQ(set({"a\nb", 1, 1}, boss).error().field, "gpuModel");
  ASSERT_TRUE(set({"A100", 2, 1}, boss).ok());
  const std::size_t events = w.journal.size();
  ASSERT_TRUE(set({"A100", 2, 1}, boss).ok());
  EXPECT_EQ(w.journal.size(), events) << "nothing changed";
  EXPECT_EQ(w.state.headroom.at("A100"), (Headroom{"A100", 2, 1}));
  for (std::size_t i = 1; i < kHeadroomModelsMax; ++i) ASSERT_TRUE(set({"m" + std::to_string(i), 1, 1}, boss).ok());
  EXPECT_EQ(set({"one more", 1, 1}, boss).error().code, Code::ResourceExhausted);
  ASSERT_TRUE(set({"A100", 0, 1}, boss).ok());
  EXPECT_FALSE(w.state.headroom.contains("A100"));
  EXPECT_TRUE(decode_state(encode_state(w.state, kFormatVersion)).value() == w.state);
}

TEST(Headroom, RaisesAnOldJournalToTheFormatThatKeepsIt) {
  World w;
  w.state.format_version = 5;
  w.must(SetHeadroom{{"", 1, 1}});
  EXPECT_EQ(w.state.format_version, kHeadroomFormat);
}

TEST(Headroom, ALostWorkerOfItsTierFindsAPlaceAndAStartDoesNot) {
  World w;
  for (const char* name : {"a", "b", "c", "d"}) w.enrol(name);
  w.must(SetHeadroom{{"", 1, 1}});
  const ClusterId paid = w.up(kept_spec("paid", 1, 2));
  const ClusterId other = ClusterId::parse(queued(w, kept_spec("other", 1, 0, 2))).value();
  w.rounds();
  EXPECT_EQ(w.cluster(other).state, ClusterState::Queued) << "it would need the last free machine";
  const auto view = w.planner.queue_of(other, w.now.wall);
  EXPECT_EQ(view.reason.code, "held_for_failover") << view.reason.text;
  scheduler::Scheduler rebuilt;
  for (const auto& change : planner_snapshot(w.state)) rebuilt.apply(change);
  EXPECT_EQ(rebuilt.queue_of(other, w.now.wall).reason, view.reason);
  const NodeId lost = w.lease_of(w.slots(paid, SlotRole::Worker).at(0)).node;
  w.silent.insert(lost);
  w.must(NodeSuspect{lost});
  w.must(NodeLost{lost});
  w.rounds();
  EXPECT_EQ(w.slots(paid, SlotRole::Worker).size(), 2U);
  for (const Slot* slot : w.slots(paid, SlotRole::Worker)) EXPECT_NE(w.lease_of(slot).node, lost);
  EXPECT_EQ(w.cluster(other).state, ClusterState::Queued);
}

TEST(Headroom, ALaterTierIsNotEntitled) {
  World w;
  for (const char* name : {"a", "b", "c", "d"}) w.enrol(name);
  w.must(SetHeadroom{{"", 1, 1}});
  const ClusterId cheap = w.up(kept_spec("cheap", 2, 2));
  const NodeId lost = w.lease_of(w.slots(cheap, SlotRole::Worker).at(0)).node;
  w.silent.insert(lost);
  w.must(NodeSuspect{lost});
  w.must(NodeLost{lost});
  w.rounds();
  const auto on_free = [&] {
    int n = 0;
    for (const Slot* slot : w.slots(cheap, SlotRole::Worker)) n += w.lease_of(slot).node == lost ? 0 : 1;
    return n;
  };
  EXPECT_EQ(on_free(), 1);
  EXPECT_EQ(w.planner.queue_of(cheap, w.now.wall).reason.code, "held_for_failover");
  w.must(SetHeadroom{{"", 0, 0}});
  w.rounds();
  EXPECT_EQ(on_free(), 2);
}

// The planner did not know yet what is kept back when it proposed.
TEST(Headroom, TheCoreLooksAgain) {
  World w;
  for (const char* name : {"a", "b"}) w.enrol(name);
  const ClusterId id = ClusterId::parse(queued(w, kept_spec("one", 1, 1))).value();
  const auto groups = w.planner.plan({}, w.now.wall);
  ASSERT_EQ(groups.size(), 1U);
  w.must(SetHeadroom{{"", 1, 1}});
  const std::size_t before = w.journal.size();
  w.must(ApplyPlan{groups});
  EXPECT_EQ(w.journal.size(), before);
  w.must(SetHeadroom{{"", 0, 1}});
  w.must(ApplyPlan{groups});
  EXPECT_EQ(w.cluster(id).state, ClusterState::Starting);
}

}  // namespace
}  // namespace muster::control
