#pragma once
// Bytes a second, with an eighth of a second's worth at once. What is let through last may go beyond: packets of any
// size pass, and who would send then waits until that debt is paid. Pure; one thread.
#include <algorithm>
#include <cstdint>

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

}  // namespace muster::host
