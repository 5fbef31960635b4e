#include "engine/follower_thread.h"

#include <algorithm>

#include "base/log.h"

namespace muster::engine {
namespace {
constexpr std::size_t kFoldAtOnce = 256;  // entries folded under one exclusive lock
constexpr Millis kWaitMax{1'000};
// A large state is written again when the journal has grown by a quarter of it: the work stays in proportion.
constexpr std::uint64_t kSnapshotShare = 4;
}  // namespace

FollowerThread::FollowerThread(const Base& base, Options options, std::shared_ptr<journal::Store> store,
                               Propose propose)
    : options_(options),
      store_(std::move(store)),
      propose_(std::move(propose)),
      follower_(base, options.follower),
      folded_seq_(base.seq),
      snapshot_seq_(base.seq) {}

FollowerThread::~FollowerThread() {
  stop();
}

void FollowerThread::start() {
  thread_ = std::thread([this] { loop(); });
  saver_ = std::thread([this] { save_loop(); });
}

void FollowerThread::stop() {
  mailbox_.close();
  if (thread_.joinable()) thread_.join();
  snapshots_.close();
  if (saver_.joinable()) saver_.join();
}

void FollowerThread::put(std::vector<Bytes> entries, std::vector<Digest> digests) {
  backlog_ += entries.size();
  mailbox_.put({std::move(entries), std::move(digests), {}});
}

void FollowerThread::plan_done(Result<Reply> reply) {
  mailbox_.put({{}, {}, std::move(reply)});
}

void FollowerThread::note(std::vector<scheduler::Change> facts) {
  mailbox_.put({{}, {}, {}, std::move(facts)});
}

void FollowerThread::loop() {
  while (true) {
    const Millis wait = std::clamp(follower_.next_plan() - read_clocks().lease, Millis(0), kWaitMax);
    std::vector<Item> items = mailbox_.take_all(wait);
    for (Item& item : items) fold(item);
    if (items.empty() && mailbox_.closed()) return;
    if (broken_) continue;
    maybe_plan();
    maybe_snapshot();
  }
}

void FollowerThread::fold(Item& item) {
  if (item.planned) follower_.plan_done(*item.planned);
  if (!item.facts.empty()) {
    std::lock_guard gate(gate_);
    std::unique_lock lock(state_mutex_);
    follower_.note(item.facts);
  }
  follower_.expect(item.digests);
  for (std::size_t at = 0; at < item.entries.size() && !broken_; at += kFoldAtOnce) {
    const std::size_t end = std::min(at + kFoldAtOnce, item.entries.size());
    std::vector<DurableEvent> events;
    events.reserve(end - at);
    const auto stop = [this](const Error& why) {
      broken_ = true;
      log_error("engine", "the follower stops: {}", why.message);
    };
    // Readers need not wait for what does not touch the state.
    std::vector<Follower::Read> entries;
    entries.reserve(end - at);
    for (std::size_t i = at; i < end && !broken_; ++i) {
      bytes_since_snapshot_ += item.entries[i].size();
      auto read = follower_.read(item.entries[i]);
      read ? entries.push_back(std::move(*read)) : stop(read.error());
    }
    {
      std::lock_guard gate(gate_);
      std::unique_lock lock(state_mutex_);
      for (Follower::Read& entry : entries) {
        auto event = follower_.fold(std::move(entry));
        if (!event) {
          stop(event.error());
          break;
        }
        events.push_back(std::move(*event));
      }
    }
    {
      std::lock_guard lock(seq_mutex_);
      folded_seq_ = follower_.seq();
    }
    seq_changed_.notify_all();
    tell(std::move(events));
  }
  backlog_ -= item.entries.size();
}

void FollowerThread::tell(std::vector<DurableEvent> events) {
  std::vector<std::shared_ptr<Subscriber>> live;
  {
    std::lock_guard lock(subscribers_mutex_);
    std::erase_if(subscribers_, [](const auto& weak) { return weak.expired(); });
    for (const auto& weak : subscribers_) {
      if (auto subscriber = weak.lock()) live.push_back(std::move(subscriber));
    }
  }
  if (live.empty() || events.empty()) return;
  const auto shared = std::make_shared<const std::vector<DurableEvent>>(std::move(events));
  for (const auto& subscriber : live) {
    std::lock_guard lock(subscriber->mutex);
    if (subscriber->f) subscriber->f(shared);
  }
}

void FollowerThread::maybe_plan() {
  std::optional<control::ApplyPlan> plan;
  {
    std::lock_guard gate(gate_);
    std::unique_lock lock(state_mutex_);
    plan = follower_.plan(read_clocks());
  }
  if (plan) propose_(std::move(*plan));
}

void FollowerThread::maybe_snapshot() {
  const bool due = options_.snapshot_every != 0 && follower_.seq() >= snapshot_seq_ + options_.snapshot_every &&
                   bytes_since_snapshot_ >= snapshot_bytes_ / kSnapshotShare;
  if (saving_ || (!due && !snapshot_wanted_.exchange(false))) return;
  saving_ = true;
  snapshot_seq_ = follower_.seq();
  journal::Snapshot snapshot = follower_.snapshot();  // only this thread changes the state, so no lock
  snapshot_bytes_ = snapshot.state.size();
  bytes_since_snapshot_ = 0;
  snapshots_.put(std::move(snapshot));
}

void FollowerThread::save_loop() {
  while (true) {
    const std::vector<journal::Snapshot> todo = snapshots_.take_all(kWaitMax);
    for (const journal::Snapshot& snapshot : todo) {
      Status saved = store_->save_snapshot(snapshot);
      if (!saved) log_warn("engine", "the snapshot at {} was not saved: {}", snapshot.seq, saved.error().message);
      if (saved && options_.archive_keep > 0 && snapshot.seq > options_.archive_keep) {
        Status archived = store_->archive_before(snapshot.seq - options_.archive_keep);
        if (!archived) log_warn("engine", "old entries were not archived: {}", archived.error().message);
      }
      saving_ = false;
    }
    if (todo.empty() && snapshots_.closed()) return;
  }
}

Base FollowerThread::base() const {
  std::unique_lock gate(gate_);
  std::shared_lock lock(state_mutex_);
  gate.unlock();
  return follower_.base();
}

void FollowerThread::read(const std::function<void(const control::State&, const scheduler::Scheduler&)>& f) const {
  std::unique_lock gate(gate_);
  std::shared_lock lock(state_mutex_);
  gate.unlock();
  f(follower_.state(), follower_.scheduler());
}

bool FollowerThread::wait_for(std::uint64_t seq, Millis timeout) const {
  std::unique_lock lock(seq_mutex_);
  return seq_changed_.wait_for(lock, timeout, [&] { return folded_seq_ >= seq; });
}

std::shared_ptr<void> FollowerThread::subscribe(std::function<void(const DurableEvents&)> f) {
  auto subscriber = std::make_shared<Subscriber>();
  subscriber->f = std::move(f);
  {
    std::lock_guard lock(subscribers_mutex_);
    subscribers_.push_back(subscriber);
  }
  // Dropping the handle waits for a call in progress; no call begins after it.
  return std::shared_ptr<void>(static_cast<void*>(nullptr), [subscriber](void*) {
    std::lock_guard lock(subscriber->mutex);
    subscriber->f = nullptr;
  });
}

}  // namespace muster::engine
