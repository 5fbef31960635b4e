#pragma once
// What is held of a machine's GPUs, lease by lease: whole devices, shares of one within an organisation, MIG instances.
// The rules that a grant keeps: no device beyond what it is, shares of one device for one organisation, a MIG instance
// for one lease. Private to control.
#include <cstdint>
#include <map>
#include <string>

#include "control/state.h"
#include "scheduler/types.h"

namespace muster::control {

struct DeviceHeld {
  std::int32_t milli = 0;  // in shares
  OrgId tenant;            // whose shares
  bool whole = false;
};
bool holds_devices(const Lease& lease);
// By device, those of which somebody has something. projects: where clusters and their projects are looked up, since a
// draft holds only what was pulled.
std::map<std::string, DeviceHeld> held_devices(const State& state, NodeId node, const State& projects);
inline std::map<std::string, DeviceHeld> held_devices(const State& state, NodeId node) {
  return held_devices(state, node, state);
}
std::int64_t gpus_in_shares(const State& state, const Node& node);  // whole GPUs of which shares are held

const Device* find_device(const Node& node, const std::string& uuid);
// May a lease of this organisation have that share of the device, beside what is held of it? 0 = all of it.
bool device_has_room(const Device& device, std::int32_t share_milli, OrgId tenant, RuntimeKind runtime,
                     const std::map<std::string, DeviceHeld>& held);
// Those of which parts are given out, as the planner sees them.
std::vector<scheduler::DeviceUse> shared_devices(const State& state, const Node& node);

}  // namespace muster::control
