#include "overlay/pacer.h"

#include <algorithm>

namespace muster::overlay {
namespace {
constexpr std::uint64_t kGapUs = 50'000;  // between two probes
constexpr std::size_t kProbeBytes = 16 << 10, kLimitedBytes = 2'000;
constexpr std::uint64_t kLookUs = 150'000;
constexpr std::size_t kLookEchoes = 3;
constexpr std::int64_t kDeepUs = 200'000;
constexpr double kDrain = 0.6, kDrainDeep = 0.3, kBelow = 0.97;
constexpr std::uint64_t kHoldUs = 1'000'000, kGiveUpUs = 1'000'000, kAgainUs = 15'000'000;
constexpr int kVain = 2, kVainMost = 5;
constexpr double kBinding = 0.85;
constexpr std::uint64_t kLatestClock = std::uint64_t{1} << 60;  // of the other's; what is later is nonsense

double per_second(std::uint64_t bytes, std::uint64_t micros) {
  return micros == 0 ? 0 : static_cast<double>(bytes) * 1e6 / static_cast<double>(micros);
}
}  // namespace

void Pacer::Least::add(std::int64_t value, std::uint64_t now_us) {
  if (now_us - since_us_ >= kWindowUs) {
    before_ = now_us - since_us_ >= 2 * kWindowUs ? kNone : present_;
    present_ = kNone;
    since_us_ = now_us;
  }
  present_ = std::min(present_, value);
}

void Pacer::Least::restart(std::int64_t value, std::uint64_t now_us) {
  present_ = value;
  before_ = kNone;
  since_us_ = now_us;
}

Pacer::Pacer(std::uint32_t least_rtt_us, std::uint64_t now_us) : probed_us_(now_us) {
  if (least_rtt_us != 0) rtt_.restart(least_rtt_us, now_us);
}

std::optional<std::uint64_t> Pacer::probe(std::uint64_t now_us) {
  const bool first = next_ == 1;
  if (now_us == 0 || (!first && now_us - probed_us_ < kGapUs)) return {};
  if (!first && sent_ - probed_bytes_ < (mode_ == Mode::Open ? kProbeBytes : kLimitedBytes)) return {};
  probed_us_ = now_us;
  probed_bytes_ = sent_;
  flying_[next_ % flying_.size()] = {next_, now_us, sent_};
  return next_++;
}

void Pacer::answered(std::uint64_t number, std::uint64_t now_us, std::uint64_t arrived_us,
                     std::uint64_t arrived_bytes) {
  Flying& flying = flying_[number % flying_.size()];
  if (flying.sent_us == 0 || flying.number != number || now_us < flying.sent_us) return;
  if (arrived_us > kLatestClock) arrived_us = 0;
  Echo e{flying.sent_us, now_us, flying.sent_bytes, arrived_us, arrived_bytes};
  flying = {};
  if (echo_count_ > 0 && e.sent_us <= echo(0).sent_us) return;  // overtaken
  e.rtt_us = static_cast<std::int64_t>(now_us - e.sent_us);
  rtt_.add(e.rtt_us, now_us);
  e.queue_us = e.rtt_us - rtt_.value();
  if (arrived_us != 0) {
    // What stands on the way back is not ours to drain. What the other says cannot make the queue longer than it is.
    e.ahead_us = static_cast<std::int64_t>(arrived_us - e.sent_us);
    ahead_.add(e.ahead_us, now_us);
    e.queue_us = std::min(e.queue_us, e.ahead_us - ahead_.value());
  }
  echoes_[echo_count_++ % echoes_.size()] = e;
  const Look now = look();
  const bool stands = now.enough && now.queue_us > kAllowedUs && now.sent >= kSlowest;
  switch (mode_) {
    case Mode::Open:
      if (e.rtt_us < filled_rtt_us_ / 2) again_us_ = 0;
      if (stands && now.carried < kFastest && now_us >= again_us_) found(now, now_us);
      break;
    case Mode::Drain:
      drain(now, now_us);
      break;
    case Mode::Cruise:
      if (stands)
        found(now, now_us);
      else
        climb(now, now_us);
      break;
  }
}

Pacer::Look Pacer::look() const {
  Look out;
  const std::size_t known = std::min(echo_count_, echoes_.size());
  if (known == 0) return out;
  const Echo& last = echo(0);
  out.queue_us = last.queue_us;
  out.rtt_us = last.rtt_us;
  out.ahead_us = last.ahead_us;
  std::size_t n = 1;
  for (; n < known; ++n) {
    const Echo& e = echo(n);
    if (e.sent_us < since_us_ || (n >= kLookEchoes && last.sent_us - e.sent_us > kLookUs)) break;
    out.queue_us = std::min(out.queue_us, e.queue_us);
    out.rtt_us = std::min(out.rtt_us, e.rtt_us);
    out.ahead_us = std::min(out.ahead_us, e.ahead_us);
  }
  const Echo& from = echo(n - 1);
  // Answers that come all at once speak of a machine that slept, not of a link.
  out.enough =
      n >= kLookEchoes && last.sent_us - from.sent_us >= 2 * kGapUs && last.answered_us - from.answered_us >= kGapUs;
  if (!out.enough) return out;
  out.sent = per_second(last.sent_bytes - from.sent_bytes, last.sent_us - from.sent_us);
  const bool told =
      last.arrived_us > from.arrived_us && from.arrived_us != 0 && last.arrived_bytes >= from.arrived_bytes;
  out.carried = told ? per_second(last.arrived_bytes - from.arrived_bytes, last.arrived_us - from.arrived_us)
                     : per_second(last.sent_bytes - from.sent_bytes, last.answered_us - from.answered_us);
  out.carried = std::min(out.carried, out.sent);  // more than was sent cannot have come while a queue grew or stood
  return out;
}

void Pacer::found(const Look& look, std::uint64_t now_us) {
  mode_ = Mode::Drain;
  carries_ = std::max(look.carried, kSlowest);
  found_us_ = since_us_ = now_us;
  rate_ = std::max(carries_ * (look.queue_us > kDeepUs ? kDrainDeep : kDrain), kSlowest);
  give_up_us_ = now_us + kGiveUpUs + static_cast<std::uint64_t>(3 * look.queue_us + 2 * look.rtt_us);
}

// Only what left after the drain began tells of it.
void Pacer::drain(const Look& look, std::uint64_t now_us) {
  const Echo& last = echo(0);
  if (last.sent_us >= since_us_ && last.queue_us <= kAllowedUs / 2) {
    vain_ = std::max(0, vain_ - 1);
    return cruise(now_us);
  }
  if (now_us >= give_up_us_ && look.enough) give_up(look, now_us);
}

// The way has become longer, or it is not our bulk that stands there: from now on that is how far it is. When that
// happens again, others fill the link; who holds back beside them only starves.
void Pacer::give_up(const Look& look, std::uint64_t now_us) {
  rtt_.restart(look.rtt_us, now_us);
  if (echo(0).arrived_us != 0) ahead_.restart(look.ahead_us, now_us);
  vain_ = std::min(vain_ + 1, kVainMost);
  if (vain_ < kVain) return cruise(now_us);
  again_us_ = now_us + (kAgainUs << (vain_ - kVain));
  filled_rtt_us_ = look.rtt_us;
  open(now_us);
}

void Pacer::open(std::uint64_t now_us) {
  mode_ = Mode::Open;
  rate_ = 0;
  since_us_ = now_us;
}

void Pacer::cruise(std::uint64_t now_us) {
  mode_ = Mode::Cruise;
  since_us_ = climbed_us_ = now_us;
  rate_ = std::max(carries_ * kBelow, kSlowest);
}

// Near to what was found slowly, beyond it faster and faster: the link has become another.
void Pacer::climb(const Look& look, std::uint64_t now_us) {
  const std::uint64_t passed = std::min<std::uint64_t>(now_us - climbed_us_, 500'000);
  climbed_us_ = now_us;
  if (now_us - found_us_ > kIdleUs || rate_ > kFastest) return open(now_us);
  if (!look.enough || now_us - since_us_ < kHoldUs || look.sent < rate_ * kBinding) return;
  const double a_second = rate_ < carries_ * 1.1 ? 0.05 : rate_ < carries_ * 1.5 ? 0.3 : 1.0;
  rate_ *= 1 + a_second * static_cast<double>(passed) / 1e6;
}

std::uint64_t Pacer::arriving() const {
  const Look now = look();
  return now.enough ? static_cast<std::uint64_t>(now.carried) : 0;
}

std::uint64_t Pacer::queue_us() const {
  const auto least = look().queue_us;
  return least > 0 ? static_cast<std::uint64_t>(least) : 0;
}

}  // namespace muster::overlay
