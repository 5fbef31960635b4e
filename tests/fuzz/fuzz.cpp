#include "fuzz/fuzz.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>

namespace muster::fuzz {
namespace {
bool planted = false;
}  // namespace

std::vector<Target>& targets() {
  static std::vector<Target> all;
  return all;
}

void plant_bugs() {
  planted = true;
}

void plant(bool reached) {
  if (!planted || !reached) return;
  static constexpr char kText[] = "the planted bug was reached\n";
  (void)!::write(STDERR_FILENO, kText, sizeof kText - 1);
  __builtin_trap();
}

std::string in_tree(std::string_view path) {
  return std::string(MUSTER_TEST_ROOT "/") + std::string(path);
}

Seeds found(std::string_view name) {
  namespace fs = std::filesystem;
  Seeds out;
  const fs::path folder = in_tree("tests/fuzz/found/" + std::string(name));
  if (!fs::is_directory(folder)) return out;
  for (const auto& file : fs::directory_iterator(folder)) {
    std::ifstream in(file.path(), std::ios::binary);
    const std::string text{std::istreambuf_iterator<char>(in), {}};
    out.push_back(to_bytes(text));
  }
  std::sort(out.begin(), out.end());
  return out;
}

}  // namespace muster::fuzz
