#pragma once
// The owner's cap on what clusters send and receive through this machine. Bandwidth
// reads the caps from a file that only root writes, whenever it changed. Four fifths of what may be sent are for
// control before bulk (overlay/shaper.h), whose debt it then is. The file: bytes a second up and down, then 1 where
// this machine may carry for others, with its bytes a second and a month, and the same of tests; 0 = no cap. netd's
// thread only.
#include <algorithm>
#include <cstdint>
#include <string>

#include "base/bytes.h"
#include "base/time.h"
#include "host/carry_cap.h"

namespace muster::host {

class Bandwidth {
 public:
  explicit Bandwidth(std::string file = {}, std::string carried_file = {}, std::string tested_file = {})
      : carry(std::move(carried_file)), tests(std::move(tested_file)), file_(std::move(file)) {}
  void refresh();  // cheap: looks at the file's time first
  // A datagram came; false = over the cap, drop it. Handshakes and keepalives always pass, or the link would die.
  bool admit(ByteView datagram, LeaseTime now) {
    constexpr std::size_t kSmall = 200;
    const bool pass = datagram.size() <= kSmall || down.wait(now) == Millis(0);
    if (pass) down.charge(datagram.size(), now);
    return pass;
  }
  // How long until a packet of a lease may leave; zero = now.
  Millis wait_up(bool control, LeaseTime now) {
    if (up.rate() <= 0) return Millis(0);
    if (!control) return up.wait(now);
    const Millis share = up_control.wait(now);
    return bulk_waits > 0 ? share : std::min(share, up.wait(now));
  }
  TokenBucket up, up_control, down;
  CarryCap carry;          // for others; in the same file
  CarryCap tests;          // of how much ways carry: the same of those; sent and received count
  bool testing = false;    // one of the leases is at it
  LeaseTime next_test{0};  // no other before
  int bulk_waits = 0;      // leases with bulk that waits

 private:
  std::string file_;
  std::int64_t seen_ns_ = -1;
};

}  // namespace muster::host
