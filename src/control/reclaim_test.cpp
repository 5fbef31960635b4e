// Weights and guarantees in the core: who may set them, how they are kept, and what is taken back because of them.
#include "control/reclaim.h"

#include <gtest/gtest.h>

#include "control/control_world.h"
#include "control/life.h"

namespace muster::control {
namespace {

ClusterSpec wide(const std::string& name, std::int64_t head_cpus, std::int64_t worker_cpus, std::uint8_t tier = 2) {
  ClusterSpec s = World::spec();
  s.name = name, s.tier = tier;
  s.head.resources.cpu_milli = head_cpus * 1000, s.groups[0].request.resources.cpu_milli = worker_cpus * 1000;
  return s;
}

// Three machines of four CPUs: the head of the lab's cluster takes one, its workers two each; the school's needs three
// everywhere, in the same tier.
struct Two {
  World w;
  OrgId school;
  ProjectId theirs;
  ClusterId holds, waits;
  Two() {
    for (const char* name : {"a", "b", "c"}) w.enrol(name);
    school = OrgId::parse(w.must(CreateOrg{"school"}).id).value();
    theirs = ProjectId::parse(w.must(CreateProject{school, "main"}).id).value();
    holds = w.up(wide("holds", 1, 2));
    waits = ClusterId::parse(w.must(CreateCluster{theirs, wide("waits", 3, 3)}, w.as(Role::Tenant, school)).id).value();
    w.pass(2min);
  }
  void guarantee(OrgId org, std::int64_t cpus, std::int64_t weight = 100) {
    w.must(SetQuota{org, {}, {}, Share{weight, 0, cpus * 1000}});
  }
  std::size_t told() {
    std::size_t n = 0;
    for (const Slot* slot : w.slots(holds, SlotRole::Worker)) n += w.lease_of(slot).reason == kPreempted ? 1 : 0;
    return n;
  }
};

TEST(Reclaim, WhatIsBeyondAGuaranteeMakesRoomForOne) {
  Two t;
  World& w = t.w;
  w.plan();
  EXPECT_EQ(t.told(), 0U) << "nobody is guaranteed anything";
  t.guarantee(t.school, 8);
  w.plan();
  EXPECT_EQ(t.told(), 0U) << "it needs nine";
  t.guarantee(t.school, 9);
  t.guarantee(w.tenant, 2);
  w.plan();
  EXPECT_EQ(t.told(), 0U) << "the lab would have less than its two";
  t.guarantee(w.tenant, 1);
  w.plan();
  EXPECT_EQ(t.told(), 2U);
  EXPECT_EQ(w.planner.queue_of(t.waits, w.now.wall).reason.code, "making_room");
  w.rounds();
  EXPECT_EQ(w.cluster(t.waits).state, ClusterState::Running);
  EXPECT_EQ(w.cluster(t.holds).state, ClusterState::Running) << "its head stays";
}

TEST(Reclaim, TheCoreLooksAgain) {
  Two t;
  World& w = t.w;
  t.guarantee(t.school, 9);
  const auto groups = w.planner.plan({}, w.now.wall);
  ASSERT_EQ(groups.size(), 1U);
  ASSERT_EQ(groups[0].victims.size(), 2U);
  const auto refused = [&](const char* why) {
    const std::size_t before = w.journal.size();
    w.must(ApplyPlan{groups});
    EXPECT_EQ(w.journal.size(), before) << why;
  };
  t.guarantee(w.tenant, 2);
  refused("the lab is guaranteed more by now");
  t.guarantee(w.tenant, 0);
  t.guarantee(t.school, 8);
  refused("the school is guaranteed less by now");
  w.must(SetQuota{t.school, {}, {}, Share{100, 4, 0}});
  refused("GPUs are guaranteed, and it takes none");
  t.guarantee(t.school, 9);
  w.must(ApplyPlan{groups});
  EXPECT_EQ(t.told(), 2U);
}

TEST(Reclaim, ProjectsOfOneOrganisationHaveTheirsFromEachOther) {
  World w;
  for (const char* name : {"a", "b", "c"}) w.enrol(name);
  const ProjectId side = ProjectId::parse(w.must(CreateProject{w.tenant, "side"}).id).value();
  const ClusterId holds = w.up(wide("holds", 1, 2));
  const ClusterId waits = ClusterId::parse(w.must(CreateCluster{side, wide("waits", 3, 3)}, w.user()).id).value();
  w.pass(2min);
  w.must(SetQuota{w.tenant, {}, {}, Share{100, 0, 9'000}});
  w.plan();
  EXPECT_EQ(w.lease_of(w.slots(holds, SlotRole::Worker).at(0)).want, LeaseWant::Run);
  w.must(SetQuota{{}, side, {}, Share{100, 0, 9'000}});
  w.plan();
  EXPECT_EQ(w.lease_of(w.slots(holds, SlotRole::Worker).at(0)).reason, kPreempted);
  w.rounds();
  EXPECT_EQ(w.cluster(waits).state, ClusterState::Running);
}

TEST(Shares, WhoMaySetThemAndWhatTheyMayBe) {
  World w;
  const Actor op = w.as(Role::Operator, {});
  const SetQuota of_project{{}, w.project, {2, 0, 0}, Share{200, 0, 0}};
  EXPECT_EQ(w.run(of_project, w.user()).error().code, Code::PermissionDenied);
  EXPECT_TRUE(w.run(of_project, op).ok());
  EXPECT_TRUE(w.run(SetQuota{{}, w.project, {3, 0, 0}}, w.user()).ok()) << "the limit is its owner's to set";
  EXPECT_EQ(w.state.projects.at(w.project).share.weight, 200) << "and leaves the share as it is";
  EXPECT_TRUE(w.run(SetQuota{{}, w.project, {1, 0, 0}, Share{200, 0, 0}}, w.user()).ok()) << "so does the same share";
  for (const Share bad : {Share{0, 0, 0}, Share{10'001, 0, 0}, Share{-1, 0, 0}, Share{100, -1, 0},
                          Share{100, 0, std::int64_t{1} << 62}, Share{100, 2, 0} /* more than the limit */})
    EXPECT_EQ(w.run(SetQuota{w.tenant, {}, {1, 0, 0}, bad}, op).error().code, Code::InvalidArgument);
  // A project's part is of its organisation's.
  EXPECT_EQ(w.run(SetQuota{{}, w.project, {}, Share{100, 1, 0}}, op).error().field, "share.guaranteeGpus");
  w.must(SetQuota{w.tenant, {}, {}, Share{100, 3, 8'000}}, op);
  w.must(SetQuota{{}, w.project, {}, Share{100, 2, 0}}, op);
  const ProjectId side = ProjectId::parse(w.must(CreateProject{w.tenant, "side"}).id).value();
  EXPECT_EQ(w.run(SetQuota{{}, side, {}, Share{100, 2, 0}}, op).error().code, Code::FailedPrecondition);
  EXPECT_EQ(w.run(SetQuota{w.tenant, {}, {}, Share{100, 1, 0}}, op).error().code, Code::FailedPrecondition);
  w.must(SetQuota{{}, side, {}, Share{100, 1, 8'000}}, op);
  const int events = w.count<QuotaSet>();
  w.must(SetQuota{{}, side, {}, Share{100, 1, 8'000}}, op);
  EXPECT_EQ(w.count<QuotaSet>(), events) << "nothing changed, nothing is written";
  const auto again = decode_state(encode_state(w.state));
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(again->projects.at(side).share, (Share{100, 1, 8'000}));
}

TEST(Shares, RaiseAnOldJournalToTheFormatThatKeepsThem) {
  World w;
  const auto first_of = [&](const Command& command, const Actor& actor) {
    w.state.format_version = 2;
    const std::size_t before = w.journal.size();
    w.must(command, actor);
    return std::pair(w.state.format_version, std::holds_alternative<FormatRaised>(w.journal.at(before)));
  };
  const Actor op = w.as(Role::Operator, {});
  EXPECT_EQ(first_of(SetQuota{w.tenant, {}, {5, 0, 0}}, op), std::pair(2U, false));
  EXPECT_EQ(first_of(SetQuota{w.tenant, {}, {5, 0, 0}, Share{150, 0, 0}}, op), std::pair(3U, true));
  ClusterSpec spec = World::spec(0, 0);
  EXPECT_EQ(first_of(CreateCluster{w.project, spec}, w.user()), std::pair(2U, false));
  spec.name = "apart", spec.policy = Policy::Spread;
  EXPECT_EQ(first_of(CreateCluster{w.project, spec}, w.user()), std::pair(3U, true));
  JobSpec job;
  job.name = "one", job.entrypoint = "true", job.ephemeral = true, job.cluster_spec = World::spec(0, 0);
  job.cluster_spec.name = "trusted", job.cluster_spec.min_trust = TrustTier::Verified;
  EXPECT_EQ(first_of(CreateJob{w.project, job}, w.user()), std::pair(3U, true));
}

TEST(Trust, AFloorHoldsInThePlannerAndAtCommit) {
  World w;
  const NodeId plain = w.enrol("plain"), known = w.enrol("known");
  w.must(SetNodeTier{known, TrustTier::Verified});
  ClusterSpec spec = World::spec(0, 0);
  spec.min_trust = TrustTier::Verified;
  const ClusterId id = ClusterId::parse(w.must(CreateCluster{w.project, spec}, w.user()).id).value();
  auto groups = w.planner.plan({}, w.now.wall);
  ASSERT_EQ(groups.size(), 1U);
  EXPECT_EQ(groups[0].places.at(0).node, known);
  auto forged = groups;
  forged[0].places[0].node = plain;
  w.must(ApplyPlan{forged});
  EXPECT_EQ(w.cluster(id).state, ClusterState::Queued) << "the core looks again";
  w.must(ApplyPlan{groups});
  EXPECT_EQ(w.cluster(id).state, ClusterState::Starting);
  ClusterSpec other = spec;
  other.policy = Policy::Pack;
  EXPECT_EQ(w.run(UpdateCluster{id, other, 0}, w.user()).error().field, "spec.policy");
  other = spec, other.min_trust = TrustTier::Platform;
  EXPECT_EQ(w.run(UpdateCluster{id, other, 0}, w.user()).error().field, "spec.min_trust");
}

TEST(Policies, ReachThePlannerWithTheSite) {
  World w;
  NodeFacts facts;
  facts.arch = "x86_64", facts.runtimes = {RuntimeKind::Docker}, facts.capacity.cpu_milli = 4000,
  facts.capacity.memory_bytes = std::int64_t{8} << 30;
  for (int i = 0; i < 6; ++i) {
    facts.hostname = "m" + std::to_string(i), facts.labels["site"] = i % 2 == 0 ? "north" : "south";
    w.enrol(facts.hostname, facts, w.supplier);
  }
  ClusterSpec spec = World::spec();
  spec.head.resources.cpu_milli = spec.groups[0].request.resources.cpu_milli = 4000;
  spec.policy = Policy::FastNetwork;
  w.must(CreateCluster{w.project, spec}, w.user());
  const auto groups = w.planner.plan({}, w.now.wall);
  ASSERT_EQ(groups.size(), 1U);
  std::set<std::string> sites;
  for (const auto& place : groups[0].places) sites.insert(w.state.nodes.at(place.node).facts.labels.at("site"));
  EXPECT_EQ(groups[0].places.size(), 3U);
  EXPECT_EQ(sites.size(), 1U);
}

TEST(Policies, WhatIsSaidOfLinksReachesThePlanner) {
  World w;
  NodeFacts facts;
  facts.arch = "x86_64", facts.runtimes = {RuntimeKind::Docker}, facts.capacity.cpu_milli = 4000,
  facts.capacity.memory_bytes = std::int64_t{8} << 30;
  for (int i = 0; i < 6; ++i) {
    facts.hostname = "m" + std::to_string(i);
    facts.labels["uplink-mbps"] = i % 2 == 0 ? "900" : i == 1 ? "9e9" : "8", facts.labels["downlink-mbps"] = "1000";
    w.enrol(facts.hostname, facts, w.supplier);
  }
  ClusterSpec spec = World::spec();
  spec.head.resources.cpu_milli = spec.groups[0].request.resources.cpu_milli = 4000;
  spec.policy = Policy::FastNetwork;
  w.must(CreateCluster{w.project, spec}, w.user());
  const auto groups = w.planner.plan({}, w.now.wall);
  ASSERT_EQ(groups.size(), 1U);
  ASSERT_EQ(groups[0].places.size(), 3U);
  for (const auto& place : groups[0].places)
    EXPECT_EQ(w.state.nodes.at(place.node).facts.labels.at("uplink-mbps"), "900") << "the slowest pair decides";
}

}  // namespace
}  // namespace muster::control
