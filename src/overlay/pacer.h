#pragma once
// How fast bulk may go to one member by its present way, so that no queue stands before the slowest link of it: what
// stands there delays everything behind it, Ray's heartbeats too. Small probes travel with the data. Three ideas of
// others, in this order: the delay over the least one seen lately is the queue (LEDBAT, RFC 6817); it stands when even
// its minimum over an interval is high, so jitter is none (CoDel, RFC 8289); what arrives while it stands is what the
// link carries, and after a drain below that the rate climbs gently until a queue shows again (BBR, Cardwell 2016).
// Loss says nothing here: radio loses without a queue, and senders inside notice it by themselves. Pure: microseconds
// of any steady clock come in, never 0. Rates are bytes of datagrams a second. One thread. A few KiB.
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>

namespace muster::overlay {

class Pacer {
 public:
  static constexpr std::int64_t kAllowedUs = 25'000;     // so much may stand
  static constexpr double kSlowest = 16'000;             // no limit is lower than this
  static constexpr double kFastest = 150e6;              // nor higher: there it is the CPUs that queue
  static constexpr std::uint64_t kIdleUs = 300'000'000;  // what was found so long ago is not known any more

  // `least_rtt_us`: the shortest round trip known of the way, from before it was busy; 0 = none.
  explicit Pacer(std::uint32_t least_rtt_us = 0, std::uint64_t now_us = 1);

  void sent(std::size_t bytes) { sent_ += bytes; }
  // The number of the probe that is to leave now, behind what was sent; nullopt: it is not time.
  std::optional<std::uint64_t> probe(std::uint64_t now_us);
  // It was answered. The other end adds when it came, by its own clock, and how many bytes had come before; 0: it does
  // not say. Unknown, old and repeated numbers are nothing.
  void answered(std::uint64_t number, std::uint64_t now_us, std::uint64_t arrived_us, std::uint64_t arrived_bytes);

  std::uint64_t rate() const { return static_cast<std::uint64_t>(rate_); }        // for bulk; 0 = no limit
  std::uint64_t carries() const { return static_cast<std::uint64_t>(carries_); }  // as last found; 0 = never found
  std::uint64_t found_us() const { return found_us_; }                            // when
  std::uint64_t arriving() const;  // bytes a second that came of late; 0 = not known
  std::uint64_t queue_us() const;  // the least delay over the base of the last probes
  bool idle(std::uint64_t now_us) const { return now_us - probed_us_ > kIdleUs; }

 private:
  // The least value of the last one to two windows.
  class Least {
   public:
    void add(std::int64_t value, std::uint64_t now_us);
    void restart(std::int64_t value, std::uint64_t now_us);
    std::int64_t value() const { return present_ < before_ ? present_ : before_; }

   private:
    static constexpr std::uint64_t kWindowUs = 15'000'000;
    static constexpr std::int64_t kNone = std::numeric_limits<std::int64_t>::max();
    std::int64_t present_ = kNone, before_ = kNone;
    std::uint64_t since_us_ = 0;
  };
  struct Flying {
    std::uint64_t number = 0, sent_us = 0, sent_bytes = 0;  // sent_us 0: none
  };
  struct Echo {
    std::uint64_t sent_us = 0, answered_us = 0, sent_bytes = 0, arrived_us = 0, arrived_bytes = 0;
    std::int64_t rtt_us = 0, ahead_us = 0, queue_us = 0;
  };
  // Of the last echoes since the mode began, at least three.
  struct Look {
    bool enough = false;
    std::int64_t queue_us = 0, rtt_us = 0, ahead_us = 0;  // the least of each
    double sent = 0, carried = 0;                         // bytes a second
  };
  enum class Mode : std::uint8_t { Open, Drain, Cruise };

  const Echo& echo(std::size_t back) const { return echoes_[(echo_count_ - 1 - back) % echoes_.size()]; }
  Look look() const;
  void found(const Look& look, std::uint64_t now_us);
  void drain(const Look& look, std::uint64_t now_us);
  void give_up(const Look& look, std::uint64_t now_us);
  void cruise(std::uint64_t now_us);
  void open(std::uint64_t now_us);
  void climb(const Look& look, std::uint64_t now_us);

  Mode mode_ = Mode::Open;
  double rate_ = 0, carries_ = 0;
  int vain_ = 0;                    // drains after which the queue still stood, less those that helped
  std::uint64_t again_us_ = 0;      // until then others fill the link, and a limit helps nobody;
  std::int64_t filled_rtt_us_ = 0;  // or until the round trip is half of this
  std::uint64_t found_us_ = 0, since_us_ = 0, give_up_us_ = 0, climbed_us_ = 0;
  std::uint64_t sent_ = 0, probed_bytes_ = 0, probed_us_ = 0, next_ = 1;
  Least rtt_, ahead_;  // round trip; one way, by two clocks, so only its changes mean something
  std::array<Flying, 64> flying_{};
  std::array<Echo, 16> echoes_{};
  std::size_t echo_count_ = 0;
};

}  // namespace muster::overlay
