// Link, liveness, lease table, directory and server session.
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "base/mutant.h"
#include "session/carried.h"
#include "session/digest.h"
#include "session/keeper.h"
#include "session/lease_table.h"
#include "session/link.h"
#include "session/liveness.h"
#include "session/server.h"

namespace muster::session {
namespace {

LeaseTime at(std::int64_t ms) {
  return LeaseTime{ms};
}

TEST(LeaseTable, EndsOnlyAfterLeaseAndMargin) {
  LeaseTable table(Millis(100'000));
  table.granted(LeaseId{1}, at(0));
  EXPECT_TRUE(table.expired(at(130'999)).empty());
  EXPECT_EQ(table.expired(at(131'000)), std::vector<LeaseId>{LeaseId{1}});
  table.renewed(LeaseId{1}, at(50'000));
  EXPECT_TRUE(table.expired(at(131'000)).empty());
  table.renewed(LeaseId{2}, at(50'000));  // unknown
  EXPECT_EQ(table.size(), 1U);
  table.ended(LeaseId{1});
  EXPECT_TRUE(table.expired(at(10'000'000)).empty());
}

TEST(LeaseTable, ATakeoverAssumesTheWorst) {
  LeaseTable table(Millis(100'000));
  table.start({LeaseId{1}, LeaseId{2}}, at(1'000'000));
  EXPECT_TRUE(table.expired(at(1'130'999)).empty());
  EXPECT_EQ(table.expired(at(1'131'000)).size(), 2U);
}

std::vector<std::pair<NodeId, std::string>> some_nodes(std::uint64_t count) {
  std::vector<std::pair<NodeId, std::string>> nodes;
  for (std::uint64_t i = 1; i <= count; ++i) nodes.emplace_back(NodeId{i}, "hall");
  return nodes;
}

TEST(Liveness, ASingleLostNodeIsKnownWithinFifteenSeconds) {
  Liveness liveness;
  liveness.start(some_nodes(10), false, at(0));
  std::int64_t lost_at = 0;
  for (std::int64_t t = 0; t <= 120'000; t += 1000) {
    for (std::uint64_t i = 1; i <= 10; ++i) {
      if (t % 5000 == 0 && (i != 3 || t <= 90'000)) liveness.heard(NodeId{i}, "hall", at(t));
    }
    for (const LivenessEvent& event : liveness.tick(at(t))) {
      const auto* turned = std::get_if<NodeTurned>(&event);
      ASSERT_NE(turned, nullptr);
      EXPECT_EQ(turned->node, NodeId{3});
      if (turned->now == Heard::Lost) lost_at = t;
    }
  }
  EXPECT_GT(lost_at, 90'000);
  EXPECT_LE(lost_at, 105'000);
  EXPECT_FALSE(liveness.frozen());
}

TEST(Liveness, MassSilenceFreezesBeforeItLosesAndThawsAfterTheReturn) {
  Liveness liveness;
  liveness.start(some_nodes(10), false, at(0));
  bool frozen = false, lost_unfrozen = false, thawed = false;
  for (std::int64_t t = 0; t <= 300'000; t += 1000) {
    for (std::uint64_t i = 1; i <= 10; ++i) {
      const bool silent = i <= 6 && t > 90'000 && t < 150'000;
      if (t % 5000 == 0 && !silent) liveness.heard(NodeId{i}, "hall", at(t));
    }
    for (const LivenessEvent& event : liveness.tick(at(t))) {
      if (const auto* freeze = std::get_if<FreezeTurned>(&event)) {
        frozen = freeze->frozen;
        if (!frozen) thawed = t > 150'000;
      } else if (std::get<NodeTurned>(event).now == Heard::Lost) {
        lost_unfrozen = lost_unfrozen || !frozen;
      }
    }
  }
  EXPECT_FALSE(lost_unfrozen);
  EXPECT_TRUE(thawed);
}

TEST(Liveness, WhileManyAreAwaitedOneThatFallsSilentAgainFreezes) {
  for (const bool many_awaited : {false, true}) {
    Liveness liveness;
    liveness.start(some_nodes(10), false, at(0));
    bool lost = false, frozen = false;
    for (std::int64_t t = 0; t <= 60'000; t += 1000) {
      for (std::uint64_t i = 1; i <= 10; ++i) {
        const bool back = many_awaited ? i <= 4 : i <= 8;
        if (t % 5000 == 0 && back && (i != 3 || t < 30'000)) liveness.heard(NodeId{i}, "hall", at(t));
      }
      for (const LivenessEvent& event : liveness.tick(at(t))) {
        if (const auto* freeze = std::get_if<FreezeTurned>(&event)) frozen = frozen || (freeze->frozen && !lost);
        const auto* turned = std::get_if<NodeTurned>(&event);
        lost = lost || (turned != nullptr && turned->now == Heard::Lost);
      }
    }
    EXPECT_TRUE(lost);
    EXPECT_EQ(frozen, many_awaited);
  }
}

TEST(Liveness, NobodyIsLostInTheGracePeriod) {
  Liveness liveness;
  liveness.start(some_nodes(3), false, at(0));
  EXPECT_TRUE(liveness.tick(at(74'000)).empty());
  EXPECT_FALSE(liveness.tick(at(75'000)).empty());
}

Caller caller(const std::string& boot, std::int64_t booted, const std::string& known = {}) {
  return {boot, at(booted), known};
}

TEST(Directory, AReconnectReplacesAndARebootWaitsForSilence) {
  Directory directory;
  const NodeId node{1};
  directory.start(at(0));
  EXPECT_EQ(directory.hello(node, caller("a", -500'000), 1, at(1000)), Verdict::Accept);
  EXPECT_EQ(directory.hello(node, caller("a", -500'000), 2, at(1100)), Verdict::Accept);  // half-open reconnect
  EXPECT_EQ(directory.take_kicked(), (std::vector<Kicked>{{1, Verdict::Replaced}}));
  EXPECT_EQ(directory.heard(node, 2, at(100'000)), Verdict::Accept);
  // Rebooted: the old boot's last frame came a little after the new boot began.
  EXPECT_EQ(directory.hello(node, caller("b", 98'000), 3, at(110'000)), Verdict::Wait);
  EXPECT_EQ(directory.waiting(node, 3, at(174'999)), Verdict::Wait);
  EXPECT_EQ(directory.waiting(node, 3, at(175'000)), Verdict::Accept);
  EXPECT_EQ(directory.take_kicked(), (std::vector<Kicked>{{2, Verdict::Replaced}}));
  EXPECT_EQ(directory.heard(node, 3, at(176'000)), Verdict::Accept);
  EXPECT_TRUE(directory.take_contested().empty());
}

TEST(Directory, AnOldBootThatSpeaksAfterTheNewOneBeganProvesTwoMachines) {
  Directory directory;
  const NodeId node{1};
  directory.start(at(0));
  EXPECT_EQ(directory.hello(node, caller("a", -500'000), 1, at(1000)), Verdict::Accept);
  EXPECT_EQ(directory.hello(node, caller("b", 5000), 2, at(6000)), Verdict::Wait);
  EXPECT_EQ(directory.heard(node, 1, at(20'000)), Verdict::Accept) << "it may have been under way";
  EXPECT_EQ(directory.heard(node, 1, at(20'001)), Verdict::Clone);
  EXPECT_EQ(directory.take_kicked(), (std::vector<Kicked>{{2, Verdict::Clone}}));
  EXPECT_EQ(directory.take_contested(), std::set<NodeId>{node});
  EXPECT_EQ(directory.current(node), std::nullopt);
  EXPECT_EQ(directory.hello(node, caller("b", 5000, "a"), 3, at(21'000)), Verdict::Clone) << "until the core has it";
  EXPECT_TRUE(directory.take_contested().empty());
  directory.forget(node);
  // In quarantine the core keeps both out. Then somebody took the copy away and enabled the node.
  EXPECT_EQ(directory.hello(node, caller("a", -500'000, "a"), 4, at(500'000)), Verdict::Accept);
}

TEST(Directory, ACloneThatWasServedIsFoundWhenTheOriginalReturns) {
  Directory directory;
  const NodeId node{1};
  directory.start(at(0));
  EXPECT_EQ(directory.hello(node, caller("copy", 40'000), 1, at(41'000)), Verdict::Accept) << "it holds nothing";
  EXPECT_EQ(directory.hello(node, caller("first", -500'000), 2, at(60'000)), Verdict::Clone);
  EXPECT_EQ(directory.take_kicked(), (std::vector<Kicked>{{1, Verdict::Clone}}));
}

TEST(Directory, AfterAStartTheHolderOfTheLeasesMayComeFirst) {
  Directory directory;
  const NodeId node{1};
  directory.start(at(1'000'000));
  EXPECT_EQ(directory.hello(node, caller("copy", 900'000, "first"), 1, at(1'002'000)), Verdict::Wait);
  directory.closed(node, 1);
  EXPECT_EQ(directory.hello(node, caller("first", 0, "first"), 2, at(1'010'000)), Verdict::Clone)
      << "what the copy said counts after it hung up";
  EXPECT_EQ(directory.take_contested(), std::set<NodeId>{node});
  directory.start(at(2'000'000));
  EXPECT_EQ(directory.hello(node, caller("next", 1'990'000, "first"), 3, at(2'002'000)), Verdict::Wait);
  EXPECT_EQ(directory.waiting(node, 3, at(2'074'999)), Verdict::Wait);
  EXPECT_EQ(directory.waiting(node, 3, at(2'075'000)), Verdict::Accept);
}

TEST(RosterTable, WhoDoesNotAcknowledgeADepartureIsLate) {
  RosterTable table;
  const ClusterId cluster{1};
  const RosterMember head{LeaseId{1}, true}, one{LeaseId{2}}, two{LeaseId{3}}, three{LeaseId{4}};
  table.update(cluster, 4, {head, one, two}, at(0));
  EXPECT_TRUE(table.late(at(10'000'000)).empty()) << "nobody left";
  table.update(cluster, 5, {head, one}, at(100'000));
  for (const RosterMember& member : {head, one}) table.acknowledged(member.lease, 4);
  EXPECT_TRUE(table.late(at(159'999)).empty());
  EXPECT_EQ(table.late(at(160'000)), std::vector<LeaseId>{one.lease});
  EXPECT_EQ(table.late(at(160'500)), std::vector<LeaseId>{one.lease}) << "until it left";
  EXPECT_FALSE(table.acknowledged_by_all(cluster, 5));
  table.acknowledged(head.lease, 5);
  EXPECT_TRUE(table.acknowledged_by_all(cluster, 5, one.lease)) << "all but the one that goes";
  table.acknowledged(one.lease, 6);
  EXPECT_TRUE(table.late(at(900'000)).empty());
  EXPECT_TRUE(table.acknowledged_by_all(cluster, 5));
  // Who joins later gets its own time; a head has longer.
  table.update(cluster, 6, {head}, at(1'000'000));
  table.acknowledged(three.lease, 0);
  table.update(cluster, 7, {head, three}, at(1'050'000));
  EXPECT_TRUE(table.late(at(1'109'999)).empty());
  EXPECT_EQ(table.late(at(1'110'000)), std::vector<LeaseId>{three.lease});
  table.acknowledged(three.lease, 7);
  EXPECT_EQ(table.late(at(1'300'000)), std::vector<LeaseId>{head.lease});
  table.forget(cluster);
  EXPECT_TRUE(table.late(at(9'000'000)).empty());
}

TEST(RosterTable, AWordThatCameBeforeTheMembershipCounts) {
  RosterTable table;
  const ClusterId cluster{1};
  const RosterMember head{LeaseId{1}, true}, one{LeaseId{2}}, two{LeaseId{3}};
  table.acknowledged(two.lease, 6);
  table.update(cluster, 4, {head, one}, at(0));
  table.update(cluster, 6, {head, two}, at(1000));
  table.acknowledged(head.lease, 6);
  EXPECT_TRUE(table.late(at(1'000'000)).empty());
  table.demand(cluster, at(1'000'000));
  EXPECT_TRUE(table.late(at(2'000'000)).empty());
  table.update(cluster, 5, {head}, at(2'000'000));
  EXPECT_TRUE(table.acknowledged_by_all(cluster, 6)) << "an older update changes nothing";
  for (std::uint64_t i = 0; i < 500; ++i) {
    table.update(cluster, 100 + 2 * i, {head, one}, at(3'000'000));
    table.update(cluster, 101 + 2 * i, {head}, at(3'000'000));
  }
  EXPECT_EQ(table.late(at(3'300'000)), std::vector<LeaseId>{head.lease});
}

class FakeCore final : public CoreView {
 public:
  bool frozen() const override { return is_frozen; }
  std::optional<NodeState> state_of(NodeId node) const override {
    const auto it = nodes.find(node);
    return it == nodes.end() ? std::nullopt : std::optional(it->second);
  }
  std::optional<Roster> roster_of(ClusterId) const override { return roster; }
  bool is_frozen = false;
  std::map<NodeId, NodeState> nodes;
  std::optional<Roster> roster;
};

TEST(Keeper, SaysTheSameUntilTheCoreAgrees) {
  Keeper keeper({});
  FakeCore core;
  core.nodes = {{NodeId{1}, NodeState::Online}, {NodeId{2}, NodeState::Online}};
  keeper.start({{{NodeId{1}, "hall"}, {NodeId{2}, "hall"}}, {LeaseId{9}}, {}, false}, core, at(0));
  int lost = 0, again = 0, expired = 0;
  for (std::int64_t t = 0; t <= 100'000; t += 1000) {
    keeper.heard(NodeId{2}, "hall", at(t));
    const Verdicts verdicts = keeper.tick(at(t), core, true);
    lost += static_cast<int>(verdicts.lost.size());
    EXPECT_TRUE(verdicts.again.empty());
  }
  EXPECT_GE(lost, 4) << "the core did not listen";
  core.nodes[NodeId{1}] = NodeState::Lost;
  core.nodes[NodeId{2}] = NodeState::Lost;  // as an older command said
  for (std::int64_t t = 101'000; t <= 140'000; t += 1000) {
    keeper.heard(NodeId{2}, "hall", at(t));
    const Verdicts verdicts = keeper.tick(at(t), core, true);
    EXPECT_TRUE(verdicts.lost.empty());
    again += static_cast<int>(verdicts.again.size());
  }
  EXPECT_GE(again, 5) << "found by the sweep, said until the core has it";
  for (std::int64_t t = 2'400'000; t <= 2'500'000; t += 1000) {
    EXPECT_TRUE(keeper.tick(at(t), core, false).expired.empty()) << "not leading";
    expired += static_cast<int>(keeper.tick(at(t), core, true).expired.size());
  }
  EXPECT_GE(expired, 10);
}

TEST(Keeper, AFreezeOutlivesTheLeaderAndEndsWhenTheyReturned) {
  for (const bool return_early : {false, true}) {
    Keeper keeper({});
    FakeCore core;
    core.is_frozen = true;
    Keeper::Start start{{}, {}, {}, true};
    for (std::uint64_t i = 1; i <= 10; ++i) {
      start.nodes.emplace_back(NodeId{i}, i % 2 == 0 ? "hall" : "yard");
      core.nodes[NodeId{i}] = i <= 7 ? NodeState::Lost : NodeState::Online;
    }
    keeper.start(start, core, at(0));
    std::int64_t thawed = 0;
    for (std::int64_t t = 0; t <= 600'000; t += 1000) {
      for (std::uint64_t i = 1; i <= 10; ++i) {
        // One of those that are there falls silent for a moment: that shortens nothing.
        const bool silent = (i <= 7 && t < (return_early ? 20'000 : 300'000)) || (i == 9 && t >= 15'000 && t < 30'000);
        if (t % 5000 == 0 && !silent) keeper.heard(NodeId{i}, i % 2 == 0 ? "hall" : "yard", at(t));
      }
      const Verdicts verdicts = keeper.tick(at(t), core, true);
      if (verdicts.freeze && thawed == 0) thawed = t;
      if (verdicts.freeze) core.is_frozen = verdicts.freeze->frozen;
    }
    EXPECT_GE(thawed, return_early ? 75'000 : 300'000);
    EXPECT_LE(thawed, return_early ? 120'000 : 340'000);
    EXPECT_FALSE(core.is_frozen);
  }
}

TEST(Keeper, AsksWhoIsBackForTheRosterOnlyAfterTheGracePeriod) {
  Keeper keeper({});
  FakeCore core;
  core.roster = CoreView::Roster{7, {{LeaseId{1}, true}, {LeaseId{2}, false}}};
  keeper.start({{}, {}, {ClusterId{1}}, false}, core, at(0));
  keeper.acknowledged(LeaseId{1}, 7);
  std::int64_t first = 0;
  for (std::int64_t t = 0; t <= 200'000 && first == 0; t += 1000)
    if (keeper.tick(at(t), core, true).late == std::vector<LeaseId>{LeaseId{2}}) first = t;
  EXPECT_EQ(first, 135'000);
  core.roster->members.pop_back();
  keeper.roster_changed(ClusterId{1});
  EXPECT_TRUE(keeper.tick(at(210'000), core, true).late.empty());
}

TEST(Link, CountsALeaseFromTheSendAndIgnoresForeignEchoes) {
  Link::Options options;
  options.seed = 5;
  options.boot_id = "b";
  Link link(options);
  link.start(at(0));
  EXPECT_TRUE(link.take().dial);
  link.on_up(at(10));
  Challenge challenge;
  challenge.nonce = Bytes(32, 1);
  link.on_frame(challenge, at(20));
  EXPECT_EQ(link.take().send.size(), 1U);
  link.on_frame(Welcome{}, at(30));
  EXPECT_TRUE(link.take().welcomed);
  std::int64_t t = 30;
  std::vector<AgentFrame> sent;
  while (sent.empty()) link.tick(at(++t)), sent = link.take().send;
  const std::uint64_t echo = std::get<Heartbeat>(sent.at(0)).echo;
  link.on_frame(Renewed{echo + 7, {LeaseId{1}}, Millis(1000)}, at(t + 50));
  EXPECT_FALSE(link.take().renewal.has_value());
  link.on_frame(Renewed{echo, {LeaseId{1}}, Millis(1000)}, at(t + 900));
  const LinkOut out = link.take();
  ASSERT_TRUE(out.renewal.has_value());
  EXPECT_EQ(out.renewal->from, at(t));
  link.on_frame(Renewed{echo, {LeaseId{1}}, Millis(1000)}, at(t + 950));  // a repeat
  EXPECT_FALSE(link.take().renewal.has_value());
  link.tick(at(t + 900 + 15'000));
  EXPECT_EQ(link.take().drop, "server is silent");
  EXPECT_FALSE(link.online());
}

TEST(Link, BackOffHasFullJitterAndARefusalForGoodIsFinal) {
  std::set<std::int64_t> waits;
  for (std::uint64_t seed = 0; seed < 40; ++seed) {
    Link::Options options;
    options.seed = seed;
    Link link(options);
    link.start(at(0));
    for (int i = 0; i < 5; ++i) link.on_down(at(0)), link.tick(link.next_deadline());
    link.on_down(at(0));
    EXPECT_LE(link.next_deadline().ms, 64'000);
    waits.insert(link.next_deadline().ms / 1000);
  }
  EXPECT_GT(waits.size(), 10U);
#ifdef MUSTER_MUTANTS
  set_mutant("session.no_jitter");
  std::set<std::int64_t> in_step;
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    Link::Options options;
    options.seed = seed;
    Link link(options);
    link.start(at(0));
    link.on_down(at(0));
    in_step.insert(link.next_deadline().ms);
  }
  set_mutant("");
  EXPECT_EQ(in_step.size(), 1U) << "the planted fault is what the sets above would show";
#endif
  Link link(Link::Options{});
  link.start(at(0));
  link.on_up(at(1));
  link.on_frame(Refused{"clone", "two", Millis(0)}, at(2));
  link.tick(at(10'000'000));
  EXPECT_FALSE(link.take().dial && link.next_deadline().ms < 1'000'000'000);
  EXPECT_EQ(link.refusal(), "clone: two");
}

class FakeAuthority final : public Authority {
 public:
  Result<NodeId> verify(const Hello&, ByteView) override { return NodeId{4}; }
  std::string failure_domain(NodeId) override { return "hall"; }
  std::string known_boot(NodeId) override { return {}; }
  std::vector<LeaseId> live_leases(NodeId) override { return live; }
  void heard(NodeId, const std::string&, LeaseTime) override {}
  void granted(LeaseId lease, LeaseTime) override { granted_leases.push_back(lease); }
  void renewed(LeaseId lease, LeaseTime) override { renewed_leases.push_back(lease); }
  std::vector<LeaseId> live, granted_leases, renewed_leases;
};

TEST(Server, InventoryThenCoreThenDesiredAndOnlyLiveLeasesAreRenewed) {
  FakeAuthority authority;
  Directory directory;
  Server server({}, authority, directory, 1, Bytes(32, 9));
  const Now now{WallTime{0}, at(1000)};
  server.open(now);
  ASSERT_TRUE(std::holds_alternative<Challenge>(server.take().send.at(0)));
  Hello hello;
  hello.boot_id = "b";
  server.on_frame(hello, now);
  ASSERT_TRUE(std::get<Welcome>(server.take().send.at(0)).want_inventory);
  Desired desired;
  desired.revision = 3;
  desired.assignments.emplace_back().lease = LeaseId{8};
  server.set_desired(desired, now);
  EXPECT_TRUE(server.take().send.empty());
  server.on_frame(Inventory{}, now);
  const ServerOut first = server.take();
  ASSERT_TRUE(first.report.has_value());
  EXPECT_TRUE(first.report->online);
  EXPECT_TRUE(first.send.empty());
  server.taken(true, now);
  EXPECT_EQ(std::get<Desired>(server.take().send.at(0)).revision, 3U);
  EXPECT_EQ(authority.granted_leases, std::vector<LeaseId>{LeaseId{8}});
  server.set_desired(desired, now);  // a repeat
  EXPECT_TRUE(server.take().send.empty());
  server.on_frame(Observed{}, now);  // nothing new
  EXPECT_FALSE(server.take().report.has_value());
  authority.live = {LeaseId{8}};
  server.on_frame(Heartbeat{77, {LeaseId{8}, LeaseId{9}}}, now);
  const Renewed renewed = std::get<Renewed>(server.take().send.at(0));
  EXPECT_EQ(renewed.echo, 77U);
  EXPECT_EQ(renewed.leases, std::vector<LeaseId>{LeaseId{8}});
  EXPECT_EQ(authority.renewed_leases, std::vector<LeaseId>{LeaseId{8}});
}

TEST(Server, OrdersWithFreshSecretsAreToldAgain) {
  FakeAuthority authority;
  Directory directory;
  Server server({}, authority, directory, 1, Bytes(32, 9));
  const Now now{WallTime{0}, at(1000)};
  Desired desired;
  desired.revision = 3;
  server.open(now);
  Hello hello;
  hello.boot_id = "b";
  server.on_frame(hello, now);
  server.on_frame(Inventory{}, now);
  server.take();
  server.renew_desired(desired, now);
  EXPECT_TRUE(server.take().send.empty()) << "not before the core took the inventory";
  server.taken(true, now);
  EXPECT_EQ(server.take().send.size(), 1U);
  desired.secrets.push_back({LeaseId{8}, {}, Bytes(3, 1), {}, {}, {}});
  server.renew_desired(desired, now);
  const ServerOut again = server.take();
  ASSERT_EQ(again.send.size(), 1U);
  EXPECT_EQ(std::get<Desired>(again.send.at(0)).secrets.size(), 1U);
  desired.revision = 2;
  server.renew_desired(desired, now);
  EXPECT_TRUE(server.take().send.empty()) << "older ones are ignored";
}

TEST(Server, WhatWasSentAndNotAppliedComesAgain) {
  FakeAuthority authority;
  Directory directory;
  Server server({}, authority, directory, 1, Bytes(32, 9));
  Now now{WallTime{0}, at(1000)};
  const auto beat = [&](std::int64_t ms, std::uint64_t revision) {
    now.lease = at(ms);
    server.on_frame(Heartbeat{static_cast<std::uint64_t>(ms), {}, 1, revision}, now);
    std::size_t sent = 0;
    for (const ServerFrame& frame : server.take().send) sent += std::holds_alternative<Desired>(frame) ? 1 : 0;
    return sent;
  };
  server.open(now);
  Hello hello;
  hello.boot_id = "b";
  server.on_frame(hello, now);
  server.on_frame(Inventory{}, now);
  server.taken(true, now);
  server.take();
  EXPECT_EQ(beat(2000, 0), 0U) << "nothing was sent yet";
  Desired desired;
  desired.incarnation = 1;
  desired.revision = 3;
  server.set_desired(desired, now);
  EXPECT_EQ(server.take().send.size(), 1U);
  EXPECT_EQ(beat(7000, 2), 0U) << "it may be under way";
  EXPECT_EQ(beat(12'000, 2), 1U);
  EXPECT_EQ(beat(17'000, 2), 0U);
  EXPECT_EQ(beat(22'000, 2), 1U);
  EXPECT_EQ(beat(40'000, 3), 0U);
}

TEST(Server, ARefusedReportIsTriedAgain) {
  FakeAuthority authority;
  Directory directory;
  Server server({}, authority, directory, 1, Bytes(32, 9));
  Now now{WallTime{0}, at(1000)};
  server.open(now);
  Hello hello;
  hello.boot_id = "b";
  server.on_frame(hello, now);
  Inventory inventory;
  inventory.facts.hostname = "h";
  inventory.facts.boot_id = "b";
  server.on_frame(inventory, now);
  server.take();
  server.taken(false, now);
  now.lease = at(2500);
  server.tick(now);
  const ServerOut again = server.take();
  ASSERT_TRUE(again.report.has_value());
  EXPECT_TRUE(again.report->online);
  ASSERT_TRUE(again.report->facts.has_value());
  EXPECT_EQ(again.report->facts->hostname, "h");
  server.taken(true, now);
  EXPECT_EQ(directory.inventory_digest(NodeId{4}), inventory_digest(inventory.facts));
  NodeFacts shared = inventory.facts;
  shared.devices = {Device{"GPU-1", "A100", 1}};
  const Bytes whole = inventory_digest(shared);
  shared.devices[0].sharing = GpuSharing::Shared;
  EXPECT_NE(inventory_digest(shared), whole) << "that its owner shares it is news";
}

TEST(Carried, OnlyTheMachineItselfSignsItsCounts) {
  const crypto::SigningKey device = crypto::SigningKey::generate(), other = crypto::SigningKey::generate();
  NetReport report;
  report.lease = LeaseId{7};
  report.counted_from = WallTime{1'000};
  report.carried = {{1, 2, 3'000, 4'000}, {1, 5, 6, 7}};
  report.counts_signature = sign_carried(device, report);
  EXPECT_TRUE(verify_carried(device.public_key(), report));
  EXPECT_FALSE(verify_carried(other.public_key(), report));
  for (int what = 0; what < 6; ++what) {
    NetReport changed = report;
    if (what == 0) changed.lease = LeaseId{8};
    if (what == 1) changed.counted_from = WallTime{1'001};
    if (what == 2) ++changed.carried[0].sent;
    if (what == 3) changed.carried[1].by = 9;
    if (what == 4) changed.carried.pop_back();
    if (what == 5) changed.counts_signature.clear();
    EXPECT_FALSE(verify_carried(device.public_key(), changed)) << what;
  }
}

}  // namespace
}  // namespace muster::session
