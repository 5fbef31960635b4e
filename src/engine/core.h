#pragma once
// The engine without threads, clocks or sockets: the main entry for simulation, and what Runner drives in musterd. One
// thread. Nothing leaves before it is durable: replies and entries appear in take_output() only when the store has
// committed them.
//
// How to drive it under virtual time (everything in one thread; `store` may be MemoryStore or an inline SqliteStore):
//   auto base = load_base(*store);                            // newest intact snapshot + replay
//   Follower follower(*base, follower_options);               // takes its own copy
//   Engine engine(options, *store, std::move(*base), [&] { return follower.base(); });
//   engine.start(now);                                        // acquires leadership, queues BecomeLeader
//   loop:
//     engine.submit(lane, command, actor, token);             // error = refused at once (lane full, read-only, fenced)
//     if (auto batch = engine.poll(now)) store->append(*batch, [..](AppendResult r) { deliver later:
//     engine.on_append(r, now) }); Output out = engine.take_output(); follower.expect(out.digests); // leader and
//     follower must agree there (digest_every) for (entry : out.entries) follower.fold(entry);         // decodes,
//     applies, feeds the planner; an error is a fault for (reply : out.replies) ...;                          // token
//     -> outcome + seq
//       (reply.token == Engine::kPlanToken goes to follower.plan_done(reply.result))
//     if (auto plan = follower.plan(now)) { if (auto s = engine.submit_plan(std::move(*plan)); !s)
//     follower.plan_done(s.error()); }
//   wake up again at engine.next_deadline(), when on_append arrived, or when something was submitted.
// A crash is: drop engine, follower (and the store's unsynced tail); begin again from load_base. Restart with kAnyEpoch
// fences whatever the old engine still has in flight.
#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "control/core.h"
#include "engine/journal_clock.h"
#include "journal/store.h"

namespace muster::engine {

struct Reply {
  control::Outcome outcome;
  std::uint64_t seq = 0; /* durable seq that holds the effect: use as min_seq */
};

// A state and the entry it stands after.
struct Base {
  control::State state;
  std::uint64_t seq = 0;
  Bytes hash = journal::genesis_hash();
  WallTime wall;
};
// DataLoss when the chain is broken: the journal must be restored from a backup then.
Result<Base> load_base(const journal::Store& store);
// Folds entries base.seq+1 .. tail onto base; `each` sees every one of them.
Status catch_up(const journal::Store& store, Base& base,
                const std::function<void(std::uint64_t seq, const Bytes& stored)>& each = {});

control::Actor actor_of(const journal::EntryActor& actor);
journal::EntryActor actor_of(const control::Actor& actor);
control::EntryContext context_of(const journal::Entry& entry);

enum class Mode : std::uint8_t { Starting, Leading, Recovering, ReadOnly /* disk full */, Fenced /* another leader */ };

struct TokenReply {
  std::uint64_t token = 0;
  Result<Reply> result;
};
struct Digest {
  std::uint64_t seq = 0;
  Bytes digest;
};
struct Output {
  std::vector<Bytes> entries;       // stored bytes, consecutive seqs, all durable
  std::vector<TokenReply> replies;  // in the order of decision
  std::vector<Digest> digests;      // of the leader's state, every options.digest_every entries
};

class Engine {
 public:
  struct Options {
    std::size_t lane_max = 65'536;          // commands waiting per lane
    std::size_t batch_entries_max = 4'096;  // group commit: entries and bytes of one append
    std::size_t batch_bytes_max = 4 * 1024 * 1024;
    std::size_t decide_max = 1'024;  // commands decided by one poll(), so that no call is long
    Millis tick{1'000};              // Tick command; 0 = the driver submits its own
    Millis probe{1'000};             // read-only and recovering: how often to try again
    std::uint64_t digest_every = 0;  // 0 = never (each digest encodes the whole state)
  };
  // `copy_base`: a durable base at or before the tail, to rebuild from after a failed append (the follower's copy).
  // `store` is only read and acquired through here, never appended to; it must outlive the engine.
  Engine(Options options, journal::Store& store, Base base, std::function<Base()> copy_base);

  Status start(Now now);
  // ResourceExhausted: lane full. Unavailable: read-only, fenced or not started; the message says which.
  Status submit(control::Lane lane, control::Command command, control::Actor actor, std::uint64_t token);
  // The planner's proposal, as the system, ahead of operators. Its reply has token kPlanToken.
  Status submit_plan(control::ApplyPlan plan);
  static constexpr std::uint64_t kPlanToken = ~std::uint64_t{0};
  // Decides what is queued; returns the next batch to append when none is in flight. Exactly one on_append per batch.
  std::optional<journal::AppendRequest> poll(Now now);
  void on_append(const journal::AppendResult& result, Now now);
  Output take_output();

  LeaseTime next_deadline() const;  // poll() is due then even if nothing happens
  bool idle() const;                // nothing queued, pending or in flight
  Mode mode() const { return mode_; }
  const std::string& mode_reason() const { return mode_reason_; }
  std::uint64_t durable_seq() const { return durable_seq_; }
  std::uint64_t leader_epoch() const { return leader_epoch_; }
  std::size_t queued() const;
  const control::State& state_for_tests() const { return base_.state; }  // speculative

 private:
  struct Queued {
    control::Command command;
    control::Actor actor;
    std::uint64_t token = 0;
  };
  struct Waiting {
    std::uint64_t token = 0;
    std::uint64_t seq = 0;
    Result<Reply> result;
  };                                                         // leaves when seq is durable
  static constexpr std::uint64_t kNoToken = kPlanToken - 1;  // the engine's own commands: nobody waits

  void decide_queued(Now now);
  void decide_one(Queued queued, Now now);
  Status append_events(const std::vector<control::Event>& events, const control::Actor& actor, WallTime wall);
  bool batch_has_room() const;
  void answer(std::uint64_t token, Result<Reply> result);
  void release_durable();
  void publish(const Bytes& stored, std::uint64_t seq);
  void fail_waiting(const Error& error);  // what is not durable
  void fail_queued(const Error& error);
  void recover(Now now);
  Status fence_and_rebuild();
  Status rebuild();
  Error refusal() const;

  Options options_;
  journal::Store* store_;
  std::function<Base()> copy_base_;
  JournalClock clock_;
  Base base_;  // leader's state: durable plus everything decided since
  Mode mode_ = Mode::Starting;
  std::string mode_reason_ = "the engine has not started";
  std::uint64_t leader_epoch_ = 0;
  std::uint64_t durable_seq_ = 0;    // replies up to here have left
  std::uint64_t published_seq_ = 0;  // entries up to here have left
  std::array<std::deque<Queued>, 4> lanes_;
  std::deque<Queued> own_;  // the engine's and the planner's commands, before all lanes
  std::deque<Waiting> waiting_;
  std::vector<Digest> digests_;                // not yet durable
  std::shared_ptr<std::vector<Bytes>> batch_;  // being filled
  std::size_t batch_bytes_ = 0;
  std::uint64_t batch_prev_seq_ = 0;
  Bytes batch_prev_hash_;
  std::optional<journal::AppendRequest> in_flight_;
  bool disk_full_ = false;
  bool reacquire_ = false;  // the last append was ambiguous: fence it before reading the tail
  LeaseTime tick_at_, retry_at_;
  Output output_;
};

}  // namespace muster::engine
