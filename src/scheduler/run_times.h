#pragma once
// How long work lasted, by tenant: what is expected of work that runs or will. Lengths are
// counted in steps of a quarter of an octave from one second on, so quantiles are right to about a fifth. Where a
// tenant has ended too little yet, everybody's work speaks for it; where nobody has, nothing is known. Private.
#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <utility>

#include "scheduler/types.h"

namespace muster::scheduler {

inline constexpr std::size_t kRunSteps = 96;  // up to 2^24 seconds
inline constexpr std::uint32_t kRunsKnown = 5, kRunsKept = 4'096;

class RunTimes {
 public:
  // The lengths of one tenant's work, ready to be drawn from again and again.
  class Curve {
   public:
    Curve() = default;
    // The length of work of which `elapsed` is over, at `u` of 2^32 of what is expected; longer than elapsed.
    std::optional<Millis> length(Millis elapsed, std::uint32_t u) const;

   private:
    friend class RunTimes;
    bool known_ = false;
    std::array<std::int64_t, kRunSteps + 1> before_{};  // how many lasted for less than each step
  };
  void add(OrgId tenant, Millis length);
  void restore(const RunsChanged& runs) { by_[runs.tenant] = bounded(runs.steps); }
  std::vector<RunsChanged> all() const;
  Curve curve(OrgId tenant) const;
  std::optional<Millis> length(OrgId tenant, Millis elapsed, std::uint32_t u) const {
    return curve(tenant).length(elapsed, u);
  }

 private:
  using Steps = std::array<std::uint32_t, kRunSteps>;
  static Steps bounded(const std::vector<std::uint32_t>& steps);
  const Steps* steps_of(OrgId tenant) const;
  std::map<OrgId, Steps> by_;  // everybody's: tenant 0
};

}  // namespace muster::scheduler
