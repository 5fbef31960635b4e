#pragma once
// When those that wait will start, as the planner plays it: made when somebody asks and the last is old, one at a time,
// and never for more than a twentieth of the time; corrected by how earlier ones came out. Thread-safe; get() may take
// as long as a play, or returns the last.
#include <map>
#include <memory>
#include <mutex>

#include "base/time.h"
#include "control/state.h"
#include "engine/runner.h"
#include "scheduler/calibration.h"
#include "scheduler/scheduler.h"

namespace muster::server {

class StartForecasts {
 public:
  using Map = std::map<ClusterId, scheduler::StartForecast>;
  // Never null; empty: nothing waits, too much waits to play it, or nothing was played yet.
  std::shared_ptr<const Map> get(const engine::Runner& runner);
  std::shared_ptr<const Map> last() const;  // at once
  bool old() const;                         // get() would make it anew

 private:
  void look_back(const control::State& state);
  std::mutex one_;                      // plays
  scheduler::Calibration calibration_;  // of whoever plays
  mutable std::mutex mutex_;
  std::shared_ptr<const Map> last_ = std::make_shared<const Map>();
  LeaseTime next_{0};
};

}  // namespace muster::server
