#pragma once
// The owner's policy: a JSON file under the state directory that only root writes. privd reads it before every start
// and refuses what it does not allow; neither server nor agent can widen it. Missing file = the defaults below. A
// damaged file allows nothing (the owner meant something, we do not know what). Values only; no threads.
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "base/time.h"

namespace muster::host {

struct HourRange {
  int from_minute = 0, to_minute = 24 * 60;
  bool operator==(const HourRange&) const = default;
};  // local time; from > to wraps over midnight

struct Policy {
  std::int64_t reserve_cpu_milli = 0, reserve_memory_bytes = 1LL << 30, reserve_disk_bytes = 5LL << 30;
  std::int64_t max_cpu_milli = 0, max_memory_bytes = 0;  // 0 = the machine less the reserve
  std::int64_t max_gpus = -1;                            // -1 = all
  std::int64_t max_gpu_power_w = 0;                      // 0 = as the driver has it
  std::int64_t max_leases = 8;
  bool egress_allowed = false;
  bool exec_allowed = true;              // people may open a shell in containers of their lease
  std::vector<HourRange> allowed_hours;  // empty = always
  std::vector<std::string> images;       // prefixes; empty = any
  std::string engine_socket;             // empty = the engine's usual place
  bool operator==(const Policy&) const = default;
};

Result<Policy> parse_policy(std::string_view text);
Result<Policy> load_policy(const std::string& path);  // missing file: defaults
bool hour_allowed(const Policy& policy, int minute_of_day);
bool image_allowed(const Policy& policy, const std::string& image);

}  // namespace muster::host
