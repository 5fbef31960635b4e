#pragma once
// Two kinds of time that never mix. WallTime: UTC, for audit, billing, schedules; never decreases in the journal.
// LeaseTime: boot-time clock (CLOCK_BOOTTIME, runs through suspend), for leases and timeouts; meaningless on another
// machine or after a reboot. Durations are chrono milliseconds.
#include <chrono>
#include <compare>
#include <cstdint>
#include <string>

namespace muster {

using Millis = std::chrono::milliseconds;
using namespace std::chrono_literals;

template <typename Tag>
struct TimePoint {
  std::int64_t ms = 0;
  constexpr auto operator<=>(const TimePoint&) const = default;
  constexpr TimePoint operator+(Millis d) const { return {ms + d.count()}; }
  constexpr TimePoint operator-(Millis d) const { return {ms - d.count()}; }
  constexpr Millis operator-(TimePoint other) const { return Millis(ms - other.ms); }
};
struct WallTag {};
struct LeaseTag {};
using WallTime = TimePoint<WallTag>;    // ms since 1970-01-01T00:00:00Z
using LeaseTime = TimePoint<LeaseTag>;  // ms since boot

// What a core is told about time: both clocks, read once by the adapter.
struct Now {
  WallTime wall;
  LeaseTime lease;
  bool operator==(const Now&) const = default;
};

Now read_clocks();                      // adapters only; pure logic takes Now as an argument
std::string format_utc(WallTime time);  // "2026-11-23T01:02:03.456Z"

}  // namespace muster
