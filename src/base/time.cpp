#include "base/time.h"

#include <fmt/format.h>

#include <ctime>

namespace muster {
namespace {
std::int64_t read(clockid_t clock) {
  timespec ts{};
  clock_gettime(clock, &ts);
  return static_cast<std::int64_t>(ts.tv_sec) * 1000 + ts.tv_nsec / 1'000'000;
}
}  // namespace

Now read_clocks() {
  return Now{{read(CLOCK_REALTIME)}, {read(CLOCK_BOOTTIME)}};
}

std::string format_utc(WallTime time) {
  const std::int64_t seconds = time.ms >= 0 ? time.ms / 1000 : (time.ms - 999) / 1000;
  const time_t t = static_cast<time_t>(seconds);
  tm parts{};
  if (gmtime_r(&t, &parts) == nullptr) return "invalid time";
  return fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z", parts.tm_year + 1900, parts.tm_mon + 1,
                     parts.tm_mday, parts.tm_hour, parts.tm_min, parts.tm_sec, time.ms - seconds * 1000);
}
}  // namespace muster
