// Slow ways: noted once, forgotten with the member, and a worker replaced for them only as the cluster asked.
#include "control/slow.h"

#include <gtest/gtest.h>

#include "control/control_world.h"

namespace muster::control {
namespace {

struct Paired {
  World w;
  ClusterId id;
  explicit Paired(int machines = 4, bool replace = true, std::uint32_t workers = 2) {
    for (int i = 0; i < machines; ++i) w.enrol("m" + std::to_string(i));
    ClusterSpec spec = World::spec(workers, workers);
    spec.head.resources.cpu_milli = 3'000, spec.groups[0].request.resources.cpu_milli = 3'000;
    spec.pair_kbps = 100'000, spec.replace_slow = replace;
    id = w.up(spec);
    EXPECT_EQ(w.cluster(id).state, ClusterState::Running);
  }
  SlotId head() const { return w.slots(id, SlotRole::Head).at(0)->id; }
  SlotId worker(std::size_t n) const { return w.slots(id, SlotRole::Worker).at(n)->id; }
  void judge(std::vector<PairJudgement> pairs) { w.must(JudgePairs{id, std::move(pairs)}); }
  const Cluster& cluster() const { return w.cluster(id); }
};

TEST(SlowPairs, AreNotedOnceAndForgotten) {
  Paired p(4, false);
  const SlotId a = p.worker(0), b = p.worker(1);
  for (int i = 0; i < 3; ++i)
    p.judge({{a, b, 20'000, true}, {b, a, 30'000, true}, {a, SlotId{99}, 1, true}, {a, a, 1, true}});
  EXPECT_EQ(p.w.count<PairJudged>(), 2);
  ASSERT_EQ(p.cluster().slow.size(), 2U);
  EXPECT_EQ(p.cluster().slow[0].from, a);
  EXPECT_EQ(p.cluster().slow[0].kbps, 20'000);
  EXPECT_EQ(p.cluster().slow[0].since, p.w.now.wall);
  EXPECT_EQ(p.w.count<ReplacementSought>(), 0) << "it did not ask for that";
  EXPECT_TRUE(decode_state(encode_state(p.w.state, kFormatVersion)).value() == p.w.state);
  p.judge({{a, b, 120'000, false}});
  ASSERT_EQ(p.cluster().slow.size(), 1U);
  ClusterSpec other = p.cluster().spec;
  other.pair_kbps = 10'000;
  p.w.must(UpdateCluster{p.id, other}, p.w.user());
  EXPECT_TRUE(p.cluster().slow.empty()) << "it was judged by another need";
  p.judge({{b, a, 5'000, true}});
  EXPECT_TRUE(p.w.report(p.w.state.slots.at(b).lease, LeasePhase::Stopped).ok());
  EXPECT_TRUE(p.cluster().slow.empty()) << "who leaves takes its ways along";
  const auto refused = p.w.run(JudgePairs{p.id, {}}, p.w.user());
  EXPECT_EQ(refused.error().code, Code::PermissionDenied);
}

TEST(SlowPairs, TheWorkerInMoreOfThemIsReplacedByAnother) {
  Paired p(5, true, 3);
  const SlotId bad = p.worker(0), fine = p.worker(1), other = p.worker(2);
  const LeaseId lease = p.w.state.slots.at(bad).lease;
  const NodeId node = p.w.state.leases.at(lease).node;
  p.judge({{fine, bad, 20'000, true}, {bad, other, 20'000, true}});
  EXPECT_EQ(p.cluster().replacing, bad);
  EXPECT_EQ(p.w.state.leases.at(lease).want, LeaseWant::Run) << "it works until another is there";
  p.w.plan();
  EXPECT_EQ(p.w.state.leases.at(lease).want, LeaseWant::Drain);
  EXPECT_EQ(p.w.state.leases.at(lease).reason, kSlowWays);
  EXPECT_EQ(p.w.slots(p.id, SlotRole::Worker).size(), 4U) << "granted by the same decision";
  p.w.rounds();
  ASSERT_EQ(p.w.slots(p.id, SlotRole::Worker).size(), 3U);
  EXPECT_EQ(p.cluster().state, ClusterState::Running);
  EXPECT_EQ(p.cluster().reason, "");
  EXPECT_TRUE(p.cluster().slow.empty());
  EXPECT_FALSE(p.cluster().replacing);
  EXPECT_EQ(p.cluster().replaced, 1U);
  for (const Slot* slot : p.w.slots(p.id, SlotRole::Worker)) EXPECT_NE(p.w.lease_of(slot).node, node);
  // The machine is left alone for an hour, so nobody is found for the next one; then it is taken again.
  const SlotId next = p.worker(0);
  p.judge({{next, p.worker(1), 1, true}, {next, p.worker(2), 1, true}});
  EXPECT_FALSE(p.cluster().replacing) << "not so soon";
  p.w.pass(11min);
  p.judge({});
  EXPECT_EQ(p.cluster().replacing, next);
  p.w.rounds();
  EXPECT_EQ(p.cluster().replaced, 1U);
  EXPECT_EQ(p.w.state.leases.at(p.w.state.slots.at(next).lease).want, LeaseWant::Run) << "nothing better is free";
  p.w.pass(50min);
  p.w.rounds();
  EXPECT_EQ(p.cluster().replaced, 2U);
  EXPECT_GE(p.cluster().replace_from, p.w.now.wall + 19min) << "longer each time";
}

TEST(SlowPairs, NeverTheHead) {
  Paired p(5);
  p.judge({{p.head(), p.worker(0), 20'000, true}, {p.worker(1), p.head(), 20'000, true}});
  EXPECT_FALSE(p.cluster().replacing) << "the head is in more of them: no worker is at fault";
  p.judge({{p.worker(1), p.head(), 200'000, false}});
  EXPECT_EQ(p.cluster().replacing, p.worker(0)) << "of two alike it is the worker";
  p.judge({{p.head(), p.worker(0), 200'000, false}});
  EXPECT_FALSE(p.cluster().replacing) << "and nobody once it is fine again";
}

TEST(SlowPairs, OfTwoAlikeTheYounger) {
  Paired p(5);
  p.judge({{p.worker(0), p.worker(1), 20'000, true}});
  EXPECT_EQ(p.cluster().replacing, std::max(p.worker(0), p.worker(1)));
}

TEST(SlowPairs, WaitsInAFreezeAndForWhoIsLost) {
  Paired p(5);
  const SlotId bad = std::max(p.worker(0), p.worker(1));
  p.judge({{p.worker(0), p.worker(1), 20'000, true}});
  ASSERT_EQ(p.cluster().replacing, bad);
  p.w.must(SetFreeze{true, "test"});
  p.w.plan();
  EXPECT_EQ(p.cluster().replaced, 0U);
  p.judge({});
  EXPECT_FALSE(p.cluster().replacing);
  p.w.must(SetFreeze{false, ""});
  p.judge({});
  EXPECT_EQ(p.cluster().replacing, bad);
  // The other one is lost meanwhile: the next machine takes its place, not that of the slow one.
  const SlotId lost = p.worker(0) == bad ? p.worker(1) : p.worker(0);
  const NodeId node = p.w.state.leases.at(p.w.state.slots.at(lost).lease).node;
  p.w.silent.insert(node);
  p.w.must(NodeSuspect{node}), p.w.must(NodeLost{node});
  for (const auto& [free, machine] : p.w.state.nodes)  // one machine is left
    if (p.w.state.live_leases(free).empty()) {
      p.w.must(SetNode{free, SetNode::Action::Drain});
      break;
    }
  p.w.rounds();
  EXPECT_EQ(p.w.state.leases.at(p.w.state.slots.at(bad).lease).want, LeaseWant::Run);
  EXPECT_EQ(p.cluster().replaced, 0U);
}

TEST(SlowPairs, OfAnOlderFormatAreNotWritten) {
  World w;
  w.state.format_version = 7;
  ClusterSpec spec = World::spec(1, 1);
  spec.pair_kbps = 5'000;
  w.must(CreateCluster{w.project, spec}, w.user());
  EXPECT_EQ(w.state.format_version, kPairFormat) << "the first use raises it";
}

}  // namespace
}  // namespace muster::control
