// libFuzzer's door to the targets: MUSTER_FUZZ=name runs one, with MUSTER_FUZZ_PLANT=1 and its planted bug;
// MUSTER_FUZZ_LIST=1 names them all; MUSTER_FUZZ_SEEDS=folder writes the seeds of every target into folder/name/.
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "fuzz/fuzz.h"

namespace muster::fuzz {
namespace {

const Target* chosen = nullptr;

void write_seeds(const std::string& folder) {
  for (const Target& target : targets()) {
    const std::string here = folder + "/" + std::string(target.name);
    std::filesystem::create_directories(here);
    int n = 0;
    Seeds all = target.seeds();
    for (Bytes& kept : found(target.name)) all.push_back(std::move(kept));
    for (const Bytes& seed : all) {
      if (seed.size() > target.bytes_max) continue;
      std::ofstream out(here + "/seed-" + std::to_string(n++), std::ios::binary);
      out.write(reinterpret_cast<const char*>(seed.data()), static_cast<std::streamsize>(seed.size()));
    }
  }
}

}  // namespace
}  // namespace muster::fuzz

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  using namespace muster::fuzz;
  const auto env = [](const char* name) {
    const char* value = std::getenv(name);
    return std::string(value == nullptr ? "" : value);
  };
  if (!env("MUSTER_FUZZ_PLANT").empty()) plant_bugs();
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
