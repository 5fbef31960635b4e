#include "engine/runner.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <future>
#include <thread>
#include <unordered_map>

#include "base/log.h"
#include "engine/follower_thread.h"
#include "engine/mailbox.h"

namespace muster::engine {
namespace {

constexpr std::size_t kBacklogMax = 100'000;  // entries the follower may lag before the core waits for it
constexpr Millis kStepWaitMax{1'000};
constexpr Millis kFoldWait{50};  // a follower further behind is not waited for
using Callback = std::function<void(Result<Reply>)>;

struct Submission {
  control::Lane lane;
  control::Command command;
  control::Actor actor;
  Callback reply;
  std::chrono::steady_clock::time_point since = std::chrono::steady_clock::now();
};
using Message = std::variant<Submission, control::ApplyPlan, journal::AppendResult>;

class ThreadedRunner final : public Runner {
 public:
  explicit ThreadedRunner(Options options) : options_(std::move(options)) {}
  ~ThreadedRunner() override {
    inbox_->close();
    if (core_.joinable()) core_.join();
    if (follower_) follower_->stop();
    replies_.close();
    if (replier_.joinable()) replier_.join();
  }

  Status open() {
    Base base = TRY(load_base(*options_.store));
    FollowerThread::Options follower{{}, options_.snapshot_every, options_.archive_keep};
    follower_ = std::make_unique<FollowerThread>(
        base, follower, options_.store, [inbox = inbox_](control::ApplyPlan plan) { inbox->put(std::move(plan)); });
    Engine::Options core;
    core.lane_max = options_.lane_max;
    core.tick = options_.tick;
    core.digest_every = options_.digest_every;
    engine_ = std::make_unique<Engine>(core, *options_.store, std::move(base), [this] { return follower_->base(); });
    TRY_VOID(engine_->start(read_clocks()));
    follower_->start();
    replier_ = std::thread([this] { reply_loop(); });
    core_ = std::thread([this] { core_loop(); });
    return {};
  }

  void submit(control::Lane lane, control::Command command, control::Actor actor, Callback reply) override {
    auto& waiting = inbox_lanes_[static_cast<std::size_t>(lane)];
    if (waiting.fetch_add(1) >= options_.lane_max) {
      --waiting;
      reply(error(Code::ResourceExhausted, "too many requests wait already; try again in a moment"));
      return;
    }
    if (!inbox_->put(Submission{lane, std::move(command), std::move(actor), reply})) {
      reply(error(Code::Unavailable, "the control plane is stopping; try again"));
    }
  }

  void read(const std::function<void(const control::State&, const scheduler::Scheduler&)>& f) const override {
    follower_->read(f);
  }
  bool wait_for(std::uint64_t seq, Millis timeout) const override { return follower_->wait_for(seq, timeout); }
  std::uint64_t durable_seq() const override { return durable_seq_.load(); }
  bool read_only() const override { return read_only_.load(); }
  void tell_planner(std::vector<scheduler::Change> facts) override { follower_->note(std::move(facts)); }
  void snapshot() override { follower_->snapshot(); }
  std::chrono::microseconds longest_wait() override { return std::chrono::microseconds(longest_wait_us_.exchange(0)); }
  std::shared_ptr<void> subscribe(std::function<void(const DurableEvents&)> f) override {
    return follower_->subscribe(std::move(f));
  }

  Result<std::vector<DurableEvent>> replay(std::uint64_t from, std::size_t limit) const override {
    const std::uint64_t durable = durable_seq();
    std::vector<DurableEvent> out;
    for (const Bytes& stored : TRY(options_.store->read(from, limit))) {
      const journal::Entry entry = TRY(journal::decode(stored));
      if (entry.seq > durable) break;
      auto event = TRY(control::decode_event(entry.event));
      out.push_back({entry.seq, entry.wall, actor_of(entry.actor), std::move(event)});
    }
    return out;
  }

 private:
  void core_loop() {
    bool busy = false;
    while (!inbox_->closed()) {
      const Millis until = std::clamp(engine_->next_deadline() - read_clocks().lease, Millis(0), kStepWaitMax);
      std::vector<Message> messages = inbox_->take_all(busy ? Millis(0) : until);
      const Now now = read_clocks();
      for (Message& message : messages) std::visit([&](auto& item) { receive(std::move(item), now); }, message);
      busy = step(now);
      publish();
    }
    for (auto& [token, reply] : callbacks_)
      replies_.put({std::move(reply), error(Code::Unavailable, "the control plane is stopping; ask again")});
    callbacks_.clear();
    for (Message& message : inbox_->take_all(Millis(0))) {
      if (auto* left = std::get_if<Submission>(&message))
        replies_.put({std::move(left->reply), error(Code::Unavailable, "the control plane is stopping; try again")});
    }
  }

  void receive(Submission item, Now) {
    --inbox_lanes_[static_cast<std::size_t>(item.lane)];
    const auto waited = std::chrono::steady_clock::now() - item.since;
    const std::int64_t us = std::chrono::duration_cast<std::chrono::microseconds>(waited).count();
    if (us > longest_wait_us_) longest_wait_us_ = us;
    const std::uint64_t token = ++last_token_;
    Status taken =
        follower_->broken()
            ? Status(error(Code::Internal, "the journal's fold failed; see the log of musterd and restart it"))
            : engine_->submit(item.lane, std::move(item.command), std::move(item.actor), token);
    if (taken)
      callbacks_.emplace(token, std::move(item.reply));
    else
      replies_.put({std::move(item.reply), taken.error()});
  }
  void receive(control::ApplyPlan plan, Now) {
    Status taken = engine_->submit_plan(std::move(plan));
    if (!taken) follower_->plan_done(taken.error());
  }
  void receive(journal::AppendResult result, Now now) { engine_->on_append(result, now); }

  // True: there is more to decide at once.
  bool step(Now now) {
    if (follower_->backlog() > kBacklogMax) {
      std::this_thread::sleep_for(Millis(1));
      return true;
    }
    const std::size_t before = engine_->queued();
    if (auto batch = engine_->poll(now)) {
      options_.store->append(std::move(*batch),
                             [inbox = inbox_](journal::AppendResult result) { inbox->put(std::move(result)); });
    }
    const std::size_t after = engine_->queued();
    return after > 0 && after < before;
  }

  void publish() {
    Output out = engine_->take_output();
    if (!out.entries.empty() || !out.digests.empty()) follower_->put(std::move(out.entries), std::move(out.digests));
    durable_seq_ = engine_->durable_seq();
    // Before the replies: who is refused because of it must find it said.
    const bool stuck = engine_->mode() != Mode::Leading || follower_->broken();
    if (read_only_.exchange(stuck) != stuck) {
      if (stuck)
        log_error("engine", "no changes are accepted: {}", engine_->mode_reason());
      else
        log_info("engine", "changes are accepted again");
    }
    for (TokenReply& reply : out.replies) {
      if (reply.token == Engine::kPlanToken) {
        follower_->plan_done(std::move(reply.result));
        continue;
      }
      auto found = callbacks_.extract(reply.token);
      if (!found.empty()) replies_.put({std::move(found.mapped()), std::move(reply.result)});
    }
  }

  void reply_loop() {
    while (true) {
      auto replies = replies_.take_all(kStepWaitMax);
      // One wait for all of them: who is answered finds its change in what read() shows.
      std::uint64_t newest = 0;
      for (const auto& [callback, result] : replies)
        if (result) newest = std::max(newest, result->seq);
      if (newest > 0) follower_->wait_for(newest, kFoldWait);
      for (auto& [callback, result] : replies) callback(std::move(result));
      if (replies.empty() && replies_.closed()) return;
    }
  }

  Options options_;
  std::shared_ptr<Mailbox<Message>> inbox_ = std::make_shared<Mailbox<Message>>();
  std::array<std::atomic<std::size_t>, 4> inbox_lanes_{};
  std::unique_ptr<FollowerThread> follower_;
  std::unique_ptr<Engine> engine_;                         // core thread only
  std::unordered_map<std::uint64_t, Callback> callbacks_;  // core thread only
  std::uint64_t last_token_ = 0;
  Mailbox<std::pair<Callback, Result<Reply>>> replies_;
  std::atomic<std::uint64_t> durable_seq_{0};
  std::atomic<bool> read_only_{false};
  std::atomic<std::int64_t> longest_wait_us_{0};
  std::thread core_, replier_;
};

}  // namespace

Result<std::unique_ptr<Runner>> Runner::start(Options options) {
  MUSTER_CHECK(options.store != nullptr);
  auto runner = std::make_unique<ThreadedRunner>(std::move(options));
  TRY_VOID(runner->open());
  return std::unique_ptr<Runner>(std::move(runner));
}

Result<Reply> Runner::submit_wait(control::Lane lane, control::Command command, control::Actor actor) {
  auto promise = std::make_shared<std::promise<Result<Reply>>>();
  auto future = promise->get_future();
  submit(lane, std::move(command), std::move(actor),
         [promise](Result<Reply> reply) { promise->set_value(std::move(reply)); });
  return future.get();
}

}  // namespace muster::engine
