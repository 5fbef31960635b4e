// The agent core against a runtime that does what it is told at once.
#include "agent/core.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "agent/lease_run.h"
#include "agent/memory.h"

namespace muster::agent {
namespace {

class Bench {
 public:
  explicit Bench(Bytes persisted = {}, Found found = {}, std::string boot = "boot-1")
      : persisted_(std::move(persisted)) {
    Options options;
    options.boot_id = boot;
    options.features = {"standby"};
    Hooks hooks;
    hooks.sign = [](ByteView) { return Bytes(64, 1); };
    hooks.desired_genuine = [](const session::Desired& d) { return d.signature != Bytes{0}; };
    hooks.open_roster = [](const session::SignedRoster& r, const Bytes&) -> Result<OpenedRoster> {
      if (r.bytes.size() < 2) return error(Code::InvalidArgument, "bytes");
      OpenedRoster opened;
      opened.cluster = r.cluster;
      opened.epoch = r.bytes[0];
      RosterEntry head;
      head.slot = SlotId{1};
      head.role = SlotRole::Head;
      head.address = 10;
      opened.entries.push_back(head);
      return opened;
    };
    core = std::make_unique<Core>(options, hooks, NodeFacts{});
    core->start(persisted_, found, now());
    work();
  }
  Now now() const { return {WallTime{0}, LeaseTime{ms}}; }
  void work() {
    for (int i = 0; i < 50; ++i) {
      const std::vector<Action> actions = core->take_actions();
      if (actions.empty()) return;
      for (const Action& action : actions) act(action);
    }
  }
  void act(const Action& action) {
    if (const auto* persist = std::get_if<Persist>(&action)) persisted_ = persist->bytes;
    if (const auto* frame = std::get_if<SendFrame>(&action)) frames.push_back(frame->frame);
    const auto* op = std::get_if<StartOp>(&action);
    if (op == nullptr) return;
    ops.push_back(op->op);
    if (deaf || (mute_setup && std::holds_alternative<RunSetup>(op->op))) return;
    OpResult result;
    result.op = op->id;
    if (!fault.empty()) {
      result.ok = false;
      result.reason = fault;
      return core->on_result(result, now());
    }
    if (std::holds_alternative<EnsureImage>(op->op)) result.value = ImageReady{"sha256:1"};
    if (std::holds_alternative<ProbeImage>(op->op))
      result.value = ImageProbe{"sha256:1", "2.55.1", "3.11", token_auth, true}, result.packages = packages;
    if (std::holds_alternative<CreateLease>(op->op)) result.value = LeaseCreated{Bytes(32, 2), Bytes(64, 3)};
    if (!setup_says.empty() && std::holds_alternative<RunSetup>(op->op))
      result.ok = false, result.permanent = true, result.reason = "setup.failed", result.output = setup_says;
    core->on_result(result, now());
  }
  void connect() {
    while (!core->online()) {
      core->on_link_up(now());
      session::Challenge challenge;
      challenge.nonce = Bytes(32, 5);
      core->on_frame(challenge, now());
      session::Welcome welcome;
      welcome.lease = Millis(100'000);
      welcome.incarnation = 1;
      welcome.features = server_takes;
      core->on_frame(welcome, now());
      work();
      if (!core->online()) ms += 1000, core->tick(now()), work();
    }
  }
  void pass(std::int64_t length) {
    for (const std::int64_t end = ms + length; ms < end; ms += 500) core->tick(now()), work();
  }
  void desire(std::uint64_t revision, std::vector<Assignment> assignments, std::uint8_t roster = 0) {
    session::Desired desired;
    desired.incarnation = 1;
    desired.revision = revision;
    desired.assignments = std::move(assignments);
    if (roster != 0) desired.rosters.push_back({ClusterId{1}, Bytes{roster, 0}, {}});
    desired.secrets = secrets;
    desired.signature = Bytes{1};
    core->on_frame(desired, now());
    work();
  }
  template <typename T>
  std::size_t count() const {
    return static_cast<std::size_t>(
        std::count_if(ops.begin(), ops.end(), [](const Op& op) { return std::holds_alternative<T>(op); }));
  }
  ObservedLease lease() const { return core->observed_leases().at(0); }

  std::int64_t ms = 10'000;
  std::unique_ptr<Core> core;
  std::vector<Op> ops;
  std::vector<session::AgentFrame> frames;
  std::vector<session::LeaseSecrets> secrets;  // that go with every Desired
  bool deaf = false, mute_setup = false, token_auth = true;
  std::string packages;  // of every image
  std::vector<std::string> server_takes;
  std::string setup_says;  // not empty: the setup fails and says this
  std::string fault;       // how every operation fails meanwhile
  Bytes persisted_;
};

Assignment head() {
  Assignment a;
  a.lease = LeaseId{7};
  a.epoch = {1, 1, 1};
  a.cluster = ClusterId{1};
  a.slot = SlotId{1};
  a.role = SlotRole::Head;
  a.address = a.head_address = 10;
  a.image = "ray";
  a.devices = {"GPU-1"};
  return a;
}

TEST(Core, TellsWhatIsInAnImageOnceToWhoTakesIt) {
  Bench bench;
  const auto told = [&] {
    std::vector<session::PackagesOffer> out;
    for (const session::AgentFrame& frame : bench.frames)
      if (const auto* offer = std::get_if<session::PackagesOffer>(&frame)) out.push_back(*offer);
    return out;
  };
  bench.packages = "muster-packages 1";
  bench.connect();
  bench.desire(1, {head()});
  bench.pass(5'000);
  EXPECT_TRUE(told().empty()) << "a server of before";
  bench.server_takes = {"net", "packages"};
  bench.core->on_link_down(bench.now());
  bench.work();
  bench.connect();
  bench.pass(20'000);
  ASSERT_EQ(told().size(), 1U);
  EXPECT_EQ(told()[0], (session::PackagesOffer{LeaseId{7}, "sha256:1", "muster-packages 1"}));
  bench.core->on_link_down(bench.now());
  bench.work();
  bench.connect();
  bench.pass(5'000);
  EXPECT_EQ(told().size(), 2U) << "it may have got lost";
}

TEST(Core, SharesOfAGpuRunBesideEachOtherWhereItsOwnerSharesIt) {
  for (const GpuSharing sharing : {GpuSharing::Shared, GpuSharing::Exclusive, GpuSharing::Mig}) {
    Bench bench;
    NodeFacts facts;
    facts.devices = {Device{"GPU-1", "A100", 1, sharing}};
    bench.core->set_facts(facts, bench.now());
    bench.connect();
    Assignment one = head(), two = head(), three = head();
    one.gpu_share_milli = 500;
    two.lease = LeaseId{8}, two.cluster = ClusterId{2}, two.slot = SlotId{2}, two.gpu_share_milli = 400;
    three.lease = LeaseId{9}, three.cluster = ClusterId{3}, three.slot = SlotId{3}, three.gpu_share_milli = 200;
    bench.desire(1, {one});
    bench.desire(2, {one, two});
    bench.pass(1'000);
    bench.desire(3, {one, two, three});
    bench.pass(3'000);
    EXPECT_EQ(bench.count<CreateLease>(), sharing == GpuSharing::Shared ? 2U : 1U)
        << "the third would be more than there is, and an instance is one lease's";
  }
}

TEST(Core, BringsAHeadUpOnlyWithItsRoster) {
  Bench bench;
  bench.connect();
  bench.desire(1, {head()});
  EXPECT_EQ(bench.lease().phase, LeasePhase::Standby);
  EXPECT_EQ(bench.lease().overlay_key, Bytes(32, 2));
  EXPECT_EQ(bench.count<StartRay>(), 0U);
  bench.desire(2, {head()}, 4);
  EXPECT_EQ(bench.count<ConfigureNetwork>(), 1U);
  EXPECT_EQ(bench.count<StartRay>(), 1U);
  bench.core->on_event(RayReady{LeaseId{7}, "r"}, bench.now());
  bench.work();
  EXPECT_EQ(bench.lease().phase, LeasePhase::Ready);
  EXPECT_EQ(bench.lease().roster_epoch, 4U);
  bench.desire(3, {head()}, 3);  // an older roster
  EXPECT_EQ(bench.lease().roster_epoch, 4U);
  EXPECT_EQ(bench.count<ConfigureNetwork>(), 1U);
}

TEST(Core, AnIdentityTokenLiesThereBeforeAnythingRunsAndIsReplaced) {
  Bench bench;
  bench.connect();
  session::LeaseSecrets secrets;
  secrets.lease = LeaseId{7};
  secrets.identities = {{"identity", to_bytes("first")}};
  bench.secrets = {secrets};
  bench.desire(1, {head()}, 4);
  const auto at = [&](auto wanted) {
    return std::find_if(bench.ops.begin(), bench.ops.end(), wanted) - bench.ops.begin();
  };
  const auto placed = [&] { return bench.count<PutIdentity>(); };
  EXPECT_EQ(placed(), 1U);
  EXPECT_LT(at([](const Op& op) { return std::holds_alternative<PutIdentity>(op); }),
            at([](const Op& op) { return std::holds_alternative<RunSetup>(op); }));
  EXPECT_EQ(bench.count<StartRay>(), 1U);
  bench.desire(2, {head()}, 4);
  EXPECT_EQ(placed(), 1U) << "the same one is there already";
  // A newer one, and one of a job that came: while Ray runs, and a failure is tried again without ending anything.
  bench.secrets[0].identities = {{"identity", to_bytes("second")}, {"identity-job-3", to_bytes("of the job")}};
  bench.fault = "disk";
  bench.desire(2, {head()}, 4);
  EXPECT_EQ(placed(), 2U);
  bench.pass(90'000);
  EXPECT_GT(placed(), 4U);
  EXPECT_FALSE(bench.lease().phase == LeasePhase::Failed) << "what runs goes on with the token that it has";
}

TEST(Core, IgnoresOlderAndForgedRevisions) {
  Bench bench;
  bench.connect();
  bench.desire(5, {head()});
  bench.desire(4, {});
  EXPECT_EQ(bench.core->observed_leases().size(), 1U);
  session::Desired forged;
  forged.incarnation = 9;
  forged.revision = 9;
  forged.signature = Bytes{0};
  bench.core->on_frame(forged, bench.now());
  bench.work();
  EXPECT_EQ(bench.core->observed_leases().size(), 1U);
  bench.desire(6, {});
  EXPECT_EQ(bench.count<StopLease>(), 1U);
  EXPECT_EQ(bench.count<RemoveLease>(), 1U);
  EXPECT_TRUE(bench.core->observed_leases().empty());
}

TEST(Core, FencesItselfWhenTheLeaseEndsAndKeepsTheWorkspace) {
  Bench bench;
  bench.connect();
  bench.desire(1, {head()}, 1);
  bench.core->on_link_down(bench.now());
  bench.pass(99'000);
  EXPECT_EQ(bench.count<StopLease>(), 0U);
  bench.pass(3'000);
  EXPECT_EQ(bench.count<StopLease>(), 1U);
  EXPECT_EQ(bench.count<RemoveLease>(), 0U);
  EXPECT_EQ(bench.lease().phase, LeasePhase::Stopped);
  EXPECT_EQ(bench.lease().reason, "lease_ended");
  bench.connect();
  bench.desire(2, {head()}, 1);  // the same epoch never runs again
  EXPECT_EQ(bench.count<CreateLease>(), 1U);
}

TEST(Core, AStopOvertakesAndARestartAdopts) {
  Bench bench;
  bench.connect();
  bench.deaf = true;
  bench.desire(1, {head()});
  EXPECT_EQ(bench.count<EnsureImage>(), 1U);
  Assignment stop = head();
  stop.want = LeaseWant::Stop;
  bench.deaf = false;
  bench.desire(2, {stop});
  EXPECT_EQ(bench.count<StopLease>(), 1U);
  EXPECT_EQ(bench.lease().phase, LeasePhase::Stopped);

  Bench first;
  first.connect();
  first.desire(1, {head()}, 2);
  Found found;
  AdoptedLease adopted;
  adopted.assignment = head();
  adopted.container_running = adopted.ray_running = adopted.ray_ready = adopted.setup_done = true;
  adopted.roster_epoch = 2;
  adopted.probe = {"sha256:1", "2.55.1", "3.11", true, true};
  found.leases = {adopted};
  Bench second(first.persisted_, found);
  EXPECT_EQ(second.lease().phase, LeasePhase::Ready);
  EXPECT_TRUE(second.ops.empty());
  Bench rebooted(first.persisted_, found, "boot-2");
  EXPECT_EQ(rebooted.count<StopLease>(), 1U);
  EXPECT_EQ(rebooted.lease().reason, "rebooted");
  Bench stranger({}, found);
  EXPECT_EQ(stranger.count<StopLease>(), 1U);
}

TEST(Core, AStopDoesNotWaitForTheBackOffOfACrash) {
  Bench bench;
  bench.connect();
  bench.desire(1, {head()}, 1);
  for (int i = 0; i < 2; ++i) {
    bench.core->on_event(ContainerExited{LeaseId{7}, 137, ""}, bench.now());
    bench.work();
  }
  EXPECT_EQ(bench.count<CreateLease>(), 2U) << "the second restart waits";
  Assignment stop = head();
  stop.want = LeaseWant::Stop;
  bench.desire(2, {stop});
  EXPECT_EQ(bench.count<StopLease>(), 1U);
}

TEST(Core, WhatWasStoppedOrFailedStaysSoAfterARestartOfTheAgent) {
  Found found;
  AdoptedLease adopted;
  adopted.assignment = head();
  adopted.probe = {"sha256:1", "2.55.1", "3.11", true, true};
  found.leases = {adopted};

  Bench stopped;
  stopped.connect();
  stopped.desire(1, {head()}, 2);
  Assignment stop = head();
  stop.want = LeaseWant::Stop;
  stopped.desire(2, {stop});
  EXPECT_EQ(stopped.lease().phase, LeasePhase::Stopped);
  Bench after_stop(stopped.persisted_, found);
  after_stop.pass(5000);
  EXPECT_EQ(after_stop.count<CreateLease>(), 0U);
  EXPECT_EQ(after_stop.lease().phase, LeasePhase::Stopped);

  found.leases[0].assignment.role = SlotRole::Worker;
  Bench failed;
  failed.connect();
  failed.desire(1, {found.leases[0].assignment}, 2);
  for (int i = 0; i < 2; ++i) {
    failed.core->on_event(ContainerExited{LeaseId{7}, 137, "broken"}, failed.now());
    failed.work();
  }
  EXPECT_EQ(failed.lease().phase, LeasePhase::Failed);
  Bench after_failure(failed.persisted_, found);
  after_failure.pass(5000);
  EXPECT_EQ(after_failure.count<CreateLease>(), 0U);
  EXPECT_EQ(after_failure.lease().phase, LeasePhase::Failed);
  EXPECT_EQ(after_failure.lease().reason, "broken");
}

TEST(Core, RepeatsTheOwnersWordUntilItMustHaveArrivedAndNoLonger) {
  Bench bench;
  const auto told = [&bench] {
    return std::count_if(bench.frames.begin(), bench.frames.end(), [](const session::AgentFrame& frame) {
      const auto* pause = std::get_if<session::OwnerPause>(&frame);
      return pause != nullptr && !pause->paused;
    });
  };
  const auto answer_beats = [&bench] {
    for (const session::AgentFrame& frame : std::vector(bench.frames)) {
      if (const auto* beat = std::get_if<session::Heartbeat>(&frame))
        bench.core->on_frame(session::Renewed{beat->echo, {}, Millis(100'000)}, bench.now());
    }
  };
  bench.connect();
  EXPECT_EQ(told(), 1) << "a new machine says how things stand";
  bench.core->on_owner(OwnerAction::Pause, "", bench.now());
  bench.core->on_owner(OwnerAction::Resume, "", bench.now());
  bench.work();
  EXPECT_EQ(told(), 2);
  bench.core->on_link_down(bench.now());
  bench.connect();
  EXPECT_EQ(told(), 3) << "it may have been lost with the link";
  bench.pass(12'000);
  answer_beats();
  bench.work();
  bench.core->on_link_down(bench.now());
  bench.connect();
  EXPECT_EQ(told(), 3) << "an operator may have drained the machine meanwhile";
  Bench again(bench.persisted_);
  again.connect();
  EXPECT_TRUE(std::none_of(again.frames.begin(), again.frames.end(), [](const session::AgentFrame& frame) {
    return std::holds_alternative<session::OwnerPause>(frame);
  }));
}

TEST(Core, RefusesWhatItDoesNotUnderstandAndImagesWithoutTokens) {
  Bench bench;
  bench.connect();
  Assignment odd = head();
  odd.must_understand = {"teleport"};
  bench.desire(1, {odd});
  EXPECT_TRUE(bench.ops.empty());
  EXPECT_EQ(bench.lease().phase, LeasePhase::Failed);
  EXPECT_EQ(bench.lease().reason, "unsupported_feature");

  Bench old;
  old.token_auth = false;
  old.connect();
  old.desire(1, {head()});
  EXPECT_EQ(old.lease().reason, "image_probe.no_token_auth");
  EXPECT_EQ(old.lease().phase, LeasePhase::Failed);
  EXPECT_EQ(old.count<CreateLease>(), 0U);
}

TEST(Core, RestartsAHeadInPlaceAndEndsItsJobs) {
  Bench bench;
  bench.connect();
  Assignment with_job = head();
  with_job.jobs.push_back({JobId{3}, 1, "python x.py", "", "", false, {}});
  bench.desire(1, {with_job}, 1);
  EXPECT_EQ(bench.count<SubmitJob>(), 0U);
  bench.core->on_event(RayReady{LeaseId{7}, "r"}, bench.now());
  bench.work();
  EXPECT_EQ(bench.count<SubmitJob>(), 1U);
  bench.core->on_event(JobStatus{LeaseId{7}, {JobId{3}, 1, JobState::Running, -1, "", 10}}, bench.now());
  bench.core->on_event(ContainerExited{LeaseId{7}, 137, ""}, bench.now());
  bench.work();
  EXPECT_EQ(bench.count<CreateLease>(), 2U);
  EXPECT_EQ(bench.count<StartRay>(), 2U);
  EXPECT_EQ(bench.lease().restarts, 1U);
  EXPECT_EQ(bench.core->observed_jobs().at(0).state, JobState::Failed);
  EXPECT_EQ(bench.core->observed_jobs().at(0).reason, "driver_lost");
  bench.core->on_event(RayReady{LeaseId{7}, "r"}, bench.now());
  bench.work();
  EXPECT_EQ(bench.count<SubmitJob>(), 1U);  // the same attempt is never started twice
}

TEST(Core, AFullRootBeginsAnewAFullWorkspaceFails) {
  Bench bench;
  bench.connect();
  bench.desire(1, {head()}, 1);
  bench.core->on_event(ContainerExited{LeaseId{7}, 137, "container.root_full"}, bench.now());
  bench.work();
  EXPECT_EQ(bench.count<CreateLease>(), 2U);
  EXPECT_EQ(bench.lease().restarts, 1U);
  bench.core->on_event(ContainerExited{LeaseId{7}, 137, "container.workspace_full"}, bench.now());
  bench.work();
  EXPECT_EQ(bench.count<CreateLease>(), 2U);
  EXPECT_EQ(bench.lease().phase, LeasePhase::Failed);
  EXPECT_EQ(bench.lease().reason, "container.workspace_full");
}

Found found_of(const Assignment& assignment, bool running) {
  AdoptedLease adopted;
  adopted.assignment = assignment;
  adopted.container_running = adopted.ray_running = adopted.ray_ready = adopted.setup_done = running;
  adopted.probe = {"sha256:1", "2.55.1", "3.11", true, true};
  Found found;
  found.leases = {adopted};
  return found;
}

TEST(Core, AnEngineThatIsRestartedIsNoFaultOfAWorker) {
  Bench bench;
  bench.connect();
  Assignment worker = head();
  worker.role = SlotRole::Worker;
  bench.desire(1, {worker}, 2);
  for (std::uint32_t i = 1; i <= 5; ++i) {
    bench.core->on_event(RayReady{LeaseId{7}, "r"}, bench.now());
    bench.core->on_event(EngineGone{}, bench.now());
    bench.work();
    bench.pass(8'000);
    EXPECT_EQ(bench.count<CreateLease>(), i) << "nothing is begun without an engine";
    bench.core->on_event(EngineBack{found_of(worker, false)}, bench.now());
    bench.work();
    EXPECT_EQ(bench.count<CreateLease>(), i + 1) << "at once, in place";
    EXPECT_EQ(bench.count<StartRay>(), i + 1);
    EXPECT_EQ(bench.lease().restarts, i);
    EXPECT_EQ(bench.lease().phase, LeasePhase::Starting);
  }
  bench.core->on_event(ContainerExited{LeaseId{7}, 137, ""}, bench.now());
  bench.work();
  EXPECT_EQ(bench.count<CreateLease>(), 7U) << "its own first end is still forgiven";
  bench.core->on_event(ContainerExited{LeaseId{7}, 137, ""}, bench.now());
  bench.work();
  EXPECT_EQ(bench.lease().phase, LeasePhase::Failed);
}

TEST(Core, AnEngineThatKeepsItsContainersChangesNothing) {
  Bench bench;
  bench.connect();
  Assignment with_job = head();
  with_job.jobs.push_back({JobId{3}, 1, "python x.py", "", "", false, {}});
  bench.desire(1, {with_job}, 2);
  bench.core->on_event(RayReady{LeaseId{7}, "r"}, bench.now());
  bench.core->on_event(JobStatus{LeaseId{7}, {JobId{3}, 1, JobState::Running, -1, "", 10}}, bench.now());
  bench.work();
  bench.core->on_event(EngineGone{}, bench.now());
  bench.core->on_event(EngineBack{found_of(head(), true)}, bench.now());
  bench.work();
  EXPECT_EQ(bench.count<CreateLease>(), 1U);
  EXPECT_EQ(bench.count<StartRay>(), 1U);
  EXPECT_EQ(bench.lease().phase, LeasePhase::Ready);
  EXPECT_EQ(bench.lease().restarts, 0U);
  EXPECT_EQ(bench.core->observed_jobs().at(0).state, JobState::Running);
  bench.core->on_event(EngineGone{}, bench.now());
  bench.core->on_event(EngineBack{found_of(head(), false)}, bench.now());
  bench.work();
  EXPECT_EQ(bench.core->observed_jobs().at(0).reason, "driver_lost") << "a head that ended took its drivers along";
}

TEST(Core, WhatFailsForWantOfAnEngineIsTriedOnAndNotForEver) {
  Bench bench;
  bench.connect();
  bench.fault = std::string(kEngineGone);
  bench.desire(1, {head()}, 2);
  bench.pass(20'000);
  EXPECT_GT(bench.count<EnsureImage>(), 10U);
  EXPECT_NE(bench.lease().phase, LeasePhase::Failed);
  bench.fault.clear();
  bench.pass(2'000);
  EXPECT_EQ(bench.count<StartRay>(), 1U);
  Bench broken;
  broken.connect();
  broken.fault = std::string(kEngineGone);
  broken.desire(1, {head()}, 2);
  broken.pass(95'000);
  EXPECT_LT(broken.count<EnsureImage>(), 70U) << "an engine that only claims to be there is a fault after a minute";
}

TEST(Core, RemembersTheEndOfAJobUntilTheServerNoLongerOrdersIt) {
  Bench first;
  first.connect();
  Assignment with_job = head();
  with_job.jobs.push_back({JobId{3}, 1, "python x.py", "", "", false, {}});
  first.desire(1, {with_job}, 1);
  first.core->on_event(RayReady{LeaseId{7}, "r"}, first.now());
  first.work();
  first.core->on_link_down(first.now());
  first.core->on_event(JobStatus{LeaseId{7}, {JobId{3}, 1, JobState::Succeeded, 0, "", 0}}, first.now());
  first.work();
  AdoptedLease adopted;
  adopted.assignment = head();
  adopted.container_running = adopted.ray_running = adopted.ray_ready = adopted.setup_done = true;
  adopted.roster_epoch = 1;
  adopted.probe = {"sha256:1", "2.55.1", "3.11", true, true};
  Found found;
  found.leases = {adopted};
  Bench second(first.persisted_, found);
  second.connect();
  second.pass(5000);
  ASSERT_EQ(second.core->observed_jobs().size(), 1U) << "no order has come yet: that says nothing";
  second.desire(1, {with_job}, 1);
  ASSERT_EQ(second.core->observed_jobs().size(), 1U);
  EXPECT_EQ(second.core->observed_jobs().at(0).state, JobState::Succeeded);
  EXPECT_EQ(second.count<SubmitJob>(), 0U);
  second.desire(2, {head()}, 1);
  EXPECT_TRUE(second.core->observed_jobs().empty());
}

TEST(Core, AFailedSetupIsNotTriedAgainAndItsLastLinesAreTold) {
  Bench bench;
  bench.setup_says = std::string(5000, 'x') + "\nno such package\n";
  bench.connect();
  Assignment a = head();
  a.setup_commands = {"pip install nothing"};
  bench.desire(1, {a}, 1);
  EXPECT_EQ(bench.lease().phase, LeasePhase::Failed);
  EXPECT_EQ(bench.lease().reason, "setup.failed");
  EXPECT_EQ(bench.lease().output, "no such package\n");
  bench.pass(600'000);
  EXPECT_EQ(bench.count<RunSetup>(), 1U);
  EXPECT_EQ(last_lines(std::string(5000, 'x')), std::string(kOutputBytes, 'x')) << "one long line keeps its end";
}

TEST(Core, TakesANewerRosterWhileALongSetupRuns) {
  Bench bench;
  bench.connect();
  Assignment worker = head();
  worker.setup_commands = {"pip install x"};
  bench.desire(1, {worker});
  bench.deaf = true;
  bench.desire(2, {worker}, 4);
  EXPECT_EQ(bench.count<ConfigureNetwork>(), 1U);
  bench.deaf = false;
  bench.pass(40'000);  // the first try got no answer
  EXPECT_EQ(bench.count<RunSetup>(), 1U);
  Bench slow;
  slow.connect();
  slow.mute_setup = true;
  slow.desire(1, {worker}, 4);
  EXPECT_EQ(slow.count<RunSetup>(), 1U);
  EXPECT_EQ(slow.count<StartRay>(), 0U);
  slow.desire(2, {worker}, 5);
  EXPECT_EQ(slow.count<ConfigureNetwork>(), 2U);
  EXPECT_EQ(slow.lease().roster_epoch, 5U);
  EXPECT_EQ(slow.count<RunSetup>(), 1U) << "and the setup goes on";
  // A try that fails is made again, the lease lives on; many in a row end it.
  slow.deaf = true;
  slow.desire(3, {worker}, 6);
  slow.pass(40'000);
  EXPECT_EQ(slow.lease().roster_epoch, 5U);
  slow.deaf = false;
  slow.pass(40'000);
  EXPECT_EQ(slow.lease().roster_epoch, 6U);
}

TEST(Core, KeepsTheLogsWhileTheServerIsAwayAndNotForEver) {
  Bench bench;
  bench.connect();
  Assignment with_job = head();
  with_job.jobs.push_back({JobId{3}, 1, "python x.py", "", "", false, {}});
  bench.desire(1, {with_job}, 1);
  bench.core->on_event(RayReady{LeaseId{7}, "r"}, bench.now());
  bench.work();
  bench.core->on_event(JobStatus{LeaseId{7}, {JobId{3}, 1, JobState::Succeeded, 0, "", 10}}, bench.now());
  bench.desire(2, {});
  EXPECT_EQ(bench.count<StopLease>(), 1U);
  bench.core->on_link_down(bench.now());
  bench.pass(300'000);
  EXPECT_EQ(bench.count<RemoveLease>(), 0U);
  bench.connect();
  for (int i = 0; i < 130; ++i) {
    bench.pass(1000);
    for (const session::AgentFrame& frame : std::vector(bench.frames)) {
      if (const auto* beat = std::get_if<session::Heartbeat>(&frame))
        bench.core->on_frame(session::Renewed{beat->echo, {}, Millis(100'000)}, bench.now());
    }
  }
  EXPECT_EQ(bench.count<RemoveLease>(), 1U) << "a log that nobody takes does not hold the disk";
}

TEST(Memory, SurvivesARoundTripAndNothingElse) {
  Memory memory;
  memory.boot_id = "b";
  memory.revision = 77;
  memory.leases[LeaseId{1}] = {{1, 2, 3}, LeaseTime{55}, true, true, "why"};
  memory.jobs[{JobId{2}, 1}] = {LeaseId{1}, JobState::Failed, -1, "r", 10, 5};
  const Bytes bytes = encode(memory);
  EXPECT_EQ(decode_memory(bytes), memory);
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    Bytes damaged = bytes;
    damaged[i] ^= 0x10;
    EXPECT_FALSE(decode_memory(damaged).has_value());
  }
  EXPECT_FALSE(decode_memory({}).has_value());
}

}  // namespace
}  // namespace muster::agent
