#pragma once
// How often work was lost on each machine: hours that leases were held there and how many of them went with the
// machine (it was lost while it held them), both fading by half every month, so that what was repaired is forgiven.
// Kept over restarts in the side table "reliability", a row for each machine; told to the planner. What little is known
// of a machine is filled up with what is usual on this platform (a gamma prior, worth one loss). Not in the journal,
// though made from it alone: a machine cannot say anything of it. Thread-safe.
#include <map>
#include <memory>
#include <mutex>
#include <set>

#include "control/event.h"
#include "control/state.h"
#include "journal/store.h"
#include "scheduler/types.h"

namespace muster::server {

class ReliabilityBook {
 public:
  static constexpr Millis kHalfLife{30LL * 86'400'000};
  static constexpr std::size_t kMachinesMax = 200'000;

  struct Row {
    double hours = 0, lost = 0;  // of leases
    WallTime at;                 // faded until then
  };

  explicit ReliabilityBook(std::shared_ptr<journal::Store> store) : store_(std::move(store)) {}
  Status load();
  // A durable event; `state` is as of then or a little later.
  void note(const control::State& state, const control::Event& event);
  Status save();  // what changed since
  // Of all machines there are: what is usual has changed with the others.
  scheduler::ReliabilityChanged all(const control::State& state, WallTime now) const;
  scheduler::ReliabilityChanged news(WallTime now);  // of machines that are new or changed since the last call
  // As of now; nothing was held there yet: no hours.
  Row of(NodeId node, WallTime now) const;
  scheduler::Reliability reliability(NodeId node, WallTime now) const;

 private:
  static Row faded(Row row, WallTime now);
  scheduler::Reliability judged(NodeId node, WallTime now) const;  // under the mutex
  void forget(NodeId node);

  const std::shared_ptr<journal::Store> store_;
  mutable std::mutex mutex_;
  std::map<NodeId, Row> rows_;
  std::set<NodeId> unsaved_, untold_, gone_;
  double hours_ = 0, lost_ = 0;  // of all, without fading: what is usual
};

}  // namespace muster::server
