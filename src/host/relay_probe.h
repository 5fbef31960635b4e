#pragma once
// How far a machine is from each relay, whether it is hired or not: a few questions to their UDP ports
// (overlay/stun.h), the quickest answer of each counts. The control plane works out from it where machines lie. A relay
// that does not answer (UDP is blocked, it is down) is left out. On a thread of its own, one round at a time, a few
// seconds each.
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "host/poller.h"
#include "session/frames.h"

namespace muster::host {

inline constexpr std::size_t kRelaysProbed = session::kRelaysMax;
// Where muster-relay answers too unless told otherwise (RFC 8489 section 18.6): some networks block UDP on 443 alone.
inline constexpr std::uint16_t kSecondRelayPort = 3478;

// Blocks; addresses are host:port. Least of three, microseconds, under the address it was given; who does not answer
// there is asked once more at the second port.
std::vector<session::RelaySeen> probe_relays(const std::vector<std::string>& addresses, Millis wait_for_each,
                                             std::uint16_t second_port = kSecondRelayPort);

class RelayProbe {
 public:
  explicit RelayProbe(Poller& poller);
  ~RelayProbe();
  // `done` on the poller's thread; never after this object is gone. While a round is under way nothing happens.
  void start(std::vector<std::string> addresses, std::function<void(std::vector<session::RelaySeen>)> done);

 private:
  struct Shared;
  std::shared_ptr<Shared> shared_;
};

}  // namespace muster::host
