#include "scheduler/pool_packing.h"

#include <algorithm>

namespace muster::scheduler {
namespace {

constexpr std::int64_t kSameMax = 1'000;      // one cluster of thousands does not drown the others
constexpr std::size_t kDemandShapes = 4'096;  // looked at
constexpr std::int64_t kDemandTotal = 1 << 19;

// CPU to within an eighth, upwards: the workload is kept as few shapes.
std::int64_t rounded(std::int64_t cpu_milli) {
  cpu_milli = std::min(cpu_milli, std::int64_t{1} << 40);
  std::int64_t step = 1;
  while (step * 16 <= cpu_milli && step < (std::int64_t{1} << 32)) step *= 2;
  return std::max<std::int64_t>(0, cpu_milli / step * step + (cpu_milli % step != 0 ? step : 0));
}

// A machine counts as of its first device's model; mixed ones are rare and still placed correctly, only scored roughly.
const std::string& model_of(const NodeView& node) {
  return node.devices.front().model;
}

}  // namespace

void PoolPacking::count(const NodeView& node, std::int64_t sign) {
  if (node.devices.empty()) return;
  free_stale_ = true;
  Model& model = models_[model_of(node)];
  if (model.nodes == 0) demand_stale_ = true;  // the models are numbered anew
  model.nodes += sign;
  model.free_milli += sign * static_cast<std::int64_t>(node.free_devices.size()) * kPackingWhole;
  if (model.nodes == 0) models_.erase(model_of(node)), demand_stale_ = true;
}

std::uint32_t PoolPacking::index_of(const std::string& model) const {
  const auto it = std::lower_bound(names_.begin(), names_.end(), model);
  const auto last =
      static_cast<std::ptrdiff_t>(kPackingModels - 1);  // shared by what is beyond, and by what nobody has
  return static_cast<std::uint32_t>(it == names_.end() || *it != model ? last : std::min(it - names_.begin(), last));
}

PackingTask PoolPacking::task_of(const Shape& shape) const {
  PackingTask task{shape.cpu_milli, static_cast<std::int32_t>(std::clamp<std::int64_t>(shape.gpus, 0, kPackingDevices)),
                   0, kAnyModel};
  if (task.devices > 0) task.share = static_cast<std::int32_t>(kPackingWhole);
  if (!shape.model.empty())
    task.models = 1U << index_of(shape.model);
  else if (names_.size() < kPackingModels)
    task.models = (1U << names_.size()) - 1;
  return task;
}

void PoolPacking::demand(ClusterId cluster, const std::vector<std::pair<NodeRequest, std::uint32_t>>& needs) {
  Shapes shapes;
  for (const auto& [need, n] : needs)  // who takes whole machines, whatever they have, says nothing of what is scarce
    if (!need.whole_machine && n > 0)
      shapes[{rounded(need.resources.cpu_milli), need.resources.gpus, need.gpu_model}] +=
          std::min<std::int64_t>(n, kSameMax);
  const auto known = asked_.find(cluster);
  if (known == asked_.end() ? shapes.empty() : known->second == shapes) return;
  demand_stale_ = true;
  if (known != asked_.end()) {
    for (const auto& [shape, n] : known->second)
      if (const auto it = demand_.find(shape); asked_total_ -= n, (it->second -= n) == 0) demand_.erase(it);
    asked_.erase(known);
  }
  for (const auto& [shape, n] : shapes) demand_[shape] += n, asked_total_ += n;
  if (!shapes.empty()) asked_.emplace(cluster, std::move(shapes));
}

void PoolPacking::prepare() {
  if (!has_gpus() || (!demand_stale_ && !free_stale_)) return;
  if (demand_stale_) {
    names_.clear();
    for (const auto& [name, model] : models_) names_.push_back(name);
    std::map<PackingTask, std::int64_t> expected;
    std::size_t seen = 0;
    const std::int64_t scale = 1 + asked_total_ / kDemandTotal;
    for (const auto& [shape, n] : demand_) {
      if (++seen > kDemandShapes) break;
      expected[task_of(shape)] += std::max<std::int64_t>(1, n / scale);
    }
    packing_.expect(expected);
  }
  std::array<std::int64_t, kPackingModels> free{};
  for (const auto& [name, model] : models_) free[index_of(name)] += model.free_milli;
  packing_.reprice(free);
  demand_stale_ = free_stale_ = false;
}

PackingNode PoolPacking::node_of(const NodeView& view) const {
  PackingNode node{view.free.cpu_milli, 0, std::min(view.free_devices.size(), kPackingDevices), {}};
  std::fill_n(node.free.begin(), node.devices, static_cast<std::int32_t>(kPackingWhole));
  if (!view.devices.empty()) node.model = index_of(model_of(view));
  return node;
}

std::int64_t PoolPacking::waste_on(const NodeRequest& need, const PackingNode& node) const {
  PackingTask task = task_of({need.resources.cpu_milli, need.resources.gpus, need.gpu_model});
  if (need.whole_machine)
    task = {node.cpu_milli, static_cast<std::int32_t>(node.devices),
            node.devices > 0 ? static_cast<std::int32_t>(kPackingWhole) : 0};
  return packing_.price(node.model, task) - packing_.score(node, task, packing_.fragmentation(node)).score;
}

std::int64_t PoolPacking::ForNeed::operator()(const NodeView& view) {
  if (!pool_.has_gpus()) return 0;
  const PackingNode node = pool_.node_of(view);
  if (!known_ || node != last_) waste_ = pool_.waste_on(need_, node), last_ = node, known_ = true;
  return waste_;
}

}  // namespace muster::scheduler
