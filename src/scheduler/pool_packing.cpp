#include "scheduler/pool_packing.h"

#include <algorithm>

namespace muster::scheduler {
namespace {

constexpr std::int64_t kSameMax = 1'000;  // one class of thousands does not drown the others

// A machine counts as of its first device's model; mixed ones are rare and still placed correctly, only scored roughly.
const std::string& model_of(const NodeView& node) { return node.devices.front().model; }

}  // namespace

void PoolPacking::count(const NodeView& node, std::int64_t sign) {
  if (node.devices.empty()) return;
  Model& model = models_[model_of(node)];
  model.nodes += sign;
  model.free_milli += sign * static_cast<std::int64_t>(node.free_devices.size()) * kPackingWhole;
  if (model.nodes == 0) models_.erase(model_of(node));
}

std::uint32_t PoolPacking::index_of(const std::string& model) const {
  const auto it = std::lower_bound(names_.begin(), names_.end(), model);
  const auto last = static_cast<std::ptrdiff_t>(kPackingModels - 1);  // shared by what is beyond, and by what nobody has
  return static_cast<std::uint32_t>(it == names_.end() || *it != model ? last : std::min(it - names_.begin(), last));
}

PackingTask PoolPacking::task_of(const NodeRequest& need) const {
  PackingTask task{need.resources.cpu_milli, static_cast<std::int32_t>(std::clamp<std::int64_t>(need.resources.gpus, 0, kPackingDevices)), 0, kAnyModel};
  if (task.devices > 0) task.share = static_cast<std::int32_t>(kPackingWhole);
  if (!need.gpu_model.empty()) task.models = 1U << index_of(need.gpu_model);
  return task;
}

void PoolPacking::prepare(const std::vector<std::pair<const NodeRequest*, std::int64_t>>& demand) {
  names_.clear();
  std::array<std::int64_t, kPackingModels> free{};
  for (const auto& [name, model] : models_) names_.push_back(name);
  for (const auto& [name, model] : models_) free[index_of(name)] += model.free_milli;
  std::map<PackingTask, std::int64_t> expected;
  for (const auto& [need, n] : demand)
    if (!need->whole_machine) expected[task_of(*need)] += std::min(n, kSameMax);
  packing_.expect(std::move(expected));
  packing_.reprice(free);
}

PackingNode PoolPacking::node_of(const NodeView& view) const {
  PackingNode node{view.free.cpu_milli, 0, std::min(view.free_devices.size(), kPackingDevices), {}};
  std::fill_n(node.free.begin(), node.devices, static_cast<std::int32_t>(kPackingWhole));
  if (!view.devices.empty()) node.model = index_of(model_of(view));
  return node;
}

std::int64_t PoolPacking::waste_on(const NodeRequest& need, const PackingNode& node) const {
  PackingTask task = task_of(need);
  if (need.whole_machine) task = {node.cpu_milli, static_cast<std::int32_t>(node.devices), node.devices > 0 ? static_cast<std::int32_t>(kPackingWhole) : 0};
  return packing_.price(node.model, task) - packing_.score(node, task, packing_.fragmentation(node)).score;
}

std::int64_t PoolPacking::ForNeed::operator()(const NodeView& view) {
  if (!pool_.has_gpus()) return 0;
  const PackingNode node = pool_.node_of(view);
  if (!known_ || node != last_) waste_ = pool_.waste_on(need_, node), last_ = node, known_ = true;
  return waste_;
}

}  // namespace muster::scheduler
