#pragma once
// planner_snapshot of core.h without the list: of a million requests that would be gigabytes.
#include <functional>

#include "control/state.h"
#include "scheduler/scheduler.h"

namespace muster::control {

void planner_snapshot(const State& state, const std::function<void(scheduler::Change)>& each);

}  // namespace muster::control
