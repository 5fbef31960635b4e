#pragma once
// The fold over the journal: primary tables (encoded in snapshots) and indexes (rebuilt on decode, kept by apply).
// Ordered containers only. decide() reads it, apply() alone writes it; every lookup of a hot path goes by an index,
// nothing scans. Ended clusters, jobs and leases stay about an hour, then an Archived event removes them.
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "control/event.h"
#include "model/types.h"

namespace muster::control {

inline constexpr std::uint32_t kFormatVersion = 9;    // newest event format this build writes and reads
inline constexpr std::uint32_t kShareFormat = 3;      // the first with shares, policies and trust floors
inline constexpr std::uint32_t kOfferFormat = 4;      // the first with offers, prices and budgets
inline constexpr std::uint32_t kImageFormat = 5;      // the first with policies of images
inline constexpr std::uint32_t kHeadroomFormat = 6;   // the first with headroom for failovers
inline constexpr std::uint32_t kKeysFormat = 7;       // the first with changes of signing keys, and of accounts
inline constexpr std::uint32_t kTrafficFormat = 7;    // the first with stated traffic
inline constexpr std::uint32_t kTierFormat = 8;       // the first with shares of tiers
inline constexpr std::uint32_t kAccessFormat = 8;     // the first with service accounts, logins that renew, and grants
inline constexpr std::uint32_t kPairFormat = 8;       // the first with what pairs should carry, and what was carried
inline constexpr std::uint32_t kRoleFormat = 9;       // the first with administrators, viewers, suppliers' members
inline constexpr std::uint32_t kGpuFormat = 9;        // the first with GPUs that are shared, and MIG instances
inline constexpr std::uint32_t kSubnet = 0x0AC90000;  // 10.201.0.0/16, the same in every cluster's own network
inline constexpr std::uint32_t kHeadAddress = kSubnet + 1;
inline constexpr std::uint8_t kPrefixBits = 16;

struct Counters {  // last id given
  std::uint64_t org = 0, project = 0, principal = 0, token = 0, node = 0, cluster = 0, slot = 0, lease = 0, job = 0,
                epoch = 0, grant = 0;
  bool operator==(const Counters&) const = default;
};
struct RecordedRequest {
  Bytes hash;
  std::string outcome_id;
  std::uint64_t order = 0;
  WallTime at;
  bool operator==(const RecordedRequest&) const = default;
};
struct Backoff {
  std::uint32_t failures = 0;
  WallTime until; /* 0 = over */
  bool operator==(const Backoff&) const = default;
};
using TimerKey = std::tuple<TimerKind, std::uint64_t, std::uint64_t>;  // second id: the node of a back-off
using CarriedKey = std::tuple<std::int64_t, NodeId, ClusterId>;        // day since 1970, who carried, for whom
using RequestKey = std::pair<PrincipalId, std::string>;

struct State {
  // ---- primary
  std::uint64_t seq = 0;  // last entry folded
  WallTime last_wall;
  std::uint64_t incarnation = 1, leader_epoch = 0;
  std::uint32_t format_version = 1;
  bool frozen = false;  // mass silence: no evictions
  std::string freeze_reason;
  WallTime frozen_since;
  Counters last;
  std::map<OrgId, Org> orgs;
  std::map<ProjectId, Project> projects;
  std::map<PrincipalId, Principal> principals;
  std::map<TokenId, ApiToken> api_tokens;
  std::map<TokenId, JoinToken> join_tokens;
  std::map<NodeId, Node> nodes;
  std::map<ClusterId, Cluster> clusters;
  std::map<SlotId, Slot> slots;  // also those that left, until their lease is archived
  std::map<LeaseId, Lease> leases;
  std::map<JobId, Job> jobs;
  std::map<std::pair<ClusterId, NodeId>, Backoff> backoffs;
  std::map<RequestKey, RecordedRequest> requests;  // idempotency
  std::uint64_t requests_recorded = 0;
  std::map<TimerKey, WallTime> timers;
  std::map<std::string, Headroom> headroom;           // by GPU model
  std::map<std::uint8_t, std::uint32_t> tier_shares;  // thousandths, of tiers that are guaranteed some
  std::uint64_t signing_keys_revision = 0;            // as noted last; 0: never changed
  std::vector<SigningKeyRow> signing_keys;
  std::map<GrantId, Grant> grants;  // in force

  std::map<CarriedKey, CarriedRow> carried;  // what is older is in the journal alone (carried.cpp)

  // ---- indexes, a function of the above
  std::map<std::string, OrgId> org_by_name;
  std::map<std::pair<OrgId, std::string>, ProjectId> project_by_name;
  std::map<std::string, PrincipalId> principal_by_name;                    // people
  std::map<std::pair<OrgId, std::string>, PrincipalId> service_by_name;    // enabled service accounts
  std::set<std::pair<OrgId, PrincipalId>> services_by_org;                 // disabled ones too
  std::set<std::pair<PrincipalId, GrantId>> grants_to;                     // to an account
  std::set<std::pair<OrgId, GrantId>> grants_to_org, grants_of_org;        // to an organisation; of its own things
  std::map<std::pair<ProjectId, std::string>, ClusterId> cluster_by_name;  // not Stopped, not Failed
  std::map<Bytes, TokenId> api_token_by_hash, join_token_by_hash;
  std::map<Bytes, NodeId> node_by_key;
  std::map<std::pair<OrgId, std::string>, std::set<NodeId>> nodes_by_site;  // that have the label (traffic.h)
  std::set<std::pair<NodeId, LeaseId>> leases_by_node;                      // not ended
  std::set<std::pair<ClusterId, LeaseId>> leases_by_cluster;                // not archived
  std::set<std::pair<ClusterId, JobId>> active_jobs;                        // Starting, Running, Stopping
  std::set<std::pair<ClusterId, JobId>> queued_jobs;
  std::map<ProjectId, Quota> held_by_project;  // of what quotas bound (quota.h); nothing held = no row
  std::map<OrgId, Quota> held_by_org;
  std::set<ProjectId> limited_projects;  // that a quota bounds, their own or their organisation's
  std::set<std::pair<WallTime, TimerKey>> timers_due;
  std::map<std::uint64_t, RequestKey> requests_by_order;

  bool operator==(const State&) const = default;

  const Node* find_node(NodeId id) const;
  const Cluster* find_cluster(ClusterId id) const;
  const Slot* find_slot(SlotId id) const;
  const Lease* find_lease(LeaseId id) const;
  const Job* find_job(JobId id) const;
  const ApiToken* find_api_token(const Bytes& hash) const;       // by SHA-256, revoked or expired ones too: look
  const Slot* find_head(const Cluster& cluster) const;           // the live head slot
  std::vector<LeaseId> live_leases(NodeId node) const;           // granted and not ended
  std::vector<LeaseId> cluster_leases(ClusterId cluster) const;  // ended ones too, until archived
};

inline WallTime journal_wall(const State& state, Now now) {
  return now.wall < state.last_wall ? state.last_wall : now.wall;
}
bool terminal(ClusterState state);
bool terminal(JobState state);
void rebuild_indexes(State& state);
void index_grant(State& state, const Grant& grant);
// What is free on a node: its capacity minus all leases that have not ended. GPUs: those of which nobody has anything.
Resources free_resources(const State& state, const Node& node);
std::vector<std::string> free_devices(const State& state, const Node& node);  // whole GPUs, so no MIG instances
// Of GPUs that are shared and of MIG instances: how much of the GPU nobody has, in thousandths.
std::map<std::string, std::int32_t> parts_free(const State& state, const Node& node);
bool schedulable(const Node& node);

// ---- what sessions and their tables ask
std::string failure_domain(const Node& node);
// Who is awaited when leadership begins: everybody that was heard, and in a freeze also who fell silent with the
// others and every disabled machine, of which nobody knows.
std::vector<NodeId> awaited_nodes(const State& state);
std::string boot_of_leases(const State& state, NodeId node);  // empty: it holds none
std::vector<LeaseId> renewable_leases(const State& state, NodeId node);
bool held_by(const State& state, NodeId node, const ObservedLease& lease);  // not ended, this node's, of this epoch
std::vector<LeaseId> roster_leases(const State& state, const Cluster& cluster);  // of the members, the head's first

// What somebody else's grants let this account do at this time.
std::vector<access::Granted> grants_for(const State& state, PrincipalId who, OrgId org, WallTime wall);
// Who asks, as its account is at this time: role, organisation and grants. A disabled account has no role.
void bring_up_to_date(access::Subject& subject, const State& state, WallTime wall);
// Clusters and jobs as the access check sees them.
access::Object access_object(const State& state, const Cluster& cluster);
access::Object access_object(const State& state, const Job& job);

// The tokens of an account that have all its rights (what a login makes) and still hold, but one.
std::vector<TokenId> logins_of(const State& state, PrincipalId owner, TokenId keep, WallTime wall);

}  // namespace muster::control
