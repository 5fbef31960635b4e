// A short form of the simulation for every test run: a few seeds, the same seed twice, and a sample of the planted
// faults.
#include "sim/sim.h"

#include <gtest/gtest.h>

#include "sim/mutants.h"

namespace muster::sim {
namespace {

TEST(Simulation, AFewSeedsHold) {
  for (std::uint64_t seed = 1; seed <= 3; ++seed) {
    RunOptions options;
    options.seed = seed;
    options.steps = 10'000;
    const RunResult result = run_simulation(options);
    EXPECT_EQ(result.failure, "") << "make sim SEED=" << seed << " STEPS=" << options.steps;
  }
}

// Clusters that ask for fast ways on machines with slow ones: every fourth seed has them.
TEST(Simulation, SlowWaysAreReplacedAndAllHolds) {
  RunOptions options;
  options.seed = 8;
  options.steps = 12'000;
  const RunResult result = run_simulation(options);
  EXPECT_EQ(result.failure, "") << "make sim SEED=8 STEPS=12000";
  EXPECT_GE(result.looked.at("I16"), 1U) << "nobody was replaced: this seed shows nothing";
}

TEST(Simulation, SqliteHoldsToo) {
  RunOptions options;
  options.seed = 7;
  options.steps = 6000;
  EXPECT_EQ(run_simulation(options).failure, "") << "make sim SEED=7 STEPS=6000";
}

TEST(Simulation, TheSameSeedIsTheSameRun) {
  RunOptions options;
  options.seed = 42;
  options.steps = 5000;
  const RunResult first = run_simulation(options), second = run_simulation(options);
  EXPECT_EQ(first.hash, second.hash);
  EXPECT_EQ(first.steps, second.steps);
  options.seed = 43;
  EXPECT_NE(run_simulation(options).hash, first.hash);
}

#ifdef MUSTER_MUTANTS
TEST(Simulation, CatchesASampleOfThePlantedFaults) {
  // One of each room; all of them: make sim MUTANTS=1.
  for (const char* name : {"agent.accept_old_desired", "session.renew_from_receive", "session.renewal_forgotten",
                           "engine.reply_before_commit", "engine.skip_tail_reread", "control_reuse_address",
                           "control_forget_idempotency", "control_partial_gang"}) {
    EXPECT_TRUE(hunt(name, 1, 16, 8000)) << name << " was not caught";
  }
}
#endif

}  // namespace
}  // namespace muster::sim
