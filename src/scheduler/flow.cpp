// Ways out of sites as something that is used up. The machines of one supplier on one site share its uplink; what they
// say of it differs at times, and the least holds. A machine's own limits and what is left of its month are its own.
#include <algorithm>

#include "scheduler/pool.h"

namespace muster::scheduler {
namespace {

constexpr std::uint32_t kNoLimit = 1U << 31;  // no limit

std::uint32_t flow_units(std::int64_t value) {
  return static_cast<std::uint32_t>(std::clamp<std::int64_t>(value, 0, kNoLimit));
}
std::uint32_t added(std::uint32_t a, std::uint32_t b) {
  return a > ~b ? ~std::uint32_t{0} : a + b;
}
std::uint32_t limit_of(std::int64_t kbps) {
  return kbps > 0 ? flow_units(kbps) : kNoLimit;
}
Flow narrower(const Flow& a, const Flow& b) {
  return {std::min(a.up, b.up), std::min(a.down, b.down), std::min(a.volume, b.volume)};
}

}  // namespace

Flow Flow::plus(const Flow& o) const {
  return {added(up, o.up), added(down, o.down), added(volume, o.volume)};
}
Flow Flow::minus(const Flow& o) const {
  return {up - std::min(up, o.up), down - std::min(down, o.down), volume - std::min(volume, o.volume)};
}

Flow needed_flow(const Traffic& t) {
  // What is beyond all bounds fits nowhere.
  const auto rate = [](std::int64_t kbps) { return kbps >= kNoLimit ? kNoLimit + 1 : flow_units(kbps); };
  const std::int64_t volume = std::max<std::int64_t>(t.volume_bytes, 0);
  return {rate(t.up_kbps), rate(t.down_kbps), rate((volume >> 20) + ((volume & 0xfffff) != 0 ? 1 : 0))};
}

void Pool::count_link(Uplink& uplink, const Link& link, bool joins) {
  const auto count = [&](std::map<std::uint32_t, std::uint32_t>& stated, std::int64_t kbps) {
    if (kbps <= 0) return;
    if (joins)
      ++stated[flow_units(kbps)];
    else if (const auto it = stated.find(flow_units(kbps)); --it->second == 0)
      stated.erase(it);
  };
  count(uplink.ups, link.up_kbps), count(uplink.downs, link.down_kbps);
  const Flow before = uplink.most;
  const auto narrowest = [](const auto& stated) {
    return stated.empty() ? static_cast<std::uint32_t>(kAssumedLinkKbps) : stated.begin()->first;
  };
  uplink.most = {narrowest(uplink.ups), narrowest(uplink.downs), kNoLimit};
  if (some_flow_ && !uplink.most.within(before))
    touch_uplink(static_cast<std::uint32_t>(&uplink - uplinks_.data()), true);
}

// Those that wait for it will look again, if it is better than when they did.
void Pool::touch_uplink(std::uint32_t uplink, bool better) {
  Uplink& u = uplinks_[uplink];
  u.better = u.better || better;
  if (!std::exchange(u.touched, true)) touched_uplinks_.push_back(uplink);
}

void Pool::add_improved_uplinks(std::vector<std::uint32_t>& out) {
  for (const std::uint32_t uplink : touched_uplinks_) {
    Uplink& u = uplinks_[uplink];
    const Flow taken = moving_.uplinks[uplink];
    const bool improved = u.better || !u.seen.within(taken);
    u.touched = u.better = false, u.seen = taken;
    if (improved)
      groups_.each(u.nodes, [&](std::uint32_t node) {
        if (moving_.machines[node].cell != kNone) out.push_back(node);
        return true;
      });
  }
  touched_uplinks_.clear();
  std::sort(out.begin(), out.end());
  out.erase(std::unique(out.begin(), out.end()), out.end());
}

void Pool::settle_uplinks() {
  std::erase_if(touched_uplinks_, [&](std::uint32_t uplink) {
    Uplink& u = uplinks_[uplink];
    const Flow taken = moving_.uplinks[uplink];
    u.touched = u.better || !u.seen.within(taken);
    u.seen = {std::max(u.seen.up, taken.up), std::max(u.seen.down, taken.down), std::max(u.seen.volume, taken.volume)};
    return !u.touched;
  });
}

void Pool::set_uplink(std::uint32_t node, const NodeView& view) {
  Info& info = infos_[node];
  const Link& link = view.link;
  info.own = {limit_of(link.own_up_kbps), limit_of(link.own_down_kbps),
              link.quota_bytes < 0 ? kNoLimit : flow_units(link.quota_bytes >> 20)};
  if (view.site.empty()) {
    const auto assumed = [](std::int64_t kbps) { return flow_units(kbps > 0 ? kbps : kAssumedLinkKbps); };
    info.own = narrower(info.own, {assumed(link.up_kbps), assumed(link.down_kbps), kNoLimit});
  }
  const NodeView& old = info.view;
  if (info.live && old.supplier == view.supplier && old.site == view.site && old.link.up_kbps == link.up_kbps &&
      old.link.down_kbps == link.down_kbps)
    return;
  info.seen.cls = 0;  // there may be more where it is now
  const Machine& m = moving_.machines[node];
  bool kept = false;
  if (info.uplink != kNone) {
    const auto& of = moving_.uplinks_kept[info.uplink];
    kept = std::find(of.begin(), of.end(), m.keeper) != of.end();
    leave_uplink(node);
  }
  if (view.site.empty()) return;
  const auto [it, fresh] = uplink_by_site_.try_emplace(std::pair(view.supplier, view.site), kNone);
  if (fresh && free_uplinks_.empty()) {
    it->second = static_cast<std::uint32_t>(uplinks_.size());
    uplinks_.emplace_back(), moving_.uplinks.emplace_back(), moving_.uplinks_kept.emplace_back();
  } else if (fresh) {
    it->second = free_uplinks_.back();
    free_uplinks_.pop_back();
  }
  info.uplink = it->second;
  groups_.insert(uplinks_[info.uplink].nodes, node);
  count_link(uplinks_[info.uplink], link, true);
  moving_.uplinks[info.uplink] = moving_.uplinks[info.uplink].plus(m.flow);
  if (m.flow.any()) touch_uplink(info.uplink);
  if (kept) moving_.uplinks_kept[info.uplink].push_back(m.keeper);
}

void Pool::leave_uplink(std::uint32_t node) {
  Info& info = infos_[node];
  if (info.uplink == kNone) return;
  const Machine& m = moving_.machines[node];
  const std::uint32_t uplink = std::exchange(info.uplink, kNone);
  auto& kept = moving_.uplinks_kept[uplink];
  if (const auto it = std::find(kept.begin(), kept.end(), m.keeper); it != kept.end())
    kept.erase(it), touch_uplink(uplink, true);
  Uplink& u = uplinks_[uplink];
  groups_.erase(u.nodes, node);
  count_link(u, info.view.link, false);
  moving_.uplinks[uplink] = moving_.uplinks[uplink].minus(m.flow);
  if (m.flow.any()) touch_uplink(uplink);
  if (u.nodes.size > 0) return;
  uplink_by_site_.erase({info.view.supplier, info.view.site});
  moving_.uplinks[uplink] = {}, kept.clear();
  free_uplinks_.push_back(uplink);
}

void Pool::set_flow(std::uint32_t node, const Flow& flow) {
  Machine& m = moving_.machines[node];
  const Flow before = std::exchange(m.flow, flow);
  const std::uint32_t uplink = infos_[node].uplink;
  if (uplink == kNone || before == flow) return;
  moving_.uplinks[uplink] = moving_.uplinks[uplink].minus(before).plus(flow);
  touch_uplink(uplink);
}

void Pool::keep(std::uint32_t node, std::uint32_t keeper, bool flows) {
  Machine& m = moving_.machines[node];
  if (const std::uint32_t uplink = infos_[node].uplink; uplink != kNone) {
    auto& kept = moving_.uplinks_kept[uplink];
    if (const auto it = std::find(kept.begin(), kept.end(), m.keeper); it != kept.end()) {
      kept.erase(it);
      touch_uplink(uplink, true);
    }
    if (flows && keeper != kNone) kept.push_back(keeper);
  }
  m.keeper = keeper;
  touch(node);
}

void Pool::pend(std::uint32_t node, const Flow& flow) {
  if (flow.any()) pending_.emplace_back(node, flow);
}

Flow Pool::flow_left(std::uint32_t node) const {
  const Info& info = infos_[node];
  const Flow own = info.own.minus(moving_.machines[node].flow);
  return info.uplink == kNone ? own : narrower(own, uplinks_[info.uplink].most.minus(moving_.uplinks[info.uplink]));
}

// Of what others leave; of the machine itself what it will have stated `then`. Volumes are a machine's own.
FlowLack Pool::lack_of(const Query& query, std::uint32_t node, const Machine& then) const {
  const Info& info = infos_[node];
  const Flow& need = query.need->flow;
  const Flow with = then.flow.plus(need);
  if (with.volume > info.own.volume && need.volume > 0) return FlowLack::Volume;
  if ((with.up > info.own.up && need.up > 0) || (with.down > info.own.down && need.down > 0)) return FlowLack::Machine;
  if (info.uplink == kNone || (need.up | need.down) == 0) return FlowLack::None;
  Flow all = moving_.uplinks[info.uplink].minus(moving_.machines[node].flow).plus(with);
  for (const auto& [other, flow] : pending_)
    if (infos_[other].uplink == info.uplink) all = all.plus(flow);
  const Flow& most = uplinks_[info.uplink].most;
  if ((all.up > most.up && need.up > 0) || (all.down > most.down && need.down > 0)) return FlowLack::Site;
  for (const std::uint32_t keeper : moving_.uplinks_kept[info.uplink])
    if (!goes_before(query, keeper)) return FlowLack::Kept;
  return FlowLack::None;
}

bool Pool::flow_within(const Query& query, std::uint32_t node, const Machine& then) const {
  return lack_of(query, node, then) == FlowLack::None;
}

// If nothing else ran there. Not the month's volume: another month comes.
bool Pool::flow_ever(const Flow& flow, std::uint32_t node) const {
  const Info& info = infos_[node];
  if (!flow.any()) return true;
  if (flow.up > info.own.up || flow.down > info.own.down) return false;
  return info.uplink == kNone ||
         (flow.up <= uplinks_[info.uplink].most.up && flow.down <= uplinks_[info.uplink].most.down);
}

FlowLack Pool::flow_lack(const Query& query, std::uint32_t node) const {
  if (!query.need->flow.any()) return FlowLack::None;
  Query rest = query;
  rest.any_flow = true;
  return hosts(rest, node) ? lack_of(query, node, moving_.machines[node]) : FlowLack::None;
}

bool Pool::overdrawn() const {
  for (std::size_t i = 0; i < pending_.size(); ++i) {
    const std::uint32_t uplink = infos_[pending_[i].first].uplink;
    if (uplink == kNone) continue;
    Flow all = moving_.uplinks[uplink];
    for (const auto& [other, flow] : pending_)
      if (infos_[other].uplink == uplink) all = all.plus(flow);
    const Flow& most = uplinks_[uplink].most;
    const Flow& own = pending_[i].second;
    if ((own.up > 0 && all.up > most.up) || (own.down > 0 && all.down > most.down)) return true;
  }
  return false;
}

}  // namespace muster::scheduler
