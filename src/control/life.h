#pragma once
// What happens to clusters, slots, leases and jobs, as steps on a Draft: each step keeps the invariants (a slot that
// left never returns, devices are free only after an ended lease, an ephemeral cluster ends with its job). The cluster
// has been pulled. Private to control.
#include <functional>
#include <map>
#include <string>

#include "control/draft.h"

namespace muster::control {

inline constexpr Millis kArchiveAfter{3'600'000};
inline constexpr Millis kDrainMax{60'000};    // then a draining worker is stopped
inline constexpr Millis kJobStopMax{60'000};  // then a stop counts as done
inline constexpr Millis kBackoffFirst{10'000}, kBackoffMax{1'800'000};
// A machine on which the starts of so many clusters in a row failed gets nothing for a while, longer each time.
inline constexpr std::uint32_t kStrikesMax = 3, kStrikeFormat = 2;
inline constexpr Millis kStruckFirst{600'000}, kStruckMax{21'600'000};
inline constexpr Millis kRetryFirst{1'000}, kRetryMax{300'000};
// How many failed workers a start bears, by what brought them down: its own setup commands, or anything else of its
// own.
inline constexpr std::uint32_t kSetupFailuresMax = 3, kStartFailuresMax = 10;
inline constexpr Millis kHoursAnew{std::int64_t{7} * 24 *
                                   3'600'000};  // then the planner hears of a machine's hours anew
inline constexpr std::size_t kJobsEndedAtOnce = 500;
// Why a lease was ended whose machine exists twice: until its time is over nobody's word about it counts, since what it
// is about may be said by the other one.
inline constexpr std::string_view kContested = "key_used_twice";
// Why a lease leaves that makes room for work of a better tier.
inline constexpr std::string_view kPreempted = "preempted";
// Why a lease leaves whose work goes on on another machine, so that a larger request fits.
inline constexpr std::string_view kMoved = "moved";
inline bool contested(const Lease& lease) {
  return lease.want == LeaseWant::Stop && lease.reason == kContested;
}

// Why a worker leaves whose ways to others stay below what the cluster asked for.
inline constexpr std::string_view kSlowWays = "slow_pair";
// The next replacement for that may be so much later, twice as much with each; and the cluster leaves the machine alone
// for so long.
inline constexpr Millis kReplaceAgain{600'000}, kApart{3'600'000};
inline constexpr std::uint32_t kReplaceDoublings = 5;
// What a cluster lacks now. Slots on lost nodes count as missing: they are replaced when somebody can take their place.
struct Missing {
  bool head = false;
  std::map<std::string, std::uint32_t> workers;
  std::uint32_t spares = 0;
  bool none() const { return !head && workers.empty() && spares == 0; }
};
using FindNode = std::function<const Node*(NodeId)>;
Missing missing_of(const State& state, const Cluster& cluster, const FindNode& find_node);
// Of the workers that it lacks, by group, those that take the place of lost ones: on machines that are lost, or below
// the minimum that it started with. Never more than it lacks.
std::map<std::string, std::uint32_t> failovers_of(const State& state, const Cluster& cluster,
                                                  const FindNode& find_node);
// The worker that is to be replaced for its slow ways and still works: it counts as missing, so that another is sought.
// 0: none, or it leaves anyway.
SlotId worker_to_replace(const State& state, const Cluster& cluster, const FindNode& find_node);
// What of it the quotas allow now: a start whole or not at all, else as many as fit.
Missing within_quota(const State& state, const Cluster& cluster, Missing missing);
const WorkerGroup* find_group(const ClusterSpec& spec, const std::string& name);
bool fits(const Resources& need,
          const Resources& have);  // CPU, memory, GPUs, disk; custom resources are Ray's own words

void lose_slot(Draft& d, SlotId slot, const std::string& reason);  // out of the roster; a ready spare takes its place
bool replace_by_spare(Draft& d, SlotId slot, const std::string& reason);  // only if a spare is ready
void drain_slot(Draft& d, SlotId slot, const std::string& reason);
void end_lease(Draft& d, LeaseId lease, LeaseEnd end, const std::string& reason);
void back_off(Draft& d, ClusterId cluster, NodeId node);
void stop_cluster(Draft& d, ClusterId cluster, const std::string& reason);
void fail_cluster(Draft& d, ClusterId cluster, const std::string& reason);
void end_jobs(Draft& d, ClusterId cluster);  // of a cluster that is gone, a bounded number
void finish_job(Draft& d, JobId job, JobState state, std::int32_t exit_code, const std::string& reason);
void start_jobs(Draft& d, ClusterId cluster);
// The cluster's state and reason follow its leases; surplus workers and spares leave; waiting jobs start.
void settle(Draft& d, ClusterId cluster);
WallTime end_of_life(const Cluster& cluster, WallTime now);

}  // namespace muster::control
