// I13: no grant and no start takes a project or an organisation above what its quota allows then; no start, and nothing
// of a tier that may not, takes one of the last free machines that are kept back for failovers.
#include "sim/checkers.h"

namespace muster::sim {
namespace {

using control::State;
using engine::DurableEvent;

class WithinQuota final : public Checker {
 public:
  WithinQuota() : Checker("I13") {}
  void started(const engine::Base& base, const journal::Store&, World&) override {
    for (const auto& [id, cluster] : base.state.clusters)
      if (cluster.state != ClusterState::Queued) begun_.insert(id);
  }
  void durable(const DurableEvent& event, const State& after, World& world) override {
    if (const auto* granted = std::get_if<control::LeaseGranted>(&event.event)) {
      look_at_headroom(after, granted->lease, world);
      return look(after, granted->lease.cluster, granted->lease.resources, 0, world);
    }
    const auto* changed = std::get_if<control::ClusterStateChanged>(&event.event);
    if (changed != nullptr && changed->state == ClusterState::Starting && begun_.insert(changed->cluster).second)
      look(after, changed->cluster, {}, 1, world);
  }

 private:
  void look_at_headroom(const State& state, const Lease& lease, World& world) {
    const Cluster* cluster = state.find_cluster(lease.cluster);
    const auto* node = state.find_node(lease.node);
    if (cluster == nullptr || node == nullptr || cluster->spec.pool == "own") return;
    const auto model = [](const muster::Node& of) {
      return of.facts.devices.empty() ? std::string() : of.facts.devices.front().model;
    };
    const auto row = state.headroom.find(model(*node));
    if (row == state.headroom.end() || state.live_leases(node->id).size() != 1) return;
    if (cluster->state != ClusterState::Queued && cluster->spec.tier <= row->second.tier) return;
    std::uint32_t free = 0;
    for (const auto& [id, other] : state.nodes)
      if (control::schedulable(other) && model(other) == row->first && state.live_leases(id).empty()) ++free;
    looked_at();
    if (free < row->second.machines)
      fail(world, lease.cluster.str() + " took one of the last machines that are kept back for failovers");
  }
  // Counted from the tables, and only what this event added to: a quota that was lowered may be exceeded already.
  void look(const State& state, ClusterId id, const Resources& added, std::int64_t clusters, World& world) {
    const Cluster* cluster = state.find_cluster(id);
    const auto project = cluster == nullptr ? state.projects.end() : state.projects.find(cluster->project);
    if (project == state.projects.end()) return;
    const OrgId org = project->second.org;
    const auto within = [&](const Quota& limit, const std::string& whose, const auto& counts) {
      if (limit == Quota{}) return;
      Quota held;
      for (const auto& [lease_id, lease] : state.leases) {
        const Cluster* of = state.find_cluster(lease.cluster);
        if (lease.end == LeaseEnd::None && of != nullptr && counts(*of))
          held.gpu_milli += lease.share_milli > 0 ? lease.share_milli : lease.resources.gpus * kGpuMilli,
              held.cpu_milli += lease.resources.cpu_milli;
      }
      for (const auto& [cluster_id, each] : state.clusters)
        if (counts(each) && (each.state == ClusterState::Starting || each.state == ClusterState::Running))
          ++held.clusters;
      looked_at();
      const auto above = [](std::int64_t more, std::int64_t has, std::int64_t may) {
        return more > 0 && may > 0 && has > may;
      };
      if (above(added.gpus, held.gpu_milli, limit.gpus * kGpuMilli) ||
          above(added.cpu_milli, held.cpu_milli, limit.cpu_milli) || above(clusters, held.clusters, limit.clusters))
        fail(world, whose + " holds more than its quota allows, by " + id.str());
    };
    within(project->second.quota, project->first.str(),
           [&](const Cluster& each) { return each.project == project->first; });
    if (const auto found = state.orgs.find(org); found != state.orgs.end())
      within(found->second.quota, org.str(), [&](const Cluster& each) {
        const auto other = state.projects.find(each.project);
        return other != state.projects.end() && other->second.org == org;
      });
  }
  std::set<ClusterId> begun_;
};

}  // namespace

CheckerPtr within_quota() {
  return std::make_unique<WithinQuota>();
}

}  // namespace muster::sim
