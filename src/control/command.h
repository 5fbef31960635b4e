#pragma once
// What can be asked of the core. A command carries everything the core may not make itself: randomness, hashes, keys.
// Each is decided against the state at commit; refusals leave no trace in the journal.
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "access/access.h"
#include "model/types.h"
#include "scheduler/scheduler.h"

namespace muster::control {

// Who caused it, written into every entry. System = the engine itself (ticks, planner, liveness).
struct Actor {
  access::Subject subject;
  bool system = false;
  std::string request_id; /* idempotency key, scoped by principal; empty = none */
  Bytes request_hash;     /* SHA-256 of the request, to refuse the same key with another body */
  bool operator==(const Actor&) const = default;
};

struct CreateOrg {
  std::string name;
};
struct CreateProject {
  OrgId org;
  std::string name;
};
// Of an organisation, or of a project (then org is not looked at). 0 = no limit. Only the platform's operators change
// the share.
struct SetQuota {
  OrgId org;
  ProjectId project;
  Quota quota;
  std::optional<Share> share = {};  // as it is, where it is not given
};
// Of an organisation, or of a project (then org is not looked at); the platform's own organisation speaks for
// everybody.
struct SetImagePolicy {  // replaces what held before
  OrgId org;
  ProjectId project;
  ImagePolicy policy;
};
// Adds a digest to what the platform's policy denies, whatever else was changed there meanwhile. For who sets that
// policy, and the control plane itself.
struct DenyImage {
  std::string digest;
};
struct SetTierShare {  // of one tier; all of them together promise no more than there is
  TierShare row;
};
struct SetHeadroom {  // of one GPU model; no machines = nothing is kept back any more
  Headroom row;
};
struct CreatePrincipal {
  std::string name;
  Role role = Role::None;
  OrgId org;
};
struct CreateServiceAccount {
  OrgId org;
  std::string name;
  Role role = Role::None;
  std::string note;
};
struct DisablePrincipal {  // a service account too
  PrincipalId principal;
};
// Another role; by the rules of an identity provider another organisation too. Ends its logins. Refused for the last
// operator, and for the last administrator of an organisation unless the provider says so.
struct ChangePrincipal {
  PrincipalId principal;
  Role role = Role::None;
  std::optional<OrgId> org = {};  // as it is, where it is not given
};
struct CreateApiToken {
  PrincipalId owner;
  Bytes hash;
  std::string label;
  std::vector<std::string> scopes;
  Millis lifetime{0};
  Bytes refresh = {};  // of a login
};
// With the token itself as the permission. The outcome is the login's id, or "reused": it has ended then.
struct RenewLogin {
  Bytes hash, refresh;  // of the refresh token that is shown
  Bytes next;           // of the one that the client made to follow it
};
// By break-glass the operator who asks gets it; else exactly one of `to` and `to_org` is named. A project, or a
// cluster.
struct GrantAccess {
  bool break_glass = false;
  ProjectId project;
  ClusterId cluster;
  PrincipalId to;
  OrgId to_org;
  Right right = Right::None;
  std::string reason;
  Millis lifetime{0};
};
struct RevokeGrant {
  GrantId grant;
};
struct RevokeApiToken {
  TokenId token;
};
struct RevokeLogins {  // all tokens of an account that have all its rights, but one; at most some thousands at a time
  PrincipalId owner;
  TokenId keep;
};
struct CreateJoinToken {
  OrgId supplier;
  Bytes hash;
  std::map<std::string, std::string> labels;
  Millis lifetime{0};
};
struct RevokeJoinToken {
  TokenId token;
};
struct EnrollNode {
  Bytes token_hash;
  Bytes device_key;
  std::string name;
  NodeFacts facts;
  std::string held = {};  // as of SetHeld
};
struct SetNode {
  NodeId node;
  enum class Action : std::uint8_t { Admit, Disable, Enable, Drain, Undrain, Revoke } action = Action::Admit;
};
struct SetNodeTier {
  NodeId node;
  TrustTier tier = TrustTier::Community;
};
struct SetOffer {  // replaces what was asked before; its version is made here
  NodeId node;
  Offer offer;
};
// From the liveness tables (damped transitions only) and the agents' sessions.
struct NodeOnline {
  NodeId node;
  std::optional<NodeFacts> facts;
  std::vector<ObservedLease> leases;
  std::vector<ObservedJob> jobs;
  std::string boot_id;                   // of the session; what an earlier boot held is over
  std::optional<std::string> held = {};  // as of SetHeld, of these facts; nullopt: as before
};
struct NodeSuspect {
  NodeId node;
};
struct NodeLost {
  NodeId node;
};
struct NodeContested {
  NodeId node;
};  // two machines hold its key: what it holds ends by its time alone
// What the control plane found of the versions that a machine reports; empty: nothing that keeps work away.
struct SetHeld {
  NodeId node;
  std::string held;
  bool leave = false;  // what runs there moves away, where it can
};
struct SetFreeze {
  bool frozen = false;
  std::string reason;
};  // mass silence: no evictions
struct ReportObserved {
  NodeId node;
  std::uint64_t revision = 0;
  std::vector<ObservedLease> leases;
  std::vector<ObservedJob> jobs;
};
struct ReportRay {
  NodeId node;
  RayReport report;
};
struct NodePaused {
  NodeId node;
  bool paused = false, now = false;
};
struct NodeLeft {
  NodeId node;
};
struct LeasesExpired {
  std::vector<LeaseId> leases;
};  // the lease table's verdict, LeaseTime based
struct RostersLate {
  std::vector<LeaseId> leases;
};  // the roster table's verdict: members that do not acknowledge who left
// Tenants.
struct CreateCluster {
  ProjectId project;
  ClusterSpec spec;
};
struct UpdateCluster {
  ClusterId cluster;
  ClusterSpec spec;
  std::uint64_t expected_generation = 0;
};
struct StopCluster {
  ClusterId cluster;
  std::string reason;
};
struct CreateJob {
  ProjectId project;
  JobSpec spec;
};
struct StopJob {
  JobId job;
};
struct SetJobLog {
  JobId job;
  std::uint32_t attempt = 0;
  std::uint64_t log_bytes = 0;
};  // rare: at the end of an attempt
// The engine itself.
struct ApplyPlan {
  std::vector<scheduler::Group> groups;
};
struct Tick {};  // timeouts, idle ends, retries, back-offs, archiving; at most once a second
struct BecomeLeader {
  std::uint64_t leader_epoch = 0;
};  // journalled takeover: leases count from here
struct RaiseIncarnation {
  std::string why;
};  // after a restore
// The signer's newest statement of signing keys; nothing happens where it is known.
struct NoteSigningKeys {
  std::uint64_t revision = 0;
  std::vector<SigningKeyRow> keys;
};
// What the table of pairs makes of a cluster's ways (session/pair_table.h): each that it has an opinion about, told
// again while it holds.
struct PairJudgement {
  SlotId from, to;
  std::int64_t kbps = 0;
  bool slow = false;
};
struct JudgePairs {
  ClusterId cluster;
  std::vector<PairJudgement> pairs;
};
// What machines carried for others since it was told last, as both ends signed it (session/carried_book.h).
struct CarriedAmount {
  ClusterId cluster;
  NodeId node;
  std::uint64_t bytes = 0;
};
struct CountCarried {
  std::vector<CarriedAmount> amounts;
};
struct RaiseFormat {
  std::uint32_t version = 0;
};

using AnyCommand =
    std::variant<CreateOrg, CreateProject, CreatePrincipal, DisablePrincipal, CreateApiToken, RevokeApiToken,
                 CreateJoinToken, RevokeJoinToken, EnrollNode, SetNode, SetNodeTier, NodeOnline, NodeSuspect, NodeLost,
                 NodeContested, SetHeld, SetFreeze, ReportObserved, ReportRay, NodePaused, NodeLeft, LeasesExpired,
                 RostersLate, CreateCluster, UpdateCluster, StopCluster, CreateJob, StopJob, SetJobLog, ApplyPlan, Tick,
                 BecomeLeader, RaiseIncarnation, RaiseFormat, SetQuota, RevokeLogins, SetOffer, SetImagePolicy,
                 SetHeadroom, NoteSigningKeys, ChangePrincipal, SetTierShare, CreateServiceAccount, RenewLogin,
                 GrantAccess, RevokeGrant, JudgePairs, CountCarried, DenyImage>;
// One of them. What copies, moves and ends it is compiled once (kinds.cpp): in each source it would take seconds.
struct Command : AnyCommand {
  using AnyCommand::AnyCommand;
  Command();
  Command(const Command&);
  Command(Command&&) noexcept;
  Command& operator=(const Command&);
  Command& operator=(Command&&) noexcept;
  ~Command();
};

// What the caller is told once the events are durable: the id of what was made or changed ("cl-3"), empty if nothing.
struct Outcome {
  std::string id;
  bool replayed = false; /* an idempotent repeat */
  bool operator==(const Outcome&) const = default;
};

enum class Lane : std::uint8_t {
  Liveness = 0,
  Operator = 1,
  Supplier = 2,
  Tenant = 3
};  // served in this order, each bounded

}  // namespace muster::control
