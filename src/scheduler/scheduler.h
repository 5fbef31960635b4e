#pragma once
// The scheduler: a pure library with incremental state. apply(change) keeps it equal to a rebuild from the full
// snapshot; plan(budget) proposes actions in atomic groups. It decides nothing: the core re-validates every group by
// predicate at commit. No clock, I/O, randomness, threads, floating point. Single-threaded; the caller owns it.
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "model/types.h"

namespace muster::scheduler {

struct NodeView {  // a schedulable machine: what is free now
  NodeId node;
  OrgId supplier;
  TrustTier tier = TrustTier::Community;
  std::string arch;
  Resources free;
  std::vector<std::string> free_devices;
  std::vector<Device> devices;
  std::vector<RuntimeKind> runtimes;
  std::map<std::string, std::string> labels;
  std::vector<std::string> images;
  bool egress = false;
  bool schedulable = false;  /* online, not draining, not backed off */
  std::uint64_t version = 0; /* allocation version */
  WallTime backoff_until;
  bool whole = true; /* nothing is leased on it */
  bool operator==(const NodeView&) const = default;
};
struct Bundle {
  SlotRole role = SlotRole::Worker;
  std::string group;
  NodeRequest request;
  bool operator==(const Bundle&) const = default;
};
// What a cluster still needs: all of `gang` at once (start) or any of `grow` (elastic, replacements, spares).
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
  std::vector<NodeId> avoid;                         /* nodes it already uses or failed on */
  std::vector<std::pair<NodeId, WallTime>> backoff;  // failed (request, node) pairs
  bool operator==(const Request&) const = default;
};
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
struct FreezeChanged {
  bool frozen = false;
};
// What a cluster asks for in all, whether it waits, runs or has ended: the workload that placements keep room for.
// Empty: forget it.
struct DemandChanged {
  ClusterId cluster;
  std::vector<std::pair<NodeRequest, std::uint32_t>> needs;
};
using Change = std::variant<NodeChanged, NodeGone, RequestChanged, RequestGone, FreezeChanged, DemandChanged>;

struct Place {
  Bundle bundle;
  NodeId node;
  Resources resources;
  std::vector<std::string> devices;
  std::uint64_t node_version = 0;
  bool operator==(const Place&) const = default;
};
enum class ActionKind : std::uint8_t { Start = 1, Grow = 2, Preempt = 3 };
struct Group {  // atomic: committed whole or refused whole
  ActionKind kind = ActionKind::Start;
  ClusterId cluster;
  std::vector<Place> places;
  WallTime expires;
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

class Scheduler {
 public:
  Scheduler();
  ~Scheduler();
  Scheduler(Scheduler&&) noexcept;
  Scheduler& operator=(Scheduler&&) noexcept;
  void apply(const Change& change);
  std::vector<Group> plan(const Budget& budget, WallTime now);
  // Position, reason and expected start of every waiting request, computed on read.
  std::vector<QueueView> queue(WallTime now) const;
  // One page of the same, and one request of it; position 0 and code "not_waiting" when the cluster waits for nothing.
  std::vector<QueueView> queue_page(WallTime now, std::size_t offset, std::size_t limit) const;
  QueueView queue_of(ClusterId cluster, WallTime now) const;
  std::size_t waiting() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace muster::scheduler
