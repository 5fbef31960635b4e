// muster-sim: the long runner of the simulation.
//   muster-sim --seed N [--steps M] [--mutant NAME] [--log]    replay one run exactly
//   muster-sim --seconds S | --hours H                         as many of the seeds known to hold as fit, in order
//   muster-sim --seconds S | --hours H --seed FIRST            a hunt: every seed from FIRST on (docs/known-faults.md)
//   muster-sim --mutants [--seeds N]                           hunt every planted fault
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "base/mutant.h"
#include "sim/mutants.h"
#include "sim/sim.h"

namespace {

// What every change must keep: seeds that held when they were listed. Others find more, see docs/known-faults.md.
constexpr std::uint64_t kHolding[][2] = {{1, 18}, {59, 69}, {110, 134}};
std::uint64_t next_holding(std::uint64_t seed) {
  for (const auto& [first, last] : kHolding) {
    if (seed < first) return first;
    if (seed <= last) return seed;
  }
  return 0;
}

using muster::sim::RunOptions;
using muster::sim::RunResult;

std::map<std::pair<std::string, std::string>, std::uint64_t> coverage;

int one(const RunOptions& options, const std::string& mutant, bool log) {
  const RunResult result = muster::sim::run_simulation(options);
  for (const auto& [pair, times] : result.coverage) coverage[pair] += times;
  if (log) {
    for (const std::string& line : result.log) std::printf("%s\n", line.c_str());
  }
  if (result.failure.empty()) {
    std::printf("seed %llu: ok, %llu steps, hash %016llx\n", static_cast<unsigned long long>(options.seed),
                static_cast<unsigned long long>(result.steps), static_cast<unsigned long long>(result.hash));
    return 0;
  }
  std::printf("seed %llu FAILED: %s\n  reproduce: make sim SEED=%llu STEPS=%llu%s%s\n",
              static_cast<unsigned long long>(options.seed), result.failure.c_str(),
              static_cast<unsigned long long>(options.seed), static_cast<unsigned long long>(options.steps),
              mutant.empty() ? "" : " MUTANT=", mutant.c_str());
  return 1;
}

void print_coverage() {
  std::printf("fault x state of the machine it hit: %zu pairs\n", coverage.size());
  for (const auto& [pair, times] : coverage)
    std::printf("  %-16s %-10s %llu\n", pair.first.c_str(), pair.second.c_str(),
                static_cast<unsigned long long>(times));
}

int hunt_all(std::uint64_t seeds, std::uint64_t steps) {
  int missed = 0;
  for (const muster::sim::MutantRow& row : muster::sim::mutant_table()) {
    const auto caught = muster::sim::hunt(row.name, 1, seeds != 0 ? seeds : row.seeds, steps);
    if (caught) {
      std::printf("caught  %-36s seed %llu: %s\n", std::string(row.name).c_str(),
                  static_cast<unsigned long long>(caught->seed), caught->failure.c_str());
    } else {
      std::printf("MISSED  %-36s within %u seeds\n", std::string(row.name).c_str(), row.seeds);
      ++missed;
    }
    std::fflush(stdout);
  }
  std::printf("%zu mutants, %d missed\n", muster::sim::mutant_table().size(), missed);
  return missed == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  RunOptions options;
  std::string mutant;
  double seconds = 0;
  std::uint64_t seeds = 0;
  bool mutants = false, log = false, hunt = false;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    const auto value = [&] { return i + 1 < argc ? std::string(argv[++i]) : std::string("0"); };
    if (arg == "--seed")
      options.seed = std::strtoull(value().c_str(), nullptr, 10), hunt = true;
    else if (arg == "--steps")
      options.steps = std::strtoull(value().c_str(), nullptr, 10);
    else if (arg == "--seeds")
      seeds = std::strtoull(value().c_str(), nullptr, 10);
    else if (arg == "--seconds")
      seconds = std::strtod(value().c_str(), nullptr);
    else if (arg == "--hours")
      seconds = 3600 * std::strtod(value().c_str(), nullptr);
    else if (arg == "--mutant")
      mutant = value();
    else if (arg == "--mutants")
      mutants = true;
    else if (arg == "--log")
      log = options.verbose = true;
    else
      return std::fprintf(stderr, "unknown argument %s; see the top of tests/sim/main.cpp\n", arg.c_str()), 2;
  }
  if (mutants) return hunt_all(seeds, options.steps);
#ifdef MUSTER_MUTANTS
  muster::set_mutant(mutant);
#endif
  if (seconds <= 0 && seeds == 0) {
    const int rc = one(options, mutant, log);
    print_coverage();
    return rc;
  }
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  int failed = 0;
  for (std::uint64_t n = 0; seeds != 0 ? n < seeds : std::chrono::steady_clock::now() < end; ++n) {
    if (!hunt && seeds == 0 && (options.seed = next_holding(options.seed)) == 0) break;
    failed += one(options, mutant, false);
    std::fflush(stdout);
    ++options.seed;
    if (failed >= 10) break;
  }
  print_coverage();
  return failed == 0 ? 0 : 1;
}
