#include "scheduler/run_times.h"

#include <algorithm>
#include <bit>
#include <numeric>

namespace muster::scheduler {
namespace {

constexpr std::int64_t kLongestRunMs = (std::int64_t{1} << 24) * 1000;

// Where a step begins, in milliseconds.
std::int64_t begin_of(std::size_t step) {
  return step == 0 ? 0 : (static_cast<std::int64_t>(4 + step % 4) << (step / 4)) * 250;
}
std::size_t step_of(std::int64_t ms) {
  const auto quarters = static_cast<std::uint64_t>(std::clamp<std::int64_t>(ms, 0, kLongestRunMs - 1) / 250);
  if (quarters < 4) return 0;
  const auto octave = static_cast<std::size_t>(std::bit_width(quarters)) - 3;
  return std::min(octave * 4 + static_cast<std::size_t>(quarters >> octave) - 4, kRunSteps - 1);
}

}  // namespace

RunTimes::Steps RunTimes::bounded(const std::vector<std::uint32_t>& steps) {
  Steps out{};
  for (std::size_t i = 0; i < std::min(steps.size(), kRunSteps); ++i) out[i] = std::min(steps[i], kRunsKept);
  return out;
}

void RunTimes::add(OrgId tenant, Millis length) {
  for (const OrgId whose : {tenant, OrgId{}}) {
    Steps& steps = by_[whose];
    ++steps[step_of(length.count())];
    if (std::accumulate(steps.begin(), steps.end(), std::uint64_t{0}) > kRunsKept)  // the recent past counts more
      for (std::uint32_t& n : steps) n /= 2;
    if (tenant == OrgId{}) return;
  }
}

std::vector<RunsChanged> RunTimes::all() const {
  std::vector<RunsChanged> out;
  for (const auto& [tenant, steps] : by_) out.push_back({tenant, {steps.begin(), steps.end()}});
  return out;
}

const RunTimes::Steps* RunTimes::steps_of(OrgId tenant) const {
  for (const OrgId whose : {tenant, OrgId{}}) {
    const auto it = by_.find(whose);
    if (it != by_.end() && std::accumulate(it->second.begin(), it->second.end(), std::uint64_t{0}) >= kRunsKnown)
      return &it->second;
  }
  return nullptr;
}

std::optional<Millis> RunTimes::length(OrgId tenant, Millis elapsed, std::uint32_t u) const {
  const Steps* steps = steps_of(tenant);
  if (steps == nullptr) return {};
  const std::int64_t over = std::clamp<std::int64_t>(elapsed.count(), 0, kLongestRunMs);
  const std::size_t first = step_of(over);
  // Of the step that it is in, what lies ahead counts by its share.
  const auto end_of = [](std::size_t step) { return step + 1 < kRunSteps ? begin_of(step + 1) : kLongestRunMs; };
  const std::int64_t ahead = end_of(first) - over, whole = end_of(first) - begin_of(first);
  std::array<std::int64_t, kRunSteps> weights{};
  std::int64_t sum = 0;
  for (std::size_t i = first; i < kRunSteps; ++i) {
    weights[i] = std::int64_t{(*steps)[i]} * 1'024;
    if (i == first) weights[i] = weights[i] * std::max<std::int64_t>(0, ahead) / std::max<std::int64_t>(1, whole);
    sum += weights[i];
  }
  // Longer than anything seen: as long again at most, as is the rule for work of no known length.
  if (sum == 0) return Millis(over + 1 + static_cast<std::int64_t>(static_cast<std::uint64_t>(over) * u >> 32));
  std::int64_t at = static_cast<std::int64_t>(static_cast<std::uint64_t>(sum) * u >> 32);
  for (std::size_t i = first; i < kRunSteps; ++i) {
    if (at >= weights[i]) {
      at -= weights[i];
      continue;
    }
    const std::int64_t from = i == first ? over : begin_of(i);
    return Millis(std::max(over + 1, from + (end_of(i) - from) * at / weights[i]));
  }
  return Millis(kLongestRunMs);
}

}  // namespace muster::scheduler
