#include "scheduler/policy.h"

namespace muster::scheduler {
namespace {

// In points: 1,024 of them are a thousandth of a GPU made useless.
constexpr std::int32_t kGpu = 1'000 * 1'024;
constexpr std::int32_t kTrustStep = 100'000'000;  // of a head: before everything else
constexpr std::int32_t kCold = kGpu / 2;          // an image that has to be pulled first

Weights with_cold(std::int32_t cold) {
  Weights w;
  w.cold = cold;
  return w;
}
// `step` for each level of price: nine percent more.
Weights with_price(std::int32_t step) {
  Weights w = with_cold(kCold);
  for (std::uint32_t level = 0; level < kPriceLevels; ++level) w.price[level] = static_cast<std::int32_t>(level) * step;
  return w;
}
// `step` for each halving of the link; one that is not known counts as the slowest.
Weights with_link(std::int32_t step) {
  Weights w = with_cold(kCold);
  for (std::uint32_t level = 0; level < kLinkLevels; ++level)
    w.link[level] = static_cast<std::int32_t>(kLinkLevels - 1 - level) * step;
  w.relayed = 8 * step;
  return w;
}
PolicyRules rules(const Weights& head, const Weights& other, Domains domains = Domains::Any) {
  PolicyRules out{head, other, domains};
  out.head.tier = {2 * kTrustStep, kTrustStep, 0};
  return out;
}
PolicyRules rules(const Weights& weights, Domains domains = Domains::Any) {
  return rules(weights, weights, domains);
}

}  // namespace

const PolicyRules& rules_of(Policy policy) {
  static const std::array<PolicyRules, 5> kRules = {
      rules(with_cold(kCold)),                            // Balanced
      rules(with_cold(0)),                                // Pack: waste and nothing else
      rules(with_cold(kCold), Domains::Apart),            // Spread
      rules(with_price(kGpu / 2), with_price(8 * kGpu)),  // Cheap: a head's most trusted machine all the same
      rules(with_link(kGpu / 2), Domains::Together),      // FastNetwork
  };
  const auto i = static_cast<std::size_t>(policy);
  return kRules[i < kRules.size() ? i : 0];
}

}  // namespace muster::scheduler
