#pragma once
// One description of every stored struct, used by the encoder and the decoder alike: fields(a, x) names the members in
// their order on disk. An order or a type never changes; a new member goes to the end as `a.since(N, x.member)` with
// kFormatVersion (state.h) raised to N, so journals and snapshots of older formats are still read. Private to control.
#include "control/state.h"

namespace muster::control {

template <class A, class Tag>
void fields(A& a, Id<Tag>& x) {
  a(x.value);
}
template <class A, class Tag>
void fields(A& a, TimePoint<Tag>& x) {
  a(x.ms);
}
template <class A, class T>
void fields(A& a, Rare<T>& x) {
  T value = x.get();
  a(value);
  if (!(value == x.get())) x = std::move(value);  // who only reads changes nothing
}
template <class A>
void fields(A& a, Quota& x) {
  a(x.gpus, x.cpu_milli, x.clusters);
}
template <class A>
void fields(A& a, Share& x) {
  a(x.weight, x.gpus, x.cpu_milli);
}
template <class A>
void fields(A& a, ImagePolicy& x) {
  a(x.allow, x.deny, x.require_digest, x.keys);
}
template <class A>
void fields(A& a, TierShare& x) {
  a(x.tier, x.permille);
}
template <class A>
void fields(A& a, Headroom& x) {
  a(x.gpu_model, x.machines, x.tier);
}
template <class A>
void fields(A& a, SigningKeyRow& x) {
  a(x.kind, x.id, x.from, x.until);
}
template <class A>
void fields(A& a, Org& x) {
  a(x.id, x.name, x.quota);
  a.since(3, x.share);
  a.since(5, x.images);
  a.since(9, x.administered);
}
template <class A>
void fields(A& a, Project& x) {
  a(x.id, x.org, x.name, x.quota);
  a.since(3, x.share);
  a.since(5, x.images);
}
template <class A>
void fields(A& a, Principal& x) {
  a(x.id, x.name, x.role, x.org, x.disabled);
  a.since(8, x.service, x.note, x.made_by, x.made_at);
}
template <class A>
void fields(A& a, ApiToken& x) {
  a(x.id, x.owner, x.hash, x.label, x.scopes, x.expires, x.revoked);
  a.since(8, x.refresh);
}
template <class A>
void fields(A& a, Grant& x) {
  a(x.id, x.break_glass, x.owner, x.project, x.cluster, x.to, x.to_org, x.right, x.reason, x.by, x.at, x.until);
}
template <class A>
void fields(A& a, JoinToken& x) {
  a(x.id, x.supplier, x.hash, x.labels, x.expires, x.used_by, x.revoked);
}
template <class A>
void fields(A& a, Device& x) {
  a(x.uuid, x.model, x.memory_bytes);
  a.since(9, x.sharing, x.part_milli, x.profile);
}
template <class A>
void fields(A& a, Resources& x) {
  a(x.cpu_milli, x.memory_bytes, x.gpus, x.disk_bytes, x.object_store_bytes, x.custom_milli);
  a.since(7, x.traffic.up_kbps, x.traffic.down_kbps, x.traffic.volume_bytes);
}
template <class A>
void fields(A& a, NodeFacts& x) {
  a(x.hostname, x.arch, x.os, x.kernel, x.agent_version, x.boot_id, x.region, x.capacity, x.devices, x.runtimes,
    x.images, x.lan, x.egress_allowed, x.labels);
  a.since(7, x.image_bytes);
}
template <class A>
void fields(A& a, WeekHours& x) {
  a(x.from, x.to);
}
template <class A>
void fields(A& a, ZoneOffset& x) {
  a(x.from, x.seconds);
}
template <class A>
void fields(A& a, Offer& x) {
  a(x.version, x.currency, x.price, x.gpu_price, x.floor, x.gpu_floor, x.tenants, x.images, x.longest, x.schedule,
    x.zone, x.hours, x.offsets, x.notice);
}
template <class A>
void fields(A& a, Node& x) {
  a(x.id, x.supplier, x.name, x.device_key, x.tier, x.state, x.facts, x.labels, x.draining, x.enrolled_at,
    x.state_since, x.revision, x.failures, x.backoff_until);
  a.since(2, x.barred, x.strikes, x.struck_by);
  a.since(4, x.offer);
}
template <class A>
void fields(A& a, GpuChoice& x) {
  a(x.model, x.speed_permille);
}
template <class A>
void fields(A& a, NodeRequest& x) {
  a(x.resources, x.whole_machine, x.gpu_model, x.labels, x.constraints, x.pinned, x.gpu_memory_bytes, x.gpu_share_milli,
    x.gpu_any);
}
template <class A>
void fields(A& a, WorkerGroup& x) {
  a(x.name, x.min, x.max, x.request, x.setup_commands, x.env);
}
template <class A>
void fields(A& a, FileMount& x) {
  a(x.path, x.blob);
}
template <class A>
void fields(A& a, ClusterSpec& x) {
  a(x.name, x.image, x.runtime, x.arch, x.pool, x.head, x.groups, x.head_setup_commands, x.setup_commands, x.env,
    x.files, x.spares, x.egress, x.shm_bytes, x.nofile, x.tier, x.priority, x.idle_timeout, x.max_lifetime,
    x.max_workers);
  a.since(3, x.policy, x.min_trust);
  a.since(4, x.max_price, x.budget, x.currency, x.may_end_early);
  a.since(8, x.pair_kbps, x.replace_slow);
}
template <class A>
void fields(A& a, Epoch& x) {
  a(x.incarnation, x.leader, x.counter);
}
template <class A>
void fields(A& a, Slot& x) {
  a(x.id, x.cluster, x.role, x.group, x.address, x.lease, x.in_roster, x.overlay_key, x.overlay_signature);
}
template <class A>
void fields(A& a, Lease& x) {
  a(x.id, x.node, x.cluster, x.slot, x.epoch, x.resources, x.devices, x.want, x.phase, x.end, x.granted_at, x.ended_at,
    x.reason, x.restarts);
  a.since(4, x.offer_version, x.price, x.currency, x.leaves_at);
  a.since(9, x.share_milli);
}
template <class A>
void fields(A& a, ImageProbe& x) {
  a(x.digest, x.ray_version, x.python_version, x.token_auth, x.rocksdb);
}
template <class A>
void fields(A& a, SlowPair& x) {
  a(x.from, x.to, x.kbps, x.since);
}
template <class A>
void fields(A& a, Cluster& x) {
  a(x.id, x.project, x.owner, x.spec, x.state, x.reason, x.generation, x.roster_epoch, x.next_address, x.slots,
    x.wanted, x.probe, x.created_at, x.started_at, x.ended_at, x.idle_since, x.ephemeral_for);
  a.since(4, x.spent);
  a.since(8, x.slow, x.replacing, x.replaced, x.replace_from);
}
template <class A>
void fields(A& a, JobSpec& x) {
  a(x.name, x.entrypoint, x.cluster, x.cluster_spec, x.ephemeral, x.runtime_env_json, x.working_dir_blob, x.metadata,
    x.retries, x.timeout, x.driver_json);
}
template <class A>
void fields(A& a, Job& x) {
  a(x.id, x.project, x.owner, x.cluster, x.spec, x.state, x.attempt, x.exit_code, x.reason, x.log_bytes, x.created_at,
    x.started_at, x.ended_at);
}
template <class A>
void fields(A& a, Counters& x) {
  a(x.org, x.project, x.principal, x.token, x.node, x.cluster, x.slot, x.lease, x.job, x.epoch);
  a.since(8, x.grant);
}
template <class A>
void fields(A& a, RecordedRequest& x) {
  a(x.hash, x.outcome_id, x.order, x.at);
}
template <class A>
void fields(A& a, Backoff& x) {
  a(x.failures, x.until);
}

template <class A>
void fields(A& a, OrgCreated& x) {
  a(x.org);
}
template <class A>
void fields(A& a, ProjectCreated& x) {
  a(x.project);
}
template <class A>
void fields(A& a, PrincipalCreated& x) {
  a(x.principal);
}
template <class A>
void fields(A& a, PrincipalDisabled& x) {
  a(x.principal);
}
template <class A>
void fields(A& a, ApiTokenCreated& x) {
  a(x.token);
}
template <class A>
void fields(A& a, ApiTokenRevoked& x) {
  a(x.token);
}
template <class A>
void fields(A& a, JoinTokenCreated& x) {
  a(x.token);
}
template <class A>
void fields(A& a, JoinTokenRevoked& x) {
  a(x.token);
}
template <class A>
void fields(A& a, NodeEnrolled& x) {
  a(x.node, x.token);
}
template <class A>
void fields(A& a, NodeFactsChanged& x) {
  a(x.node, x.facts);
}
template <class A>
void fields(A& a, NodeStateChanged& x) {
  a(x.node, x.state, x.draining, x.reason);
}
template <class A>
void fields(A& a, NodeStruck& x) {
  a(x.node, x.strikes, x.by, x.until);
}
template <class A>
void fields(A& a, NodeOffered& x) {
  a(x.node, x.offer, x.deadline);
}
template <class A>
void fields(A& a, NodeTierChanged& x) {
  a(x.node, x.tier);
}
template <class A>
void fields(A& a, FreezeSet& x) {
  a(x.frozen, x.reason);
}
template <class A>
void fields(A& a, BackoffSet& x) {
  a(x.cluster, x.node, x.failures, x.until);
}
template <class A>
void fields(A& a, BackoffEnded& x) {
  a(x.cluster, x.node);
}
template <class A>
void fields(A& a, ClusterCreated& x) {
  a(x.cluster);
}
template <class A>
void fields(A& a, ClusterUpdated& x) {
  a(x.cluster, x.spec, x.generation, x.deadline);
}
template <class A>
void fields(A& a, ClusterStateChanged& x) {
  a(x.cluster, x.state, x.reason, x.deadline);
}
template <class A>
void fields(A& a, ClusterWanted& x) {
  a(x.cluster, x.group, x.workers);
}
template <class A>
void fields(A& a, ClusterProbed& x) {
  a(x.cluster, x.probe);
}
template <class A>
void fields(A& a, LeaseGranted& x) {
  a(x.slot, x.lease);
}
template <class A>
void fields(A& a, SlotKeyed& x) {
  a(x.slot, x.overlay_key, x.overlay_signature, x.roster_epoch);
}
template <class A>
void fields(A& a, SlotLeft& x) {
  a(x.slot, x.reason, x.roster_epoch);
}
template <class A>
void fields(A& a, SlotPromoted& x) {
  a(x.slot, x.group, x.roster_epoch);
}
template <class A>
void fields(A& a, LeaseWantChanged& x) {
  a(x.lease, x.want, x.reason, x.deadline);
}
template <class A>
void fields(A& a, LeaseObserved& x) {
  a(x.lease, x.phase, x.reason, x.restarts);
}
template <class A>
void fields(A& a, LeaseEnded& x) {
  a(x.lease, x.end, x.reason, x.deadline);
}
template <class A>
void fields(A& a, JobCreated& x) {
  a(x.job);
}
template <class A>
void fields(A& a, JobStateChanged& x) {
  a(x.job, x.state, x.attempt, x.exit_code, x.reason, x.deadline);
}
template <class A>
void fields(A& a, JobLogSet& x) {
  a(x.job, x.attempt, x.log_bytes);
}
template <class A>
void fields(A& a, RequestRecorded& x) {
  a(x.principal, x.request_id, x.request_hash, x.outcome_id);
}
template <class A>
void fields(A& a, RequestsAged& x) {
  a(x.count);
}
template <class A>
void fields(A& a, Archived& x) {
  a(x.clusters, x.jobs, x.leases, x.tokens);
}
template <class A>
void fields(A& a, TimerSet& x) {
  a(x.kind, x.id, x.at);
}
template <class A>
void fields(A& a, LeaderChanged& x) {
  a(x.leader_epoch);
}
template <class A>
void fields(A& a, IncarnationRaised& x) {
  a(x.incarnation, x.why);
}
template <class A>
void fields(A& a, FormatRaised& x) {
  a(x.version);
}
template <class A>
void fields(A& a, QuotaSet& x) {
  a(x.org, x.project, x.quota);
  a.since(3, x.share);
}
template <class A>
void fields(A& a, ImagePolicySet& x) {
  a(x.org, x.project, x.policy);
}
template <class A>
void fields(A& a, TierShareSet& x) {
  a(x.row);
}
template <class A>
void fields(A& a, HeadroomSet& x) {
  a(x.row);
}
template <class A>
void fields(A& a, PrincipalChanged& x) {
  a(x.principal, x.role, x.org);
}
template <class A>
void fields(A& a, AccessGranted& x) {
  a(x.grant);
}
template <class A>
void fields(A& a, GrantEnded& x) {
  a(x.grant, x.reason);
}
template <class A>
void fields(A& a, LoginRenewed& x) {
  a(x.token, x.refresh);
}
template <class A>
void fields(A& a, RefreshReused& x) {
  a(x.token);
}
template <class A>
void fields(A& a, CarriedRow& x) {
  a(x.tenant, x.bytes);
}
template <class A>
void fields(A& a, CarriedCounted& x) {
  a(x.node, x.cluster, x.tenant, x.day, x.kept_from, x.bytes);
}
template <class A>
void fields(A& a, PairJudged& x) {
  a(x.cluster, x.from, x.to, x.kbps, x.need_kbps, x.slow);
}
template <class A>
void fields(A& a, ReplacementSought& x) {
  a(x.cluster, x.slot, x.done, x.next);
}
template <class A>
void fields(A& a, SigningKeysNoted& x) {
  a(x.revision, x.keys, x.added, x.removed);
}

}  // namespace muster::control
