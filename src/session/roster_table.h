#pragma once
// Who acknowledged which roster, beside the core, on LeaseTime, in memory only (agents repeat their word with every
// session). When a member left a cluster, everybody who stays must say within `limit` that it holds a roster without
// it; who does not is late and is to leave too, so that whoever is out is cut off from all who are in. Members that
// joined need no acknowledgement by the others. acknowledged() is what the takeover of a head's address will ask.
// Level-triggered: update() compares with what it knows; repeated and late calls do no harm. Bounded by the members of
// living clusters and kPendingMax removals each. Single-threaded.
#include <cstdint>
#include <deque>
#include <map>
#include <unordered_map>
#include <vector>

#include "base/id.h"
#include "base/time.h"

namespace muster::session {

struct RosterMember {
  LeaseId lease;
  bool head = false;
};
struct RosterOptions {
  Millis limit{60'000};        // two tries of an agent to apply a roster
  Millis head_limit{300'000};  // a late head costs its cluster
};

class RosterTable {
 public:
  explicit RosterTable(RosterOptions options = {}) : options_(options) {}
  void start() { clusters_.clear(), acknowledged_.clear(); }
  // The roster of a cluster as the core holds it: `epoch` and who is in it. `from`: when the removals in it count from.
  void update(ClusterId cluster, std::uint64_t epoch, const std::vector<RosterMember>& members, LeaseTime from);
  // Whatever is in the roster must be acknowledged anew: after a takeover nothing is known.
  void demand(ClusterId cluster, LeaseTime from);
  void forget(ClusterId cluster);  // ended
  // The holder's word; counts for members that update() is yet to tell of, too.
  void acknowledged(LeaseId lease, std::uint64_t epoch);
  void ended(LeaseId lease) { acknowledged_.erase(lease); }
  std::vector<LeaseId> late(LeaseTime now);  // repeated until update() says they left
  // Every member but `lease` holds a roster of `epoch` or newer.
  bool acknowledged_by_all(ClusterId cluster, std::uint64_t epoch, LeaseId but = {}) const;
  std::size_t size() const { return acknowledged_.size(); }

 private:
  static constexpr std::size_t kPendingMax = 64;
  struct Member {
    bool head = false;
    LeaseTime joined{0};
  };
  struct Removal {
    std::uint64_t epoch = 0;
    LeaseTime at{0};
  };
  struct Cluster {
    std::uint64_t epoch = 0;
    std::map<LeaseId, Member> members;
    std::deque<Removal> removals;  // not acknowledged by all yet, oldest first
  };
  std::uint64_t word_of(LeaseId lease) const;
  RosterOptions options_;
  std::map<ClusterId, Cluster> clusters_;
  std::unordered_map<LeaseId, std::uint64_t> acknowledged_;  // of living leases
};

}  // namespace muster::session
