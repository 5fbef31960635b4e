#pragma once
// The ways between machines: what is known of a pair, and sets of machines whose slowest pair is as fast as can be. A
// pair that nobody measured has what the two say of themselves: on one site their LAN, else the narrower of their
// links, each direction for itself, and the round trip that their places foretell. Bandwidth in kbit/s, round trips in
// microseconds. Private.
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "scheduler/types.h"

namespace muster::scheduler {

struct Way {
  std::int64_t kbps = 0;
  std::int32_t rtt_us = 0;
  bool relayed = false;
  bool operator==(const Way&) const = default;
};
struct Spot {                          // what a machine says of where it is
  std::uint32_t site = 0, region = 0;  // numbers; 0 = not known
  std::int64_t world_kbps = 0, lan_kbps = 0;
  bool relayed = false;
  Coordinate at{};  // all zero: not known
};
Spot spot_of(const Link& link, std::uint32_t site, std::uint32_t region);  // with what is taken where it says nothing
Way way_between(const Spot& a, const Spot& b);                             // as nobody measured it

// What machines measured of their ways to each other while they worked together, by the numbers that the caller has
// for them. Bounded; how a way goes is believed for a day, what it carried fades from then on until it is a week old.
class Network {
 public:
  struct Seen {
    PathKind kind = PathKind::Direct;
    std::int64_t to_kbps = 0, from_kbps = 0;  // 0 = it was never full
    std::int32_t rtt_us = 0;
    WallTime at, measured;  // measured: when it was last full, either way
    bool fresh(std::int64_t now_ms) const { return at.ms + kBelievedMs > now_ms; }
    bool known(std::int64_t now_ms) const { return fresh(now_ms) || weight(now_ms) > 0; }
    // Of what it carried, in thousandths: all for a day, then less and less, nothing after a week.
    std::int64_t weight(std::int64_t now_ms) const;
    Way applied_to(const Spot& a, const Spot& b, std::int64_t now_ms) const;
    bool below(std::int64_t kbps) const;  // it was measured to carry less, either way
  };
  struct Near {
    std::uint32_t other = 0;
    NodeId from, to;  // to: the other
    Seen seen;
  };
  // `from` and `to` are the numbers of the two machines. True: it is known now of the pair whether it goes by the
  // relay, and was not, or otherwise; or it carries another amount than was known, by a fifth at least.
  bool note(std::uint32_t from, std::uint32_t to, const PathSeen& path);
  void forget(std::uint32_t node);  // before its number is another's
  bool empty() const { return known_ == 0; }
  PathsChanged all() const;
  const std::vector<Near>& of(std::uint32_t node) const;  // sorted by the other
  const Seen* between(std::uint32_t a, std::uint32_t b) const;

 private:
  static constexpr std::int64_t kBelievedMs = 86'400'000, kForgottenMs = 7 * kBelievedMs;
  static constexpr std::size_t kPeersKept = 64;
  Near& row(std::uint32_t from, std::uint32_t to, const PathSeen& path);
  void erase(std::uint32_t from, std::uint32_t to);
  std::vector<std::vector<Near>> by_;  // both ways round
  std::size_t known_ = 0;              // rows of all
};

// A set of machines for a gang: of all sets in which no pair goes by the relay, one whose slowest pair is the fastest,
// and of those one whose longest round trip is the shortest. Exact for up to 64 machines unless that takes too many
// steps; of more, one site, one region or all that are well connected, without those that were measured to be slow.
struct Tight {
  // The members that are there already come first and host nothing; bit n of hosts: it can host need n.
  std::vector<Spot> spots;
  std::vector<std::uint64_t> hosts;
  std::uint32_t members = 0;
  std::vector<std::uint32_t> counts;  // of machines, by need
  struct Measured {
    std::uint32_t a = 0, b = 0;  // a < b
    Way way;
  };
  std::vector<Measured> known;  // sorted by a, then b; each pair once
  std::size_t small = 64;       // so many are looked at exactly
};
struct TightSet {
  std::vector<std::uint32_t> machines;  // enough for all needs, often more; any two of them suit; sorted
  std::int64_t kbps = 0;                // the slowest pair has that at least
  std::int32_t rtt_us = 0;              // and the longest round trip is that at most
};
std::optional<TightSet> tightest(const Tight& gang);

}  // namespace muster::scheduler
