#pragma once
// What a GPU of each model is worth to those who cannot take another: pressure = learned demand per free GPU in the
// tightest set of models around it. The set of models whose demand that may run nowhere else is largest for what is
// free of them is the first bottleneck; then, with it set aside, the next, and so on (nested bottlenecks). Flexible
// work is priced away from scarce models, work that needs them pays what it cannot avoid anyway. Pure integers.
#include <array>
#include <cstdint>
#include <map>

#include "scheduler/workload.h"

namespace muster::scheduler {

using PerModel = std::array<std::int64_t, kModels>;

// Pressure relative to the average of all models, squared, 65,536 = the average, at most four times that; 0 for a model
// of which nothing is free. `free`: milli-GPU by model; `demand`: as Workload::demand().
PerModel pressure_of(const PerModel& free, const std::map<std::uint32_t, std::int64_t>& demand);

}  // namespace muster::scheduler
