#include "host/carry_cap.h"

#include <sstream>

#include "base/log.h"
#include "crypto/file.h"

namespace muster::host {
namespace {
constexpr Millis kCarryLook{5'000};
}

CarryCap::CarryCap(std::string file) : file_(std::move(file)) {
  const auto kept = file_.empty() ? Result<Bytes>(Bytes{}) : crypto::read_secret_file(file_, 64);
  if (!kept.ok()) return;
  std::istringstream(as_string(*kept)) >> month_ >> bytes_;
  bytes_ = std::max<std::int64_t>(bytes_, 0);
  saved_ = bytes_;
}

void CarryCap::set(bool allowed, std::int64_t bytes_s, std::int64_t bytes_per_month) {
  allowed_ = allowed;
  rate_.set_rate(bytes_s);
  month_max_ = bytes_per_month;
}

bool CarryCap::admit(std::size_t bytes, LeaseTime now) {
  if (!offers() || rate_.wait(now) > Millis(0)) return false;
  rate_.charge(bytes, now);
  bytes_ += static_cast<std::int64_t>(bytes);
  return true;
}

void CarryCap::tick(const Now& now) {
  if (now.lease - looked_ < kCarryLook) return;
  looked_ = now.lease;
  if (const std::string month = format_utc(now.wall).substr(0, 7); month != month_) {
    if (!month_.empty()) bytes_ = 0;
    month_ = month;
  }
  if (bytes_ == saved_ || file_.empty()) return;
  const Status written = crypto::write_secret_file(file_, as_bytes(month_ + " " + std::to_string(bytes_) + "\n"));
  if (!written.ok()) log_warn("netd", "what was carried this month is not kept: {}", written.error().message);
  saved_ = bytes_;
}

}  // namespace muster::host
