#pragma once
// What every parser of bytes from outside is fuzzed with: libFuzzer's program (main.cpp) holds all targets, and the
// unit tests play their seeds, changed a little (fuzz_test.cpp). A target gets any bytes and must return: a crash, a
// sanitizer's report, a failed MUSTER_CHECK or a hang is a finding. Seeds are made from our own encodings.
// docs/fuzzing.md says how to run and to add one. One thread.
#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/check.h"
#include "base/rng.h"

namespace muster::fuzz {

using Seeds = std::vector<Bytes>;
struct Target {
  std::string_view name;
  std::size_t bytes_max;  // of one input
  void (*run)(ByteView input);
  Seeds (*seeds)();
};
std::vector<Target>& targets();
struct Registration {
  explicit Registration(const Target& target) { targets().push_back(target); }
};

// A planted bug, to see that the fuzzer finds what lies that deep: traps where `reached` holds, only after
// plant_bugs(). No seed may reach it.
void plant(bool reached);
void plant_bugs();

std::string in_tree(std::string_view path);  // of a file of this source tree, for seeds
// The bytes of the files of tests/fuzz/found/<name>: what once broke something.
Seeds found(std::string_view name);

// Takes an input apart: numbers from its front, and what is left.
class Input {
 public:
  explicit Input(ByteView bytes) : rest_(bytes) {}
  bool empty() const { return rest_.empty(); }
  std::uint8_t byte() {
    const ByteView one = take(1);
    return one.empty() ? std::uint8_t{0} : one[0];
  }
  std::uint16_t two() {
    const std::uint8_t high = byte();
    return static_cast<std::uint16_t>(high << 8 | byte());
  }
  ByteView take(std::size_t size) {
    const ByteView out = rest_.first(std::min(size, rest_.size()));
    rest_ = rest_.subspan(out.size());
    return out;
  }
  ByteView sized() { return take(two()); }  // two bytes of length before it
  ByteView rest() { return take(rest_.size()); }
  std::string_view text() {
    const ByteView all = rest();
    return {reinterpret_cast<const char*>(all.data()), all.size()};
  }

 private:
  ByteView rest_;
};

// The other direction, for seeds.
inline Bytes operator+(Bytes a, ByteView b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}
inline Bytes operator+(Bytes a, std::string_view text) {
  return std::move(a) + as_bytes(text);
}
inline Bytes sized(ByteView bytes) {
  return Bytes{static_cast<std::uint8_t>(bytes.size() >> 8), static_cast<std::uint8_t>(bytes.size())} + bytes;
}

}  // namespace muster::fuzz

// FUZZ_TARGET(name, bytes_max): the body follows and reads `input`. Before it stands `Seeds seeds_<name>()`.
#define FUZZ_TARGET(name, bytes_max)                                                                           \
  static void run_##name(::muster::ByteView input);                                                            \
  static const ::muster::fuzz::Registration registration_##name({#name, bytes_max, run_##name, seeds_##name}); \
  static void run_##name(::muster::ByteView input)
