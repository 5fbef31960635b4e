#include "scheduler/packing.h"

#include <gtest/gtest.h>

#include <bit>
#include <limits>
#include <string>

#include "base/rng.h"
#include "scheduler/scarcity.h"
#include "scheduler/states.h"
#include "testing/openb_scheduler.h"
#include "testing/test_root.h"

namespace muster::scheduler::packing_test {
namespace {

namespace openb = muster::testing::openb;

constexpr std::int32_t kPoint = 1'024;

Packing learned(const std::vector<std::pair<Task, int>>& tasks) {
  Workload workload;
  for (const auto& [task, n] : tasks) workload.observe(task, n);
  Packing packing;
  packing.learn(workload.expected(), ~0U);
  return packing;
}
Condition condition(std::int32_t cpu, std::int32_t gpus, std::vector<std::int16_t> shares = {}) {
  Condition c;
  c.model = 1, c.cpu = level_of(cpu), c.gpus = gpus, c.shares.n = static_cast<std::int32_t>(shares.size());
  std::copy(shares.begin(), shares.end(), c.shares.free.begin());
  return c;
}
std::int32_t score(const Packing& packing, const Condition& c, const Load& load) {
  States states;
  states.use(1);
  return states.score(1, states.acquire(c, packing), load, packing);
}

TEST(Packing, FragmentationIsTheShareThatTheLearnedWorkCannotUse) {
  const Packing packing = learned({{{1'000, 1, 1000}, 64}});
  const auto lost = [&](std::int32_t gpus, std::int32_t cpu, std::vector<std::int16_t> shares) {
    const Condition c = condition(cpu, gpus, std::move(shares));
    return packing.before(1, c.gpus, c.shares, c.cpu, false) / kPoint;
  };
  EXPECT_EQ(lost(2, 64'000, {}), 0);
  EXPECT_EQ(lost(1, 64'000, {400}), 400) << "of no use for a whole-GPU task";
  EXPECT_EQ(lost(1, 700, {400}), 1'400) << "too little CPU: nothing is of use";
}

TEST(Packing, TheTableIsWhatTheFormulaSays) {
  Rng rng(5);
  for (int round = 0; round < 40; ++round) {
    std::vector<std::pair<Task, int>> tasks;
    for (int i = 0; i < 30; ++i)
      tasks.emplace_back(bounded(static_cast<std::int64_t>(rng.below(60'000)), static_cast<std::int64_t>(rng.below(9)),
                                 rng.chance(1, 2) ? 1'000 : static_cast<std::int64_t>(rng.below(1'000)), kAnyModel),
                         1 + static_cast<int>(rng.below(30)));
    const Packing packing = learned(tasks);
    for (int i = 0; i < 50; ++i) {
      // A share so small that nothing uses it adds a known loss: the two ways of counting meet.
      const auto gpus = static_cast<std::int32_t>(rng.below(9)), cpu = static_cast<std::int32_t>(rng.below(300'000));
      const bool with_gpu = rng.chance(1, 2);
      const std::int32_t plain = packing.after(1, gpus, {}, cpu, with_gpu);
      const std::int32_t before = packing.before(1, gpus, {}, cpu, with_gpu);
      EXPECT_GE(plain, before) << "what stays idle counts lightly, too";
    }
  }
}

TEST(Packing, AShareGoesToABrokenDeviceAndACpuTaskAwayFromGpus) {
  const Packing packing = learned({{{1'000, 1, 1000}, 64}, {{1'000, 1, 500}, 64}});
  const Load half{1'000, 0, 500, false}, cpu_only{1'000, 0, 0, false};
  EXPECT_GT(States::score_share(condition(64'000, 3, {500}), 500, half, packing),
            States::score_share(condition(64'000, 3, {500}), 1'000, half, packing));
  EXPECT_GT(score(packing, condition(64'000, 1), cpu_only), score(packing, condition(64'000, 8), cpu_only));
}

TEST(Packing, RoundedCpuHidesNoMachineThatFits) {
  for (std::int32_t cpu = 0; cpu < 300'000; cpu += 37)
    for (const std::int32_t need : {cpu - 1, cpu})
      if (need >= 0) ASSERT_GE(level_of(cpu), level_of(need));
}

// The nested bottlenecks against trying every set of models.
TEST(Scarcity, LikeTryingEverySet) {
  for (std::uint64_t seed = 1; seed <= 400; ++seed) {
    Rng rng(seed);
    constexpr std::uint32_t kN = 6;
    PerModel free{};
    for (std::uint32_t m = 0; m < kN; ++m) free[m] = static_cast<std::int64_t>(rng.below(9)) * 1'000;
    std::map<std::uint32_t, std::int64_t> demand;
    for (std::uint64_t i = rng.below(7); i > 0; --i)
      demand[1 + static_cast<std::uint32_t>(rng.below((1U << kN) - 1))] +=
          1'000 * static_cast<std::int64_t>(1 + rng.below(50));
    const PerModel got = pressure_of(free, demand);
    std::int64_t free_all = 0, demand_all = 0;
    std::uint32_t rest = 0;
    for (std::uint32_t m = 0; m < kN; ++m) free_all += free[m], rest |= free[m] > 0 ? 1U << m : 0;
    for (const auto& [models, n] : demand) demand_all += n;
    PerModel expected{};
    std::int64_t last = std::int64_t{1} << 40;
    const std::uint32_t all = rest;
    while (rest != 0 && demand_all > 0) {
      std::uint32_t best = 0;
      std::int64_t most = -1;
      for (std::uint32_t set = rest; set != 0; set = (set - 1) & rest) {
        std::int64_t d = 0, f = 0;
        for (const auto& [models, n] : demand) {
          const std::uint32_t open = models & all & ~(all & ~rest);
          if (open != 0 && (open & ~set) == 0) d += n;
        }
        for (std::uint32_t m = 0; m < kN; ++m) f += (set >> m & 1U) != 0 ? free[m] : 0;
        const std::int64_t density = std::min(d * 65'536 / f, std::int64_t{1} << 40);
        if (density > most || (density == most && std::popcount(set) > std::popcount(best))) best = set, most = density;
      }
      last = std::min(last, most);
      const std::int64_t relative =
          std::min<std::int64_t>(last * 65'536 / std::max<std::int64_t>(1, demand_all * 65'536 / free_all), 4 * 65'536);
      for (std::uint32_t m = 0; m < kN; ++m)
        if ((best >> m & 1U) != 0) expected[m] = std::min<std::int64_t>(relative * relative / 65'536, 4 * 65'536);
      rest &= ~best;
    }
    EXPECT_EQ(got, expected) << "seed " << seed;
  }
}

TEST(Scarcity, AScarceModelCostsMoreThanAPlentifulOne) {
  PerModel free{};
  free[1] = 500'000, free[2] = 50'000;
  const PerModel pressure = pressure_of(free, {{kAnyModel, 100'000}, {1U << 2, 100'000}});
  // Half of the demand is captive in a tenth of the pool: (100/50) / (200/550) = 5.5, squared, at most 4.
  EXPECT_EQ(pressure[2], 4 * 65'536);
  EXPECT_LT(pressure[1], 65'536);
  EXPECT_EQ(pressure_of(free, {{kAnyModel, 100'000}})[1], pressure_of(free, {{kAnyModel, 100'000}})[2])
      << "demand that could go anywhere makes every model equally dear";
}

TEST(Workload, TakesHostileNumbersStaysBoundedAndFades) {
  Rng rng(7);
  Workload workload;
  constexpr std::array<std::int64_t, 7> kNumbers{std::numeric_limits<std::int64_t>::min(), -1, 0, 1, 1'000, 1 << 30,
                                                 std::numeric_limits<std::int64_t>::max()};
  const auto number = [&] { return kNumbers[rng.below(kNumbers.size())]; };
  for (int i = 0; i < 30'000; ++i)
    workload.observe(bounded(number() ^ static_cast<std::int64_t>(rng.below(5'000)), number(), number(),
                             static_cast<std::uint32_t>(rng.next())),
                     number());
  EXPECT_LE(workload.seen().size(), 1'024U);
  Packing packing;
  packing.learn(workload.expected(), ~0U);
  Shares shares;
  for (std::int32_t gpus = 0; gpus <= kDevicesScored; ++gpus)
    EXPECT_LE(packing.before(31, gpus, shares, std::numeric_limits<std::int32_t>::max(), true),
              gpus * kWholeGpu * kPoint * 2);
  for (int i = 0; i < 3'000; ++i) workload.observe(bounded(2'000, 1, 1'000, kAnyModel), 1'000);
  EXPECT_EQ(workload.expected().size(), 1U) << "the old has faded";
}

TEST(Workload, OrderOfEqualArrivalsDoesNotMatterOnceLearned) {
  const auto after = [](bool reversed) {
    Workload workload;
    for (int i = 0; i < 1024; ++i) {
      const int k = (reversed ? 1023 - i : i) % 7;
      workload.observe(bounded(1'000 * (k + 1), k % 3, k % 3 == 1 ? 250 * (k % 4 + 1) : 1000, kAnyModel), 1);
    }
    return workload.expected();
  };
  EXPECT_EQ(after(false), after(true));
}

// One seed of two variants of the trace, through the scheduler itself, against the published mean of FGD. The controls
// are in the bench.
class Openb : public ::testing::TestWithParam<std::string> {};
TEST_P(Openb, PacksBetterThanThePublishedFigure) {
  const std::string folder = muster::test_root() + "/tests/data/openb";
  std::string error;
  const openb::Trace trace = openb::load(folder, GetParam(), error);
  ASSERT_EQ(error, "");
  ASSERT_EQ(trace.nodes.size(), 1213U);
  ASSERT_EQ(trace.capacity, 6'212'000);
  const auto table = openb::published(folder);
  const openb::Curve ours = openb::replay_scheduler(trace, 42);
  for (const std::size_t arrived : {100U, 130U})
    EXPECT_GE(ours[arrived], table.at(GetParam() + "/FGD/" + std::to_string(arrived))) << arrived;
}
INSTANTIATE_TEST_SUITE_P(Trace, Openb, ::testing::Values("cpu250", "gpuspec33"));

}  // namespace
}  // namespace muster::scheduler::packing_test
