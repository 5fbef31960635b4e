#pragma once
// The scheduler: a pure library with incremental state. apply(change) keeps it equal to a rebuild from the full
// snapshot; plan(budget) proposes actions in atomic groups. It decides nothing: the core re-validates every group by
// predicate at commit. No clock, I/O, randomness, threads, floating point; every instruction set gives the same plan.
// Single-threaded; the caller owns it; const members may run beside each other.
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "scheduler/kernels.h"
#include "scheduler/types.h"

namespace muster::scheduler {

struct Options {
  Simd simd = Simd::Avx512;   // or the best below it that the processor has; the plan is the same
  bool shares_mix = false;    // shares of one GPU for different tenants, as in traces of one organisation
  bool backfill = true;       // short work on machines that are kept for a gang (backfill.h)
  std::uint32_t sampled = 0;  // only so many machines that would do are compared; 0 = all (for comparisons)
};

// When a waiting start is expected, from the future played again and again: half of the plays had started it by p50,
// nine of ten by p90; 0 = not within the horizon, or not known.
struct StartForecast {
  ClusterId cluster;
  WallTime p50, p90;
  std::uint32_t samples = 0;
  bool operator==(const StartForecast&) const = default;
};
struct ForwardOptions {
  std::uint32_t samples = 64;
  Millis horizon{86'400'000};
  std::uint64_t seed = 1;
  std::uint32_t events_max = 5'000;   // ends and arrivals of one play; what has not started by then counts as beyond
  std::uint32_t events_all = 40'000;  // of all plays, about a second; there are eight at least
  std::uint32_t exact_max = 1'000;    // waiting and machines; where there are more, futures are sketched (sketch.h)
};

class Scheduler {
 public:
  Scheduler() : Scheduler(Options{}) {}
  explicit Scheduler(const Options& options);
  ~Scheduler();
  Scheduler(Scheduler&&) noexcept;
  Scheduler& operator=(Scheduler&&) noexcept;
  void apply(const Change& change);
  void apply(Change&& change);
  std::vector<Group> plan(const Budget& budget, WallTime now);
  // Changes that build an equal scheduler, outstanding proposals aside.
  std::vector<Change> snapshot() const;

  // Position, reason and expected start of every waiting request, computed on read.
  std::vector<QueueView> queue(WallTime now) const;
  // One page of the same, and one request of it; position 0 and code "not_waiting" when the cluster waits for nothing.
  std::vector<QueueView> queue_page(WallTime now, std::size_t offset, std::size_t limit) const;
  QueueView queue_of(ClusterId cluster, WallTime now) const;
  // What the work of each tier holds of the machines, in thousandths, as guarantees count it.
  std::array<std::uint32_t, kTiers> held_by_tiers() const;
  std::size_t waiting() const;
  // How many requests wait that this machine could serve but for its offer, by what of the offer stands against them:
  // "price", "tenants", "images", "length", "hours" (it is closed). Nothing of the requests themselves.
  std::map<std::string, std::uint32_t> refused_by(NodeId node, WallTime now) const;
  // Of every start that waits, by cluster. Nothing changes here; it costs as much as planning the queue some dozen
  // times.
  std::vector<StartForecast> starts(WallTime now, const ForwardOptions& options = {}) const;

 private:
  friend class Future;
  friend class Sketch;
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// What becomes of a request on a fork: everything that waits before it is placed first, as the planner would. Nothing
// of `snapshot` is kept. The group is empty when it would wait; `view` says how then.
struct Forecast {
  Group group;
  QueueView view;
};
Forecast forecast(const std::vector<Change>& snapshot, const RequestChanged& request, WallTime now);

}  // namespace muster::scheduler
