// Rights for a time, as the core decides about them.
#include <gtest/gtest.h>

#include "control/control_world.h"

namespace muster::control {
namespace {

struct GrantWorld : World {
  OrgId other = OrgId::parse(must(CreateOrg{"other"}).id).value();
  PrincipalId bob = PrincipalId::parse(must(CreatePrincipal{"bob", Role::Tenant, other}).id).value();
  PrincipalId root = PrincipalId::parse(must(CreatePrincipal{"root", Role::Operator, {}}).id).value();
  ClusterId cluster = ClusterId::parse(must(CreateCluster{project, spec()}, user()).id).value();
  Actor guest() const { return as(Role::Tenant, other, bob); }
  Actor staff() const { return as(Role::Operator, {}, root); }
  GrantAccess gift(Right right, Millis lifetime = 1h) const {
    return {false, {}, cluster, bob, {}, right, "help", lifetime};
  }
  GrantAccess glass(Right right = Right::Exec) const {
    return {true, {}, cluster, {}, {}, right, "incident 4711: runaway", 30min};
  }
};

TEST(Grants, AreGivenByTheOwnerAndEndByThemselves) {
  GrantWorld w;
  EXPECT_EQ(w.run(StopCluster{w.cluster, "x"}, w.guest()).error().code, Code::NotFound);
  EXPECT_FALSE(w.run(w.gift(Right::Manage), w.guest()).ok()) << "not by who wants it";
  EXPECT_FALSE(w.run(w.gift(Right::Manage), w.staff()).ok()) << "operators have break-glass, with a reason";
  ASSERT_TRUE(w.run(w.gift(Right::Look), w.user()).ok());
  EXPECT_EQ(w.run(StopCluster{w.cluster, "x"}, w.guest()).error().code, Code::PermissionDenied) << "he only looks";
  ASSERT_TRUE(w.run(w.gift(Right::Submit, 2h), w.user()).ok());
  JobSpec job;
  job.name = "theirs", job.entrypoint = "true", job.cluster = "demo";
  EXPECT_TRUE(w.run(CreateJob{w.project, job}, w.guest()).ok());
  job.ephemeral = true, job.cluster_spec = World::spec(), job.cluster_spec.name = "own", job.cluster.clear();
  EXPECT_FALSE(w.run(CreateJob{w.project, job}, w.guest()).ok()) << "no cluster of their own on foreign quota";
  EXPECT_TRUE(decode_state(encode_state(w.state)).value() == w.state);
  w.now.wall = w.now.wall + 61min;
  w.must(Tick{});
  EXPECT_EQ(w.state.grants.size(), 1u);
  EXPECT_EQ(w.count<GrantEnded>(), 1);
  w.now.wall = w.now.wall + 60min;
  job = {}, job.name = "late", job.entrypoint = "true", job.cluster = "demo";
  EXPECT_FALSE(w.run(CreateJob{w.project, job}, w.guest()).ok()) << "by the clock, before its event";
  w.must(Tick{});
  EXPECT_TRUE(w.state.grants.empty());
  EXPECT_TRUE(w.state.grants_to.empty() && w.state.grants_of_org.empty());
}

TEST(Grants, ToAnOrganisationAndOfAProject) {
  GrantWorld w;
  GrantAccess all{false, w.project, {}, {}, w.other, Right::Manage, "", 24h};
  const auto made = w.run(all, w.user());
  ASSERT_TRUE(made.ok()) << made.error().message;
  EXPECT_TRUE(w.run(StopCluster{w.cluster, "x"}, w.as(Role::Tenant, w.other, PrincipalId{78})).ok());
  const GrantId id = GrantId::parse(made->id).value();
  EXPECT_FALSE(w.run(RevokeGrant{id}, w.guest()).ok()) << "one member does not speak for all";
  EXPECT_TRUE(w.run(RevokeGrant{id}, w.as(Role::Tenant, w.tenant, PrincipalId{77})).ok()) << "any member of the owner";
  EXPECT_EQ(w.run(RevokeGrant{id}, w.user()).error().code, Code::NotFound);
}

TEST(Grants, NobodyIsGivenWhatMakesNoSense) {
  GrantWorld w;
  const auto field = [&](GrantAccess c) { return w.run(c, w.user()).error().field; };
  GrantAccess c = w.gift(Right::Exec);
  c.lifetime = 91 * 24h;
  EXPECT_EQ(field(c), "lifetime");
  c.lifetime = 10s;
  EXPECT_EQ(field(c), "lifetime");
  EXPECT_EQ(field(w.gift(Right::None)), "right");
  c = w.gift(Right::Exec), c.to_org = w.other;
  EXPECT_EQ(field(c), "to") << "one of them";
  c = w.gift(Right::Exec), c.to = PrincipalId{999};
  EXPECT_EQ(field(c), "to");
  c.to = w.alice;
  EXPECT_EQ(field(c), "to") << "she may already";
  c.to = PrincipalId::parse(w.must(CreatePrincipal{"aud", Role::Auditor, w.other}).id).value();
  EXPECT_EQ(field(c), "to");
  c = w.gift(Right::Exec), c.cluster = ClusterId{999};
  EXPECT_EQ(w.run(c, w.user()).error().code, Code::NotFound);
  Actor program = w.user();
  program.subject.service = true;
  EXPECT_FALSE(w.run(w.gift(Right::Exec), program).ok()) << "programs give nothing away";
  const GrantId id = GrantId::parse(w.must(w.gift(Right::Exec), w.user()).id).value();
  EXPECT_EQ(w.run(RevokeGrant{id}, w.as(Role::Tenant, OrgId{99}, PrincipalId{98})).error().code, Code::NotFound);
  EXPECT_TRUE(w.run(RevokeGrant{id}, w.guest()).ok()) << "he gives it back";
}

TEST(BreakGlass, IsTakenByOperatorsForAReasonAndAShortTime) {
  GrantWorld w;
  EXPECT_FALSE(w.run(w.glass(), w.user()).ok());
  EXPECT_EQ(w.run(w.glass(), w.guest()).error().code, Code::NotFound);
  EXPECT_FALSE(w.run(w.glass(), w.as(Role::Auditor, {}, PrincipalId{77})).ok());
  GrantAccess c = w.glass();
  c.reason = "because";
  EXPECT_EQ(w.run(c, w.staff()).error().field, "reason");
  c = w.glass(), c.lifetime = 5h;
  EXPECT_EQ(w.run(c, w.staff()).error().field, "lifetime");
  c = w.glass(), c.to = w.bob;
  EXPECT_EQ(w.run(c, w.staff()).error().field, "to") << "for himself alone";
  EXPECT_EQ(w.run(w.glass(Right::Manage), w.staff()).error().field, "right");
  const GrantId id = GrantId::parse(w.must(w.glass(), w.staff()).id).value();
  const Grant& grant = w.state.grants.at(id);
  EXPECT_TRUE(grant.break_glass);
  EXPECT_EQ(grant.to, w.root);
  EXPECT_EQ(grant.owner, w.tenant);
  EXPECT_EQ(grants_for(w.state, w.root, {}, w.now.wall).size(), 1u);
  EXPECT_TRUE(grants_for(w.state, w.root, {}, w.now.wall + 31min).empty());
  EXPECT_FALSE(w.run(RevokeGrant{id}, w.user()).ok()) << "the owner sees it and does not end it";
  w.now.wall = w.now.wall + 31min;
  w.must(Tick{});
  EXPECT_TRUE(w.state.grants.empty());
}

TEST(Grants, RaiseAnOldJournalToTheFormatThatKeepsThem) {
  GrantWorld w;
  w.state.format_version = 7;
  w.must(w.gift(Right::Look), w.user());
  EXPECT_EQ(w.state.format_version, kAccessFormat);
}

}  // namespace
}  // namespace muster::control
