#pragma once
// The engine as musterd runs it: core thread (decide, group commit), store thread, follower thread. Thread-safe.
// Nothing leaves before it is durable: replies, subscribers and read() only ever see durable entries.
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/result.h"
#include "control/core.h"
#include "engine/core.h"
#include "engine/follower.h"
#include "journal/store.h"

namespace muster::engine {

class Runner {
 public:
  struct Options {
    std::shared_ptr<journal::Store> store;
    std::size_t lane_max = 65'536;
    Millis tick{250};
    std::uint64_t snapshot_every = 50'000;
    std::uint64_t archive_keep = 1'000'000; /* entries kept live behind a snapshot */
    std::uint64_t digest_every = 0;
  };
  static Result<std::unique_ptr<Runner>> start(Options options);
  virtual ~Runner() = default;  // stops the threads; unanswered commands get Unavailable
  // Bounded lane full -> ResourceExhausted at once. The reply comes on the engine's reply thread, when read() shows
  // what it says unless the follower is far behind; do not block in it.
  virtual void submit(control::Lane lane, control::Command command, control::Actor actor,
                      std::function<void(Result<Reply>)> reply) = 0;
  Result<Reply> submit_wait(control::Lane lane, control::Command command, control::Actor actor);
  // Reads on the follower's copy under a shared lock: be short, never call back into the engine.
  virtual void read(const std::function<void(const control::State&, const scheduler::Scheduler&)>& f) const = 0;
  virtual bool wait_for(std::uint64_t seq, Millis timeout) const = 0;  // until the follower has folded seq
  virtual std::uint64_t durable_seq() const = 0;
  // What was measured, for the planner: not journalled, gone with a restart. Taken in a moment.
  virtual void tell_planner(std::vector<scheduler::Change> facts) = 0;
  // A snapshot is written soon, however little has changed since the last.
  virtual void snapshot() = 0;
  // The longest that a command lay before the core took it, since the last call: how long the core stood still.
  virtual std::chrono::microseconds longest_wait() = 0;
  virtual bool read_only() const = 0;  // disk full or leadership lost: mutations get Unavailable with the reason
  // Durable events in order, in batches, on the follower thread, after the fold. Returns a handle; destroy it to
  // unsubscribe.
  virtual std::shared_ptr<void> subscribe(std::function<void(const DurableEvents&)> f) = 0;
  // Durable events [from, from+limit) from the store, for Last-Event-ID; DataLoss/NotFound when archived away
  // ("reset").
  virtual Result<std::vector<DurableEvent>> replay(std::uint64_t from, std::size_t limit) const = 0;
};

}  // namespace muster::engine
