#pragma once
// The release that this is a part of; CMakeLists.txt says the same.

namespace muster {

inline constexpr const char* kVersion = "0.1.0";

}  // namespace muster
