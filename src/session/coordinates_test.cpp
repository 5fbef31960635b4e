#include "session/coordinates.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "base/rng.h"

namespace muster::session {
namespace {

// A world in which machines lie in a plane and each has an access link of its own.
struct World {
  struct Machine {
    double x, y, height;
  };
  std::vector<Machine> machines, relays;
  Rng rng;
  explicit World(std::uint64_t seed, std::size_t count) : rng(seed) {
    const auto one = [&](double height) {
      return Machine{static_cast<double>(rng.between(0, 120'000)), static_cast<double>(rng.between(0, 60'000)), height};
    };
    for (std::size_t i = 0; i < count; ++i) machines.push_back(one(static_cast<double>(rng.between(500, 15'000))));
    for (int i = 0; i < 4; ++i) relays.push_back(one(300));
  }
  static double rtt(const Machine& a, const Machine& b) {
    return std::hypot(a.x - b.x, a.y - b.y) + a.height + b.height;
  }
  // As it is measured: a little more, sometimes much more because a queue was full.
  std::int64_t seen(const Machine& a, const Machine& b) {
    const double noise = 1 + static_cast<double>(rng.between(0, 50)) / 1000;
    return static_cast<std::int64_t>(rtt(a, b) * noise) + (rng.between(0, 9) == 0 ? rng.between(50'000, 400'000) : 0);
  }
  void play(Coordinates& places, int rounds, std::size_t friends) {
    for (int round = 0; round < rounds; ++round)
      for (std::size_t i = 0; i < machines.size(); ++i) {
        const WallTime now{round * 1000 + static_cast<std::int64_t>(i)};
        for (std::size_t r = 0; r < relays.size(); ++r)
          places.measured(NodeId{i + 1}, "relay-" + std::to_string(r) + ":443", seen(machines[i], relays[r]), now);
        for (std::size_t k = 1; k <= friends; ++k) {
          const std::size_t other = (i + k * 7) % machines.size();
          places.measured(NodeId{i + 1}, NodeId{other + 1}, seen(machines[i], machines[other]), now);
        }
      }
  }
  // Of pairs that nobody measured, by how much the middle one of the foretold is off, as a part of it.
  double middle_error(const Coordinates& places, std::size_t friends, std::size_t without = ~std::size_t{0}) const {
    std::vector<double> off;
    for (std::size_t i = 0; i < machines.size(); ++i)
      for (std::size_t j = i + 1; j < machines.size(); ++j) {
        const std::size_t apart = j - i;
        bool met = i == without || j == without;
        for (std::size_t k = 1; k <= friends; ++k)
          met = met || apart == k * 7 % machines.size() || machines.size() - apart == k * 7 % machines.size();
        const auto foretold = places.foretold(NodeId{i + 1}, NodeId{j + 1});
        if (met || !foretold) continue;
        const double real = rtt(machines[i], machines[j]);
        off.push_back(std::abs(*foretold - real) / real);
      }
    if (off.size() < machines.size()) return 1;
    std::nth_element(off.begin(), off.begin() + static_cast<std::ptrdiff_t>(off.size() / 2), off.end());
    return off[off.size() / 2];
  }
};

TEST(Coordinates, ForetellRoundTripsThatNobodyMeasured) {
  for (std::uint64_t seed = 1; seed <= 10; ++seed) {
    World world(seed, 60);
    Coordinates places;
    world.play(places, 60, 5);
    EXPECT_LT(world.middle_error(places, 5), 0.10) << "seed " << seed;
  }
}

TEST(Coordinates, RelaysAloneAreEnoughForMachinesThatNeverMet) {
  double sum = 0;  // four relays leave some worlds ambiguous
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    World world(seed, 40);
    Coordinates places;
    world.play(places, 120, 0);
    sum += world.middle_error(places, 0);
  }
  EXPECT_LT(sum / 20, 0.22);
}

TEST(Coordinates, NothingIsToldBeforeEnoughIsKnown) {
  Coordinates places;
  const NodeId a{1};
  for (int i = 0; i < 50; ++i) {
    places.measured(a, "one:443", 10'000, WallTime{i});
    places.measured(a, "two:443", 20'000, WallTime{i});
  }
  EXPECT_FALSE(places.place(a));
  EXPECT_TRUE(places.news().empty());
  for (int i = 0; i < 50; ++i) places.measured(a, "three:443", 15'000, WallTime{100 + i});
  EXPECT_TRUE(places.place(a));
  const auto news = places.news();
  ASSERT_EQ(news.size(), 1U);
  EXPECT_EQ(news[0].first, a);
  EXPECT_TRUE(places.news().empty()) << "it is told again only once it moved";
  for (int i = 0; i < 200; ++i)
    for (const char* relay : {"one:443", "two:443", "three:443"}) places.measured(a, relay, 90'000, WallTime{200 + i});
  EXPECT_EQ(places.news().size(), 1U);
  places.forget(a);
  EXPECT_FALSE(places.place(a));
}

TEST(Coordinates, ALiarMisplacesItself) {
  World world(7, 40);
  Coordinates places;
  world.play(places, 60, 4);
  const double before = world.middle_error(places, 4, 0);
  for (int round = 0; round < 500; ++round) {
    for (std::uint64_t other = 2; other <= 40; ++other)
      places.measured(NodeId{1}, NodeId{other}, 9'000'000, WallTime{100'000 + round});
    world.play(places, 1, 4);
  }
  EXPECT_LT(world.middle_error(places, 4, 0), before + 0.05);
}

TEST(Coordinates, NonsenseIsNoMeasurementAndMemoryIsBounded) {
  Coordinates places;
  for (const std::int64_t rtt : {std::int64_t{0}, std::int64_t{-1}, std::int64_t{Coordinates::kRttMaxUs} + 1})
    places.measured(NodeId{1}, "relay:443", rtt, WallTime{1});
  places.measured(NodeId{1}, NodeId{1}, 1000, WallTime{1});
  places.measured(NodeId{}, NodeId{1}, 1000, WallTime{1});
  places.measured(NodeId{1}, "", 1000, WallTime{1});
  EXPECT_EQ(places.size(), 0U);
  for (std::uint64_t i = 1; i <= Coordinates::kPlacesMax + 10; ++i)
    places.measured(NodeId{i}, "relay:443", 1000, WallTime{static_cast<std::int64_t>(i)});
  EXPECT_EQ(places.size(), Coordinates::kPlacesMax);
}

TEST(Coordinate, ForetoldIsTheDistanceAndBothHeights) {
  EXPECT_EQ(foretold_rtt_us({0, 0, 100}, {3000, 4000, 50}), 5150);
  EXPECT_EQ(foretold_rtt_us({0, 0, 1}, {0, 0, 2}), 3);
  EXPECT_EQ(foretold_rtt_us({INT32_MIN, INT32_MIN, INT32_MIN}, {INT32_MAX, INT32_MAX, INT32_MAX}), 60'000'000);
}

}  // namespace
}  // namespace muster::session
