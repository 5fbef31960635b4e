// What people are told: place, reason, and when. Nothing here changes anything.
#include <algorithm>

#include "scheduler/impl.h"

namespace muster::scheduler {
namespace {

constexpr std::size_t kLookedAt = 200'000;  // machines, for one answer

std::string describe(const NodeRequest& need) {
  std::string out;
  if (need.whole_machine)
    out = "nothing else running";
  else
    out = std::to_string(need.resources.cpu_milli / 1000) +
          (need.resources.cpu_milli % 1000 != 0 ? "." + std::to_string(need.resources.cpu_milli % 1000 / 100) : "") +
          " CPU";
  if (need.resources.gpus > 0)
    out +=
        " and " + std::to_string(need.resources.gpus) + " GPU" + (need.gpu_model.empty() ? "" : " " + need.gpu_model);
  if (need.resources.memory_bytes > 0) out += " and " + std::to_string(need.resources.memory_bytes >> 20) + " MiB";
  return out + (need.whole_machine ? "" : " free");
}

Reason lacking(const Request& r, const Bundle& bundle, std::size_t needed, std::size_t exist, std::size_t free) {
  Reason reason;
  reason.params = {{"needed", std::to_string(needed)},
                   {"exist", std::to_string(exist)},
                   {"free", std::to_string(free)},
                   {"role", bundle.role == SlotRole::Head    ? "head"
                            : bundle.role == SlotRole::Spare ? "spare"
                                                             : "worker"}};
  const std::string what = "needs " + std::to_string(needed) + (needed == 1 ? " machine" : " machines") + " with " +
                           describe(bundle.request);
  if (exist < needed) {
    reason.code = "no_such_machines";
    reason.text = what + " (" + r.arch + ", pool " + r.pool + (r.egress ? ", egress" : "") + "); only " +
                  std::to_string(exist) + " that could ever do are online; enrol more, or ask for less";
  } else {
    reason.code = "machines_busy";
    reason.text = what + "; " + std::to_string(free) + (free == 1 ? " is free" : " are free");
  }
  return reason;
}

}  // namespace

std::vector<std::uint32_t> Scheduler::Impl::excluded(const Request& request, WallTime now) const {
  std::vector<std::uint32_t> out;
  for (const NodeId id : request.avoid)
    if (const std::uint32_t node = pool.index_of(id); node != kNone) out.push_back(node);
  for (const auto& [id, until] : request.backoff)
    if (const std::uint32_t node = pool.index_of(id); node != kNone && until > now) out.push_back(node);
  std::sort(out.begin(), out.end());
  return out;
}

Reason Scheduler::Impl::reason_of(std::uint32_t item, WallTime now) const {
  const Class& c = classes[items[item].cls];
  const auto out = excluded(c.example, now);
  std::size_t earlier = 0;  // what more demanding bundles take is not there for this one: each has its own machine
  bool kept = false;
  for (const CountedNeed& need : c.needs) {
    Query query = query_for(need, item, now.ms);
    query.excluded = &out;
    Query as_if = query;
    as_if.precedence = 0;
    const std::size_t needed = earlier += need.count;
    std::size_t exist = 0, free = 0, not_kept = 0;
    for (std::uint32_t node = 0; node < std::min<std::size_t>(pool.limit(), kLookedAt); ++node) {
      if (!pool.could_host(query, node)) continue;
      ++exist;
      if (!pool.hosts(as_if, node)) continue;
      ++free;
      if (pool.hosts(query, node)) ++not_kept;
    }
    if (free < needed)
      return lacking(c.example, (c.grows ? c.example.grow : c.example.gang)[need.bundle], needed, exist, free);
    kept = kept || not_kept < needed;
  }
  if (kept) {
    Reason behind{"behind_older", {}, "waits behind an older request that needs the same machines"};
    if (const std::int64_t minutes = longest_that_starts(item, now) / 60'000; minutes > 0) {
      behind.params["backfill_minutes"] = std::to_string(minutes);
      behind.text += "; with an end (max_lifetime_minutes) of at most " + std::to_string(minutes) +
                     (minutes == 1 ? " minute" : " minutes") + " it could go ahead";
    }
    return behind;
  }
  return {"placing", {}, "machines are free; it starts in a moment"};
}

std::optional<WallTime> Scheduler::Impl::hosts_from(const Query& query, std::uint32_t node, WallTime now) const {
  if (pool.hosts(query, node)) return now;
  for (const auto& [at, machine] : after_ends(node, now))
    if (pool.would_host(as_of(query, at.ms), node, machine)) return at;
  return {};
}

// For every kind of bundle: when the first, second, ... machine can host it, by the ends that are promised.
Scheduler::Impl::Outlook Scheduler::Impl::outlook_of(std::uint32_t item, WallTime now) const {
  Outlook outlook{reason_of(item, now), {}};
  const Class& c = classes[items[item].cls];
  const auto out = excluded(c.example, now);
  if (pool.limit() > kLookedAt) return outlook;
  for (const CountedNeed& need : c.needs) {
    Query query = query_for(need, item, now.ms);
    query.excluded = &out;
    std::vector<WallTime> times;
    for (std::uint32_t node = 0; node < pool.limit(); ++node)
      if (pool.live(node))
        if (const auto at = hosts_from(query, node, now)) times.push_back(*at);
    std::sort(times.begin(), times.end());
    outlook.coming.emplace_back(need.count, std::move(times));
  }
  return outlook;
}

// Those of its class that go before it take the first machines; every bundle of a request has a machine of its own.
QueueView Scheduler::Impl::view_of(std::uint32_t item, std::uint32_t position, std::size_t before,
                                   const Outlook& outlook, WallTime now) const {
  QueueView view{items[item].cluster, position, outlook.reason, {}, false};
  std::size_t taken = 0;
  for (const auto& [count, times] : outlook.coming) taken += count;
  taken *= before;
  WallTime start;
  view.known = !outlook.coming.empty();
  for (const auto& [count, times] : outlook.coming) {
    taken += count;
    if (taken > times.size()) {
      view.known = false;
      break;
    }
    start = std::max(start, times[taken - 1]);
  }
  if (!view.known && before == 0 && outlook.reason.code == "placing") view.known = true, start = now;
  if (view.known) view.expected_start = start;
  return view;
}

std::vector<QueueView> Scheduler::Impl::page(WallTime now, std::size_t offset, std::size_t limit) const {
  std::vector<QueueView> out;
  struct Head {
    std::uint8_t tier;
    std::int64_t worth;
    std::uint64_t who;
    std::uint32_t lane;
    bool operator<(const Head& o) const {  // of a heap: the first to go is on top
      return std::tuple(tier, -worth, who) > std::tuple(o.tier, -o.worth, o.who);
    }
  };
  std::vector<Head> heads;
  std::vector<Lines::Cursor> cursors(lanes.size());
  const auto add = [&](std::uint32_t lane) {
    if (lines.at_end(cursors[lane])) return;
    const auto [entry, worth] = lines.at(cursors[lane], now.ms);
    heads.push_back({lanes[lane].tier, worth, entry.who, lane});
    std::push_heap(heads.begin(), heads.end());
  };
  for (std::uint32_t lane = 0; lane < lanes.size(); ++lane) {
    cursors[lane] = lines.begin(lanes[lane].line);
    add(lane);
  }
  std::map<std::uint32_t, std::pair<Outlook, std::size_t>> outlooks;  // and how many of the class went before
  std::map<std::uint8_t, std::uint32_t> positions;
  for (std::size_t i = 0; !heads.empty() && out.size() < limit; ++i) {
    std::pop_heap(heads.begin(), heads.end());
    const Head head = heads.back();
    heads.pop_back();
    lines.next(lanes[head.lane].line, cursors[head.lane], now.ms);
    add(head.lane);
    const auto item = static_cast<std::uint32_t>(head.who & ((1U << kRequestBits) - 1));
    const std::uint32_t position = ++positions[head.tier];
    const std::uint32_t cls = items[item].cls;
    auto it = outlooks.find(cls);
    if (it == outlooks.end())
      it = outlooks.emplace(cls, std::pair(i >= offset ? outlook_of(item, now) : Outlook{}, 0)).first;
    if (i >= offset) {
      if (it->second.first.reason.code.empty()) it->second.first = outlook_of(item, now);
      out.push_back(view_of(item, position, it->second.second, it->second.first, now));
    }
    ++it->second.second;
  }
  return out;
}

QueueView Scheduler::Impl::view_of(ClusterId cluster, WallTime now) const {
  const std::uint32_t item = find(cluster);
  if (item == kNone) return {cluster, 0, {"not_waiting", {}, "it waits for nothing"}, {}, false};
  const Item& it = items[item];
  const std::uint64_t who = it.waiter.who;
  const std::int64_t worth =
      it.waiter.priority * kAgeStepMs + (it.aged ? kAgedMs : std::min(now.ms - it.waiter.since_ms, kAgedMs));
  std::uint32_t ahead = 0;
  for (const Lane& lane : lanes)
    if (lane.tier == lanes[it.lane].tier) ahead += lines.before(lane.line, worth, who, now.ms);
  std::size_t before = 0;  // of its class
  const Class& c = classes[it.cls];
  for (const auto& [lane, line] : c.lines) {
    if (lanes[lane].tier > lanes[it.lane].tier) continue;
    before += lanes[lane].tier < lanes[it.lane].tier ? line.size() : lines.before(line, worth, who, now.ms);
  }
  return view_of(item, ahead + 1, before, outlook_of(item, now), now);
}

}  // namespace muster::scheduler
