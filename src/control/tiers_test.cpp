#include <gtest/gtest.h>

#include "control/control_world.h"

namespace muster::control {
namespace {

TEST(TierShare, WhoMaySetItAndWhatItMayBe) {
  World w;
  const auto set = [&](const TierShare& row, const Actor& actor) { return w.run(SetTierShare{row}, actor); };
  const Actor boss = w.as(Role::Operator, {});
  for (const Actor& actor : {w.user(), w.as(Role::Supplier, w.supplier), w.as(Role::Auditor, {})})
    EXPECT_FALSE(set({3, 100}, actor).ok());
  EXPECT_EQ(set({10, 100}, boss).error().field, "tier");
  EXPECT_EQ(set({3, 1'001}, boss).error().field, "guaranteePermille");
  ASSERT_TRUE(set({3, 400}, boss).ok());
  ASSERT_TRUE(set({0, 600}, boss).ok());
  EXPECT_EQ(set({1, 1}, boss).error().field, "guaranteePermille") << "there is no more";
  EXPECT_EQ(set({1, 0xffffffffU}, boss).error().field, "guaranteePermille");
  const std::size_t events = w.journal.size();
  ASSERT_TRUE(set({3, 400}, boss).ok());
  EXPECT_EQ(w.journal.size(), events) << "nothing changed";
  ASSERT_TRUE(set({3, 500}, boss).error().field == "guaranteePermille" && set({3, 200}, boss).ok());
  EXPECT_TRUE(decode_state(encode_state(w.state, kFormatVersion)).value() == w.state);
  ASSERT_TRUE(set({0, 0}, boss).ok());
  EXPECT_EQ(w.state.tier_shares, (std::map<std::uint8_t, std::uint32_t>{{3, 200}}));
}

TEST(TierShare, RaisesAnOldJournalToTheFormatThatKeepsIt) {
  World w;
  w.state.format_version = 7;
  w.must(SetTierShare{{3, 100}});
  EXPECT_EQ(w.state.format_version, kTierFormat);
}

TEST(TierShare, TheTierStartsBeforeBetterOnesUntilItHoldsThat) {
  for (const std::uint32_t permille : {0U, 300U}) {
    World w;
    w.must(SetTierShare{{3, permille}});
    const auto queued = [&](const std::string& name, std::uint8_t tier) {
      ClusterSpec s = World::spec(0, 1);
      s.name = name, s.tier = tier, s.head.resources.cpu_milli = 3'000;
      return ClusterId::parse(w.must(CreateCluster{w.project, s}, w.user()).id).value();
    };
    const ClusterId one = queued("one", 1), two = queued("two", 1), cheap = queued("cheap", 3),
                    cheaper = queued("cheaper", 3);
    for (const char* name : {"a", "b"}) w.enrol(name);
    w.rounds();
    const auto started = [&](ClusterId id) { return w.cluster(id).state != ClusterState::Queued; };
    EXPECT_TRUE(started(one));
    EXPECT_EQ(started(two), permille == 0);
    EXPECT_EQ(started(cheap), permille != 0) << "two machines: it held nothing, and three of eight CPUs are enough";
    EXPECT_FALSE(started(cheaper));
    scheduler::Scheduler rebuilt;
    for (const auto& change : planner_snapshot(w.state)) rebuilt.apply(change);
    EXPECT_EQ(rebuilt.held_by_tiers(), w.planner.held_by_tiers());
    EXPECT_EQ(rebuilt.held_by_tiers().at(3) > 0, permille != 0);
  }
}

}  // namespace
}  // namespace muster::control
