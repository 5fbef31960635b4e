#pragma once
// What this machine is and how busy it is, read from /proc, the engine's answers and NVML where a driver is. Capacity
// is what is left after the owner's reserve. Telemetry: one Sampler per process, called once a second on one thread.
#include <map>
#include <string>

#include "host/layout.h"
#include "model/types.h"
#include "session/frames.h"

namespace muster::host {

std::string host_name();
std::string boot_id();
NodeFacts gather_facts(const Layout& layout, const std::map<std::string, std::string>& labels);

class Sampler {
 public:
  explicit Sampler(std::string disk_path) : disk_path_(std::move(disk_path)) {}
  session::Telemetry sample(WallTime now);

 private:
  std::string disk_path_;
  WallTime last_;
  std::uint64_t busy_ticks_ = 0, rx_ = 0, tx_ = 0;
};

inline constexpr const char* kAgentVersion = "0.1.0";

}  // namespace muster::host
