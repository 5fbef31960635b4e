#pragma once
// Guarantees: who may take back what others hold beyond theirs. The planner finds whom (scheduler/preempt.cpp); this
// checks it once more. Private to control.
#include <vector>

#include "control/draft.h"

namespace muster::control {

// Is what this start takes within the guarantee? It takes some of what is guaranteed, and of none of that more is held
// afterwards than is guaranteed. A machine that is had whole never is, for its size is not known yet.
bool within_guarantee(const Share& share, const Quota& held, const ClusterSpec& spec);

// Of these leases, those of the start's own tier: none is taken from below its organisation's or project's guarantee,
// counting what leaves them already; and the start is within its own. Everything has been pulled.
bool reclaimable(const Draft& d, const Cluster& by, const std::vector<LeaseId>& victims);

}  // namespace muster::control
