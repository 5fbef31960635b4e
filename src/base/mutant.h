#pragma once
// Planted faults of the simulation. A test build (MUSTER_MUTANTS) may switch one on; each must be caught by an invariant
// checker. Everywhere else mutant() is a constant false and the fault is compiled out. One switch for the whole process.
#ifdef MUSTER_MUTANTS
#include <atomic>
#endif

namespace muster {

enum class Mutant : int {
  None = 0,
  // control: 1..49
  SkipEpochCheck = 1,           // an observation with a stale epoch is believed
  FreeDevicesAtDecision = 2,    // devices are free when the stop is ordered, not when it is confirmed
  ReuseAddress = 3,             // a replacement gets the overlay address of the slot it replaces
  ForgetFreeze = 4,             // mass silence evicts workers that nothing replaces
  AcceptUsedJoinToken = 5,      // a one-use token enrols a second machine
  PromoteInsideRoster = 6,      // the spare is promoted while the lost worker stays in the roster
  GrantDevicesTwice = 7,        // a grant does not look at the devices other leases hold
  PartialGang = 8,              // a start is committed with one worker missing
  IgnoreRequestHash = 9,        // the same idempotency key answers for another request
  RetryPastLimit = 10,          // a job is tried once more than its retries allow
  KeepRemovedLease = 11,        // the lease of a removed slot is not told to stop
  AcceptWrongNode = 12,         // a node may report about the lease of another node
  ForgetRevision = 13,          // a roster change does not raise the members' desired revision
  StopNeverConfirmed = 14,      // a confirmed stop does not end the lease
  ForgetIdempotency = 15,       // a repeated request makes a second object
  TwoLeasesOneSlot = 16,        // a plan is applied although the cluster no longer wants it
  SkipAccessCheck = 17,         // the core does not check the caller's rights again
  WallTimeRunsBack = 18,        // the journal takes a clock that stepped back
  EndedLeaseInDesired = 19,     // a lease that ended is still sent to its node
  ExpireWhileFrozen = 20,       // leases end for everyone when we are the ones cut off
};

#ifdef MUSTER_MUTANTS
inline std::atomic<int>& mutant_switch() {
  static std::atomic<int> id{0};
  return id;
}
inline bool mutant(int id) { return mutant_switch().load(std::memory_order_relaxed) == id; }
inline bool mutant(Mutant id) { return mutant(static_cast<int>(id)); }
inline void set_mutant(int id) { mutant_switch().store(id, std::memory_order_relaxed); }
inline void set_mutant(Mutant id) { set_mutant(static_cast<int>(id)); }
#else
constexpr bool mutant(int) { return false; }
constexpr bool mutant(Mutant) { return false; }
#endif

}  // namespace muster
