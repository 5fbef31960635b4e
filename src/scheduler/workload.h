#pragma once
// The work that is expected, learned from the requests already seen: how often each shape was asked for, with a bounded
// memory in which the old fades. It says when what it knows has grown by enough that scores should be made anew. Pure
// integers; single-threaded.
#include <compare>
#include <cstdint>
#include <map>
#include <utility>
#include <vector>

namespace muster::scheduler {

inline constexpr std::uint32_t kModels = 32;        // GPU models are numbers below; the last stands for all others
inline constexpr std::int32_t kDevicesScored = 16;  // per machine; more are placed, but not scored
inline constexpr std::int32_t kWholeGpu = 1000;     // milli-GPU
inline constexpr std::uint32_t kAnyModel = ~std::uint32_t{0};

// What one machine of a request needs: `devices` GPUs with `share` milli-GPU free on each (below 1000 only for one
// device), of a model in the mask.
struct Task {
  std::int32_t cpu_milli = 0, devices = 0, share = 0;
  std::uint32_t models = kAnyModel;
  std::int64_t gpu_milli() const { return std::int64_t{devices} * share; }
  bool shared() const { return devices == 1 && share < kWholeGpu; }
  auto operator<=>(const Task&) const = default;
};
Task bounded(std::int64_t cpu_milli, std::int64_t devices, std::int64_t share, std::uint32_t models);

class Workload {
 public:
  // `n` of the same were asked for. True: it is time to learn, that is, to call expected() and score anew.
  bool observe(const Task& seen, std::int64_t n);
  // The commonest tasks that make up 99 % of what was seen, with weights that add up to at most 65,536.
  std::vector<std::pair<std::int32_t, Task>> expected() const;
  // Milli-GPU asked for by the set of models that may serve it.
  const std::map<std::uint32_t, std::int64_t>& demand() const { return demand_; }

  const std::map<Task, std::int64_t>& seen() const { return seen_; }
  std::int64_t arrivals() const { return arrivals_; }
  std::int64_t learn_at() const { return learn_at_; }
  void restore(const std::map<Task, std::int64_t>& seen, std::int64_t arrivals, std::int64_t learn_at);

 private:
  void add(const Task& task, std::int64_t n);
  void fade();
  std::map<Task, std::int64_t> seen_;
  std::map<std::uint32_t, std::int64_t> demand_;
  std::int64_t total_ = 0, arrivals_ = 0, learn_at_ = 1;
};

}  // namespace muster::scheduler
