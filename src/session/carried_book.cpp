#include "session/carried_book.h"

#include <algorithm>

namespace muster::session {

CarriedBook::Pair* CarriedBook::pair(const Key& key, NodeId node) {
  const auto found = pairs_.find(key);
  if (found != pairs_.end()) return &found->second;
  if (pairs_.size() >= kPairsMax) return nullptr;
  return &pairs_.emplace(key, Pair{node}).first->second;
}

void CarriedBook::note(ClusterId cluster, std::uint32_t end, const NetReport& report, const NodeAt& node_at) {
  if (report.carried.empty()) return;
  const auto [it, fresh] = ends_.try_emplace({cluster, end});
  Last& last = it->second;
  if (!fresh && report.counted_from < last.counted_from) return;  // of an earlier life
  const bool anew = fresh || report.counted_from > last.counted_from;
  const bool counts = !fresh || report.counted_from >= started_;  // else it is only where counting begins
  if (anew) last = {report.counted_from, {}};
  for (const NetCarried& each : report.carried) {
    auto& [sent, received] = last.counts[{each.by, each.with}];
    const std::uint64_t more_sent = each.sent > sent ? each.sent - sent : 0;
    const std::uint64_t more_received = each.received > received ? each.received - received : 0;
    sent = std::max(sent, each.sent), received = std::max(received, each.received);
    if (!counts || each.by == end || each.by == each.with || each.with == end) continue;
    const auto node = node_at(each.by);
    if (!node) continue;
    if (Pair* there = more_sent > 0 ? pair({cluster, each.by, end, each.with}, *node) : nullptr)
      there->sent += more_sent;
    if (Pair* back = more_received > 0 ? pair({cluster, each.by, each.with, end}, *node) : nullptr)
      back->received += more_received;
  }
}

std::vector<CarriedBook::Owed> CarriedBook::owed() const {
  std::map<std::pair<ClusterId, NodeId>, std::uint64_t> all;
  for (const auto& [key, pair] : pairs_) all[{key.cluster, pair.node}] += std::min(pair.sent, pair.received);
  std::vector<Owed> out;
  for (const auto& [key, bytes] : all) {
    const auto kept = kept_.find(key);
    const std::uint64_t before = kept == kept_.end() ? 0 : kept->second;
    if (bytes > before) out.push_back({key.first, key.second, bytes - before});
  }
  return out;
}

void CarriedBook::kept(const std::vector<Owed>& amounts) {
  for (const Owed& each : amounts) kept_[{each.cluster, each.node}] += each.bytes;
}

void CarriedBook::keep_only(const std::function<bool(ClusterId)>& lives) {
  std::erase_if(pairs_, [&](const auto& each) { return !lives(each.first.cluster); });
  std::erase_if(ends_, [&](const auto& each) { return !lives(each.first.first); });
  std::erase_if(kept_, [&](const auto& each) { return !lives(each.first.first); });
}

}  // namespace muster::session
