#include "control/state.h"

#include <algorithm>

#include "control/gpus.h"
#include "control/mutants.h"
#include "control/quota.h"
#include "model/node_labels.h"

namespace muster::control {
namespace {

template <class Map, class Key>
auto* find_in(const Map& map, const Key& key) {
  const auto it = map.find(key);
  return it == map.end() ? nullptr : &it->second;
}

}  // namespace

const Node* State::find_node(NodeId id) const {
  return find_in(nodes, id);
}
const Cluster* State::find_cluster(ClusterId id) const {
  return find_in(clusters, id);
}
const Slot* State::find_slot(SlotId id) const {
  return find_in(slots, id);
}
const Lease* State::find_lease(LeaseId id) const {
  return find_in(leases, id);
}
const Job* State::find_job(JobId id) const {
  return find_in(jobs, id);
}

const ApiToken* State::find_api_token(const Bytes& hash) const {
  const auto* id = find_in(api_token_by_hash, hash);
  return id == nullptr ? nullptr : find_in(api_tokens, *id);
}

const Slot* State::find_head(const Cluster& cluster) const {
  for (const SlotId id : cluster.slots)
    if (const Slot* slot = find_slot(id); slot != nullptr && slot->role == SlotRole::Head) return slot;
  return nullptr;
}

std::vector<LeaseId> State::live_leases(NodeId node) const {
  std::vector<LeaseId> out;
  for (auto it = leases_by_node.lower_bound({node, LeaseId{}}); it != leases_by_node.end() && it->first == node; ++it)
    out.push_back(it->second);
  return out;
}

std::vector<LeaseId> State::cluster_leases(ClusterId cluster) const {
  std::vector<LeaseId> out;
  for (auto it = leases_by_cluster.lower_bound({cluster, LeaseId{}});
       it != leases_by_cluster.end() && it->first == cluster; ++it)
    out.push_back(it->second);
  return out;
}

bool terminal(ClusterState state) {
  return state == ClusterState::Stopped || state == ClusterState::Failed;
}
bool terminal(JobState state) {
  return state == JobState::Succeeded || state == JobState::Failed || state == JobState::Stopped;
}

void rebuild_indexes(State& s) {
  s.org_by_name.clear(), s.project_by_name.clear(), s.principal_by_name.clear(), s.service_by_name.clear(),
      s.services_by_org.clear(), s.cluster_by_name.clear(), s.api_token_by_hash.clear();
  s.join_token_by_hash.clear(), s.node_by_key.clear(), s.leases_by_node.clear(), s.leases_by_cluster.clear(),
      s.active_jobs.clear();
  s.queued_jobs.clear(), s.timers_due.clear(), s.requests_by_order.clear();
  s.held_by_project.clear(), s.held_by_org.clear(), s.limited_projects.clear();
  for (const auto& [id, org] : s.orgs) s.org_by_name[org.name] = id;
  for (const auto& [id, project] : s.projects) {
    s.project_by_name[{project.org, project.name}] = id;
    note_limited(s, id);
  }
  for (const auto& [id, principal] : s.principals) {
    if (!principal.service) s.principal_by_name[principal.name] = id;
    if (principal.service) s.services_by_org.emplace(principal.org, id);
    if (principal.service && !principal.disabled) s.service_by_name[{principal.org, principal.name}] = id;
  }
  s.grants_to.clear(), s.grants_to_org.clear(), s.grants_of_org.clear();
  for (const auto& [id, grant] : s.grants) index_grant(s, grant);
  for (const auto& [id, token] : s.api_tokens) s.api_token_by_hash[token.hash] = id;
  for (const auto& [id, token] : s.join_tokens) s.join_token_by_hash[token.hash] = id;
  s.nodes_by_site.clear();
  for (const auto& [id, node] : s.nodes) {
    s.node_by_key[node.device_key] = id;
    if (std::string site = label_of(node, "site").value_or(""); !site.empty())
      s.nodes_by_site[{node.supplier, std::move(site)}].insert(id);
  }
  for (const auto& [id, cluster] : s.clusters) {
    if (!terminal(cluster.state)) s.cluster_by_name[{cluster.project, cluster.spec.name}] = id;
    if (counts_as_cluster(cluster.state)) hold(s, cluster.project, {0, 0, 1}, true);
  }
  for (const auto& [id, lease] : s.leases) {
    s.leases_by_cluster.emplace(lease.cluster, id);
    if (lease.end != LeaseEnd::None) continue;
    s.leases_by_node.emplace(lease.node, id);
    if (const Cluster* cluster = s.find_cluster(lease.cluster)) hold(s, cluster->project, amount_of(lease), true);
  }
  for (const auto& [id, job] : s.jobs) {
    if (terminal(job.state)) continue;
    (job.state == JobState::Queued ? s.queued_jobs : s.active_jobs).emplace(job.cluster, id);
  }
  for (const auto& [key, at] : s.timers) s.timers_due.emplace(at, key);
  for (const auto& [key, request] : s.requests) s.requests_by_order[request.order] = key;
}

Resources free_resources(const State& state, const Node& node) {
  Resources free = node.facts.capacity;
  for (const LeaseId id : state.live_leases(node.id)) {
    const Lease* lease = state.find_lease(id);
    if (lease == nullptr || !holds_devices(*lease)) continue;
    free.cpu_milli -= lease->resources.cpu_milli;
    free.memory_bytes -= lease->resources.memory_bytes;
    if (lease->share_milli == 0) free.gpus -= lease->resources.gpus;
    free.disk_bytes -= lease->resources.disk_bytes;
    free.object_store_bytes -= lease->resources.object_store_bytes;
    for (const auto& [name, amount] : lease->resources.custom_milli)
      if (const auto it = free.custom_milli.find(name); it != free.custom_milli.end()) it->second -= amount;
  }
  free.gpus -= gpus_in_shares(state, node);
  for (auto* amount : {&free.cpu_milli, &free.memory_bytes, &free.gpus, &free.disk_bytes, &free.object_store_bytes})
    *amount = std::max<std::int64_t>(*amount, 0);
  return free;
}

std::vector<std::string> free_devices(const State& state, const Node& node) {
  const auto held = held_devices(state, node.id);
  std::vector<std::string> free;
  for (const Device& device : node.facts.devices)
    if (device.sharing != GpuSharing::Mig && !held.contains(device.uuid)) free.push_back(device.uuid);
  return free;
}

bool schedulable(const Node& node) {
  return node.state == NodeState::Online && !node.draining && held_for(node).empty();
}

std::string failure_domain(const Node& node) {
  const std::string region = region_of(node);
  return region.empty() ? node.supplier.str() : region;
}

std::vector<NodeId> awaited_nodes(const State& state) {
  constexpr Millis kTogether{30'000};  // the first of them were lost a little before the freeze
  std::vector<NodeId> out;
  for (const auto& [id, node] : state.nodes) {
    const bool heard =
        node.state == NodeState::Online || node.state == NodeState::Suspect || node.state == NodeState::Draining;
    const bool with_the_others =
        state.frozen && node.state == NodeState::Lost && node.state_since + kTogether >= state.frozen_since;
    // Of a disabled machine the journal does not say whether it is heard. It counted when the freeze began, so it is
    // awaited too: a freeze that lasts a little longer is better than one that ends under the silence.
    const bool unknown = state.frozen && node.state == NodeState::Disabled;
    if (heard || with_the_others || unknown) out.push_back(id);
  }
  return out;
}

std::string boot_of_leases(const State& state, NodeId id) {
  const Node* node = state.find_node(id);
  return node == nullptr || state.live_leases(id).empty() ? std::string() : node->facts.boot_id;
}

std::vector<LeaseId> renewable_leases(const State& state, NodeId node) {
  std::vector<LeaseId> out = state.live_leases(node);
  std::erase_if(out, [&](LeaseId id) { return state.leases.at(id).want == LeaseWant::Stop; });
  return out;
}

bool held_by(const State& state, NodeId node, const ObservedLease& seen) {
  const Lease* lease = state.find_lease(seen.lease);
  return lease != nullptr && lease->end == LeaseEnd::None && lease->node == node && lease->epoch == seen.epoch;
}

std::vector<LeaseId> roster_leases(const State& state, const Cluster& cluster) {
  std::vector<LeaseId> out;
  for (const SlotId id : cluster.slots)
    if (const Slot* slot = state.find_slot(id); slot != nullptr && slot->in_roster) out.push_back(slot->lease);
  return out;
}

void index_grant(State& s, const Grant& grant) {
  if (grant.to) s.grants_to.emplace(grant.to, grant.id);
  if (grant.to_org) s.grants_to_org.emplace(grant.to_org, grant.id);
  s.grants_of_org.emplace(grant.owner, grant.id);
}

std::vector<access::Granted> grants_for(const State& state, PrincipalId who, OrgId org, WallTime wall) {
  std::vector<access::Granted> out;
  const auto add = [&](const auto& index, auto key) {
    if (!key) return;
    for (auto it = index.lower_bound({key, GrantId{}}); it != index.end() && it->first == key; ++it) {
      const Grant& grant = state.grants.at(it->second);
      if (grant.until > wall) out.push_back({grant.id, grant.owner, grant.project, grant.cluster, grant.right});
    }
  };
  if (state.grants.empty()) return out;
  add(state.grants_to, who);
  add(state.grants_to_org, org);
  return out;
}

void bring_up_to_date(access::Subject& subject, const State& state, WallTime wall) {
  if (subject.node) return;
  if (const auto found = state.principals.find(subject.principal); found != state.principals.end()) {
    const Principal& is = found->second;
    subject.role = is.disabled ? Role::None : is.role;
    subject.org = is.org, subject.service = subject.service || is.service;
  }
  const auto org = state.orgs.find(subject.org);
  subject.founding = org != state.orgs.end() && !org->second.administered;
  subject.grants = grants_for(state, subject.principal, subject.org, wall);
}

access::Object access_object(const State& state, const Cluster& cluster) {
  const auto project = state.projects.find(cluster.project);
  return {.kind = access::Kind::Cluster,
          .owner = project == state.projects.end() ? OrgId{} : project->second.org,
          .principal = cluster.owner,
          .project = cluster.project,
          .cluster = cluster.id};
}
access::Object access_object(const State& state, const Job& job) {
  const auto project = state.projects.find(job.project);
  return {.kind = access::Kind::Job,
          .owner = project == state.projects.end() ? OrgId{} : project->second.org,
          .principal = job.owner,
          .project = job.project,
          .cluster = job.cluster};
}

std::vector<TokenId> logins_of(const State& state, PrincipalId owner, TokenId keep, WallTime wall) {
  std::vector<TokenId> out;
  for (const auto& [id, token] : state.api_tokens) {
    const bool over = token.expires.ms != 0 && token.expires <= wall;
    if (token.owner == owner && id != keep && !token.revoked && token.scopes.empty() && !over) out.push_back(id);
  }
  return out;
}

}  // namespace muster::control
