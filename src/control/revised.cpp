#include "control/revised.h"

#include "control/images.h"

namespace muster::control {
namespace {

struct Revised {
  const State& state;
  std::set<NodeId>& nodes;

  void lease(LeaseId id) {
    if (const Lease* found = state.find_lease(id)) nodes.insert(found->node);
  }
  void members(ClusterId id) {
    for (auto it = state.leases_by_cluster.lower_bound({id, LeaseId{}});
         it != state.leases_by_cluster.end() && it->first == id; ++it)
      lease(it->second);
  }
  void slot(SlotId id) {
    const Slot* found = state.find_slot(id);
    if (found == nullptr) return;
    lease(found->lease);
    members(found->cluster);
  }
  void head(ClusterId id) {
    const Cluster* cluster = state.find_cluster(id);
    if (const Slot* found = cluster == nullptr ? nullptr : state.find_head(*cluster)) lease(found->lease);
  }
  void operator()(const NodeEnrolled& e) { nodes.insert(e.node.id); }
  void operator()(const NodeFactsChanged& e) {
    nodes.insert(e.node);
    for (const LeaseId id : state.live_leases(e.node))
      if (const Lease* found = state.find_lease(id)) members(found->cluster);
  }
  void operator()(const NodeTierChanged& e) { nodes.insert(e.node); }
  void operator()(const ClusterProbed& e) { members(e.cluster); }
  void operator()(const LeaseGranted& e) { nodes.insert(e.lease.node); }
  void operator()(const SlotKeyed& e) { slot(e.slot); }
  void operator()(const SlotLeft& e) { slot(e.slot); }
  void operator()(const SlotPromoted& e) { slot(e.slot); }
  void operator()(const LeaseWantChanged& e) { lease(e.lease); }
  void operator()(const LeaseEnded& e) { lease(e.lease); }
  void operator()(const JobCreated& e) { head(e.job.cluster); }
  void operator()(const JobStateChanged& e) {
    if (const Job* job = state.find_job(e.job)) head(job->cluster);
  }
  void operator()(const ImagePolicySet& e) {
    for (const ClusterId id : bound_by(state, e)) members(id);
  }
  void operator()(const IncarnationRaised&) {
    for (const auto& [id, node] : state.nodes) nodes.insert(id);
  }
  void operator()(const auto&) {}
};

}  // namespace

void add_revised_nodes(const State& state, const Event& event, std::set<NodeId>& nodes) {
  std::visit(Revised{state, nodes}, event);
}

}  // namespace muster::control
