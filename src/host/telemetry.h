#pragma once
// How busy this machine is: Sampler reads /proc and NVML once a second, RollUp turns seconds into the mean that is sent
// while nobody watches. Both belong to one thread. Nothing of it is stored anywhere.
#include <map>
#include <string>

#include "base/time.h"
#include "session/frames.h"

namespace muster::host {

class Sampler {
 public:
  explicit Sampler(std::string disk_path) : disk_path_(std::move(disk_path)) {}
  session::Telemetry sample(WallTime now);

 private:
  std::string disk_path_;
  WallTime last_;
  std::uint64_t busy_ticks_ = 0, rx_ = 0, tx_ = 0, read_ = 0, written_ = 0;
};

// Means of what varies (CPU, GPU use, power, rates), peaks of CPU, last values of the rest. Containers and GPUs that
// came or went meanwhile count over the seconds that they were seen.
class RollUp {
 public:
  void add(const session::Telemetry& second);
  bool empty() const { return seconds_ == 0; }
  session::Telemetry take();  // and begin anew

 private:
  struct GpuSums {
    std::uint64_t n = 0, use = 0, power = 0, sm = 0;
  };
  struct ContainerSums {
    std::uint64_t n = 0, cpu = 0, rx = 0, tx = 0;
  };
  session::Telemetry last_;
  WallTime began_;
  std::uint64_t seconds_ = 0, cpu_ = 0, peak_ = 0, rx_ = 0, tx_ = 0, read_ = 0, written_ = 0;
  std::map<std::string, GpuSums> gpus_;
  std::map<LeaseId, ContainerSums> containers_;
};

// Prometheus text of one sample, for the agent's own /metrics.
std::string metrics_text(const session::Telemetry& sample, bool online);

}  // namespace muster::host
