#include "scheduler/calibration.h"

#include <gtest/gtest.h>

#include <limits>

#include "base/rng.h"

namespace muster::scheduler::calibration_test {
namespace {

constexpr WallTime kT0{1'700'000'000'000};
constexpr std::uint32_t kKind = 3;

StartForecast played(std::uint64_t id, WallTime now, Millis p50, Millis p90) {
  return {ClusterId{id}, now + p50, now + p90, 64};
}

TEST(Calibration, SaysWhatWasPlayedUntilEnoughIsKnown) {
  Calibration c;
  const StartForecast first = played(1, kT0, 10min, 30min);
  EXPECT_EQ(c.corrected(first, kKind, kT0), first);
  for (std::uint64_t i = 1; i < 10; ++i)
    c.told(played(i, kT0, 10min, 30min), kKind, kT0), c.started(ClusterId{i}, kT0 + 5h);
  EXPECT_EQ(c.corrected(first, kKind, kT0), first) << "nine";
  c.told(played(10, kT0, 10min, 30min), kKind, kT0), c.started(ClusterId{10}, kT0 + 5h);
  EXPECT_GT(c.corrected(first, kKind, kT0).p90, kT0 + 4h);
  EXPECT_EQ(c.corrected(first, kKind + 1, kT0), first) << "another kind";
  EXPECT_EQ(c.open(), 0U);
}

// Whatever the play says, nine of ten start by what is told; where it was too careful, sooner is told.
TEST(Calibration, NineOfTenComeTrueOfPlaysThatAreWrong) {
  for (const int off : {2, 10, 40}) {  // tenths of the true wait that are played
    Rng rng(7);
    Calibration c;
    int told = 0, held = 0, half = 0;
    WallTime now = kT0;
    for (std::uint64_t i = 1; i <= 2'000; ++i, now = now + 1min) {
      // The wait is between nothing and two hours, uniformly: half start by one hour, nine of ten by 108 minutes.
      const StartForecast f = played(i, now, 60min * off / 10, 108min * off / 10);
      const StartForecast said = c.corrected(f, kKind, now);
      c.told(f, kKind, now);
      const WallTime came = now + Millis(rng.below(7'200'000));
      c.started(ClusterId{i}, came);
      if (i <= 200) continue;
      ++told, held += came <= said.p90 ? 1 : 0, half += came <= said.p50 ? 1 : 0;
      EXPECT_LE(said.p50, said.p90);
    }
    EXPECT_NEAR(100.0 * held / told, 90, 3) << off;
    EXPECT_NEAR(100.0 * half / told, 50, 6) << off;
  }
}

TEST(Calibration, WhoWaitsLongerThanForetoldCountsBeforeItStarts) {
  Calibration c;
  for (std::uint64_t i = 1; i <= 20; ++i) c.told(played(i, kT0, 10min, 30min), kKind, kT0);
  const StartForecast next = played(99, kT0 + 3h, 10min, 30min);
  EXPECT_GT(c.corrected(next, kKind, kT0 + 3h).p90, kT0 + 3h + 2h);
  for (std::uint64_t i = 1; i <= 20; ++i) c.forget(ClusterId{i});
  EXPECT_EQ(c.corrected(next, kKind, kT0 + 3h), next) << "given up: nobody knows when they had started";
}

TEST(Calibration, TheFirstForecastCountsAndHostileTimesAreBounded) {
  Calibration c;
  for (std::uint64_t i = 1; i <= 10; ++i) {
    c.told(played(i, kT0, 10min, 30min), kKind, kT0);
    c.told(played(i, kT0 + 1h, 1min, 2min), kKind, kT0 + 1h);
    c.started(ClusterId{i}, kT0 + 30min);
  }
  const StartForecast next = played(99, kT0, 10min, 30min);
  EXPECT_EQ(c.corrected(next, kKind, kT0).p90, next.p90) << "the first was right";
  Calibration wild;
  for (std::uint64_t i = 1; i <= 10; ++i) {
    wild.told({ClusterId{i}, {1}, {1}, 1}, kKind, kT0);
    wild.started(ClusterId{i}, {std::numeric_limits<std::int64_t>::max() / 4});
  }
  const StartForecast late = wild.corrected(next, kKind, kT0);
  EXPECT_LE(late.p90, kT0 + 16 * 31min);
  EXPECT_EQ(wild.corrected({ClusterId{5}, {}, {}, 1}, kKind, kT0), (StartForecast{ClusterId{5}, {}, {}, 1}))
      << "what is not known stays so";
  wild.started(ClusterId{12345}, kT0);
}

}  // namespace
}  // namespace muster::scheduler::calibration_test
