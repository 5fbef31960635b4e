#include "server/way_memory.h"

#include <fmt/format.h>

#include <algorithm>
#include <sstream>

namespace muster::server {
namespace {

constexpr const char* kWaysTable = "ways";
constexpr std::uint32_t kSamplesMax = 1'000;
constexpr int kRoundsAtStart = 30;  // until places that are worked out anew hardly move
constexpr std::int64_t kKbpsMax = std::int64_t{1} << 40;

}  // namespace

// A line for each: machine, kind, kbit/s, measurements, round trip, seen, measured.
std::string WayMemory::text_of(const Ways& ways) {
  std::string out;
  for (const auto& [to, way] : ways)
    out += fmt::format("{} {} {} {} {} {} {}\n", to.value, static_cast<int>(way.kind), way.kbps, way.samples,
                       way.rtt_us, way.seen.ms, way.measured.ms);
  return out;
}

// A line that says nothing sensible is nothing.
WayMemory::Ways WayMemory::ways_of(const std::string& text, WallTime now) {
  Ways out;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line) && out.size() < kPeersMax;) {
    std::istringstream fields(line);
    std::uint64_t to = 0;
    int kind = 0;
    KnownWay way;
    if (!(fields >> to >> kind >> way.kbps >> way.samples >> way.rtt_us >> way.seen.ms >> way.measured.ms)) continue;
    if (to == 0 || kind < 1 || kind > 3 || way.kbps < 0 || way.kbps > kKbpsMax || way.rtt_us < 0 || way.seen > now ||
        now - way.seen >= kForgotten)
      continue;
    way.kind = static_cast<scheduler::PathKind>(kind);
    out[NodeId{to}] = way;
  }
  return out;
}

Status WayMemory::load(WallTime now) {
  const std::lock_guard lock(mutex_);
  std::string after;
  while (true) {
    const auto rows = TRY(store_->list_side(kWaysTable, after, 1000));
    if (rows.empty()) break;
    for (const auto& [name, bytes] : rows) {
      after = name;
      const auto from = NodeId::parse(name);
      Ways ways = from ? ways_of(as_string(bytes), now) : Ways{};
      if (ways.empty() || by_.size() >= kMachinesMax)
        TRY_VOID(store_->erase_side(kWaysTable, name));
      else
        by_[*from] = std::move(ways);
    }
  }
  for (int round = 0; round < kRoundsAtStart; ++round)
    for (const auto& [from, ways] : by_)
      for (const auto& [to, way] : ways) place_by(from, to, way.kind, way.rtt_us, way.seen);
  return {};
}

// By a relay it is as far as the relay is, not as the other.
void WayMemory::place_by(NodeId from, NodeId to, scheduler::PathKind kind, std::int32_t rtt_us, WallTime at) {
  if (kind != scheduler::PathKind::Relay) places_.measured(from, to, rtt_us, at);
}

void WayMemory::note_relay(NodeId node, std::string_view relay, std::int64_t rtt_us, WallTime at) {
  const std::lock_guard lock(mutex_);
  places_.measured(node, relay, rtt_us, at);
}

void WayMemory::forget(NodeId node) {
  const std::lock_guard lock(mutex_);
  places_.forget(node);
}

scheduler::CoordinatesChanged WayMemory::moved() {
  const std::lock_guard lock(mutex_);
  return {places_.news()};
}

std::optional<session::Coordinates::Told> WayMemory::place(NodeId node) const {
  const std::lock_guard lock(mutex_);
  return places_.place(node);
}

std::optional<std::int32_t> WayMemory::foretold_rtt_us(NodeId a, NodeId b) const {
  const std::lock_guard lock(mutex_);
  return places_.foretold(a, b);
}

void WayMemory::note(const scheduler::PathsChanged& paths) {
  const std::lock_guard lock(mutex_);
  for (const scheduler::PathSeen& path : paths.paths) {
    if (path.from == path.to || (by_.size() >= kMachinesMax && !by_.contains(path.from))) continue;
    Ways& ways = by_[path.from];
    KnownWay& way = ways[path.to];
    way.kind = path.kind, way.seen = std::max(way.seen, path.at);
    if (path.rtt_us > 0) way.rtt_us = path.rtt_us;
    place_by(path.from, path.to, path.kind, path.rtt_us, path.at);
    const WallTime measured = path.measured.ms != 0 ? path.measured : path.at;
    if (path.kbps > 0 && measured >= way.measured + kSampleGap) {
      const bool anew = way.samples == 0 || measured - way.measured > kAnewAfter;
      const std::int64_t kbps = std::min(path.kbps, kKbpsMax);
      way.kbps = anew ? kbps : (way.kbps * 3 + kbps) / 4;
      way.samples = anew ? 1 : std::min(way.samples + 1, kSamplesMax);
      way.measured = measured;
    }
    changed_.insert(path.from);
    if (ways.size() <= kPeersMax) continue;
    ways.erase(std::min_element(ways.begin(), ways.end(),
                                [](const auto& a, const auto& b) { return a.second.seen < b.second.seen; }));
  }
}

// A row at a time: whoever notes something meanwhile waits for none of them.
Status WayMemory::save(WallTime now) {
  std::set<NodeId> changed;
  {
    const std::lock_guard lock(mutex_);
    changed.swap(changed_);
  }
  for (const NodeId from : changed) {
    std::string text;
    {
      const std::lock_guard lock(mutex_);
      Ways& ways = by_[from];
      std::erase_if(ways, [&](const auto& each) { return now - each.second.seen >= kForgotten; });
      text = text_of(ways);
    }
    const Status saved = store_->put_side(kWaysTable, from.str(), to_bytes(text));
    if (saved.ok()) continue;
    const std::lock_guard lock(mutex_);
    changed_.insert(changed.begin(), changed.end());
    return saved;
  }
  return {};
}

scheduler::PathsChanged WayMemory::known(WallTime now) const {
  const std::lock_guard lock(mutex_);
  scheduler::PathsChanged out;
  for (const auto& [from, ways] : by_)
    for (const auto& [to, way] : ways)
      if (now - way.seen < kForgotten)
        out.paths.push_back({from, to, way.kind, way.kbps, way.rtt_us, way.seen, way.measured});
  return out;
}

std::vector<std::pair<NodeId, KnownWay>> WayMemory::of(NodeId from, WallTime now) const {
  const std::lock_guard lock(mutex_);
  std::vector<std::pair<NodeId, KnownWay>> out;
  if (const auto found = by_.find(from); found != by_.end())
    for (const auto& [to, way] : found->second)
      if (now - way.seen < kForgotten) out.emplace_back(to, way);
  return out;
}

double WayMemory::confidence(const KnownWay& way, WallTime now) {
  if (way.samples == 0) return 0;
  const auto age = static_cast<double>((now - way.measured).count());
  const auto day = static_cast<double>(kAnewAfter.count()), week = static_cast<double>(kForgotten.count());
  const double fresh = age <= day ? 1 : std::clamp((week - age) / (week - day), 0.0, 1.0);
  return fresh * way.samples / (way.samples + 2.0);
}

}  // namespace muster::server
