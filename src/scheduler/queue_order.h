#pragma once
// The order of the queue, kept incrementally although it ages: class first (tier), then priority plus one point per ten
// minutes of waiting (at most twenty), then first come. While a request still ages its rank moves with the clock like
// everybody's, so ageing requests keep one fixed order among themselves, aged ones another; only the merge looks at the
// time. Private.
#include <optional>
#include <set>
#include <tuple>

#include "scheduler/scheduler.h"

namespace muster::scheduler {

inline constexpr std::int64_t kAgeStepMs = 600'000;
inline constexpr std::int64_t kAgedMs = 20 * kAgeStepMs;

struct Rank {  // smaller goes first
  std::uint8_t tier = 1;
  std::int64_t value = 0;
  std::int64_t since = 0;
  ClusterId cluster;
  auto operator<=>(const Rank&) const = default;
};
inline Rank ageing_rank(const Request& r) {
  return {r.tier, r.since.ms - r.priority * kAgeStepMs, r.since.ms, r.cluster};
}
inline Rank aged_rank(const Request& r) {
  return {r.tier, -(r.priority * kAgeStepMs + kAgedMs), r.since.ms, r.cluster};
}

class QueueOrder {
 public:
  void insert(const Request& r) {
    ageing_.insert(ageing_rank(r));
    by_since_.emplace(r.since.ms, r.cluster);
  }
  void erase(const Request& r) {
    ageing_.erase(ageing_rank(r));
    aged_.erase(aged_rank(r));
    by_since_.erase({r.since.ms, r.cluster});
  }
  // Moves those that are done ageing; find(cluster) gives the request.
  template <class Find>
  void advance(WallTime now, Find find) {
    while (!by_since_.empty() && by_since_.begin()->first + kAgedMs <= now.ms) {
      const Request& r = find(by_since_.begin()->second);
      ageing_.erase(ageing_rank(r));
      aged_.insert(aged_rank(r));
      by_since_.erase(by_since_.begin());
    }
  }
  struct Cursor {
    std::optional<Rank> ageing, aged;
  };  // the last one seen of each
  // The next request after the cursor, at `now`.
  std::optional<ClusterId> next(Cursor& cursor, WallTime now) const {
    const auto a = cursor.ageing ? ageing_.upper_bound(*cursor.ageing) : ageing_.begin();
    const auto b = cursor.aged ? aged_.upper_bound(*cursor.aged) : aged_.begin();
    if (a == ageing_.end() && b == aged_.end()) return {};
    const auto order = [](const Rank& rank, std::int64_t value) {
      return std::tuple(rank.tier, value, rank.since, rank.cluster);
    };
    const bool take_aged =
        a == ageing_.end() || (b != aged_.end() && order(*b, b->value) < order(*a, a->value - now.ms));
    if (take_aged) {
      cursor.aged = *b;
      return b->cluster;
    }
    cursor.ageing = *a;
    return a->cluster;
  }
  std::size_t size() const { return ageing_.size() + aged_.size(); }

 private:
  std::set<Rank> ageing_, aged_;
  std::set<std::pair<std::int64_t, ClusterId>> by_since_;  // still ageing
};

}  // namespace muster::scheduler
