#include "session/lease_table.h"

#include <limits>

#include "base/mutant.h"

namespace muster::session {

void LeaseTable::put(LeaseId lease, LeaseTime end) {
  const auto [it, fresh] = ends_.try_emplace(lease, end);
  if (!fresh) {
    if (end <= it->second) return;  // an end never moves back: a reply with the later one may be on its way
    order_.erase({it->second, lease});
    it->second = end;
  }
  order_.emplace(end, lease);
}

void LeaseTable::start(const std::vector<LeaseId>& live, LeaseTime now) {
  ends_.clear();
  order_.clear();
  const Millis unknown = MUSTER_MUTANT("session.takeover_no_wait") ? Millis(0) : lease_ + margin_;
  for (const LeaseId lease : live) put(lease, now + unknown);
}

void LeaseTable::granted(LeaseId lease, LeaseTime now) {
  put(lease, now + lease_ + margin_);
}

void LeaseTable::renewed(LeaseId lease, LeaseTime now) {
  if (MUSTER_MUTANT("session.renewal_forgotten")) return;
  if (ends_.contains(lease)) put(lease, now + lease_ + margin_);
}

void LeaseTable::ended(LeaseId lease) {
  const auto it = ends_.find(lease);
  if (it == ends_.end()) return;
  order_.erase({it->second, lease});
  ends_.erase(it);
}

std::vector<LeaseId> LeaseTable::expired(LeaseTime now) const {
  std::vector<LeaseId> out;
  for (const auto& [end, lease] : order_) {
    if (end > now) break;
    out.push_back(lease);
  }
  return out;
}

std::optional<LeaseTime> LeaseTable::find(LeaseId lease) const {
  const auto it = ends_.find(lease);
  return it == ends_.end() ? std::nullopt : std::optional(it->second);
}

LeaseTime LeaseTable::next_deadline() const {
  return order_.empty() ? LeaseTime{std::numeric_limits<std::int64_t>::max()} : order_.begin()->first;
}

}  // namespace muster::session
