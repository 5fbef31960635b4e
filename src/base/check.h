#pragma once
// MUSTER_CHECK: programmer errors only, on in every build; never sees peer or user input. Says the name of the file,
// not its path: programs know nothing of where they were built.
namespace muster {
[[noreturn]] void check_failed(const char* expression, const char* file, int line);
}  // namespace muster
#define MUSTER_CHECK(expression) \
  (static_cast<bool>(expression) ? static_cast<void>(0) : ::muster::check_failed(#expression, __FILE_NAME__, __LINE__))
