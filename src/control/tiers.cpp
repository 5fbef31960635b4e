// What tiers are guaranteed of the machines. The planner lets a tier that holds less go first, and has no better one
// take from it (scheduler/usage.h); nothing is looked at again where plans are committed: an order is no promise that
// another decision of the same second could break.
#include "control/decide.h"

namespace muster::control {

Decided decide(const Asking& a, const SetTierShare& c) {
  TRY_VOID(a.may(access::Verb::Update, {.kind = access::Kind::Platform}));
  if (c.row.tier > kTierMax)
    return error(Code::InvalidArgument, "tier must lie between 0 and " + std::to_string(kTierMax), "tier");
  std::uint64_t all = c.row.permille;
  for (const auto& [tier, permille] : a.base.tier_shares) all += tier == c.row.tier ? 0 : permille;
  if (all > 1'000)
    return error(Code::InvalidArgument,
                 "all tiers together would be guaranteed " + std::to_string(all) +
                     " thousandths of the machines, and there are 1000; guarantee another tier less first",
                 "guaranteePermille");
  const auto before = a.base.tier_shares.find(c.row.tier);
  if ((before == a.base.tier_shares.end() ? 0 : before->second) == c.row.permille) return Decision{};
  Decision decision = one(TierShareSet{c.row});
  if (a.base.format_version < kTierFormat) decision.events.insert(decision.events.begin(), FormatRaised{kTierFormat});
  return decision;
}

}  // namespace muster::control
