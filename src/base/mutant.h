#pragma once
// Planted faults for the simulation: MUSTER_MUTANT("name") is true only in a build with MUSTER_MUTANTS and only for the
// one mutant that set_mutant() or the environment (MUSTER_MUTANT=name) switched on. In every other build it is the
// constant false and costs nothing. Each name used in the sources has a row in tests/sim/mutants.cpp that says within
// how many seeds the simulation catches it, or in tools/mutants.py with the unit test that does.
#include <string_view>

namespace muster {

#ifdef MUSTER_MUTANTS
void set_mutant(std::string_view name);  // empty = none; not thread-safe: set before the run
bool mutant_active(std::string_view name);
#define MUSTER_MUTANT(name) (::muster::mutant_active(name))
#else
#define MUSTER_MUTANT(name) (false)
#endif

}  // namespace muster
