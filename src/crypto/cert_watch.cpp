#include "crypto/cert_watch.h"

#include <fmt/format.h>

#include "crypto/cert.h"

namespace muster::crypto {

Status CertWatch::set(const std::string& name, const std::string& pem, const std::string& advice) {
  const Validity validity = TRY(certificate_validity(pem));
  const std::lock_guard lock(mutex_);
  Row& row = rows_[name];
  if (row.until != validity.not_after || row.from != validity.not_before) row.told = 0;
  row.from = validity.not_before, row.until = validity.not_after, row.advice = advice;
  return {};
}

void CertWatch::keep_only(const std::set<std::string>& names) {
  const std::lock_guard lock(mutex_);
  std::erase_if(rows_, [&](const auto& row) { return !names.contains(row.first); });
}

std::vector<std::pair<std::string, Millis>> CertWatch::left(WallTime now) const {
  const std::lock_guard lock(mutex_);
  std::vector<std::pair<std::string, Millis>> out;
  for (const auto& [name, row] : rows_) out.emplace_back(name, row.until - now);
  return out;
}

std::vector<std::string> CertWatch::warnings(WallTime now) {
  const std::lock_guard lock(mutex_);
  std::vector<std::string> out;
  for (auto& [name, row] : rows_) {
    const Millis life = row.until - row.from, left = row.until - now;
    const int due = left <= Millis(0) ? 3 : left * 4 <= life ? 2 : left * 2 <= life ? 1 : 0;
    if (due <= row.told) continue;
    row.told = due;
    const std::string ends = due == 3   ? "ended on"
                             : due == 2 ? "has a quarter of its life left, until"
                                        : "has half of its life left, until";
    out.push_back(fmt::format("the certificate of {} {} {}; {}", name, ends, format_utc(row.until), row.advice));
  }
  return out;
}

}  // namespace muster::crypto
