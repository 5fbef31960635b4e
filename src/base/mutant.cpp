#include "base/mutant.h"

#ifdef MUSTER_MUTANTS
#include <string>

namespace muster {
namespace {
std::string& active() {
  static std::string name;
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
