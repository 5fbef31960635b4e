#include "control/control_world.h"
#include "control/mutants.h"

namespace muster::control {
namespace {

JobSpec job_spec(std::uint32_t retries = 0) {
  JobSpec s;
  s.name = "train", s.entrypoint = "python train.py", s.cluster = "demo", s.retries = retries;
  return s;
}
JobId submit(World& w, JobSpec spec) {
  return JobId::parse(w.must(CreateJob{w.project, std::move(spec)}, w.user()).id).value();
}

World& with_cluster(World& w) {
  for (const char* name : {"a", "b", "c"}) w.enrol(name);
  w.up(World::spec());
  return w;
}
std::vector<JobOrder> orders(const World& w, JobId id) {
  return desired_for(w.state, w.head(w.job(id).cluster).node).at(0).jobs;
}

TEST(Jobs, RunToTheirEnd) {
  World w;
  w.must(CreateCluster{w.project, World::spec()}, w.user());
  const JobId id = submit(w, job_spec());
  EXPECT_EQ(w.job(id).state, JobState::Queued) << "the cluster waits";
  for (const char* name : {"a", "b", "c"}) w.enrol(name);
  w.rounds();
  EXPECT_EQ(w.job(id).state, JobState::Starting);
  ASSERT_EQ(orders(w, id).size(), 1U);
  EXPECT_EQ(orders(w, id)[0].attempt, 1U);
  w.report_job(id, JobState::Running);
  EXPECT_EQ(w.job(id).state, JobState::Running);
  w.report_job(id, JobState::Succeeded, 0);
  EXPECT_EQ(w.job(id).state, JobState::Succeeded);
  EXPECT_EQ(w.job(id).exit_code, 0);
  EXPECT_EQ(w.job(id).log_bytes, 10U);
  EXPECT_TRUE(orders(w, id).empty());
  w.report_job(id, JobState::Failed, 1);
  EXPECT_EQ(w.job(id).state, JobState::Succeeded) << "an end is an end";
}

TEST(Jobs, RetryAndKeepTheExitCode) {
  World w;
  with_cluster(w);
  const JobId id = submit(w, job_spec(1));
  EXPECT_EQ(w.job(id).state, JobState::Starting) << "at once, the cluster runs";
  w.report_job(id, JobState::Running);
  w.report_job(id, JobState::Failed, 3, "driver_lost");
  EXPECT_EQ(w.job(id).state, JobState::Queued);
  w.pass(2s);
  EXPECT_EQ(w.job(id).state, JobState::Starting);
  EXPECT_EQ(w.job(id).attempt, 2U);
  w.must(ReportObserved{w.head(w.job(id).cluster).node, 0, {}, {{id, 1, JobState::Succeeded, 0, "", 0}}});
  EXPECT_EQ(w.job(id).state, JobState::Starting) << "the first attempt is history";
  w.report_job(id, JobState::Failed, 4, "driver_lost");
  EXPECT_EQ(w.job(id).state, JobState::Failed);
  EXPECT_EQ(w.job(id).exit_code, 4);
  EXPECT_EQ(w.job(id).reason, "driver_lost");
}

TEST(Jobs, TimeoutAndStop) {
  World w;
  with_cluster(w);
  JobSpec spec = job_spec(5);
  spec.timeout = 1min;
  const JobId slow = submit(w, spec), stopped = submit(w, job_spec(5)), stuck = submit(w, job_spec());
  for (const JobId id : {slow, stopped, stuck}) w.report_job(id, JobState::Running);
  w.pass(2min);
  EXPECT_EQ(w.job(slow).state, JobState::Stopping);
  w.must(StopJob{stopped}, w.user());
  w.must(StopJob{stuck}, w.user());
  for (const JobOrder& order : orders(w, slow)) EXPECT_TRUE(order.stop);
  w.report_job(slow, JobState::Stopped);
  w.report_job(stopped, JobState::Failed, 143);
  EXPECT_EQ(w.job(slow).state, JobState::Failed);
  EXPECT_EQ(w.job(slow).reason, "timeout");
  EXPECT_EQ(w.job(stopped).state, JobState::Stopped);
  w.pass(2min);
  EXPECT_EQ(w.job(stuck).state, JobState::Stopped) << "nobody answers: given up";
}

TEST(Jobs, EphemeralClustersLiveAndDieWithTheirJob) {
  World w;
  for (const char* name : {"a", "b", "c"}) w.enrol(name);
  JobSpec spec = job_spec();
  spec.cluster.clear(), spec.ephemeral = true, spec.cluster_spec = World::spec();
  const JobId id = submit(w, spec);
  w.rounds();
  w.report_job(id, JobState::Running);
  const ClusterId cluster = w.job(id).cluster;
  w.report_job(id, JobState::Succeeded, 0);
  EXPECT_EQ(w.cluster(cluster).state, ClusterState::Stopping);
  w.rounds();
  EXPECT_EQ(w.cluster(cluster).state, ClusterState::Stopped);
}

TEST(Jobs, EndWithTheirCluster) {
  World w;
  with_cluster(w);
  const JobId id = submit(w, job_spec(3));
  w.must(StopCluster{w.job(id).cluster, ""}, w.user());
  EXPECT_EQ(w.job(id).state, JobState::Failed);
  EXPECT_EQ(w.job(id).reason, "cluster_gone");
  EXPECT_EQ(w.run(CreateJob{w.project, job_spec()}, w.user()).error().code, Code::FailedPrecondition);
}

TEST(Jobs, ManyJobsEndInBoundedSteps) {
  World w;
  w.must(CreateCluster{w.project, World::spec()}, w.user());
  for (int i = 0; i < 700; ++i) submit(w, job_spec());
  const auto before = w.journal.size();
  w.must(StopCluster{w.state.clusters.begin()->first, ""}, w.user());
  EXPECT_LT(w.journal.size() - before, 600U);
  w.pass(1s), w.pass(1s);
  EXPECT_TRUE(w.state.queued_jobs.empty());
}

TEST(Jobs, OnlySoManyAtOnce) {
  World w;
  with_cluster(w);
  for (int i = 0; i < 70; ++i) submit(w, job_spec());
  EXPECT_EQ(w.state.active_jobs.size(), 64U);
  EXPECT_EQ(w.state.queued_jobs.size(), 6U);
  w.report_job(w.state.active_jobs.begin()->second, JobState::Succeeded, 0);
  EXPECT_EQ(w.state.active_jobs.size(), 64U);
}

TEST(Idempotency, TheSameKeyGivesTheSameAnswer) {
  World w;
  with_cluster(w);
  Actor actor = w.user();
  actor.request_id = "k1", actor.request_hash = Bytes(32, 1);
  const Outcome first = w.must(CreateJob{w.project, job_spec()}, actor);
  const Outcome again = w.must(CreateJob{w.project, job_spec()}, actor);
  EXPECT_EQ(again.id, first.id);
  EXPECT_TRUE(again.replayed);
  EXPECT_EQ(w.state.jobs.size(), 1U);
  Actor other = actor;
  other.request_hash = Bytes(32, 2);
  EXPECT_EQ(w.run(CreateJob{w.project, job_spec()}, other).error().code, Code::AlreadyExists);
  Actor stranger = actor;
  stranger.subject.principal = PrincipalId{77};
  EXPECT_FALSE(w.must(CreateJob{w.project, job_spec()}, stranger).replayed) << "keys belong to a principal";
  w.pass(25h);
  EXPECT_TRUE(w.state.requests.empty());
}

TEST(Idempotency, AnIdWithoutAHashOnlyNamesTheRequest) {
  World w;
  with_cluster(w);
  Actor actor = w.user();
  actor.request_id = "req-1";
  const Outcome first = w.must(CreateJob{w.project, job_spec()}, actor);
  const Outcome second = w.must(CreateJob{w.project, job_spec()}, actor);
  EXPECT_NE(first.id, second.id);
  EXPECT_TRUE(w.state.requests.empty()) << "the server's own ids are not remembered";
}

TEST(Rights, AreCheckedAgainAtCommit) {
  World w;
  with_cluster(w);
  const ClusterId id = w.state.clusters.begin()->first;
  EXPECT_EQ(w.run(StopCluster{id, ""}, w.as(Role::Tenant, w.supplier)).error().code, Code::NotFound);
  EXPECT_EQ(w.run(StopCluster{id, ""}, w.as(Role::Auditor, w.tenant)).error().code, Code::PermissionDenied);
  EXPECT_EQ(w.run(CreateOrg{"x"}, w.user()).error().code, Code::PermissionDenied);
  EXPECT_EQ(w.run(Tick{}, w.as(Role::Operator, {})).error().code, Code::PermissionDenied);
  EXPECT_EQ(w.run(CreateApiToken{w.alice, Bytes(32, 1), "", {}, 1h}, w.as(Role::Tenant, w.tenant)).error().code,
            Code::PermissionDenied)
      << "another's tokens";
  w.must(CreateApiToken{w.alice, Bytes(32, 1), "laptop", {"read"}, 1h}, w.user());
  EXPECT_NE(w.state.find_api_token(Bytes(32, 1)), nullptr);
  const JobId id_job = submit(w, job_spec());
  const NodeId elsewhere = w.lease_of(w.slots(id, SlotRole::Worker).at(0)).node;
  w.must(ReportObserved{elsewhere, 0, {}, {{id_job, 1, JobState::Succeeded, 0, "", 0}}}, World::device(elsewhere));
  EXPECT_EQ(w.job(id_job).state, JobState::Starting) << "only the head speaks about jobs";
}

TEST(Rights, OnesOtherLoginsAreEndedAndNothingElse) {
  World w;
  const auto token = [&](PrincipalId owner, std::uint8_t hash, std::vector<std::string> scopes, Millis lifetime) {
    return *TokenId::parse(w.must(CreateApiToken{owner, Bytes(32, hash), "t", std::move(scopes), lifetime}).id);
  };
  const PrincipalId bob = *PrincipalId::parse(w.must(CreatePrincipal{"bob", Role::Tenant, w.tenant}).id);
  const TokenId mine = token(w.alice, 1, {}, 1h), other = token(w.alice, 2, {}, 1h),
                program = token(w.alice, 3, {"read"}, 1h), bobs = token(bob, 4, {}, 1h);
  EXPECT_EQ(w.run(RevokeLogins{bob, {}}, w.user()).error().code, Code::NotFound);
  Actor narrow = w.user();
  narrow.subject.scopes = {"read"};
  EXPECT_EQ(w.run(RevokeLogins{w.alice, mine}, narrow).error().code, Code::PermissionDenied);
  w.must(RevokeLogins{w.alice, mine}, w.user());
  const auto revoked = [&](TokenId id) { return w.state.api_tokens.at(id).revoked; };
  EXPECT_TRUE(revoked(other));
  EXPECT_FALSE(revoked(mine) || revoked(program) || revoked(bobs));
  EXPECT_TRUE(logins_of(w.state, w.alice, mine, w.now.wall).empty());
  EXPECT_EQ(logins_of(w.state, bob, {}, w.now.wall), std::vector<TokenId>{bobs});
  EXPECT_TRUE(logins_of(w.state, bob, {}, w.now.wall + 2h).empty()) << "what is over need not be ended";
}

TEST(Platform, LeadersIncarnationsAndClocks) {
  World w;
  EXPECT_EQ(w.run(BecomeLeader{1}).error().code, Code::Aborted);
  w.must(BecomeLeader{2});
  EXPECT_EQ(w.state.leader_epoch, 2U);
  const auto clusters = w.state.last.cluster;
  w.must(RaiseIncarnation{"restore"});
  EXPECT_EQ(w.state.incarnation, 2U);
  EXPECT_GT(w.state.last.cluster, clusters + 1000) << "ids given after the backup are not given again";
  EXPECT_EQ(w.run(RaiseFormat{99}).error().code, Code::Unsupported);
  const WallTime last = w.state.last_wall;
  w.now.wall = WallTime{5};
  w.must(CreateOrg{"later"});
  EXPECT_EQ(w.state.last_wall, last) << "wall time never decreases";
}

#ifdef MUSTER_MUTANTS
struct MutantOn {
  explicit MutantOn(std::string_view name) { set_mutant(name); }
  ~MutantOn() { set_mutant(""); }
};
TEST(Mutants, ChangeWhatTheySay) {
  World w;
  with_cluster(w);
  const ClusterId id = w.state.clusters.begin()->first;
  Lease head = w.head(id);
  {
    MutantOn on(mutants::kSkipEpochCheck);
    ObservedLease o = w.seen(head.id, LeasePhase::Starting);
    o.epoch = {};
    w.must(ReportObserved{head.node, 0, {o}, {}});
    EXPECT_EQ(w.head(id).phase, LeasePhase::Starting);
  }
  {
    MutantOn on(mutants::kForgetFreeze);
    w.must(SetFreeze{true, ""});
    w.must(NodeLost{w.lease_of(w.slots(id, SlotRole::Worker).at(0)).node});
    EXPECT_EQ(w.slots(id, SlotRole::Worker).size(), 1U);
  }
  std::set<std::string_view> names;
  for (const auto& row : mutants::kAll) names.insert(row.name);
  EXPECT_GE(names.size(), 12U);
}
#endif

}  // namespace
}  // namespace muster::control
