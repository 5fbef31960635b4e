#pragma once
// Which machine may and can host which bundle, and which one is best: two-sided constraints and the score. The seam for
// a better packing: only score() decides between machines that qualify. Pure; private to scheduler.
#include <optional>

#include "scheduler/scheduler.h"

namespace muster::scheduler {

// Could this node host the bundle if it were empty? (pool, architecture, runtime, egress, labels, model, pinned)
bool suits(const Request& request, const NodeRequest& need, const NodeView& node);
// Can it now, with what is free on it? Held amounts have been taken off `node` by the caller.
bool hosts(const Request& request, const NodeRequest& need, const NodeView& node, WallTime now);
// Smaller is better; `waste` is what the packing score says (pool_packing.h).
struct Score {
  std::int32_t tier = 0, cold = 0;
  std::int64_t waste = 0, gpus = 0, cpu = 0;
  NodeId node;
  auto operator<=>(const Score&) const = default;
};
Score score(const Request& request, const Bundle& bundle, const NodeView& node, std::int64_t waste);
// What the place takes, devices chosen; the node hosts the bundle.
Place place_on(const Bundle& bundle, const NodeView& node);
void take(NodeView& node, const Place& place);

}  // namespace muster::scheduler
