#pragma once
// The follower: folds durable entries on a state of its own, serves reads, feeds the planner with deltas, writes
// snapshots. The same class follows in this process, on another machine and in simulation. One thread; Runner guards it
// with a lock.
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "engine/core.h"
#include "journal/snapshot.h"
#include "scheduler/scheduler.h"

namespace muster::engine {

struct DurableEvent {
  std::uint64_t seq = 0;
  WallTime at;
  control::Actor actor;
  control::Event event;
};
using DurableEvents = std::shared_ptr<const std::vector<DurableEvent>>;  // consecutive

class Follower {
 public:
  struct Options {
    Millis plan_every{1'000};  // replan this often even without changes (back-offs and ageing move with time)
    Millis plan_pause{20};     // never more often than this, but after a full plan
    std::uint32_t plan_groups_max = 256;
  };
  Follower(const Base& base, Options options);

  // The next entry, as stored. DataLoss: broken chain or undecodable event; the follower stays where it was.
  Result<DurableEvent> fold(const Bytes& stored);
  // The same in two steps: the first reads and checks without looking at the state, in order and each entry once.
  struct Read {
    journal::Entry entry;
    Bytes hash;
    control::Event event;
  };
  Result<Read> read(const Bytes& stored);
  Result<DurableEvent> fold(Read read);
  // The leader's digests, before the entries they stand on: fold() then compares there (DataLoss: the folds differ).
  void expect(const std::vector<Digest>& digests);
  // A proposal to submit as ApplyPlan, when something changed or plan_every passed. One at a time: the next only after
  // plan_done() and after the entry it says was folded.
  std::optional<control::ApplyPlan> plan(Now now);
  void plan_done(const Result<Reply>& reply);
  // For the planner alone: what somebody measured. Nothing of it is in the journal, and a restart forgets it.
  void note(const std::vector<scheduler::Change>& facts);
  LeaseTime next_plan() const;  // plan() may have something from then on

  Base base() const { return base_; }  // a copy
  journal::Snapshot snapshot() const;
  std::uint64_t seq() const { return base_.seq; }
  const control::State& state() const { return base_.state; }
  const scheduler::Scheduler& scheduler() const { return scheduler_; }

 private:
  Options options_;
  Base base_;
  JournalClock clock_;
  journal::ChainVerifier chain_;
  scheduler::Scheduler scheduler_;
  std::deque<Digest> expected_;
  bool changed_ = true;
  bool plan_out_ = false;
  std::uint64_t plan_after_seq_ = 0;
  LeaseTime next_plan_, not_before_;
};

}  // namespace muster::engine
