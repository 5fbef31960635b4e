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
// What it costs when the machine goes while the work is there, times how likely that is: some GPUs that stand idle or
// work again, of a head with all of its cluster.
constexpr std::int64_t kWorkerLost = 2 * kGpu, kHeadLost = 16 * kGpu;
void add_risk(Weights& weights, std::int64_t lost, std::int64_t hours) {
  for (std::uint32_t level = 0; level < kRiskLevels; ++level) {
    const std::int64_t odds = risk_ppm(static_cast<std::uint8_t>(level)) * hours;  // to a million that nothing happens
    weights.risk[level] = static_cast<std::int32_t>(lost * odds / (1'000'000 + odds));
  }
}
PolicyRules rules(const Weights& head, const Weights& other, Domains domains = Domains::Any) {
  PolicyRules out{head, other, domains};
  out.head.tier = {2 * kTrustStep, kTrustStep, 0};
  out.other.hopes = true;
  return out;
}
PolicyRules rules(const Weights& weights, Domains domains = Domains::Any) {
  return rules(weights, weights, domains);
}

}  // namespace

Lasts lasts(std::int64_t length_ms, bool stays) {
  constexpr std::int64_t kHour = 3'600'000;
  if (stays || length_ms > 24 * kHour) return Lasts::Days;
  return length_ms > 0 && length_ms <= 2 * kHour ? Lasts::Hours : Lasts::Day;
}

const PolicyRules& rules_of(Policy policy, Lasts length) {
  using All = std::array<PolicyRules, 5>;
  static const All kPlain = {
      rules(with_cold(kCold)),                            // Balanced
      rules(with_cold(0)),                                // Pack: waste and nothing else
      rules(with_cold(kCold), Domains::Apart),            // Spread
      rules(with_price(kGpu / 2), with_price(8 * kGpu)),  // Cheap: a head's most trusted machine all the same
      rules(with_link(kGpu / 2), Domains::Together),      // FastNetwork
  };
  static const std::array<All, 3> kRules = [] {
    std::array<All, 3> out{kPlain, kPlain, kPlain};
    constexpr std::array<std::int64_t, 3> kHours{1, 8, 72};
    for (std::size_t l = 0; l < out.size(); ++l)
      for (std::size_t i = 0; i < kPlain.size(); ++i) {
        if (i == static_cast<std::size_t>(Policy::Pack)) continue;
        add_risk(out.at(l).at(i).head, kHeadLost, kHours.at(l)),
            add_risk(out.at(l).at(i).other, kWorkerLost, kHours.at(l));
      }
    return out;
  }();
  const auto i = static_cast<std::size_t>(policy);
  return kRules.at(static_cast<std::size_t>(length)).at(i < kPlain.size() ? i : 0);
}

}  // namespace muster::scheduler
