#include "scheduler/network.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdlib>
#include <numeric>
#include <span>

#include "scheduler/backfill.h"

namespace muster::scheduler {
namespace {

// Where nothing is known: a cheap switch, and the distances of a house, a continent and the world.
constexpr std::int64_t kLanKbps = 1'000'000, kRelayKbps = 50'000, kMostKbps = std::int64_t{1} << 40;
constexpr std::int32_t kSiteUs = 500, kRegionUs = 30'000, kWorldUs = 150'000, kMostUs = 60'000'000;
constexpr std::size_t kThresholds = 128;
constexpr std::uint32_t kSteps = 20'000, kSeeds = 32, kMiddles = 16;

std::int64_t clamped(std::int64_t kbps) {
  return std::clamp<std::int64_t>(kbps, 0, kMostKbps);
}
std::int64_t least_known(std::int64_t a, std::int64_t b) {
  return a == 0 ? b : b == 0 ? a : std::min(a, b);
}

// Of so many different values at most kThresholds, the ends among them.
template <class T>
std::vector<T> thinned(std::vector<T> values) {
  std::sort(values.begin(), values.end());
  values.erase(std::unique(values.begin(), values.end()), values.end());
  if (values.size() <= kThresholds) return values;
  std::vector<T> out;
  for (std::size_t i = 0; i < kThresholds; ++i) out.push_back(values[i * (values.size() - 1) / (kThresholds - 1)]);
  return out;
}

// Machines by the number of a group each is in (0: none), of groups with at least so many; small ones first, those of
// one size by their number.
struct Groups {
  template <class Of>
  Groups(const std::vector<std::uint32_t>& machines, const std::vector<Spot>& spots, std::uint32_t highest,
         std::size_t least, Of of) {
    std::vector<std::uint32_t> sizes(highest + 1);
    for (const std::uint32_t i : machines) ++sizes[of(spots[i])];
    std::vector<std::pair<std::uint32_t, std::uint32_t>> order;  // size, group
    for (std::uint32_t group = 1; group <= highest; ++group)
      if (sizes[group] > 0 && sizes[group] >= least) order.emplace_back(sizes[group], group);
    if (order.empty()) return;
    std::sort(order.begin(), order.end());
    constexpr auto kNone = ~std::uint32_t{0};
    std::vector<std::uint32_t> place(highest + 1, kNone);
    lists.resize(order.size());
    for (std::uint32_t n = 0; n < order.size(); ++n) lists[n].reserve(order[n].first), place[order[n].second] = n;
    for (const std::uint32_t i : machines)
      if (const std::uint32_t n = place[of(spots[i])]; n != kNone) lists[n].push_back(i);
  }
  std::vector<std::vector<std::uint32_t>> lists;
};

class Search {
 public:
  explicit Search(const Tight& gang) : gang_(gang), size_(static_cast<std::uint32_t>(gang.spots.size())) {
    for (const Spot& spot : gang.spots)
      spots_most_.site = std::max(spots_most_.site, spot.site),
      spots_most_.region = std::max(spots_most_.region, spot.region);
    for (const std::uint32_t count : gang.counts) needed_ += count;
    near_from_.assign(size_ + 1, 0);
    for (const auto& [a, b, way] : gang.known) ++near_from_[a + 1], ++near_from_[b + 1];
    std::partial_sum(near_from_.begin(), near_from_.end(), near_from_.begin());
    near_.resize(2 * gang.known.size());
    std::vector<std::uint32_t> next(near_from_.begin(), near_from_.end() - 1);
    for (const auto& [a, b, way] : gang.known) near_[next[b]++] = {a, way};  // in order, so each list is sorted
    for (const auto& [a, b, way] : gang.known) near_[next[a]++] = {b, way};
  }

  std::optional<TightSet> run() {
    std::vector<std::int64_t> speeds;
    std::vector<std::int32_t> times{kSiteUs, kRegionUs, kWorldUs};
    for (const Spot& spot : gang_.spots) speeds.push_back(spot.world_kbps), speeds.push_back(spot.lan_kbps);
    for (const auto& [a, b, way] : gang_.known) speeds.push_back(way.kbps), times.push_back(way.rtt_us);
    add_foretold(times);
    speeds = thinned(std::move(speeds)), times = thinned(std::move(times));
    if (speeds.empty()) return {};
    times.push_back(kMostUs);
    least_ = speeds.front(), longest_ = times.back();
    std::vector<std::uint32_t> best;
    if (!find(best)) return {};
    std::vector<std::uint32_t> found;
    const auto search = [&](std::size_t good, std::size_t bad, const auto& set) {  // the last that can be had
      while (good + 1 < bad) {
        const std::size_t middle = good + (bad - good) / 2;
        set(middle);
        if (find(found))
          good = middle, best = found;
        else
          bad = middle;
      }
      set(good);
    };
    search(0, speeds.size(), [&](std::size_t i) { least_ = speeds[i]; });
    search(0, times.size(), [&](std::size_t i) { longest_ = times[times.size() - 1 - i]; });
    // One site that is just large enough is as good, where there is one.
    if (of_groups(open_ones(), found)) best = found;
    std::sort(best.begin(), best.end());
    return TightSet{std::move(best), least_, longest_};
  }

 private:
  using Near = std::pair<std::uint32_t, Way>;
  std::span<const Near> near_of(std::uint32_t i) const {
    return std::span(near_).subspan(near_from_[i], near_from_[i + 1] - near_from_[i]);
  }
  Way way(std::uint32_t a, std::uint32_t b) const {
    const auto near = near_of(a);
    const auto known =
        std::lower_bound(near.begin(), near.end(), b, [](const auto& one, std::uint32_t n) { return one.first < n; });
    return known != near.end() && known->first == b ? known->second : way_between(gang_.spots[a], gang_.spots[b]);
  }
  bool suits(const Way& way) const { return !way.relayed && way.kbps >= least_ && way.rtt_us <= longest_; }
  bool suits(std::uint32_t a, std::uint32_t b) const { return suits(way(a, b)); }

  bool enough(const std::vector<std::uint32_t>& machines) const {
    Matching matching(gang_.counts);
    for (std::uint32_t i = 0; i < machines.size() && !matching.complete(); ++i)
      for (std::uint32_t n = 0; n < gang_.counts.size(); ++n)
        if ((gang_.hosts[machines[i]] >> n & 1U) != 0) matching.add(i, n);
    return matching.complete();
  }

  std::vector<std::uint32_t> open_ones() const {  // what suits all members that there are
    std::vector<std::uint32_t> open;
    open.reserve(size_);
    for (std::uint32_t i = gang_.members; i < size_; ++i) {
      bool all = gang_.hosts[i] != 0;
      for (std::uint32_t m = 0; m < gang_.members && all; ++m) all = suits(m, i);
      if (all) open.push_back(i);
    }
    return open;
  }

  bool find(std::vector<std::uint32_t>& out) {
    const std::vector<std::uint32_t> open = open_ones();
    if (open.size() <= std::min<std::size_t>(gang_.small, 64)) return exact(open, out);
    return of_groups(open, out);
  }

  // Round trips that places foretell: of each pair where they are few, else of each with the first and the last.
  void add_foretold(std::vector<std::int32_t>& times) const {
    std::vector<std::uint32_t> placed;
    for (std::uint32_t i = 0; i < size_; ++i)
      if (gang_.spots[i].at != Coordinate{}) placed.push_back(i);
    for (std::size_t i = 0; i < placed.size(); ++i)
      for (std::size_t j = placed.size() <= 64 ? i + 1 : placed.size() - 1; j < placed.size(); ++j) {
        times.push_back(foretold_rtt_us(gang_.spots[placed[i]].at, gang_.spots[placed[j]].at));
        if (placed.size() > 64)
          times.push_back(2 * foretold_rtt_us(gang_.spots[placed[i]].at, gang_.spots[placed[0]].at));
      }
  }

  // ---- few machines: every set, until one does
  bool exact(const std::vector<std::uint32_t>& of, std::vector<std::uint32_t>& out) {
    const auto n = static_cast<std::uint32_t>(of.size());
    std::vector<std::uint64_t> suits_with(n), hosts(gang_.counts.size());
    for (std::uint32_t i = 0; i < n; ++i) {
      for (std::uint32_t k = 0; k < hosts.size(); ++k)
        if ((gang_.hosts[of[i]] >> k & 1U) != 0) hosts[k] |= std::uint64_t{1} << i;
      for (std::uint32_t j = 0; j < i; ++j)
        if (suits(of[i], of[j])) suits_with[i] |= std::uint64_t{1} << j, suits_with[j] |= std::uint64_t{1} << i;
    }
    std::uint32_t steps = kSteps;
    std::uint64_t chosen = 0;
    const std::uint64_t all = n == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << n) - 1;
    if (!complete(0, 0, 0, all, suits_with, hosts, chosen, steps)) return false;
    std::uint64_t set = chosen, more = all & ~chosen;
    for (std::uint64_t left = chosen; left != 0; left &= left - 1)
      more &= suits_with[static_cast<std::uint32_t>(std::countr_zero(left))];
    for (; more != 0;) {  // whatever suits all of it, so that the score may choose
      const auto i = static_cast<std::uint32_t>(std::countr_zero(more));
      set |= std::uint64_t{1} << i;
      more &= suits_with[i];
    }
    out.clear();
    for (; set != 0; set &= set - 1) out.push_back(of[static_cast<std::uint32_t>(std::countr_zero(set))]);
    return true;
  }
  // Machines for `need` and those after it; `have` of that need are chosen, the next from number `from` on.
  bool complete(std::uint32_t need, std::uint32_t have, std::uint32_t from, std::uint64_t open,
                const std::vector<std::uint64_t>& suits_with, const std::vector<std::uint64_t>& hosts,
                std::uint64_t& chosen, std::uint32_t& steps) {
    while (need < hosts.size() && have == gang_.counts[need]) ++need, have = from = 0;
    if (need == hosts.size()) return true;
    if (steps == 0) return false;
    --steps;
    for (std::uint32_t n = need; n < hosts.size(); ++n)
      if (static_cast<std::uint32_t>(std::popcount(open & hosts[n])) < gang_.counts[n] - (n == need ? have : 0))
        return false;
    for (std::uint64_t left = open & hosts[need] & ~((std::uint64_t{1} << from) - 1); left != 0; left &= left - 1) {
      const auto i = static_cast<std::uint32_t>(std::countr_zero(left));
      chosen |= std::uint64_t{1} << i;
      if (i < 63 || have + 1 == gang_.counts[need])
        if (complete(need, have + 1, i + 1, open & suits_with[i], suits_with, hosts, chosen, steps)) return true;
      chosen &= ~(std::uint64_t{1} << i);
    }
    return false;
  }

  // ---- many: those that suit each other by what they say of themselves
  bool of_groups(const std::vector<std::uint32_t>& open, std::vector<std::uint32_t>& out) {
    const auto by_site = [&](const Spot& spot) {
      return spot.site != 0 && spot.lan_kbps >= least_ && kSiteUs <= longest_ ? spot.site : 0;
    };
    const auto afar = [&](const Spot& spot) { return spot.world_kbps >= least_ && !spot.relayed; };
    const auto by_region = [&](const Spot& spot) {
      return spot.region != 0 && kRegionUs <= longest_ && afar(spot) ? spot.region : 0;
    };
    const auto does = [&](const std::vector<std::uint32_t>& group) {
      if (!enough(group)) return false;
      out = without_conflicts(group);
      return enough(out);
    };
    const auto near = [&](const std::vector<std::uint32_t>& group) { return does(around_its_middle(group)); };
    // The smallest that does, so that large ones stay whole.
    for (const auto& group : Groups(open, gang_.spots, spots_most_.site, needed_, by_site).lists)
      if (does(group)) return true;
    for (const auto& group : Groups(open, gang_.spots, spots_most_.region, needed_, by_region).lists)
      if (near(group)) return true;
    if (kWorldUs <= longest_) {
      std::vector<std::uint32_t> world;
      for (const std::uint32_t i : open)
        if (afar(gang_.spots[i])) world.push_back(i);
      if (world.size() >= needed_ && near(world)) return true;
    }
    if (around_some(open, afar, does)) return true;
    // Those that were measured to be near somebody, whatever they say.
    std::uint32_t seeds = 0;
    const std::size_t least = std::max<std::size_t>(needed_, 2);
    for (const std::uint32_t i : open) {
      if (near_of(i).size() + 1 < least) continue;
      std::vector<std::uint32_t> around{i};
      for (const auto& [other, way] : near_of(i))
        if (around.size() < 64 && suits(way) && std::binary_search(open.begin(), open.end(), other))
          around.push_back(other);
      if (around.size() >= least && exact(around, out)) return true;
      if (++seeds == kSeeds) break;
    }
    return false;
  }
  // ---- by places: who lies within half of the longest round trip of a point is within all of it of each other
  bool within(const Coordinate& middle, const Coordinate& at) const {
    const std::int64_t reach = std::int64_t{longest_} / 2 - at[2];
    const std::int64_t dx = std::int64_t{at[0]} - middle[0], dy = std::int64_t{at[1]} - middle[1];
    return reach >= 0 && std::abs(dx) <= reach && std::abs(dy) <= reach && dx * dx + dy * dy <= reach * reach;
  }
  std::vector<std::uint32_t> around_its_middle(const std::vector<std::uint32_t>& group) const {
    std::array<std::vector<std::int32_t>, 2> at;
    for (const std::uint32_t i : group)
      if (const Coordinate& place = gang_.spots[i].at; place != Coordinate{})
        at[0].push_back(place[0]), at[1].push_back(place[1]);
    if (at[0].size() < 2) return group;
    Coordinate middle{};
    for (std::size_t axis = 0; axis < 2; ++axis) {
      const auto half = at.at(axis).begin() + static_cast<std::ptrdiff_t>(at.at(axis).size() / 2);
      std::nth_element(at.at(axis).begin(), half, at.at(axis).end());
      middle.at(axis) = *half;
    }
    std::vector<std::uint32_t> out;
    for (const std::uint32_t i : group)
      if (gang_.spots[i].at == Coordinate{} || within(middle, gang_.spots[i].at)) out.push_back(i);
    return out;
  }
  // Regions that nobody stated: those around one of a few, all with places.
  template <class Afar, class Does>
  bool around_some(const std::vector<std::uint32_t>& open, const Afar& afar, const Does& does) const {
    std::vector<std::uint32_t> placed;
    for (const std::uint32_t i : open)
      if (gang_.spots[i].at != Coordinate{} && afar(gang_.spots[i])) placed.push_back(i);
    if (placed.size() < needed_) return false;
    for (std::size_t n = 0; n < std::min<std::size_t>(kMiddles, placed.size()); ++n) {
      const Coordinate& middle =
          gang_.spots[placed[n * placed.size() / std::min<std::size_t>(kMiddles, placed.size())]].at;
      std::vector<std::uint32_t> group;
      for (const std::uint32_t i : placed)
        if (within(middle, gang_.spots[i].at)) group.push_back(i);
      if (does(group)) return true;
    }
    return false;
  }
  // Those with the fewest measured pairs that do not suit first.
  std::vector<std::uint32_t> without_conflicts(const std::vector<std::uint32_t>& group) const {
    std::vector<bool> in(size_);
    for (const std::uint32_t i : group) in[i] = true;
    std::vector<std::vector<std::uint32_t>> conflicts;  // of each of the group; empty: nobody has any
    std::vector<std::pair<std::size_t, std::uint32_t>> order;
    for (std::uint32_t n = 0; n < group.size(); ++n) {
      for (const auto& [other, way] : near_of(group[n])) {
        if (suits(way) || !in[other]) continue;
        if (conflicts.empty()) conflicts.resize(group.size());
        conflicts[n].push_back(other);
      }
      if (!conflicts.empty() && !conflicts[n].empty()) order.emplace_back(conflicts[n].size(), n);
    }
    if (order.empty()) return group;
    std::sort(order.begin(), order.end());
    std::vector<std::uint32_t> out, taken;
    for (std::uint32_t n = 0; n < group.size(); ++n)
      if (conflicts[n].empty()) out.push_back(group[n]);
    in.assign(size_, false);  // of those taken from here on
    for (const auto& [count, n] : order) {
      if (std::any_of(conflicts[n].begin(), conflicts[n].end(), [&](std::uint32_t other) { return in[other]; }))
        continue;
      taken.push_back(group[n]);
      in[group[n]] = true;
    }
    out.insert(out.end(), taken.begin(), taken.end());
    std::sort(out.begin(), out.end());
    return out;
  }

  const Tight& gang_;
  const std::uint32_t size_;
  Spot spots_most_;                       // the highest numbers
  std::size_t needed_ = 0;                // machines, in all
  std::vector<Near> near_;                // whose way to it was measured: of each in turn, sorted
  std::vector<std::uint32_t> near_from_;  // where each one's begin
  std::int64_t least_ = 0;
  std::int32_t longest_ = 0;
};

}  // namespace

Spot spot_of(const Link& link, std::uint32_t site, std::uint32_t region) {
  const std::int64_t world = std::min(link.up_kbps > 0 ? clamped(link.up_kbps) : kAssumedLinkKbps,
                                      link.down_kbps > 0 ? clamped(link.down_kbps) : kAssumedLinkKbps);
  return {site, region, world, link.lan_kbps > 0 ? clamped(link.lan_kbps) : kLanKbps, link.relayed, {}};
}

Way way_between(const Spot& a, const Spot& b) {
  Way way{std::min(a.world_kbps, b.world_kbps), a.region != 0 && a.region == b.region ? kRegionUs : kWorldUs,
          a.relayed || b.relayed};
  if (a.at != Coordinate{} && b.at != Coordinate{}) way.rtt_us = foretold_rtt_us(a.at, b.at);
  if (a.site != 0 && a.site == b.site) return {std::max(way.kbps, std::min(a.lan_kbps, b.lan_kbps)), kSiteUs, false};
  if (way.relayed) way.kbps = std::min(way.kbps, kRelayKbps);
  return way;
}

std::optional<TightSet> tightest(const Tight& gang) {
  return Search(gang).run();
}

// ---- what was measured
std::int64_t Network::Seen::weight(std::int64_t now_ms) const {
  if (least_known(to_kbps, from_kbps) == 0) return 0;
  const std::int64_t age = now_ms - measured.ms;
  if (age <= kBelievedMs) return 1'000;
  return age >= kForgottenMs ? 0 : 1'000 * (kForgottenMs - age) / (kForgottenMs - kBelievedMs);
}

Way Network::Seen::applied_to(const Spot& a, const Spot& b, std::int64_t now_ms) const {
  Way way = way_between(a, b);
  if (fresh(now_ms)) {
    way.relayed = kind == PathKind::Relay;
    if (kind == PathKind::Relay)
      way.kbps = std::min(way.kbps, kRelayKbps);
    else if (kind == PathKind::Lan)
      way = {std::max(way.kbps, std::min(a.lan_kbps, b.lan_kbps)), kSiteUs, false};
    if (rtt_us > 0) way.rtt_us = rtt_us;
  }
  if (const std::int64_t w = weight(now_ms); w > 0) {
    const std::int64_t measured_kbps = least_known(to_kbps, from_kbps);
    way.kbps = (measured_kbps * w + way.kbps * (1'000 - w)) / 1'000;
  }
  return way;
}

bool Network::Seen::below(std::int64_t kbps) const {
  const std::int64_t measured = least_known(to_kbps, from_kbps);
  return measured > 0 && measured < kbps;
}

Network::Near& Network::row(std::uint32_t from, std::uint32_t to, const PathSeen& path) {
  if (by_.size() <= from) by_.resize(from + 1);
  auto& of = by_[from];
  const auto at =
      std::lower_bound(of.begin(), of.end(), to, [](const Near& near, std::uint32_t n) { return near.other < n; });
  if (at != of.end() && at->other == to) return *at;
  ++known_;
  return *of.insert(at, {to, path.from, path.to, {}});
}

void Network::erase(std::uint32_t from, std::uint32_t to) {
  known_ -= std::erase_if(by_[from], [&](const Near& near) { return near.other == to; });
}

bool Network::note(std::uint32_t from, std::uint32_t to, const PathSeen& path) {
  if (from == to || !path.from || !path.to) return false;
  Seen& seen = row(from, to, path).seen;
  const std::int64_t kbps = path.kbps > 0 ? clamped(path.kbps) : seen.to_kbps;
  const bool other = kbps / 5 * 6 < seen.to_kbps || seen.to_kbps / 5 * 6 < kbps;
  const bool news = seen.at.ms == 0 || other || (seen.kind == PathKind::Relay) != (path.kind == PathKind::Relay);
  seen.kind = path.kind, seen.at = std::max(WallTime{1}, path.at);
  if (path.kbps > 0) {
    seen.to_kbps = clamped(path.kbps);
    seen.measured = std::max(seen.measured, path.measured.ms != 0 ? std::min(path.measured, seen.at) : seen.at);
  }
  if (path.rtt_us > 0) seen.rtt_us = std::min(path.rtt_us, kMostUs);
  Seen back = seen;
  std::swap(back.to_kbps, back.from_kbps);
  PathSeen turned = path;
  std::swap(turned.from, turned.to);
  row(to, from, turned).seen = back;
  for (const std::uint32_t node : {from, to}) {
    const auto& of = by_[node];
    if (of.size() <= kPeersKept) continue;
    const std::uint32_t oldest = std::min_element(of.begin(), of.end(), [](const Near& a, const Near& b) {
                                   return std::pair(a.seen.at, a.to) < std::pair(b.seen.at, b.to);
                                 })->other;
    erase(node, oldest), erase(oldest, node);
  }
  return news;
}

void Network::forget(std::uint32_t node) {
  if (node >= by_.size()) return;
  for (const Near& near : by_[node]) erase(near.other, node);
  known_ -= by_[node].size();
  by_[node] = {};
}

PathsChanged Network::all() const {
  PathsChanged out;
  for (const auto& of : by_)
    for (const Near& near : of)
      out.paths.push_back(
          {near.from, near.to, near.seen.kind, near.seen.to_kbps, near.seen.rtt_us, near.seen.at, near.seen.measured});
  std::sort(out.paths.begin(), out.paths.end(),
            [](const PathSeen& a, const PathSeen& b) { return std::pair(a.from, a.to) < std::pair(b.from, b.to); });
  return out;
}

const std::vector<Network::Near>& Network::of(std::uint32_t node) const {
  static const std::vector<Near> nothing;
  return node < by_.size() ? by_[node] : nothing;
}

const Network::Seen* Network::between(std::uint32_t a, std::uint32_t b) const {
  const auto& all = of(a);
  const auto at =
      std::lower_bound(all.begin(), all.end(), b, [](const Near& near, std::uint32_t n) { return near.other < n; });
  return at == all.end() || at->other != b ? nullptr : &at->seen;
}

}  // namespace muster::scheduler
