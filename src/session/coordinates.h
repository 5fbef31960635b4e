#pragma once
// Network coordinates: where machines and relays lie in a plane, each with a height for its own access link, so that
// the distance of two, plus both heights, is about the round trip between them, also where nobody measured it. Vivaldi
// (Dabek et al., SIGCOMM 2004): who measures a round trip moves a little towards or away from the other, the more the
// less sure it is of its own place. A machine's word moves only that machine, and relays a little, so a liar misplaces
// mostly itself. Of each way the least of the last few round trips counts: a full queue is no distance. A place is told
// only once kEnough others were measured and its error is small; it predicts round trips and nothing else. In memory;
// bounded: kPlacesMax, who was heard longest ago goes first. Not thread-safe. Microseconds.
#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string_view>
#include <vector>

#include "base/id.h"
#include "base/time.h"
#include "model/coordinate.h"

namespace muster::session {

class Coordinates {
 public:
  static constexpr std::size_t kPlacesMax = 200'000, kOthersMax = 32, kRecent = 4, kEnough = 3;
  static constexpr double kErrorMax = 0.5;  // of what is told: the usual error of a prediction, as a part of it
  static constexpr std::int32_t kRttMaxUs = 10'000'000;

  struct Told {
    Coordinate at{};
    double error = 1;      // 0 to 1
    std::size_t from = 0;  // of so many others
  };

  // 0 and what is beyond kRttMaxUs is no measurement.
  void measured(NodeId from, NodeId to, std::int64_t rtt_us, WallTime now);
  void measured(NodeId from, std::string_view relay, std::int64_t rtt_us, WallTime now);
  std::optional<Told> place(NodeId node) const;
  std::optional<std::int32_t> foretold(NodeId a, NodeId b) const;
  // Machines whose place is another than was told with the last call: by a tenth of what it measures, and a
  // millisecond.
  std::vector<std::pair<NodeId, Coordinate>> news();
  void forget(NodeId node);
  std::size_t size() const { return at_.size(); }

 private:
  using Key = std::uint64_t;  // a machine's id, or kRelay and a hash of the relay's address
  struct Recent {
    std::array<std::int32_t, kRecent> rtt{};
    std::uint32_t count = 0;
    WallTime at;
  };
  struct Spot {
    double x = 0, y = 0, height = 0, error = 1;
    std::map<Key, Recent> others;
    WallTime heard;
    std::optional<Coordinate> told;
  };
  Spot& spot(Key key, WallTime now);
  void measure(Key from, Key to, std::int64_t rtt_us, WallTime now);
  static bool sure(const Spot& spot) { return spot.others.size() >= kEnough && spot.error <= kErrorMax; }
  static Coordinate rounded(const Spot& spot);
  // Moves `of` so that it is nearer to being rtt_us away from `other`; weight from 0 to 1.
  static void pull(Spot& of, const Spot& other, double rtt_us, double weight, Key a, Key b);

  std::map<Key, Spot> at_;
  std::set<std::pair<WallTime, Key>> by_age_;
  std::set<Key> moved_;
};

}  // namespace muster::session
