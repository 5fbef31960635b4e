#pragma once
// Which packet counters were seen: a ring of bits (RFC 6479) covering the last kReplayWindow counters. Idle sessions
// hold no bitmap: it is allocated at the first packet. check() and accept() are apart because only authenticated
// packets may move it.
#include <array>
#include <cstdint>
#include <memory>

namespace muster::overlay {

inline constexpr std::uint64_t kReplayWindow = 8192;

class ReplayWindow {
 public:
  // True when this counter is new (and now marked); false when it was seen or is too old.
  bool accept(std::uint64_t counter) {
    if (!words_) words_ = std::make_unique<Words>();
    if (counter + kReplayWindow < next_) return false;
    const std::uint64_t word = counter / 64;
    if (counter >= next_) {
      const std::uint64_t last = next_ == 0 ? 0 : (next_ - 1) / 64;
      const std::uint64_t fresh = word - last < kWords ? word - last : kWords;
      for (std::uint64_t i = 1; i <= fresh; ++i) (*words_)[(last + i) % kWords] = 0;
      next_ = counter + 1;
    }
    std::uint64_t& bits = (*words_)[word % kWords];
    const std::uint64_t bit = std::uint64_t{1} << (counter % 64);
    if ((bits & bit) != 0) return false;
    bits |= bit;
    return true;
  }

 private:
  // One word more than the window: the word being filled never shares its place with the oldest one still covered.
  static constexpr std::uint64_t kWords = kReplayWindow / 64 + 1;
  using Words = std::array<std::uint64_t, kWords>;
  std::unique_ptr<Words> words_;
  std::uint64_t next_ = 0;  // highest accepted + 1
};

}  // namespace muster::overlay
