#pragma once
// What happened: the only thing stored. Every event has everything resolved (ids, nodes, devices, addresses, times,
// reasons), so apply() decides nothing. `deadline` fields are the one timer of that object (zero = none); Tick fires
// due timers. Adding a type: append it to Event, give it fields in event_codec.cpp, an arm in apply, golden bytes in
// the test.
#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "control/command.h"
#include "model/types.h"

namespace muster::control {

// Where an event stands in the journal. The engine clamps wall so that it never decreases (journal_wall in state.h).
struct EntryContext {
  std::uint64_t seq = 0;
  WallTime wall;
  std::uint64_t leader_epoch = 0;
  Actor actor;
  bool operator==(const EntryContext&) const = default;
};

// ---- people
struct OrgCreated {
  Org org;
  bool operator==(const OrgCreated&) const = default;
};
struct ProjectCreated {
  Project project;
  bool operator==(const ProjectCreated&) const = default;
};
struct PrincipalCreated {
  Principal principal;
  bool operator==(const PrincipalCreated&) const = default;
};
struct PrincipalDisabled {
  PrincipalId principal;
  bool operator==(const PrincipalDisabled&) const = default;
};
struct ApiTokenCreated {
  ApiToken token;
  bool operator==(const ApiTokenCreated&) const = default;
};
struct ApiTokenRevoked {
  TokenId token;
  bool operator==(const ApiTokenRevoked&) const = default;
};
struct JoinTokenCreated {
  JoinToken token;
  bool operator==(const JoinTokenCreated&) const = default;
};
struct JoinTokenRevoked {
  TokenId token;
  bool operator==(const JoinTokenRevoked&) const = default;
};

// ---- machines
inline constexpr std::string_view kBarred = "node_disabled_by_operator";
struct NodeEnrolled {
  Node node;
  TokenId token;
  bool operator==(const NodeEnrolled&) const = default;
};
struct NodeFactsChanged {
  NodeId node;
  NodeFacts facts;
  bool operator==(const NodeFactsChanged&) const = default;
};
struct NodeStateChanged {  // the reason kBarred also bars the machine's owner from enabling it
  NodeId node;
  NodeState state = NodeState::Online;
  bool draining = false;
  std::string reason;
  bool operator==(const NodeStateChanged&) const = default;
};
struct NodeTierChanged {
  NodeId node;
  TrustTier tier = TrustTier::Community;
  bool operator==(const NodeTierChanged&) const = default;
};
struct FreezeSet {
  bool frozen = false;
  std::string reason;
  bool operator==(const FreezeSet&) const = default;
};
// This cluster leaves this node alone until then, after a failure there.
struct BackoffSet {
  ClusterId cluster;
  NodeId node;
  std::uint32_t failures = 0;
  WallTime until;
  bool operator==(const BackoffSet&) const = default;
};
struct BackoffEnded {
  ClusterId cluster;
  NodeId node;
  bool operator==(const BackoffEnded&) const = default;
};

// ---- clusters, slots, leases
struct ClusterCreated {
  Cluster cluster;
  bool operator==(const ClusterCreated&) const = default;
};
struct ClusterUpdated {
  ClusterId cluster;
  ClusterSpec spec;
  std::uint64_t generation = 0;
  WallTime deadline;
  bool operator==(const ClusterUpdated&) const = default;
};
struct ClusterStateChanged {  // deadline: end of life while it runs, archiving once it ended
  ClusterId cluster;
  ClusterState state = ClusterState::Queued;
  std::string reason;
  WallTime deadline;
  bool operator==(const ClusterStateChanged&) const = default;
};
struct ClusterWanted {
  ClusterId cluster;
  std::string group;
  std::uint32_t workers = 0;
  bool operator==(const ClusterWanted&) const = default;
};
struct ClusterProbed {
  ClusterId cluster;
  ImageProbe probe;
  bool operator==(const ClusterProbed&) const = default;
};
struct LeaseGranted {
  Slot slot;
  Lease lease;
  bool operator==(const LeaseGranted&) const = default;
};
// The slot's key is known: it is in the roster from this roster epoch on.
struct SlotKeyed {
  SlotId slot;
  Bytes overlay_key, overlay_signature;
  std::uint64_t roster_epoch = 0;
  bool operator==(const SlotKeyed&) const = default;
};
// The slot is gone for good: out of the roster, its lease is told to stop; its address is never given again.
struct SlotLeft {
  SlotId slot;
  std::string reason;
  std::uint64_t roster_epoch = 0;
  bool operator==(const SlotLeft&) const = default;
};
struct SlotPromoted {
  SlotId slot;
  std::string group;
  std::uint64_t roster_epoch = 0;
  bool operator==(const SlotPromoted&) const = default;
};
struct LeaseWantChanged {
  LeaseId lease;
  LeaseWant want = LeaseWant::Run;
  std::string reason;
  WallTime deadline;
  bool operator==(const LeaseWantChanged&) const = default;
};
struct LeaseObserved {
  LeaseId lease;
  LeasePhase phase = LeasePhase::Pending;
  std::string reason;
  std::uint32_t restarts = 0;
  bool operator==(const LeaseObserved&) const = default;
};
struct LeaseEnded {  // only now are its resources and devices free
  LeaseId lease;
  LeaseEnd end = LeaseEnd::None;
  std::string reason;
  WallTime deadline;
  bool operator==(const LeaseEnded&) const = default;
};

// ---- jobs
struct JobCreated {
  Job job;
  bool operator==(const JobCreated&) const = default;
};
struct JobStateChanged {  // deadline: Queued = not before (retry), Running = timeout, Stopping = given up, ended =
                          // archiving
  JobId job;
  JobState state = JobState::Queued;
  std::uint32_t attempt = 0;
  std::int32_t exit_code = -1;
  std::string reason;
  WallTime deadline;
  bool operator==(const JobStateChanged&) const = default;
};
struct JobLogSet {
  JobId job;
  std::uint32_t attempt = 0;
  std::uint64_t log_bytes = 0;
  bool operator==(const JobLogSet&) const = default;
};

// ---- housekeeping
struct RequestRecorded {
  PrincipalId principal;
  std::string request_id;
  Bytes request_hash;
  std::string outcome_id;
  bool operator==(const RequestRecorded&) const = default;
};
struct RequestsAged {
  std::uint64_t count = 0; /* oldest first */
  bool operator==(const RequestsAged&) const = default;
};
// Ended objects leave the state; whoever keeps history took them when they ended.
struct Archived {
  std::vector<ClusterId> clusters;
  std::vector<JobId> jobs;
  std::vector<LeaseId> leases;
  std::vector<TokenId> tokens;
  bool operator==(const Archived&) const = default;
};
enum class TimerKind : std::uint8_t {
  Cluster = 1,
  Lease = 2,
  Job = 3,
  Backoff = 4,
  ClusterJobs = 5,
  Token = 6,
  Offer = 7,   // of a machine with hours
  Budget = 8,  // of a cluster: what it may cost is used up
  Grant = 9
};
struct TimerSet {
  TimerKind kind = TimerKind::Cluster;
  std::uint64_t id = 0;
  WallTime at; /* 0 = clear */
  bool operator==(const TimerSet&) const = default;
};
struct LeaderChanged {
  std::uint64_t leader_epoch = 0;
  bool operator==(const LeaderChanged&) const = default;
};
struct IncarnationRaised {
  std::uint64_t incarnation = 0;
  std::string why;
  bool operator==(const IncarnationRaised&) const = default;
};
struct FormatRaised {
  std::uint32_t version = 0;
  bool operator==(const FormatRaised&) const = default;
};

// Of an organisation or, where a project is named, of that project.
struct QuotaSet {
  OrgId org;
  ProjectId project;
  Quota quota;
  Share share;
  bool operator==(const QuotaSet&) const = default;
};

// A start failed on the machine (strikes rise), or one came true there (0): from the third cluster in a row on it gets
// nothing for a while.
struct NodeStruck {
  NodeId node;
  std::uint32_t strikes = 0;
  ClusterId by;
  WallTime until;
  bool operator==(const NodeStruck&) const = default;
};

// What the owner asks for the machine from now on: for leases that begin then. deadline: when the planner is told anew
// when it is open.
struct NodeOffered {
  NodeId node;
  Offer offer;
  WallTime deadline;
  bool operator==(const NodeOffered&) const = default;
};

// Of an organisation or, where a project is named, of that project.
struct ImagePolicySet {
  OrgId org;
  ProjectId project;
  ImagePolicy policy;
  bool operator==(const ImagePolicySet&) const = default;
};

// What is kept back of one GPU model for failovers from now on.
struct TierShareSet {
  TierShare row;
  bool operator==(const TierShareSet&) const = default;
};
struct HeadroomSet {
  Headroom row;
  bool operator==(const HeadroomSet&) const = default;
};

// Which keys sign rosters, orders and relay tokens, as the signer said last; what changed is resolved.
struct SigningKeysNoted {
  std::uint64_t revision = 0;
  std::vector<SigningKeyRow> keys;
  std::vector<SigningKeyRow> added, removed;  // against what was noted before
  bool operator==(const SigningKeysNoted&) const = default;
};

// What an identity provider says of the person has changed: what the account is from now on.
struct PrincipalChanged {
  PrincipalId principal;
  Role role = Role::None;
  OrgId org;
  bool operator==(const PrincipalChanged&) const = default;
};

// A login was renewed: its next refresh token has this hash.
struct LoginRenewed {
  TokenId token;
  Bytes refresh;
  bool operator==(const LoginRenewed&) const = default;
};
// A refresh token that was used up came again: two have it, so the login ends for both.
struct RefreshReused {
  TokenId token;
  bool operator==(const RefreshReused&) const = default;
};

struct AccessGranted {
  Grant grant;
  bool operator==(const AccessGranted&) const = default;
};
struct GrantEnded {  // by its time, or it was taken or given back
  Grant grant;
  std::string reason;
  bool operator==(const GrantEnded&) const = default;
};
// A way between two members stays below what the cluster asked for, or no longer does.
struct PairJudged {
  ClusterId cluster;
  SlotId from, to;
  std::int64_t kbps = 0, need_kbps = 0; /* as measured; as asked for */
  bool slow = false;
  bool operator==(const PairJudged&) const = default;
};
// A worker is to be replaced for its slow ways as soon as a machine is found; 0: nobody is any more.
struct ReplacementSought {
  ClusterId cluster;
  SlotId slot;
  std::uint32_t done = 0; /* replacements so far */
  WallTime next;          /* no other one before */
  bool operator==(const ReplacementSought&) const = default;
};

// A machine carried so much more for members of a cluster, today (UTC). Rows of days before `kept_from` are dropped.
struct CarriedCounted {
  NodeId node;
  ClusterId cluster;
  OrgId tenant;
  std::int64_t day = 0, kept_from = 0; /* since 1970 */
  std::uint64_t bytes = 0;
  bool operator==(const CarriedCounted&) const = default;
};

// The order is the type number on disk (index + 1): append only.
using AnyEvent =
    std::variant<OrgCreated, ProjectCreated, PrincipalCreated, PrincipalDisabled, ApiTokenCreated, ApiTokenRevoked,
                 JoinTokenCreated, JoinTokenRevoked, NodeEnrolled, NodeFactsChanged, NodeStateChanged, NodeTierChanged,
                 FreezeSet, BackoffSet, BackoffEnded, ClusterCreated, ClusterUpdated, ClusterStateChanged,
                 ClusterWanted, ClusterProbed, LeaseGranted, SlotKeyed, SlotLeft, SlotPromoted, LeaseWantChanged,
                 LeaseObserved, LeaseEnded, JobCreated, JobStateChanged, JobLogSet, RequestRecorded, RequestsAged,
                 Archived, TimerSet, LeaderChanged, IncarnationRaised, FormatRaised, QuotaSet, NodeStruck, NodeOffered,
                 ImagePolicySet, HeadroomSet, SigningKeysNoted, PrincipalChanged, TierShareSet, LoginRenewed,
                 RefreshReused, AccessGranted, GrantEnded, PairJudged, ReplacementSought, CarriedCounted>;
// One of them. What copies, moves, compares and ends it is compiled once (kinds.cpp): in each source it would take
// seconds.
struct Event : AnyEvent {
  using AnyEvent::AnyEvent;
  Event();
  Event(const Event&);
  Event(Event&&) noexcept;
  Event& operator=(const Event&);
  Event& operator=(Event&&) noexcept;
  ~Event();
  bool operator==(const Event& other) const;
};

std::string_view event_name(const Event& event);  // "cluster.created", for people and streams
std::string describe(const Event& event);         // its fields in order, as a JSON array with readable ids and times
std::string event_subject(const Event& event);    // the id it is about ("cl-3"), empty for the platform

}  // namespace muster::control
