#include "session/coordinates.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <utility>

namespace muster::session {
namespace {

constexpr std::uint64_t kRelay = std::uint64_t{1} << 63U;
constexpr double kStep = 0.25;          // of the way to where it should be, at most
constexpr double kRelayPart = 0.25;     // of what a machine would move
constexpr double kRelayStepUs = 1'000;  // and no further with one measurement
constexpr double kLeastUs = 100;        // below that the clock and the scheduler are measured
constexpr std::size_t kPlayed = 200;    // what one machine may know of others is heard so often at most

std::uint64_t hash_of(std::string_view text) {  // FNV-1a
  std::uint64_t hash = 0xcbf29ce484222325U;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3U;
  return hash;
}

}  // namespace

void Coordinates::measured(NodeId from, NodeId to, std::int64_t rtt_us, WallTime now) {
  if (from != to && from && to) measure(from.value & ~kRelay, to.value & ~kRelay, rtt_us, now);
}

void Coordinates::measured(NodeId from, std::string_view relay, std::int64_t rtt_us, WallTime now) {
  if (from && !relay.empty()) measure(from.value & ~kRelay, hash_of(relay) | kRelay, rtt_us, now);
}

Coordinates::Spot& Coordinates::spot(Key key, WallTime now) {
  const auto [found, fresh] = at_.try_emplace(key);
  Spot& spot = found->second;
  if (!fresh) by_age_.erase({spot.heard, key});
  spot.heard = std::max(spot.heard, now);
  by_age_.emplace(spot.heard, key);
  return spot;
}

void Coordinates::measure(Key from, Key to, std::int64_t rtt_us, WallTime now) {
  if (rtt_us <= 0 || rtt_us > kRttMaxUs) return;
  Spot& to_spot = spot(to, now);
  Spot& from_spot = spot(from, now);
  if (at_.size() > kPlacesMax)
    for (const auto& [heard, oldest] : std::set(by_age_.begin(), std::next(by_age_.begin(), 3)))
      if (oldest != from && oldest != to) {
        at_.erase(oldest), moved_.erase(oldest), by_age_.erase({heard, oldest});
        break;
      }
  auto [known, fresh] = from_spot.others.try_emplace(to);
  if (fresh && from_spot.others.size() > kOthersMax) {
    const auto oldest =
        std::min_element(from_spot.others.begin(), from_spot.others.end(), [&](const auto& a, const auto& b) {
          return std::pair(a.first == to, a.second.at) < std::pair(b.first == to, b.second.at);
        });
    from_spot.others.erase(oldest);
  }
  Recent& recent = known->second;
  recent.rtt.at(recent.count % kRecent) = static_cast<std::int32_t>(rtt_us);
  ++recent.count;
  recent.at = now;
  const auto end = recent.rtt.begin() + std::min<std::ptrdiff_t>(recent.count, kRecent);
  const double least = std::max<double>(*std::min_element(recent.rtt.begin(), end), kLeastUs);
  if (recent.count > kPlayed) recent.count -= kPlayed - kPlayed % kRecent;  // only its last digits are looked at

  const Spot before = to_spot;
  const double sum = from_spot.error + to_spot.error;
  const double weight = sum > 0 ? from_spot.error / sum : 0.5;
  // Who knows where it is believes nobody who does not.
  if (!sure(from_spot) || before.error <= kErrorMax) pull(from_spot, before, least, weight, from, to);
  if ((to & kRelay) != 0) {
    Spot moved = to_spot;
    pull(moved, from_spot, least, (1 - weight) * kRelayPart, to, from);
    const double far = std::hypot(moved.x - to_spot.x, moved.y - to_spot.y);
    const double part = far > kRelayStepUs ? kRelayStepUs / far : 1;
    to_spot.x += (moved.x - to_spot.x) * part;
    to_spot.y += (moved.y - to_spot.y) * part;
    to_spot.height += std::clamp(moved.height - to_spot.height, -kRelayStepUs, kRelayStepUs);
    to_spot.error = moved.error;
  }
  moved_.insert(from);
}

void Coordinates::pull(Spot& of, const Spot& other, double rtt_us, double weight, Key a, Key b) {
  double dx = of.x - other.x, dy = of.y - other.y;
  double flat = std::hypot(dx, dy);
  const double foretold = flat + of.height + other.height;
  const double off = rtt_us - foretold;
  of.error =
      std::clamp(of.error * (1 - kStep * weight) + kStep * weight * std::min(std::abs(off) / rtt_us, 1.0), 0.01, 1.0);
  if (flat < 1) {  // on one spot: apart in a direction that the two names say
    const double angle =
        2 * std::numbers::pi * static_cast<double>(((a * 0x9e3779b97f4a7c15U) ^ b) >> 40U) / (1U << 24U);
    dx = std::cos(angle), dy = std::sin(angle), flat = 1;
  }
  const double step = kStep * weight * off;
  // As a vector of the plane and a height: its length is the sum, so each has its part of the step.
  const double length = std::max(foretold, 1.0);
  of.x += step * (dx / flat) * std::max(flat / length, 0.5);
  of.y += step * (dy / flat) * std::max(flat / length, 0.5);
  of.height = std::max(of.height + step * std::max((of.height + other.height) / length, 0.1), kLeastUs / 2);
}

Coordinate Coordinates::rounded(const Spot& spot) {
  const auto whole = [](double value) {
    return static_cast<std::int32_t>(std::lround(std::clamp<double>(value, -3 * kRttMaxUs, 3 * kRttMaxUs)));
  };
  return {whole(spot.x), whole(spot.y), std::max(whole(spot.height), 1)};
}

std::optional<Coordinates::Told> Coordinates::place(NodeId node) const {
  const auto found = at_.find(node.value & ~kRelay);
  if (found == at_.end() || !sure(found->second)) return {};
  return Told{rounded(found->second), found->second.error, found->second.others.size()};
}

std::optional<std::int32_t> Coordinates::foretold(NodeId a, NodeId b) const {
  const auto one = place(a), two = place(b);
  if (!one || !two) return {};
  return foretold_rtt_us(one->at, two->at);
}

std::vector<std::pair<NodeId, Coordinate>> Coordinates::news() {
  std::vector<std::pair<NodeId, Coordinate>> out;
  for (const Key key : std::exchange(moved_, {})) {
    const auto found = at_.find(key);
    if ((key & kRelay) != 0 || found == at_.end() || !sure(found->second)) continue;
    Spot& spot = found->second;
    const Coordinate now = rounded(spot);
    if (spot.told) {
      const auto apart = [&](std::size_t i) { return static_cast<double>(now.at(i)) - spot.told->at(i); };
      const double far = std::hypot(apart(0), apart(1)) + std::abs(apart(2));
      double usual = 0;
      for (const auto& [other, recent] : spot.others)
        usual = std::max<double>(usual, *std::max_element(recent.rtt.begin(), recent.rtt.end()));
      if (far < std::max(1'000.0, usual / 10)) continue;
    }
    spot.told = now;
    out.emplace_back(NodeId{key}, now);
  }
  return out;
}

void Coordinates::forget(NodeId node) {
  const auto found = at_.find(node.value & ~kRelay);
  if (found == at_.end()) return;
  by_age_.erase({found->second.heard, found->first});
  moved_.erase(found->first);
  at_.erase(found);
}

}  // namespace muster::session
