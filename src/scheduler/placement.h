#pragma once
// The machines of one gang, or of what a cluster grows by, one after the other under the cluster's policy: apart from
// those that it has, or together with them. Lives for one decision. Private.
#include <string>
#include <vector>

#include "scheduler/impl.h"
#include "scheduler/policy.h"

namespace muster::scheduler {

class Scheduler::Impl::Placement {
 public:
  Placement(Impl& impl, std::uint32_t item, WallTime now);  // what it leaves out is marked already
  Found best(const Query& query);
  void chose(std::uint32_t node);  // it has this one now

 private:
  void leave_out_domains_of(std::uint32_t node);
  void gather(std::uint32_t item, WallTime now);
  std::vector<std::uint32_t> most_fitting(const std::vector<Query>& queries, const Class& c, bool by_site) const;

  Impl& impl_;
  const Domains domains_;
  std::vector<std::uint32_t> never_;                // what may not be had at all
  std::vector<std::uint32_t> sites_, suppliers_;    // Apart: left out besides, sorted; the second holds the first
  std::vector<std::vector<std::uint32_t>> wishes_;  // Together: machines to take from, the best first
};

}  // namespace muster::scheduler
