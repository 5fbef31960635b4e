#pragma once
// The simulated musterd: the real engine, follower, sessions, liveness and lease table on a store that outlives it.
// crash() drops everything but the store; start() begins again from it. Answers to appends come after a random delay,
// so a crash falls before or after a commit.
#include <map>
#include <memory>
#include <set>

#include "engine/core.h"
#include "engine/follower.h"
#include "session/lease_table.h"
#include "session/liveness.h"
#include "session/server.h"
#include "sim/world.h"
#include "store/memory_store.h"

namespace muster::sim {

inline constexpr Millis kLease{180'000};

class ServerWatcher {
 public:
  virtual ~ServerWatcher() = default;
  virtual void durable(const engine::DurableEvent& event, const control::State& after) = 0;
  virtual void renewed(NodeId node, LeaseId lease) = 0;
  virtual void journal_rewritten(const std::string& what) = 0;
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
  const session::Liveness& liveness() const { return liveness_; }
  std::optional<LeaseTime> lease_end(LeaseId lease) const { return leases_.find(lease); }
  std::map<std::pair<JobId, std::uint32_t>, Bytes> logs;  // on their own disk: they survive a crash
  std::function<void(const Result<engine::Reply>&)> no_reply = [](const auto&) {};

  // session::Authority
  Result<NodeId> verify(const session::Hello& hello, ByteView message) override;
  std::string failure_domain(NodeId node) override;
  std::vector<LeaseId> live_leases(NodeId node) override;
  void heard(NodeId node, const std::string& domain, LeaseTime now) override;
  void granted(LeaseId lease, LeaseTime now) override { leases_.granted(lease, now); }
  void renewed(LeaseId lease, LeaseTime now) override;

 private:
  struct Connection {
    std::unique_ptr<session::Server> session;
  };
  Now now() const { return {world_->wall(), world_->now()}; }
  void pump();
  void fold(const std::vector<Bytes>& entries);
  void tick();
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
  session::Liveness liveness_;
  session::LeaseTable leases_{kLease};
  session::Directory directory_;
  std::map<std::uint64_t, Connection> connections_;
  std::map<std::uint64_t, std::function<void(const Result<engine::Reply>&)>> replies_;
  std::vector<Bytes> published_hashes_;  // of every entry that ever left, for "nothing acknowledged is lost"
  std::uint64_t life_ = 0, next_token_ = 1, next_session_ = 1;
  bool pumping_ = false, poll_set_ = false;
};

}  // namespace muster::sim
