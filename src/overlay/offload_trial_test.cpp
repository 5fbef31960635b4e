#include "overlay/offload_trial.h"

#include <gtest/gtest.h>

namespace muster::overlay {
namespace {

using State = OffloadTrial::State;

// A world in which so much of what goes large is lost, and so much of what goes one by one.
struct World {
  OffloadTrial trial;
  LeaseTime now{1'000'000};
  unsigned large_percent = 0, single_percent = 0;
  int changes = 0;
  void run(Millis length, std::uint64_t way = 1, std::uint64_t bytes = 10'000) {
    for (const LeaseTime end = now + length; now < end; now = now + Millis(250)) {
      const unsigned lost = trial.large() ? large_percent : single_percent;
      changes += trial.note(way, bytes, bytes * lost / 100, now) ? 1 : 0;
      changes += trial.tick(now) ? 1 : 0;
    }
  }
};

TEST(OffloadTrial, NothingLostNothingChanges) {
  World world;
  world.large_percent = 15;  // a poor way, and no more
  world.run(Millis(3'600'000));
  EXPECT_EQ(world.changes, 0);
}

TEST(OffloadTrial, WhereLargeOnesVanishAllGoOneByOneAndLargeOnesAreTriedAgain) {
  World world;
  world.large_percent = 66;
  world.run(Millis(6'000));
  EXPECT_EQ(world.trial.state(), State::Single);
  EXPECT_EQ(world.trial.lost_large(), 66U);
  EXPECT_EQ(world.trial.lost_single(), 0U);
  EXPECT_FALSE(world.trial.counts(world.now)) << "nobody needs to count now";
  world.run(Millis(580'000));
  EXPECT_EQ(world.trial.state(), State::Single);
  world.changes = 0;
  world.run(Millis(40'000));
  EXPECT_EQ(world.changes, 3) << "tried again, compared again, and left for longer";
  EXPECT_EQ(world.trial.state(), State::Single);
  world.run(Millis(1'100'000));
  EXPECT_EQ(world.trial.state(), State::Single);
  world.large_percent = 0;  // another kernel, another card
  world.run(Millis(200'000));
  EXPECT_EQ(world.trial.state(), State::Large);
}

TEST(OffloadTrial, LossOfTheWayItselfIsComparedEverMoreSeldom) {
  World world;
  world.large_percent = world.single_percent = 40;
  world.run(Millis(4 * 3'600'000));
  EXPECT_EQ(world.trial.state(), State::Large);
  EXPECT_GE(world.changes, 6);
  EXPECT_LE(world.changes, 20) << "each comparison is two";
}

TEST(OffloadTrial, TooLittleIsNoReason) {
  World world;
  world.large_percent = 100;
  world.run(Millis(600'000), 1, 500);
  EXPECT_EQ(world.changes, 0);
  // Nor what others sent in the time of the comparison.
  world.run(Millis(1'000), 7, 20'000);
  EXPECT_EQ(world.trial.state(), State::Compares);
  world.run(Millis(10'000), 8, 20'000);
  EXPECT_EQ(world.trial.state(), State::Compares);
  world.run(Millis(25'000), 8, 20'000);
  EXPECT_EQ(world.trial.state(), State::Large) << "whoever was lost to is silent now: nothing was learnt";
}

TEST(OffloadTrial, ManyWaysAreBounded) {
  World world;
  world.large_percent = 100;
  for (std::uint64_t way = 0; way < 10'000; ++way) world.trial.note(way, 100, 100, world.now);
  world.run(Millis(20'000), 20'000);
  EXPECT_EQ(world.trial.state(), State::Single) << "old ones make room";
}

}  // namespace
}  // namespace muster::overlay
