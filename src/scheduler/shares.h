#pragma once
// Devices of which parts are given out: shares of one GPU among the work of one tenant, MIG slices, which need a run of
// memory slots at an allowed place, or MIG instances that are there, each of which is taken whole and by one lease.
// Kept beside the machines that have such devices. Private.
#include <array>
#include <cstdint>

#include "scheduler/packing.h"
#include "scheduler/types.h"

namespace muster::scheduler {

inline constexpr std::int16_t kNotShared = -1;

struct Sharable {                                      // of the first kDevicesScored devices of one machine
  std::array<std::int16_t, kDevicesScored> free{};     // milli-GPU; kNotShared = whole or not at all
  std::array<std::uint64_t, kDevicesScored> holder{};  // tenant with shares on it, 0 = nobody
  std::array<std::uint8_t, kDevicesScored> slots{};    // MIG: memory slots taken
  std::array<std::int16_t, kDevicesScored> size{};     // of an instance, 0 = it is none; it is free whole or not at all
  std::uint16_t mig = 0;                               // bit per device
  Sharable() { free.fill(kNotShared); }
  bool operator==(const Sharable&) const = default;
};

// A MIG profile by its memory slots: 1, 2, 4 or 8 of 8, at the starts that the hardware allows.
std::uint8_t mig_slots(std::int32_t share_milli);
// The start that leaves most room for others; -1: none is free.
std::int32_t mig_start(std::uint8_t taken, std::uint8_t slots);
std::int16_t mig_free(std::uint8_t taken);

// May the tenant have that much of device i? tenant 0 = anybody's shares mix.
bool share_fits(const Sharable& s, std::int32_t device, std::int32_t share, std::uint64_t tenant);
// The partly used devices as scores see them.
Shares shares_of(const Sharable& s);

}  // namespace muster::scheduler
