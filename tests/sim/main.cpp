// muster-sim: the long runner of the simulation.
//   muster-sim --seed N [--steps M] [--mutant NAME] [--log] [--twice]   replay one run exactly (twice: compare the
//   traces) muster-sim --seconds S | --hours H | --seeds COUNT [--seed FIRST]   seeds FIRST (1), FIRST+1, ... without a
//   choice muster-sim --mutants [--only NAME] [--steps M]                      hunt every planted fault within its
//   stated seeds
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "base/mutant.h"
#include "sim/mutants.h"
#include "sim/sim.h"

namespace {

using muster::sim::RunOptions;
using muster::sim::RunResult;
using Long = unsigned long long;

struct Total {
  std::map<std::pair<std::string, std::string>, std::uint64_t> coverage;
  std::map<std::string, std::uint64_t> looked;
  std::uint64_t seeds = 0, failed = 0;
};

struct Arguments {
  RunOptions run;
  std::string mutant, only;
  double seconds = 0;
  std::uint64_t seeds = 0;
  bool mutants = false, log = false, twice = false;
};

int usage(const std::string& what) {
  std::fprintf(stderr, "%s; see the top of tests/sim/main.cpp or docs/simulation.md\n", what.c_str());
  return 2;
}

void one(const Arguments& arguments, Total& total) {
  const RunOptions& options = arguments.run;
  RunResult result = muster::sim::run_simulation(options);
  if (arguments.twice && result.failure.empty()) {
    const RunResult again = muster::sim::run_simulation(options);
    if (again.hash != result.hash || again.steps != result.steps)
      result.failure = "I11: the same seed gave another trace";
  }
  ++total.seeds;
  for (const auto& [pair, times] : result.coverage) total.coverage[pair] += times;
  for (const auto& [invariant, times] : result.looked) total.looked[invariant] += times;
  if (arguments.log) {
    for (const std::string& line : result.log) std::printf("%s\n", line.c_str());
  }
  if (result.failure.empty()) {
    std::printf("seed %llu: ok, %llu steps, hash %016llx\n", static_cast<Long>(options.seed),
                static_cast<Long>(result.steps), static_cast<Long>(result.hash));
  } else {
    ++total.failed;
    std::printf("seed %llu FAILED: %s\n  reproduce: make sim SEED=%llu STEPS=%llu%s%s\n",
                static_cast<Long>(options.seed), result.failure.c_str(), static_cast<Long>(options.seed),
                static_cast<Long>(options.steps), arguments.mutant.empty() ? "" : " MUTANT=", arguments.mutant.c_str());
  }
  std::fflush(stdout);
}

// Rows: faults. Columns: what the machine it picked was doing. A dot: never met.
void print_total(const Total& total) {
  const auto& faults = muster::sim::fault_names();
  const auto& states = muster::sim::state_words();
  std::printf("fault x state of the machine it met: %zu of %zu pairs\n%-16s", total.coverage.size(),
              faults.size() * states.size(), "");
  for (const std::string& state : states) std::printf(" %8.8s", state.c_str());
  for (const std::string& fault : faults) {
    std::printf("\n%-16s", fault.c_str());
    for (const std::string& state : states) {
      const auto it = total.coverage.find({fault, state});
      if (it == total.coverage.end())
        std::printf(" %8s", ".");
      else
        std::printf(" %8llu", static_cast<Long>(it->second));
    }
  }
  std::printf("\ncomparisons made:");
  for (const auto& [invariant, times] : total.looked)
    std::printf(" %s %llu", invariant.c_str(), static_cast<Long>(times));
  std::printf("\n%llu seeds, %llu failed\n", static_cast<Long>(total.seeds), static_cast<Long>(total.failed));
}

#ifdef MUSTER_MUTANTS
int hunt_all(const std::string& only, std::uint64_t steps) {
  int missed = 0, hunted = 0;
  for (const muster::sim::MutantRow& row : muster::sim::mutant_table()) {
    if (!only.empty() && row.name != only) continue;
    ++hunted;
    const auto caught = muster::sim::hunt(row.name, 1, row.seeds, steps);
    if (caught) {
      std::printf("caught  %-34s by seed %2llu of %2u: %s\n", std::string(row.name).c_str(),
                  static_cast<Long>(caught->seed), row.seeds, caught->failure.c_str());
    } else {
      std::printf("MISSED  %-34s within %u seeds: %s\n", std::string(row.name).c_str(), row.seeds,
                  std::string(row.what).c_str());
      ++missed;
    }
    std::fflush(stdout);
  }
  std::printf("%d mutants, %d missed\n", hunted, missed);
  return missed == 0 && hunted > 0 ? 0 : 1;
}
#endif

}  // namespace

int main(int argc, char** argv) {
  Arguments a;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    const auto text = [&] { return i + 1 < argc ? std::string(argv[++i]) : std::string(); };
    const auto number = [&] { return std::strtoull(text().c_str(), nullptr, 10); };
    if (arg == "--seed")
      a.run.seed = number();
    else if (arg == "--steps")
      a.run.steps = number();
    else if (arg == "--seeds")
      a.seeds = number();
    else if (arg == "--seconds")
      a.seconds = std::strtod(text().c_str(), nullptr);
    else if (arg == "--hours")
      a.seconds = 3600 * std::strtod(text().c_str(), nullptr);
    else if (arg == "--mutant")
      a.mutant = text();
    else if (arg == "--mutants")
      a.mutants = true;
    else if (arg == "--only")
      a.only = text();
    else if (arg == "--twice")
      a.twice = true;
    else if (arg == "--log")
      a.log = a.run.verbose = true;
    else
      return usage("unknown argument " + arg);
  }
#ifdef MUSTER_MUTANTS
  if (a.mutants) return hunt_all(a.only, a.run.steps);
  muster::set_mutant(a.mutant);
#else
  if (a.mutants || !a.mutant.empty()) return usage("this build has no planted faults");
#endif
  Total total;
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(a.seconds);
  const std::uint64_t count = a.seeds != 0 ? a.seeds : a.seconds > 0 ? ~std::uint64_t{0} : 1;
  while (total.seeds < count && total.failed < 10) {
    if (a.seconds > 0 && std::chrono::steady_clock::now() >= end) break;
    one(a, total);
    ++a.run.seed;
  }
  print_total(total);
  return total.failed == 0 ? 0 : 1;
}
