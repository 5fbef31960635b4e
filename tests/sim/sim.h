#pragma once
// One simulated platform under one seed: a control plane, machines, a network between them, clients and faults. Safety
// mode runs `steps` events under faults; liveness mode then heals everything and demands that all that was asked for
// comes true in time. Every step is followed by the checkers. failure() is empty or says which invariant broke, where.
#include <filesystem>
#include <memory>

#include "sim/checkers.h"
#include "sim/node.h"
#include "sim/server.h"

namespace muster::sim {

struct RunOptions {
  std::uint64_t seed = 1, steps = 20'000;
  bool liveness = true, verbose = false;
};
struct RunResult {
  std::string failure;
  std::uint64_t hash = 0, steps = 0;
  std::map<std::pair<std::string, std::string>, std::uint64_t> coverage;
  std::map<std::string, std::uint64_t> looked;  // invariant -> how often something was compared
  std::vector<std::string> log;
};
RunResult run_simulation(const RunOptions& options);
NodeFacts facts_of(std::uint32_t index);
// What can go wrong, and what state a machine may be in when it does: the pairs that coverage counts.
const std::vector<std::string>& fault_names();
const std::vector<std::string>& state_words();

class Sim final : public Environment, public ServerWatcher {
 public:
  explicit Sim(const RunOptions& options);
  ~Sim() override;
  RunResult run();

  World& world() override { return world_; }
  Chaos& chaos() override { return chaos_; }
  void dial(Node& node, std::uint64_t connection) override;
  void hang_up(Node& node, std::uint64_t connection) override;
  void to_server(Node& node, std::uint64_t connection, const session::AgentFrame& frame) override;
  const Container* find_head(ClusterId cluster, std::uint32_t address, SlotId member, const Bytes& member_key) override;
  void driver_started(Node& node, LeaseId lease, JobId job, std::uint32_t attempt) override;
  void op_started(Node& node, const agent::Op& op) override;
  void fenced(Node&, LeaseId, const std::string&) override {}
  void durable(const engine::DurableEvent& event, const control::State& after) override;
  void renewed(NodeId node, LeaseId lease) override;
  void left(std::uint64_t seq, const Bytes& entry) override;
  void answered(const engine::Reply& reply) override;
  void started(const engine::Base& base) override;

 private:
  struct Link {
    Node* node = nullptr;
    bool open = false;
    LeaseTime to_server{0}, to_agent{0};
  };
  struct Request {
    control::Command command;
    control::Actor actor;
    std::string kind, acked_id;
    bool must_fail = false;
  };
  void setup();
  void enroll(Node& node, const Bytes& token);
  session::ServerFrame with_old_roster(session::ServerFrame frame);
  void deliver(std::uint64_t connection, const session::ServerFrame& frame);
  void server_hung_up(std::uint64_t connection);
  void check();
  void note_shadows(const engine::DurableEvent& event, const control::State& after);
  journal::Store& store() { return sqlite_ ? *sqlite_ : static_cast<journal::Store&>(*memory_); }
  // clients
  void client_step();
  void quota_step();
  void offer_step();
  void pair_step();
  Offer random_offer();
  void set_offer(NodeId node, const Offer& offer);
  void set_quota(Quota of_project, Quota of_org);
  void set_headroom(std::uint32_t machines, std::uint8_t tier);
  void grant_rights();
  void set_tier_shares(std::uint32_t permille);
  void note_keys();
  void ask(Request request, std::uint32_t tries = 0);
  control::Actor tenant(const std::string& request_id);
  ClusterSpec random_spec();
  // faults
  void fault_step();
  bool platform_fault(const std::string& name);
  bool machine_fault(const std::string& name, Node& node);
  bool people_fault(const std::string& name, Node& node);
  bool clone(Node& node);
  void end_quarantine(NodeId id);
  void stuck_network(Node& node);
  void cut(Node& node, Millis length);
  std::string state_word(const Node& node) const;
  Node& any_node();
  // liveness
  void heal();
  bool clear_offers();
  std::string settle_wishes();
  std::string not_converged() const;
  bool run_until(const std::function<std::string()>& unmet, Millis limit, const std::string& what);
  void prove_progress();

  RunOptions options_;
  World world_;
  Chaos chaos_;
  std::unique_ptr<store::MemoryStore> memory_;
  std::unique_ptr<journal::Store> sqlite_;
  std::filesystem::path dir_;
  std::unique_ptr<SimServer> server_;
  std::vector<std::unique_ptr<Node>> nodes_;
  std::unique_ptr<Node> clone_;
  std::map<std::uint64_t, Link> links_;
  std::vector<std::pair<Node*, session::ServerFrame>> captured_;
  std::map<ClusterId, std::vector<session::SignedRoster>> old_rosters_;
  Checkers checkers_;
  std::uint64_t next_request_ = 1;
  bool tight() const { return options_.seed % 4 == 1; }        // machines are scarce: later tiers have to make room
  bool with_quotas() const { return options_.seed % 4 == 2; }  // they keep machines idle, so not everywhere
  bool with_offers() const { return options_.seed % 4 == 3; }  // owners ask prices and want machines back
  bool with_pairs() const { return options_.seed % 4 == 0; }   // clusters ask for fast ways, and some are slow
  bool with_parts() const { return options_.seed % 3 == 0; }   // parts of GPUs are given out, to two organisations
  control::Actor owner_of(ClusterId cluster, const std::string& request_id);
  std::int64_t way_of(const Node& a, const Node& b) const;  // what it carries, kbit/s
  std::uint64_t keys_noted_ = 0;
  Rng quotas_, tiers_, offers_, headrooms_, pairs_, parts_;  // of their own: what is drawn here moves nothing else
  ProjectId project_, side_project_, guest_project_;
  PrincipalId tenant_, stranger_, guest_;
  OrgId org_, other_org_, guest_org_;
  std::set<std::string> answered_;
  std::set<JobId> told_by_liars_;
  std::map<JobId, NodeId> told_by_;  // who said how a job stands, the last
  NodeId revoked_;
};

}  // namespace muster::sim
