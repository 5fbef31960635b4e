// Room for those that go first: work that agreed to be interrupted (its tier) leaves when a request of a better tier
// can start no other way. One decision names every machine that the start will stand on and every lease that has to
// leave for it, or nothing happens; the machines are kept for it from then on. A victim is of a strictly later tier, or
// of the same one and reclaimed: it stands on more than is guaranteed to its owner, and who starts is within its own
// guarantee. Nobody is reclaimed from below its guarantee and nobody reclaims beyond its own, so what all hold of their
// guarantees rises with every reclaim: it cannot go round in circles. Only a start makes room, which happens once.
#include <algorithm>
#include <bit>

#include "scheduler/impl.h"

namespace muster::scheduler {
namespace {

constexpr std::size_t kRoomsLookedAt = 2'000;     // machines, for one decision
constexpr std::size_t kSetsLookedAt = 8;          // leases of one machine, all sets of which are tried
constexpr std::int64_t kReclaimAgainMs = 5'000;   // until who is within its guarantee and got nothing looks again
constexpr Millis kMovesAgain{300'000};            // after moves that came to nothing
constexpr std::size_t kVictimsLookedAt = 50'000;  // leases, for one decision
constexpr std::int64_t kRestartMs = 300'000;      // what work loses besides: it has to find its way back
constexpr std::int64_t kLostMaxMs = 30LL * 86'400'000;
constexpr std::int64_t kGpuInCpus = 16;  // a GPU's time is worth that of so many CPUs

std::uint32_t sum(std::uint32_t a, std::uint32_t b) {
  return a > ~b ? ~std::uint32_t{0} : a + b;
}

}  // namespace

std::int64_t Scheduler::Impl::size_of(const Resources& resources) {
  return std::clamp<std::int64_t>(resources.cpu_milli / 1000, 1, 1 << 16) +
         std::clamp<std::int64_t>(resources.gpus, 0, 1 << 10) * kGpuInCpus;
}

// CPU milliseconds that are lost when it leaves: all since it was granted, as nobody tells of checkpoints.
std::int64_t Scheduler::Impl::cost_of(const LeaseView& lease, std::int64_t now_ms) {
  if (lease.role == SlotRole::Spare) return 0;  // nothing runs on it
  const std::int64_t since = std::clamp<std::int64_t>(lease.since.ms, 0, now_ms);
  return size_of(lease.resources) * (std::min(now_ms - since, kLostMaxMs) + kRestartMs);
}

bool Scheduler::Impl::preemptible(const LeaseView& lease, std::uint8_t by_tier) {
  return lease.role != SlotRole::Head && !lease.leaving && lease.tier >= kPreemptibleTier && lease.tier > by_tier;
}

Scheduler::Impl::Claim Scheduler::Impl::claim_of(const Class& c, std::uint32_t lane) const {
  const Lane& l = lanes[lane];
  Claim claim{l.tier, l.owner};
  if (c.grows || l.tier < kPreemptibleTier || c.parts.empty()) return claim;
  claim.of_tenant = usage.within(l.owner.tenant, c.held);
  claim.of_project = usage.within(l.owner.project, c.held);
  return claim;
}

// Of a later tier. Who reclaims takes from the same tier too, then from what others hold beyond their guarantee: of
// other tenants if it is within its tenant's guarantee, of its tenant's other projects if it is within its project's.
bool Scheduler::Impl::may_take(const LeaseView& lease, const Claim& by, const Gone& gone) const {
  if (lease.tier != by.tier && usage.tiers_guaranteed()) {
    Held less = held_by(lease);
    if (const auto it = gone.find(account_of_tier(lease.tier)); it != gone.end())
      for (std::size_t i = 0; i < less.size(); ++i) less[i] += it->second[i];
    if (!usage.tier_spares(lease.tier, less)) return false;
  }
  if (!by.reclaims()) return preemptible(lease, by.tier);
  if (!preemptible(lease, 0) || lease.tier < by.tier) return false;
  const Usage::Owner of = usage.known(lease.tenant, lease.project);
  const bool own = of.tenant == by.owner.tenant;
  if (lease.tier == by.tier && (own ? !by.of_project || of.project == by.owner.project : !by.of_tenant)) return false;
  const auto spares = [&](Usage::Account account) {
    Held less = held_by(lease);
    if (const auto it = gone.find(account); it != gone.end())
      for (std::size_t i = 0; i < less.size(); ++i) less[i] += it->second[i];
    return usage.spares(account, less);
  };
  return spares(of.project) && (own || spares(of.tenant));
}

void Scheduler::Impl::note_gone(const LeaseView& lease, Gone& gone) const {
  const Usage::Owner of = usage.known(lease.tenant, lease.project);
  const Held held = held_by(lease);
  for (const Usage::Account account : {of.tenant, of.project, account_of_tier(lease.tier)})
    for (std::size_t i = 0; i < held.size(); ++i) gone[account][i] += held[i];
}

// Of several decisions of one plan none knows that the others came true.
void Scheduler::Impl::note_leaving(Gone& gone) const {
  for (const LeaseId id : leaving) note_gone(leases.at(id), gone);
  for (const auto& [item, way] : ways)
    for (const LeaseId id : way.victims)
      if (const auto lease = leases.find(id); lease != leases.end() && !lease->second.leaving)
        note_gone(lease->second, gone);
}

void Scheduler::Impl::apply(const FreezeChanged& c) {
  frozen = c.frozen;
  if (frozen) return;
  for (std::size_t i = sleepers.size(); i-- > 0;)
    if (!classes[sleepers[i].cls].grows) wake(sleepers[i].cls);
}

// The machine as it will be without what leaves it anyway and without these.
void Scheduler::Impl::Holders::add(std::uint64_t devices) {
  counted_ = true;
  for (; devices != 0; devices &= devices - 1) ++of_[static_cast<std::size_t>(std::countr_zero(devices))];
}

std::uint64_t Scheduler::Impl::Holders::drop(std::uint64_t devices) {
  if (!counted_) return devices;
  std::uint64_t free = 0;
  for (; devices != 0; devices &= devices - 1) {
    std::uint16_t& left = of_[static_cast<std::size_t>(std::countr_zero(devices))];
    if (left > 0 && --left == 0) free |= devices & -devices;
  }
  return free;
}

Scheduler::Impl::Holders Scheduler::Impl::holders_of(std::uint32_t node) const {
  Holders out;
  if (pool.machine(node).sharable == kNone) return out;
  const NodeView& view = pool.view(node);
  if (const auto on = leases_on.find(view.node); on != leases_on.end())
    for (const LeaseId id : on->second) out.add(device_bits(view, leases.at(id).devices));
  if (const auto on = proposed_on.find(node); on != proposed_on.end())
    for (const ClusterId cluster : on->second)
      for (const Taken& t : proposals.at(cluster).taken)
        if (t.node == node) out.add(t.all_devices());
  return out;
}

Machine Scheduler::Impl::without(std::uint32_t node, const std::vector<LeaseId>& victims) const {
  const NodeView& view = pool.view(node);
  Machine then = pool.machine(node);
  const auto on = leases_on.find(view.node);
  if (on == leases_on.end()) return then;
  std::size_t stay = 0;
  Holders holders = holders_of(node);
  for (const LeaseId id : on->second) {
    const LeaseView& lease = leases.at(id);
    if (!lease.leaving && std::find(victims.begin(), victims.end(), id) == victims.end()) {
      ++stay;
      continue;
    }
    const Amounts amounts = free_amounts(lease.resources);
    then.free = {sum(then.free.cpu, amounts.cpu), sum(then.free.memory, amounts.memory),
                 sum(then.free.disk, amounts.disk)};
    then.free_devices |= holders.drop(device_bits(view, lease.devices));
    then.flow = then.flow.minus(needed_flow(lease.resources.traffic));
  }
  then.whole = stay == 0 && !proposed_on.contains(node);
  return then;
}

// Where the cheapest first used up what their owner has beyond its guarantee: the cheapest set that does, of a few.
std::vector<LeaseId> Scheduler::Impl::cheapest_of_all(const Query& query, std::uint32_t node, const Claim& by,
                                                      const Gone& gone,
                                                      const std::vector<std::pair<std::int64_t, LeaseId>>& may) const {
  std::vector<LeaseId> best;
  std::int64_t least = 0;
  const std::size_t n = std::min(may.size(), kSetsLookedAt);
  for (std::uint32_t set = 1; set < 1U << n; ++set) {
    std::vector<LeaseId> victims;
    std::int64_t cost = 0;
    Gone then = gone;
    bool allowed = true;
    for (std::size_t i = 0; i < n && allowed; ++i) {
      if ((set >> i & 1U) == 0) continue;
      const LeaseView& lease = leases.at(may[i].second);
      allowed = may_take(lease, by, then);
      note_gone(lease, then);
      victims.push_back(may[i].second), cost += may[i].first;
    }
    if (!allowed || (!best.empty() && cost >= least) || !pool.would_host(query, node, without(node, victims))) continue;
    best = std::move(victims), least = cost;
  }
  return best;
}

// What has to leave this machine so that it can host the need, the least first; nothing when that does not help.
std::optional<Scheduler::Impl::Room> Scheduler::Impl::room_on(const Query& query, std::uint32_t node, const Claim& by,
                                                              const Gone& gone) const {
  const auto on = leases_on.find(pool.view(node).node);
  if (on == leases_on.end() || !pool.could_host(query, node)) return {};
  if (pool.headroom_lacks(node) && !pool.entitled(query, node)) return {};  // it would be kept back, once it is free
  Room room{node, 0, {}};
  std::vector<std::pair<std::int64_t, LeaseId>> may;
  for (const LeaseId id : on->second) {
    const LeaseView& lease = leases.at(id);
    if (may_take(lease, by, gone) && lease.since + kPreemptAfter <= WallTime{query.now_ms})
      may.emplace_back(cost_of(lease, query.now_ms), id);
  }
  std::sort(may.begin(), may.end());
  std::size_t next = 0;
  Gone then = gone;
  while (!pool.would_host(query, node, without(node, room.victims))) {
    while (next < may.size() && !may_take(leases.at(may[next].second), by, then)) ++next;
    if (next == may.size()) {
      room.victims = by.reclaims() ? cheapest_of_all(query, node, by, gone, may) : std::vector<LeaseId>{};
      if (room.victims.empty()) return {};
      break;
    }
    const LeaseId id = may[next++].second;
    room.victims.push_back(id);
    if (by.reclaims() || usage.tiers_guaranteed()) note_gone(leases.at(id), then);
  }
  for (std::size_t i = room.victims.size(); i-- > 0;) {  // the dearest that turns out not to be needed stays
    std::vector<LeaseId> fewer = room.victims;
    fewer.erase(fewer.begin() + static_cast<std::ptrdiff_t>(i));
    if (pool.would_host(query, node, without(node, fewer))) room.victims = std::move(fewer);
  }
  for (const LeaseId id : room.victims) room.cost += cost_of(leases.at(id), query.now_ms);
  return room;
}

bool Scheduler::Impl::cheaper(const Room& a, const Room& b) const {
  const std::size_t x = a.victims.size(), y = b.victims.size();
  if (a.cost != b.cost || x != y) return std::pair(a.cost, x) < std::pair(b.cost, y);
  const NodeId m = pool.view(a.node).node, n = pool.view(b.node).node;
  return m != n ? m < n : a.victims < b.victims;
}

void Scheduler::Impl::keep_for(std::uint32_t item, const std::vector<std::uint32_t>& nodes) {
  auto& kept = latches.at(item);
  items[item].cleared_ms = heap_ms;
  order_latches(heap_ms);
  for (const std::uint32_t node : nodes) {
    if (!pool.live(node) || std::find(kept.begin(), kept.end(), node) != kept.end()) continue;
    kept.push_back(node);
    keep(node, item);
  }
}

bool Scheduler::Impl::yields(std::uint32_t node) const {
  const auto on = leases_on.find(pool.view(node).node);
  return on != leases_on.end() &&
         std::any_of(on->second.begin(), on->second.end(), [&](LeaseId id) { return preemptible(leases.at(id), 0); });
}

// May the first of a class have work leave one of these machines?
bool Scheduler::Impl::gains_by(const Class& c, const std::vector<std::uint32_t>& nodes, std::int64_t now_ms) const {
  if (c.grows) return false;
  std::vector<Claim> claims;
  for (const auto& [lane, line] : c.lines)
    if (line.size() > 0) claims.push_back(claim_of(c, lane));
  const auto takes_from = [&](LeaseId id) {
    return std::any_of(claims.begin(), claims.end(), [&](const Claim& by) {
      return preemptible(leases.at(id), by.tier) || may_take(leases.at(id), by, Gone{});
    });
  };
  Query query;
  query.weights = &weights, query.now_ms = now_ms, query.excluded = &nobody;
  return std::any_of(nodes.begin(), nodes.end(), [&](std::uint32_t node) {
    const auto on = leases_on.find(pool.view(node).node);
    if (on == leases_on.end() || std::none_of(on->second.begin(), on->second.end(), takes_from)) return false;
    return std::any_of(c.needs.begin(), c.needs.end(), [&](const CountedNeed& need) {
      query.need = &need.need;
      return pool.could_host(query, node);
    });
  });
}

// Leases that had their time by now: classes that sleep look again.
void Scheduler::Impl::ripen(WallTime now) {
  std::vector<std::uint32_t> nodes;
  while (!ripening.empty() && ripening.begin()->first <= now) {
    const std::uint32_t node = pool.index_of(leases.at(ripening.begin()->second).node);
    ripening.erase(ripening.begin());
    if (node != kNone) nodes.push_back(node);
  }
  if (nodes.empty()) return;
  for (std::size_t i = sleepers.size(); i-- > 0;)
    if (gains_by(classes[sleepers[i].cls], nodes, now.ms)) wake(sleepers[i].cls);
}

// True: machines are being cleared for it. `again`: when what was decided has to be seen to.
bool Scheduler::Impl::make_way(std::uint32_t item, WallTime now, std::vector<Group>& out, std::int64_t& again) {
  if (const auto way = ways.find(item); way != ways.end()) {
    if (now < way->second.expires) {  // what was decided is on its way
      keep_for(item, way->second.nodes);
      again = way->second.expires.ms;
      return true;
    }
    // The core refused to move it, or it had gone. Preempting is another matter.
    if (way->second.moves && !clearing(item)) items[item].stays_until = now + kMovesAgain;
    ways.erase(way);
  }
  const Claim claim = claim_of(classes[items[item].cls], items[item].lane);
  if (!shapes.empty() && !clearing(item) && move_for(item, claim.tier, now, out, again)) return true;
  if (clear_for(item, {claim.tier, claim.owner}, now, out, again)) return true;
  if (!claim.reclaims()) return false;
  const std::int64_t reclaim = now.ms + kReclaimAgainMs;
  again = again == 0 ? reclaim : std::min(again, reclaim);
  return clear_for(item, claim, now, out, again);
}

// Work leaves machines that are kept for it.
bool Scheduler::Impl::clearing(std::uint32_t item) const {
  const auto kept = latches.find(item);
  return kept != latches.end() && std::any_of(kept->second.begin(), kept->second.end(), [&](std::uint32_t node) {
           const auto on = leases_on.find(pool.view(node).node);
           return on != leases_on.end() && pool.machine(node).keeper == item &&
                  std::any_of(on->second.begin(), on->second.end(),
                              [&](LeaseId id) { return leases.at(id).preempted; });
         });
}

bool Scheduler::Impl::clear_for(std::uint32_t item, const Claim& by, WallTime now, std::vector<Group>& out,
                                std::int64_t& again) {
  const Item& it = items[item];
  Class& c = classes[it.cls];
  const auto could_host = [&](std::uint32_t node) {
    return std::any_of(c.needs.begin(), c.needs.end(), [&](const CountedNeed& need) {
      return pool.could_host(query_for(need, item, now.ms, Reach::Never), node);
    });
  };
  std::set<std::uint32_t> nodes;
  Gone gone;
  if (by.reclaims() || usage.tiers_guaranteed()) note_leaving(gone);
  std::size_t looked_at = 0;
  bool any = false;
  // The newest first: they lose the least. Where thousands would do, the rest is not looked at.
  const auto add = [&](const std::set<LeaseId>& of) {
    for (auto id = of.rbegin(); id != of.rend() && nodes.size() < kRoomsLookedAt; ++id) {
      if (++looked_at > kVictimsLookedAt) return;
      const LeaseView& lease = leases.at(*id);
      if (!lease.leaving && (lease.since + kPreemptAfter > now || !may_take(lease, by, gone))) continue;
      const std::uint32_t node = pool.index_of(lease.node);
      if (node == kNone || (!nodes.contains(node) && !could_host(node))) continue;
      nodes.insert(node);
      any = any || lease.preempted || !lease.leaving;
    }
  };
  add(leaving);
  const std::size_t first = by.reclaims() ? by.tier : std::size_t{by.tier} + 1;
  for (std::size_t t = std::max<std::size_t>(kPreemptibleTier, first); t < interruptible.size(); ++t)
    add(interruptible[t]);
  if (!any) return false;
  if (latches.size() >= kLatchesMax && !it.latched) return false;

  pool.begin();
  const Pending pending(pool);
  mark_excluded(c, now);
  std::vector<std::uint32_t> chosen;
  std::vector<LeaseId> victims;
  bool promised = false;
  for (const CountedNeed& need : c.needs) {
    const Query query = query_for(need, item, now.ms, Reach::Never);
    std::uint32_t found = 0;
    for (; found < need.count; ++found) {
      const Found free = pool.best(query);
      if (!free) break;
      pool.mark(free.node), pool.pend(free.node, need.need.flow);
      chosen.push_back(free.node);
    }
    if (found == need.count) continue;
    std::vector<Room> rooms;
    for (const std::uint32_t node : nodes)
      if (!pool.marked(node))
        if (auto room = room_on(query, node, by, gone)) rooms.push_back(std::move(*room));
    if (rooms.size() < need.count - found) return false;
    std::sort(rooms.begin(), rooms.end(), [&](const Room& a, const Room& b) { return cheaper(a, b); });
    for (std::size_t i = 0; found < need.count; ++i) {
      if (i == rooms.size()) return false;
      Room room = std::move(rooms[i]);
      // Those before may have used up what an owner, or a tier, has beyond its guarantee.
      if (i > 0 && (by.reclaims() || usage.tiers_guaranteed())) {
        auto still = room_on(query, room.node, by, gone);
        if (!still) continue;
        room = std::move(*still);
      }
      if (c.flows && !pool.would_host(query, room.node, without(room.node, room.victims))) continue;
      ++found;
      pool.mark(room.node), pool.pend(room.node, need.need.flow);
      chosen.push_back(room.node);
      victims.insert(victims.end(), room.victims.begin(), room.victims.end());
      if (by.reclaims() || usage.tiers_guaranteed())
        for (const LeaseId id : room.victims) note_gone(leases.at(id), gone);
      for (const LeaseId id : leases_on.at(pool.view(room.node).node)) promised |= leases.at(id).preempted;
    }
  }
  if (victims.empty() && !promised) return false;  // it gets its machines without that
  if (!suit_each_other(c, chosen, now)) return false;
  if (!it.latched) latch(item);
  keep_for(item, chosen);
  again = 0;
  if (victims.empty()) return true;
  std::sort(victims.begin(), victims.end());
  ways[item] = {now + kProposalLife, chosen, false, victims};
  again = ways[item].expires.ms;
  out.push_back({ActionKind::Preempt, it.cluster, {}, now + kProposalLife, std::move(victims)});
  return true;
}

}  // namespace muster::scheduler
