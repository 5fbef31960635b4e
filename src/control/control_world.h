#pragma once
// A small platform for tests: the core with its planner and agents that do as they are told. After every command the
// world checks what must always hold: the indexes equal a rebuild, a node's revision rises whenever its assignments
// change, no device and no overlay address is given twice.
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "control/core.h"
#include "control/revised.h"

namespace muster::control {

class World {
 public:
  State state;
  scheduler::Scheduler planner;
  Now now{WallTime{1'700'000'000'000}, LeaseTime{0}};
  std::vector<Event> journal;          // everything that happened
  std::vector<EntryContext> contexts;  // and who, when
  std::set<NodeId> silent;             // their agents do not answer
  std::map<std::pair<ClusterId, std::uint32_t>, SlotId> addresses;
  OrgId supplier, tenant;
  ProjectId project;
  PrincipalId alice;

  static Actor system() {
    Actor a;
    a.system = true;
    return a;
  }
  Actor as(Role role, OrgId org, PrincipalId who = PrincipalId{500}) const {
    Actor a;
    a.subject = {.principal = who, .role = role, .org = org};
    return a;
  }
  Actor user() const { return as(Role::Tenant, tenant, alice); }
  static Actor device(NodeId node) {
    Actor a;
    a.subject.node = node;
    return a;
  }

  World() {
    must(BecomeLeader{1});
    supplier = OrgId::parse(must(CreateOrg{"hall"}).id).value();
    tenant = OrgId::parse(must(CreateOrg{"lab"}).id).value();
    project = ProjectId::parse(must(CreateProject{tenant, "default"}).id).value();
    alice = PrincipalId::parse(must(CreatePrincipal{"alice", Role::Tenant, tenant}).id).value();
  }

  Result<Outcome> run(const Command& command, const Actor& actor = system()) {
    const auto decision = decide(state, command, actor, now);
    if (!decision.ok()) return decision.error();
    std::map<NodeId, std::pair<std::uint64_t, std::vector<Assignment>>> before;
    for (const auto& [id, node] : state.nodes) before[id] = {node.revision, desired_for(state, id)};
    const WallTime wall = journal_wall(state, now);
    for (const Event& event : decision->events) {
      EXPECT_EQ(decode_event(encode(event)).value(), event);
      const EntryContext context{state.seq + 1, wall, state.leader_epoch, actor};
      std::map<NodeId, std::uint64_t> revisions;
      for (const auto& [id, node] : state.nodes) revisions[id] = node.revision;
      apply(state, event, context);
      std::set<NodeId> revised;
      add_revised_nodes(state, event, revised);
      for (const auto& [id, node] : state.nodes)
        EXPECT_TRUE(node.revision == revisions[id] || revised.contains(id)) << event_name(event) << " of " << id.str();
      journal.push_back(event);
      contexts.push_back(context);
      note_address(event);
      for (const auto& change : planner_changes(state, event)) planner.apply(change);
    }
    check(before);
    return decision->outcome;
  }
  Outcome must(const Command& command, const Actor& actor = system()) {
    auto result = run(command, actor);
    EXPECT_TRUE(result.ok()) << (result.ok() ? "" : result.error().message);
    return result.ok() ? *result : Outcome{};
  }

  NodeId enrol(const std::string& name, NodeFacts facts, OrgId owner) {
    const Bytes hash(32, static_cast<std::uint8_t>(++tokens_));
    must(CreateJoinToken{owner, hash, {}, 1h});
    const Bytes key(32, static_cast<std::uint8_t>(100 + tokens_));
    const NodeId id = NodeId::parse(must(EnrollNode{hash, key, name, std::move(facts)}, Actor{}).id).value();
    must(NodeOnline{id});
    return id;
  }
  NodeId enrol(const std::string& name = "box", int gpus = 0) {
    NodeFacts facts;
    facts.hostname = name, facts.arch = "x86_64", facts.runtimes = {RuntimeKind::Docker}, facts.region = "eu";
    facts.capacity.cpu_milli = 4000, facts.capacity.memory_bytes = std::int64_t{8} << 30, facts.capacity.gpus = gpus;
    for (int i = 0; i < gpus; ++i)
      facts.devices.push_back({name + "-gpu" + std::to_string(i), "A100", std::int64_t{40} << 30});
    return enrol(name, std::move(facts), supplier);
  }
  static ClusterSpec spec(std::uint32_t min = 2, std::uint32_t max = 2, std::uint32_t spares = 0) {
    ClusterSpec s;
    s.name = "demo", s.image = "ray:2", s.head.resources.cpu_milli = 1000, s.spares = spares;
    WorkerGroup group;
    group.name = "workers", group.min = min, group.max = max, group.request.resources.cpu_milli = 2000;
    s.groups.push_back(group);
    return s;
  }

  void plan() {
    auto groups = planner.plan({}, now.wall);
    if (!groups.empty()) must(ApplyPlan{std::move(groups)});
  }
  ObservedLease seen(LeaseId id, LeasePhase phase) const {
    const Lease& lease = *state.find_lease(id);
    ObservedLease o;
    o.lease = id, o.epoch = lease.epoch, o.phase = phase, o.restarts = lease.restarts;
    if (phase < LeasePhase::Stopped)
      o.overlay_key = Bytes(32, static_cast<std::uint8_t>(id.value)), o.overlay_signature = Bytes(64, 1);
    if (phase < LeasePhase::Stopped) o.probe = {"sha256:1", "2.9.0", "3.11", true, true};
    return o;
  }
  // Every agent does what it is told, all the way.
  void agents() {
    for (const auto& [id, node] : std::map<NodeId, Node>(state.nodes)) {
      if (silent.contains(id) || node.state == NodeState::Revoked) continue;
      ReportObserved report{id, node.revision, {}, {}};
      for (const Assignment& a : desired_for(state, id)) {
        const LeasePhase phase = a.want == LeaseWant::Run       ? LeasePhase::Ready
                                 : a.want == LeaseWant::Standby ? LeasePhase::Standby
                                                                : LeasePhase::Stopped;
        report.leases.push_back(seen(a.lease, phase));
      }
      must(report, device(id));
    }
  }
  void rounds(int n = 4) {
    for (int i = 0; i < n; ++i) plan(), agents(), pass(100ms);
  }
  void pass(Millis d) {
    now.wall = now.wall + d;
    now.lease = now.lease + d;
    must(Tick{});
  }
  ClusterId up(ClusterSpec s) {
    const ClusterId id = ClusterId::parse(must(CreateCluster{project, std::move(s)}, user()).id).value();
    rounds();
    return id;
  }
  const Cluster& cluster(ClusterId id) const { return state.clusters.at(id); }
  const Job& job(JobId id) const { return state.jobs.at(id); }
  std::vector<const Slot*> slots(ClusterId id, SlotRole role) const {
    std::vector<const Slot*> out;
    for (const SlotId slot : cluster(id).slots)
      if (state.slots.at(slot).role == role) out.push_back(&state.slots.at(slot));
    return out;
  }
  const Lease& lease_of(const Slot* slot) const { return state.leases.at(slot->lease); }
  const Lease& head(ClusterId id) const { return lease_of(slots(id, SlotRole::Head).at(0)); }
  Result<Outcome> report(LeaseId lease, LeasePhase phase, std::string reason = {}) {
    ObservedLease o = seen(lease, phase);
    o.reason = std::move(reason);
    const NodeId node = state.find_lease(lease)->node;
    return run(ReportObserved{node, 0, {o}, {}}, device(node));
  }
  void report_job(JobId id, JobState to, std::int32_t exit_code = -1, std::string reason = {}) {
    const NodeId node = head(job(id).cluster).node;
    must(ReportObserved{node, 0, {}, {{id, job(id).attempt, to, exit_code, std::move(reason), 10}}}, device(node));
  }
  template <class E>
  int count() const {
    int n = 0;
    for (const Event& e : journal) n += std::holds_alternative<E>(e) ? 1 : 0;
    return n;
  }

 private:
  void note_address(const Event& event) {
    if (const auto* e = std::get_if<LeaseGranted>(&event)) {
      EXPECT_TRUE(addresses.try_emplace({e->slot.cluster, e->slot.address}, e->slot.id).second)
          << "an address was given twice";
    }
  }
  void check(const std::map<NodeId, std::pair<std::uint64_t, std::vector<Assignment>>>& before) {
    State rebuilt = state;
    rebuild_indexes(rebuilt);
    EXPECT_TRUE(rebuilt == state) << "an index is not what its tables say";
    for (const auto& [id, was] : before)
      if (desired_for(state, id) != was.second) {
        EXPECT_GT(state.nodes.at(id).revision, was.first) << "assignments changed without a revision";
      }
    for (const auto& [id, node] : state.nodes) {
      std::map<std::string, std::int32_t> devices;
      for (const LeaseId lease : state.live_leases(id))
        for (const std::string& device : state.leases.at(lease).devices) {
          const std::int32_t share = state.leases.at(lease).share_milli;
          EXPECT_LE(devices[device] += share > 0 ? share : kGpuMilli, kGpuMilli) << "a device was granted twice";
        }
    }
  }
  int tokens_ = 0;
};

}  // namespace muster::control
