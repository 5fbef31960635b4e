#pragma once
// A token bucket in whole bytes and milliseconds: at most `per_second` in the long run, at most `burst` at once. 0 per
// second means no limit. One thread; time is an argument and must not run backwards (if it does, nothing is added).
#include <algorithm>
#include <cstdint>

#include "base/time.h"

namespace muster::egress {

class Bucket {
 public:
  Bucket() = default;
  Bucket(std::uint64_t per_second, std::uint64_t burst)
      : rate_(per_second), burst_milli_(burst * 1000), tokens_milli_(burst * 1000) {}
  bool unlimited() const { return rate_ == 0; }
  // What may pass now, at most `wanted`; it is counted as passed.
  std::uint64_t take(std::uint64_t wanted, LeaseTime now) {
    if (rate_ == 0) return wanted;
    refill(now);
    const std::uint64_t passed = std::min(wanted, tokens_milli_ / 1000);
    tokens_milli_ -= passed * 1000;
    return passed;
  }
  void give_back(std::uint64_t unused) { tokens_milli_ = std::min(burst_milli_, tokens_milli_ + unused * 1000); }

 private:
  void refill(LeaseTime now) {
    if (!started_) last_ = now;
    started_ = true;
    if (now <= last_) return;
    const auto passed = static_cast<std::uint64_t>(std::min<std::int64_t>((now - last_).count(), 60'000));
    last_ = now;
    tokens_milli_ = std::min(burst_milli_, tokens_milli_ + passed * rate_);
  }
  std::uint64_t rate_ = 0, burst_milli_ = 0, tokens_milli_ = 0;
  LeaseTime last_;
  bool started_ = false;
};

}  // namespace muster::egress
