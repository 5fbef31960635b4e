#pragma once
// Whom an event concerns: the nodes whose desired_for() it may have changed.
#include <set>

#include "control/event.h"
#include "control/state.h"

namespace muster::control {

// Adds them, as seen after the event was applied: at least every node whose revision rose.
void add_revised_nodes(const State& state, const Event& event, std::set<NodeId>& nodes);

}  // namespace muster::control
