#pragma once
// How a cluster's members reach each other: what their machines said last, joined with the state, and why each pair
// goes the way it goes, in words. Pure. Addresses of machines are only shown to whoever may look at the platform: a
// tenant learns the kind of a way and its round trip, never where a supplier lives.
#include <functional>
#include <optional>

#include "access/access.h"
#include "control/core.h"
#include "scheduler/types.h"
#include "session/frames.h"
#include "wire/rest.h"

namespace muster::server {

struct NetFacts {
  session::NetReport report;
  WallTime at;
};
using FindNet = std::function<std::optional<NetFacts>(NodeId, LeaseId)>;
wire::NetView net_view(const control::State& state, const access::Subject& caller, const Cluster& cluster,
                       const FindNet& find);
// What the planner can make of a machine's report: its settled ways to other machines of that lease's cluster.
scheduler::PathsChanged paths_seen(const control::State& state, NodeId node, const NetFacts& facts);
// As the pair's first end sees it; the facts of the other end where they are known.
std::string why_path(const session::NetPair& pair, const NetFacts& from, const NetFacts* to);

}  // namespace muster::server
