#include "control/control_world.h"
#include "model/node_labels.h"

namespace muster::control {
namespace {

TEST(ClusterLife, FromQueueToStopped) {
  World w;
  const ClusterId id = ClusterId::parse(w.must(CreateCluster{w.project, World::spec()}, w.user()).id).value();
  w.rounds();
  EXPECT_EQ(w.cluster(id).state, ClusterState::Queued);
  w.enrol("a"), w.enrol("b");
  w.rounds();
  EXPECT_EQ(w.cluster(id).state, ClusterState::Queued) << "a gang of three on two machines";
  w.enrol("c");
  w.plan();
  EXPECT_EQ(w.cluster(id).state, ClusterState::Starting);
  ASSERT_EQ(w.cluster(id).slots.size(), 3U);
  EXPECT_EQ(w.slots(id, SlotRole::Head).at(0)->address, kHeadAddress);
  w.rounds();
  EXPECT_EQ(w.cluster(id).state, ClusterState::Running);
  EXPECT_EQ(w.cluster(id).probe->ray_version, "2.9.0");
  w.must(StopCluster{id, ""}, w.user());
  EXPECT_EQ(w.cluster(id).state, ClusterState::Stopping);
  for (const auto& [node, unused] : w.state.nodes) {
    ASSERT_EQ(desired_for(w.state, node).size(), 1U);
    EXPECT_EQ(desired_for(w.state, node)[0].want, LeaseWant::Stop);
    EXPECT_TRUE(desired_for(w.state, node)[0].roster.empty());
  }
  w.agents();
  EXPECT_EQ(w.cluster(id).state, ClusterState::Stopped);
  EXPECT_TRUE(w.state.leases_by_node.empty());
  w.pass(2h), w.pass(1s);
  EXPECT_TRUE(w.state.clusters.empty() && w.state.leases.empty() && w.state.slots.empty() && w.state.timers.empty());
}

TEST(ClusterLife, DesiredIsComplete) {
  World w;
  for (const char* name : {"a", "b", "c"}) w.enrol(name);
  ClusterSpec spec = World::spec();
  spec.head_setup_commands = {"h"}, spec.setup_commands = {"s"}, spec.groups[0].setup_commands = {"g"};
  spec.env = {{"A", "1"}, {"B", "1"}}, spec.groups[0].env = {{"B", "2"}};
  spec.groups[0].request.labels = {{"team", "x"}};
  const ClusterId id = w.up(spec);
  const Assignment head = desired_for(w.state, w.head(id).node).at(0);
  EXPECT_EQ(head.role, SlotRole::Head);
  EXPECT_EQ(head.roster.size(), 3U);
  EXPECT_EQ(head.setup_commands, (std::vector<std::string>{"h", "s"}));
  EXPECT_EQ(head.head_address, kHeadAddress);
  const Assignment worker = desired_for(w.state, w.lease_of(w.slots(id, SlotRole::Worker).at(0)).node).at(0);
  EXPECT_EQ(worker.setup_commands, (std::vector<std::string>{"s", "g"}));
  EXPECT_EQ(worker.env.at("B"), "2");
  EXPECT_EQ(worker.ray_labels.at("team"), "x");
  EXPECT_EQ(worker.ray_labels.at("muster.io/region"), "eu");
  EXPECT_EQ(worker.roster_epoch, w.cluster(id).roster_epoch);
  for (const RosterEntry& e : worker.roster) EXPECT_EQ(e.device_key, w.state.nodes.at(e.node).device_key);
}

TEST(ClusterLife, LostWorkerIsReplacedByTheSpareAtOnce) {
  World w;
  for (const char* name : {"a", "b", "c", "d"}) w.enrol(name);
  const ClusterId id = w.up(World::spec(2, 2, 1));
  ASSERT_EQ(w.slots(id, SlotRole::Spare).size(), 1U);
  const Slot spare = *w.slots(id, SlotRole::Spare).at(0);
  const Slot lost = *w.slots(id, SlotRole::Worker).at(0);
  const NodeId node = w.lease_of(&lost).node;
  w.silent.insert(node);
  w.must(NodeSuspect{node});
  w.must(NodeLost{node});
  EXPECT_EQ(w.state.slots.at(spare.id).role, SlotRole::Worker);
  EXPECT_EQ(w.state.leases.at(spare.lease).want, LeaseWant::Run);
  EXPECT_EQ(w.state.leases.at(lost.lease).want, LeaseWant::Stop);
  EXPECT_FALSE(w.state.slots.at(lost.id).in_roster);
  for (const SlotId slot : w.cluster(id).slots) EXPECT_NE(slot, lost.id);
  w.rounds();
  EXPECT_EQ(w.cluster(id).state, ClusterState::Running);
  EXPECT_EQ(w.state.leases.at(lost.lease).end, LeaseEnd::None) << "its devices stay taken";
  // It comes back: told to stop until it confirms.
  w.silent.clear();
  w.must(NodeOnline{node});
  ASSERT_EQ(desired_for(w.state, node).size(), 1U);
  EXPECT_EQ(desired_for(w.state, node)[0].want, LeaseWant::Stop);
  w.rounds();
  EXPECT_EQ(w.state.leases.at(lost.lease).end, LeaseEnd::Confirmed);
  EXPECT_EQ(w.slots(id, SlotRole::Spare).size(), 1U) << "and serves as the new spare";
}

TEST(ClusterLife, LostWorkerWithoutSpareGetsANewSlotElsewhere) {
  World w;
  for (const char* name : {"a", "b", "c"}) w.enrol(name);
  const ClusterId id = w.up(World::spec());
  const Slot lost = *w.slots(id, SlotRole::Worker).at(0);
  const NodeId node = w.lease_of(&lost).node;
  w.silent.insert(node);
  w.must(NodeLost{node});
  EXPECT_EQ(w.cluster(id).reason, "workers_below_min");
  w.rounds();
  EXPECT_EQ(w.slots(id, SlotRole::Worker).size(), 1U);
  w.enrol("d");
  w.rounds();
  ASSERT_EQ(w.slots(id, SlotRole::Worker).size(), 2U);
  EXPECT_EQ(w.cluster(id).reason, "");
  for (const Slot* slot : w.slots(id, SlotRole::Worker)) EXPECT_NE(slot->address, lost.address);
  w.must(LeasesExpired{{lost.lease}});
  EXPECT_EQ(w.state.leases.at(lost.lease).end, LeaseEnd::Expired);
  EXPECT_EQ(w.cluster(id).state, ClusterState::Running);
}

TEST(ClusterLife, MassSilenceEvictsNobodyButAReadySpareStillReplaces) {
  World w;
  for (const char* name : {"a", "b", "c", "d"}) w.enrol(name);
  const ClusterId id = w.up(World::spec(2, 2, 1));
  w.must(SetFreeze{true, "3 of 4 silent"});
  const auto workers = w.slots(id, SlotRole::Worker);
  const Slot first = *workers.at(0), second = *workers.at(1);
  w.must(NodeLost{w.lease_of(&first).node});
  w.must(NodeLost{w.lease_of(&second).node});
  EXPECT_EQ(w.state.leases.at(first.lease).want, LeaseWant::Stop) << "replaced by the spare";
  EXPECT_EQ(w.state.leases.at(second.lease).want, LeaseWant::Run) << "nothing replaces it: it stays";
  EXPECT_TRUE(w.state.slots.at(second.id).in_roster);
  w.must(NodeLost{w.head(id).node});
  EXPECT_EQ(w.cluster(id).reason, "head_unreachable");
  w.must(LeasesExpired{{w.head(id).id, second.lease}});
  EXPECT_EQ(w.cluster(id).state, ClusterState::Running);
  EXPECT_EQ(w.state.leases.at(second.lease).end, LeaseEnd::None);
  // A free machine replaces it even now, in a new slot.
  w.silent = {w.lease_of(&first).node, w.lease_of(&second).node, w.head(id).node};
  w.enrol("e");
  w.rounds();
  EXPECT_EQ(w.state.leases.at(second.lease).want, LeaseWant::Stop);
  EXPECT_EQ(w.slots(id, SlotRole::Worker).size(), 2U);
  w.must(NodeOnline{w.head(id).node});
  w.must(SetFreeze{false, ""});
  EXPECT_EQ(w.cluster(id).state, ClusterState::Running);
}

TEST(ClusterLife, FreezeEndsWithTheLostOnesLeaving) {
  World w;
  for (const char* name : {"a", "b", "c"}) w.enrol(name);
  const ClusterId id = w.up(World::spec());
  w.must(SetFreeze{true, "silence"});
  const Slot lost = *w.slots(id, SlotRole::Worker).at(0);
  w.must(NodeLost{w.lease_of(&lost).node});
  EXPECT_EQ(w.slots(id, SlotRole::Worker).size(), 2U);
  w.must(SetFreeze{false, ""});
  EXPECT_EQ(w.slots(id, SlotRole::Worker).size(), 1U);
  EXPECT_EQ(w.state.leases.at(lost.lease).want, LeaseWant::Stop);
}

TEST(ClusterLife, ADisabledMachineIsAwaitedOnlyInAFreeze) {
  World w;
  const NodeId off = w.enrol("a"), on = w.enrol("b");
  w.must(SetNode{off, SetNode::Action::Disable});
  EXPECT_EQ(awaited_nodes(w.state), std::vector<NodeId>{on});
  w.must(SetFreeze{true, "silence"});
  EXPECT_EQ(awaited_nodes(w.state), (std::vector<NodeId>{off, on}));
}

TEST(ClusterLife, ASpareIsNotSpentOnAWorkerThatNobodyMisses) {
  World w;
  for (const char* name : {"a", "b", "c", "d"}) w.enrol(name);
  const ClusterId id = w.up(World::spec(2, 2, 1));
  w.must(SetFreeze{true, "silence"});
  const Slot first = *w.slots(id, SlotRole::Worker).at(0), second = *w.slots(id, SlotRole::Worker).at(1);
  w.silent = {w.lease_of(&second).node};
  w.must(NodeLost{w.lease_of(&second).node});  // the spare takes its place
  w.silent.insert(w.lease_of(&first).node);
  w.must(NodeLost{w.lease_of(&first).node});  // nothing replaces it: it stays
  for (const char* name : {"e", "f"}) w.enrol(name);
  w.rounds();  // a new worker and a new spare; the lost one left
  w.must(NodeOnline{w.lease_of(&first).node});
  ASSERT_EQ(w.slots(id, SlotRole::Worker).size(), 2U);
  ASSERT_EQ(w.slots(id, SlotRole::Spare).size(), 1U);
  // One more than wanted, as after a freeze in which two were lost and both came back.
  const Slot spare = *w.slots(id, SlotRole::Spare).at(0);
  ClusterSpec fewer = World::spec(1, 2, 1);
  w.must(UpdateCluster{id, fewer, 0}, w.user());
  const LeaseId failed = w.lease_of(w.slots(id, SlotRole::Worker).at(0)).id;
  w.state.clusters.at(id).wanted["workers"] = 1;
  ASSERT_TRUE(w.report(failed, LeasePhase::Failed, "oom").ok());
  EXPECT_EQ(w.state.slots.at(spare.id).role, SlotRole::Spare) << "one worker is enough";
  EXPECT_EQ(w.slots(id, SlotRole::Worker).size(), 1U);
}

TEST(ClusterLife, AHeadIsRestartedInPlaceByItsAgentUntilThatGivesUp) {
  World w;
  for (const char* name : {"a", "b", "c"}) w.enrol(name);
  const ClusterId id = w.up(World::spec());
  const LeaseId head = w.head(id).id;
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(w.report(head, LeasePhase::Starting, "ray_exited").ok());
    EXPECT_EQ(w.cluster(id).state, ClusterState::Running);
    EXPECT_EQ(w.cluster(id).reason, "head_restarting");
    EXPECT_EQ(w.state.leases.at(head).want, LeaseWant::Run);
    ASSERT_TRUE(w.report(head, LeasePhase::Ready).ok());
    EXPECT_EQ(w.cluster(id).reason, "");
  }
  ASSERT_TRUE(w.report(head, LeasePhase::Failed, "oom").ok());
  EXPECT_EQ(w.cluster(id).state, ClusterState::Failed);
  EXPECT_EQ(w.cluster(id).reason, "head_failed:oom");
  w.agents();
  EXPECT_TRUE(w.state.leases_by_node.empty());
}

TEST(ClusterLife, AStartWhoseWorkersFailByTheirOwnDoingEnds) {
  // How many failures it takes; the machine's own troubles never end a start.
  for (const auto& [reason, limit] : {std::pair("setup.failed", 3U), {"ray_exited", 10U}, {"image_pull.tls", 0U}}) {
    World w;
    for (int i = 0; i < 13; ++i) {  // their agents are played by hand here
      const NodeId node = w.enrol("m" + std::to_string(i));
      w.silent.insert(node);
    }
    const ClusterId id = w.up(World::spec(1, 1));
    ASSERT_EQ(w.cluster(id).state, ClusterState::Starting);
    ASSERT_TRUE(w.report(w.head(id).id, LeasePhase::Ready).ok());
    std::uint32_t failures = 0;
    while (failures < 12 && w.cluster(id).state == ClusterState::Starting) {
      const auto workers = w.slots(id, SlotRole::Worker);
      ASSERT_EQ(workers.size(), 1U) << reason << " " << failures;
      ASSERT_TRUE(w.report(workers[0]->lease, LeasePhase::Failed, reason).ok());
      ++failures;
      EXPECT_EQ(w.cluster(id).reason, std::string("worker_failed:") + reason);
      w.plan();
    }
    EXPECT_EQ(failures, limit == 0 ? 12U : limit) << reason;
    EXPECT_EQ(w.cluster(id).state, limit == 0 ? ClusterState::Starting : ClusterState::Failed) << reason;
    if (limit == 0) continue;
    w.silent.clear();
    w.agents();
    EXPECT_TRUE(w.state.leases_by_node.empty()) << "nothing of it is left on the machines";
  }
}

// Doing what a forecast says comes true, whatever runs and waits already; and asking changes nothing.
TEST(ClusterLife, WhatAForecastSaysHappens) {
  for (const std::uint32_t wanted : {1U, 4U, 5U, 6U, 9U}) {
    World w;
    for (int i = 0; i < 6; ++i) w.enrol("m" + std::to_string(i));
    w.up(World::spec(1, 1));
    ClusterSpec other = World::spec(7, 7);
    other.name = "large", other.tier = 0;
    w.up(other);                                            // never fits; waits in front
    const ClusterSpec asked = World::spec(wanted, wanted);  // of a name that is taken
    const State before = w.state;
    const auto what = what_if(w.state, {w.project, asked}, w.user(), w.now);
    ASSERT_TRUE(what.ok()) << what.error().message;
    EXPECT_TRUE(before == w.state);
    const auto seen =
        scheduler::forecast(planner_snapshot(w.state), std::get<scheduler::RequestChanged>(what->request), w.now.wall);
    ClusterSpec done = asked;
    done.name = "done";
    const ClusterId id = w.up(done);
    const bool started = w.cluster(id).state == ClusterState::Running;
    EXPECT_EQ(started, !seen.group.places.empty()) << wanted;
    EXPECT_EQ(started, wanted <= 5) << "six machines, each for one member of it";
    if (started) continue;
    const auto now = w.planner.queue_of(id, w.now.wall);
    EXPECT_EQ(now.position, seen.view.position);
    EXPECT_EQ(now.reason.code, seen.view.reason.code);
  }
}

TEST(ClusterLife, FailingWorkersDoNotEndWhatRuns) {
  World w;
  for (int i = 0; i < 8; ++i) w.enrol("m" + std::to_string(i));
  const ClusterId id = w.up(World::spec(1, 1));
  for (int i = 0; i < 5; ++i) {
    ASSERT_EQ(w.slots(id, SlotRole::Worker).size(), 1U) << i;
    ASSERT_TRUE(w.report(w.slots(id, SlotRole::Worker)[0]->lease, LeasePhase::Failed, "setup.failed").ok());
    EXPECT_EQ(w.cluster(id).state, ClusterState::Running);
    w.rounds();
  }
}

TEST(ClusterLife, ARebootEndsWhatTheMachineHeldAndItsWordIsTakenForIt) {
  World w;
  for (const char* name : {"a", "b", "c", "d"}) w.enrol(name);
  const ClusterId id = w.up(World::spec());
  const Lease worker = w.lease_of(w.slots(id, SlotRole::Worker).at(0));
  NodeFacts facts = w.state.nodes.at(worker.node).facts;
  facts.boot_id = "next";
  // What it says of its old boot changes nothing: neither Ready nor an older key brings the lease back.
  w.must(NodeOnline{worker.node, facts, {w.seen(worker.id, LeasePhase::Ready)}, {}, "next"});
  EXPECT_EQ(w.state.leases.at(worker.id).want, LeaseWant::Stop);
  EXPECT_EQ(w.state.leases.at(worker.id).end, LeaseEnd::None) << "its devices are free when it says so";
  EXPECT_EQ(w.state.leases.at(worker.id).reason, "node_rebooted");
  for (const SlotId slot : w.cluster(id).slots) EXPECT_NE(slot, worker.slot);
  w.rounds();
  EXPECT_EQ(w.state.leases.at(worker.id).end, LeaseEnd::Confirmed);
  EXPECT_EQ(w.slots(id, SlotRole::Worker).size(), 2U);
  // Facts may be left out: the session's boot id counts.
  w.must(NodeOnline{w.head(id).node, std::nullopt, {}, {}, "other"});
  EXPECT_EQ(w.cluster(id).state, ClusterState::Failed);
  EXPECT_EQ(w.cluster(id).reason, "node_rebooted");
}

TEST(ClusterLife, OfTwoMachinesWithOneKeyNeitherIsBelieved) {
  World w;
  for (const char* name : {"a", "b", "c", "d"}) w.enrol(name);
  const ClusterId id = w.up(World::spec());
  const Lease worker = w.lease_of(w.slots(id, SlotRole::Worker).at(0)), head = w.head(id);
  EXPECT_FALSE(w.run(NodeContested{worker.node}, w.user()).ok());
  w.must(NodeContested{worker.node});
  const auto& kept_out = w.state.nodes.at(worker.node);
  EXPECT_EQ(kept_out.state, NodeState::Quarantined);
  EXPECT_EQ(w.cluster(id).reason, "workers_below_min");
  w.rounds();
  EXPECT_EQ(w.slots(id, SlotRole::Worker).size(), 2U) << "replaced";
  EXPECT_FALSE(w.run(NodeOnline{worker.node}, World::system()).ok()) << "whoever says it";
  w.must(NodeLost{worker.node});
  EXPECT_EQ(kept_out.state, NodeState::Quarantined);
  w.must(NodeContested{worker.node});
  w.must(SetNode{worker.node, SetNode::Action::Enable});
  EXPECT_EQ(kept_out.state, NodeState::Admitted);
  w.must(NodeOnline{worker.node});
  EXPECT_EQ(kept_out.state, NodeState::Online);
  ASSERT_EQ(desired_for(w.state, worker.node).size(), 1U);
  EXPECT_EQ(desired_for(w.state, worker.node)[0].want, LeaseWant::Stop);
  ASSERT_TRUE(w.report(worker.id, LeasePhase::Stopped).ok());
  w.must(NodeLeft{worker.node}, World::device(worker.node));
  EXPECT_EQ(w.state.leases.at(worker.id).end, LeaseEnd::None) << "the other one may still run it";
  w.must(LeasesExpired{{worker.id}});
  EXPECT_EQ(w.state.leases.at(worker.id).end, LeaseEnd::Expired);
  w.must(NodeContested{head.node});
  EXPECT_EQ(w.cluster(id).state, ClusterState::Failed);
  w.rounds();
  EXPECT_EQ(w.state.leases.at(head.id).end, LeaseEnd::None);
  for (const LeaseId lease : w.state.cluster_leases(id))
    if (lease != head.id) EXPECT_NE(w.state.leases.at(lease).end, LeaseEnd::None) << "others confirm as ever";
}

TEST(ClusterLife, WhoDoesNotAcknowledgeARosterLeavesToo) {
  World w;
  for (const char* name : {"a", "b", "c", "d", "e"}) w.enrol(name);
  const ClusterId id = w.up(World::spec(2, 2));
  const Lease worker = w.lease_of(w.slots(id, SlotRole::Worker).at(0)), head = w.head(id);
  EXPECT_FALSE(w.run(RostersLate{{worker.id}}, w.user()).ok());
  const std::uint64_t epoch = w.cluster(id).roster_epoch;
  w.must(SetFreeze{true, "silence"});
  w.must(RostersLate{{worker.id}});
  EXPECT_EQ(w.cluster(id).roster_epoch, epoch) << "nobody is evicted while we may be the ones cut off";
  w.must(SetFreeze{false, ""});
  w.must(RostersLate{{worker.id, LeaseId{999}}});
  EXPECT_GT(w.cluster(id).roster_epoch, epoch);
  EXPECT_EQ(w.state.leases.at(worker.id).want, LeaseWant::Stop);
  EXPECT_EQ(w.state.leases.at(worker.id).reason, "roster_not_acknowledged");
  const std::size_t before = w.journal.size();
  w.must(RostersLate{{worker.id}});
  EXPECT_EQ(w.journal.size(), before) << "it left already";
  w.rounds();
  ASSERT_EQ(w.slots(id, SlotRole::Worker).size(), 2U);
  for (const Slot* slot : w.slots(id, SlotRole::Worker)) EXPECT_NE(w.lease_of(slot).node, worker.node);
  w.must(RostersLate{{head.id}});
  EXPECT_EQ(w.cluster(id).state, ClusterState::Failed);
  EXPECT_EQ(w.cluster(id).reason, "head_roster_not_acknowledged");
}

TEST(ClusterLife, ARestoredBackupGivesRostersThatNobodyHasSeen) {
  World w;
  for (const char* name : {"a", "b", "c"}) w.enrol(name);
  const ClusterId id = w.up(World::spec());
  const State backup = w.state;
  for (int i = 0; i < 3; ++i) {
    w.must(NodeOnline{
        w.lease_of(w.slots(id, SlotRole::Worker).at(0)).node, std::nullopt, {}, {}, "boot" + std::to_string(i)});
    w.rounds();
  }
  const std::uint64_t seen = w.cluster(id).roster_epoch;
  w.state = backup;
  w.must(RaiseIncarnation{"restored"});
  EXPECT_GT(w.cluster(id).roster_epoch, seen) << "members keep the highest they saw";
}

TEST(ClusterLife, HeadOnALostMachineWaitsForItsLease) {
  World w;
  for (const char* name : {"a", "b", "c"}) w.enrol(name);
  const ClusterId id = w.up(World::spec());
  const Lease head = w.head(id);
  w.must(NodeLost{head.node});
  EXPECT_EQ(w.cluster(id).state, ClusterState::Running);
  EXPECT_EQ(w.cluster(id).reason, "head_unreachable");
  w.must(NodeOnline{head.node});
  EXPECT_EQ(w.cluster(id).reason, "");
  w.must(NodeLost{head.node});
  w.must(LeasesExpired{{head.id}});
  EXPECT_EQ(w.cluster(id).state, ClusterState::Failed);
  EXPECT_EQ(w.cluster(id).reason, "head_lost");
}

TEST(ClusterLife, FailedWorkerBacksOffAndMovesOn) {
  World w;
  for (const char* name : {"a", "b", "c", "d"}) w.enrol(name);
  const ClusterId id = w.up(World::spec());
  const Lease failed = w.lease_of(w.slots(id, SlotRole::Worker).at(0));
  ASSERT_TRUE(w.report(failed.id, LeasePhase::Failed, "image_pull").ok());
  EXPECT_EQ(w.state.leases.at(failed.id).end, LeaseEnd::Confirmed);
  EXPECT_GT(w.state.backoffs.at({id, failed.node}).until, w.now.wall);
  w.rounds();
  ASSERT_EQ(w.slots(id, SlotRole::Worker).size(), 2U);
  for (const Slot* slot : w.slots(id, SlotRole::Worker)) EXPECT_NE(w.lease_of(slot).node, failed.node);
  w.pass(1min);
  EXPECT_EQ(w.state.backoffs.at({id, failed.node}).until.ms, 0);
}

TEST(ClusterLife, ImagesWithoutTokensOrOfTwoVersionsFail) {
  for (const bool mixed : {false, true}) {
    World w;
    for (const char* name : {"a", "b", "c"}) w.enrol(name);
    const ClusterId id = ClusterId::parse(w.must(CreateCluster{w.project, World::spec()}, w.user()).id).value();
    w.plan();
    ASSERT_TRUE(w.report(w.head(id).id, LeasePhase::Creating).ok());
    const Lease worker = w.lease_of(w.slots(id, SlotRole::Worker).at(0));
    ObservedLease o = w.seen(worker.id, LeasePhase::Creating);
    if (mixed)
      o.probe.ray_version = "2.8.0";
    else
      o.probe.token_auth = false;
    w.must(ReportObserved{worker.node, 0, {o}, {}}, World::device(worker.node));
    EXPECT_EQ(w.cluster(id).state, ClusterState::Failed);
    EXPECT_EQ(w.cluster(id).reason, mixed ? "image_probe.mixed_versions" : "image_probe.no_token_auth");
  }
}

TEST(ClusterLife, StaleEpochsAndOtherMachinesChangeNothing) {
  World w;
  for (const char* name : {"a", "b", "c"}) w.enrol(name);
  const ClusterId id = w.up(World::spec());
  const Lease head = w.head(id);
  ObservedLease o = w.seen(head.id, LeasePhase::Stopped);
  o.epoch.incarnation = 0;
  const std::size_t before = w.journal.size();
  w.must(ReportObserved{head.node, 0, {o}, {}}, World::device(head.node));
  const NodeId other = w.lease_of(w.slots(id, SlotRole::Worker).at(0)).node;
  w.must(ReportObserved{other, 0, {w.seen(head.id, LeasePhase::Stopped)}, {}}, World::device(other));
  EXPECT_EQ(w.journal.size(), before);
  EXPECT_FALSE(w.run(ReportObserved{head.node, 0, {}, {}}, World::device(other)).ok()) << "a device speaks for itself";
  w.agents();
  EXPECT_EQ(w.journal.size(), before) << "saying the same again is no news";
}

TEST(ClusterLife, LifetimeAndIdleWorkersEnd) {
  World w;
  for (const char* name : {"a", "b", "c", "d"}) w.enrol(name);
  ClusterSpec spec = World::spec(1, 3);
  spec.idle_timeout = 5min, spec.max_lifetime = 1h;
  const ClusterId id = w.up(spec);
  const auto report = [&](std::vector<RayDemand> demands, Millis idle) {
    RayReport r{id, w.head(id).id, {}, std::move(demands)};
    for (const Slot* slot : w.slots(id, SlotRole::Worker))
      r.nodes.push_back({"n", slot->address, true, idle, {.cpu_milli = 2000}});
    w.must(ReportRay{w.head(id).node, r}, World::device(w.head(id).node));
  };
  report({{{.cpu_milli = 2000}, 2, true}}, Millis(0));
  EXPECT_EQ(w.cluster(id).wanted.at("workers"), 3U) << "two bundles, strictly spread, on new workers";
  report({{{.cpu_milli = 2000}, 2, true},
          {{.cpu_milli = std::int64_t{1} << 60}, 4'000'000'000U, true},
          {{.cpu_milli = -5}, 9, false}},
         Millis(0));
  EXPECT_EQ(w.cluster(id).wanted.at("workers"), 3U) << "bounded by max";
  w.rounds();
  EXPECT_EQ(w.slots(id, SlotRole::Worker).size(), 3U);
  report({}, 6min);
  EXPECT_EQ(w.cluster(id).wanted.at("workers"), 1U) << "never below min";
  int draining = 0;
  for (const Slot* slot : w.slots(id, SlotRole::Worker)) draining += w.lease_of(slot).want == LeaseWant::Drain ? 1 : 0;
  EXPECT_EQ(draining, 2);
  w.pass(2min);
  w.rounds();
  EXPECT_EQ(w.slots(id, SlotRole::Worker).size(), 1U);
  w.pass(1h);
  EXPECT_EQ(w.cluster(id).state, ClusterState::Stopping);
  EXPECT_EQ(w.cluster(id).reason, "max_lifetime");
}

TEST(ClusterLife, UpdateChangesWhatMayChange) {
  World w;
  for (const char* name : {"a", "b", "c", "d"}) w.enrol(name);
  const ClusterId id = w.up(World::spec());
  ClusterSpec spec = World::spec(3, 3);
  w.must(UpdateCluster{id, spec, 1}, w.user());
  EXPECT_EQ(w.cluster(id).generation, 2U);
  w.rounds();
  EXPECT_EQ(w.slots(id, SlotRole::Worker).size(), 3U);
  const auto stale = w.run(UpdateCluster{id, World::spec(1, 1), 1}, w.user());
  ASSERT_FALSE(stale.ok());
  EXPECT_EQ(stale.error().code, Code::Aborted);
  w.must(UpdateCluster{id, World::spec(1, 1), 2}, w.user());
  w.rounds();
  EXPECT_EQ(w.slots(id, SlotRole::Worker).size(), 1U);
  ClusterSpec image = World::spec(1, 1);
  image.image = "other";
  EXPECT_EQ(w.run(UpdateCluster{id, image, 0}, w.user()).error().field, "spec.image");
  ClusterSpec bigger = World::spec(1, 1);
  bigger.groups[0].request.resources.cpu_milli = 9;
  EXPECT_EQ(w.run(UpdateCluster{id, bigger, 0}, w.user()).error().field, "spec.groups.0");
}

TEST(ClusterLife, RefusedBeforePlacement) {
  World w;
  w.enrol("a");
  EXPECT_EQ(w.run(CreateCluster{w.project, World::spec()}, w.as(Role::Tenant, w.supplier)).error().code,
            Code::PermissionDenied);
  ClusterSpec spec = World::spec();
  spec.egress = true;
  EXPECT_TRUE(w.run(CreateCluster{w.project, spec}, w.user()).error().message.starts_with("egress_not_granted"));
  spec = World::spec();
  spec.head.pinned = {NodeId{1}};
  EXPECT_EQ(w.run(CreateCluster{w.project, spec}, w.user()).error().field, "spec.head.pinned")
      << "not a machine of the caller's";
  spec = World::spec();
  spec.name = "Bad Name";
  EXPECT_EQ(w.run(CreateCluster{w.project, spec}, w.user()).error().field, "spec.name");
  spec = World::spec(5, 2);
  EXPECT_EQ(w.run(CreateCluster{w.project, spec}, w.user()).error().field, "spec.groups.0.min");
  spec = World::spec();
  spec.head.resources.cpu_milli = -1;
  EXPECT_EQ(w.run(CreateCluster{w.project, spec}, w.user()).error().field, "spec.head.resources.cpu_milli");
  w.must(CreateCluster{w.project, World::spec()}, w.user());
  EXPECT_EQ(w.run(CreateCluster{w.project, World::spec()}, w.user()).error().code, Code::AlreadyExists);
}

TEST(ClusterLife, GpusAreDisjointUntilTheStopIsConfirmed) {
  World w;
  const NodeId node = w.enrol("gpu", 2);
  ClusterSpec spec = World::spec(0, 0);
  spec.head.resources.gpus = 2;
  const ClusterId first = w.up(spec);
  ASSERT_EQ(w.cluster(first).state, ClusterState::Running);
  EXPECT_EQ(w.head(first).devices.size(), 2U);
  spec.name = "second";
  const ClusterId second = w.up(spec);
  w.silent.insert(node);
  w.must(StopCluster{first, ""}, w.user());
  w.rounds();
  EXPECT_EQ(w.cluster(second).state, ClusterState::Queued) << "the first has not confirmed";
  w.silent.clear();
  w.rounds();
  EXPECT_EQ(w.cluster(second).state, ClusterState::Running);
}

TEST(ClusterLife, StalePlansAreDropped) {
  World w;
  for (const char* name : {"a", "b", "c"}) w.enrol(name);
  const ClusterId id = ClusterId::parse(w.must(CreateCluster{w.project, World::spec()}, w.user()).id).value();
  auto groups = w.planner.plan({}, w.now.wall);
  ASSERT_EQ(groups.size(), 1U);
  auto partial = groups;
  partial[0].places.pop_back();
  w.must(ApplyPlan{partial});
  EXPECT_EQ(w.cluster(id).state, ClusterState::Queued) << "not the whole gang";
  auto doubled = groups;
  doubled[0].places[2].node = doubled[0].places[1].node;
  w.must(ApplyPlan{doubled});
  EXPECT_EQ(w.cluster(id).state, ClusterState::Queued);
  w.must(NodeSuspect{groups[0].places[0].node});
  w.must(ApplyPlan{groups});
  EXPECT_EQ(w.cluster(id).state, ClusterState::Queued) << "a machine went silent";
  w.must(NodeOnline{groups[0].places[0].node});
  w.must(ApplyPlan{groups});
  w.must(ApplyPlan{groups});
  EXPECT_EQ(w.count<LeaseGranted>(), 3) << "and only once";
}

TEST(ClusterLife, AGrowthThatNobodyWantsAnyMoreIsDropped) {
  World w;
  for (const char* name : {"a", "b", "c"}) w.enrol(name);
  const ClusterId id = w.up(World::spec());
  const NodeId lost = w.lease_of(w.slots(id, SlotRole::Worker).at(0)).node;
  w.silent.insert(lost);
  w.must(NodeLost{lost});
  const NodeId d = w.enrol("d"), e = w.enrol("e");
  const auto groups = w.planner.plan({}, w.now.wall);
  ASSERT_EQ(groups.size(), 1U);
  ASSERT_EQ(groups[0].places.size(), 1U);
  auto late = groups;
  late[0].places[0].node = groups[0].places[0].node == d ? e : d;
  w.must(ApplyPlan{groups});
  const auto granted = w.count<LeaseGranted>();
  w.must(ApplyPlan{late});
  EXPECT_EQ(w.count<LeaseGranted>(), granted) << "the worker was replaced already";
}

// ---- pools

NodeId enrol_with(World& w, OrgId owner, std::map<std::string, std::string> labels, std::uint8_t number,
                  std::map<std::string, std::string> claims = {}, const std::string& region = "") {
  const Bytes hash(32, static_cast<std::uint8_t>(200 + number)), key(32, number);
  NodeFacts facts;
  facts.arch = "x86_64", facts.runtimes = {RuntimeKind::Docker}, facts.labels = std::move(claims);
  facts.region = region;
  facts.capacity.cpu_milli = 4000, facts.capacity.memory_bytes = std::int64_t{8} << 30;
  w.must(CreateJoinToken{owner, hash, std::move(labels), 1h});
  const NodeId id = NodeId::parse(w.must(EnrollNode{hash, key, "pc", std::move(facts)}, Actor{}).id).value();
  w.must(NodeOnline{id});
  return id;
}

TEST(Pools, AJoinTokenPutsMachinesOnlyIntoPoolsOfItsOrganisation) {
  World w;
  ASSERT_EQ(w.supplier, kPlatformOrg);
  const auto made = [&](const std::string& pool) {
    static std::uint8_t number = 0;
    const Bytes hash(32, ++number);
    const auto out = w.run(CreateJoinToken{w.tenant, hash, {{"pool", pool}}, 1h}, w.user());
    return out.ok() ? w.state.join_tokens.rbegin()->second.labels.at("pool") : std::string(code_name(out.error().code));
  };
  EXPECT_EQ(made("gold"), "gold");
  EXPECT_EQ(made("lab/gold"), "gold");
  EXPECT_EQ(made(w.tenant.str() + "/gold"), "gold");
  EXPECT_EQ(made("hall/gold"), "permission_denied");
  EXPECT_EQ(made(w.supplier.str() + "/gold"), "permission_denied");
  EXPECT_EQ(made("elsewhere/gold"), "permission_denied");
  EXPECT_EQ(made("Gold"), "invalid_argument");
  EXPECT_EQ(made("a/b/c"), "invalid_argument");
  EXPECT_EQ(made(""), "invalid_argument");
}

TEST(Pools, APoolIsOneOrganisationsWhateverOthersWriteOnTheirMachines) {
  World w;
  const NodeId platforms = enrol_with(w, w.supplier, {{"pool", "gold"}}, 1);
  const NodeId tenants = enrol_with(w, w.tenant, {{"pool", "gold"}}, 2);
  const NodeId liar = enrol_with(w, w.tenant, {}, 3, {{"pool", "gold"}});
  const OrgId guests = OrgId::parse(w.must(CreateOrg{"guests"}).id).value();
  w.project = ProjectId::parse(w.must(CreateProject{guests, "default"}).id).value();
  const auto used = [&](const std::string& name, const std::string& pool) {
    ClusterSpec spec = World::spec(0, 0);
    spec.name = name, spec.pool = pool;
    const ClusterId id = ClusterId::parse(w.must(CreateCluster{w.project, spec}).id).value();
    w.rounds();
    const auto heads = w.slots(id, SlotRole::Head);
    const NodeId node = heads.empty() ? NodeId{} : w.lease_of(heads[0]).node;
    w.must(StopCluster{id});
    w.rounds();
    return node;
  };
  EXPECT_EQ(used("a", "pool:gold"), platforms);
  EXPECT_EQ(used("b", "pool:hall/gold"), platforms);
  EXPECT_EQ(used("c", "pool:lab/gold"), tenants);
  EXPECT_EQ(used("d", "pool:" + w.tenant.str() + "/gold"), tenants);
  EXPECT_EQ(used("e", "pool:guests/gold"), NodeId{}) << "nobody is in it";
  ClusterSpec spec = World::spec(0, 0);
  spec.name = "f", spec.pool = "pool:nobody/gold";
  EXPECT_EQ(w.run(CreateCluster{w.project, spec}).error().code, Code::InvalidArgument);
  EXPECT_EQ(pool_of(w.state.nodes.at(liar)), "");
}

TEST(Pools, APlanThatNamesAnotherMachineIsNotCommitted) {
  World w;
  const NodeId platforms = enrol_with(w, w.supplier, {{"pool", "gold"}}, 1);
  const NodeId tenants = enrol_with(w, w.tenant, {{"pool", "gold"}}, 2);
  ClusterSpec spec = World::spec(0, 0);
  spec.pool = "pool:gold";
  w.must(CreateCluster{w.project, spec}, w.user());
  auto groups = w.planner.plan({}, w.now.wall);
  ASSERT_EQ(groups.size(), 1U);
  ASSERT_EQ(groups[0].places[0].node, platforms);
  auto forged = groups;
  forged[0].places[0].node = tenants;
  w.must(ApplyPlan{forged});
  EXPECT_EQ(w.count<LeaseGranted>(), 0);
  w.must(ApplyPlan{groups});
  EXPECT_EQ(w.count<LeaseGranted>(), 1);
}

TEST(Pools, ATokenOfBeforeThatNamesAnothersPoolEnrolsNobody) {
  World w;
  const Bytes hash(32, 1);
  apply(w.state, JoinTokenCreated{{TokenId{9}, w.tenant, hash, {{"pool", "hall/gold"}}, w.now.wall + 1h, {}, false}},
        EntryContext{w.state.seq + 1, w.now.wall, w.state.leader_epoch, World::system()});
  NodeFacts facts;
  facts.arch = "x86_64";
  EXPECT_EQ(w.run(EnrollNode{hash, Bytes(32, 2), "pc", facts}, Actor{}).error().code, Code::PermissionDenied);
}

TEST(Pools, TheTokensRegionGoesOverTheMachinesOwn) {
  World w;
  const NodeId said = enrol_with(w, w.supplier, {{"region", "eu"}, {"rack", "a"}}, 1, {{"rack", "z"}}, "us");
  const NodeId claims = enrol_with(w, w.supplier, {}, 2, {{"rack", "z"}}, "us");
  EXPECT_EQ(region_of(w.state.nodes.at(said)), "eu");
  EXPECT_FALSE(region_is_claimed(w.state.nodes.at(said)));
  EXPECT_EQ(region_of(w.state.nodes.at(claims)), "us");
  EXPECT_TRUE(region_is_claimed(w.state.nodes.at(claims)));
  const auto used = [&](const std::string& name, const std::map<std::string, std::string>& constraints) {
    ClusterSpec spec = World::spec(0, 0);
    spec.name = name, spec.head.constraints = constraints;
    const ClusterId id = w.up(spec);
    const auto heads = w.slots(id, SlotRole::Head);
    return heads.empty() ? NodeId{} : w.lease_of(heads[0]).node;
  };
  EXPECT_EQ(used("a", {{"region", "eu"}, {"rack", "a"}}), said);
  EXPECT_EQ(used("b", {{"region", "us"}, {"rack", "z"}}), claims);
  EXPECT_EQ(used("c", {{"region", "us"}, {"rack", "a"}}), NodeId{});
}

TEST(Pools, AMachineCannotSayWhoseLawItStandsUnder) {
  World w;
  const NodeId claims = enrol_with(w, w.supplier, {}, 1, {{"jurisdiction", "DE"}}, "eu");
  ClusterSpec spec = World::spec(0, 0);
  spec.head.constraints = {{"jurisdiction", "DE"}};
  const ClusterId id = w.up(spec);
  EXPECT_TRUE(w.slots(id, SlotRole::Head).empty());
  // Nor does the core take a plan for it that comes all the same.
  scheduler::Group forged;
  forged.kind = scheduler::ActionKind::Start, forged.cluster = id;
  forged.places = {{SlotRole::Head, "", claims, {}, {}}};
  w.must(ApplyPlan{{forged}});
  EXPECT_EQ(w.count<LeaseGranted>(), 0);
  const NodeId said = enrol_with(w, w.supplier, {{"jurisdiction", "DE"}}, 2, {}, "eu");
  w.plan();
  const auto heads = w.slots(id, SlotRole::Head);
  ASSERT_EQ(heads.size(), 1U);
  EXPECT_EQ(w.lease_of(heads[0]).node, said);
}

TEST(Machines, EnrolOnceThenDrainDisableRevoke) {
  World w;
  const Bytes hash(32, 7), key(32, 8);
  NodeFacts facts;
  facts.arch = "x86_64";
  w.must(CreateJoinToken{w.supplier, hash, {{"pool", "lab"}}, 1h}, w.as(Role::Supplier, w.supplier));
  const NodeId id = NodeId::parse(w.must(EnrollNode{hash, key, "pc", facts}, Actor{}).id).value();
  EXPECT_EQ(w.state.nodes.at(id).labels.at("pool"), "lab");
  EXPECT_EQ(w.state.nodes.at(id).state, NodeState::Admitted);
  EXPECT_EQ(w.run(EnrollNode{hash, Bytes(32, 9), "pc", facts}, Actor{}).error().code, Code::Unauthenticated);
  // The answer was lost: the same key with the same token gets the same machine, and nothing is stored twice.
  const std::size_t before = w.journal.size();
  EXPECT_EQ(w.must(EnrollNode{hash, key, "pc", facts}, Actor{}).id, id.str());
  EXPECT_EQ(w.journal.size(), before);
  const Bytes second(32, 17);
  w.must(CreateJoinToken{w.supplier, second, {}, 1h});
  EXPECT_EQ(w.run(EnrollNode{second, key, "copy", facts}, Actor{}).error().code, Code::AlreadyExists);
  w.pass(2h);
  EXPECT_EQ(w.run(EnrollNode{second, Bytes(32, 9), "late", facts}, Actor{}).error().code, Code::Unauthenticated);
  w.must(NodeOnline{id});
  w.must(SetNode{id, SetNode::Action::Drain}, w.as(Role::Supplier, w.supplier));
  EXPECT_EQ(w.state.nodes.at(id).state, NodeState::Draining);
  w.must(SetNode{id, SetNode::Action::Undrain}, w.as(Role::Supplier, w.supplier));
  EXPECT_EQ(w.state.nodes.at(id).state, NodeState::Online);
  EXPECT_EQ(w.run(SetNode{id, SetNode::Action::Drain}, w.as(Role::Supplier, w.tenant)).error().code, Code::NotFound);
  w.must(SetNode{id, SetNode::Action::Revoke}, w.as(Role::Operator, {}));
  EXPECT_FALSE(w.run(NodeOnline{id}).ok());
  EXPECT_FALSE(w.run(NodeLost{id}, w.user()).ok()) << "people do not decide about liveness";
}

TEST(Machines, WhatAnOperatorDisabledOnlyAnOperatorEnables) {
  using Action = SetNode::Action;
  World w;
  const Actor owner = w.as(Role::Supplier, w.supplier), boss = w.as(Role::Operator, {});
  const NodeId id = w.enrol("pc");
  const auto state = [&] { return w.state.nodes.at(id).state; };
  w.must(SetNode{id, Action::Disable}, owner);
  w.must(SetNode{id, Action::Enable}, owner);
  EXPECT_EQ(state(), NodeState::Admitted) << "his own word he may take back";
  w.must(SetNode{id, Action::Disable}, owner);
  w.must(SetNode{id, Action::Enable}, boss);
  EXPECT_EQ(state(), NodeState::Admitted);

  w.must(SetNode{id, Action::Disable}, boss);
  const auto refused = w.run(SetNode{id, Action::Enable}, owner);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, Code::PermissionDenied);
  EXPECT_NE(refused.error().message.find("operator"), std::string::npos);
  w.must(SetNode{id, Action::Disable}, owner);  // nothing to do, and nothing taken back by it
  EXPECT_FALSE(w.run(SetNode{id, Action::Enable}, owner).ok());
  w.must(NodeOnline{id});
  EXPECT_EQ(state(), NodeState::Disabled);
  // It outlives a snapshot and a quarantine; a quarantine alone is the owner's to end.
  const auto again = decode_state(encode_state(w.state, w.state.format_version));
  ASSERT_TRUE(again.ok());
  EXPECT_TRUE(again->nodes.at(id).barred);
  w.must(NodeContested{id});
  EXPECT_FALSE(w.run(SetNode{id, Action::Enable}, owner).ok());
  w.must(SetNode{id, Action::Enable}, boss);
  EXPECT_EQ(state(), NodeState::Admitted);
  w.must(NodeOnline{id});
  w.must(NodeContested{id});
  w.must(SetNode{id, Action::Enable}, owner);
  EXPECT_EQ(state(), NodeState::Admitted);

  // An operator's word counts also on a machine that is off already.
  w.must(SetNode{id, Action::Disable}, owner);
  w.must(SetNode{id, Action::Disable}, boss);
  EXPECT_FALSE(w.run(SetNode{id, Action::Enable}, owner).ok());
}

TEST(Machines, NothingNewComesToOneThatIsHeldAndWhatRunsStays) {
  World w;
  for (int i = 0; i < 3; ++i) w.enrol("box" + std::to_string(i));
  const ClusterId id = w.up(World::spec());
  const NodeId held = w.lease_of(w.slots(id, SlotRole::Worker).at(0)).node;
  w.must(SetHeld{held, "CVE-2025-23266 in nvidia-container-toolkit 1.17.4"});
  EXPECT_EQ(held_for(w.state.nodes.at(held)), "CVE-2025-23266 in nvidia-container-toolkit 1.17.4");
  EXPECT_FALSE(schedulable(w.state.nodes.at(held)));
  w.plan();
  EXPECT_EQ(w.state.find_cluster(id)->state, ClusterState::Running) << "what runs goes on";
  EXPECT_EQ(w.state.live_leases(held).size(), 1U);

  // A plan that was made before it was known is refused, and its own word changes nothing.
  NodeFacts facts = w.state.nodes.at(held).facts;
  facts.labels.clear();
  w.must(NodeOnline{held, facts});
  EXPECT_FALSE(schedulable(w.state.nodes.at(held))) << "silence heals nothing";
  facts.labels[std::string(kHeldLabel)] = "of its own accord";
  w.must(NodeOnline{held, facts, {}, {}, {}, ""});
  EXPECT_TRUE(schedulable(w.state.nodes.at(held))) << "only the control plane's verdict counts";
  EXPECT_FALSE(w.run(SetHeld{held, "x"}, w.as(Role::Operator, w.supplier)).ok()) << "no person says it";

  const auto journal = w.journal.size();
  w.must(SetHeld{held, ""});
  EXPECT_EQ(w.journal.size(), journal) << "nothing new to note";
  w.must(SetHeld{held, "CVE-1", true});
  w.plan();
  EXPECT_EQ(w.lease_of(w.slots(id, SlotRole::Worker).at(0)).want, LeaseWant::Drain) << "the operator wants it to leave";
}

TEST(Machines, ABarRaisesAnOldJournalToTheFormatThatKeepsIt) {
  World w;
  const NodeId id = w.enrol("pc");
  w.state.format_version = 1;
  w.must(SetNode{id, SetNode::Action::Disable}, w.as(Role::Supplier, w.supplier));
  EXPECT_EQ(w.state.format_version, 1U);
  w.must(SetNode{id, SetNode::Action::Disable}, w.as(Role::Operator, {}));
  EXPECT_EQ(w.state.format_version, 2U);
}

// The planner knows what runs, and until when, from the events alone and from a snapshot alike.
TEST(Cluster, WaitersAreToldWhenRunningWorkMustEnd) {
  World w;
  w.enrol("a"), w.enrol("b"), w.enrol("c");
  ClusterSpec first = World::spec(), second = World::spec();
  for (ClusterSpec* spec : {&first, &second})
    spec->head.resources.cpu_milli = spec->groups[0].request.resources.cpu_milli = 3000;
  first.max_lifetime = 2h, second.name = "second";
  w.up(first);
  const WallTime running = w.now.wall;
  const ClusterId waits = ClusterId::parse(w.must(CreateCluster{w.project, second}, w.user()).id).value();
  w.plan();
  const auto view = w.planner.queue_of(waits, w.now.wall);
  EXPECT_EQ(view.position, 1U);
  EXPECT_EQ(view.reason.code, "machines_busy");
  ASSERT_TRUE(view.known);
  EXPECT_LT(view.expected_start - (running + 2h), 2min);
  EXPECT_LE(running + 2h, view.expected_start + 1s);
  scheduler::Scheduler rebuilt;
  for (const auto& change : planner_snapshot(w.state)) rebuilt.apply(change);
  EXPECT_EQ(rebuilt.queue(w.now.wall), w.planner.queue(w.now.wall));
}

// A control plane that starts again counts what was held before, as the one that saw it does.
TEST(Cluster, WhatWasHeldLatelyCountsAfterARestartToo) {
  World w;
  w.enrol("a"), w.enrol("b"), w.enrol("c");
  const ProjectId theirs =
      ProjectId::parse(w.must(CreateProject{OrgId::parse(w.must(CreateOrg{"else"}).id).value(), "default"}).id).value();
  const ClusterId long_run = w.up(World::spec());
  w.pass(10h);
  w.must(StopCluster{long_run}, w.user());
  w.rounds();
  ASSERT_TRUE(w.state.live_leases(w.state.nodes.begin()->first).empty());
  ClusterSpec spec = World::spec();
  spec.name = "again";
  const ClusterId earlier = ClusterId::parse(w.must(CreateCluster{w.project, spec}, w.user()).id).value();
  w.pass(1min);
  const ClusterId later = ClusterId::parse(w.must(CreateCluster{theirs, spec}).id).value();
  scheduler::Scheduler rebuilt;
  for (const auto& change : planner_snapshot(w.state)) rebuilt.apply(change);
  for (const scheduler::Scheduler* each : {&rebuilt, &w.planner}) {
    const auto queue = each->queue(w.now.wall);
    ASSERT_EQ(queue.size(), 2U);
    EXPECT_EQ(queue[0].cluster, later);
    EXPECT_EQ(queue[1].cluster, earlier);
    EXPECT_TRUE(queue[1].reason.params.contains("fair_share_points"));
  }
  EXPECT_EQ(rebuilt.queue(w.now.wall), w.planner.queue(w.now.wall));
}

// A machine that fails whatever is started on it is always free: it must not be given to everybody in turn.
TEST(Machines, ABlackHoleIsLeftAloneForAWhile) {
  World w;
  const NodeId bad = w.enrol("bad");
  const auto strikes = [&] { return w.state.nodes.at(bad).strikes; };
  const auto start = [&] {
    const ClusterId id = ClusterId::parse(w.must(CreateCluster{w.project, World::spec(0, 1)}, w.user()).id).value();
    w.plan();
    return id;
  };
  const auto fails = [&](const std::string& reason) {
    const ClusterId id = start();
    EXPECT_EQ(w.cluster(id).state, ClusterState::Starting);
    EXPECT_TRUE(w.report(w.head(id).id, LeasePhase::Failed, reason).ok());
    EXPECT_EQ(w.cluster(id).state, ClusterState::Failed);
  };
  for (const char* own : {"setup.failed", "image_pull.not_found", "image_probe.no_ray", "owner.paused"}) fails(own);
  EXPECT_EQ(strikes(), 0U) << "what any machine would have said";
  fails("image_pull.unreachable"), fails("gpu.driver");
  EXPECT_EQ(strikes(), 2U);
  EXPECT_EQ(w.state.nodes.at(bad).backoff_until.ms, 0);
  fails("");
  EXPECT_EQ(w.state.nodes.at(bad).backoff_until, w.now.wall + 10min);
  const ClusterId waits = start();
  EXPECT_EQ(w.cluster(waits).state, ClusterState::Queued);
  scheduler::Scheduler rebuilt;
  for (const auto& change : planner_snapshot(w.state)) rebuilt.apply(change);
  EXPECT_TRUE(rebuilt.plan({}, w.now.wall).empty());
  w.pass(10min);
  w.plan();
  ASSERT_EQ(w.cluster(waits).state, ClusterState::Starting) << "it is tried again";
  EXPECT_TRUE(w.report(w.head(waits).id, LeasePhase::Failed, "venv.failed").ok());
  EXPECT_EQ(w.state.nodes.at(bad).backoff_until, w.now.wall + 20min) << "longer each time";
  w.must(SetNode{bad, SetNode::Action::Enable}, w.as(Role::Supplier, w.supplier));
  EXPECT_EQ(strikes(), 0U) << "its owner has repaired it";
  fails("venv.failed");
  EXPECT_EQ(strikes(), 1U);
  start();
  w.rounds();
  EXPECT_EQ(strikes(), 0U) << "a start came true";
}

TEST(Machines, OneClusterAloneCondemnsNoMachine) {
  World w;
  w.enrol("a"), w.enrol("b");
  const ClusterId id = ClusterId::parse(w.must(CreateCluster{w.project, World::spec(1, 1)}, w.user()).id).value();
  for (int i = 0; i < 6; ++i) {
    w.plan();
    for (const Slot* slot : w.slots(id, SlotRole::Worker))
      EXPECT_TRUE(w.report(slot->lease, LeasePhase::Failed, "image_pull.unreachable").ok());
    w.pass(30min);
  }
  for (const auto& [node, n] : w.state.nodes) EXPECT_LE(n.strikes, 1U);
}

TEST(Machines, EqualOnesTakeTurnsByTheDay) {
  World w;
  for (const char* name : {"a", "b", "c", "d", "e", "f"}) w.enrol(name);
  std::set<NodeId> first;
  for (int day = 0; day < 8; ++day) {
    const ClusterId id = w.up(World::spec(1, 1));
    first.insert(w.head(id).node);
    w.must(StopCluster{id}, w.user());
    w.rounds();
    w.pass(24h);
  }
  EXPECT_GT(first.size(), 2U) << "the same supplier is always hired first";
}

TEST(Machines, DrainingMovesWorkersAway) {
  World w;
  for (const char* name : {"a", "b", "c", "d"}) w.enrol(name);
  const ClusterId id = w.up(World::spec());
  const Lease worker = w.lease_of(w.slots(id, SlotRole::Worker).at(0));
  w.must(SetNode{worker.node, SetNode::Action::Drain});
  EXPECT_EQ(w.state.leases.at(worker.id).want, LeaseWant::Drain);
  w.rounds();
  EXPECT_EQ(w.state.leases.at(worker.id).end, LeaseEnd::Confirmed);
  EXPECT_EQ(w.slots(id, SlotRole::Worker).size(), 2U);
  w.must(NodeLeft{w.head(id).node}, World::device(w.head(id).node));
  EXPECT_EQ(w.cluster(id).state, ClusterState::Failed);
  EXPECT_EQ(w.cluster(id).reason, "node_left");
}

}  // namespace
}  // namespace muster::control
