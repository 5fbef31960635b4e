#pragma once
// What goes into the scheduler and what comes out of it, as plain values. Everything numeric may be hostile: it is
// clamped on the way in. Money is in millionths of a credit, bandwidth in kbit/s, probabilities in millionths.
#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "model/coordinate.h"
#include "model/types.h"

namespace muster::scheduler {

inline constexpr std::size_t kTiers = 10;

// ---- machines ---------------------------------------------------------------------------------------------------
// Mig: the planner chooses where on the GPU an instance is made. Instance: one that is there, which is taken whole.
enum class Sharing : std::uint8_t { Exclusive = 0, TenantShares = 1, Mig = 2, Instance = 3 };
struct DeviceUse {  // of a device that is not simply free or taken; others need none
  std::string uuid;
  Sharing sharing = Sharing::TenantShares;
  std::int32_t free_milli = 1'000;  // of one GPU
  OrgId holder;                     // who has shares on it: nobody else gets more (TenantShares)
  std::uint8_t mig_used = 0;        // memory slots taken, bit 0 = slot 0 (Mig)
  std::int32_t instance_milli = 0;  // of its GPU, taken or not (Instance)
  bool operator==(const DeviceUse&) const = default;
};
struct Interval {
  WallTime from, to;
  bool operator==(const Interval&) const = default;
};
struct Link {  // of the site to the world; 0 = not known
  std::int64_t up_kbps = 0, down_kbps = 0, lan_kbps = 0;
  std::int64_t quota_bytes = -1;                    // what is left of this machine's transfer quota; -1 = none
  std::int64_t egress_per_gib = 0;                  // price
  bool relayed = false;                             // reached through a relay only
  std::int64_t own_up_kbps = 0, own_down_kbps = 0;  // the owner's limits for this machine; 0 = none
  bool operator==(const Link&) const = default;
};
struct Reliability {  // per hour of work; nothing observed yet = no hours
  std::int64_t failures_ppm = 0, uncertainty_ppm = 0;
  std::int64_t observed_hours = 0;
  bool newcomer() const { return observed_hours < 48 && uncertainty_ppm > 0; }
  std::array<std::uint8_t, 24> by_hour{};  // UTC, 100 = the average; all 0 = flat
  bool operator==(const Reliability&) const = default;
};
struct Offer {                                             // what the supplier wants; empty and 0 = whatever comes
  std::int64_t price_per_gpu_hour = 0, price_per_hour = 0; /* of each GPU taken, and of the lease */
  std::int64_t floor_per_gpu_hour = 0, floor_per_hour = 0; /* the least, from who may pay no more */
  std::string currency;
  std::uint64_t price_version = 0;
  std::vector<OrgId> tenants, refused;  // only these; never these
  std::vector<std::string> images;      // beginnings of image names, or of digests; only these
  Millis shortest{0}, longest{0};       // of the work
  std::vector<Interval> hours;          // when it may be used; empty = always
  Millis notice{0};                     // the owner may want it back this much before an interval ends
  bool operator==(const Offer&) const = default;
};
struct NodeView {  // a machine and what is free on it now
  NodeId node;
  OrgId supplier;
  TrustTier tier = TrustTier::Community;
  std::string arch;
  Resources free, capacity;
  std::vector<std::string> free_devices; /* wholly free */
  std::vector<Device> devices;
  std::vector<DeviceUse> shared;
  std::vector<RuntimeKind> runtimes;
  std::map<std::string, std::string> labels;
  std::vector<std::string> taints;
  std::vector<std::string> images, datasets;       /* held here */
  std::map<std::string, std::int64_t> image_bytes; /* of those, where it is known */
  std::string site, isp, jurisdiction;             /* failure domains and law; region is a label */
  std::uint32_t driver = 0, cuda = 0;              /* major * 1000 + minor */
  Link link;
  Reliability reliability;
  Offer offer;
  bool egress = false;
  bool schedulable = false;  /* online, not draining */
  std::uint64_t version = 0; /* allocation version: rises with every grant and end, not with telemetry */
  WallTime backoff_until;
  bool whole = true;    /* nothing is leased on it */
  Traffic traffic = {}; /* that its leases have stated */
  bool operator==(const NodeView&) const = default;
};

// ---- requests ---------------------------------------------------------------------------------------------------
struct Bundle {  // `count` machines of the same kind
  SlotRole role = SlotRole::Worker;
  std::string group;
  NodeRequest request;
  std::uint32_t count = 1;
  bool failover = false; /* of grow: takes the place of lost machines, or is a spare; may use its tier's headroom */
  bool operator==(const Bundle&) const = default;
};
// What a cluster still needs: all of `gang` at once (start, or below its minimum) or any of `grow` (elastic, spares).
struct Request {
  ClusterId cluster;
  OrgId tenant;
  ProjectId project;
  std::uint8_t tier = 1;
  std::int32_t priority = 0;
  WallTime since;
  std::string pool, arch;
  RuntimeKind runtime = RuntimeKind::Docker;
  std::string image;
  bool egress = false;
  std::vector<Bundle> gang, grow;
  Policy policy = Policy::Balanced;                  /* what counts among the machines that would do */
  TrustTier min_trust = TrustTier::Community;        /* only machines of this tier and better ones */
  std::int64_t max_price = 0;                        /* for a machine and hour; 0 = whatever is asked */
  std::string currency;                              /* of it, and of a budget; empty = any */
  bool may_end_early = false;                        /* machines with ending hours will do, whatever its length */
  Millis longest{0};                                 /* it is stopped at most so long after its start; 0 = no limit */
  bool running = false;                              /* it has members already: `gang` brings it back to its minimum */
  std::int64_t pair_kbps = 0;                        /* what each pair of its machines should carry; 0 = not said */
  std::vector<NodeId> avoid;                         /* nodes it already uses or failed on */
  std::vector<std::pair<NodeId, WallTime>> backoff;  // failed (request, node) pairs
  bool operator==(const Request&) const = default;
};

// ---- what runs --------------------------------------------------------------------------------------------------
struct LeaseView {  // a grant: it holds its resources on its node until LeaseGone
  LeaseId lease;
  ClusterId cluster;
  NodeId node;
  SlotRole role = SlotRole::Worker;
  Resources resources;
  std::vector<std::string> devices;
  bool leaving = false; /* told to stop or draining */
  OrgId tenant;
  ProjectId project;
  std::uint8_t tier = 1;        /* of its cluster */
  WallTime since;               /* granted */
  bool preempted = false;       /* it leaves to make room */
  bool moved = false;           /* and has another machine already (with preempted) */
  std::string group = {};       /* of workers */
  std::int32_t share_milli = 0; /* of its one device, 0 = whole ones */
  bool operator==(const LeaseView&) const = default;
};

// ---- changes ----------------------------------------------------------------------------------------------------
struct NodeChanged {
  NodeView node;
};
struct NodeGone {
  NodeId node;
};
struct RequestChanged {
  Request request;
};
struct RequestGone {
  ClusterId cluster;
};
struct LeaseChanged {
  LeaseView lease;
};
struct LeaseGone {
  LeaseId lease;
  WallTime at = {}; /* when it ended; 0 = not known */
};
// Until when a cluster may hold machines. No end: its machines are never counted on.
struct TermsChanged {
  ClusterId cluster;
  WallTime ends_by;  /* it is stopped then; 0 = never, or not known yet */
  Millis longest{0}; /* while that is not all that is known: at most so long after its start; 0 = no limit */
};
struct TermsGone {
  ClusterId cluster;
};
struct FreezeChanged {  // no preemption, no moves
  bool frozen = false;
};
// What a cluster asks for in all, whether it waits, runs or has ended: the workload that placements keep room for.
// Empty: forget it. Waiting requests need none.
struct DemandChanged {
  ClusterId cluster;
  std::vector<std::pair<NodeRequest, std::uint32_t>> needs;
};
// What was learned of the work that is expected: shapes and how often they were seen. Part of a full snapshot; without
// it a rebuilt scheduler learns anew from what it is told.
struct LearnedShape {
  std::int64_t cpu_milli = 0, devices = 0, share = 0;
  std::vector<std::string> models; /* accepted; empty = any */
  std::int64_t times = 0;
  std::int32_t weight = 0; /* in the scores now, of 65,536 */
  bool operator==(const LearnedShape&) const = default;
};
struct LearnedChanged {
  std::vector<LearnedShape> shapes;
  std::int64_t arrivals = 0, learn_at = 0; /* arrivals so far, and at which the scores follow again */
  bool due = false;                        /* they follow with the next plan */
};
// How long work of a tenant (0: of everybody) lasted, counted by steps of its length. Part of a full snapshot.
struct RunsChanged {
  OrgId tenant;
  std::vector<std::uint32_t> steps;
};
// What came lately, the oldest first, each for `times` of its kind: the future is played with more of the same. Part of
// a full snapshot, after the requests.
struct Arrival {
  Request request;
  std::uint32_t times = 1;
};
struct ArrivalsChanged {
  std::vector<Arrival> arrivals;
};
// What a worker of a running cluster needs on another machine: one bundle for each group, in `gang`. Told of those that
// agreed to be interrupted; without bundles: it cannot be moved any more.
struct ShapeChanged {
  ClusterId cluster;
  Request request;
};
// What is kept back for failovers, all of it; one row for a model. Machines of named pools are not: they are another's.
struct HeadroomChanged {
  std::vector<Headroom> rows;
};
struct DayChanged {  // another seed for the order among equals
  std::uint64_t seed = 0;
};
// What a project, or a tenant in all, held on average until then, the past fading: milli-CPU, MiB, milli-GPU in units
// of 2^-20. Part of a full snapshot, after the leases that still live: it has what they held until then.
struct UsageChanged {
  OrgId tenant;
  ProjectId project;
  bool whole_tenant = false; /* of all its projects */
  std::int64_t cpu = 0, memory = 0, gpu = 0;
  WallTime as_of;
  bool operator==(const UsageChanged&) const = default;
};
// What a machine measured of its way to another: how it goes, what it carries in that direction (0 = it was never
// full), the round trip (0 = not known).
enum class PathKind : std::uint8_t { Relay = 1, Lan = 2, Direct = 3 };
struct PathSeen {
  NodeId from, to;
  PathKind kind = PathKind::Direct;
  std::int64_t kbps = 0;
  std::int32_t rtt_us = 0;
  WallTime at;
  WallTime measured = {}; /* when it was full; 0 = then */
  bool operator==(const PathSeen&) const = default;
};
// Measured, not decided: told by whoever hears it, and nobody but the scheduler remembers it.
struct PathsChanged {
  std::vector<PathSeen> paths;
};
// Where machines lie, as round trips foretell it; all zero = not known. Told and remembered like paths.
struct CoordinatesChanged {
  std::vector<std::pair<NodeId, Coordinate>> places;
  bool operator==(const CoordinatesChanged&) const = default;
};
// The weight of a project, or of a tenant as a whole, and what is guaranteed to it (milli-CPU, GPUs; 0 = nothing).
struct ShareChanged {
  OrgId tenant;
  ProjectId project;
  bool whole_tenant = false;
  Share share;
  bool operator==(const ShareChanged&) const = default;
};
// What the work of each tier holds at least, as a part of the pool (thousandths; 0 = nothing is guaranteed): a tier
// that holds less goes before better ones, and no better one takes from it. All of them.
struct TierSharesChanged {
  std::array<std::int32_t, kTiers> permille{};
  bool operator==(const TierSharesChanged&) const = default;
};
// How often work is lost on machines, as far as is known. Told and remembered like paths.
struct ReliabilityChanged {
  std::vector<std::pair<NodeId, Reliability>> nodes;
  bool operator==(const ReliabilityChanged&) const = default;
};
using Change = std::variant<NodeChanged, NodeGone, RequestChanged, RequestGone, FreezeChanged, DemandChanged,
                            LeaseChanged, LeaseGone, TermsChanged, TermsGone, LearnedChanged, DayChanged, RunsChanged,
                            ArrivalsChanged, UsageChanged, ShareChanged, PathsChanged, HeadroomChanged, ShapeChanged,
                            TierSharesChanged, CoordinatesChanged, ReliabilityChanged>;

// Work of this tier and of later ones agreed to be interrupted: by requests of a better tier than its own, and by those
// of its own tier that are within a guarantee while it stands on more than its owner's; but not before it had that
// long.
inline constexpr std::uint8_t kPreemptibleTier = 2;
inline constexpr Millis kPreemptAfter{120'000};
// A worker of it may be moved so that a larger request fits, but not before it had that long where it is.
inline constexpr Millis kMoveAfter{600'000};

// ---- plans ------------------------------------------------------------------------------------------------------
struct Place {
  SlotRole role = SlotRole::Worker;
  std::string group;
  NodeId node;
  Resources resources;
  std::vector<std::string> devices;
  std::int32_t share_milli = 0; /* of the one device, 0 = whole devices */
  std::int32_t mig_start = -1;  /* first memory slot, where the device is split that way */
  std::uint64_t node_version = 0;
  bool operator==(const Place&) const = default;
};
enum class ActionKind : std::uint8_t { Start = 1, Grow = 2, Preempt = 3, Move = 4 };
struct Group {  // atomic: committed whole or refused whole
  ActionKind kind = ActionKind::Start;
  ClusterId cluster;
  std::vector<Place> places;
  WallTime expires;
  // Preempt, Move: told to leave, all or none, so that `cluster` can start. Move: the places are theirs, in that order.
  std::vector<LeaseId> victims = {};
  bool operator==(const Group&) const = default;
};
// Why a request waits, as a code with parameters; the audience is the tenant, so nothing of other tenants is in it.
struct Reason {
  std::string code;
  std::map<std::string, std::string> params;
  std::string text;
  bool operator==(const Reason&) const = default;
};
struct QueueView {
  ClusterId cluster;
  std::uint32_t position = 0; /* 1 = next in its class */
  Reason reason;
  WallTime expected_start;
  bool known = false;
  bool operator==(const QueueView&) const = default;
};

struct Budget {
  std::uint32_t groups_max = 64;
};

}  // namespace muster::scheduler
