#include "engine/journal_clock.h"

#include <gtest/gtest.h>

namespace muster::engine {
namespace {

Now at(std::int64_t wall, std::int64_t lease) {
  return {WallTime{wall}, LeaseTime{lease}};
}

TEST(JournalClock, FollowsTheMachineAndNeverGoesBack) {
  JournalClock clock;
  EXPECT_EQ(clock.at(at(1000, 10), WallTime{0}), WallTime{1000});
  EXPECT_EQ(clock.at(at(1500, 510), WallTime{1000}), WallTime{1500});
  EXPECT_EQ(clock.at(at(9000, 520), WallTime{1500}), WallTime{9000}) << "set forward";
  EXPECT_EQ(clock.at(at(2000, 530), WallTime{9000}), WallTime{9005}) << "set back";
}

TEST(JournalClock, RunsOnAtHalfSpeedUntilTheMachineHasCaughtUp) {
  JournalClock clock;
  WallTime last = clock.at(at(100'000, 0), WallTime{0});
  for (std::int64_t lease = 1; lease <= 30'000; ++lease) {
    const WallTime wall = clock.at(at(90'000 + lease, lease), last);
    EXPECT_GE(wall, last);
    last = wall;
    if (lease == 10'000) {
      EXPECT_EQ(wall, WallTime{105'000});
    }
  }
  EXPECT_EQ(last, WallTime{120'000}) << "caught up at 110,000 and with the machine since";
}

TEST(JournalClock, ANewLeaderGoesOnFromTheLastEntry) {
  JournalClock clock;
  EXPECT_EQ(clock.at(at(1000, 50), WallTime{5000}), WallTime{5000});
  EXPECT_EQ(clock.at(at(3000, 2050), WallTime{5000}), WallTime{6000});
  EXPECT_EQ(clock.at(at(3000, 2050), WallTime{7000}), WallTime{7000}) << "an entry that was found in the tail";
}

}  // namespace
}  // namespace muster::engine
