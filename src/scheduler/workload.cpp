#include "scheduler/workload.h"

#include <algorithm>

namespace muster::scheduler {
namespace {

constexpr std::int64_t kShareOne = 65'536;
constexpr std::int64_t kCoverageNum = 99, kCoverageDen = 100;
constexpr std::size_t kExpectedMax = 128, kSeenMax = 2048;
constexpr std::int64_t kTotalMax = 1 << 17, kSameMax = 1'000;  // one cluster of thousands does not drown the others
constexpr std::int64_t kFirst = 512;                           // doubling up to here, then a quarter more each time
constexpr std::int64_t kTaskCpuMax = 1 << 30;

}  // namespace

Task bounded(std::int64_t cpu_milli, std::int64_t devices, std::int64_t share, std::uint32_t models) {
  Task task;
  task.cpu_milli = static_cast<std::int32_t>(std::clamp<std::int64_t>(cpu_milli, 0, kTaskCpuMax));
  task.devices = static_cast<std::int32_t>(std::clamp<std::int64_t>(devices, 0, kDevicesScored));
  if (task.devices == 0) return task;
  task.share = task.devices == 1 ? static_cast<std::int32_t>(std::clamp<std::int64_t>(share, 1, kWholeGpu)) : kWholeGpu;
  task.models = models;
  return task;
}

void Workload::add(const Task& task, std::int64_t n) {
  seen_[task] += n;
  total_ += n;
  if (task.devices > 0) demand_[task.models] += n * task.gpu_milli();
}

void Workload::fade() {
  const std::map<Task, std::int64_t> old = std::move(seen_);
  seen_.clear(), demand_.clear();
  total_ = 0;
  for (const auto& [task, n] : old)
    if (n > 1) add(task, n / 2);
}

bool Workload::observe(const Task& seen, std::int64_t n) {
  Task task = seen;
  constexpr std::int32_t kStep = 64;  // finer differences hardly change a score and would fill the memory
  task.cpu_milli = (task.cpu_milli + kStep - 1) / kStep * kStep;
  n = std::clamp<std::int64_t>(n, 1, kSameMax);
  if (total_ + n > kTotalMax || (seen_.size() >= kSeenMax && !seen_.contains(task))) fade();
  if (seen_.size() < kSeenMax || seen_.contains(task)) add(task, n);
  arrivals_ += n;
  if (arrivals_ < learn_at_) return false;
  learn_at_ = arrivals_ + (arrivals_ < kFirst ? arrivals_ : std::max(kFirst / 4, total_ / 4));
  return true;
}

void Workload::restore(const std::map<Task, std::int64_t>& seen, std::int64_t arrivals, std::int64_t learn_at) {
  seen_.clear(), demand_.clear();
  total_ = 0;
  for (const auto& [task, n] : seen)
    if (n > 0 && seen_.size() < kSeenMax && total_ < kTotalMax)
      add(bounded(task.cpu_milli, task.devices, task.share, task.models), std::min(n, kTotalMax - total_));
  constexpr std::int64_t kArrivalsMax = std::int64_t{1} << 60;
  arrivals_ = std::clamp<std::int64_t>(arrivals, 0, kArrivalsMax);
  learn_at_ = std::clamp<std::int64_t>(learn_at, 1, arrivals_ + kTotalMax);
}

std::vector<std::pair<std::int32_t, Task>> Workload::expected() const {
  std::vector<std::pair<std::int64_t, Task>> common;
  for (const auto& [task, n] : seen_) common.emplace_back(n, task);
  std::sort(common.begin(), common.end(),
            [](const auto& a, const auto& b) { return a.first != b.first ? a.first > b.first : a.second < b.second; });
  std::int64_t covered = 0;
  std::size_t n = 0;
  while (n < std::min(common.size(), kExpectedMax) && covered * kCoverageDen < total_ * kCoverageNum)
    covered += common[n++].first;
  std::vector<std::pair<std::int32_t, Task>> out;
  for (std::size_t i = 0; i < n; ++i)
    out.emplace_back(static_cast<std::int32_t>(common[i].first * kShareOne / covered), common[i].second);
  return out;
}

}  // namespace muster::scheduler
