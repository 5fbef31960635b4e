#pragma once
// privd's watch over the owner's limits, on a thread of its own: once a second it decides whether the machine may work
// (owner.h), ends what runs when it may not, keeps the power cap of hired GPUs and tells netd its bandwidth by a file
// that only root writes. Neither server nor agent take part. Thread-safe.
#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <set>
#include <string>
#include <thread>

#include "host/grants.h"
#include "host/layout.h"
#include "host/owner.h"
#include "host/power.h"
#include "host/runtime.h"

namespace muster::host {

inline constexpr int kOwnerGrace = 3;  // seconds that running work gets when the owner wants the machine

class OwnerGuard {
 public:
  // stop: ends everything that runs of this lease, within the seconds given.
  OwnerGuard(const Layout& layout, Runtime& runtime, Grants& grants,
             std::function<void(const std::string& lease, int grace_s)> stop);
  ~OwnerGuard();
  void start();
  void stop();
  Gate gate();                                      // decided now, with the signs of the last second
  Status allowed();                                 // PermissionDenied with the gate's reason while it is closed
  void poke();                                      // a lease came or went: look again at once
  void saw(const std::vector<LeaseState>& leases);  // a fresh list of the engine's
  std::vector<LeaseState> leases() const;           // the last list; never asks the engine, which may hang

 private:
  void run();
  void turn();
  void end_all();
  void tell_netd(const Policy& policy);
  struct Ours {
    std::set<std::string> groups;  // control groups of the leases of the last list
    std::uint64_t cpu_ns = 0;      // what they used so far together
  };
  Signs signs(const Policy& policy);
  Ours of_ours() const;
  LeaseTime listed_at() const;
  bool look();

  const Layout& layout_;
  Runtime& runtime_;
  Grants& grants_;
  std::function<void(const std::string&, int)> stop_lease_;
  PowerKeeper power_;
  OwnerSigns sources_;  // guard's thread only
  std::mutex gate_mutex_;
  OwnerGate decider_;  // under gate_mutex_
  Signs signs_;        // under gate_mutex_
  std::string told_reason_;
  mutable std::mutex list_mutex_;
  std::vector<LeaseState> list_;  // under list_mutex_
  LeaseTime listed_{0};           // under list_mutex_
  std::string netd_limits_;
  int turns_ = 0;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false, poked_ = false;  // under mutex_
  std::thread thread_;
};

// What netd reads: bytes per second up and down, then for carrying and for tests whether, bytes per second and a month;
// 0 = unlimited.
std::string bandwidth_text(const Policy& policy);
// What netd (and of the network the agent) reads of the policy: caps (bandwidth.h) and ways (owner_network.h).
void write_for_netd(const Layout& layout, const Policy& policy);

}  // namespace muster::host
