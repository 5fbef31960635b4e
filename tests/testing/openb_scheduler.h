#pragma once
// The openb replay through the scheduler itself: every task is a request, every plan is committed, nothing departs.
// Tasks that find no place are withdrawn. Shares mix, since the trace is of one organisation.
#include "scheduler/scheduler.h"
#include "testing/openb.h"

namespace muster::testing::openb {

// Market: machines have prices in two currencies, links, sites, owners and reliabilities, drawn by the seed; and after
// every third arrival somebody who runs departs and asks anew, so that as much is asked for as without departures.
enum class Surroundings : std::uint8_t { Plain = 0, Market = 1 };
Curve replay_scheduler(const Trace& trace, std::uint64_t seed, Surroundings surroundings = Surroundings::Plain);

}  // namespace muster::testing::openb
