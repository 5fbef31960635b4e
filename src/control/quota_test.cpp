// What a project and its organisation may hold: refused where it never fits, waiting where it does not fit now, and
// never exceeded, whatever happens in between.
#include "control/quota.h"

#include "control/control_world.h"
#include "control/mutants.h"

namespace muster::control {
namespace {

using namespace std::chrono_literals;

struct QuotaWorld : World {
  explicit QuotaWorld(int machines = 8, int gpus = 0) {
    for (int i = 0; i < machines; ++i) enrol("m" + std::to_string(i), gpus);
  }
  void limit(Quota quota) { must(SetQuota{{}, project, quota}); }
  void limit_org(Quota quota) { must(SetQuota{tenant, {}, quota}); }
  ClusterId ask(const std::string& name, ClusterSpec s, ProjectId in = {}) {
    s.name = name;
    return ClusterId::parse(must(CreateCluster{in ? in : project, s}, user()).id).value();
  }
  std::string reason(ClusterId id) const {
    for (const QuotaWait& wait : quota_waits(state))
      if (wait.cluster == id) return wait.reason.code + ": " + wait.reason.text;
    return {};
  }
  std::size_t workers(ClusterId id) const { return slots(id, SlotRole::Worker).size(); }
  // What Ray says: every worker is busy, and this much waits.
  void demand(ClusterId id, std::uint32_t tasks) {
    RayReport r{id, head(id).id, {}, {{{.cpu_milli = 2000}, tasks}}};
    for (const Slot* slot : slots(id, SlotRole::Worker))
      r.nodes.push_back({"n", slot->address, true, Millis(0), {.cpu_milli = 2000}, {}});
    must(ReportRay{head(id).node, r}, device(head(id).node));
  }
};

TEST(Quota, WhatNeverFitsIsRefusedAndTheLimitNamed) {
  QuotaWorld w;
  w.limit({0, 4000, 0});
  ClusterSpec spec = World::spec(2, 2);  // 1 + 2 * 2 CPUs
  const auto refused = w.run(CreateCluster{w.project, spec}, w.user());
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, Code::FailedPrecondition);
  EXPECT_EQ(refused.error().field, "spec");
  EXPECT_EQ(refused.error().message,
            "quota_exceeded: the cluster needs 5 CPUs and the quota of project default allows 4; ask for less, or have "
            "the quota raised");
  w.limit({});
  w.limit_org({3, 0, 0});
  spec.groups[0].request.resources.gpus = 2;
  EXPECT_NE(w.run(CreateCluster{w.project, spec}, w.user())
                .error()
                .message.find("needs 4 GPUs and the quota of organisation lab allows 3"),
            std::string::npos);
  JobSpec job;
  job.name = "train", job.entrypoint = "x", job.ephemeral = true, job.cluster_spec = spec;
  EXPECT_EQ(w.run(CreateJob{w.project, job}, w.user()).error().field, "spec.cluster_spec");
  spec.groups[0].min = 1;
  const ClusterId id = w.ask("fits", spec);
  spec.name = "fits", spec.groups[0].min = 2;
  EXPECT_EQ(w.run(UpdateCluster{id, spec, 0}, w.user()).error().code, Code::FailedPrecondition);
}

TEST(Quota, WhatDoesNotFitNowWaitsUntilAnotherEnds) {
  QuotaWorld w;
  w.limit({0, 0, 1});
  const ClusterId first = w.ask("first", World::spec(1, 1)), second = w.ask("second", World::spec(1, 1));
  w.rounds();
  EXPECT_EQ(w.cluster(first).state, ClusterState::Running);
  EXPECT_EQ(w.cluster(second).state, ClusterState::Queued);
  EXPECT_EQ(w.reason(second), "quota: needs 1 cluster more and project default holds 1 of the 1 that its quota allows");
  EXPECT_EQ(quota_waits(w.state).at(0).reason.params, (std::map<std::string, std::string>{{"resource", "clusters"},
                                                                                          {"scope", "project"},
                                                                                          {"name", "default"},
                                                                                          {"needed", "1"},
                                                                                          {"limit", "1"},
                                                                                          {"held", "1"}}));
  EXPECT_EQ(w.reason(first), "");
  w.must(StopCluster{first, ""}, w.user());
  w.rounds();
  EXPECT_EQ(w.cluster(second).state, ClusterState::Running);
  EXPECT_EQ(w.reason(second), "");
}

TEST(Quota, MachinesCountUntilTheirLeaseEnded) {
  QuotaWorld w;
  w.limit({0, 3500, 0});
  const ClusterId first = w.ask("first", World::spec(1, 1)), second = w.ask("second", World::spec(1, 1));
  w.rounds();
  const NodeId head = w.head(first).node;
  w.silent.insert(head);
  w.must(StopCluster{first, ""}, w.user());
  w.rounds();
  EXPECT_EQ(w.cluster(second).state, ClusterState::Queued) << "the head was told to stop and has not confirmed it";
  EXPECT_EQ(held_of(w.state, w.project).cpu_milli, 1000);
  EXPECT_EQ(w.reason(second), "quota: needs 3 CPUs more and project default holds 1 of the 3.5 that its quota allows");
  w.silent.clear();
  w.rounds();
  EXPECT_EQ(w.cluster(second).state, ClusterState::Running);
}

TEST(Quota, BoundsAutoscalingAndSpares) {
  QuotaWorld w;
  w.limit({0, 5000, 0});
  const ClusterId id = w.ask("demo", World::spec(1, 6));
  w.rounds();
  w.demand(id, 4);
  EXPECT_EQ(w.cluster(id).wanted.at("workers"), 5U);
  w.rounds();
  EXPECT_EQ(w.workers(id), 2U);
  EXPECT_EQ(w.reason(id), "quota: needs 2 CPUs more and project default holds 5 of the 5 that its quota allows");
  ClusterSpec with_spare = w.cluster(id).spec;
  with_spare.spares = 1;
  w.must(UpdateCluster{id, with_spare, 0}, w.user());
  w.rounds();
  EXPECT_EQ(w.slots(id, SlotRole::Spare).size(), 0U) << "spares are machines like any other";
  w.limit({0, 9000, 0});
  w.rounds();
  EXPECT_EQ(w.workers(id), 4U);
  EXPECT_EQ(w.slots(id, SlotRole::Spare).size(), 0U);
  w.limit({});
  w.rounds();
  EXPECT_EQ(w.workers(id), 5U);
  EXPECT_EQ(w.slots(id, SlotRole::Spare).size(), 1U);
  EXPECT_EQ(w.reason(id), "");
}

TEST(Quota, GrowthTakesWhatStillFits) {
  QuotaWorld w(6, 2);
  ClusterSpec spec = World::spec(1, 3);
  spec.groups.push_back(spec.groups[0]);
  spec.groups[0].name = "gpu", spec.groups[0].min = 1, spec.groups[0].request.resources.gpus = 2;
  spec.groups[1].name = "cpu", spec.groups[1].min = 0;
  w.limit({2, 0, 0});
  const ClusterId id = w.ask("demo", spec);
  w.rounds();
  spec.name = "demo", spec.groups[1].min = 2;
  w.must(UpdateCluster{id, spec, 0}, w.user());
  RayReport r{id, w.head(id).id, {}, {{{.cpu_milli = 1000, .gpus = 1}, 4}}};
  w.must(ReportRay{w.head(id).node, r}, World::device(w.head(id).node));
  EXPECT_GT(w.cluster(id).wanted.at("gpu"), 1U);
  w.rounds();
  EXPECT_EQ(w.workers(id), 3U) << "no more GPUs, but the group without them grows";
  EXPECT_EQ(held_of(w.state, w.project).gpus, 2);
  EXPECT_EQ(w.reason(id), "quota: needs 2 GPUs more and project default holds 2 of the 2 that its quota allows");
}

TEST(Quota, TwoProjectsShareWhatTheirOrganisationMayHold) {
  QuotaWorld w;
  const ProjectId other = ProjectId::parse(w.must(CreateProject{w.tenant, "other"}).id).value();
  const OrgId foreign = OrgId::parse(w.must(CreateOrg{"else"}).id).value();
  const ProjectId theirs = ProjectId::parse(w.must(CreateProject{foreign, "default"}).id).value();
  w.limit_org({0, 6000, 0});
  const ClusterId first = w.ask("a", World::spec(1, 1)), second = w.ask("a", World::spec(1, 1), other),
                  third = w.ask("b", World::spec(1, 1), other);
  w.must(CreateCluster{theirs, World::spec(1, 1)});
  w.rounds();
  EXPECT_EQ(w.cluster(first).state, ClusterState::Running);
  EXPECT_EQ(w.cluster(second).state, ClusterState::Running);
  EXPECT_EQ(w.cluster(third).state, ClusterState::Queued);
  EXPECT_EQ(w.reason(third), "quota: needs 3 CPUs more and organisation lab holds 6 of the 6 that its quota allows");
  EXPECT_EQ(held_of(w.state, w.tenant), (Quota{0, 6000, 2}));
  EXPECT_EQ(held_of(w.state, foreign), (Quota{0, 3000, 1})) << "it has no quota and is held back by nobody's";
  w.must(StopCluster{first, ""}, w.user());
  w.rounds();
  EXPECT_EQ(w.cluster(third).state, ClusterState::Running) << "the room came from another project";
}

TEST(Quota, LoweringStopsNothingAndStartsNothing) {
  QuotaWorld w;
  const ClusterId id = w.ask("demo", World::spec(2, 4));
  w.rounds();
  const ClusterId waits = w.ask("later", World::spec(1, 1));
  w.limit({0, 3000, 0});
  w.demand(id, 3);
  w.rounds();
  EXPECT_EQ(w.cluster(id).state, ClusterState::Running);
  EXPECT_EQ(w.workers(id), 2U);
  EXPECT_EQ(w.cluster(waits).state, ClusterState::Queued);
  EXPECT_EQ(w.reason(waits), "quota: needs 3 CPUs more and project default holds 5 of the 3 that its quota allows");
  ClusterSpec spec = w.cluster(id).spec;
  spec.idle_timeout = 5min;
  EXPECT_TRUE(w.run(UpdateCluster{id, spec, 0}, w.user()).ok()) << "what runs may still be changed";
  w.limit({0, 2000, 0});
  EXPECT_EQ(w.reason(waits),
            "quota: needs 3 CPUs and the quota of project default allows 2; ask for less, or have the quota raised");
}

// The planner proposes both: each fits by itself.
TEST(Quota, IsCheckedAgainWhenAPlanIsCommitted) {
  QuotaWorld w;
  w.limit({0, 0, 1});
  const ClusterId first = w.ask("first", World::spec(1, 1)), second = w.ask("second", World::spec(1, 1));
  const auto groups = w.planner.plan({}, w.now.wall);
  ASSERT_EQ(groups.size(), 2U);
  w.must(ApplyPlan{groups});
  EXPECT_EQ(w.cluster(first).state, ClusterState::Starting);
  EXPECT_EQ(w.cluster(second).state, ClusterState::Queued);
  EXPECT_EQ(held_of(w.state, w.project).clusters, 1);
#ifdef MUSTER_MUTANTS
  set_mutant(mutants::kIgnoreQuota);
  w.must(ApplyPlan{groups});
  set_mutant("");
  EXPECT_EQ(w.cluster(second).state, ClusterState::Starting) << "nothing else held it back";
#endif
}

TEST(Quota, AWholeMachineThatIsTooLargeIsNotTaken) {
  QuotaWorld w(0);
  NodeFacts small, large;
  w.enrol("large0");
  large = w.state.nodes.begin()->second.facts;
  small = large, small.capacity.cpu_milli = 2000, small.hostname = "small";
  w.limit({0, 3000, 0});
  ClusterSpec spec = World::spec(0, 0);
  spec.groups.clear();
  spec.head = {};
  spec.head.whole_machine = true;
  const ClusterId id = w.ask("demo", spec);
  w.rounds();
  EXPECT_EQ(w.cluster(id).state, ClusterState::Queued);
  EXPECT_EQ(w.reason(id),
            "quota: needs 4 CPUs and the quota of project default allows 3; ask for less, or have the "
            "quota raised");
  EXPECT_EQ(w.count<BackoffSet>(), 0) << "it is not even proposed";
  const NodeId fits = w.enrol("small", small, w.supplier);
  w.rounds();
  EXPECT_EQ(w.cluster(id).state, ClusterState::Running) << "a machine came that is small enough";
  EXPECT_EQ(held_of(w.state, w.project).cpu_milli, 2000);
  // The small one is busy with it: the next is offered the large one, which is refused and left alone for a minute.
  w.limit({0, 5000, 0});
  const ClusterId next = w.ask("next", spec);
  w.rounds();
  EXPECT_EQ(w.cluster(next).state, ClusterState::Queued);
  EXPECT_EQ(w.count<BackoffSet>(), 1) << "the machine is not held for it again and again";
  EXPECT_EQ(w.head(id).node, fits);
  w.must(StopCluster{id, ""}, w.user());
  w.rounds();
  EXPECT_EQ(w.cluster(next).state, ClusterState::Running);
  EXPECT_EQ(w.head(next).node, fits);
}

TEST(Quota, WhoMaySetIt) {
  QuotaWorld w(0);
  const OrgId foreign = OrgId::parse(w.must(CreateOrg{"else"}).id).value();
  const ProjectId theirs = ProjectId::parse(w.must(CreateProject{foreign, "default"}).id).value();
  const Actor op = w.as(Role::Operator, {}), mine = w.user(), hall = w.as(Role::Supplier, w.supplier);
  const SetQuota of_project{{}, w.project, {1, 0, 0}}, of_org{w.tenant, {}, {1, 0, 0}};
  EXPECT_TRUE(w.run(of_project, mine).ok());
  EXPECT_EQ(w.run(of_org, mine).error().code, Code::PermissionDenied) << "what an operator allowed binds its tenant";
  EXPECT_TRUE(w.run(of_org, op).ok());
  EXPECT_TRUE(w.run(SetQuota{{}, theirs, {1, 0, 0}}, op).ok());
  EXPECT_EQ(w.run(SetQuota{{}, theirs, {9, 0, 0}}, mine).error().code, Code::NotFound);
  EXPECT_FALSE(w.run(of_project, hall).ok());
  EXPECT_FALSE(w.run(of_project, w.as(Role::Auditor, {})).ok());
  EXPECT_EQ(w.run(SetQuota{{}, ProjectId{77}, {}}, op).error().code, Code::NotFound);
  EXPECT_EQ(w.run(SetQuota{OrgId{77}, {}, {}}, op).error().code, Code::NotFound);
  for (const Quota bad : {Quota{-1, 0, 0}, Quota{0, std::int64_t{1} << 62, 0}, Quota{0, 0, -5}})
    EXPECT_EQ(w.run(SetQuota{{}, w.project, bad}, op).error().code, Code::InvalidArgument);
  EXPECT_EQ(w.state.projects.at(w.project).quota, (Quota{1, 0, 0}));
  const int events = w.count<QuotaSet>();
  EXPECT_TRUE(w.run(of_project, mine).ok());
  EXPECT_EQ(w.count<QuotaSet>(), events) << "nothing changed, nothing is written";
}

}  // namespace
}  // namespace muster::control
