// The only mutator. Every arm is total: an event about an object that is not there changes nothing, because a Draft
// folds events into a partial state and because a damaged journal must not crash a reader.
#include <algorithm>

#include "control/core.h"
#include "control/images.h"
#include "control/life.h"
#include "control/mutants.h"
#include "control/quota.h"
#include "control/slow.h"
#include "control/terms.h"
#include "model/image_name.h"
#include "model/node_labels.h"
#include "model/offer.h"

namespace muster::control {
namespace {

template <class Map, class Key>
auto* find_in(Map& map, const Key& key) {
  const auto it = map.find(key);
  return it == map.end() ? nullptr : &it->second;
}

void stands_at(State& s, const Node& node, bool there) {  // the index of sites
  std::string site = label_of(node, "site").value_or("");
  if (site.empty()) return;
  const std::pair key(node.supplier, std::move(site));
  if (there)
    s.nodes_by_site[key].insert(node.id);
  else if (const auto at = s.nodes_by_site.find(key); at != s.nodes_by_site.end()) {
    at->second.erase(node.id);
    if (at->second.empty()) s.nodes_by_site.erase(at);
  }
}

void raise(std::uint64_t& counter, std::uint64_t id) {
  counter = std::max(counter, id);
}

void set_timer(State& s, TimerKind kind, std::uint64_t id, std::uint64_t id2, WallTime at) {
  const TimerKey key{kind, id, id2};
  if (const auto it = s.timers.find(key); it != s.timers.end()) {
    s.timers_due.erase({it->second, key});
    s.timers.erase(it);
  }
  if (at.ms == 0) return;
  s.timers[key] = at;
  s.timers_due.emplace(at, key);
}

// What desired_for returns for this node has changed.
void touch(State& s, NodeId id) {
  if (Node* node = find_in(s.nodes, id)) ++node->revision;
}

void touch_members(State& s, ClusterId cluster) {
  if (MUSTER_MUTANT(mutants::kForgetRevision)) return;
  for (auto it = s.leases_by_cluster.lower_bound({cluster, LeaseId{}});
       it != s.leases_by_cluster.end() && it->first == cluster; ++it)
    if (const Lease* lease = find_in(s.leases, it->second); lease != nullptr && lease->end == LeaseEnd::None)
      touch(s, lease->node);
}

void touch_head(State& s, ClusterId id) {
  const Cluster* cluster = find_in(s.clusters, id);
  const Slot* head = cluster == nullptr ? nullptr : s.find_head(*cluster);
  if (const Lease* lease = head == nullptr ? nullptr : find_in(s.leases, head->lease)) touch(s, lease->node);
}

struct Apply {
  State& s;
  const EntryContext& context;

  void operator()(const OrgCreated& e) {
    raise(s.last.org, e.org.id.value);
    s.org_by_name[e.org.name] = e.org.id;
    s.orgs[e.org.id] = e.org;
  }
  void operator()(const ProjectCreated& e) {
    raise(s.last.project, e.project.id.value);
    s.project_by_name[{e.project.org, e.project.name}] = e.project.id;
    s.projects[e.project.id] = e.project;
    note_limited(s, e.project.id);
  }
  void operator()(const PrincipalCreated& e) {
    raise(s.last.principal, e.principal.id.value);
    if (e.principal.service) {
      s.service_by_name[{e.principal.org, e.principal.name}] = e.principal.id;
      s.services_by_org.emplace(e.principal.org, e.principal.id);
    } else {
      s.principal_by_name[e.principal.name] = e.principal.id;
    }
    s.principals[e.principal.id] = e.principal;
    note_administrator(e.principal);
  }
  void operator()(const PrincipalChanged& e) {
    Principal* principal = find_in(s.principals, e.principal);
    if (principal == nullptr) return;
    principal->role = e.role, principal->org = e.org;
    note_administrator(*principal);
  }
  void note_administrator(const Principal& principal) {
    if (principal.role != Role::TenantAdmin || principal.service) return;
    if (Org* org = find_in(s.orgs, principal.org)) org->administered = true;
  }
  void operator()(const PrincipalDisabled& e) {
    Principal* principal = find_in(s.principals, e.principal);
    if (principal == nullptr) return;
    principal->disabled = true;
    if (principal->service) s.service_by_name.erase({principal->org, principal->name});
  }
  void operator()(const ApiTokenCreated& e) {
    raise(s.last.token, e.token.id.value);
    s.api_token_by_hash[e.token.hash] = e.token.id;
    s.api_tokens[e.token.id] = e.token;
    set_timer(s, TimerKind::Token, e.token.id.value, 0, e.token.expires);
  }
  void operator()(const ApiTokenRevoked& e) {
    if (ApiToken* token = find_in(s.api_tokens, e.token)) token->revoked = true;
  }
  void operator()(const AccessGranted& e) {
    raise(s.last.grant, e.grant.id.value);
    s.grants[e.grant.id] = e.grant;
    index_grant(s, e.grant);
    set_timer(s, TimerKind::Grant, e.grant.id.value, 0, e.grant.until);
  }
  void operator()(const GrantEnded& e) {
    s.grants.erase(e.grant.id);
    s.grants_to.erase({e.grant.to, e.grant.id});
    s.grants_to_org.erase({e.grant.to_org, e.grant.id});
    s.grants_of_org.erase({e.grant.owner, e.grant.id});
    set_timer(s, TimerKind::Grant, e.grant.id.value, 0, {});
  }
  void operator()(const LoginRenewed& e) {
    if (ApiToken* token = find_in(s.api_tokens, e.token)) token->refresh = e.refresh;
  }
  void operator()(const RefreshReused& e) {
    if (ApiToken* token = find_in(s.api_tokens, e.token)) token->revoked = true;
  }
  void operator()(const JoinTokenCreated& e) {
    raise(s.last.token, e.token.id.value);
    s.join_token_by_hash[e.token.hash] = e.token.id;
    s.join_tokens[e.token.id] = e.token;
    set_timer(s, TimerKind::Token, e.token.id.value, 0, e.token.expires);
  }
  void operator()(const JoinTokenRevoked& e) {
    if (JoinToken* token = find_in(s.join_tokens, e.token)) token->revoked = true;
  }

  void operator()(const NodeEnrolled& e) {
    raise(s.last.node, e.node.id.value);
    s.node_by_key[e.node.device_key] = e.node.id;
    s.nodes[e.node.id] = e.node;
    stands_at(s, e.node, true);
    if (JoinToken* token = find_in(s.join_tokens, e.token)) token->used_by = e.node.id;
  }
  void operator()(const NodeFactsChanged& e) {
    Node* node = find_in(s.nodes, e.node);
    if (node == nullptr) return;
    const bool reachable_elsewhere = node->facts.lan != e.facts.lan;
    const bool labelled = node->facts.region != e.facts.region || node->facts.labels != e.facts.labels;
    if (labelled) stands_at(s, *node, false);
    node->facts = e.facts;
    if (labelled) stands_at(s, *node, true);
    if (labelled && !reachable_elsewhere) touch(s, e.node);
    if (!reachable_elsewhere) return;
    std::set<ClusterId> clusters;
    for (const LeaseId id : s.live_leases(e.node))
      if (const Lease* lease = find_in(s.leases, id)) clusters.insert(lease->cluster);
    for (const ClusterId id : clusters) touch_members(s, id);
    if (clusters.empty()) touch(s, e.node);
  }
  void operator()(const NodeStateChanged& e) {
    Node* node = find_in(s.nodes, e.node);
    if (node == nullptr) return;
    if (node->state != e.state) node->state_since = context.wall;
    if (e.state == NodeState::Lost && node->state != NodeState::Lost) ++node->failures;
    node->state = e.state;
    node->draining = e.draining;
    // It outlasts a quarantine in between: only who enables or admits the machine lifts it.
    if (e.state == NodeState::Disabled && e.reason == kBarred) node->barred = true;
    if (e.state == NodeState::Admitted) node->barred = false;
  }
  void operator()(const NodeStruck& e) {
    if (Node* node = find_in(s.nodes, e.node))
      node->strikes = e.strikes, node->struck_by = e.by, node->backoff_until = e.until;
  }
  void operator()(const NodeOffered& e) {
    Node* node = find_in(s.nodes, e.node);
    if (node == nullptr) return;
    node->offer = e.offer;
    set_timer(s, TimerKind::Offer, e.node.value, 0, e.deadline);
  }
  void operator()(const NodeTierChanged& e) {
    if (Node* node = find_in(s.nodes, e.node)) {
      node->tier = e.tier;
      touch(s, e.node);
    }
  }
  void operator()(const FreezeSet& e) {
    s.frozen = e.frozen;
    s.freeze_reason = e.reason;
    s.frozen_since = e.frozen ? context.wall : WallTime{};
  }
  void operator()(const BackoffSet& e) {
    s.backoffs[{e.cluster, e.node}] = Backoff{e.failures, e.until};
    set_timer(s, TimerKind::Backoff, e.cluster.value, e.node.value, e.until);
  }
  void operator()(const BackoffEnded& e) {
    if (Backoff* backoff = find_in(s.backoffs, std::pair(e.cluster, e.node))) backoff->until = {};
    set_timer(s, TimerKind::Backoff, e.cluster.value, e.node.value, {});
  }

  void operator()(const ClusterCreated& e) {
    raise(s.last.cluster, e.cluster.id.value);
    s.cluster_by_name[{e.cluster.project, e.cluster.spec.name}] = e.cluster.id;
    s.clusters[e.cluster.id] = e.cluster;
  }
  void operator()(const ClusterUpdated& e) {
    Cluster* cluster = find_in(s.clusters, e.cluster);
    if (cluster == nullptr) return;
    if (cluster->spec.pair_kbps != e.spec.pair_kbps) cluster->slow.clear();  // it was measured by another need
    if (cluster->slow.empty() || !e.spec.replace_slow) cluster->replacing = {};
    cluster->spec = e.spec;
    cluster->generation = e.generation;
    set_timer(s, TimerKind::Cluster, e.cluster.value, 0, e.deadline);
  }
  void operator()(const ClusterStateChanged& e) {
    Cluster* cluster = find_in(s.clusters, e.cluster);
    if (cluster == nullptr) return;
    const bool ends = terminal(e.state) && !terminal(cluster->state);
    if (e.state == ClusterState::Running && cluster->started_at.ms == 0) cluster->started_at = context.wall;
    if (ends) {
      cluster->ended_at = context.wall;
      const auto it = s.cluster_by_name.find({cluster->project, cluster->spec.name});
      if (it != s.cluster_by_name.end() && it->second == e.cluster) s.cluster_by_name.erase(it);
    }
    if (counts_as_cluster(e.state) != counts_as_cluster(cluster->state))
      hold(s, cluster->project, {0, 0, 1}, counts_as_cluster(e.state));
    cluster->state = e.state;
    cluster->reason = e.reason;
    set_timer(s, TimerKind::Cluster, e.cluster.value, 0, e.deadline);
  }
  void operator()(const ClusterWanted& e) {
    if (Cluster* cluster = find_in(s.clusters, e.cluster)) cluster->wanted[e.group] = e.workers;
  }
  void operator()(const CarriedCounted& e) {
    s.carried.erase(s.carried.begin(), s.carried.lower_bound({e.kept_from, {}, {}}));
    CarriedRow& row = s.carried[{e.day, e.node, e.cluster}];
    row.tenant = e.tenant, row.bytes += e.bytes;
  }
  void operator()(const PairJudged& e) {
    Cluster* cluster = find_in(s.clusters, e.cluster);
    if (cluster == nullptr) return;
    const auto at = find_slow(cluster->slow, e.from, e.to);
    const bool known = at != cluster->slow.end() && at->from == e.from && at->to == e.to;
    if (!e.slow) {
      if (known) cluster->slow.erase(at);
    } else if (known) {
      at->kbps = e.kbps;
    } else {
      cluster->slow.insert(at, {e.from, e.to, e.kbps, context.wall});
    }
  }
  void operator()(const ReplacementSought& e) {
    if (Cluster* cluster = find_in(s.clusters, e.cluster))
      cluster->replacing = e.slot, cluster->replaced = e.done, cluster->replace_from = e.next;
  }
  void operator()(const ClusterProbed& e) {
    Cluster* cluster = find_in(s.clusters, e.cluster);
    if (cluster == nullptr) return;
    cluster->probe = e.probe;
    if (!image_pinned(e.probe.digest)) return;
    for (const LeaseId id : s.cluster_leases(e.cluster)) {  // their assignments name the pinned image now
      const Lease* lease = find_in(s.leases, id);
      if (lease != nullptr && lease->end == LeaseEnd::None) touch(s, lease->node);
    }
  }

  void operator()(const LeaseGranted& e) {
    raise(s.last.slot, e.slot.id.value);
    raise(s.last.lease, e.lease.id.value);
    raise(s.last.epoch, e.lease.epoch.counter);
    s.slots[e.slot.id] = e.slot;
    s.leases[e.lease.id] = e.lease;
    s.leases_by_cluster.emplace(e.lease.cluster, e.lease.id);
    s.leases_by_node.emplace(e.lease.node, e.lease.id);
    set_timer(s, TimerKind::Lease, e.lease.id.value, 0, e.lease.leaves_at);
    if (Cluster* cluster = find_in(s.clusters, e.slot.cluster)) {
      if (e.slot.role == SlotRole::Head)
        cluster->slots.insert(cluster->slots.begin(), e.slot.id);
      else
        cluster->slots.push_back(e.slot.id);
      cluster->next_address = std::max(cluster->next_address, e.slot.address - kSubnet + 1);
      hold(s, cluster->project, amount_of(e.lease), true);
    }
    touch(s, e.lease.node);
  }
  void operator()(const SlotKeyed& e) {
    Slot* slot = find_in(s.slots, e.slot);
    if (slot == nullptr) return;
    slot->overlay_key = e.overlay_key;
    slot->overlay_signature = e.overlay_signature;
    slot->in_roster = true;
    set_roster(slot->cluster, e.roster_epoch);
  }
  void operator()(const SlotLeft& e) {
    Slot* slot = find_in(s.slots, e.slot);
    if (slot == nullptr) return;
    const bool keep = MUSTER_MUTANT(mutants::kPromoteInsideRoster) && slot->in_roster;
    slot->in_roster = keep;
    if (Cluster* cluster = find_in(s.clusters, slot->cluster); cluster != nullptr && !keep) {
      std::erase(cluster->slots, e.slot);
      forget_ways(*cluster, e.slot);
    }
    if (Lease* lease = find_in(s.leases, slot->lease); lease != nullptr && lease->end == LeaseEnd::None) {
      if (!MUSTER_MUTANT(mutants::kKeepRemovedLease)) lease->want = LeaseWant::Stop;
      lease->reason = e.reason;
      set_timer(s, TimerKind::Lease, lease->id.value, 0, {});
      touch(s, lease->node);
    }
    set_roster(slot->cluster, e.roster_epoch);
  }
  void operator()(const SlotPromoted& e) {
    Slot* slot = find_in(s.slots, e.slot);
    if (slot == nullptr) return;
    slot->role = SlotRole::Worker;
    slot->group = e.group;
    if (Lease* lease = find_in(s.leases, slot->lease)) {
      lease->want = LeaseWant::Run;
      touch(s, lease->node);
    }
    set_roster(slot->cluster, e.roster_epoch);
  }
  void operator()(const LeaseWantChanged& e) {
    Lease* lease = find_in(s.leases, e.lease);
    if (lease == nullptr) return;
    lease->want = e.want;
    lease->reason = e.reason;
    set_timer(s, TimerKind::Lease, e.lease.value, 0, e.deadline);
    touch(s, lease->node);
  }
  void operator()(const LeaseObserved& e) {
    Lease* lease = find_in(s.leases, e.lease);
    if (lease == nullptr) return;
    lease->phase = e.phase;
    if (lease->reason != kPreempted && lease->reason != kMoved && lease->reason != kOfferEnds &&
        lease->reason != kSlowWays)
      lease->reason = e.reason;  // why it leaves is told until it has
    lease->restarts = e.restarts;
  }
  void operator()(const LeaseEnded& e) {
    Lease* lease = find_in(s.leases, e.lease);
    if (lease == nullptr) return;
    if (Cluster* cluster = find_in(s.clusters, lease->cluster); cluster != nullptr && lease->end == LeaseEnd::None) {
      hold(s, cluster->project, amount_of(*lease), false);
      if (lease->price > 0)
        cluster->spent.change()[lease->currency] += cost_of(lease->price, context.wall - lease->granted_at);
    }
    lease->end = e.end;
    lease->reason = e.reason;
    lease->ended_at = context.wall;
    lease->want = LeaseWant::Stop;
    s.leases_by_node.erase({lease->node, e.lease});
    if (Slot* slot = find_in(s.slots, lease->slot)) {
      slot->in_roster = false;
      if (Cluster* cluster = find_in(s.clusters, lease->cluster)) {
        std::erase(cluster->slots, lease->slot);
        forget_ways(*cluster, lease->slot);
      }
    }
    set_timer(s, TimerKind::Lease, e.lease.value, 0, e.deadline);
    touch(s, lease->node);
  }

  void operator()(const JobCreated& e) {
    raise(s.last.job, e.job.id.value);
    s.jobs[e.job.id] = e.job;
    index_job(e.job);
    if (e.job.state != JobState::Queued) touch_head(s, e.job.cluster);
  }
  void operator()(const JobStateChanged& e) {
    Job* job = find_in(s.jobs, e.job);
    if (job == nullptr) return;
    const bool ordered = job->state != JobState::Queued && !terminal(job->state);
    if (e.state == JobState::Starting || e.state == JobState::Queued) job->exit_code = -1;
    if (e.state == JobState::Running && job->started_at.ms == 0) job->started_at = context.wall;
    if (terminal(e.state)) job->ended_at = context.wall;
    const bool order_changed =
        job->attempt != e.attempt || (job->state == JobState::Stopping) != (e.state == JobState::Stopping);
    job->state = e.state;
    if (job->attempt != e.attempt) job->log_bytes = 0;
    job->attempt = e.attempt;
    job->exit_code = e.exit_code;
    job->reason = e.reason;
    index_job(*job);
    set_timer(s, TimerKind::Job, e.job.value, 0, e.deadline);
    const bool orders = job->state != JobState::Queued && !terminal(job->state);
    if (ordered != orders || (orders && order_changed)) touch_head(s, job->cluster);
  }
  void operator()(const JobLogSet& e) {
    if (Job* job = find_in(s.jobs, e.job); job != nullptr && job->attempt == e.attempt) job->log_bytes = e.log_bytes;
  }

  void operator()(const RequestRecorded& e) {
    const RequestKey key{e.principal, e.request_id};
    if (const RecordedRequest* old = find_in(s.requests, key)) s.requests_by_order.erase(old->order);
    s.requests[key] = RecordedRequest{e.request_hash, e.outcome_id, ++s.requests_recorded, context.wall};
    s.requests_by_order[s.requests_recorded] = key;
  }
  void operator()(const RequestsAged& e) {
    for (std::uint64_t n = e.count; n > 0 && !s.requests_by_order.empty(); --n) {
      s.requests.erase(s.requests_by_order.begin()->second);
      s.requests_by_order.erase(s.requests_by_order.begin());
    }
  }
  void operator()(const Archived& e) {
    for (const LeaseId id : e.leases) archive_lease(id);
    for (const JobId id : e.jobs) archive_job(id);
    for (const ClusterId id : e.clusters) archive_cluster(id);
    for (const TokenId id : e.tokens) archive_token(id);
  }
  void operator()(const TimerSet& e) { set_timer(s, e.kind, e.id, 0, e.at); }
  void operator()(const LeaderChanged& e) { s.leader_epoch = e.leader_epoch; }
  void operator()(const IncarnationRaised& e) {
    s.incarnation = e.incarnation;
    // The backup does not know what was given out after it was taken: ids and addresses jump over that range.
    constexpr std::uint64_t kJump = 1'000'000;
    Counters& c = s.last;
    for (auto* counter : {&c.org, &c.project, &c.principal, &c.token, &c.node, &c.cluster, &c.slot, &c.lease, &c.job,
                          &c.epoch, &c.grant})
      *counter += kJump;
    for (auto& [id, cluster] : s.clusters) cluster.next_address += 1024, cluster.roster_epoch += kJump;
    for (auto& [id, node] : s.nodes) node.revision += kJump;
  }
  void operator()(const FormatRaised& e) { s.format_version = e.version; }
  void operator()(const QuotaSet& e) {
    if (Project* project = find_in(s.projects, e.project)) project->quota = e.quota, project->share = e.share;
    if (e.project) return note_limited(s, e.project);
    if (Org* org = find_in(s.orgs, e.org)) org->quota = e.quota, org->share = e.share;
    for (const ProjectId project : projects_of(s, e.org)) note_limited(s, project);
  }
  void operator()(const ImagePolicySet& e) {
    if (Project* project = find_in(s.projects, e.project)) project->images = e.policy;
    if (Org* org = e.project ? nullptr : find_in(s.orgs, e.org)) org->images = e.policy;
    for (const ClusterId id : bound_by(s, e)) touch_members(s, id);
  }
  void operator()(const TierShareSet& e) {
    if (e.row.permille == 0)
      s.tier_shares.erase(e.row.tier);
    else
      s.tier_shares[e.row.tier] = e.row.permille;
  }
  void operator()(const HeadroomSet& e) {
    if (e.row.machines == 0)
      s.headroom.erase(e.row.gpu_model);
    else
      s.headroom[e.row.gpu_model] = e.row;
  }
  void operator()(const SigningKeysNoted& e) {
    s.signing_keys_revision = e.revision;
    s.signing_keys = e.keys;
  }

 private:
  void set_roster(ClusterId id, std::uint64_t roster_epoch) {
    Cluster* cluster = find_in(s.clusters, id);
    if (cluster == nullptr || cluster->roster_epoch == roster_epoch) return;
    cluster->roster_epoch = roster_epoch;
    touch_members(s, id);
  }
  void index_job(const Job& job) {
    s.queued_jobs.erase({job.cluster, job.id});
    s.active_jobs.erase({job.cluster, job.id});
    if (terminal(job.state)) return;
    (job.state == JobState::Queued ? s.queued_jobs : s.active_jobs).emplace(job.cluster, job.id);
  }
  void archive_lease(LeaseId id) {
    const Lease* lease = find_in(s.leases, id);
    if (lease == nullptr) return;
    s.leases_by_cluster.erase({lease->cluster, id});
    s.leases_by_node.erase({lease->node, id});
    s.slots.erase(lease->slot);
    s.leases.erase(id);
    set_timer(s, TimerKind::Lease, id.value, 0, {});
  }
  void archive_job(JobId id) {
    const Job* job = find_in(s.jobs, id);
    if (job == nullptr) return;
    s.queued_jobs.erase({job->cluster, id});
    s.active_jobs.erase({job->cluster, id});
    s.jobs.erase(id);
    set_timer(s, TimerKind::Job, id.value, 0, {});
  }
  void archive_cluster(ClusterId id) {
    for (auto it = s.backoffs.lower_bound({id, NodeId{}}); it != s.backoffs.end() && it->first.first == id;
         it = s.backoffs.erase(it))
      set_timer(s, TimerKind::Backoff, id.value, it->first.second.value, {});
    set_timer(s, TimerKind::Cluster, id.value, 0, {});
    set_timer(s, TimerKind::ClusterJobs, id.value, 0, {});
    set_timer(s, TimerKind::Budget, id.value, 0, {});
    s.clusters.erase(id);
  }
  void archive_token(TokenId id) {
    if (const ApiToken* token = find_in(s.api_tokens, id)) {
      s.api_token_by_hash.erase(token->hash);
      s.api_tokens.erase(id);
    }
    if (const JoinToken* token = find_in(s.join_tokens, id)) {
      s.join_token_by_hash.erase(token->hash);
      s.join_tokens.erase(id);
    }
    set_timer(s, TimerKind::Token, id.value, 0, {});
  }
};

}  // namespace

void apply(State& state, const Event& event, const EntryContext& context) {
  state.seq = std::max(state.seq, context.seq);
  state.last_wall = std::max(state.last_wall, context.wall);
  std::visit(Apply{state, context}, event);
}

}  // namespace muster::control
