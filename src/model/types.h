#pragma once
// The words of Muster as plain values (see ARCHITECTURE.md, "Words"). Data only: structs with defaulted ==, ordered
// containers (the core folds over them deterministically), integers with the unit in the name. Validation:
// model/validate.h.
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/id.h"
#include "base/time.h"
#include "model/rare.h"

namespace muster {

// ---- people -----------------------------------------------------------------------------------------------------
// What each may is the table in access/access.cpp. Supplier owns, Tenant is a member; the last three came with journal
// format 9. The numbers stand in the journal, in three bits of an entry's actor: there is no room for another.
enum class Role : std::uint8_t {
  None = 0,
  Operator = 1,
  Supplier = 2,
  Tenant = 3,
  Auditor = 4,
  TenantAdmin = 5,
  TenantViewer = 6,
  SupplierMember = 7
};
// Of a project or an organisation: what it may hold at a time, each 0 = no limit; also what is held of that.
struct Quota {
  std::int64_t gpus = 0;
  std::int64_t cpu_milli = 0;
  std::int64_t clusters = 0;
  std::int64_t gpu_milli = 0;  // of what is held: shares of GPUs, beside the whole ones; never in a limit, nor stored
  bool operator==(const Quota&) const = default;
};
// Of a project or an organisation: how its use counts in fair share, and what it has a right to before others of its
// tier.
struct Share {
  std::int64_t weight = 100;  // 1..10,000; of two alike, twice the weight may use twice as much
  std::int64_t gpus = 0;      // guaranteed, 0 = nothing
  std::int64_t cpu_milli = 0;
  bool operator==(const Share&) const = default;
};
// Machines of one GPU model (empty: those without a GPU) that are kept back for failovers: nothing starts on the last
// so many that are wholly free but what takes the place of lost workers, and spares, of clusters of this tier and
// better ones.
struct Headroom {
  std::string gpu_model;
  std::uint32_t machines = 0;  // 0 = none is kept back
  std::uint8_t tier = 0;
  bool operator==(const Headroom&) const = default;
};
// What the work of a tier holds of the platform's machines at least, before better tiers get more: thousandths of its
// GPUs or of its CPUs, whichever the tier holds more of.
struct TierShare {
  std::uint8_t tier = 0;
  std::uint32_t permille = 0;  // 0 = nothing is guaranteed
  bool operator==(const TierShare&) const = default;
};
inline constexpr std::uint8_t kTierMax = 9;
// One of the keys that sign for the platform, for the journal: public, by its id only.
struct SigningKeyRow {
  std::uint8_t kind = 0;  // crypto::KeyKind
  std::string id;         // 16 hex digits
  WallTime from, until;   // it signs from then on; it is believed until then, 0: no end
  bool operator==(const SigningKeyRow&) const = default;
};
inline constexpr std::size_t kSigningKeyRowsMax = 16;
inline constexpr std::uint32_t kHeadroomMachinesMax = 10'000;
inline constexpr std::size_t kHeadroomModelsMax = 32;
// Which images may run (model/image_policy.h). Of the platform, an organisation or a project: all that there are bind.
struct ImagePolicy {
  std::vector<std::string> allow;  // patterns of names, or "sha256:..." of a digest; empty = all
  std::vector<std::string> deny;   // goes over what is allowed
  bool require_digest = false;     // requests name an image by its digest
  std::vector<std::string> keys;   // public ones in PEM: one of them signed the image; empty = no matter
  bool operator==(const ImagePolicy&) const = default;
};
struct Org {
  OrgId id;
  std::string name;
  Quota quota = {};
  Share share = {};
  ImagePolicy images = {};
  bool administered = false;  // from its first administrator on, for good: until then members may what he may
  bool operator==(const Org&) const = default;
};
struct Project {
  ProjectId id;
  OrgId org;
  std::string name;
  Quota quota = {};
  Share share = {};
  ImagePolicy images = {};
  bool operator==(const Project&) const = default;
};
// A person, or a program of an organisation (a service account): that one has neither password nor second factor, and
// its name is unique among the enabled ones of its organisation only.
struct Principal {
  PrincipalId id;
  std::string name;
  Role role = Role::None;
  OrgId org;
  bool disabled = false;
  bool service = false;
  std::string note = {};     // of a service account: what it is for,
  PrincipalId made_by = {};  // who made it
  WallTime made_at = {};     // and when
  bool operator==(const Principal&) const = default;
};
// Opaque API token: only SHA-256 of its 32 random bytes is kept. Scopes narrow the owner's role ("read", "clusters",
// "nodes", "admin"); empty = all the owner may. A login is one with `refresh`: its hash is that of what stays the same
// in its refresh tokens, `refresh` that of what changes with each; requests carry short-lived tokens that name it.
struct ApiToken {
  TokenId id;
  PrincipalId owner;
  Bytes hash;
  std::string label;
  std::vector<std::string> scopes;
  WallTime expires;
  bool revoked = false;
  Bytes refresh = {};
  bool operator==(const ApiToken&) const = default;
};
// What a grant lets somebody do with clusters and jobs that are not his: each right holds those before it, except that
// Exec (shells and ports) and Submit (jobs) do not hold each other. Manage: both, and to change and stop them.
enum class Right : std::uint8_t { None = 0, Look = 1, Logs = 2, Submit = 3, Exec = 4, Manage = 5 };
struct GrantIdTag {
  static constexpr std::string_view prefix = "grant";
};
using GrantId = Id<GrantIdTag>;
// A right on one project or cluster until a time: given by a member of the organisation that owns it, or taken by an
// operator for a stated reason (break-glass). It ends by itself.
struct Grant {
  GrantId id;
  bool break_glass = false;
  OrgId owner;        // whose project or cluster it is
  ProjectId project;  // all of it, where no cluster is named
  ClusterId cluster;
  PrincipalId to;  // an account, or
  OrgId to_org;    // all members of an organisation
  Right right = Right::None;
  std::string reason;
  PrincipalId by;
  WallTime at, until;
  bool operator==(const Grant&) const = default;
};
// One-use enrolment token, bound to a supplier organisation.
struct JoinToken {
  TokenId id;
  OrgId supplier;
  Bytes hash;
  std::map<std::string, std::string> labels;
  WallTime expires;
  NodeId used_by;
  bool revoked = false;
  bool operator==(const JoinToken&) const = default;
};

// ---- machines ---------------------------------------------------------------------------------------------------
// How a GPU is given to leases: whole to one; in shares to the work of one tenant, where its owner allows that; or it
// is a MIG instance that the machine's administrator made: a device of its own, which one lease has.
enum class GpuSharing : std::uint8_t { Exclusive = 0, Shared = 1, Mig = 2 };
inline constexpr std::int32_t kGpuMilli = 1'000;  // a whole GPU
struct Device {
  std::string uuid;
  std::string model;              // of a MIG instance: of its GPU
  std::int64_t memory_bytes = 0;  // of a MIG instance: its own
  GpuSharing sharing = GpuSharing::Exclusive;
  std::int32_t part_milli = kGpuMilli; /* of its GPU; less for a MIG instance */
  std::string profile = {};            /* of a MIG instance: "1g.10gb" */
  bool operator==(const Device&) const = default;
};
// Milli-CPUs, bytes, whole GPUs; custom resources in thousandths (Ray allows fractions).
// Of a machine's way out of its site, for as long as it runs: kbit/s each way; and bytes through the filtered way out,
// in all. Nothing is counted where nothing is stated.
struct Traffic {
  std::int64_t up_kbps = 0, down_kbps = 0, volume_bytes = 0;
  bool any() const { return up_kbps > 0 || down_kbps > 0 || volume_bytes > 0; }
  bool operator==(const Traffic&) const = default;
};
inline constexpr std::int64_t kPairKbpsMax = 1'000'000'000;  // that a pair may be asked to carry
inline constexpr std::int64_t kAssumedLinkKbps = 20'000;     // a home's way out, where nothing is said of it
struct Resources {
  std::int64_t cpu_milli = 0;
  std::int64_t memory_bytes = 0;
  std::int64_t gpus = 0;
  std::int64_t disk_bytes = 0;
  std::int64_t object_store_bytes = 0;
  std::map<std::string, std::int64_t> custom_milli;
  Traffic traffic = {};
  bool operator==(const Resources&) const = default;
};
enum class RuntimeKind : std::uint8_t { Docker = 1, Venv = 2 };
enum class TrustTier : std::uint8_t { Community = 0, Verified = 1, Platform = 2 };  // never self-declared by an agent
// What an agent says about its machine; checked for sanity, never trusted for authority.
struct NodeFacts {
  std::string hostname, arch /* "x86_64" | "aarch64" */, os, kernel, agent_version, boot_id, region;
  Resources capacity;  // after the owner's reserve
  std::vector<Device> devices;
  std::vector<RuntimeKind> runtimes;  // what it can run
  // What was pulled or used for assignments and is still there: names as they were ordered, and digests. Nothing of
  // the owner's own. Bytes of those names, where the engine says so.
  std::vector<std::string> images;
  std::vector<std::string> lan;  // private "ip:port" UDP endpoints of netd, for the direct path
  bool egress_allowed = false;   // the owner consents to filtered egress
  std::map<std::string, std::string> labels;
  std::map<std::string, std::int64_t> image_bytes = {};
  bool operator==(const NodeFacts&) const = default;
};
// What the owner asks for a machine, and from whom it takes work (model/offer.h). Money is in millionths of a currency
// per hour. Version 0: nothing was ever stated, so whatever comes is taken, for nothing.
struct WeekHours {  // minutes of the owner's week from Monday 0:00, 0 <= from < to <= 10,080
  std::int32_t from = 0, to = 0;
  bool operator==(const WeekHours&) const = default;
};
struct ZoneOffset {  // of the owner's clock, from then on
  WallTime from;
  std::int32_t seconds = 0;  // local time is UTC and this
  bool operator==(const ZoneOffset&) const = default;
};
struct Offer {
  std::uint64_t version = 0;  // rises with every change
  std::string currency;
  std::int64_t price = 0, gpu_price = 0;  // of every lease; and of each GPU that it gets
  std::int64_t floor = 0, gpu_floor = 0;  // the least, taken from work that may pay no more; at most the price
  std::vector<OrgId> tenants;             // only these, and always the owner's own organisation; empty = all
  std::vector<std::string> images;        // beginnings of names, or "sha256:..." of a digest; empty = all
  Millis longest{0};                      // of a lease; 0 = no limit
  std::string schedule, zone;             // as it was said: "Mon-Fri 18:00-08:00", "Europe/Berlin"
  std::vector<WeekHours> hours;           // what that means, in order and apart; empty = always
  std::vector<ZoneOffset> offsets;        // of the zone's clock for years to come, in order; empty = UTC
  Millis notice{0};                       // before the hours end: nothing new, and what runs is told to leave
  bool operator==(const Offer&) const = default;
};
enum class NodeState : std::uint8_t {
  Enrolled = 1,
  Admitted = 2,
  Online = 3,
  Suspect = 4,
  Lost = 5,
  Draining = 6,
  Disabled = 7,
  Revoked = 8,
  Quarantined = 9  // its device key is in use on two machines; until somebody enables it again
};
struct Node {
  NodeId id;
  OrgId supplier;
  std::string name;
  Bytes device_key; /* Ed25519 public, 32 bytes */
  TrustTier tier = TrustTier::Community;
  NodeState state = NodeState::Enrolled;
  NodeFacts facts;
  std::map<std::string, std::string> labels;
  bool draining = false;
  WallTime enrolled_at, state_since;
  std::uint64_t revision = 0; /* desired revision */
  std::uint64_t failures = 0;
  WallTime backoff_until;
  bool barred = false;       /* an operator disabled it: only an operator enables it again */
  std::uint32_t strikes = 0; /* clusters in a row whose start failed on it, by its own fault as far as can be told */
  ClusterId struck_by;       /* the last of them */
  Offer offer = {};          /* in force for leases that begin from now on */
  bool operator==(const Node&) const = default;
};

// ---- clusters ---------------------------------------------------------------------------------------------------
// What counts among the machines that would do; the weights are in scheduler/policy.cpp.
enum class Policy : std::uint8_t { Balanced = 0, Pack = 1, Spread = 2, Cheap = 3, FastNetwork = 4 };
struct GpuChoice {  // one of the models that will do
  std::string model;
  std::int32_t speed_permille = 1'000;  // work done per hour, against the others
  bool operator==(const GpuChoice&) const = default;
};
struct NodeRequest {  // what one bundle (head or one worker) needs
  Resources resources;
  bool whole_machine = false;                      // no `resources` given: everything the node offers
  std::string gpu_model;                           // empty = any
  std::map<std::string, std::string> labels;       // Ray labels put on the node
  std::map<std::string, std::string> constraints;  // node labels that must match (region=eu, ...)
  std::vector<NodeId> pinned;                      // only these (the caller's own) nodes
  std::int64_t gpu_memory_bytes = 0;               // of each GPU, at least
  std::int32_t gpu_share_milli = 0;                // of its one GPU (resources.gpus is 1); 0 = whole ones
  std::vector<GpuChoice> gpu_any;                  // any of these models; empty = gpu_model decides
  bool operator==(const NodeRequest&) const = default;
};
struct WorkerGroup {
  std::string name;
  std::uint32_t min = 0, max = 0;
  NodeRequest request;
  std::vector<std::string> setup_commands;
  std::map<std::string, std::string> env;
  bool operator==(const WorkerGroup&) const = default;
};
struct FileMount {
  std::string path;
  std::string blob; /* sha256 hex of a tar in the blob store */
  bool operator==(const FileMount&) const = default;
};
struct ClusterSpec {
  std::string name;
  std::string image;  // reference as given (after the alias table); resolved to a digest by the agents' probe
  RuntimeKind runtime = RuntimeKind::Docker;
  std::string arch = "x86_64";
  std::string pool = "market";  // own | pool:NAME | market
  NodeRequest head;
  std::vector<WorkerGroup> groups;
  std::vector<std::string> head_setup_commands, setup_commands;
  std::map<std::string, std::string> env;
  std::vector<FileMount> files;
  std::uint32_t spares = 0;       // hot spares: container created, in the roster, Ray not started
  bool egress = false;            // needs the filtered way out
  std::int64_t shm_bytes = 0;     // 0 = derived from object store
  std::int64_t nofile = 65536;    // clamped to what the host allows, with a warning
  std::uint8_t tier = 1;          // 0 = highest class
  std::int32_t priority = 0;      // -100..100 inside the class
  Millis idle_timeout{0};         // idle workers leave after it; 0 = never
  Millis max_lifetime{0};         // 0 = unlimited
  std::uint32_t max_workers = 0;  // over all groups; 0 = the sum of their max
  Policy policy = Policy::Balanced;
  TrustTier min_trust = TrustTier::Community;  // only machines of this tier and better ones
  std::int64_t max_price = 0;  // for a machine and hour, in millionths of the currency; 0 = whatever is asked
  std::int64_t budget = 0;     // for all of it, from start to end: then it is stopped; 0 = no limit
  std::string currency;        // of both; empty = neither is given
  bool may_end_early = false;  // machines that their owners want back at a known time will do
  std::int64_t pair_kbps = 0;  // what each pair of its members should carry, each way; 0 = it does not say
  bool replace_slow = false;   // workers whose ways stay below that are replaced
  bool operator==(const ClusterSpec&) const = default;
};
enum class ClusterState : std::uint8_t { Queued = 1, Starting = 2, Running = 3, Stopping = 4, Stopped = 5, Failed = 6 };

// Epoch of a lease: compared lexicographically; a restored backup raises the incarnation, so nothing old wins.
struct Epoch {
  std::uint64_t incarnation = 0, leader = 0, counter = 0;
  constexpr auto operator<=>(const Epoch&) const = default;
};
enum class SlotRole : std::uint8_t { Head = 1, Worker = 2, Spare = 3 };
// One place in a cluster's roster. A replacement is a new slot; only the head's address is ever taken over.
struct Slot {
  SlotId id;
  ClusterId cluster;
  SlotRole role = SlotRole::Worker;
  std::string group;
  std::uint32_t address = 0; /* IPv4, host order */
  LeaseId lease;
  bool in_roster = false;
  Bytes overlay_key;       /* X25519 public, 32 B */
  Bytes overlay_signature; /* device-signed */
  bool operator==(const Slot&) const = default;
};
enum class LeaseWant : std::uint8_t { Run = 1, Standby = 2, Drain = 3, Stop = 4 };
enum class LeasePhase : std::uint8_t {  // as observed, in order of a life
  Pending = 0,
  Pulling = 1,
  Creating = 2,
  Standby = 3,
  Starting = 4,
  Ready = 5,
  Draining = 6,
  Stopped = 7,
  Failed = 8
};
enum class LeaseEnd : std::uint8_t { None = 0, Confirmed = 1 /* stop acknowledged */, Expired = 2, NeverStarted = 3 };
struct Lease {
  LeaseId id;
  NodeId node;
  ClusterId cluster;
  SlotId slot;
  Epoch epoch;
  Resources resources;
  std::vector<std::string> devices;
  LeaseWant want = LeaseWant::Run;
  LeasePhase phase = LeasePhase::Pending;
  LeaseEnd end = LeaseEnd::None;
  WallTime granted_at, ended_at;
  std::string reason;  // code of the last failure or stop, e.g. "image_probe.no_token_auth"
  std::uint32_t restarts = 0;
  // What was agreed when it was granted; an offer that changes later touches nothing of it.
  std::uint64_t offer_version = 0;
  std::int64_t price = 0; /* millionths of the currency an hour */
  std::string currency = {};
  WallTime leaves_at = {};      /* its owner wants the machine back: it is told to leave then; 0 = never */
  std::int32_t share_milli = 0; /* of its one device, as it was asked for; 0 = it has its devices whole */
  bool operator==(const Lease&) const = default;
};
struct ImageProbe {  // what the agent found in the image
  std::string digest, ray_version, python_version;
  bool token_auth = false, rocksdb = false;
  bool operator==(const ImageProbe&) const = default;
};
// What a machine carried for members of a cluster of others' on one day, as both ends signed it.
struct CarriedRow {
  OrgId tenant;             // whose cluster it was
  std::uint64_t bytes = 0;  // of ciphertext
  bool operator==(const CarriedRow&) const = default;
};
// A way between two members that stays below what the cluster asked for: as measured, never as used.
struct SlowPair {
  SlotId from, to;
  std::int64_t kbps = 0;  // when it was judged
  WallTime since;
  bool operator==(const SlowPair&) const = default;
};
struct Cluster {
  ClusterId id;
  ProjectId project;
  PrincipalId owner;
  ClusterSpec spec;
  ClusterState state = ClusterState::Queued;
  std::string reason;
  std::uint64_t generation = 1, roster_epoch = 0;
  std::uint32_t next_address = 1;
  std::vector<SlotId> slots;                    // live ones, head first
  std::map<std::string, std::uint32_t> wanted;  // group -> workers wanted now (autoscaler), within [min, max]
  Rare<ImageProbe> probe;
  WallTime created_at, started_at, ended_at, idle_since;
  JobId ephemeral_for;
  Rare<std::map<std::string, std::int64_t>> spent = {};  // by currency, millionths: what its ended leases cost
  std::vector<SlowPair> slow = {};                       // by (from, to), at most kSlowPairsMax (control/slow.h)
  SlotId replacing = {};                                 // a worker of these, once a machine is found for another
  std::uint32_t replaced = 0;                            // so many were
  WallTime replace_from = {};                            // no other before
  bool operator==(const Cluster&) const = default;
};

// ---- jobs -------------------------------------------------------------------------------------------------------
struct JobSpec {
  std::string name, entrypoint;
  std::string cluster; /* name; empty = an own, ephemeral cluster from `cluster_spec` */
  ClusterSpec cluster_spec;
  bool ephemeral = false;
  std::string runtime_env_json;
  std::string working_dir_blob; /* sha256 hex of a zip */
  std::map<std::string, std::string> metadata;
  std::uint32_t retries = 0;
  Millis timeout{0};
  std::string driver_json;  // what the driver itself occupies: num_cpus, num_gpus, memory, resources, label_selector
  bool operator==(const JobSpec&) const = default;
};
enum class JobState : std::uint8_t {
  Queued = 1,
  Starting = 2,
  Running = 3,
  Stopping = 4,
  Succeeded = 5,
  Failed = 6,
  Stopped = 7
};
struct Job {
  JobId id;
  ProjectId project;
  PrincipalId owner;
  ClusterId cluster;
  JobSpec spec;
  JobState state = JobState::Queued;
  std::uint32_t attempt = 0; /* 1 = first */
  std::int32_t exit_code = -1;
  std::string reason;
  std::uint64_t log_bytes = 0;
  WallTime created_at, started_at, ended_at;
  bool operator==(const Job&) const = default;
};

// ---- between control plane and agent -----------------------------------------------------------------------------
struct RosterEntry {
  SlotId slot;
  SlotRole role = SlotRole::Worker;
  std::uint32_t address = 0;
  NodeId node;
  Bytes overlay_key;
  Bytes overlay_signature;
  Bytes device_key;
  Epoch epoch;
  std::vector<std::string> lan;  // direct UDP endpoints worth a try
  bool operator==(const RosterEntry&) const = default;
};
struct JobOrder {  // desired: "this attempt of this job runs on your head"
  JobId job;
  std::uint32_t attempt = 0;
  std::string entrypoint, runtime_env_json, working_dir_blob;
  bool stop = false;
  std::map<std::string, std::string> metadata;
  std::string driver_json;
  bool operator==(const JobOrder&) const = default;
};
// Everything a node must know to hold one lease. The role is data. Secrets (Ray token, relay token, PSK) are not here:
// the server adds them when it encodes, from its key files.
struct Assignment {
  LeaseId lease;
  Epoch epoch;
  ClusterId cluster;
  SlotId slot;
  SlotRole role = SlotRole::Worker;
  LeaseWant want = LeaseWant::Run;
  std::string cluster_name, group, image;
  RuntimeKind runtime = RuntimeKind::Docker;
  Resources resources;
  std::vector<std::string> devices;
  std::uint32_t address = 0, head_address = 0;
  std::uint8_t prefix_bits = 16;
  std::uint64_t roster_epoch = 0;
  std::vector<RosterEntry> roster;
  std::vector<std::string> setup_commands;
  std::map<std::string, std::string> env, ray_labels;
  std::vector<FileMount> files;
  bool egress = false;
  std::int64_t shm_bytes = 0, nofile = 0;
  std::vector<JobOrder> jobs;
  std::vector<std::string> must_understand;  // feature names; an agent that lacks one refuses the assignment
  std::string image_asked = {};  // as the tenant named it, where there are policies; `image` may be pinned since
  std::vector<ImagePolicy> image_policies = {};  // that what the agent finds behind the image's name must satisfy
  std::int32_t gpu_share_milli = 0;              // of its one device, 0 = whole ones
  bool operator==(const Assignment&) const = default;
};
struct ObservedLease {
  LeaseId lease;
  Epoch epoch;
  LeasePhase phase = LeasePhase::Pending;
  std::string reason;
  Bytes overlay_key, overlay_signature;
  std::uint64_t roster_epoch = 0; /* acknowledged */
  ImageProbe probe;
  std::uint32_t restarts = 0;
  std::string ray_node_id;
  std::string output; /* last lines of what failed last; never in the journal */
  bool operator==(const ObservedLease&) const = default;
};
struct ObservedJob {
  JobId job;
  std::uint32_t attempt = 0;
  JobState state = JobState::Starting;
  std::int32_t exit_code = -1;
  std::string reason;
  std::uint64_t log_bytes = 0;
  bool operator==(const ObservedJob&) const = default;
};
// What Ray on a head says about itself (from the helper); hostile input, bounded by max and quota.
struct RayNodeReport {
  std::string ray_node_id;
  std::uint32_t address = 0;
  bool alive = false;
  Millis idle{0};
  Resources total, free;
  bool operator==(const RayNodeReport&) const = default;
};
struct RayDemand {
  Resources bundle;
  std::uint32_t count = 0;
  bool strict_spread = false;  // each unit, over all demands of the same group, on a node of its own
  std::uint32_t group = 0;     // the placement group it belongs to, by a number of the report's own
  bool standing = false;       // a floor for the whole cluster (request_resources), not work that waits
  bool operator==(const RayDemand&) const = default;
};
struct RayReport {
  ClusterId cluster;
  LeaseId lease;
  std::vector<RayNodeReport> nodes;
  std::vector<RayDemand> demands;
  bool operator==(const RayReport&) const = default;
};

}  // namespace muster
