#include "scheduler/shares.h"

#include <algorithm>
#include <bit>

namespace muster::scheduler {
namespace {

constexpr std::int32_t kSlots = 8, kSlotMilli = kWholeGpu / kSlots;

// Places where a run of that many slots may start. The last slot has no compute slice of its own: a profile of one slot
// may not lie there.
bool may_start(std::int32_t start, std::uint8_t slots) {
  switch (slots) {
    case 1:
      return start <= 6;
    case 2:
      return start == 0 || start == 2 || start == 4;
    case 4:
      return start == 0 || start == 4;
    default:
      return start == 0;
  }
}
std::uint8_t run(std::int32_t start, std::uint8_t slots) {
  return static_cast<std::uint8_t>(((1U << slots) - 1) << start);
}
std::int32_t room(std::uint8_t taken) {  // places left, large ones weighing more
  std::int32_t sum = 0;
  for (const std::uint8_t slots : {1, 2, 4, 8})
    for (std::int32_t start = 0; start < kSlots; ++start)
      if (may_start(start, slots) && (taken & run(start, slots)) == 0) sum += slots * slots;
  return sum;
}

}  // namespace

std::uint8_t mig_slots(std::int32_t share_milli) {
  const std::int32_t slots = (std::clamp(share_milli, 1, kWholeGpu) + kSlotMilli - 1) / kSlotMilli;
  return static_cast<std::uint8_t>(std::bit_ceil(static_cast<std::uint32_t>(slots)));
}

std::int32_t mig_start(std::uint8_t taken, std::uint8_t slots) {
  std::int32_t best = -1, most = -1;
  for (std::int32_t start = 0; start < kSlots; ++start) {
    if (!may_start(start, slots) || (taken & run(start, slots)) != 0) continue;
    const std::int32_t left = room(static_cast<std::uint8_t>(taken | run(start, slots)));
    if (left >= most) best = start, most = left;
  }
  return best;
}

std::int16_t mig_free(std::uint8_t taken) {
  return static_cast<std::int16_t>((kSlots - std::popcount(taken)) * kSlotMilli);
}

bool share_fits(const Sharable& s, std::int32_t device, std::int32_t share, std::uint64_t tenant) {
  const auto i = static_cast<std::size_t>(device);
  if (s.free[i] == kNotShared) return false;
  if (s.size[i] > 0) return s.free[i] >= share;
  if ((s.mig >> i & 1U) != 0) return mig_start(s.slots[i], mig_slots(share)) >= 0;
  return s.free[i] >= share && (tenant == 0 || s.holder[i] == 0 || s.holder[i] == tenant);
}

Shares shares_of(const Sharable& s) {
  Shares out;
  for (const std::int16_t free : s.free)
    if (free > 0 && free < kWholeGpu) out.free[static_cast<std::size_t>(out.n++)] = free;
  std::sort(out.free.begin(), out.free.begin() + out.n);
  return out;
}

}  // namespace muster::scheduler
