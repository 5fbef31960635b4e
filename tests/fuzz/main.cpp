// libFuzzer's door to the targets: MUSTER_FUZZ=name runs one; MUSTER_FUZZ_LIST=1 names them all;
// MUSTER_FUZZ_SEEDS=folder writes the seeds of every target into folder/name/. In the tree's root: some seeds are
// files.
#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "fuzz/fuzz.h"

namespace muster::fuzz {

std::vector<Target>& targets() {
  static std::vector<Target> all;
  return all;
}

namespace {

const Target* chosen = nullptr;
bool planted = false;

void write_seeds(const std::string& folder) {
  for (const Target& target : targets()) {
    const std::string here = folder + "/" + std::string(target.name);
    std::filesystem::create_directories(here);
    int n = 0;
    for (const Bytes& seed : target.seeds()) {
      if (seed.size() > target.bytes_max) continue;
      std::ofstream out(here + "/seed-" + std::to_string(n++), std::ios::binary);
      out.write(reinterpret_cast<const char*>(seed.data()), static_cast<std::streamsize>(seed.size()));
    }
  }
}

}  // namespace

void plant(bool reached) {
  if (planted && reached) {
    static constexpr char kText[] = "the planted bug was reached\n";
    (void)!::write(STDERR_FILENO, kText, sizeof kText - 1);
    __builtin_trap();
  }
}

}  // namespace muster::fuzz

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  using namespace muster::fuzz;
  const auto env = [](const char* name) {
    const char* value = std::getenv(name);
    return std::string(value == nullptr ? "" : value);
  };
  planted = !env("MUSTER_FUZZ_PLANT").empty();
  if (!env("MUSTER_FUZZ_LIST").empty()) {
    for (const Target& target : targets()) std::printf("%s %zu\n", std::string(target.name).c_str(), target.bytes_max);
    std::exit(0);
  }
  if (const std::string folder = env("MUSTER_FUZZ_SEEDS"); !folder.empty()) {
    write_seeds(folder);
    std::exit(0);
  }
  for (const Target& target : targets())
    if (target.name == env("MUSTER_FUZZ")) chosen = &target;
  if (chosen == nullptr) {
    std::fprintf(stderr, "MUSTER_FUZZ must name a target; MUSTER_FUZZ_LIST=1 lists them\n");
    std::exit(2);
  }
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace muster::fuzz;
  if (size <= chosen->bytes_max) chosen->run({data, size});
  return 0;
}
