// sched-quality.VARIANT.ARRIVED: GPUs allocated, in percent, when 100 or 130 percent of them have been asked for, on
// every variant of the openb trace in a folder, by the scheduler itself (requests in, plans out) with its defaults;
// baseline = the published mean of FGD, so that ratio > 1 packs better. Besides, as names of their own: the FGD and
// BestFit controls against their published means, and ours against our FGD control, paired by seed. With the suffix
// .market the same on machines with synthetic prices, networks and reliabilities while work departs and comes back,
// against ours without; sched-quality-market-loss is what is lost so, in points (bar 0.5). Usage:
// bench_sched_quality [folder=$DATA or tests/data/openb] [seeds=10]. One JSON line per figure; exit 1 when data is
// missing. Shares of one GPU between tenants are allowed here, as in the paper; the scheduler itself gives shares
// within a tenant only.
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include "testing/openb_scheduler.h"

namespace {

using namespace muster::testing;

struct Figures {
  double mean = 0, low = 0;
};
Figures figures(const std::vector<double>& values) {
  Figures out{0, values.empty() ? 0 : values.front()};
  for (const double value : values)
    out.mean += value / static_cast<double>(values.size()), out.low = std::min(out.low, value);
  return out;
}

void print(const std::string& name, double value, double baseline, std::size_t runs) {
  fmt::print(
      "{{\"name\": \"{}\", \"value\": {:.3f}, \"unit\": \"% GPUs allocated\", \"baseline\": {}, \"ratio\": {}, "
      "\"runs\": {}}}\n",
      name, value, baseline > 0 ? fmt::format("{:.3f}", baseline) : "null",
      baseline > 0 ? fmt::format("{:.4f}", value / baseline) : "null", runs);
}

}  // namespace

int main(int argc, char** argv) {
  const char* data = std::getenv("DATA");
  const std::string folder = argc > 1 ? argv[1] : data != nullptr ? data : "tests/data/openb";
  const int seeds = argc > 2 ? std::max(1, std::atoi(argv[2])) : 10;
  const auto table = openb::published(folder);
  const auto names = openb::variants(folder);
  if (names.empty()) {
    fmt::print(stderr, "no openb_pod_list_*.csv in {}/csv: run from the top of the tree or give the folder\n", folder);
    return 1;
  }
  constexpr std::array<std::size_t, 2> kArrived{100, 130};
  std::array<std::vector<double>, 2> gains;
  for (const std::string& variant : names) {
    std::string error;
    const openb::Trace trace = openb::load(folder, variant, error);
    if (!error.empty()) {
      fmt::print(stderr, "{}\n", error);
      return 1;
    }
    std::array<std::vector<double>, 2> ours, fgd, best_fit, paired, market, lost;
    for (int seed = 0; seed < seeds; ++seed) {
      openb::Fgd control;
      openb::BestFit second;
      const auto s = static_cast<std::uint64_t>(42 + seed);
      const openb::Curve a = openb::replay_scheduler(trace, s), b = openb::replay(trace, s, control),
                         c = openb::replay(trace, s, second),
                         d = openb::replay_scheduler(trace, s, openb::Surroundings::Market);
      for (std::size_t i = 0; i < kArrived.size(); ++i) {
        const std::size_t x = kArrived[i];
        ours[i].push_back(a[x]), fgd[i].push_back(b[x]), best_fit[i].push_back(c[x]), paired[i].push_back(a[x] - b[x]);
        market[i].push_back(d[x]), lost[i].push_back(a[x] - d[x]);
      }
    }
    for (std::size_t i = 0; i < kArrived.size(); ++i) {
      const auto known = [&](const char* policy) {
        const auto it = table.find(fmt::format("{}/{}/{}", variant, policy, kArrived[i]));
        return it == table.end() ? 0.0 : it->second;
      };
      const std::string name = fmt::format("{}.{}", variant, kArrived[i]);
      const auto runs = static_cast<std::size_t>(seeds);
      print("sched-quality." + name, figures(ours[i]).mean, known("FGD"), runs);
      print("sched-quality-fgd-control." + name, figures(fgd[i]).mean, known("FGD"), runs);
      print("sched-quality-bestfit-control." + name, figures(best_fit[i]).mean, known("BestFit"), runs);
      print("sched-quality-gain-mean." + name, figures(paired[i]).mean, 0, runs);
      print("sched-quality-gain-worst-seed." + name, figures(paired[i]).low, 0, runs);
      print("sched-quality." + name + ".market", figures(market[i]).mean, figures(ours[i]).mean, runs);
      print("sched-quality-market-loss." + name, figures(lost[i]).mean, 0, runs);
      gains[i].push_back(figures(paired[i]).mean);
    }
    std::fflush(stdout);
  }
  for (std::size_t i = 0; i < kArrived.size(); ++i)
    print(fmt::format("sched-quality-gain-mean.all.{}", kArrived[i]), figures(gains[i]).mean, 0, names.size());
}
