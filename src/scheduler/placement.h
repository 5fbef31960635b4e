#pragma once
// The machines of one gang, or of what a cluster grows by, one after the other under the cluster's policy: apart from
// those that it has, or together with them. Lives for one decision. Private.
#include <vector>

#include "scheduler/impl.h"
#include "scheduler/policy.h"

namespace muster::scheduler {

class Scheduler::Impl::Placement {
 public:
  Placement(Impl& impl, std::uint32_t item, WallTime now, Reach reach);  // what it leaves out is marked already
  Found best(std::uint32_t need, const Query& query);                    // the need's query
  void chose(std::uint32_t node);                                        // it has this one now

 private:
  void leave_out_domains_of(std::uint32_t node);
  void leave_out_relayed_from(std::uint32_t node);
  void gather(const Class& c, std::uint32_t item, Reach reach);
  std::vector<std::uint32_t> candidates(const std::vector<Query>& queries, const std::vector<std::uint32_t>& members,
                                        std::uint32_t needed) const;
  bool leaves_enough(std::uint32_t need, std::uint32_t node) const;

  Impl& impl_;
  const WallTime now_;
  const Domains domains_;
  std::vector<std::uint32_t> never_;              // what may not be had at all
  std::vector<std::uint32_t> sites_, suppliers_;  // Apart: left out besides, sorted; the second holds the first
  // Together: machines that suit each other, enough for all of it; of each need those that can host it, best first.
  std::vector<std::uint32_t> together_;
  std::vector<std::uint64_t> hosts_;  // of those: bit n, it can host need n
  std::vector<std::vector<Found>> wishes_;
  std::vector<std::size_t> looked_at_;  // by need: wishes that are gone
  std::vector<std::uint32_t> left_;     // by need: machines that are not chosen yet
};

}  // namespace muster::scheduler
