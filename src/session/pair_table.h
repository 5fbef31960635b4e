#pragma once
// What members of running clusters measured of their ways to each other, beside the core, on LeaseTime, in memory only:
// enough of the past to tell a way that stays slow from a bad minute. A sample counts only if the way was full then, so
// a pair that has nothing to send has none and is never judged. A way is slow when its last kSlowSamples, over
// kSlowSpan at least, were all below what the cluster asks for; fine again when the last kFineSamples are a tenth above
// it. Who says so is the sender's machine. Bounded: kPairsMax ways, the one that was measured longest ago goes first.
// Single-threaded. kbit/s.
#include <cstdint>
#include <deque>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "base/id.h"
#include "base/time.h"

namespace muster::session {

class PairTable {
 public:
  static constexpr std::size_t kSlowSamples = 4, kFineSamples = 3, kPairsMax = 65'536;
  static constexpr Millis kSlowSpan{60'000}, kFineSpan{30'000};
  static constexpr Millis kSampleGap{10'000};    // what is nearer to the last one is the same measurement told again
  static constexpr Millis kSampleLife{900'000};  // then it says nothing any more
  static constexpr Millis kUnknownAfter{
      1'800'000};  // a slow way that nobody measured for so long is not known any more

  struct Judged {
    SlotId from, to;
    std::int64_t kbps = 0;  // the middle one of its samples
    bool slow = false;
    bool operator==(const Judged&) const = default;
  };

  void start(LeaseTime now) { pairs_.clear(), watched_.clear(), started_ = now; }
  void measured(ClusterId cluster, SlotId from, SlotId to, std::int64_t kbps, LeaseTime at, LeaseTime now);
  // Each way of the cluster that it has an opinion about, and as not slow each of `slow` that it knows nothing of any
  // more.
  std::vector<Judged> judge(ClusterId cluster, std::int64_t need_kbps,
                            const std::vector<std::pair<SlotId, SlotId>>& slow, LeaseTime now) const;
  // Clusters to be judged from time to time: those that ways were measured of, and those the journal knows slow ones
  // of.
  void watch(ClusterId cluster) { watched_.insert(cluster); }
  const std::set<ClusterId>& watched() const { return watched_; }
  void keep_only(ClusterId cluster, const std::set<SlotId>& members);
  void forget(ClusterId cluster);
  std::size_t size() const { return pairs_.size(); }

 private:
  struct Sample {
    std::int64_t kbps = 0;
    LeaseTime at{0};
  };
  struct Key {
    ClusterId cluster;
    SlotId from, to;
    auto operator<=>(const Key&) const = default;
  };
  // Do the last `count` of them, fresh ones over `span`, all pass?
  template <typename Passes>
  static bool last(const std::deque<Sample>& samples, std::size_t count, Millis span, LeaseTime now, Passes passes);

  static constexpr std::size_t kKept = 8;
  std::map<Key, std::deque<Sample>> pairs_;
  std::set<ClusterId> watched_;
  LeaseTime started_{0};
};

}  // namespace muster::session
