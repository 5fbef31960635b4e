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

RunTimes::Curve RunTimes::curve(OrgId tenant) const {
  Curve out;
  const Steps* steps = steps_of(tenant);
  if (steps == nullptr) return out;
  out.known_ = true;
  for (std::size_t i = 0; i < kRunSteps; ++i) out.before_[i + 1] = out.before_[i] + (*steps)[i];
  return out;
}

std::optional<Millis> RunTimes::Curve::length(Millis elapsed, std::uint32_t u) const {
  constexpr std::int64_t kOne = 1'024;
  if (!known_) return {};
  const std::int64_t over = std::clamp<std::int64_t>(elapsed.count(), 0, kLongestRunMs);
  const std::size_t first = step_of(over);
  // Of the step that it is in, what lies ahead counts by its share.
  const auto end_of = [](std::size_t step) { return step + 1 < kRunSteps ? begin_of(step + 1) : kLongestRunMs; };
  const std::int64_t ahead = end_of(first) - over, whole = end_of(first) - begin_of(first);
  const auto weight = [&](std::size_t step) { return (before_[step + 1] - before_[step]) * kOne; };
  const std::int64_t here = weight(first) * std::max<std::int64_t>(0, ahead) / std::max<std::int64_t>(1, whole);
  const std::int64_t sum = here + (before_[kRunSteps] - before_[first + 1]) * kOne;
  // Longer than anything seen: as long again at most, as is the rule for work of no known length.
  if (sum == 0) return Millis(over + 1 + static_cast<std::int64_t>(static_cast<std::uint64_t>(over) * u >> 32));
  const auto at = static_cast<std::int64_t>(static_cast<std::uint64_t>(sum) * u >> 32);
  if (at < here) return Millis(std::max(over + 1, over + (end_of(first) - over) * at / here));
  // The step before which no more than that last for less.
  const std::int64_t reached = (at - here) / kOne + before_[first + 1];
  const auto i =
      static_cast<std::size_t>(std::upper_bound(before_.begin(), before_.end(), reached) - before_.begin()) - 1;
  const std::int64_t in = (at - here) - (before_[i] - before_[first + 1]) * kOne;
  return Millis(std::max(over + 1, begin_of(i) + (end_of(i) - begin_of(i)) * in / weight(i)));
}

}  // namespace muster::scheduler
