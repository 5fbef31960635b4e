#include "control/reclaim.h"

#include <map>
#include <set>

#include "control/decide.h"

namespace muster::control {
namespace {

Share share_of(const State& state, OrgId id) {
  const auto org = state.orgs.find(id);
  return org == state.orgs.end() ? Share{} : org->second.share;
}
Share share_of(const State& state, ProjectId id) {
  const auto project = state.projects.find(id);
  return project == state.projects.end() ? Share{} : project->second.share;
}

// What is held and not told to leave, by the organisation or by one project of it.
Quota staying(const Draft& d, OrgId org, ProjectId only) {
  Quota out;
  for (const ProjectId project : only ? std::vector{only} : projects_of(d.base, org))
    for (const ClusterId id : living_clusters(d.base, project))
      for (const LeaseId lease_id : d.base.cluster_leases(id)) {
        const Lease* lease = d.lease(lease_id);
        if (lease->end == LeaseEnd::None && (lease->want == LeaseWant::Run || lease->want == LeaseWant::Standby))
          add(out, amount_of(*lease));
      }
  return out;
}

// What is held, by the organisation or by one project of it; the draft's own index holds what its events changed.
Quota held_by(const Draft& d, OrgId org, ProjectId only) {
  Quota out = only ? held_of(d.base, only) : held_of(d.base, org);
  for (const auto& [project, change] : d.state.held_by_project)
    if (only ? project == only : org_of(d.base, project) == org) add(out, change);
  return out;
}

bool keeps(const Share& share, const Quota& stays, const Quota& taken) {
  const auto enough = [](std::int64_t guaranteed, std::int64_t stays, std::int64_t taken) {
    return guaranteed <= 0 || taken <= 0 || stays - taken >= guaranteed;
  };
  return enough(share.gpus * kGpuMilli, gpu_milli_of(stays), gpu_milli_of(taken)) &&
         enough(share.cpu_milli, stays.cpu_milli, taken.cpu_milli);
}

}  // namespace

bool within_guarantee(const Share& share, const Quota& held, const ClusterSpec& spec) {
  if (takes_whole_machines(spec)) return false;
  const Quota need = start_need(spec);
  const auto fits = [](std::int64_t guaranteed, std::int64_t held, std::int64_t need) {
    return guaranteed <= 0 || need <= 0 || held + need <= guaranteed;
  };
  const std::int64_t gpu_milli = gpu_milli_of(need);
  const bool some = (share.gpus > 0 && gpu_milli > 0) || (share.cpu_milli > 0 && need.cpu_milli > 0);
  return some && fits(share.gpus * kGpuMilli, gpu_milli_of(held), gpu_milli) &&
         fits(share.cpu_milli, held.cpu_milli, need.cpu_milli);
}

bool reclaimable(const Draft& d, const Cluster& by, const std::vector<LeaseId>& victims) {
  std::map<OrgId, Quota> of_orgs;  // all that leaves
  std::map<ProjectId, Quota> of_projects;
  std::set<OrgId> orgs;  // what is reclaimed from
  std::set<ProjectId> projects;
  const OrgId own = org_of(d.base, by.project);
  bool from_own = false, from_others = false;
  for (const LeaseId id : victims) {
    const Lease& lease = *d.lease(id);
    const Cluster& cluster = d.state.clusters.at(lease.cluster);
    const OrgId org = org_of(d.base, cluster.project);
    const Quota amount = amount_of(lease);
    add(of_orgs[org], amount), add(of_projects[cluster.project], amount);
    if (cluster.spec.tier > by.spec.tier) continue;
    if (cluster.project == by.project) return false;
    (org == own ? from_own : from_others) = true;
    projects.insert(cluster.project);
    if (org != own) orgs.insert(org);
  }
  if (!from_own && !from_others) return true;
  if (from_others && !within_guarantee(share_of(d.base, own), held_by(d, own, {}), by.spec)) return false;
  if (from_own && !within_guarantee(share_of(d.base, by.project), held_by(d, own, by.project), by.spec)) return false;
  for (const OrgId org : orgs)
    if (!keeps(share_of(d.base, org), staying(d, org, {}), of_orgs[org])) return false;
  for (const ProjectId project : projects)
    if (!keeps(share_of(d.base, project), staying(d, {}, project), of_projects[project])) return false;
  return true;
}

}  // namespace muster::control
