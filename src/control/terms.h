#pragma once
// What an offer makes of a lease: whether the machine takes it now, at what price, and until when; and what a cluster
// costs so far. Only reads, but for watch_budget.
#include <map>
#include <optional>
#include <string>

#include "control/state.h"

namespace muster::control {

class Draft;

// Why a lease leaves whose machine its owner wants back, and a cluster ends that has used up what it may cost.
inline constexpr std::string_view kOfferEnds = "offer_ends", kBudget = "budget";

struct Terms {
  std::uint64_t version = 0;  // of the offer
  std::int64_t price = 0;     // an hour, millionths of the currency
  std::string currency;
  WallTime leaves_at;  // 0 = never
};
// How long it can hold machines after it started: its life, or the one job that it was made for. 0 = no limit.
Millis longest_of(const State& state, const Cluster& cluster);
// Of a lease with so many GPUs, or a share of one, that begins now; nothing, where the offer in force refuses it.
std::optional<Terms> terms_for(const State& state, const Cluster& cluster, const Node& node, std::int64_t gpus,
                               std::int32_t share_milli, WallTime wall);

struct Spending {  // by currency, millionths
  std::map<std::string, std::int64_t> per_hour, so_far;
};
Spending spending_of(const State& state, const Cluster& cluster, WallTime wall);
// Sets the cluster's timer to when its budget is used up at what it costs now. True: it is used up already.
bool watch_budget(Draft& d, ClusterId cluster);

}  // namespace muster::control
