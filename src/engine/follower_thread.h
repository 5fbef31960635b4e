#pragma once
// The follower on a thread of its own: folds what became durable, answers reads under a shared lock, tells subscribers,
// proposes plans, hands snapshots to a third thread that writes them. Readers and the fold take turns at a gate, so
// neither starves.
#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <thread>
#include <vector>

#include "engine/follower.h"
#include "engine/mailbox.h"

namespace muster::engine {

class FollowerThread {
 public:
  struct Options {
    Follower::Options follower;
    std::uint64_t snapshot_every = 0, archive_keep = 0;
  };
  using Propose = std::function<void(control::ApplyPlan)>;
  FollowerThread(const Base& base, Options options, std::shared_ptr<journal::Store> store, Propose propose);
  ~FollowerThread();
  void start();
  void stop();  // folds what it has, then ends; idempotent

  void put(std::vector<Bytes> entries, std::vector<Digest> digests);
  void plan_done(Result<Reply> reply);
  void note(std::vector<scheduler::Change> facts);
  std::size_t backlog() const { return backlog_.load(); }  // entries not folded yet
  bool broken() const { return broken_.load(); }           // a fold failed: nothing may go on

  Base base() const;
  void read(const std::function<void(const control::State&, const scheduler::Scheduler&)>& f) const;
  bool wait_for(std::uint64_t seq, Millis timeout) const;
  void snapshot() { snapshot_wanted_ = true; }  // with the next change, or within a second
  std::shared_ptr<void> subscribe(std::function<void(const DurableEvents&)> f);

 private:
  struct Item {
    std::vector<Bytes> entries;
    std::vector<Digest> digests;
    std::optional<Result<Reply>> planned;
    std::vector<scheduler::Change> facts = {};
  };
  struct Subscriber {
    std::recursive_mutex mutex;
    std::function<void(const DurableEvents&)> f;
  };
  void loop();
  void fold(Item& item);
  void tell(std::vector<DurableEvent> events);
  void maybe_snapshot();
  void save_loop();
  void maybe_plan();

  Options options_;
  std::shared_ptr<journal::Store> store_;
  Propose propose_;
  Follower follower_;
  mutable std::mutex gate_;
  mutable std::shared_mutex state_mutex_;
  mutable std::mutex seq_mutex_;
  mutable std::condition_variable seq_changed_;
  std::uint64_t folded_seq_ = 0;
  Mailbox<Item> mailbox_;
  Mailbox<journal::Snapshot> snapshots_;
  std::atomic<bool> saving_{false}, broken_{false}, snapshot_wanted_{false};
  std::atomic<std::size_t> backlog_{0};
  std::uint64_t snapshot_seq_ = 0, snapshot_bytes_ = 0, bytes_since_snapshot_ = 0;
  std::mutex subscribers_mutex_;
  std::vector<std::weak_ptr<Subscriber>> subscribers_;
  std::thread thread_, saver_;
};

}  // namespace muster::engine
