#pragma once
// What ways between machines were seen to be and to carry, of clusters that are over too: it outlasts them and restarts
// in the side table "ways", a row for each machine, and is told to the planner at the start. Each direction for itself:
// a mean of what it carried when it was full, how often that was measured, and when. Forgotten after a week, which is
// when the planner believes nothing of it any more. Telemetry: never in the journal. Bounded: kPeersMax ways a machine,
// the one seen longest ago goes first, and kMachinesMax. From round trips to others and to relays it also works out
// where machines lie, so that the planner has an idea of pairs that never met (session/coordinates.h); after a restart
// from what was kept, and from relays as machines tell of them again. Thread-safe.
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string_view>
#include <vector>

#include "journal/store.h"
#include "scheduler/types.h"
#include "session/coordinates.h"

namespace muster::server {

struct KnownWay {
  scheduler::PathKind kind = scheduler::PathKind::Direct;
  std::int64_t kbps = 0;      // 0 = it was never full
  std::uint32_t samples = 0;  // of that
  std::int32_t rtt_us = 0;    // 0 = not known
  WallTime seen, measured;
  bool operator==(const KnownWay&) const = default;
};

class WayMemory {
 public:
  static constexpr std::size_t kPeersMax = 64, kMachinesMax = 100'000;
  static constexpr Millis kForgotten{7LL * 86'400'000};
  static constexpr Millis kSampleGap{10'000};      // what is nearer to the last is the same measurement told again
  static constexpr Millis kAnewAfter{86'400'000};  // after such a pause the mean begins anew

  explicit WayMemory(std::shared_ptr<journal::Store> store) : store_(std::move(store)) {}
  Status load(WallTime now);
  void note(const scheduler::PathsChanged& paths);
  void note_relay(NodeId node, std::string_view relay, std::int64_t rtt_us, WallTime at);
  void forget(NodeId node);   // where it lies; a machine that left
  Status save(WallTime now);  // what changed since
  scheduler::PathsChanged known(WallTime now) const;
  std::vector<std::pair<NodeId, KnownWay>> of(NodeId from, WallTime now) const;  // by the other machine
  scheduler::CoordinatesChanged moved();                                         // since the last call
  std::optional<session::Coordinates::Told> place(NodeId node) const;
  // The round trip between two that nobody measured, in microseconds; nullopt: too little is known of either.
  std::optional<std::int32_t> foretold_rtt_us(NodeId a, NodeId b) const;
  // From 0 to 1: many measurements not long ago are near to 1.
  static double confidence(const KnownWay& way, WallTime now);

 private:
  using Ways = std::map<NodeId, KnownWay>;
  static std::string text_of(const Ways& ways);
  static Ways ways_of(const std::string& text, WallTime now);
  void place_by(NodeId from, NodeId to, scheduler::PathKind kind, std::int32_t rtt_us, WallTime at);
  const std::shared_ptr<journal::Store> store_;
  mutable std::mutex mutex_;
  std::map<NodeId, Ways> by_;  // by from
  std::set<NodeId> changed_;
  session::Coordinates places_;
};

}  // namespace muster::server
