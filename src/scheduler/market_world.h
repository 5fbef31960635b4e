#pragma once
// For tests: machines, what runs on them and who waits, kept in step with a scheduler as the core would.
#include <map>
#include <vector>

#include "scheduler/scheduler.h"

namespace muster::scheduler {

struct MarketWorld {
  Scheduler s;
  std::map<NodeId, NodeView> nodes;
  std::map<LeaseId, LeaseView> leases;
  WallTime now;
  std::uint64_t next_lease = 1;

  explicit MarketWorld(WallTime start) : now(start) {}

  void machine(std::uint64_t id, std::int64_t cpus) {
    NodeView n;
    n.node = NodeId{id}, n.supplier = OrgId{99}, n.arch = "x86_64", n.schedulable = true;
    n.free.cpu_milli = cpus * 1000, n.free.memory_bytes = std::int64_t{64} << 30;
    n.capacity = n.free, n.runtimes = {RuntimeKind::Docker};
    nodes[n.node] = n;
    s.apply(NodeChanged{n});
  }
  // It began `age` ago; who holds it is filled in by the caller.
  LeaseId begin(LeaseView l, std::uint64_t on, std::int64_t cpus, std::uint8_t tier, Millis age, SlotRole role) {
    l.lease = LeaseId{next_lease++}, l.node = NodeId{on}, l.role = role;
    l.resources.cpu_milli = cpus * 1000, l.tier = tier, l.since = now - age;
    leases[l.lease] = l;
    s.apply(LeaseChanged{l});
    shift(l.node, -cpus * 1000);
    return l.lease;
  }
  void shift(NodeId id, std::int64_t cpu_milli) {
    NodeView& n = nodes.at(id);
    n.free.cpu_milli += cpu_milli, ++n.version;
    n.whole = n.free.cpu_milli == n.capacity.cpu_milli;
    s.apply(NodeChanged{n});
  }
  void end(LeaseId id) {
    const LeaseView l = leases.at(id);
    leases.erase(id);
    s.apply(LeaseGone{id, now});
    shift(l.node, l.resources.cpu_milli);
  }
  void tell_to_leave(LeaseId id) {
    leases.at(id).leaving = leases.at(id).preempted = true;
    s.apply(LeaseChanged{leases.at(id)});
  }
  // A gang, the head first.
  Request gang(std::uint64_t id, const std::vector<std::int64_t>& cpus, std::uint8_t tier) const {
    Request r;
    r.cluster = ClusterId{id}, r.since = now, r.pool = "market", r.arch = "x86_64", r.image = "ray", r.tier = tier;
    for (std::size_t i = 0; i < cpus.size(); ++i) {
      Bundle b;
      b.role = i == 0 ? SlotRole::Head : SlotRole::Worker, b.group = i == 0 ? "" : "w";
      b.request.resources.cpu_milli = cpus[i] * 1000;
      r.gang.push_back(b);
    }
    return r;
  }
  std::vector<LeaseId> victims() {
    std::vector<LeaseId> out;
    for (const Group& g : s.plan({}, now)) out.insert(out.end(), g.victims.begin(), g.victims.end());
    return out;
  }
};

}  // namespace muster::scheduler
