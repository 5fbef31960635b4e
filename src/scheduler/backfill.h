#pragma once
// Short work on machines that are kept for a gang, after EASY (Lifka 1995) for the first of its kind and conservative
// (Mu'alem and Feitelson 2001) for the next few. A gang that keeps machines has a shadow: when all of it can be placed,
// by the ends that are promised. Those on which it would stand then are kept for it too while others work there. What
// is certain to be gone by then may have a machine that is kept for it. Whoever has no certain end, or waits for
// nobody's shadow to be known, waits as ever. Private.
#include <cstdint>
#include <utility>
#include <vector>

#include "scheduler/pool.h"

namespace muster::scheduler {

// A life is counted from when the cluster runs, a machine is held from the grant: between the two the image is pulled
// and Ray started. 25 GB, which is a large image, take half an hour at 100 Mbit/s. Nothing ends a start that takes
// longer, so this is what is taken for certain, not what is: the gang then waits for it as for any overdue end.
inline constexpr Millis kStartAllowance{30 * 60'000};

// Up to the next step of a ladder, so that requests of about the same length stay one class: quarters of an hour up to
// four hours, then eight steps an octave (an eighth more at most). Whole hours up to eight are steps, so are twelve
// hours and a day. 0: no limit, or one beyond a year, which nobody waits for.
std::int64_t length_step(std::int64_t longest_ms);
std::int64_t step_within(std::int64_t ms);  // the last step that is no longer; 0 = none

inline Query as_of(const Query& query, std::int64_t at_ms) {  // the same question then
  Query q = query;
  if (q.done_ms != 0) q.done_ms += at_ms - q.now_ms;
  q.now_ms = at_ms;
  return q;
}

// Machines for needs, each machine for one, as many as can be: machines that are matched stay so, for one need or
// another, when more come (augmenting paths).
class Matching {
 public:
  explicit Matching(std::vector<std::uint32_t> counts);  // of machines, by need
  // From now on this machine can host that need.
  void add(std::uint32_t machine, std::uint32_t need);
  bool complete() const { return missing_ == 0; }
  bool matched(std::uint32_t machine) const { return machine < at_.size() && at_[machine].need != kNone; }

 private:
  struct Spot {
    std::vector<std::uint32_t> hosts;  // needs
    std::uint32_t need = kNone;        // that it is matched to
  };
  bool augment(std::uint32_t from);  // by an unmatched machine that can host need `from`
  void move(std::uint32_t machine, std::uint32_t need);
  std::vector<std::uint32_t> lacks_;
  std::vector<std::vector<std::uint32_t>> given_, spare_; /* machines, by need; unmatched ones that can host it */
  std::vector<bool> dead_;                                /* needs from which no path leads to one that lacks */
  std::vector<Spot> at_;
  std::uint64_t missing_ = 0;
};

}  // namespace muster::scheduler
