#pragma once
// The owner's cap on what clusters send and receive through this machine. TokenBucket (pure) may go into debt by what
// was let through last, so that packets of any size pass; who would send then waits until the debt is paid. Bandwidth
// reads the caps from a file that only root writes, whenever it changed. Four fifths of what may be sent are for
// control before bulk (overlay/shaper.h), whose debt it then is. netd's thread only.
#include <algorithm>
#include <cstdint>
#include <string>

#include "base/bytes.h"
#include "base/time.h"

namespace muster::host {

class TokenBucket {
 public:
  void set_rate(std::int64_t bytes_s) {
    if (bytes_s == rate_) return;
    rate_ = bytes_s;
    tokens_ = 0;
  }
  std::int64_t rate() const { return rate_; }
  void charge(std::size_t bytes, LeaseTime now) {
    if (rate_ <= 0) return;
    fill(now);
    tokens_ -= static_cast<std::int64_t>(bytes);
  }
  // How long until something may pass again; zero = now.
  Millis wait(LeaseTime now) {
    if (rate_ <= 0) return Millis(0);
    fill(now);
    return tokens_ > 0 ? Millis(0) : Millis(-tokens_ * 1000 / rate_ + 1);
  }

 private:
  void fill(LeaseTime now) {
    const std::int64_t burst = std::max<std::int64_t>(rate_ / 8, 32 << 10);
    const std::int64_t passed = std::clamp<std::int64_t>((now - filled_).count(), 0, 10'000);
    filled_ = now;
    tokens_ = std::min(burst, tokens_ + rate_ * passed / 1000);
  }
  std::int64_t rate_ = 0, tokens_ = 0;
  LeaseTime filled_{0};
};

class Bandwidth {
 public:
  explicit Bandwidth(std::string file = {}) : file_(std::move(file)) {}
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
  int bulk_waits = 0;  // leases with bulk that waits

 private:
  std::string file_;
  std::int64_t seen_ns_ = -1;
};

}  // namespace muster::host
