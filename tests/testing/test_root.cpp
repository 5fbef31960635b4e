#include "testing/test_root.h"

namespace muster {

std::string test_root() {
  return MUSTER_TEST_ROOT;
}

}  // namespace muster
