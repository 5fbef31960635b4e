#pragma once
// The packing score: which of the machines that can host a task keeps the rest most useful. Highest score wins; at
// equal scores the caller's order of machines decides. Pure integers, so every machine computes the same;
// single-threaded; no clock, no I/O. Unit of every score: 1/65536 of a milli-GPU ("Q16"), that is, GPU capacity made
// useless for the work that is expected.
//
//   score(task, node) = G - S - B - I      (cacheable while the node and generation() stay)
//   value             = score - price      (price changes often, is the same for all nodes of a model)
//
//   G  fragmentation gradient: F(node before) - F(node after). F is the idle GPU share that a task of the expected
//   workload
//      cannot use, averaged over its shapes: Fragmentation Gradient Descent, Weng et al., "Beware of Fragmentation",
//      USENIX ATC'23. Here the workload is learned from the tasks seen so far, not given.
//   S  stranding: kStrandWeight x growth of max(0, idle GPU - idle CPU x r), r = kStrandSlack x expected GPU per CPU. F
//   sees a
//      lack of CPU only once a whole shape no longer fits; this sees it coming.
//   B  best fit: what stays idle, weighted kFitCpu and kFitGpu. F is flat over large regions; of equals take the
//   fullest node. I  a task without a GPU stays off idle GPUs: kIdleGpu x idle GPU of the node. price  kPriceWeight x
//   (pressure on the node's model / pressure on all)^2 x GPUs taken, at most kPriceMax. Pressure = learned
//      demand per free GPU in the tightest set of models (nested bottlenecks: the set of models whose demand that can
//      go nowhere else is largest for what is free, then the next around it). Flexible tasks leave a scarce model to
//      those that need it.
#include <array>
#include <compare>
#include <cstdint>
#include <map>
#include <vector>

namespace muster::scheduler {

// GPU models are numbers below kPackingModels, given by the caller; work that is priced uses the first kPackingPriced
// of them.
inline constexpr std::uint32_t kPackingModels = 32, kPackingPriced = 12;
inline constexpr std::size_t kPackingDevices = 16;   // per node; more are left out of the score
inline constexpr std::int64_t kPackingWhole = 1000;  // milli-GPU of one device
inline constexpr std::uint32_t kAnyModel = ~std::uint32_t{0};

// What one task needs: `devices` GPUs with `share` milli-GPU free on each (below 1000 only for one device), of a model
// in the mask.
struct PackingTask {
  std::int64_t cpu_milli = 0;
  std::int32_t devices = 0, share = 0;
  std::uint32_t models = kAnyModel;
  std::int64_t gpu_milli() const { return std::int64_t{devices} * share; }
  bool shared() const { return devices == 1 && share < kPackingWhole; }
  auto operator<=>(const PackingTask&) const = default;
};
// What is free on one node: one GPU model, milli-GPU per device.
struct PackingNode {
  std::int64_t cpu_milli = 0;
  std::uint32_t model = 0;
  std::size_t devices = 0;
  std::array<std::int32_t, kPackingDevices> free{};
  std::int64_t idle() const;
  bool operator==(const PackingNode&) const = default;
};
bool packing_fits(const PackingNode& node, const PackingTask& task);
// Takes the task's share; `device` is used by a shared task only, whole devices are taken in order. The task fits.
void packing_take(PackingNode& node, const PackingTask& task, std::size_t device);

struct PackingChoice {
  std::int64_t score = 0;
  std::size_t device = 0;
};

class Packing {
 public:
  // Learns from an arrival, placed or not. Now and then (at 1, 2, 4, ... and then every kRelearn arrivals) the expected
  // workload is rebuilt and generation() grows. Memory is bounded: rare shapes are forgotten, old ones halved away.
  void observe(const PackingTask& task);
  std::uint64_t generation() const { return generation_; }
  // Instead of learning: this is the expected workload, each task with its weight.
  void expect(const std::map<PackingTask, std::int64_t>& tasks);
  // New prices from what is free of each model in the whole pool, milli-GPU.
  void reprice(const std::array<std::int64_t, kPackingModels>& free);

  std::int64_t fragmentation(const PackingNode& node) const;
  // Score and best device on a node that fits the task; `before` is fragmentation(node), so that callers may keep it.
  PackingChoice score(const PackingNode& node, const PackingTask& task, std::int64_t before) const;
  std::int64_t price(std::uint32_t model, const PackingTask& task) const;
  std::int64_t pressure(std::uint32_t model) const {
    return prices_[model % kPackingModels];
  }  // Q16; 65536 = the average

 private:
  // Expected tasks that differ in CPU only: how much weight (Q16) asks for at most so much CPU.
  struct Shape {
    std::int32_t devices = 0, share = 0;
    std::vector<std::int64_t> cpu_milli, weight_up_to;
    std::int64_t weight_within(std::int64_t cpu) const;
  };
  void relearn();
  void age();
  std::int64_t stranded(const PackingNode& node, std::int64_t idle) const;
  std::int64_t value_after(const PackingNode& node, const PackingTask& task, std::size_t device, std::int64_t before,
                           std::int64_t stranded_before) const;

  std::map<PackingTask, std::int64_t> seen_;
  std::int64_t arrivals_ = 0, next_relearn_ = 1, total_ = 0;
  std::uint64_t generation_ = 0;
  std::array<std::vector<Shape>, kPackingModels> shapes_;  // of the expected workload, those that may run on the model
  std::int64_t weight_ = 0;                                // of the whole expected workload
  std::array<std::int64_t, kPackingModels> prices_{};
  std::int64_t gpu_per_cpu_ = 0;  // Q16, slack included
};

}  // namespace muster::scheduler
