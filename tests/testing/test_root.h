#pragma once
// Where the tree is that the tests were built from, for those that read files of it. One small source knows, so that
// compiler caches serve every checkout and these tests are joined with the others of their room.
#include <string>

namespace muster {

std::string test_root();

}  // namespace muster
