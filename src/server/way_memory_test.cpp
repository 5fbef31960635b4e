#include "server/way_memory.h"

#include <gtest/gtest.h>

#include "server/test_store.h"

namespace muster::server {
namespace {

constexpr NodeId kHere{1}, kThere{2};
constexpr WallTime kBegin{1'800'000'000'000};
constexpr Millis kADay{86'400'000};

scheduler::PathSeen seen(std::int64_t kbps, WallTime at, WallTime measured = {}) {
  return {kHere, kThere, scheduler::PathKind::Direct, kbps, 12'000, at, measured};
}

TEST(WayMemory, EachMeasurementCountsOnceAndTheMeanFollows) {
  WayMemory memory(std::make_shared<TestStore>());
  memory.note({{seen(100'000, kBegin)}});
  memory.note({{seen(100'000, kBegin + Millis(15'000), kBegin)}});
  memory.note({{seen(0, kBegin + Millis(30'000))}});
  auto way = memory.of(kHere, kBegin).at(0).second;
  EXPECT_EQ(way.samples, 1U) << "told again, it is no other";
  EXPECT_EQ(way.kbps, 100'000);
  EXPECT_EQ(way.seen, kBegin + Millis(30'000));
  memory.note({{seen(200'000, kBegin + Millis(60'000))}});
  way = memory.of(kHere, kBegin).at(0).second;
  EXPECT_EQ(way.kbps, 125'000);
  EXPECT_EQ(way.samples, 2U);
  memory.note({{seen(10'000, kBegin + kADay * 2)}});
  way = memory.of(kHere, kBegin + kADay * 2).at(0).second;
  EXPECT_EQ(way.kbps, 10'000) << "after a day it begins anew";
  EXPECT_EQ(way.samples, 1U);
  EXPECT_TRUE(memory.of(kThere, kBegin).empty()) << "the other direction was not measured";
}

TEST(WayMemory, OutlastsARestartAndIsForgottenAfterAWeek) {
  const auto store = std::make_shared<TestStore>();
  WayMemory before(store);
  before.note({{seen(100'000, kBegin)}});
  ASSERT_TRUE(before.save(kBegin).ok());
  WayMemory after(store);
  ASSERT_TRUE(after.load(kBegin + kADay).ok());
  ASSERT_EQ(after.known(kBegin + kADay).paths.size(), 1U);
  EXPECT_EQ(after.known(kBegin + kADay).paths[0], seen(100'000, kBegin, kBegin));
  EXPECT_TRUE(after.known(kBegin + kADay * 7).paths.empty());
  WayMemory late(store);
  ASSERT_TRUE(late.load(kBegin + kADay * 7).ok());
  EXPECT_TRUE(late.of(kHere, kBegin).empty());
  EXPECT_TRUE(store->list_side("ways", "", 10)->empty()) << "the row is gone too";
}

TEST(WayMemory, NonsenseInTheTableIsNothing) {
  const auto store = std::make_shared<TestStore>();
  ASSERT_TRUE(
      store->put_side("ways", "node-1", to_bytes("2 9 1 1 1 1 1\n2 1 -5 1 1 1 1\nhello\n3 1 5 1 1 99999999999999 1\n"))
          .ok());
  ASSERT_TRUE(store->put_side("ways", "what", to_bytes("2 1 1 1 1 1 1\n")).ok());
  WayMemory memory(store);
  ASSERT_TRUE(memory.load(kBegin).ok());
  EXPECT_TRUE(memory.known(kBegin).paths.empty());
}

TEST(WayMemory, KeepsSoManyAndIsSureOfWhatWasMeasuredOftenAndLately) {
  WayMemory memory(std::make_shared<TestStore>());
  for (std::uint64_t n = 2; n < 100; ++n) {
    auto path = seen(5, kBegin + Millis(static_cast<std::int64_t>(n)));
    path.to = NodeId{n};
    memory.note({{path}});
  }
  const auto ways = memory.of(kHere, kBegin);
  ASSERT_EQ(ways.size(), WayMemory::kPeersMax);
  EXPECT_EQ(ways.front().first, NodeId{36}) << "the one seen longest ago goes first";
  KnownWay way;
  EXPECT_EQ(WayMemory::confidence(way, kBegin), 0);
  way.samples = 8, way.measured = kBegin;
  EXPECT_DOUBLE_EQ(WayMemory::confidence(way, kBegin), 0.8);
  EXPECT_DOUBLE_EQ(WayMemory::confidence(way, kBegin + kADay * 4), 0.4);
  EXPECT_EQ(WayMemory::confidence(way, kBegin + kADay * 8), 0);
}

}  // namespace
}  // namespace muster::server
