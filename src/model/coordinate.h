#pragma once
// Where a machine lies in network coordinates: x and y in a plane and the height of its own access, in microseconds.
// The distance of two, plus both heights, foretells the round trip between them. All zero: not known.
#include <algorithm>
#include <array>
#include <cstdint>

namespace muster {

using Coordinate = std::array<std::int32_t, 3>;

// At most a minute, whatever the numbers are.
inline std::int32_t foretold_rtt_us(const Coordinate& a, const Coordinate& b) {
  constexpr std::int64_t kMost = 60'000'000;
  const auto apart = [&](std::size_t i) {
    return std::min(std::max(std::int64_t{a[i]}, std::int64_t{b[i]}) - std::min(a[i], b[i]), kMost);
  };
  const std::int64_t square = apart(0) * apart(0) + apart(1) * apart(1);
  std::int64_t root = 0;  // its whole root, bit by bit
  for (std::int64_t bit = std::int64_t{1} << 27; bit != 0; bit >>= 1)
    if ((root + bit) * (root + bit) <= square) root += bit;
  return static_cast<std::int32_t>(
      std::clamp<std::int64_t>(root + std::max<std::int64_t>(a[2], 0) + std::max<std::int64_t>(b[2], 0), 0, kMost));
}

}  // namespace muster
