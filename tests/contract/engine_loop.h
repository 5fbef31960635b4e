#pragma once
// Drives one engine and its follower in one thread under virtual time, the way engine/core.h describes. Appends wait in
// `batch` until deliver(), so a test decides what happens between.
#include <map>
#include <memory>
#include <string>

#include "contract/disk.h"
#include "engine/core.h"
#include "engine/follower.h"

namespace muster::contract {

inline control::Actor operator_actor() {
  control::Actor actor;
  actor.subject.principal = PrincipalId{9'001};  // none that there is an account of
  actor.subject.role = Role::Operator;
  return actor;
}

class EngineLoop {
 public:
  explicit EngineLoop(journal::Store& store, engine::Engine::Options options = quiet(),
                      std::int64_t wall = 1'700'000'000'000)
      : store_(store), now{WallTime{wall}, LeaseTime{1'000}} {
    auto base = engine::load_base(store);
    if (!base) {
      fault = base.error().message;
      return;
    }
    follower = std::make_unique<engine::Follower>(*base, engine::Follower::Options{});
    core = std::make_unique<engine::Engine>(options, store, std::move(*base), [this] { return follower->base(); });
    if (Status started = core->start(now); !started) fault = started.error().message;
  }
  static engine::Engine::Options quiet() {
    engine::Engine::Options options;
    options.tick = Millis(0);
    options.digest_every = 1;
    return options;
  }

  std::uint64_t create_org(const std::string& name, control::Lane lane = control::Lane::Operator) {
    const std::uint64_t token = ++last_token_;
    if (Status taken = core->submit(lane, control::CreateOrg{name}, operator_actor(), token); !taken)
      replies.emplace(token, taken.error());
    return token;
  }
  // Decides; what is to be appended waits.
  void poll() {
    if (auto next = core->poll(now)) batch = std::move(next);
    drain();
  }
  // Appends the waiting batch. False: the store crashed and nobody will ever answer.
  bool deliver() {
    if (!batch) return true;
    bool answered = false;
    store_.append(*std::exchange(batch, std::nullopt), [&](journal::AppendResult result) {
      answered = true;
      core->on_append(result, now);
    });
    drain();
    return answered;
  }
  bool run() {
    for (int i = 0; i < 1'000 && fault.empty(); ++i) {
      poll();
      if (!deliver()) return false;
      if (core->idle() || core->mode() != engine::Mode::Leading) return true;
    }
    return true;
  }
  void advance(Millis by) {
    now.wall = now.wall + by;
    now.lease = now.lease + by;
  }
  bool answered(std::uint64_t token) const { return replies.contains(token); }

 private:
  void drain() {
    engine::Output out = core->take_output();
    follower->expect(out.digests);
    for (const Bytes& stored : out.entries) {
      auto event = follower->fold(stored);
      if (event)
        events.push_back(std::move(*event));
      else
        fault = event.error().message;
    }
    for (auto& reply : out.replies) {
      if (!replies.emplace(reply.token, std::move(reply.result)).second) fault = "a command was answered twice";
    }
  }
  journal::Store& store_;
  std::uint64_t last_token_ = 0;

 public:
  Now now;
  std::unique_ptr<engine::Follower> follower;
  std::unique_ptr<engine::Engine> core;
  std::optional<journal::AppendRequest> batch;
  std::map<std::uint64_t, Result<engine::Reply>> replies;
  std::vector<engine::DurableEvent> events;
  std::string fault;  // a violated promise
};

}  // namespace muster::contract
