// What members carried for others: kept by day, machine and cluster, ready to be billed.
#include <algorithm>

#include "control/decide.h"

namespace muster::control {
namespace {

constexpr std::int64_t kDaysKept = 400;
constexpr std::size_t kRowsMax = 200'000, kCountedAtOnce = 1'024;
constexpr std::uint64_t kBytesMax = 1ULL << 50;  // of one amount; more is nonsense

}  // namespace

Decided decide(const Asking& a, const CountCarried& c) {
  TRY_VOID(a.system_only("count what was carried"));
  Decision decision;
  const std::int64_t day = a.wall.ms / 86'400'000;
  std::int64_t kept_from = day - kDaysKept;
  // Too many: the oldest days go first, today's never.
  for (auto it = a.base.carried.begin();
       it != a.base.carried.end() && a.base.carried.size() -
                                             static_cast<std::size_t>(std::distance(a.base.carried.begin(), it)) +
                                             std::min(c.amounts.size(), kCountedAtOnce) >
                                         kRowsMax;
       it = a.base.carried.lower_bound({kept_from, {}, {}}))
    kept_from = std::min(std::get<0>(it->first) + 1, day);
  for (std::size_t i = 0; i < std::min(c.amounts.size(), kCountedAtOnce); ++i) {
    const CarriedAmount& amount = c.amounts[i];
    const Cluster* cluster = a.base.find_cluster(amount.cluster);
    if (cluster == nullptr || amount.bytes == 0 || !a.base.nodes.contains(amount.node)) continue;
    if (decision.events.empty() && a.base.format_version < kPairFormat)
      decision.events.emplace_back(FormatRaised{kPairFormat});
    decision.events.emplace_back(CarriedCounted{amount.node, amount.cluster, org_of(a.base, cluster->project), day,
                                                kept_from, std::min(amount.bytes, kBytesMax)});
  }
  return decision;
}

}  // namespace muster::control
