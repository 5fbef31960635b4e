#include "base/mutant.h"

#ifdef MUSTER_MUTANTS
#include <cstdlib>
#include <string>

namespace muster {
namespace {
std::string& active() {
  static std::string name = [] {
    const char* wanted = std::getenv("MUSTER_MUTANT");  // a unit test that is to fail: tools/mutants.py
    return std::string(wanted == nullptr ? "" : wanted);
  }();
  return name;
}
}  // namespace

void set_mutant(std::string_view name) {
  active() = name;
}
bool mutant_active(std::string_view name) {
  return !active().empty() && active() == name;
}

}  // namespace muster
#endif
