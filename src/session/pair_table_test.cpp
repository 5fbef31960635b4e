#include "session/pair_table.h"

#include <gtest/gtest.h>

#include <optional>

namespace muster::session {
namespace {

constexpr ClusterId kPaired{1};
constexpr SlotId kPairFrom{1}, kPairTo{2};
constexpr std::int64_t kPairNeed = 100'000;

struct Judging {
  PairTable table;
  LeaseTime now{1'000'000};
  Judging() { table.start(now); }
  void sample(std::int64_t kbps, Millis age = Millis(0)) {
    table.measured(kPaired, kPairFrom, kPairTo, kbps, now - age, now);
  }
  void pass(std::int64_t seconds) { now = now + Millis(seconds * 1'000); }
  std::optional<bool> slow(bool known = false) const {
    std::vector<std::pair<SlotId, SlotId>> held;
    if (known) held.emplace_back(kPairFrom, kPairTo);
    const auto judged = table.judge(kPaired, kPairNeed, held, now);
    return judged.empty() ? std::nullopt : std::optional(judged.back().slow);
  }
};

TEST(PairTable, SlowOnlyWhenItStaysSo) {
  Judging j;
  for (int i = 0; i < 3; ++i) j.sample(20'000), j.pass(30);
  EXPECT_FALSE(j.slow()) << "three samples are too few";
  j.sample(150'000), j.pass(30);
  j.sample(20'000), j.pass(30);
  EXPECT_FALSE(j.slow()) << "a good one in between begins it anew";
  for (int i = 0; i < 3; ++i) j.sample(20'000 + i), j.pass(30);
  const auto judged = j.table.judge(kPaired, kPairNeed, {}, j.now);
  ASSERT_EQ(judged.size(), 1U);
  EXPECT_EQ(judged[0], (PairTable::Judged{kPairFrom, kPairTo, 20'001, true}));
  EXPECT_TRUE(j.table.judge(kPaired, 10'000, {}, j.now).at(0).slow == false) << "of another need it is fine";
}

TEST(PairTable, FourWithinAMomentAreOneBadMoment) {
  Judging j;
  for (int i = 0; i < 4; ++i) j.sample(20'000), j.pass(10);
  EXPECT_FALSE(j.slow());
  for (int i = 0; i < 3; ++i) j.sample(20'000), j.pass(10);
  EXPECT_EQ(j.slow(), true) << "but frequent ones over a minute count";
}

TEST(PairTable, TheSameMeasurementToldAgainIsNoOther) {
  Judging j;
  j.sample(20'000);
  for (int i = 1; i < 40; ++i) j.pass(15), j.sample(20'000, Millis(i * 15'000));
  EXPECT_FALSE(j.slow()) << "it was full once, ten minutes ago";
}

TEST(PairTable, FineAgainATenthAboveTheNeedAndNotBefore) {
  Judging j;
  for (int i = 0; i < 4; ++i) j.sample(20'000), j.pass(30);
  ASSERT_EQ(j.slow(), true);
  for (int i = 0; i < 6; ++i) j.sample(105'000), j.pass(30);
  EXPECT_FALSE(j.slow()) << "nor slow: whatever it was called before, it stays";
  for (int i = 0; i < 3; ++i) j.sample(111'000), j.pass(30);
  EXPECT_EQ(j.slow(), false);
}

TEST(PairTable, WhatNobodyMeasuresIsNotKnownAnyMore) {
  Judging j;
  for (int i = 0; i < 4; ++i) j.sample(20'000), j.pass(30);
  ASSERT_EQ(j.slow(true), true);
  j.pass(1'000);
  EXPECT_FALSE(j.slow(true)) << "too old to be called slow, too young to be forgotten";
  j.pass(1'000);
  EXPECT_EQ(j.slow(true), false);
  Judging after_takeover;
  after_takeover.pass(1'799);
  EXPECT_FALSE(after_takeover.slow(true)) << "the machines have yet to say what they see";
  after_takeover.pass(2);
  EXPECT_EQ(after_takeover.slow(true), false);
}

TEST(PairTable, NonsenseIsNothingAndItStaysBounded) {
  Judging j;
  j.table.measured(kPaired, kPairFrom, kPairFrom, 5, j.now, j.now);
  j.table.measured(kPaired, kPairFrom, kPairTo, 0, j.now, j.now);
  j.table.measured(kPaired, kPairFrom, kPairTo, 5, j.now + Millis(1), j.now);
  j.sample(5, PairTable::kSampleLife + Millis(1));
  EXPECT_EQ(j.table.size(), 0U);
  for (std::uint64_t n = 0; n < PairTable::kPairsMax + 2; ++n)
    j.table.measured(kPaired, SlotId{n + 1}, SlotId{n + 2}, 5, j.now - Millis(n == 7 ? 10 : 0), j.now);
  EXPECT_EQ(j.table.size(), PairTable::kPairsMax);
  j.table.keep_only(kPaired, {SlotId{20}, SlotId{21}, SlotId{40}});
  EXPECT_EQ(j.table.size(), 1U) << "who left is forgotten";
  j.table.measured(ClusterId{2}, kPairFrom, kPairTo, 5, j.now, j.now);
  EXPECT_EQ(j.table.watched(), (std::set<ClusterId>{kPaired, ClusterId{2}}));
  j.table.forget(kPaired);
  EXPECT_EQ(j.table.size(), 1U);
  EXPECT_EQ(j.table.watched(), (std::set<ClusterId>{ClusterId{2}}));
}

}  // namespace
}  // namespace muster::session
