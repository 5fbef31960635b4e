#pragma once
// Virtual time, one queue of what happens next, one source of randomness, one hash over everything that happened. Two
// runs with the same seed are the same run. Single-threaded; nothing in the simulation reads a real clock.
#include <cstdint>
#include <functional>
#include <map>
#include <queue>
#include <string>
#include <string_view>
#include <vector>

#include "base/rng.h"
#include "base/time.h"

namespace muster::sim {

inline constexpr Millis kLease{180'000};
inline constexpr std::size_t kLaneMax = 512;
inline constexpr std::int64_t kPairNeed = 100'000;  // kbit/s, of clusters that ask for something

class World {
 public:
  explicit World(std::uint64_t seed) : rng(seed) {}
  LeaseTime now() const { return now_; }
  WallTime wall() const { return WallTime{1'790'000'000'000 + now_.ms + wall_offset}; }
  void after(Millis delay, std::function<void()> f) { queue_.push({now_ + delay, ++seq_, std::move(f)}); }
  bool step() {
    if (queue_.empty()) return false;
    Event event = queue_.top();
    queue_.pop();
    now_ = std::max(now_, event.at);
    ++steps;
    event.f();
    return true;
  }
  void note(std::string_view text) {
    for (const char c : text) hash_ = (hash_ ^ static_cast<unsigned char>(c)) * 0x100000001b3ULL;
    hash_ = (hash_ ^ static_cast<std::uint64_t>(now_.ms)) * 0x100000001b3ULL;
    if (verbose) log_.emplace_back(std::to_string(now_.ms) + " " + std::string(text));
    if (log_.size() > 400'000) log_.clear();
  }
  // For the log alone: no part of the trace.
  void trace(const std::string& text) {
    if (verbose) log_.emplace_back(std::to_string(now_.ms) + "   " + text);
  }
  void fail(const std::string& what) {
    if (failure.empty()) failure = "at " + std::to_string(now_.ms) + " ms, step " + std::to_string(steps) + ": " + what;
  }
  std::uint64_t hash() const { return hash_; }
  const std::vector<std::string>& log() const { return log_; }

  Rng rng;
  std::string failure;
  std::uint64_t steps = 0;
  std::int64_t wall_offset = 0;
  bool verbose = false;
  std::map<std::pair<std::string, std::string>, std::uint64_t> coverage;  // (fault, state of what it hit) -> times

 private:
  struct Event {
    LeaseTime at;
    std::uint64_t seq;
    std::function<void()> f;
    bool operator<(const Event& other) const { return at != other.at ? at > other.at : seq > other.seq; }
  };
  std::priority_queue<Event> queue_;
  LeaseTime now_{1'000'000};
  std::uint64_t seq_ = 0, hash_ = 0xcbf29ce484222325ULL;
  std::vector<std::string> log_;
};

// How hostile the world is; all zero in liveness mode.
struct Chaos {
  std::uint32_t op_fault_percent = 5, replay_percent = 3, lie_percent = 0;
  bool calm = false;
};

}  // namespace muster::sim
