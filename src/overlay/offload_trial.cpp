#include "overlay/offload_trial.h"

#include <algorithm>

namespace muster::overlay {

bool OffloadTrial::enter(State state, LeaseTime now) {
  state_ = state;
  since_ = now;
  looks_.clear();
  return true;
}

bool OffloadTrial::was_the_ways_own(LeaseTime now) {
  quiet_until_ = now + quiet_;
  quiet_ = std::min(quiet_ * 2, kQuietMax);
  return enter(State::Large, now);
}

bool OffloadTrial::note(std::uint64_t way, std::uint64_t sent, std::uint64_t lost, LeaseTime now) {
  lost = std::min(lost, sent);
  if (sent == 0 || !counts(now)) return false;
  if (state_ == State::Compares) {
    // What went large may still be missed for a moment.
    if (way != suspect_ || now - since_ < kSettle) return false;
    after_.sent += sent;
    after_.lost += lost;
    if (after_.sent < kEnough) return false;
    if (std::uint64_t{2} * after_.lost * before_.sent > before_.lost * after_.sent) return was_the_ways_own(now);
    until_ = now + slow_;
    slow_ = std::min(slow_ * 2, kSlowMax);
    quiet_ = kQuietFirst;
    return enter(State::Single, now);
  }
  auto found = looks_.find(way);
  if (found == looks_.end()) {
    if (looks_.size() >= kWaysMax) return false;
    found = looks_.emplace(way, Look{0, 0, now}).first;
  }
  Look& look = found->second;
  if (now - look.since >= kLook || look.sent >= kMuch) look = {0, 0, now};
  look.sent += sent;
  look.lost += lost;
  if (look.sent < kEnough || look.lost * kDoubt < look.sent) return false;
  suspect_ = way;
  before_ = look;
  after_ = {};
  return enter(State::Compares, now);
}

bool OffloadTrial::tick(LeaseTime now) {
  if (state_ == State::Single && now >= until_) return enter(State::Large, now);
  if (state_ == State::Compares && now - since_ >= kPatience) return was_the_ways_own(now);
  if (state_ != State::Large) return false;
  std::erase_if(looks_, [&](const auto& each) { return now - each.second.since >= kLook; });
  if (slow_ != kSlowFirst && now - since_ >= kSlowMax) slow_ = kSlowFirst;  // it was well for long
  return false;
}

}  // namespace muster::overlay
