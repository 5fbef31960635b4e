#pragma once
// Which planted fault is caught by how many seeds: the table that keeps the simulation honest.
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace muster::sim {

struct MutantRow {
  std::string_view name;
  std::uint32_t seeds;
  std::string_view what;
};
const std::vector<MutantRow>& mutant_table();
struct Caught {
  std::uint64_t seed = 0;
  std::string failure;
};
// Runs seeds first..first+count-1 with the mutant on until one fails that holds without it.
std::optional<Caught> hunt(std::string_view mutant, std::uint64_t first, std::uint64_t count, std::uint64_t steps);

}  // namespace muster::sim
