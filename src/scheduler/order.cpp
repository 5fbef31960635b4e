#include "scheduler/order.h"

#include <algorithm>
#include <limits>

namespace muster::scheduler {

Scheduler::Impl::Walk::Walk(const Impl& impl, WallTime now)
    : impl_(impl),
      now_(now),
      cursors_(impl.lanes.size()),
      passed_(impl.lanes.size()),
      more_(impl.usage.accounts()),
      part_(impl.usage.accounts(), -1) {
  for (std::uint32_t lane = 0; lane < impl.lanes.size(); ++lane)
    if (impl.lanes[lane].line.size() > 0) tiers_[impl.lanes[lane].tier].push_back(lane);
}

std::int64_t Scheduler::Impl::Walk::part(Usage::Account account) {
  std::int64_t& part = part_[account];
  if (part < 0)
    part =
        (more_[account] == Held{} ? impl_.usage.share(account, now_) : impl_.usage.share(account, now_, more_[account]))
            .handicap_ms;
  return part;
}

std::int64_t Scheduler::Impl::Walk::handicap(std::uint32_t lane) {
  const Usage::Owner owner = impl_.lanes[lane].owner;
  return Usage::together(part(owner.tenant), part(owner.project));
}

std::int64_t Scheduler::Impl::Walk::present(std::uint32_t lane) const {
  const Usage::Owner owner = impl_.lanes[lane].owner;
  return Usage::together(impl_.usage.share(owner.tenant, now_).handicap_ms,
                         impl_.usage.share(owner.project, now_).handicap_ms);
}

std::optional<Scheduler::Impl::Walk::First> Scheduler::Impl::Walk::first_of(std::uint32_t lane) {
  std::optional<First> first;
  if (const auto it = seen_.find(lane); it != seen_.end()) {
    const Usage::Owner owner = impl_.lanes[lane].owner;
    for (std::uint32_t i = 0; i < it->second.size(); ++i) {
      const Seen& seen = it->second[i];
      if (seen.gone) continue;
      const Class& c = impl_.classes[impl_.items[seen.entry.request()].cls];
      const Rank rank = foreseen() ? impl_.rank_of(c, lane, more_[owner.tenant], more_[owner.project]) : Rank::None;
      if (first && rank >= first->rank) continue;
      first = First{rank, seen.worth - handicap(lane), seen.entry.who, lane, i};
      if (rank == Rank::OfProject || !foreseen()) break;
    }
    if (first) return first;
  }
  while (!impl_.lines.at_end(cursors_[lane]) &&
         impl_.items[impl_.lines.at(cursors_[lane], now_.ms).first.request()].overdue)
    impl_.lines.next(impl_.lanes[lane].line, cursors_[lane], now_.ms);
  if (impl_.lines.at_end(cursors_[lane])) return {};
  const auto [entry, worth] = impl_.lines.at(cursors_[lane], now_.ms);
  return First{Rank::None, worth - handicap(lane), entry.who, lane, kNone};
}

void Scheduler::Impl::Walk::add(std::uint32_t lane) {
  const auto first = first_of(lane);
  if (!first) return;
  firsts_.push_back(*first);
  std::push_heap(firsts_.begin(), firsts_.end());
}

std::uint32_t Scheduler::Impl::Walk::passed(std::uint32_t lane, std::int64_t worth, std::uint64_t who,
                                            std::uint32_t ahead) const {
  std::uint32_t before = 0;
  std::uint32_t beyond = passed_[lane];
  if (const auto it = seen_.find(lane); it != seen_.end())
    for (const Seen& seen : it->second) {
      if (!seen.gone) continue;
      --beyond;
      if (std::tuple(-seen.worth, seen.entry.who) < std::tuple(-worth, who)) ++before;
    }
  else
    for (const std::uint32_t item : impl_.overdue) {
      const Waiter& w = impl_.items[item].waiter;
      if (impl_.items[item].overdue && impl_.items[item].lane == lane &&
          std::tuple(w.aged().rank, w.who) < std::tuple(-worth, who))
        ++before;
    }
  return std::min(before + beyond, ahead);
}

void Scheduler::Impl::Walk::begin_overdue() {
  for (const std::uint32_t item : impl_.overdue)
    if (impl_.items[item].overdue) overdue_.push_back(item);
  const auto key = [&](std::uint32_t item) {
    const Waiter& w = impl_.items[item].waiter;
    return std::tuple(impl_.rank_of(item), w.aged().rank + handicap(impl_.items[item].lane), w.who);
  };
  std::sort(overdue_.begin(), overdue_.end(), [&](auto a, auto b) { return key(a) > key(b); });
  least_ = 0;
}

void Scheduler::Impl::Walk::begin(std::uint8_t tier) {
  firsts_.clear();
  steps_ = 0, least_ = std::numeric_limits<std::int64_t>::max();
  for (const std::uint32_t lane : tiers_.at(tier)) {
    const Lane& l = impl_.lanes[lane];
    Lines::Cursor& cursor = cursors_[lane] = impl_.lines.begin(l.line);
    least_ = std::min(least_, present(lane));
    if (impl_.usage.guaranteed(l.owner)) {
      auto& seen = seen_[lane];
      for (; !impl_.lines.at_end(cursor) && seen.size() < kGuaranteedSeen; impl_.lines.next(l.line, cursor, now_.ms)) {
        const auto [entry, worth] = impl_.lines.at(cursor, now_.ms);
        seen.push_back({entry, worth, impl_.items[entry.request()].overdue});
        if (seen.back().gone) ++passed_[lane];
      }
    }
    add(lane);
  }
}

void Scheduler::Impl::Walk::went(std::uint32_t item) {
  const Lane& lane = impl_.lanes[impl_.items[item].lane];
  if (foreseen() && !impl_.items[item].proposed)
    for (const Usage::Account account : {lane.owner.tenant, lane.owner.project}) {
      const Held& held = impl_.classes[impl_.items[item].cls].held;
      for (std::size_t i = 0; i < held.size(); ++i) more_[account][i] += held[i];
      part_[account] = -1;
    }
  ++steps_;
}

bool Scheduler::Impl::Walk::next(std::uint32_t& item) {
  if (!overdue_.empty()) {
    item = overdue_.back();
    overdue_.pop_back();
    went(item);
    return true;
  }
  while (!firsts_.empty()) {
    std::pop_heap(firsts_.begin(), firsts_.end());
    const First first = firsts_.back();
    firsts_.pop_back();
    if (first_of(first.lane) != first) {
      add(first.lane);  // others of its tenant went first meanwhile
      continue;
    }
    const Lane& lane = impl_.lanes[first.lane];
    if (first.seen != kNone)
      seen_[first.lane][first.seen].gone = true;
    else
      impl_.lines.next(lane.line, cursors_[first.lane], now_.ms);
    ++passed_[first.lane];
    item = static_cast<std::uint32_t>(first.who & ((1U << kRequestBits) - 1));
    went(item);
    add(first.lane);
    return true;
  }
  return false;
}

}  // namespace muster::scheduler
