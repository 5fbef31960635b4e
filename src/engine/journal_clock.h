#pragma once
// The journal's wall clock. It follows the machine's and never goes back: after the machine's was set back it runs on
// at half speed until the machine's has caught up, so that pauses, retries and time limits take at most twice as long
// instead of standing still. A function of its arguments only; single-threaded; the owner asks at least every few
// seconds.
#include <algorithm>

#include "base/time.h"

namespace muster::engine {

class JournalClock {
 public:
  // `floor`: the time of the last entry.
  WallTime at(Now now, WallTime floor) {
    const WallTime run_on = started_ ? from_ + (now.lease - since_) / 2 : floor;
    if (started_ && now.wall < run_on && floor <= run_on) return run_on;
    started_ = true;
    since_ = now.lease;
    from_ = std::max({now.wall, run_on, floor});
    return from_;
  }

 private:
  bool started_ = false;
  WallTime from_;
  LeaseTime since_;
};

}  // namespace muster::engine
