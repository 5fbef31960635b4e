#include <algorithm>

#include "control/core.h"
#include "control/images.h"
#include "control/life.h"
#include "control/mutants.h"
#include "model/image_name.h"
#include "model/node_labels.h"
#include "model/workload_identity.h"

namespace muster::control {
namespace {

std::string_view tier_name(TrustTier tier) {
  switch (tier) {
    case TrustTier::Community:
      return "community";
    case TrustTier::Verified:
      return "verified";
    case TrustTier::Platform:
      return "platform";
  }
  return "community";
}

std::vector<RosterEntry> roster_of(const State& state, const Cluster& cluster) {
  std::vector<RosterEntry> roster;
  for (const SlotId id : cluster.slots) {
    const Slot* slot = state.find_slot(id);
    const Lease* lease = slot == nullptr ? nullptr : state.find_lease(slot->lease);
    const Node* node = lease == nullptr ? nullptr : state.find_node(lease->node);
    if (node == nullptr || !slot->in_roster) continue;
    roster.push_back({slot->id, slot->role, slot->address, node->id, slot->overlay_key, slot->overlay_signature,
                      node->device_key, lease->epoch, node->facts.lan});
  }
  return roster;
}

std::vector<JobOrder> orders_of(const State& state, ClusterId cluster) {
  std::vector<JobOrder> orders;
  for (auto it = state.active_jobs.lower_bound({cluster, JobId{}});
       it != state.active_jobs.end() && it->first == cluster; ++it) {
    const Job* job = state.find_job(it->second);
    if (job == nullptr) continue;
    orders.push_back({job->id, job->attempt, job->spec.entrypoint, job->spec.runtime_env_json,
                      job->spec.working_dir_blob, job->state == JobState::Stopping, job->spec.metadata,
                      job->spec.driver_json});
  }
  return orders;
}

void fill_role(Assignment& a, const Cluster& cluster, const Slot& slot) {
  const ClusterSpec& spec = cluster.spec;
  a.env = spec.env;
  const NodeRequest* request = &spec.head;
  if (slot.role == SlotRole::Head) {
    a.setup_commands = spec.head_setup_commands;
    a.setup_commands.insert(a.setup_commands.end(), spec.setup_commands.begin(), spec.setup_commands.end());
  } else {
    a.setup_commands = spec.setup_commands;
    if (const WorkerGroup* group = find_group(spec, slot.group)) {
      request = &group->request;
      a.setup_commands.insert(a.setup_commands.end(), group->setup_commands.begin(), group->setup_commands.end());
      for (const auto& [name, value] : group->env) a.env[name] = value;
    }
  }
  a.ray_labels = request->labels;
}

Assignment assignment_of(const State& state, const Node& node, const Lease& lease) {
  Assignment a;
  a.lease = lease.id, a.epoch = lease.epoch, a.cluster = lease.cluster, a.slot = lease.slot, a.want = lease.want;
  a.resources = lease.resources, a.devices = lease.devices, a.gpu_share_milli = lease.share_milli;
  a.prefix_bits = kPrefixBits, a.head_address = kHeadAddress;
  const Cluster* cluster = state.find_cluster(lease.cluster);
  const Slot* slot = state.find_slot(lease.slot);
  if (cluster == nullptr || slot == nullptr) {  // nothing left that it could work for
    a.want = LeaseWant::Stop;
    return a;
  }
  a.role = slot->role, a.group = slot->group, a.address = slot->address;
  a.cluster_name = cluster->spec.name, a.runtime = cluster->spec.runtime;
  // What the first member found behind the name runs everywhere, also when the name has moved on since.
  a.image = image_pinned(cluster->probe->digest) ? cluster->probe->digest : cluster->spec.image;
  a.image_asked = cluster->spec.image;
  a.roster_epoch = cluster->roster_epoch;
  a.files = cluster->spec.files, a.egress = cluster->spec.egress, a.shm_bytes = cluster->spec.shm_bytes,
  a.nofile = cluster->spec.nofile;
  fill_role(a, *cluster, *slot);
  a.ray_labels["muster.io/node-id"] = node.id.str();
  a.ray_labels["muster.io/region"] = region_of(node);
  a.ray_labels["muster.io/tier"] = std::string(tier_name(node.tier));
  if (lease.want != LeaseWant::Stop) {
    a.roster = roster_of(state, *cluster);
    a.image_policies = image_policies(state, cluster->project);
    if (!a.image_policies.empty()) a.must_understand.push_back("image_policy");
    if (slot->role == SlotRole::Head) a.jobs = orders_of(state, cluster->id);
  }
  if (a.egress) a.must_understand.push_back("egress");
  if (a.gpu_share_milli > 0) a.must_understand.push_back("gpu_share");
  if (a.env.contains(std::string(kIdentityAudienceEnv))) a.must_understand.push_back("identity");
  if (slot->role == SlotRole::Spare) a.must_understand.push_back("standby");
  return a;
}

}  // namespace

std::vector<Assignment> desired_for(const State& state, NodeId id) {
  std::vector<Assignment> out;
  const Node* node = state.find_node(id);
  if (node == nullptr) return out;
  if (MUSTER_MUTANT(mutants::kEndedLeaseInDesired)) {
    for (const auto& [lease_id, lease] : state.leases)
      if (lease.node == id) out.push_back(assignment_of(state, *node, lease)), out.back().want = LeaseWant::Run;
    return out;
  }
  for (const LeaseId lease : state.live_leases(id))
    out.push_back(assignment_of(state, *node, *state.find_lease(lease)));
  return out;
}

}  // namespace muster::control
