// Link, liveness, lease table, directory and server session.
#include <gtest/gtest.h>

#include <set>

#include "session/digest.h"
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
  liveness.start(some_nodes(10), at(0));
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
  liveness.start(some_nodes(10), at(0));
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

TEST(Liveness, NobodyIsLostInTheGracePeriod) {
  Liveness liveness;
  liveness.start(some_nodes(3), at(0));
  EXPECT_TRUE(liveness.tick(at(74'000)).empty());
  EXPECT_FALSE(liveness.tick(at(75'000)).empty());
}

TEST(Directory, ReconnectReplacesRebootWaitsCloneIsRefused) {
  Directory directory;
  const NodeId node{1};
  EXPECT_EQ(directory.hello(node, "boot-a", 1, at(0)), Verdict::Accept);
  EXPECT_EQ(directory.hello(node, "boot-a", 2, at(100)), Verdict::Accept);  // half-open reconnect
  EXPECT_EQ(directory.take_kicked(), (std::vector<Kicked>{{1, Verdict::Replaced}}));
  EXPECT_EQ(directory.hello(node, "boot-b", 3, at(200)), Verdict::Wait);
  EXPECT_EQ(directory.waiting(node, 3, at(10'000)), Verdict::Wait);
  EXPECT_EQ(directory.waiting(node, 3, at(12'700)), Verdict::Accept);  // the old one never spoke again: a reboot
  EXPECT_EQ(directory.take_kicked(), (std::vector<Kicked>{{2, Verdict::Replaced}}));
  EXPECT_EQ(directory.hello(node, "boot-c", 4, at(13'000)), Verdict::Wait);
  EXPECT_EQ(directory.heard(node, 3, at(14'000)), Verdict::Clone);
  EXPECT_EQ(directory.take_kicked(), (std::vector<Kicked>{{4, Verdict::Clone}}));
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
}

}  // namespace
}  // namespace muster::session
