#pragma once
// One simulated machine: the real agent::Core on a simulated host with containers, Ray, jobs, a disk, clocks of its own
// and a link. The agent may be killed, the machine may lose power, sleep, or be copied. Containers outlive the agent,
// workspaces the machine's reboots.
#include <memory>
#include <optional>
#include <set>

#include "agent/core.h"
#include "sim/world.h"

namespace muster::sim {

class Node;

struct SimJob {
  JobState state = JobState::Running;
  std::string log;
  std::uint64_t run = 0;
  std::int32_t exit_code = -1;
};
struct Container {
  Assignment assignment;
  std::string digest;
  bool running = false, ray = false, ray_ready = false, setup = false;
  std::uint64_t roster_epoch = 0, life = 0;
  std::vector<RosterEntry> entries;
  Bytes key, signature;
};
// How nodes reach each other and the server; and who watches them.
class Environment {
 public:
  virtual ~Environment() = default;
  virtual World& world() = 0;
  virtual Chaos& chaos() = 0;
  virtual void dial(Node& node, std::uint64_t connection) = 0;
  virtual void hang_up(Node& node, std::uint64_t connection) = 0;
  virtual void to_server(Node& node, std::uint64_t connection, const session::AgentFrame& frame) = 0;
  virtual const Container* find_head(ClusterId cluster, std::uint32_t address, SlotId member,
                                     const Bytes& member_key) = 0;
  virtual void driver_started(Node& node, LeaseId lease, JobId job, std::uint32_t attempt) = 0;
  virtual void op_started(Node& node, const agent::Op& op) = 0;
  virtual void fenced(Node& node, LeaseId lease, const std::string& reason) = 0;
};

class Node {
 public:
  Node(Environment& env, std::uint32_t index, Bytes key, NodeFacts facts);
  void boot();  // power on: new boot id, containers dead
  void power_off();
  void start_agent();
  void kill_agent();
  void suspend(Millis length);
  void container_fault(bool ray_only);
  void engine_restart();
  void connection_up(std::uint64_t connection);
  void connection_down(std::uint64_t connection);
  void from_server(std::uint64_t connection, const session::ServerFrame& frame);
  void owner(agent::OwnerAction action);
  LeaseTime time() const;  // this machine's boot clock
  LeaseTime booted() const { return booted_; }
  Now clocks() const;
  void poke();  // perform what the core wants, set the alarm

  std::uint32_t index;
  Bytes key;  // device key; a clone has the same
  NodeFacts facts;
  NodeId id;  // once enrolled
  bool powered = false, asleep = false, liar = false, disk_full = false, silent = false, network_stuck = false;
  std::uint64_t connection = 0;
  std::int64_t drift_ppm = 0, wall_step = 0;
  std::unique_ptr<agent::Core> core;
  Bytes disk;  // what Persist wrote
  std::map<LeaseId, Container> containers;
  std::map<std::tuple<LeaseId, JobId, std::uint32_t>, SimJob> jobs;  // in the workspaces
  std::map<std::uint64_t, LeaseTime> beats;                          // echo -> send, for the checker
  std::map<LeaseId, LeaseTime> allowed;                              // latest end that the protocol allows
  LeaseTime hello_sent{0};
  LeaseTime alive_since{0}, cut_at{0};  // of the world: agent started or machine woke; packets stopped
  LeaseTime spoke_at{0};                // of the world: its last Hello or heartbeat that reached a running server
  std::set<LeaseId> shadowed;           // held while the server took a copy of this machine for its reboot
  bool cut_online = false;              // it was heard when they stopped
  std::uint64_t revision_high = 0, incarnation_high = 0;

 private:
  void perform(const agent::Action& action);
  void run_op(agent::OpId id, const agent::Op& op);
  agent::OpResult do_op(const agent::Op& op);
  void send(session::AgentFrame frame);
  void result(agent::OpId id, agent::OpResult result, std::uint64_t life);
  void tell(const agent::RuntimeEvent& event);
  void poll_ray(LeaseId lease, std::uint64_t life);
  void run_job(LeaseId lease, JobId job, std::uint32_t attempt, std::uint64_t run);
  void kill_container(Container& container, bool ray_only);
  void alarm();
  agent::Found found() const;

  Environment* env_;
  std::uint64_t agent_life_ = 0, boots_ = 0, next_life_ = 1;
  LeaseTime booted_{0}, alarm_at_{0};
  std::vector<std::function<void()>> held_;  // while asleep
  std::set<agent::OpId> cancelled_;
};

// Stand-ins for signatures: everybody can check them, only the holder of the secret is asked to make them.
Bytes sim_sign(const Bytes& key, ByteView message);
Bytes encode_roster(ClusterId cluster, std::uint64_t epoch, const std::vector<RosterEntry>& entries);
Result<agent::OpenedRoster> open_roster(const session::SignedRoster& roster, const Bytes& roster_key);
Bytes controller_key();

}  // namespace muster::sim
