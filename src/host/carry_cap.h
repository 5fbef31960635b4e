#pragma once
// What this machine may carry for other members of its clusters: nothing unless its owner said so, within his cap on
// the rate and on the month's volume, which is counted in a file and so over restarts. netd's thread only.
#include <string>

#include "host/token_bucket.h"

namespace muster::host {

class CarryCap {
 public:
  explicit CarryCap(std::string file = {});
  void set(bool allowed, std::int64_t bytes_s, std::int64_t bytes_per_month);  // 0 = no limit
  std::int64_t rate() const { return rate_.rate(); }                           // 0 = no limit
  bool offers() const { return allowed_ && (month_max_ == 0 || bytes_ < month_max_); }
  bool admit(std::size_t bytes, LeaseTime now);                                  // false: not now
  void count(std::size_t bytes) { bytes_ += static_cast<std::int64_t>(bytes); }  // what came anyway
  void tick(const Now& now);  // a new month begins; the count is kept

 private:
  const std::string file_;
  bool allowed_ = false;
  TokenBucket rate_;
  std::int64_t month_max_ = 0, bytes_ = 0, saved_ = 0;
  std::string month_;
  LeaseTime looked_{0};
};

}  // namespace muster::host
