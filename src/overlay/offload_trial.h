#pragma once
// Whether what is handed to the kernel large (datagrams that it cuts, segments that it takes joined) gets lost where
// what is handed over one by one does not: some devices, drivers and hosts of virtual machines drop or damage large
// ones and say nothing. Told how much went and how much of it did not arrive, it compares: when much is lost, all goes
// one by one for a moment; if that helps it stays so, for ten minutes at first, then large ones are tried again; if
// not, the loss is the way's own, and the next comparison is made later and later. Pure; one thread; bounded.
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>

#include "base/time.h"

namespace muster::overlay {

class OffloadTrial {
 public:
  static constexpr std::uint64_t kEnough = 32 << 10;  // bytes; of fewer nothing is concluded
  static constexpr std::uint64_t kMuch = 1 << 20;     // then a look begins anew
  static constexpr unsigned kDoubt = 5;               // a fifth lost is worth a comparison
  static constexpr Millis kLook{10'000}, kSettle{1'000}, kPatience{30'000};
  static constexpr Millis kSlowFirst{600'000}, kSlowMax{6 * 3'600'000}, kQuietFirst{60'000}, kQuietMax{3'600'000};
  static constexpr std::size_t kWaysMax = 64;

  enum class State : std::uint8_t { Large, Compares, Single };
  State state() const { return state_; }
  bool large() const { return state_ == State::Large; }
  // Is anybody to count at all? False while nothing that is told would change anything.
  bool counts(LeaseTime now) const { return state_ != State::Single && now >= quiet_until_; }

  // Of `sent` bytes by that way `lost` did not arrive. True: state() is another one now.
  bool note(std::uint64_t way, std::uint64_t sent, std::uint64_t lost, LeaseTime now);
  bool tick(LeaseTime now);  // the same for time that passed

  // In percent, as of the last comparison that ended with Single.
  unsigned lost_large() const { return percent(before_); }
  unsigned lost_single() const { return percent(after_); }

 private:
  struct Look {
    std::uint64_t sent = 0, lost = 0;
    LeaseTime since;
  };
  static unsigned percent(const Look& look) {
    return look.sent == 0 ? 0 : static_cast<unsigned>(look.lost * 100 / look.sent);
  }
  bool enter(State state, LeaseTime now);
  bool was_the_ways_own(LeaseTime now);

  State state_ = State::Large;
  LeaseTime since_, quiet_until_, until_;
  Millis quiet_ = kQuietFirst, slow_ = kSlowFirst;
  std::map<std::uint64_t, Look> looks_;
  std::uint64_t suspect_ = 0;
  Look before_, after_;  // of the suspect, large and one by one
};

}  // namespace muster::overlay
