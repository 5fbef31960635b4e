#include "control/gpus.h"

#include <algorithm>
#include <set>

#include "control/mutants.h"

namespace muster::control {

bool holds_devices(const Lease& lease) {
  if (MUSTER_MUTANT(mutants::kFreeDevicesAtDecision) && lease.want == LeaseWant::Stop) return false;
  return lease.end == LeaseEnd::None;
}

std::map<std::string, DeviceHeld> held_devices(const State& state, NodeId node, const State& projects) {
  std::map<std::string, DeviceHeld> out;
  for (const LeaseId id : state.live_leases(node)) {
    const Lease* lease = state.find_lease(id);
    if (lease == nullptr || !holds_devices(*lease) || MUSTER_MUTANT(mutants::kGrantDevicesTwice)) continue;
    for (const std::string& uuid : lease->devices) {
      DeviceHeld& held = out[uuid];
      if (lease->share_milli == 0) {
        held.whole = true;
        continue;
      }
      held.milli += lease->share_milli;
      const Cluster* cluster = state.find_cluster(lease->cluster);
      if (cluster == nullptr) cluster = projects.find_cluster(lease->cluster);
      if (cluster == nullptr) continue;
      if (const auto it = projects.projects.find(cluster->project); it != projects.projects.end())
        held.tenant = it->second.org;
    }
  }
  return out;
}

std::int64_t gpus_in_shares(const State& state, const Node& node) {
  std::set<std::string> shared;
  for (const LeaseId id : state.live_leases(node.id)) {
    const Lease* lease = state.find_lease(id);
    if (lease == nullptr || !holds_devices(*lease) || lease->share_milli == 0) continue;
    for (const std::string& uuid : lease->devices)
      if (const Device* device = find_device(node, uuid); device != nullptr && device->sharing != GpuSharing::Mig)
        shared.insert(uuid);
  }
  return static_cast<std::int64_t>(shared.size());
}

const Device* find_device(const Node& node, const std::string& uuid) {
  const auto& devices = node.facts.devices;
  const auto found = std::find_if(devices.begin(), devices.end(), [&](const Device& d) { return d.uuid == uuid; });
  return found == devices.end() ? nullptr : &*found;
}

bool device_has_room(const Device& device, std::int32_t share_milli, OrgId tenant, RuntimeKind runtime,
                     const std::map<std::string, DeviceHeld>& held) {
  const auto found = held.find(device.uuid);
  const bool free = found == held.end();
  if (share_milli == 0) return free && device.sharing != GpuSharing::Mig;
  if (device.sharing == GpuSharing::Mig)  // a virtual environment has no way to one instance alone
    return free && share_milli <= device.part_milli && runtime != RuntimeKind::Venv;
  if (device.sharing != GpuSharing::Shared) return false;
  if (free) return true;
  const DeviceHeld& by = found->second;
  return !by.whole && by.milli + share_milli <= kGpuMilli &&
         (by.tenant == tenant || MUSTER_MUTANT(mutants::kMixTenants));
}

std::vector<scheduler::DeviceUse> shared_devices(const State& state, const Node& node) {
  std::vector<scheduler::DeviceUse> out;
  std::map<std::string, DeviceHeld> held;
  bool looked = false;
  for (const Device& device : node.facts.devices) {
    if (device.sharing == GpuSharing::Exclusive) continue;
    if (!looked) held = held_devices(state, node.id), looked = true;
    const auto found = held.find(device.uuid);
    scheduler::DeviceUse use;
    use.uuid = device.uuid;
    if (device.sharing == GpuSharing::Mig) {
      use.sharing = scheduler::Sharing::Instance, use.instance_milli = device.part_milli;
      use.free_milli = found == held.end() ? device.part_milli : 0;
    } else if (found != held.end()) {
      use.free_milli = found->second.whole ? 0 : std::max(0, kGpuMilli - found->second.milli);
      use.holder = found->second.whole || MUSTER_MUTANT(mutants::kMixTenants) ? OrgId{} : found->second.tenant;
    }
    out.push_back(std::move(use));
  }
  return out;
}

std::map<std::string, std::int32_t> parts_free(const State& state, const Node& node) {
  std::map<std::string, std::int32_t> out;
  for (const scheduler::DeviceUse& use : shared_devices(state, node)) out[use.uuid] = use.free_milli;
  return out;
}

}  // namespace muster::control
