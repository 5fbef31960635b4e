#include "server/reliability_book.h"

#include <gtest/gtest.h>

#include "server/test_store.h"

namespace muster::server {
namespace {

constexpr NodeId kSolid{1}, kShaky{2}, kFresh{3};
constexpr WallTime kStart{1'800'000'000'000};
constexpr Millis kAnHour{3'600'000}, kMonth{30LL * 86'400'000};

class Reliability : public ::testing::Test {
 protected:
  Reliability() {
    for (const NodeId id : {kSolid, kShaky, kFresh})
      state_.nodes[id].id = id, state_.nodes[id].state = NodeState::Online;
    state_.last_wall = kStart;
  }
  LeaseId held(NodeId node, Millis from, Millis to, LeaseEnd end = LeaseEnd::Confirmed) {
    const LeaseId id{++leases_};
    Lease& lease = state_.leases[id];
    lease.id = id, lease.node = node, lease.granted_at = kStart + from;
    lease.end = end, lease.ended_at = kStart + to;
    book_.note(state_, control::LeaseEnded{id, end, "", {}});
    return id;
  }
  void lose(NodeId node, int leases) {
    for (int i = 0; i < leases; ++i) {
      const LeaseId id{++leases_};
      Lease& lease = state_.leases[id];
      lease.id = id, lease.node = node, lease.granted_at = kStart;
      state_.leases_by_node.emplace(node, id);
    }
    book_.note(state_, control::NodeStateChanged{node, NodeState::Lost, false, "silent"});
    std::erase_if(state_.leases_by_node, [&](const auto& each) { return each.first == node; });
  }
  std::shared_ptr<TestStore> store_ = std::make_shared<TestStore>();
  ReliabilityBook book_{store_};
  control::State state_;
  std::uint64_t leases_ = 0;
};

TEST_F(Reliability, LossesAndHoursMakeMachinesDiffer) {
  for (int i = 0; i < 20; ++i)
    held(kSolid, kAnHour * (10 * i), kAnHour * (10 * i + 10)),
        held(kShaky, kAnHour * (10 * i), kAnHour * (10 * i + 10));
  lose(kShaky, 2), lose(kShaky, 1), lose(kFresh, 0);
  held(kFresh, Millis{0}, kAnHour * 500, LeaseEnd::NeverStarted);
  const WallTime now = kStart + kAnHour * 200;
  const auto solid = book_.reliability(kSolid, now), shaky = book_.reliability(kShaky, now),
             fresh = book_.reliability(kFresh, now);
  EXPECT_GT(shaky.failures_ppm, 2 * solid.failures_ppm);
  EXPECT_GT(fresh.failures_ppm, solid.failures_ppm) << "of a new one what is usual is taken";
  EXPECT_GT(shaky.failures_ppm, fresh.failures_ppm);
  EXPECT_TRUE(fresh.newcomer());
  EXPECT_FALSE(solid.newcomer());
  EXPECT_GT(fresh.uncertainty_ppm, solid.uncertainty_ppm);
  EXPECT_NEAR(book_.of(kShaky, now).lost, 3, 0.5);
  EXPECT_EQ(book_.of(kFresh, now).hours, 0);
  EXPECT_EQ(book_.all(state_, now).nodes.size(), 3U);
}

TEST_F(Reliability, ThePastFadesByHalfEveryMonth) {
  held(kShaky, Millis{0}, kAnHour * 100);
  lose(kShaky, 4);
  const auto before = book_.of(kShaky, kStart + kAnHour * 100),
             after = book_.of(kShaky, kStart + kAnHour * 100 + kMonth);
  EXPECT_NEAR(after.hours, before.hours / 2, 0.01);
  EXPECT_NEAR(after.lost, before.lost / 2, 0.01);
  EXPECT_LT(book_.reliability(kShaky, kStart + kMonth * 6).failures_ppm,
            book_.reliability(kShaky, kStart + kAnHour * 100).failures_ppm);
}

TEST_F(Reliability, OutlastsARestartAndForgetsWhoWasRevoked) {
  held(kSolid, Millis{0}, kAnHour * 30), held(kShaky, Millis{0}, kAnHour * 30);
  lose(kShaky, 1);
  ASSERT_TRUE(book_.save().ok());
  ReliabilityBook again(store_);
  ASSERT_TRUE(again.load().ok());
  const WallTime now = kStart + kAnHour * 40;
  EXPECT_EQ(again.reliability(kShaky, now), book_.reliability(kShaky, now));
  book_.note(state_, control::NodeStateChanged{kShaky, NodeState::Revoked, false, ""});
  ASSERT_TRUE(book_.save().ok());
  EXPECT_EQ(store_->list_side("reliability", "", 10)->size(), 1U);
  ASSERT_TRUE(store_->put_side("reliability", "node-9", to_bytes("-5 nonsense")).ok());
  ASSERT_TRUE(store_->put_side("reliability", "what", to_bytes("1 1 1")).ok());
  ReliabilityBook third(store_);
  ASSERT_TRUE(third.load().ok());
  EXPECT_EQ(store_->list_side("reliability", "", 10)->size(), 1U) << "what is no row is nothing";
}

TEST_F(Reliability, NewsIsToldOnce) {
  control::NodeEnrolled enrolled;
  enrolled.node.id = kFresh;
  book_.note(state_, enrolled);
  lose(kShaky, 1);
  EXPECT_EQ(book_.news(kStart).nodes.size(), 2U);
  EXPECT_TRUE(book_.news(kStart).nodes.empty());
}

}  // namespace
}  // namespace muster::server
