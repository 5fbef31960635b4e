#pragma once
// The state as it will be after the events decided so far: decide() works here, because the second event of a decision
// must see the first. Only what is pulled is copied (a cluster with its live leases and jobs, a node, a job), emit()
// folds the event into the copy by the same apply() that replay uses. Lives for one decision. Private to control.
#include <vector>

#include "control/core.h"
#include "control/quota.h"

namespace muster::control {

inline constexpr std::size_t kActiveJobsMax = 64;  // of one cluster at a time; the rest queues

class Draft {
 public:
  Draft(const State& base, const Actor& actor, WallTime wall);

  bool pull(ClusterId id);  // false: there is no such cluster
  bool pull(NodeId id);
  bool pull(JobId id);
  bool pull(LeaseId id);  // with its slot, without its cluster
  void emit(Event event);

  // Pulled objects from the draft, others from the base.
  const Node* node(NodeId id) const;
  const Lease* lease(LeaseId id) const;
  const Slot* slot(SlotId id) const;
  Backoff backoff(ClusterId cluster, NodeId node) const;
  std::uint32_t failures(ClusterId cluster) const;  // of its workers so far, on all machines
  QuotaBounds quota(ProjectId project) const;
  Cluster& cluster(ClusterId id) { return state.clusters.at(id); }  // pulled before

  const State& base;
  const WallTime wall;
  State state;
  std::vector<Event> events;

 private:
  void pull_timer(TimerKind kind, std::uint64_t id);
  EntryContext context_;
};

}  // namespace muster::control
