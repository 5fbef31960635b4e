// Clusters as tenants ask for them.
#include <algorithm>

#include "control/decide.h"
#include "control/images.h"
#include "control/terms.h"
#include "model/validate.h"

namespace muster::control {
namespace {

using access::Kind;
using access::Verb;

constexpr std::size_t kClustersMax = 2'000'000;

Error fixed(const std::string& field, const std::string& name) {
  return error(
      Code::FailedPrecondition,
      field +
          " of a living cluster cannot change (only min, max, max_workers, spares, idle_timeout, max_lifetime, "
          "priority, max_price, budget, may_end_early, pair_mbps and replace_slow); stop " +
          name + " and start it again, or use another name",
      field);
}

Status changeable(const ClusterSpec& old, const ClusterSpec& now, const std::string& field) {
  const std::string& n = old.name;
  if (old.name != now.name) return fixed(field + ".name", n);
  if (old.image != now.image) return fixed(field + ".image", n);
  if (old.runtime != now.runtime) return fixed(field + ".runtime", n);
  if (old.arch != now.arch) return fixed(field + ".arch", n);
  if (old.pool != now.pool) return fixed(field + ".pool", n);
  if (old.head != now.head) return fixed(field + ".head", n);
  if (old.env != now.env) return fixed(field + ".env", n);
  if (old.files != now.files) return fixed(field + ".files", n);
  if (old.egress != now.egress) return fixed(field + ".egress", n);
  if (old.setup_commands != now.setup_commands) return fixed(field + ".setup_commands", n);
  if (old.head_setup_commands != now.head_setup_commands) return fixed(field + ".head_setup_commands", n);
  if (old.shm_bytes != now.shm_bytes) return fixed(field + ".shm_bytes", n);
  if (old.nofile != now.nofile) return fixed(field + ".nofile", n);
  if (old.tier != now.tier) return fixed(field + ".tier", n);
  if (old.policy != now.policy) return fixed(field + ".policy", n);
  if (old.min_trust != now.min_trust) return fixed(field + ".min_trust", n);
  if (!old.currency.empty() && !now.currency.empty() && old.currency != now.currency)
    return fixed(field + ".currency", n);
  if (old.groups.size() != now.groups.size()) return fixed(field + ".groups", n);
  for (std::size_t i = 0; i < old.groups.size(); ++i) {
    WorkerGroup same = now.groups[i];
    same.min = old.groups[i].min, same.max = old.groups[i].max;
    if (same != old.groups[i]) return fixed(field + ".groups." + std::to_string(i), n);
  }
  return {};
}

// How many workers each group keeps under a changed spec: inside its own bounds, and together inside max_workers, where
// the last groups give first.
std::map<std::string, std::uint32_t> wanted_after(const Cluster& cluster, const ClusterSpec& spec) {
  std::map<std::string, std::uint32_t> wanted;
  std::uint32_t all = 0;
  for (const WorkerGroup& group : spec.groups) {
    const auto it = cluster.wanted.find(group.name);
    const std::uint32_t now = it == cluster.wanted.end() ? group.min : it->second;
    wanted[group.name] = cluster.state == ClusterState::Queued ? group.min : std::clamp(now, group.min, group.max);
    all += wanted[group.name];
  }
  for (auto group = spec.groups.rbegin(); group != spec.groups.rend() && spec.max_workers != 0; ++group) {
    if (all <= spec.max_workers) break;
    std::uint32_t& has = wanted[group->name];
    const std::uint32_t give = std::min(all - spec.max_workers, has - group->min);
    has -= give, all -= give;
  }
  return wanted;
}

}  // namespace

OrgId org_of(const State& state, ProjectId id) {
  const auto it = state.projects.find(id);
  return it == state.projects.end() ? OrgId{} : it->second.org;
}

Status resolve_pool(const State& state, ClusterSpec& spec, const std::string& field) {
  const auto pool = parse_pool(spec.pool);
  if (!pool || pool->org.empty()) return {};
  const auto id = OrgId::parse(pool->org);
  const auto named = state.org_by_name.find(pool->org);
  const bool known = (id && state.orgs.contains(*id)) || named != state.org_by_name.end();
  if (!known)
    return error(Code::InvalidArgument,
                 field + ".pool names the organisation " + pool->org +
                     ", which does not exist; `pool:NAME` is a pool of the platform",
                 field + ".pool");
  const OrgId owner = id && state.orgs.contains(*id) ? *id : named->second;
  spec.pool = "pool:" + (owner == kPlatformOrg ? "" : owner.str() + "/") + pool->name;
  return {};
}

Status attainable(const State& state, OrgId tenant, const ClusterSpec& spec, const std::string& field) {
  std::vector<std::pair<const NodeRequest*, std::string>> requests{{&spec.head, field + ".head"}};
  for (std::size_t i = 0; i < spec.groups.size(); ++i)
    requests.emplace_back(&spec.groups[i].request, field + ".groups." + std::to_string(i) + ".request");
  for (const auto& [request, at] : requests)
    for (const NodeId id : request->pinned) {
      const Node* node = state.find_node(id);
      if (node == nullptr || node->supplier != tenant)
        return error(Code::InvalidArgument,
                     at + ".pinned names " + id.str() +
                         ", which is not a machine of your organisation; enrol it first or leave it out",
                     at + ".pinned");
    }
  if (!spec.egress) return {};
  const auto grants = [&](const auto& entry) {
    const Node& node = entry.second;
    return node.facts.egress_allowed && node.state != NodeState::Revoked && node.state != NodeState::Disabled &&
           node.state != NodeState::Quarantined && in_pool(node, spec.pool, tenant);
  };
  if (std::any_of(state.nodes.begin(), state.nodes.end(), grants)) return {};
  return error(
      Code::FailedPrecondition,
      "egress_not_granted: no machine of the pool " + spec.pool +
          " lets containers reach the internet; ask a supplier to allow egress, or put what you need into the image",
      field + ".egress");
}

Result<Cluster> new_cluster(const Asking& a, const Project& project, ClusterSpec spec, const std::string& field) {
  TRY_VOID(validate(spec, field));
  TRY_VOID(resolve_pool(a.base, spec, field));
  if (a.base.cluster_by_name.contains({project.id, spec.name}))
    return error(Code::AlreadyExists,
                 "this project has a living cluster named " + spec.name + "; change it, stop it or choose another name",
                 field + ".name");
  if (a.base.clusters.size() >= kClustersMax)
    return error(Code::ResourceExhausted,
                 "the platform holds two million clusters, which is its limit; try again later");
  TRY_VOID(attainable(a.base, project.org, spec, field));
  TRY_VOID(startable(a.base, project.id, spec, field));
  TRY_VOID(image_permitted(a.base, project.id, spec.image, field));
  Cluster cluster;
  cluster.id = ClusterId{a.base.last.cluster + 1};
  cluster.project = project.id, cluster.owner = a.actor.subject.principal, cluster.spec = std::move(spec),
  cluster.created_at = a.wall;
  for (const WorkerGroup& group : cluster.spec.groups) cluster.wanted[group.name] = group.min;
  return cluster;
}

void raise_format_for(const Asking& a, const ClusterSpec& spec, Decision& decision) {
  const bool newer = spec.policy != Policy::Balanced || spec.min_trust != TrustTier::Community;
  const bool traffic = spec.head.resources.traffic.any() ||
                       std::any_of(spec.groups.begin(), spec.groups.end(),
                                   [](const WorkerGroup& g) { return g.request.resources.traffic.any(); });
  const bool shares =
      spec.head.gpu_share_milli > 0 || std::any_of(spec.groups.begin(), spec.groups.end(),
                                                   [](const WorkerGroup& g) { return g.request.gpu_share_milli > 0; });
  const std::uint32_t needed = shares                                         ? kGpuFormat
                               : spec.pair_kbps > 0                           ? kPairFormat
                               : traffic                                      ? kTrafficFormat
                               : !spec.currency.empty() || spec.may_end_early ? kOfferFormat
                               : newer                                        ? kShareFormat
                                                                              : 1;
  if (a.base.format_version < needed) decision.events.insert(decision.events.begin(), FormatRaised{needed});
}

Decided decide(const Asking& a, const CreateCluster& c) {
  TRY_VOID(a.may(Verb::Create, {.kind = Kind::Cluster, .owner = org_of(a.base, c.project)}));
  const auto project = a.base.projects.find(c.project);
  if (project == a.base.projects.end()) return missing("project", c.project.str());
  Cluster cluster = TRY(new_cluster(a, project->second, c.spec, "spec"));
  const std::string id = cluster.id.str();
  Decision decision = one(ClusterCreated{std::move(cluster)}, id);
  raise_format_for(a, c.spec, decision);
  return decision;
}

Decided decide(const Asking& a, const UpdateCluster& c) {
  const Cluster* cluster = a.base.find_cluster(c.cluster);
  TRY_VOID(a.may(Verb::Update,
                 cluster == nullptr ? access::Object{.kind = Kind::Cluster} : access_object(a.base, *cluster)));
  if (cluster == nullptr) return missing("cluster", c.cluster.str());
  if (terminal(cluster->state) || cluster->state == ClusterState::Stopping)
    return error(Code::FailedPrecondition, "the cluster is stopping or has ended; start a new one");
  if (c.expected_generation != 0 && c.expected_generation != cluster->generation)
    return error(Code::Aborted,
                 "the cluster changed meanwhile (generation " + std::to_string(cluster->generation) + ", not " +
                     std::to_string(c.expected_generation) + "); look at it again, then repeat",
                 "expected_generation");
  TRY_VOID(validate(c.spec));
  ClusterSpec spec = c.spec;
  TRY_VOID(resolve_pool(a.base, spec, "spec"));
  TRY_VOID(changeable(cluster->spec, spec, "spec"));
  if (cluster->spec == spec) return Decision{{}, {c.cluster.str()}};
  const Quota before = start_need(cluster->spec), after = start_need(spec);
  if (gpu_milli_of(after) > gpu_milli_of(before) || after.cpu_milli > before.cpu_milli)
    TRY_VOID(startable(a.base, cluster->project, spec, "spec"));
  Draft d(a.base, a.actor, a.wall);
  d.pull(c.cluster);
  Cluster changed = *cluster;
  changed.spec = spec;
  const bool runs = cluster->state == ClusterState::Running;
  d.emit(ClusterUpdated{c.cluster, spec, cluster->generation + 1, runs ? end_of_life(changed, a.wall) : WallTime{}});
  for (const auto& [group, then] : wanted_after(*cluster, spec)) {
    const auto it = cluster->wanted.find(group);
    if (it == cluster->wanted.end() || it->second != then) d.emit(ClusterWanted{c.cluster, group, then});
  }
  if (watch_budget(d, c.cluster))
    stop_cluster(d, c.cluster, std::string(kBudget));
  else
    settle(d, c.cluster);
  Decision decision = done(d, c.cluster.str());
  raise_format_for(a, spec, decision);
  return decision;
}

Decided decide(const Asking& a, const StopCluster& c) {
  const Cluster* cluster = a.base.find_cluster(c.cluster);
  TRY_VOID(a.may(Verb::Delete,
                 cluster == nullptr ? access::Object{.kind = Kind::Cluster} : access_object(a.base, *cluster)));
  if (cluster == nullptr) return missing("cluster", c.cluster.str());
  Draft d(a.base, a.actor, a.wall);
  d.pull(c.cluster);
  stop_cluster(d, c.cluster, c.reason.empty() ? "stopped_by_user" : c.reason.substr(0, 200));
  return done(d, c.cluster.str());
}

}  // namespace muster::control
