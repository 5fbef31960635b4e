#pragma once
// Quotas: what a project and its organisation may hold at a time; both bind. Held is what live leases hold (granted and
// not ended, also on machines that are lost) and how many clusters are starting or running. Only reads: the planner is
// told of nothing that does not fit, and what it proposes is checked once more when it is committed.
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "control/state.h"
#include "scheduler/scheduler.h"

namespace muster::control {

struct QuotaLack {  // what stands in the way; GPUs and CPUs in thousandths
  std::string resource /* gpus | cpus | clusters */, scope /* project | organisation */, name;
  std::int64_t needed = 0, limit = 0, held = 0;
};
std::string text_of(const QuotaLack& lack);

struct QuotaBounds {
  std::string project_name, org_name;
  Quota project, org, in_project, in_org;  // limits, and what is held of them
  bool any() const { return project != Quota{} || org != Quota{}; }
  void take(const Quota& more);
  std::optional<QuotaLack> lack(const Quota& more) const;  // the project's limits first
};
QuotaBounds quota_bounds(const State& state, ProjectId project);
Quota held_of(const State& state, ProjectId project);
Quota held_of(const State& state, OrgId org);

Quota amount_of(const Resources& resources, std::int32_t share_milli);
Quota amount_of(const NodeRequest& request);
Quota amount_of(const Lease& lease);
std::int64_t gpu_milli_of(const Quota& quota);  // whole GPUs and shares together
void add(Quota& to, const Quota& more, std::int64_t times = 1);
// What a start takes at least: a whole machine counts with what is asked of it, for its size is not known yet.
Quota start_need(const ClusterSpec& spec);
// Refuses a start that its quotas never allow.
Status startable(const State& state, ProjectId project, const ClusterSpec& spec, const std::string& field);

bool counts_as_cluster(ClusterState state);
// Keeps the indexes of what is held; the organisation's only where the project is known.
void hold(State& state, ProjectId project, const Quota& amount, bool more);
// The living clusters that share a quota with this project, if it has one.
std::vector<ClusterId> sharing_quota(const State& state, ProjectId project);
std::vector<ClusterId> living_clusters(const State& state, ProjectId project);
std::vector<ProjectId> projects_of(const State& state, OrgId org);
void note_limited(State& state, ProjectId project);  // keeps limited_projects
bool takes_whole_machines(const ClusterSpec& spec);  // as many CPUs as the machines that are there have

// Clusters that lack something and get nothing of it because of a quota, and why.
struct QuotaWait {
  ClusterId cluster;
  scheduler::Reason reason;
};
std::vector<QuotaWait> quota_waits(const State& state);
std::optional<scheduler::Reason> quota_wait(const State& state, const Cluster& cluster);  // of one of them

}  // namespace muster::control
