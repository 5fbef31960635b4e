#pragma once
// What the agent asks of the process that moves a cluster's packets (netd). Calls return at once; callbacks come on the
// poller's thread. The port re-announces everything to a restarted netd by itself.
#include <functional>
#include <map>
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
  // Makes (or finds) the lease's overlay key and takes its TUN over; gives the X25519 public key.
  virtual void attach(const Attach& attach, std::function<void(Result<Bytes>)> done) = 0;
  virtual void configure(const agent::ConfigureNetwork& network, const Bytes& roster_key,
                         std::function<void(Status)> done) = 0;
  virtual void detach(LeaseId lease, bool forget_key, std::function<void(Status)> done) = 0;
  virtual std::vector<std::string> lan_endpoints() const = 0;
};

}  // namespace muster::host
