#pragma once
// The server's end of every lease, on LeaseTime, in memory only: a lease may be taken as ended when `lease` plus a
// margin (for drift of the clocks and the way of the frame) passed since the last reply that renewed it. The agent
// counts from the send of its heartbeat, so it has always fenced itself before. After a takeover nothing is known:
// every lease gets now + lease + margin. Single-threaded.
#include <cstdint>
#include <optional>
#include <set>
#include <unordered_map>
#include <vector>

#include "base/id.h"
#include "base/time.h"

namespace muster::session {

class LeaseTable {
 public:
  // The margin covers a drift of 1 % between two boot clocks plus 30 s; real crystals are two orders better.
  explicit LeaseTable(Millis lease = Millis(2'400'000)) : lease_(lease), margin_(lease / 100 + Millis(30'000)) {}
  void start(const std::vector<LeaseId>& live, LeaseTime now);  // leadership begins
  void granted(LeaseId lease, LeaseTime now);                   // its first Desired is about to leave, or may have left
  void renewed(LeaseId lease, LeaseTime now);         // a Renewed that names it leaves now; unknown ones are ignored
  void ended(LeaseId lease);                          // confirmed stop or journalled end
  std::vector<LeaseId> expired(LeaseTime now) const;  // to become LeasesExpired; repeated until ended()
  std::optional<LeaseTime> find(LeaseId lease) const;
  LeaseTime next_deadline() const;
  Millis lease() const { return lease_; }
  std::size_t size() const { return ends_.size(); }

 private:
  void put(LeaseId lease, LeaseTime end);
  Millis lease_, margin_;
  std::unordered_map<LeaseId, LeaseTime> ends_;
  std::set<std::pair<LeaseTime, LeaseId>> order_;
};

}  // namespace muster::session
