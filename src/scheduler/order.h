#pragma once
// The order in which the requests of a tier would start if each found its machines: what starts counts for its owner,
// so those that wait by the hundred let others in between. The first kForeseen of a tier are walked that way; those
// behind them stand by what everybody would hold then, so that the place of one request needs no walk through all.
// Within guarantees is foreseen for the first kGuaranteedSeen of a lane.
// For readers; the planner comes to the same order by itself. Private.
#include <map>
#include <vector>

#include "scheduler/impl.h"

namespace muster::scheduler {

inline constexpr std::uint32_t kForeseen = 256, kGuaranteedSeen = 1'024;

class Scheduler::Impl::Walk {
 public:
  Walk(const Impl& impl, WallTime now);
  const std::map<std::uint8_t, std::vector<std::uint32_t>>& tiers() const { return tiers_; }  // lanes with requests
  void begin_overdue();           // first of all, of whatever tier; the tiers come without them
  void begin(std::uint8_t tier);  // tiers in rising order
  bool next(std::uint32_t& item);
  bool foreseen() const { return steps_ < kForeseen; }  // the next one
  std::uint32_t steps() const { return steps_; }
  // Of the lane, that went before something of that worth and name; `ahead` of it stand before it now.
  std::uint32_t passed(std::uint32_t lane, std::int64_t worth, std::uint64_t who, std::uint32_t ahead) const;
  std::int64_t handicap(std::uint32_t lane);  // by now
  // By what is held now, and the least in the tier.
  std::int64_t present(std::uint32_t lane) const;
  std::int64_t least() const { return least_; }

 private:
  struct First {
    Rank rank = Rank::None;
    std::int64_t worth = 0;
    std::uint64_t who = 0;
    std::uint32_t lane = 0;
    std::uint32_t seen = kNone; /* which of those that were looked through; kNone: where the cursor stands */
    bool operator==(const First&) const = default;
    bool operator<(const First& o) const {  // of a heap: the first to go is on top
      return std::tuple(o.rank, worth, o.who) < std::tuple(rank, o.worth, who);
    }
  };
  struct Seen {  // of a lane with a guarantee: what is within it goes before what came earlier
    Entry entry;
    std::int64_t worth = 0;
    bool gone = false;
  };
  std::optional<First> first_of(std::uint32_t lane);
  void add(std::uint32_t lane);
  void went(std::uint32_t item);  // it holds what it asks for, as far as those behind it are concerned
  std::int64_t part(Usage::Account account);
  const Impl& impl_;
  const WallTime now_;
  std::map<std::uint8_t, std::vector<std::uint32_t>> tiers_;
  std::vector<Lines::Cursor> cursors_;
  std::vector<std::uint32_t> passed_;
  std::map<std::uint32_t, std::vector<Seen>> seen_;  // by lane
  std::vector<Held> more_;                           // by account
  std::vector<std::int64_t> part_;                   // by account, -1: to be worked out
  std::vector<First> firsts_;
  std::vector<std::uint32_t> overdue_;  // the last one first
  std::uint32_t steps_ = 0;
  std::int64_t least_ = 0;
};

}  // namespace muster::scheduler
