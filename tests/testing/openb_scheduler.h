#pragma once
// The openb replay through the scheduler itself: every task is a request, every plan is committed, nothing departs.
// Tasks that find no place are withdrawn. Shares mix, since the trace is of one organisation.
#include "scheduler/scheduler.h"
#include "testing/openb.h"

namespace muster::testing::openb {

Curve replay_scheduler(const Trace& trace, std::uint64_t seed);

}  // namespace muster::testing::openb
