// What people are told: place, reason, and when. Nothing here changes anything.
#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "model/names.h"
#include "model/offer.h"
#include "scheduler/impl.h"
#include "scheduler/order.h"
#include "scheduler/policy.h"

namespace muster::scheduler {
namespace {

constexpr std::size_t kLookedAt = 200'000;  // machines, for one answer

// Thousandths as "0.25".
std::string part_text(std::int32_t milli) {
  std::string out = fmt::format("{}.{:03}", milli / 1'000, milli % 1'000);
  out.erase(out.find_last_not_of('0') + 1);
  return out;
}

std::string describe(const NodeRequest& need) {
  std::string out;
  if (need.whole_machine)
    out = "nothing else running";
  else
    out = std::to_string(need.resources.cpu_milli / 1000) +
          (need.resources.cpu_milli % 1000 != 0 ? "." + std::to_string(need.resources.cpu_milli % 1000 / 100) : "") +
          " CPU";
  if (need.gpu_share_milli > 0)
    out +=
        " and " + part_text(need.gpu_share_milli) + " of a GPU" + (need.gpu_model.empty() ? "" : " " + need.gpu_model);
  else if (need.resources.gpus > 0)
    out +=
        " and " + std::to_string(need.resources.gpus) + " GPU" + (need.gpu_model.empty() ? "" : " " + need.gpu_model);
  if (need.resources.memory_bytes > 0) out += " and " + std::to_string(need.resources.memory_bytes >> 20) + " MiB";
  const Traffic& traffic = need.resources.traffic;
  const auto rate = [](std::int64_t kbps) {
    return kbps % 1'000 == 0 ? fmt::format("{} Mbit/s", kbps / 1'000) : fmt::format("{} kbit/s", kbps);
  };
  if (traffic.up_kbps > 0) out += " and " + rate(traffic.up_kbps) + " up";
  if (traffic.down_kbps > 0) out += " and " + rate(traffic.down_kbps) + " down";
  if (traffic.volume_bytes > 0)
    out += fmt::format(" and {} GiB to transfer", (traffic.volume_bytes - 1) / (1 << 30) + 1);
  return out + (need.whole_machine ? "" : " free");
}

// What there is of machines for one kind of bundle.
struct Survey {
  std::size_t needed = 0, exist = 0, free = 0, not_held = 0, not_kept = 0; /* held: back, for failovers */
  std::size_t never = 0;                      // of those that exist: kept back, whatever runs
  std::size_t closed = 0;                     // of those that exist: outside their hours now
  std::size_t no_uplink = 0, no_volume = 0;   // of those that exist: free but for the traffic that others have stated
  std::array<std::size_t, 6> refused{};       // by Refusal: they would exist but for their offers
  std::vector<std::int64_t> asks, free_asks;  // of those that ask too much: of all, and of those that are free
  std::size_t of(Refusal why) const { return refused.at(static_cast<std::size_t>(why)); }
};

// The price at which there would be enough; nothing, where prices are not what is in the way.
std::optional<std::int64_t> enough_at(std::vector<std::int64_t> asks, std::size_t have, std::size_t needed) {
  if (have >= needed || have + asks.size() < needed) return {};
  std::sort(asks.begin(), asks.end());
  return asks[needed - have - 1];
}

std::string tell_price(const Request& r, const Survey& seen, Reason& reason) {
  const auto now = enough_at(seen.free_asks, seen.free, seen.needed);
  const auto enough = now ? now : enough_at(seen.asks, seen.exist, seen.needed);
  if (enough) {
    if (seen.exist < seen.needed) reason.code = "price";
    reason.params["price_micros"] = std::to_string(*enough), reason.params["currency"] = r.currency;
    return fmt::format("; the cheapest that {} asks {}{}", seen.needed == 1 ? "fits" : "completes it",
                       amount_text(*enough), now ? " and is free" : "");
  }
  const std::size_t n = seen.of(Refusal::Price);
  if (n == 0) return {};
  reason.params["refused_price"] = std::to_string(n);
  return fmt::format("; {} more ask for more, or in another currency", n);
}

// What of the owners' offers is in the way; and a code, where that alone is.
std::string tell_offers(const Request& r, const Survey& seen, bool stays, Reason& reason) {
  std::string out = tell_price(r, seen, reason);
  const auto enough = [&](std::size_t more) { return seen.exist < seen.needed && seen.exist + more >= seen.needed; };
  if (const std::size_t n = seen.of(Refusal::Length); n > 0) {
    reason.params["refused_length"] = std::to_string(n);
    if (enough(n)) reason.code = "machine_hours";
    out += fmt::format("; {} more {} there for a limited time only, {}", n, n == 1 ? "is" : "are",
                       stays ? "and this has no end: give it max_lifetime_minutes, or may_end_early"
                             : "shorter than this may last: ask for less time, or give it may_end_early");
  }
  if (const std::size_t n = seen.of(Refusal::Tenants) + seen.of(Refusal::Images); n > 0) {
    reason.params["refused_terms"] = std::to_string(n);
    if (enough(n)) reason.code = "owner_terms";
    out += fmt::format("; {} more {} kept for other organisations or other images by {}", n, n == 1 ? "is" : "are",
                       n == 1 ? "its owner" : "their owners");
  }
  if (const std::size_t n = seen.of(Refusal::Link); n > 0) {
    reason.params["refused_link"] = std::to_string(n);
    if (enough(n)) reason.code = "narrow_uplink";
    out += fmt::format("; {} more {} no way out as wide as that: state less traffic", n, n == 1 ? "has" : "have");
  }
  if (seen.closed > 0) {
    reason.params["closed"] = std::to_string(seen.closed);
    out +=
        fmt::format("; {} outside {} owner's hours now", seen.closed == 1 ? "1 is" : fmt::format("{} are", seen.closed),
                    seen.closed == 1 ? "its" : "their");
  }
  return out;
}

// Machines are free, and what others have stated of their ways out is in the way.
std::string tell_traffic(const Survey& seen, Reason& reason) {
  std::string out;
  if (seen.no_uplink > 0) {
    reason.params["uplink_taken"] = std::to_string(seen.no_uplink);
    out += fmt::format("; of {} more the site's uplink is taken by work that stated it", seen.no_uplink);
  }
  if (seen.no_volume > 0) {
    reason.params["volume_used"] = std::to_string(seen.no_volume);
    out += fmt::format("; of {} more the monthly volume is nearly used", seen.no_volume);
  }
  if (seen.exist < seen.needed || seen.free + seen.no_uplink + seen.no_volume < seen.needed) return out;
  if (seen.no_uplink + seen.no_volume == 0) return out;
  reason.code = seen.free + seen.no_uplink >= seen.needed ? "uplink_taken" : "volume_used";
  return out;
}

// So many are kept back that waiting alone does not help.
void tell_never(const Survey& seen, Reason& reason) {
  if (seen.never == 0 || seen.exist < seen.needed || seen.exist - seen.never >= seen.needed) return;
  reason.params["never_enough"] = "true";
  reason.text += fmt::format("; of the {} that would do {} always kept back: ask for less, or have fewer kept back",
                             seen.exist, seen.never == 1 ? "1 is" : fmt::format("{} are", seen.never));
}

Reason lacking(const Request& r, const Bundle& bundle, const Survey& seen, bool stays) {
  Reason reason;
  reason.params = {{"needed", std::to_string(seen.needed)},
                   {"exist", std::to_string(seen.exist)},
                   {"free", std::to_string(seen.free)},
                   {"role", bundle.role == SlotRole::Head    ? "head"
                            : bundle.role == SlotRole::Spare ? "spare"
                                                             : "worker"}};
  std::string trust;
  if (r.min_trust != TrustTier::Community) {
    const std::string_view name = kTrustTierNames.at(static_cast<std::size_t>(r.min_trust));
    reason.params["min_trust"] = name;
    trust = fmt::format(", trust {}{}", name, r.min_trust == TrustTier::Platform ? "" : " or better");
  }
  std::string what = "needs " + std::to_string(seen.needed) + (seen.needed == 1 ? " machine" : " machines") + " with " +
                     describe(bundle.request);
  if (r.max_price > 0) what += fmt::format(" for at most {} an hour", money_text(r.max_price, r.currency));
  reason.code = seen.exist < seen.needed ? "no_such_machines" : "machines_busy";
  const std::string generic = reason.code;
  const std::string offers = tell_offers(r, seen, stays, reason);
  if (reason.code != generic)
    reason.text = what + offers;
  else if (seen.exist < seen.needed)
    reason.text = what + " (" + r.arch + ", pool " + r.pool + (r.egress ? ", egress" : "") + trust + "); only " +
                  std::to_string(seen.exist) + " that could ever do are online; enrol more, or ask for less" + offers;
  else
    reason.text = what + "; " + std::to_string(seen.free) + (seen.free == 1 ? " is free" : " are free") + offers +
                  tell_traffic(seen, reason);
  if (const std::size_t held = seen.free - seen.not_held; held > 0) {
    reason.params["held_back"] = std::to_string(held);
    reason.text +=
        fmt::format("; {} of those that are free {} kept back for failovers", held, held == 1 ? "is" : "are");
  }
  tell_never(seen, reason);
  return reason;
}

// Machines are free, and kept back so that failovers find a place.
Reason held_back(const Bundle& bundle, const Survey& seen, int tier) {
  const std::size_t held = seen.free - seen.not_held;
  Reason reason{"held_for_failover",
                {{"needed", std::to_string(seen.needed)},
                 {"free", std::to_string(seen.free)},
                 {"held_back", std::to_string(held)},
                 {"tier", std::to_string(tier)}},
                {}};
  reason.text = fmt::format(
      "needs {} machine{} with {}; {} {} free, but {} kept back so that clusters of tier {}{} find a place when they "
      "lose a machine",
      seen.needed, seen.needed == 1 ? "" : "s", describe(bundle.request), seen.free, seen.free == 1 ? "is" : "are",
      held == seen.free ? fmt::format("{}", held == 1 ? "it is" : "they are")
                        : fmt::format("{} of them {}", held, held == 1 ? "is" : "are"),
      tier, tier == 0 ? "" : " or better");
  if (bundle.failover) reason.text += "; this one is of a later tier";
  tell_never(seen, reason);
  return reason;
}

}  // namespace

std::vector<std::uint32_t> Scheduler::Impl::excluded(const Request& request, WallTime now) const {
  std::vector<std::uint32_t> out;
  for (const NodeId id : request.avoid)
    if (const std::uint32_t node = pool.index_of(id); node != kNone) out.push_back(node);
  for (const auto& [id, until] : request.backoff)
    if (const std::uint32_t node = pool.index_of(id); node != kNone && until > now) out.push_back(node);
  each_too_slow(request, now, [&](std::uint32_t node) { out.push_back(node); });
  std::sort(out.begin(), out.end());
  return out;
}

// All that leaves for it has another place.
bool Scheduler::Impl::moving_for(std::uint32_t item) const {
  if (const auto way = ways.find(item); way != ways.end() && !clearing(item)) return way->second.moves;
  bool some = false;
  for (const std::uint32_t node : latches.at(item)) {
    const auto on = leases_on.find(pool.view(node).node);
    if (on == leases_on.end() || pool.machine(node).keeper != item) continue;
    for (const LeaseId id : on->second) {
      const LeaseView& lease = leases.at(id);
      if (lease.preempted && !lease.moved) return false;
      some = some || lease.moved;
    }
  }
  return some;
}

Reason Scheduler::Impl::reason_of(std::uint32_t item, WallTime now) const {
  const Class& c = classes[items[item].cls];
  const auto out = excluded(c.example, now);
  if (const auto kept = latches.find(item); kept != latches.end()) {
    std::size_t clearing = ways.contains(item) ? 1 : 0;
    for (const std::uint32_t node : kept->second)
      if (const auto on = leases_on.find(pool.view(node).node);
          on != leases_on.end() && pool.machine(node).keeper == item)
        clearing += static_cast<std::size_t>(
            std::count_if(on->second.begin(), on->second.end(), [&](LeaseId id) { return leases.at(id).preempted; }));
    if (clearing > 0 && moving_for(item))
      return {"making_room",
              {{"moves", "true"}},
              "smaller work moves to other machines, which are reserved for it; it starts where that was as soon as it "
              "has left"};
    if (const Claim claim = claim_of(c, items[item].lane); clearing > 0 && claim.reclaims())
      return {"making_room",
              {{"guarantee", claim.of_tenant ? "organisation" : "project"}},
              "work of a later tier, or on machines beyond the guarantee of who has them, was told to leave; it starts "
              "on those machines when it has"};
    if (clearing > 0)
      return {"making_room", {}, "work of a later tier was told to leave; it starts on those machines when it has"};
  }
  std::size_t earlier = 0;  // what more demanding bundles take is not there for this one: each has its own machine
  bool kept = false;
  for (const CountedNeed& need : c.needs) {
    Query query = query_for(need, item, now.ms);
    query.excluded = &out;
    Query as_if = query;
    as_if.precedence = 0;
    Query all = as_if;
    all.failover = 0;
    Need at_any_price = need.need;
    at_any_price.priced = false;
    Query dear = as_if;
    dear.need = &at_any_price;
    Survey seen;
    int held_for = 0;
    seen.needed = earlier += need.count;
    for (std::uint32_t node = 0; node < std::min<std::size_t>(pool.limit(), kLookedAt); ++node) {
      if (!pool.could_host(query, node)) {
        if ((!pool.some_ask() && !c.flows) || !pool.could_serve(query, node)) continue;
        const Refusal why = pool.refusal(query, node);
        ++seen.refused[static_cast<std::size_t>(why)];
        if (why != Refusal::Price || pool.view(node).offer.currency != c.example.currency) continue;
        seen.asks.push_back(pool.asked(query, node));
        if (pool.hosts(dear, node)) seen.free_asks.push_back(seen.asks.back());
        continue;
      }
      ++seen.exist;
      if (!pool.hosts(all, node)) {
        const FlowLack lack = pool.flow_lack(all, node);
        if (pool.closed(node)) ++seen.closed;
        if (lack == FlowLack::Site || lack == FlowLack::Machine) ++seen.no_uplink;
        if (lack == FlowLack::Volume) ++seen.no_volume;
        continue;
      }
      ++seen.free;
      if (!pool.hosts(as_if, node)) {
        held_for = std::max(held_for, static_cast<int>(pool.machine(node).held));
        continue;
      }
      ++seen.not_held;
      if (pool.hosts(query, node)) ++seen.not_kept;
    }
    if (pool.holds_back()) seen.never = never_for(query).size();
    if (seen.free < seen.needed)
      return lacking(c.example, (c.grows ? c.example.grow : c.example.gang)[need.bundle], seen, c.stays);
    if (seen.not_held < seen.needed)
      return held_back((c.grows ? c.example.grow : c.example.gang)[need.bundle], seen, held_for);
    kept = kept || seen.not_kept < seen.needed;
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
  if (c.flows && !c.awake && !items[item].proposed)
    return {"uplink_taken",
            {},
            "machines are free, but too many of them share an uplink for what it states of it; less traffic would do, "
            "or machines on more sites"};
  if (domains_of(c.example) == Domains::Together && !c.awake && !items[item].proposed && !network.empty())
    return {"network",
            {},
            "machines are free, but ways between them go by the relay or were measured to be too slow, and "
            "fast-network and "
            "pair_mbps take no such pair; more machines on one site would do, or another policy"};
  return {"placing", {}, "machines are free; it starts in a moment"};
}

// A request counts when the machine could serve some of it, and its offer lets it serve nothing of that.
std::map<std::string, std::uint32_t> Scheduler::Impl::refused_by(NodeId id, WallTime now) const {
  constexpr std::array<const char*, 6> kCodes{"", "price", "tenants", "images", "length", "link"};
  std::map<std::string, std::uint32_t> out;
  const std::uint32_t node = pool.index_of(id);
  if (node == kNone) return out;
  std::map<std::uint32_t, std::string> by_class;  // empty: it refuses nothing
  for (std::uint32_t item = 0; item < items.size(); ++item) {
    if (!items[item].live || items[item].proposed) continue;
    const std::uint32_t cls = items[item].cls;
    auto known = by_class.find(cls);
    if (known == by_class.end()) {
      std::string why;
      bool serves = false;
      for (const CountedNeed& need : classes[cls].needs) {
        const Query query = query_for(need, item, now.ms);
        if (!pool.could_serve(query, node)) continue;
        const Refusal refusal = pool.refusal(query, node);
        serves = serves || refusal == Refusal::None;
        if (why.empty()) why = kCodes.at(static_cast<std::size_t>(refusal));
      }
      if (serves) why = pool.closed(node) ? "hours" : "";
      known = by_class.emplace(cls, std::move(why)).first;
    }
    if (!known->second.empty()) ++out[known->second];
  }
  return out;
}

std::optional<WallTime> Scheduler::Impl::hosts_from(const Query& query, std::uint32_t node, WallTime now) const {
  if (pool.hosts(query, node)) return now;
  for (const auto& [at, machine] : after_ends(node, now))
    if (pool.would_host(as_of(query, at.ms), node, machine)) return at;
  return {};
}

// By the hours that its owner has said, when that is later than now: it opens, or it opens for longer.
std::optional<WallTime> Scheduler::Impl::hosts_when_open(const Query& query, std::uint32_t node, WallTime now) const {
  const auto openings = pool.openings(node);
  if (openings.empty()) return {};
  const auto ahead = after_ends(node, now);
  for (const Pool::Opening& opening : openings) {
    Machine then = pool.machine(node);
    auto next = ahead.begin();
    for (; next != ahead.end() && next->first.ms <= opening.from_ms; ++next) then = next->second;
    if (pool.would_host_in(as_of(query, opening.from_ms), node, then, opening)) return WallTime{opening.from_ms};
    for (; next != ahead.end() && next->first.ms < opening.to_ms; ++next)
      if (pool.would_host_in(as_of(query, next->first.ms), node, next->second, opening)) return next->first;
  }
  return {};
}

// For every kind of bundle: when the first, second, ... machine can host it, by the ends that are promised and the
// hours that owners have said. What is kept for one of the same kind is for those that go first.
Scheduler::Impl::Outlook Scheduler::Impl::outlook_of(std::uint32_t item, WallTime now) const {
  Outlook outlook{reason_of(item, now), {}};
  const Class& c = classes[items[item].cls];
  const auto out = excluded(c.example, now);
  if (pool.limit() > kLookedAt) return outlook;
  std::size_t all_of_it = 0;  // of one site they take from one uplink, which is not foreseen
  for (const CountedNeed& need : c.needs) all_of_it += need.count;
  if (c.flows && all_of_it > 1) return outlook;
  for (const CountedNeed& need : c.needs) {
    Query query = query_for(need, item, now.ms);
    query.excluded = &out;
    if (pool.holds_back()) query.failover = 0;  // what will be kept back is another set then
    std::vector<std::pair<WallTime, std::uint32_t>> from;
    std::vector<WallTime> times;
    const std::int64_t bytes = pool.image_bytes(query);
    std::int64_t fetch = 0;
    for (std::uint32_t node = 0; node < pool.limit(); ++node) {
      if (!pool.live(node)) continue;
      const std::uint32_t keeper = pool.machine(node).keeper;
      query.asker = keeper != kNone && items[keeper].cls == items[item].cls ? keeper : item;
      auto at = hosts_from(query, node, now);
      if (!at) at = hosts_when_open(query, node, now);
      if (at) from.emplace_back(*at, node);
    }
    query.asker = item, query.failover = need.failover;
    const auto held = pool.kept_back(query, from);
    for (const auto& [at, node] : from)
      if (!std::binary_search(held.begin(), held.end(), node)) {
        times.push_back(at + Millis(pool.fetch_ms(query, bytes, node)));
        fetch = std::max(fetch, pool.fetch_ms(query, bytes, node));
      }
    std::sort(times.begin(), times.end());
    if (fetch >= 60'000 && !outlook.reason.params.contains("image_minutes")) {
      const std::string minutes = std::to_string((fetch + 59'999) / 60'000);
      outlook.reason.params["image_minutes"] = minutes;
      outlook.reason.text += "; its image is not on all of the machines that would do and takes up to " + minutes +
                             (minutes == "1" ? " minute" : " minutes") + " to get there";
    }
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
  if (!items[item].latched) return view;
  // What was learned since the last plan counts too.
  const bool stale = shadows_stale || std::find(shadows_due.begin(), shadows_due.end(), item) != shadows_due.end();
  if (const std::int64_t shadow = stale ? book(item, now).shadow : shadows[item]; shadow > 0) {
    const Query query = query_for(classes[items[item].cls].needs.front(), item, now.ms);
    const std::int64_t bytes = pool.image_bytes(query);
    std::int64_t fetch = 0;
    for (const std::uint32_t node : latches.at(item))
      if (pool.live(node)) fetch = std::max(fetch, pool.fetch_ms(query, bytes, node));
    view.known = true, view.expected_start = std::max(now, WallTime{shadow}) + Millis(fetch);
    const std::size_t reserved = latches.at(item).size();
    view.reason.params["reserved"] = std::to_string(reserved);
    view.reason.text += fmt::format("; {} machine{} reserved for it", reserved, reserved == 1 ? " is" : "s are");
  }
  return view;
}

std::vector<QueueView> Scheduler::Impl::page(WallTime now, std::size_t offset, std::size_t limit) const {
  std::vector<QueueView> out;
  std::map<std::uint32_t, std::pair<Outlook, std::size_t>> outlooks;  // and how many of the class went before
  Walk walk(*this, now);
  std::size_t i = 0;
  std::vector<int> parts{-1};  // those that nobody passes, and the tiers
  for (const auto& [tier, of_tier] : walk.tiers()) parts.push_back(tier);
  for (const int part : parts) {
    if (part < 0)
      walk.begin_overdue();
    else
      walk.begin(static_cast<std::uint8_t>(part));
    for (std::uint32_t item = 0; out.size() < limit && walk.next(item); ++i) {
      const std::uint32_t cls = items[item].cls;
      auto it = outlooks.find(cls);
      if (it == outlooks.end())
        it = outlooks.emplace(cls, std::pair(i >= offset ? outlook_of(item, now) : Outlook{}, 0)).first;
      if (i >= offset) {
        if (it->second.first.reason.code.empty()) it->second.first = outlook_of(item, now);
        out.push_back(view_of(item, walk.steps(), it->second.second, it->second.first, now));
        tell_fair_share(item, walk, now, out.back());
      }
      if (!items[item].proposed) ++it->second.second;
    }
  }
  return out;
}

QueueView Scheduler::Impl::view_of(ClusterId cluster, WallTime now) const {
  const std::uint32_t item = find(cluster);
  if (item == kNone) return {cluster, 0, {"not_waiting", {}, "it waits for nothing"}, {}, false};
  const Item& it = items[item];
  const std::uint8_t tier = lanes[it.lane].tier;
  Walk walk(*this, now);
  std::uint32_t other = kNone;
  const Class& c = classes[it.cls];
  std::size_t before = 0;                         // of its class
  std::map<std::uint32_t, std::uint32_t> passed;  // of its class, by lane
  walk.begin_overdue();
  const std::int64_t own_worth = it.waiter.priority * kAgeStepMs + (it.aged ? kAgedMs : now.ms - it.waiter.since_ms);
  std::size_t counted = 0;  // of those, that stand in lines of better tiers
  while (walk.next(other) && other != item) {
    const Item& o = items[other];
    if (o.cls != it.cls || o.proposed) continue;
    ++before, counted += lanes[o.lane].tier < tier ? 1 : 0;
    if (std::tuple(o.waiter.aged().rank, o.waiter.who) < std::tuple(-own_worth, it.waiter.who)) ++passed[o.lane];
  }
  if (it.overdue && other == item) {
    QueueView view = view_of(item, walk.steps(), before, outlook_of(item, now), now);
    tell_fair_share(item, walk, now, view);
    return view;
  }
  for (const auto& [better, of_tier] : walk.tiers()) {
    if (better >= tier) break;
    walk.begin(better);
    while (walk.foreseen() && walk.next(other)) continue;
  }
  for (const auto& [lane, line] : c.lines)
    if (lanes[lane].tier < tier) before += line.size();
  before -= counted;
  walk.begin(tier);
  while (walk.foreseen() && walk.next(other) && other != item) {
    if (items[other].cls != it.cls || items[other].proposed) continue;
    ++before, ++passed[items[other].lane];
  }
  std::uint32_t position = walk.steps();
  if (other != item) {  // it stands behind those, by what everybody would hold then
    const std::uint64_t who = it.waiter.who;
    const std::int64_t worth = own_worth - walk.handicap(it.lane);
    const auto ahead = [&](const Lines::Line& line, std::uint32_t lane) {
      return lines.before(line, worth + walk.handicap(lane), who, now.ms);
    };
    for (const std::uint32_t lane : walk.tiers().at(tier)) {
      const std::uint32_t all = ahead(lanes[lane].line, lane);
      position += all - walk.passed(lane, worth + walk.handicap(lane), who, all);
    }
    for (const auto& [lane, line] : c.lines)
      if (lanes[lane].tier == tier)
        if (const std::uint32_t all = ahead(line, lane); all > passed[lane]) before += all - passed[lane];
    ++position;
  }
  QueueView view = view_of(item, position, before, outlook_of(item, now), now);
  tell_fair_share(item, walk, now, view);
  return view;
}

// Only what its own tenant used, and only where it makes a difference.
void Scheduler::Impl::tell_fair_share(std::uint32_t item, const Walk& walk, WallTime now, QueueView& view) const {
  constexpr std::int64_t kMinuteMs = 60'000;
  const std::uint32_t lane = items[item].lane;
  if (const Rank rank = rank_of(item); rank != Rank::None) {
    view.reason.params["guarantee"] = rank == Rank::OfProject ? "project" : "organisation";
    view.reason.text += "; it is within the guarantee of your " + view.reason.params["guarantee"] +
                        " and goes before others of its tier that are within none";
  }
  const std::int64_t later_ms = walk.present(lane);
  if (view.position < 2 || later_ms - walk.least() < kMinuteMs) return;
  const auto percent = [&](Usage::Account account) {
    return std::to_string((usage.share(account, now).permille + 5) / 10);
  };
  auto& params = view.reason.params;
  params["fair_share_minutes"] = std::to_string((later_ms + kMinuteMs / 2) / kMinuteMs);
  params["fair_share_points"] = std::to_string((later_ms + kAgeStepMs / 2) / kAgeStepMs);
  params["project_percent"] = percent(lanes[lane].owner.project);
  params["tenant_percent"] = percent(lanes[lane].owner.tenant);
  view.reason.text += "; your project used " + params["project_percent"] +
                      " % of the pool lately and your organisation " + params["tenant_percent"] + " %: it counts as " +
                      params["fair_share_minutes"] + " minutes later";
}

}  // namespace muster::scheduler
