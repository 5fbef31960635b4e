#include "scheduler/packing.h"

#include <algorithm>
#include <map>

namespace muster::scheduler {
namespace {

constexpr std::int64_t kPoint = 1'024;  // points of one milli-GPU
constexpr std::int64_t kWeightOne = 65'536;
// Weights were chosen on the openb replay (docs/scheduling.md), one set for every workload.
constexpr std::int64_t kStrandNum = 2, kStrandDen = 5;
constexpr std::int64_t kSlackNum = 5, kSlackDen = 4;
constexpr std::int64_t kFitCpuNum = 50, kFitCpuDen = 128'000;  // 50 milli-GPU per 128 idle CPUs
constexpr std::int64_t kFitGpuNum = 25, kFitGpuDen = 8'000;    // 25 milli-GPU per 8 idle GPUs
constexpr std::int64_t kIdleGpuNum = 20, kIdleGpuDen = 1'000;  // 20 milli-GPU per idle GPU
constexpr std::int32_t kUsableMax = 1 << 24;

std::int32_t step_of(std::int32_t cpu) {
  return std::clamp<std::int32_t>(cpu >> kCpuShift, 0, static_cast<std::int32_t>(kCpuSteps) - 1);
}
std::int32_t idle_of(std::int32_t gpus, const Shares& shares) {
  std::int32_t idle = gpus * kWholeGpu;
  for (std::int32_t i = 0; i < shares.n; ++i) idle += shares.free[static_cast<std::size_t>(i)];
  return idle;
}

}  // namespace

Packing::Packing() : usable_(kCpuSteps, 0) {
  learn({}, 0);
}

void Packing::learn(const std::vector<std::pair<std::int32_t, Task>>& expected, std::uint32_t used) {
  for (auto& forms : forms_) forms.clear();
  weight_ = 0;
  std::int64_t cpu = 0, gpu = 0;
  std::array<std::map<std::pair<std::int32_t, std::int32_t>, std::vector<std::int32_t>>, kModels> found;
  for (const auto& [weight, task] : expected) {
    weight_ += weight;
    cpu += std::int64_t{weight} * (task.cpu_milli >> kCpuShift), gpu += weight * task.gpu_milli();
    if (task.devices == 0) continue;
    const auto step = std::min<std::size_t>(
        (static_cast<std::size_t>(task.cpu_milli) + (1U << kCpuShift) - 1) >> kCpuShift, kCpuSteps - 1);
    for (std::uint32_t m = 0; m < kModels; ++m) {
      if ((task.models >> m & 1U) == 0) continue;
      auto& weights = found[m][{task.devices, task.share}];
      weights.resize(kCpuSteps, 0);
      weights[step] += weight;
    }
  }
  for (std::uint32_t m = 0; m < kModels; ++m)
    for (auto& [form, weights] : found[m]) {
      for (std::size_t step = 1; step < kCpuSteps; ++step) weights[step] += weights[step - 1];
      forms_[m].push_back({form.first, form.second, std::move(weights)});
    }
  for (std::size_t step = 0; step < kCpuSteps; ++step)
    usable_[step] = cpu == 0 ? kUsableMax
                             : static_cast<std::int32_t>(std::min<std::int64_t>(
                                   kUsableMax, static_cast<std::int64_t>(step) * gpu * kSlackNum / (cpu * kSlackDen)));
  for (std::uint32_t m = 0; m < kModels; ++m) {
    if ((used >> m & 1U) == 0) continue;
    std::vector<std::int32_t>&without = tables_[m * 2], &with = tables_[m * 2 + 1];
    without.resize(kTable), with.resize(kTable);
    // Machines without shares: forms matter by their number of devices alone.
    std::array<std::vector<std::int64_t>, kDevicesScored + 1> within;
    for (auto& sums : within) sums.resize(kCpuSteps, 0);
    for (const Form& form : forms_[m])
      for (std::int32_t g = form.devices; g <= kDevicesScored; ++g)
        for (std::size_t step = 0; step < kCpuSteps; ++step)
          within[static_cast<std::size_t>(g)][step] += form.weight[step];
    for (std::int32_t g = 0; g <= kDevicesScored; ++g)
      for (std::int32_t step = 0; step < static_cast<std::int32_t>(kCpuSteps); ++step) {
        const std::int32_t idle = g * kWholeGpu;
        const std::int64_t lost = idle *
                                      (weight_ - within[static_cast<std::size_t>(g)][static_cast<std::size_t>(step)]) /
                                      (kWeightOne / kPoint) +
                                  best_fit(idle, step);
        const auto at = static_cast<std::size_t>(g) * kCpuSteps + static_cast<std::size_t>(step);
        without[at] = static_cast<std::int32_t>(lost + idle * kPoint * kIdleGpuNum / kIdleGpuDen);
        with[at] = static_cast<std::int32_t>(lost + stranded(idle, step));
      }
  }
}

std::int64_t Packing::best_fit(std::int32_t idle, std::int32_t step) {
  return (std::int64_t{step} << kCpuShift) * kPoint * kFitCpuNum / kFitCpuDen + idle * kPoint * kFitGpuNum / kFitGpuDen;
}

std::int32_t Packing::stranded(std::int32_t idle, std::int32_t step) const {
  const std::int64_t over = std::max<std::int64_t>(0, idle - usable_[static_cast<std::size_t>(step)]);
  return static_cast<std::int32_t>(over * kPoint * kStrandNum / kStrandDen);
}

// Everything idle is useless to every task, but for what the tasks that fit can use.
std::int64_t Packing::fragmentation(std::uint32_t model, std::int32_t gpus, const Shares& shares,
                                    std::int32_t step) const {
  std::int64_t sum = weight_ * idle_of(gpus, shares);
  for (const Form& form : forms_[model]) {
    std::int32_t fitting = gpus, usable = gpus * kWholeGpu;
    for (std::int32_t i = shares.n - 1; i >= 0 && shares.free[static_cast<std::size_t>(i)] >= form.share; --i)
      ++fitting, usable += shares.free[static_cast<std::size_t>(i)];
    if (fitting >= form.devices) sum -= std::int64_t{form.weight[static_cast<std::size_t>(step)]} * usable;
  }
  return sum * kPoint / kWeightOne;
}

std::int64_t Packing::loss(std::uint32_t model, std::int32_t gpus, const Shares& shares, std::int32_t step,
                           bool with_gpu) const {
  const std::int32_t idle = idle_of(gpus, shares);
  const std::int64_t lost = fragmentation(model, gpus, shares, step) + best_fit(idle, step);
  return lost + (with_gpu ? stranded(idle, step) : idle * kPoint * kIdleGpuNum / kIdleGpuDen);
}

std::int32_t Packing::before(std::uint32_t model, std::int32_t gpus, const Shares& shares, std::int32_t cpu,
                             bool with_gpu) const {
  const std::int32_t step = step_of(cpu);
  const std::int64_t lost = fragmentation(model, gpus, shares, step);
  return static_cast<std::int32_t>(lost + (with_gpu ? stranded(idle_of(gpus, shares), step) : 0));
}

std::int32_t Packing::after(std::uint32_t model, std::int32_t gpus, const Shares& shares, std::int32_t cpu,
                            bool with_gpu) const {
  const std::int32_t step = step_of(cpu);
  if (shares.n == 0) return table(model, with_gpu)[gpus * static_cast<std::int32_t>(kCpuSteps) + step];
  return static_cast<std::int32_t>(loss(model, gpus, shares, step, with_gpu));
}

}  // namespace muster::scheduler
