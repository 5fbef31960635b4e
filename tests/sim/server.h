#pragma once
// The simulated musterd: the real engine, follower, sessions, liveness and lease table on a store that outlives it.
// crash() drops everything but the store; start() begins again from it. Answers to appends come after a random delay,
// so a crash falls before or after a commit.
#include <map>
#include <memory>
#include <set>

#include "engine/core.h"
#include "engine/follower.h"
#include "session/keeper.h"
#include "session/pair_table.h"
#include "session/server.h"
#include "sim/world.h"
#include "store/memory_store.h"

namespace muster::sim {

class ServerWatcher {
 public:
  virtual ~ServerWatcher() = default;
  virtual void durable(const engine::DurableEvent& event, const control::State& after) = 0;
  virtual void renewed(NodeId node, LeaseId lease) = 0;
  virtual void left(std::uint64_t seq, const Bytes& entry) = 0;  // an entry left the engine
  virtual void answered(const engine::Reply& reply) = 0;
  virtual void started(const engine::Base& base) = 0;  // from the journal
};

class SimServer final : public session::Authority {
 public:
  using ToAgent = std::function<void(std::uint64_t connection, const session::ServerFrame&)>;
  using HangUp = std::function<void(std::uint64_t connection)>;
  SimServer(World& world, journal::Store& store, ServerWatcher& watcher, ToAgent to_agent, HangUp hang_up);

  void start();
  void crash();
  bool up() const { return engine_ != nullptr; }
  bool leading() const { return up() && engine_->mode() == engine::Mode::Leading; }
  void connect(std::uint64_t connection);
  void disconnect(std::uint64_t connection);
  void from_agent(std::uint64_t connection, const session::AgentFrame& frame);
  // The reply is called once with the durable outcome or an error; never after a crash.
  void submit(control::Lane lane, control::Command command, control::Actor actor,
              std::function<void(const Result<engine::Reply>&)> reply);
  const control::State& state() const { return follower_->state(); }
  std::size_t queued() const { return up() ? engine_->queued() : 0; }
  const session::Keeper& keeper() const { return keeper_; }
  std::map<std::pair<JobId, std::uint32_t>, Bytes> logs;  // on their own disk: they survive a crash
  std::function<void(const Result<engine::Reply>&)> no_reply = [](const auto&) {};

  // session::Authority
  Result<NodeId> verify(const session::Hello& hello, ByteView message) override;
  std::string failure_domain(NodeId node) override;
  std::string known_boot(NodeId node) override;
  std::vector<LeaseId> live_leases(NodeId node) override;
  void heard(NodeId node, const std::string& domain, LeaseTime now) override;
  void granted(LeaseId lease, LeaseTime now) override { keeper_.granted(lease, now); }
  void renewed(LeaseId lease, LeaseTime now) override;

 private:
  struct Connection {
    std::unique_ptr<session::Server> session;
  };
  Now now() const { return {world_->wall(), world_->now()}; }
  void pump();
  void fold(const std::vector<Bytes>& entries);
  void save_snapshot();
  void tick();
  void tell_core(const session::Verdicts& verdicts);
  void kick();
  void drain(std::uint64_t connection);
  void push_desired(session::Server& session);
  session::Desired desired_of(NodeId node) const;
  void submit_system(control::Command command) {
    submit(control::Lane::Liveness, std::move(command), system_actor(), no_reply);
  }

 public:
  static control::Actor system_actor();

 private:
  World* world_;
  journal::Store* store_;
  ServerWatcher* watcher_;
  ToAgent to_agent_;
  HangUp hang_up_;
  std::unique_ptr<engine::Follower> follower_;
  std::unique_ptr<engine::Engine> engine_;
  static session::Keeper::Options keeping() {
    session::Keeper::Options options;
    options.lease = kLease;
    return options;
  }
  session::Keeper keeper_{keeping()};
  session::PairTable pairs_;
  LeaseTime judged_at_{0};
  std::map<std::uint64_t, Connection> connections_;
  std::map<std::uint64_t, std::function<void(const Result<engine::Reply>&)>> replies_;
  std::uint64_t life_ = 0, next_token_ = 1, next_session_ = 1;
  bool pumping_ = false, poll_set_ = false;
};

}  // namespace muster::sim
