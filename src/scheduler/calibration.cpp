#include "scheduler/calibration.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace muster::scheduler {
namespace {

constexpr std::size_t kScores = 100;      // of a kind
constexpr std::size_t kScoresLeast = 10;  // before that many nothing is corrected
constexpr std::size_t kOpenMax = 20'000;
constexpr std::int64_t kGrainMs = 60'000;  // waits are compared with a minute added: seconds are no error
constexpr std::int64_t kFactorLeast = 250, kFactorMost = 16'000;

std::int64_t score_of(WallTime at, WallTime foretold, WallTime came) {
  const std::int64_t said = std::clamp<std::int64_t>((foretold - at).count(), 0, std::int64_t{1} << 40);
  const std::int64_t was = std::clamp<std::int64_t>((came - at).count(), 0, std::int64_t{1} << 40);
  return (was + kGrainMs) * 1'000 / (said + kGrainMs);
}

WallTime later_by(WallTime now, WallTime played, std::int64_t factor) {
  if (played.ms == 0) return played;
  const std::int64_t wait = std::clamp<std::int64_t>((played - now).count(), 0, std::int64_t{1} << 40);
  return now + Millis(std::max<std::int64_t>(0, (wait + kGrainMs) * factor / 1'000 - kGrainMs));
}

}  // namespace

std::uint32_t Calibration::kind_of(std::uint8_t tier, std::uint32_t machines) {
  return std::uint32_t{std::min<std::uint8_t>(tier, kTiers - 1)} * 3 + (machines <= 1 ? 0 : machines <= 8 ? 1 : 2);
}

void Calibration::told(const StartForecast& played, std::uint32_t kind, WallTime at) {
  if (played.p90.ms == 0 || open_.size() >= kOpenMax) return;
  open_.try_emplace(played.cluster, Open{kind, at, played.p50, played.p90});
  if (played.p50 < factors_at_ || played.p90 < factors_at_) factors_.clear();  // it is late already
}

void Calibration::started(ClusterId cluster, WallTime at) {
  const auto it = open_.find(cluster);
  if (it == open_.end()) return;
  const Open& o = it->second;
  Scores& scores = scores_[o.kind];
  const auto add = [&](std::deque<std::int64_t>& to, WallTime foretold) {
    to.push_back(score_of(o.at, foretold, at));
    if (to.size() > kScores) to.pop_front();
  };
  add(scores.p90, o.p90);
  if (o.p50.ms != 0) add(scores.p50, o.p50);
  open_.erase(it);
  factors_.clear();
}

std::int64_t Calibration::factor(std::uint32_t kind, bool ninth, WallTime now) const {
  std::vector<std::int64_t> all;
  if (const auto it = scores_.find(kind); it != scores_.end()) {
    const auto& of = ninth ? it->second.p90 : it->second.p50;
    all.assign(of.begin(), of.end());
  }
  for (const auto& [cluster, o] : open_) {
    const WallTime foretold = ninth ? o.p90 : o.p50;
    if (o.kind == kind && foretold.ms != 0 && now > foretold) all.push_back(score_of(o.at, foretold, now));
  }
  if (all.size() < kScoresLeast) return 1'000;
  const std::size_t rank = std::min(all.size() - 1, ninth ? (all.size() + 1) * 9 / 10 : all.size() / 2);
  std::nth_element(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(rank), all.end());
  return std::clamp(all[rank], kFactorLeast, kFactorMost);
}

const Calibration::Factors& Calibration::factors(std::uint32_t kind, WallTime now) {
  if (std::exchange(factors_at_, now) != now) factors_.clear();
  const auto [it, fresh] = factors_.try_emplace(kind);
  if (fresh) it->second = {factor(kind, false, now), factor(kind, true, now)};
  return it->second;
}

StartForecast Calibration::corrected(const StartForecast& played, std::uint32_t kind, WallTime now) {
  StartForecast out = played;
  const Factors& by = factors(kind, now);
  out.p50 = later_by(now, played.p50, by.p50);
  out.p90 = later_by(now, played.p90, by.p90);
  if (out.p90.ms != 0 && out.p50 > out.p90) out.p50 = out.p90;
  return out;
}

}  // namespace muster::scheduler
