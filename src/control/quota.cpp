#include "control/quota.h"

#include <algorithm>

#include "control/life.h"
#include "model/node_labels.h"

namespace muster::control {
namespace {

struct Row {
  const char *resource, *one, *many;
  std::int64_t (*value)(const Quota&);
};
constexpr Row kRows[] = {{"gpus", "GPU", "GPUs", gpu_milli_of},
                         {"cpus", "CPU", "CPUs", [](const Quota& q) { return q.cpu_milli; }},
                         {"clusters", "cluster", "clusters", [](const Quota& q) { return q.clusters; }}};

bool room_for(std::int64_t more, std::int64_t limit, std::int64_t held) {
  return limit == 0 || more == 0 || more <= limit - held;
}
std::string number(const std::string& resource, std::int64_t n) {
  if (resource == "clusters") return std::to_string(n);
  std::string out = std::to_string(n / 1000);
  if (n % 1000 == 0) return out;
  std::string part = std::to_string(1000 + n % 1000).substr(1);
  part.erase(part.find_last_not_of('0') + 1);
  return out + "." + part;
}
std::string counted(const std::string& resource, std::int64_t n) {
  for (const Row& row : kRows)
    if (resource == row.resource) return number(resource, n) + " " + (number(resource, n) == "1" ? row.one : row.many);
  return {};
}

// The smallest machine that could be had whole: less is never taken.
Quota smallest_whole(const State& state, const Cluster& cluster, const NodeRequest& request) {
  const ClusterSpec& spec = cluster.spec;
  const auto project = state.projects.find(cluster.project);
  const OrgId tenant = project == state.projects.end() ? OrgId{} : project->second.org;
  std::optional<Quota> found;
  for (const auto& [id, node] : state.nodes) {
    if (!schedulable(node) || !in_pool(node, spec.pool, tenant) || node.tier < spec.min_trust ||
        node.facts.arch != spec.arch || !fits(request.resources, node.facts.capacity) ||
        (!request.pinned.empty() &&
         std::find(request.pinned.begin(), request.pinned.end(), id) == request.pinned.end()))
      continue;
    if (std::any_of(node.facts.devices.begin(), node.facts.devices.end(),
                    [](const Device& d) { return d.sharing == GpuSharing::Mig; }))
      continue;
    const Quota size{static_cast<std::int64_t>(node.facts.devices.size()), node.facts.capacity.cpu_milli, 0};
    if (!found || std::pair(size.gpus, size.cpu_milli) < std::pair(found->gpus, found->cpu_milli)) found = size;
  }
  return found.value_or(amount_of(request));
}

// What of `missing` may be had now; why the first of the rest may not.
std::pair<Missing, std::optional<QuotaLack>> allowed(const State& state, const Cluster& cluster, Missing missing) {
  QuotaBounds bounds = quota_bounds(state, cluster.project);
  if (missing.none() || !bounds.any()) return {std::move(missing), {}};
  const ClusterSpec& spec = cluster.spec;
  const auto size = [&](const NodeRequest& request) {
    return request.whole_machine ? smallest_whole(state, cluster, request) : amount_of(request);
  };
  std::optional<QuotaLack> lack;
  if (cluster.state == ClusterState::Queued) {  // all or nothing
    Quota need{0, 0, 1};
    if (missing.head) add(need, size(spec.head));
    for (const WorkerGroup& group : spec.groups)
      if (const auto it = missing.workers.find(group.name); it != missing.workers.end())
        add(need, size(group.request), it->second);
    lack = bounds.lack(need);
    if (lack) missing = {};
    return {std::move(missing), std::move(lack)};
  }
  const auto some = [&](std::uint32_t wanted, const NodeRequest& request) {
    const Quota one = size(request);
    for (std::uint32_t n = 0; n < wanted; ++n) {
      if (auto short_of = bounds.lack(one)) {
        if (!lack) lack = std::move(short_of);
        return n;
      }
      bounds.take(one);
    }
    return wanted;
  };
  for (const WorkerGroup& group : spec.groups) {
    const auto it = missing.workers.find(group.name);
    if (it == missing.workers.end()) continue;
    it->second = some(it->second, group.request);
    if (it->second == 0) missing.workers.erase(it);
  }
  if (missing.spares > 0) missing.spares = some(missing.spares, spec.groups.front().request);
  return {std::move(missing), std::move(lack)};
}

scheduler::Reason reason_of(const QuotaLack& lack) {
  return {"quota",
          {{"resource", lack.resource},
           {"scope", lack.scope},
           {"name", lack.name},
           {"needed", number(lack.resource, lack.needed)},
           {"limit", number(lack.resource, lack.limit)},
           {"held", number(lack.resource, lack.held)}},
          text_of(lack)};
}

}  // namespace

std::string text_of(const QuotaLack& lack) {
  std::string out = "needs " + counted(lack.resource, lack.needed);
  const std::string whose = lack.scope + " " + lack.name;
  if (lack.needed > lack.limit)
    return out + " and the quota of " + whose + " allows " + number(lack.resource, lack.limit) +
           "; ask for less, or have the quota raised";
  return out + " more and " + whose + " holds " + number(lack.resource, lack.held) + " of the " +
         number(lack.resource, lack.limit) + " that its quota allows";
}

Quota amount_of(const Resources& resources, std::int32_t share_milli) {
  if (share_milli > 0) return {0, resources.cpu_milli, 0, share_milli};
  return {resources.gpus, resources.cpu_milli, 0};
}
Quota amount_of(const NodeRequest& request) {
  return amount_of(request.resources, request.gpu_share_milli);
}
Quota amount_of(const Lease& lease) {
  return amount_of(lease.resources, lease.share_milli);
}
std::int64_t gpu_milli_of(const Quota& quota) {
  return quota.gpus * kGpuMilli + quota.gpu_milli;
}
void add(Quota& to, const Quota& more, std::int64_t times) {
  to.gpus += more.gpus * times, to.cpu_milli += more.cpu_milli * times;
  to.clusters += more.clusters * times, to.gpu_milli += more.gpu_milli * times;
}

void QuotaBounds::take(const Quota& more) {
  add(in_project, more);
  add(in_org, more);
}
std::optional<QuotaLack> QuotaBounds::lack(const Quota& more) const {
  for (const Row& row : kRows)
    if (!room_for(row.value(more), row.value(project), row.value(in_project)))
      return QuotaLack{row.resource,    "project",          project_name,
                       row.value(more), row.value(project), row.value(in_project)};
  for (const Row& row : kRows)
    if (!room_for(row.value(more), row.value(org), row.value(in_org)))
      return QuotaLack{row.resource, "organisation", org_name, row.value(more), row.value(org), row.value(in_org)};
  return {};
}

QuotaBounds quota_bounds(const State& state, ProjectId id) {
  QuotaBounds out;
  const auto project = state.projects.find(id);
  if (project == state.projects.end()) return out;
  out.project_name = project->second.name, out.project = project->second.quota;
  if (const auto org = state.orgs.find(project->second.org); org != state.orgs.end())
    out.org_name = org->second.name, out.org = org->second.quota;
  if (!out.any()) return out;
  out.in_project = held_of(state, id), out.in_org = held_of(state, project->second.org);
  return out;
}

Quota held_of(const State& state, ProjectId project) {
  const auto it = state.held_by_project.find(project);
  return it == state.held_by_project.end() ? Quota{} : it->second;
}
Quota held_of(const State& state, OrgId org) {
  const auto it = state.held_by_org.find(org);
  return it == state.held_by_org.end() ? Quota{} : it->second;
}

Quota start_need(const ClusterSpec& spec) {
  Quota need = amount_of(spec.head);
  need.clusters = 1;
  for (const WorkerGroup& group : spec.groups) {
    add(need, amount_of(group.request), group.min);
  }
  return need;
}

Status startable(const State& state, ProjectId project, const ClusterSpec& spec, const std::string& field) {
  QuotaBounds bounds = quota_bounds(state, project);
  bounds.in_project = bounds.in_org = {};
  const auto lack = bounds.lack(start_need(spec));
  if (!lack) return {};
  return error(Code::FailedPrecondition, "quota_exceeded: the cluster " + text_of(*lack), field);
}

bool counts_as_cluster(ClusterState state) {
  return state == ClusterState::Starting || state == ClusterState::Running;
}

void hold(State& state, ProjectId project, const Quota& amount, bool more) {
  const auto change_in = [&](auto& index, auto id) {
    const auto it = index.try_emplace(id).first;
    add(it->second, amount, more ? 1 : -1);
    if (it->second == Quota{}) index.erase(it);
  };
  change_in(state.held_by_project, project);
  if (const auto it = state.projects.find(project); it != state.projects.end())
    change_in(state.held_by_org, it->second.org);
}

void note_limited(State& state, ProjectId project) {
  if (quota_bounds(state, project).any())
    state.limited_projects.insert(project);
  else
    state.limited_projects.erase(project);
}

std::vector<ClusterId> living_clusters(const State& state, ProjectId project) {
  std::vector<ClusterId> out;
  for (auto it = state.cluster_by_name.lower_bound({project, ""});
       it != state.cluster_by_name.end() && it->first.first == project; ++it)
    out.push_back(it->second);
  return out;
}

std::vector<ProjectId> projects_of(const State& state, OrgId org) {
  std::vector<ProjectId> out;
  for (auto it = state.project_by_name.lower_bound({org, ""});
       it != state.project_by_name.end() && it->first.first == org; ++it)
    out.push_back(it->second);
  return out;
}

bool takes_whole_machines(const ClusterSpec& spec) {
  return spec.head.whole_machine || std::any_of(spec.groups.begin(), spec.groups.end(),
                                                [](const WorkerGroup& group) { return group.request.whole_machine; });
}

std::vector<ClusterId> sharing_quota(const State& state, ProjectId id) {
  const QuotaBounds bounds = quota_bounds(state, id);
  if (!bounds.any()) return {};
  if (bounds.org == Quota{}) return living_clusters(state, id);
  std::vector<ClusterId> out;
  for (const ProjectId project : projects_of(state, state.projects.find(id)->second.org)) {
    const auto some = living_clusters(state, project);
    out.insert(out.end(), some.begin(), some.end());
  }
  return out;
}

Missing within_quota(const State& state, const Cluster& cluster, Missing missing) {
  return allowed(state, cluster, std::move(missing)).first;
}

std::optional<scheduler::Reason> quota_wait(const State& state, const Cluster& cluster) {
  const auto [now, lack] =
      allowed(state, cluster, missing_of(state, cluster, [&](NodeId node) { return state.find_node(node); }));
  if (!lack || !now.none()) return {};
  return reason_of(*lack);
}

std::vector<QuotaWait> quota_waits(const State& state) {
  std::vector<QuotaWait> out;
  for (const ProjectId project : state.limited_projects)
    for (const ClusterId id : living_clusters(state, project)) {
      const Cluster* cluster = state.find_cluster(id);
      if (cluster == nullptr) continue;
      if (auto reason = quota_wait(state, *cluster)) out.push_back({id, std::move(*reason)});
    }
  return out;
}

}  // namespace muster::control
