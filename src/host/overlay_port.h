#pragma once
// What the agent asks of the process that moves a cluster's packets (netd). Calls return at once; callbacks come on the
// poller's thread. The port tells everything to a restarted netd again by itself, and what it kept of a lease's network
// also to a netd that its own new life finds.
#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "agent/ops.h"
#include "base/result.h"

namespace muster::host {

class OverlayPort {
 public:
  virtual ~OverlayPort() = default;
  struct Attach {
    LeaseId lease;
    std::uint32_t address = 0;
    std::uint8_t prefix_bits = 16;
  };
  struct Attached {
    Bytes key;                       // X25519 public key
    std::uint64_t roster_epoch = 0;  // in force already; 0 = none
  };
  // Makes (or finds) the lease's overlay key and takes its TUN over.
  virtual void attach(const Attach& attach, std::function<void(Result<Attached>)> done) = 0;
  virtual void configure(const agent::ConfigureNetwork& network, const Bytes& roster_key,
                         std::function<void(Status)> done) = 0;
  virtual void detach(LeaseId lease, bool forget_key, std::function<void(Status)> done) = 0;
  virtual void keep_only(const std::set<LeaseId>& leases) = 0;  // of other leases nothing need be remembered
  virtual std::vector<std::string> lan_endpoints() const = 0;
};

}  // namespace muster::host
