// Every target without libFuzzer, in the build of the unit tests: its seeds, what once broke something, and for a
// moment seeds that were changed at random. One sequence of inputs, however many of them there is time for. An input
// that breaks a target is kept beside this program, and MUSTER_FUZZ_INPUT=file gives it to the target again.
#include "fuzz/fuzz.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>

// Of the sanitizers' runtime, where there is one.
extern "C" __attribute__((weak)) void __sanitizer_set_death_callback(void (*callback)());

namespace muster::fuzz {
namespace {

using namespace std::chrono_literals;
constexpr auto kTime = 400ms;         // of one target
constexpr std::size_t kRunsMin = 50;  // however slow it is

ByteView under_way;
std::string& kept_in = *new std::string;  // leaks are looked for when other statics are gone

void keep_input() {
  if (under_way.data() == nullptr) return;
  const int fd = ::open(kept_in.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0 || ::write(fd, under_way.data(), under_way.size()) < 0) return;
  const std::string text = "\nthe input that broke it: MUSTER_FUZZ_INPUT=" + kept_in + "\n";
  (void)!::write(STDERR_FILENO, text.data(), text.size());
}
void on_signal(int number) {
  keep_input();
  std::signal(number, SIG_DFL);
  std::raise(number);
}

void give(const Target& target, const Bytes& input) {
  const Bytes copy(input);  // of exactly its size: reading beyond it is seen
  under_way = copy;
  target.run(copy);
  under_way = {};
}

// A few small changes, of the kinds that parsers stumble over.
Bytes changed(const Seeds& seeds, std::size_t bytes_max, Rng& rng) {
  Bytes out = seeds[rng.below(seeds.size())];
  for (std::uint64_t n = 1 + rng.below(4); n > 0; --n) {
    const auto at = static_cast<std::ptrdiff_t>(rng.below(out.size() + 1));
    const auto length = static_cast<std::ptrdiff_t>(rng.below(1 + std::min<std::size_t>(32, out.size() - at)));
    switch (out.empty() ? 3 : rng.below(7)) {
      case 0:
        out[rng.below(out.size())] ^= static_cast<std::uint8_t>(1U << rng.below(8));
        break;
      case 1:
        out[rng.below(out.size())] = static_cast<std::uint8_t>(rng.next());
        break;
      case 2: {
        static constexpr std::uint8_t kEdges[] = {0, 1, 0x7f, 0x80, 0xfe, 0xff, '"', '\n', '/', '0', '9'};
        out[rng.below(out.size())] = kEdges[rng.below(std::size(kEdges))];
        break;
      }
      case 3:
        out.insert(out.begin() + at, 1 + rng.below(16), static_cast<std::uint8_t>(rng.next()));
        break;
      case 4:
        out.erase(out.begin() + at, out.begin() + at + length);
        break;
      case 5: {  // a piece of it once more, elsewhere
        const Bytes piece(out.begin() + at, out.begin() + at + length);
        out.insert(out.begin() + static_cast<std::ptrdiff_t>(rng.below(out.size() + 1)), piece.begin(), piece.end());
        break;
      }
      default: {  // the front of one and the back of another
        const Bytes& other = seeds[rng.below(seeds.size())];
        out.resize(static_cast<std::size_t>(at));
        out.insert(out.end(), other.begin() + static_cast<std::ptrdiff_t>(rng.below(other.size() + 1)), other.end());
      }
    }
  }
  if (out.size() > bytes_max) out.resize(bytes_max);
  return out;
}

class Play : public testing::Test {
 public:
  explicit Play(const Target& target) : target_(target) {}
  void TestBody() override {
    kept_in = std::filesystem::read_symlink("/proc/self/exe").parent_path().string() + "/fuzz-broken-" +
              std::string(target_.name);
    if (const char* file = std::getenv("MUSTER_FUZZ_INPUT")) {
      std::ifstream in(file, std::ios::binary);
      const std::string text{std::istreambuf_iterator<char>(in), {}};
      return give(target_, to_bytes(text));
    }
    Seeds seeds = target_.seeds();
    ASSERT_FALSE(seeds.empty());
    for (Bytes& kept : found(target_.name)) seeds.push_back(std::move(kept));
    std::erase_if(seeds, [&](const Bytes& seed) { return seed.size() > target_.bytes_max; });
    ASSERT_FALSE(seeds.empty());
    for (const Bytes& seed : seeds) give(target_, seed);
    Rng rng(1);
    const auto end = std::chrono::steady_clock::now() + kTime;
    std::size_t runs = 0;
    for (; runs < kRunsMin || std::chrono::steady_clock::now() < end; ++runs)
      give(target_, changed(seeds, target_.bytes_max, rng));
    RecordProperty("runs", static_cast<int>(runs));
  }

 private:
  const Target& target_;
};

}  // namespace
}  // namespace muster::fuzz

int main(int argc, char** argv) {
  using namespace muster::fuzz;
  testing::InitGoogleTest(&argc, argv);
  if (__sanitizer_set_death_callback != nullptr) __sanitizer_set_death_callback(keep_input);
  for (const int number : {SIGABRT, SIGILL, SIGTRAP}) std::signal(number, on_signal);
  for (const Target& target : targets())
    testing::RegisterTest("Fuzz", std::string(target.name).c_str(), nullptr, nullptr, __FILE__, __LINE__,
                          [&target]() -> testing::Test* { return new Play(target); });
  return RUN_ALL_TESTS();
}
