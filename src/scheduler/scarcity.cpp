#include "scheduler/scarcity.h"

#include <algorithm>
#include <bit>
#include <vector>

namespace muster::scheduler {
namespace {

constexpr std::int64_t kOne = 65'536, kMost = 4 * kOne;
constexpr std::int64_t kPoolMax = std::int64_t{1} << 31;     // milli-GPU of one model
constexpr std::int64_t kDensityMax = std::int64_t{1} << 40;  // of demand per free GPU, 16 fractional bits
constexpr std::size_t kSetsMax = 6;                          // sets of several models that are told apart

struct Demand {
  std::uint32_t models = 0;
  std::int64_t amount = 0;
};

std::int64_t density(std::int64_t demand, std::int64_t free) {
  return std::min(demand * kOne / std::max<std::int64_t>(1, free), kDensityMax);
}

struct Bottleneck {
  std::uint32_t models = 0;
  std::int64_t pressure = -1;
};

// The densest set of the models in `rest`. A set is densest only if every single model in it either belongs to a demand
// for several that lies inside or is itself as dense; so trying every choice of such demands is exact.
Bottleneck densest(const PerModel& free, const PerModel& single, const std::vector<Demand>& several,
                   std::uint32_t rest) {
  std::vector<std::uint32_t> by_density;
  for (std::uint32_t m = 0; m < kModels; ++m)
    if ((rest >> m & 1U) != 0) by_density.push_back(m);
  std::stable_sort(by_density.begin(), by_density.end(), [&](std::uint32_t a, std::uint32_t b) {
    return density(single[a], free[a]) > density(single[b], free[b]);
  });
  Bottleneck best;
  for (std::uint32_t choice = 0; choice < 1U << several.size(); ++choice) {
    std::uint32_t set = 0;
    for (std::size_t i = 0; i < several.size(); ++i)
      if ((choice >> i & 1U) != 0) set |= several[i].models;
    std::int64_t demand = 0, sum = 0;
    for (const Demand& d : several)
      if ((d.models & ~set) == 0) demand += d.amount;
    for (std::uint32_t m = 0; m < kModels; ++m)
      if ((set >> m & 1U) != 0) demand += single[m], sum += free[m];
    for (const std::uint32_t m : by_density) {
      if ((set >> m & 1U) != 0) continue;
      if (set != 0 && density(single[m], free[m]) < density(demand, sum)) break;
      set |= 1U << m, demand += single[m], sum += free[m];
    }
    const std::int64_t here = density(demand, sum);
    if (here > best.pressure || (here == best.pressure && std::popcount(set) > std::popcount(best.models)))
      best = {set, here};
  }
  return best;
}

}  // namespace

PerModel pressure_of(const PerModel& free_now, const std::map<std::uint32_t, std::int64_t>& demand) {
  PerModel out{}, free{};
  std::uint32_t rest = 0;
  std::int64_t free_all = 0, demand_all = 0;
  for (std::uint32_t m = 0; m < kModels; ++m) {
    free_all += free[m] = std::clamp<std::int64_t>(free_now[m], 0, kPoolMax);
    if (free[m] > 0) rest |= 1U << m;
  }
  if (rest == 0) return out;
  // Demand that could be met by what is free at all; demand for several models by its set, the heaviest told apart.
  std::vector<Demand> open;
  for (const auto& [models, amount] : demand) {
    demand_all += amount;
    if ((models & rest) != 0 && amount > 0) open.push_back({models & rest, amount});
  }
  if (demand_all <= 0) return out;
  const std::int64_t average = std::clamp<std::int64_t>(density(demand_all, free_all), 1, kDensityMax);
  std::int64_t last = kDensityMax;
  while (rest != 0) {
    PerModel single{};
    std::vector<Demand> several;
    for (const Demand& d : open) {
      const std::uint32_t models = d.models & rest;
      if (models == 0) continue;
      if (std::has_single_bit(models)) {
        single[static_cast<std::size_t>(std::countr_zero(models))] += d.amount;
        continue;
      }
      const auto same =
          std::find_if(several.begin(), several.end(), [&](const Demand& s) { return s.models == models; });
      if (same != several.end())
        same->amount += d.amount;
      else
        several.push_back({models, d.amount});
    }
    if (several.size() > kSetsMax) {
      std::stable_sort(several.begin(), several.end(), [](const Demand& a, const Demand& b) {
        return a.amount != b.amount ? a.amount > b.amount : a.models < b.models;
      });
      several.resize(kSetsMax);
    }
    const Bottleneck next = densest(free, single, several, rest);
    last = std::min(last, next.pressure);  // an outer set is never under more pressure than an inner one
    const std::int64_t relative = std::min(last * kOne / average, kMost);
    for (std::uint32_t m = 0; m < kModels; ++m)
      if ((next.models >> m & 1U) != 0) out[m] = std::min(relative * relative / kOne, kMost);
    rest &= ~next.models;
  }
  return out;
}

}  // namespace muster::scheduler
