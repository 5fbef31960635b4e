#include "scheduler/packing.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <tuple>

namespace muster::scheduler {
namespace {

constexpr std::int64_t kOne = 65'536;  // Q16
// Weights were chosen on the openb replay (docs/scheduling.md), one set for every workload.
constexpr std::int64_t kStrandWeight = kOne * 2 / 5;
constexpr std::int64_t kStrandSlackNum = 5, kStrandSlackDen = 4;
constexpr std::int64_t kFitCpuNum = 50 * kOne, kFitCpuDen = 128'000;  // 50 milli-GPU per 128 idle vCPU
constexpr std::int64_t kFitGpuNum = 25 * kOne, kFitGpuDen = 8'000;    // 25 milli-GPU per 8 idle GPUs
constexpr std::int64_t kIdleGpuNum = 20 * kOne, kIdleGpuDen = 1'000;  // 20 milli-GPU per idle GPU
constexpr std::int64_t kPriceWeight = 2, kPriceMax = 4 * kOne;

constexpr std::int64_t kCoverageNum = 99, kCoverageDen = 100;  // of the arrivals, by the commonest shapes
constexpr std::size_t kTargetMax = 128, kSeenMax = 1024;
constexpr std::int64_t kRelearn = 512, kTotalMax = 1 << 20;
constexpr std::int64_t kCpuMax = std::int64_t{1} << 31, kShareMax = kPackingWhole;
constexpr std::int64_t kPoolMax = std::int64_t{1} << 31, kDensityMax = std::int64_t{1} << 40;  // milli-GPU; Q16

PackingTask bounded(PackingTask task) {
  task.cpu_milli = std::clamp<std::int64_t>(task.cpu_milli, 0, kCpuMax);
  task.devices = std::clamp<std::int32_t>(task.devices, 0, static_cast<std::int32_t>(kPackingDevices));
  task.share = task.devices == 0 ? 0 : std::clamp<std::int32_t>(task.share, 1, static_cast<std::int32_t>(kShareMax));
  if (task.devices == 0) task.models = kAnyModel;
  return task;
}

// By set of models, milli-GPU: what is free in it, and the demand that may run nowhere else (a sum over subsets).
struct Captive {
  std::vector<std::int64_t> free, demand;
};

Captive captive_demand(std::uint32_t models, const std::map<std::uint32_t, std::int64_t>& by_mask,
                       const std::array<std::int64_t, kPackingModels>& free) {
  const std::uint32_t sets = 1U << models;
  Captive out{std::vector<std::int64_t>(sets, 0), std::vector<std::int64_t>(sets, 0)};
  for (std::uint32_t set = 1; set < sets; ++set)
    out.free[set] = out.free[set & (set - 1)] + free[static_cast<std::size_t>(std::countr_zero(set))];
  for (const auto& [mask, demand] : by_mask) out.demand[mask & (sets - 1)] += demand;
  for (std::uint32_t m = 0; m < models; ++m)
    for (std::uint32_t set = 0; set < sets; ++set)
      if ((set >> m & 1U) != 0) out.demand[set] += out.demand[set ^ (1U << m)];
  return out;
}

struct Densest {
  std::uint32_t models = 0;
  std::int64_t density = -1;
};
// The set around `done` with most captive demand per free milli-GPU among the models of `rest`; the larger of equals.
Densest densest_set(const Captive& captive, std::uint32_t done, std::uint32_t rest) {
  Densest best;
  for (std::uint32_t set = rest; set != 0; set = (set - 1) & rest) {
    const std::int64_t demand = captive.demand[set | done] - captive.demand[done];
    const std::int64_t density = std::min(demand * kOne / std::max<std::int64_t>(1, captive.free[set]), kDensityMax);
    if (density > best.density || (density == best.density && std::popcount(set) > std::popcount(best.models)))
      best = {set, density};
  }
  return best;
}

}  // namespace

std::int64_t PackingNode::idle() const {
  std::int64_t sum = 0;
  for (std::size_t i = 0; i < devices; ++i) sum += free[i];
  return sum;
}

bool packing_fits(const PackingNode& node, const PackingTask& task) {
  if (node.cpu_milli < task.cpu_milli) return false;
  if (task.devices == 0) return true;
  if ((task.models >> (node.model % kPackingModels) & 1U) == 0) return false;
  std::int32_t fitting = 0;
  for (std::size_t i = 0; i < node.devices; ++i) fitting += node.free[i] >= task.share ? 1 : 0;
  return fitting >= task.devices;
}

void packing_take(PackingNode& node, const PackingTask& task, std::size_t device) {
  node.cpu_milli -= task.cpu_milli;
  if (task.shared()) {
    node.free[device] -= task.share;
    return;
  }
  std::int32_t left = task.devices;
  for (std::size_t i = 0; i < node.devices && left > 0; ++i)
    if (node.free[i] >= task.share) node.free[i] -= task.share, --left;
}

void Packing::observe(const PackingTask& raw) {
  const PackingTask task = bounded(raw);
  if (total_ >= kTotalMax || (seen_.size() >= kSeenMax && !seen_.contains(task))) age();
  if (seen_.size() < kSeenMax || seen_.contains(task)) ++seen_[task], ++total_;
  if (++arrivals_ < next_relearn_) return;
  next_relearn_ = arrivals_ < kRelearn ? arrivals_ * 2 : arrivals_ + kRelearn;
  relearn();
}

void Packing::expect(const std::map<PackingTask, std::int64_t>& tasks) {
  seen_.clear();
  total_ = 0;
  for (const auto& [task, count] : tasks) {
    if (count <= 0 || seen_.size() >= kSeenMax || total_ >= kTotalMax) continue;
    seen_[bounded(task)] += std::min(count, kTotalMax);
    total_ += std::min(count, kTotalMax);
  }
  relearn();
}

void Packing::age() {
  total_ = 0;
  for (auto it = seen_.begin(); it != seen_.end();) {
    it->second /= 2;
    total_ += it->second;
    it = it->second == 0 ? seen_.erase(it) : std::next(it);
  }
}

void Packing::relearn() {
  std::vector<std::pair<std::int64_t, PackingTask>> common;
  std::int64_t cpu = 0, gpu = 0;
  for (const auto& [task, count] : seen_) {
    common.emplace_back(count, task);
    cpu += count * (task.cpu_milli >> 4), gpu += count * task.gpu_milli();
  }
  std::sort(common.begin(), common.end(),
            [](const auto& a, const auto& b) { return a.first != b.first ? a.first > b.first : a.second < b.second; });
  std::int64_t covered = 0;
  std::size_t n = 0;
  while (n < std::min(common.size(), kTargetMax) && covered * kCoverageDen < total_ * kCoverageNum)
    covered += common[n++].first;
  for (auto& shapes : shapes_) shapes.clear();
  weight_ = 0;
  common.resize(n);
  std::sort(common.begin(), common.end(), [](const auto& a, const auto& b) {
    const auto key = [](const PackingTask& t) { return std::tuple(t.devices, t.share, t.cpu_milli, t.models); };
    return key(a.second) < key(b.second);
  });
  for (const auto& [count, task] : common) {
    const std::int64_t weight = count * kOne / covered;
    weight_ += weight;
    for (std::uint32_t m = 0; m < kPackingModels; ++m) {
      if (task.devices == 0 || (task.models >> m & 1U) == 0) continue;
      std::vector<Shape>& shapes = shapes_[m];
      if (shapes.empty() || shapes.back().devices != task.devices || shapes.back().share != task.share)
        shapes.push_back({task.devices, task.share, {}, {}});
      Shape& shape = shapes.back();
      const std::int64_t before = shape.weight_up_to.empty() ? 0 : shape.weight_up_to.back();
      shape.cpu_milli.push_back(task.cpu_milli);
      shape.weight_up_to.push_back(before + weight);
    }
  }
  // Per 16 milli-CPU on both sides, so that the product stays in 64 bits.
  gpu_per_cpu_ =
      cpu > 0 ? std::min<std::int64_t>(gpu * kOne / cpu * kStrandSlackNum / kStrandSlackDen, kOne * kOne) : 0;
  ++generation_;
}

void Packing::reprice(const std::array<std::int64_t, kPackingModels>& free_now) {
  prices_.fill(0);
  std::array<std::int64_t, kPackingModels> free{};
  std::int64_t free_all = 0, demand_all = 0;
  std::uint32_t models = 0;
  for (std::uint32_t m = 0; m < kPackingPriced; ++m) {
    free_all += free[m] = std::clamp<std::int64_t>(free_now[m], 0, kPoolMax);
    if (free[m] > 0) models = m + 1;
  }
  if (models == 0) return;
  std::map<std::uint32_t, std::int64_t> by_mask;
  const std::uint32_t all = (1U << models) - 1;
  for (const auto& [task, count] : seen_) {
    demand_all += count * task.gpu_milli();
    const bool elsewhere =
        task.models != kAnyModel && task.models >> kPackingPriced != 0;  // it may go where nothing is priced
    if (task.devices > 0 && !elsewhere) by_mask[task.models & all] += count * task.gpu_milli();
  }
  if (demand_all == 0) return;
  const Captive captive = captive_demand(models, by_mask, free);
  const std::int64_t average = std::clamp<std::int64_t>(demand_all * kOne / free_all, 1, kDensityMax);
  std::int64_t last = kDensityMax;
  for (std::uint32_t done = 0; done != all;) {
    const Densest densest = densest_set(captive, done, all & ~done);
    last = std::min(last, densest.density);  // an outer set is never under more pressure than an inner one
    const std::int64_t relative = std::min(last * kOne / average, kPriceMax);
    for (std::uint32_t m = 0; m < models; ++m)
      if ((densest.models >> m & 1U) != 0) prices_[m] = std::min(relative * relative / kOne, kPriceMax);
    done |= densest.models;
  }
}

std::int64_t Packing::Shape::weight_within(std::int64_t cpu) const {
  const auto n = std::upper_bound(cpu_milli.begin(), cpu_milli.end(), cpu) - cpu_milli.begin();
  return n == 0 ? 0 : weight_up_to[static_cast<std::size_t>(n - 1)];
}

// Everything idle is useless to every task, but for what the tasks that fit can use.
std::int64_t Packing::fragmentation(const PackingNode& node) const {
  const std::int64_t idle = node.idle();
  if (idle == 0) return 0;
  std::int64_t sum = weight_ * idle;
  for (const Shape& shape : shapes_[node.model % kPackingModels]) {
    std::int32_t fitting = 0;
    std::int64_t usable = 0;
    for (std::size_t i = 0; i < node.devices; ++i) {
      const bool fits = node.free[i] >= shape.share;
      fitting += fits ? 1 : 0;
      usable += fits ? node.free[i] : 0;
    }
    if (fitting >= shape.devices) sum -= shape.weight_within(node.cpu_milli) * usable;
  }
  return sum;
}

std::int64_t Packing::stranded(const PackingNode& node, std::int64_t idle) const {
  const std::int64_t usable = (std::min(node.cpu_milli, kCpuMax) >> 4) * gpu_per_cpu_ / kOne;
  return std::max<std::int64_t>(0, idle - usable);
}

std::int64_t Packing::value_after(const PackingNode& node, const PackingTask& task, std::size_t device,
                                  std::int64_t before, std::int64_t stranded_before) const {
  PackingNode after = node;
  packing_take(after, task, device);
  const std::int64_t idle = after.idle();
  std::int64_t value = before - fragmentation(after);
  value -= std::min(after.cpu_milli, kCpuMax) * kFitCpuNum / kFitCpuDen + idle * kFitGpuNum / kFitGpuDen;
  if (task.devices > 0) return value - kStrandWeight * (stranded(after, idle) - stranded_before);
  return value - idle * kIdleGpuNum / kIdleGpuDen;
}

PackingChoice Packing::score(const PackingNode& node, const PackingTask& task, std::int64_t before) const {
  const std::int64_t stranded_before = stranded(node, node.idle());
  if (!task.shared()) return {value_after(node, task, 0, before, stranded_before), 0};
  PackingChoice best{std::numeric_limits<std::int64_t>::min(), 0};
  for (std::size_t i = 0; i < node.devices; ++i) {
    if (node.free[i] < task.share || std::find(node.free.begin(), node.free.begin() + static_cast<std::ptrdiff_t>(i),
                                               node.free[i]) != node.free.begin() + static_cast<std::ptrdiff_t>(i))
      continue;  // equal devices give equal scores
    const std::int64_t value = value_after(node, task, i, before, stranded_before);
    if (value > best.score) best = {value, i};
  }
  return best;
}

std::int64_t Packing::price(std::uint32_t model, const PackingTask& task) const {
  return kPriceWeight * prices_[model % kPackingModels] * task.gpu_milli();
}

}  // namespace muster::scheduler
