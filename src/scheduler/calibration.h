#pragma once
// What likely starts are worth, by how earlier ones came out: the play knows neither that afternoons are busier than
// mornings nor that machines fail, so its nine in ten may be six. Of each kind of request the last kScores forecasts
// are remembered with what came of them, as a part of the wait that was foretold: the correction is the quantile of
// those that makes them right (split conformal prediction: Vovk et al., "Algorithmic Learning in a Random World",
// 2005). One that is still waiting counts as soon as it has waited longer than foretold. Integers only, bounded, the
// same of the same input; times are clamped. Single-threaded.
#include <array>
#include <cstdint>
#include <deque>
#include <map>

#include "scheduler/scheduler.h"

namespace muster::scheduler {

class Calibration {
 public:
  // The kinds that are told apart: the tier, and whether it takes one machine, some or many.
  static std::uint32_t kind_of(std::uint8_t tier, std::uint32_t machines);

  // As it was played, at that time. The first forecast for a request counts; later ones change nothing.
  void told(const StartForecast& played, std::uint32_t kind, WallTime at);
  void started(ClusterId cluster, WallTime at);
  void forget(ClusterId cluster) { open_.erase(cluster), factors_.clear(); }  // it was given up: nobody will know
  // What is to be told of it instead. Earlier than `now` is nothing; what is not known stays so.
  StartForecast corrected(const StartForecast& played, std::uint32_t kind, WallTime now);
  std::size_t open() const { return open_.size(); }
  template <class F>
  void each_open(const F& see) const {
    for (const auto& [cluster, forecast] : open_) see(cluster);
  }

 private:
  struct Open {
    std::uint32_t kind = 0;
    WallTime at, p50, p90;
  };
  struct Scores {  // parts of the foretold wait, in thousandths, the oldest first
    std::deque<std::int64_t> p50, p90;
  };
  std::int64_t factor(std::uint32_t kind, bool ninth, WallTime now) const;
  struct Factors {  // of the wait, in thousandths
    std::int64_t p50 = 1'000, p90 = 1'000;
  };
  const Factors& factors(std::uint32_t kind, WallTime now);
  std::map<ClusterId, Open> open_;
  std::map<std::uint32_t, Factors> factors_;  // as of then: thousands are corrected at one time
  WallTime factors_at_;
  std::map<std::uint32_t, Scores> scores_;
};

}  // namespace muster::scheduler
