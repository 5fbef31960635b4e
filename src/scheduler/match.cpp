#include "scheduler/match.h"

#include <algorithm>

namespace muster::scheduler {
namespace {

bool in_pool(const Request& request, const NodeView& node) {
  if (request.pool == "own") return node.supplier == request.tenant;
  if (!request.pool.starts_with("pool:")) return true;
  const auto it = node.labels.find("pool");
  return it != node.labels.end() && it->second == std::string_view(request.pool).substr(5);
}

template <class List, class T>
bool has(const List& list, const T& item) {
  return std::find(list.begin(), list.end(), item) != list.end();
}

bool fits(const Resources& need, const Resources& free) {
  return need.cpu_milli <= free.cpu_milli && need.memory_bytes <= free.memory_bytes && need.gpus <= free.gpus &&
         need.disk_bytes <= free.disk_bytes;
}

bool matches(const NodeRequest& need, const NodeView& node, const std::string& uuid) {
  const auto device =
      std::find_if(node.devices.begin(), node.devices.end(), [&](const Device& d) { return d.uuid == uuid; });
  return device != node.devices.end() && (need.gpu_model.empty() || device->model == need.gpu_model);
}

std::vector<std::string> matching_devices(const NodeRequest& need, const NodeView& node) {
  std::vector<std::string> out;
  for (const std::string& uuid : node.free_devices)
    if (matches(need, node, uuid)) out.push_back(uuid);
  return out;
}

}  // namespace

bool suits(const Request& request, const NodeRequest& need, const NodeView& node) {
  if (node.arch != request.arch || !has(node.runtimes, request.runtime) || (request.egress && !node.egress) ||
      !in_pool(request, node))
    return false;
  if (!need.pinned.empty() && !has(need.pinned, node.node)) return false;
  for (const auto& [key, value] : need.constraints) {
    const auto it = node.labels.find(key);
    if (it == node.labels.end() || it->second != value) return false;
  }
  if (need.resources.gpus == 0 && need.gpu_model.empty()) return true;
  const auto fitting = std::count_if(node.devices.begin(), node.devices.end(), [&](const Device& d) {
    return need.gpu_model.empty() || d.model == need.gpu_model;
  });
  return fitting >= std::max<std::int64_t>(need.resources.gpus, need.gpu_model.empty() ? 0 : 1);
}

bool hosts(const Request& request, const NodeRequest& need, const NodeView& node, WallTime now) {
  if (!node.schedulable || node.backoff_until > now || !fits(need.resources, node.free) || !suits(request, need, node))
    return false;
  if (need.whole_machine && (!node.whole || node.free_devices.size() != node.devices.size())) return false;
  if (need.whole_machine &&
      !need.gpu_model.empty())  // every device goes with it, so every one must be the model asked for
    return std::all_of(node.devices.begin(), node.devices.end(),
                       [&](const Device& d) { return d.model == need.gpu_model; });
  if (need.resources.gpus <= 0) return true;
  return std::count_if(node.free_devices.begin(), node.free_devices.end(),
                       [&](const std::string& uuid) { return matches(need, node, uuid); }) >= need.resources.gpus;
}

Score score(const Request& request, const Bundle& bundle, const NodeView& node, std::int64_t waste) {
  Score s;
  if (bundle.role == SlotRole::Head) s.tier = -static_cast<std::int32_t>(node.tier);
  s.cold = has(node.images, request.image) ? 0 : 1;
  s.waste = waste, s.gpus = node.free.gpus, s.cpu = node.free.cpu_milli, s.node = node.node;
  return s;
}

Place place_on(const Bundle& bundle, const NodeView& node) {
  Place place;
  place.bundle = bundle, place.node = node.node, place.node_version = node.version;
  place.resources = bundle.request.resources;
  if (bundle.request.whole_machine) {
    place.resources = node.free;
    place.resources.custom_milli = bundle.request.resources.custom_milli;
    place.resources.gpus = static_cast<std::int64_t>(node.devices.size());
    place.devices = node.free_devices;
    return place;
  }
  place.devices = matching_devices(bundle.request, node);
  place.devices.resize(std::min<std::size_t>(
      place.devices.size(), static_cast<std::size_t>(std::max<std::int64_t>(0, place.resources.gpus))));
  return place;
}

void take(NodeView& node, const Place& place) {
  node.whole = false;
  node.free.cpu_milli -= place.resources.cpu_milli, node.free.memory_bytes -= place.resources.memory_bytes;
  node.free.gpus -= place.resources.gpus, node.free.disk_bytes -= place.resources.disk_bytes;
  std::erase_if(node.free_devices, [&](const std::string& uuid) { return has(place.devices, uuid); });
}

}  // namespace muster::scheduler
