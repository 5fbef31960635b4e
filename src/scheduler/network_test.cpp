#include "scheduler/network.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <limits>

#include "base/rng.h"

namespace muster::scheduler::network_test {
namespace {

Tight gang_of(Rng& rng, std::uint64_t measured_of_ten) {
  Tight gang;
  const auto machines = static_cast<std::uint32_t>(3 + rng.below(6));
  gang.members = static_cast<std::uint32_t>(rng.below(2));
  for (std::uint64_t n = 1 + rng.below(2); n > 0; --n)
    gang.counts.push_back(static_cast<std::uint32_t>(1 + rng.below(2)));
  for (std::uint32_t i = 0; i < machines; ++i) {
    Link link;
    if (rng.chance(2, 3)) link.up_kbps = static_cast<std::int64_t>(1'000 * (1 + rng.below(200)));
    if (rng.chance(2, 3)) link.down_kbps = static_cast<std::int64_t>(1'000 * (1 + rng.below(400)));
    if (rng.chance(1, 3)) link.lan_kbps = static_cast<std::int64_t>(50'000 * (1 + rng.below(100)));
    link.relayed = rng.chance(1, 12);
    gang.spots.push_back(
        spot_of(link, static_cast<std::uint32_t>(rng.below(4)), static_cast<std::uint32_t>(rng.below(3))));
    if (rng.chance(1, 2))
      gang.spots.back().at = {static_cast<std::int32_t>(1'000 * rng.below(200)),
                              static_cast<std::int32_t>(1'000 * rng.below(200)),
                              static_cast<std::int32_t>(1 + rng.below(9'000))};
    gang.hosts.push_back(i < gang.members ? 0 : 1 + rng.below((std::uint64_t{1} << gang.counts.size()) - 1));
  }
  for (std::uint32_t i = 0; i < machines; ++i)
    for (std::uint32_t j = i + 1; j < machines; ++j)
      if (rng.chance(measured_of_ten, 10))
        gang.known.push_back({i,
                              j,
                              {static_cast<std::int64_t>(1'000 * (1 + rng.below(500))),
                               static_cast<std::int32_t>(1'000 * (1 + rng.below(200))), rng.chance(1, 4)}});
  return gang;
}
Way way(const Tight& gang, std::uint32_t a, std::uint32_t b) {
  const auto [low, high] = std::minmax(a, b);
  for (const auto& known : gang.known)
    if (known.a == low && known.b == high) return known.way;
  return way_between(gang.spots[a], gang.spots[b]);
}
// Of all assignments the slowest pair, the highest, and of those the longest round trip, the lowest; members among
// themselves do not count. kbps -1: there is none without the relay.
std::pair<std::int64_t, std::int32_t> by_trying_all(const Tight& gang) {
  std::vector<std::uint32_t> slots;
  for (std::uint32_t n = 0; n < gang.counts.size(); ++n) slots.insert(slots.end(), gang.counts[n], n);
  std::pair<std::int64_t, std::int32_t> best{-1, 0};
  std::vector<std::uint32_t> chosen;
  const std::function<void(std::int64_t, std::int32_t)> next = [&](std::int64_t slowest, std::int32_t longest) {
    if (chosen.size() == slots.size()) {
      if (slowest > best.first || (slowest == best.first && longest < best.second)) best = {slowest, longest};
      return;
    }
    for (std::uint32_t i = gang.members; i < gang.spots.size(); ++i) {
      if ((gang.hosts[i] >> slots[chosen.size()] & 1U) == 0) continue;
      std::int64_t s = slowest;
      std::int32_t l = longest;
      bool fits = std::find(chosen.begin(), chosen.end(), i) == chosen.end();
      const auto see = [&](std::uint32_t other) {
        const Way w = way(gang, i, other);
        fits = fits && !w.relayed, s = std::min(s, w.kbps), l = std::max(l, w.rtt_us);
      };
      for (std::uint32_t m = 0; m < gang.members; ++m) see(m);
      for (const std::uint32_t other : chosen) see(other);
      if (!fits) continue;
      chosen.push_back(i);
      next(s, l);
      chosen.pop_back();
    }
  };
  next(std::numeric_limits<std::int64_t>::max(), 0);
  return best;
}
// All pairs of the set, and of it with the members, are as good as it says.
void check(const Tight& gang, const TightSet& set, std::uint64_t seed) {
  for (const std::uint32_t i : set.machines) {
    ASSERT_GE(i, gang.members) << "seed " << seed;
    const auto see = [&](std::uint32_t other) {
      const Way w = way(gang, i, other);
      EXPECT_FALSE(w.relayed) << "seed " << seed;
      EXPECT_GE(w.kbps, set.kbps) << "seed " << seed;
      EXPECT_LE(w.rtt_us, set.rtt_us) << "seed " << seed;
    };
    for (std::uint32_t m = 0; m < gang.members; ++m) see(m);
    for (const std::uint32_t other : set.machines)
      if (other != i) see(other);
  }
}

TEST(Network, TheSlowestPairIsAsFastAsTryingAllFinds) {
  int found = 0, pairs = 0;
  for (std::uint64_t seed = 1; seed <= 2'000; ++seed) {
    Rng rng(seed);
    const Tight gang = gang_of(rng, rng.below(11));
    const auto best = by_trying_all(gang);
    const auto set = tightest(gang);
    ASSERT_EQ(set.has_value(), best.first >= 0) << "seed " << seed;
    if (!set) continue;
    ++found;
    check(gang, *set, seed);
    if (best.first == std::numeric_limits<std::int64_t>::max()) continue;  // one machine alone
    ++pairs;
    ASSERT_EQ(set->kbps, best.first) << "seed " << seed;
    ASSERT_EQ(set->rtt_us, best.second) << "seed " << seed;
  }
  EXPECT_GT(found, 1'000);
  EXPECT_GT(pairs, 800);
}

// The way that large pools go, on instances that are small enough to know the best.
TEST(Network, OfManyMachinesAsGoodAsTryingAllNearlyAlways) {
  int all = 0, good = 0;
  for (std::uint64_t seed = 1; seed <= 2'000; ++seed) {
    Rng rng(seed);
    Tight gang = gang_of(rng, rng.below(3));
    gang.small = 0;
    const auto best = by_trying_all(gang);
    const auto set = tightest(gang);
    if (set) check(gang, *set, seed);
    if (best.first < 0 || best.first == std::numeric_limits<std::int64_t>::max()) continue;
    ++all;
    if (set && set->kbps * 10 >= best.first * 9) ++good;
  }
  EXPECT_GT(all, 800);
  EXPECT_GE(good * 100, all * 90) << good << " of " << all;
}

TEST(Network, APairHasTheNarrowerOfTheirLinksUnlessItWasMeasured) {
  const Spot home = spot_of({.up_kbps = 40'000, .down_kbps = 200'000}, 1, 1),
             hall = spot_of({.up_kbps = 900'000, .down_kbps = 100'000, .lan_kbps = 10'000'000}, 2, 1),
             next = spot_of({}, 2, 1),
             relayed = spot_of({.up_kbps = 900'000, .down_kbps = 900'000, .relayed = true}, 3, 2);
  EXPECT_EQ(way_between(home, hall).kbps, 40'000);
  EXPECT_EQ(way_between(hall, next).kbps, 1'000'000) << "a switch that nobody spoke of";
  EXPECT_LT(way_between(hall, next).rtt_us, way_between(home, hall).rtt_us);
  EXPECT_LT(way_between(home, hall).rtt_us, way_between(home, relayed).rtt_us);
  EXPECT_TRUE(way_between(hall, relayed).relayed);
  EXPECT_LE(way_between(hall, relayed).kbps, 50'000) << "what a relay carries";

  Network network;
  const WallTime at{1'000'000'000};
  EXPECT_TRUE(network.note(1, 2, {NodeId{1}, NodeId{2}, PathKind::Direct, 0, 12'000, at}));
  EXPECT_EQ(network.between(1, 2)->applied_to(home, hall, at.ms), (Way{40'000, 12'000, false}));
  EXPECT_TRUE(network.note(2, 1, {NodeId{2}, NodeId{1}, PathKind::Direct, 70'000, 14'000, at}))
      << "nobody knew what it carries";
  EXPECT_EQ(network.between(1, 2)->applied_to(home, hall, at.ms).kbps, 70'000);
  EXPECT_TRUE(network.note(1, 2, {NodeId{1}, NodeId{2}, PathKind::Direct, 33'000, 0, at}));
  EXPECT_FALSE(network.note(1, 2, {NodeId{1}, NodeId{2}, PathKind::Direct, 30'000, 0, at}))
      << "a tenth more or less is no news";
  EXPECT_EQ(network.between(2, 1)->applied_to(hall, home, at.ms), (Way{30'000, 14'000, false}));
  EXPECT_TRUE(network.note(2, 1, {NodeId{2}, NodeId{1}, PathKind::Relay, 0, 0, at}));
  EXPECT_TRUE(network.between(1, 2)->applied_to(home, hall, at.ms).relayed);
  EXPECT_TRUE(network.between(1, 2)->fresh(at.ms + 86'399'999));
  EXPECT_FALSE(network.between(1, 2)->fresh(at.ms + 86'400'000));
}

TEST(Network, WhatAWayCarriedFadesWithinAWeek) {
  Network network;
  constexpr std::int64_t kDay = 86'400'000;
  const WallTime at{100 * kDay};
  const Spot a{0, 1, 40'000, 0, false}, b{0, 1, 60'000, 0, false};
  network.note(1, 2, {NodeId{1}, NodeId{2}, PathKind::Relay, 10'000, 9'000, at});
  const Network::Seen& seen = *network.between(1, 2);
  EXPECT_EQ(seen.applied_to(a, b, at.ms + kDay - 1), (Way{10'000, 9'000, true}));
  const Way later = seen.applied_to(a, b, at.ms + 4 * kDay);
  EXPECT_EQ(later.kbps, 25'000) << "half of it is what the two say of themselves";
  EXPECT_FALSE(later.relayed) << "that it went by the relay was long ago";
  EXPECT_TRUE(seen.known(at.ms + 7 * kDay - 100'000'000));
  EXPECT_FALSE(seen.known(at.ms + 7 * kDay));
  EXPECT_EQ(seen.applied_to(a, b, at.ms + 7 * kDay), way_between(a, b));
  network.note(1, 2, {NodeId{1}, NodeId{2}, PathKind::Direct, 20'000, 0, at + Millis(6 * kDay), at + Millis(2 * kDay)});
  EXPECT_EQ(seen.weight(at.ms + 6 * kDay), 500) << "by when it was full, not by when that was told again";
}

TEST(Network, RemembersSoManyPeersAndForgetsMachines) {
  Network network;
  for (std::uint64_t i = 2; i <= 200; ++i)
    network.note(1, static_cast<std::uint32_t>(i),
                 {NodeId{1}, NodeId{i}, PathKind::Direct, 1'000, 1'000, WallTime{static_cast<std::int64_t>(i)}});
  EXPECT_EQ(network.of(1).size(), 64U);
  EXPECT_EQ(network.between(1, 2), nullptr) << "the oldest are gone, at both ends";
  EXPECT_TRUE(network.of(2).empty());
  ASSERT_NE(network.between(200, 1), nullptr);
  Network rebuilt;
  for (const PathSeen& path : network.all().paths)  // by other numbers
    rebuilt.note(static_cast<std::uint32_t>(300 - path.from.value), static_cast<std::uint32_t>(300 - path.to.value),
                 path);
  EXPECT_EQ(rebuilt.all().paths, network.all().paths);
  network.forget(1);
  EXPECT_TRUE(network.empty());
  network.note(1, 1, {NodeId{1}, NodeId{1}, PathKind::Direct, 1, 1, {}});
  network.note(0, 1, {NodeId{}, NodeId{1}, PathKind::Direct, 1, 1, {}});
  EXPECT_TRUE(network.empty());
}

}  // namespace
}  // namespace muster::scheduler::network_test
