// Room for those that go first: work that agreed to be interrupted (its tier) leaves when a request of a better tier
// can start no other way. One decision names every machine that the start will stand on and every lease that has to
// leave for it, or nothing happens; the machines are kept for it from then on. A victim is always of a strictly later
// tier, so nobody can be made to leave by what it made leave: there are no cycles.
#include <algorithm>

#include "scheduler/impl.h"

namespace muster::scheduler {
namespace {

constexpr std::size_t kRoomsLookedAt = 2'000;     // machines, for one decision
constexpr std::size_t kVictimsLookedAt = 50'000;  // leases, for one decision
constexpr std::int64_t kRestartMs = 300'000;      // what work loses besides: it has to find its way back
constexpr std::int64_t kLostMaxMs = 30LL * 86'400'000;
constexpr std::int64_t kGpuInCpus = 16;  // a GPU's time is worth that of so many CPUs

std::uint32_t sum(std::uint32_t a, std::uint32_t b) {
  return a > ~b ? ~std::uint32_t{0} : a + b;
}

// CPU milliseconds that are lost when it leaves: all since it was granted, as nobody tells of checkpoints.
std::int64_t cost_of(const LeaseView& lease, std::int64_t now_ms) {
  if (lease.role == SlotRole::Spare) return 0;  // nothing runs on it
  const std::int64_t cpus = std::clamp<std::int64_t>(lease.resources.cpu_milli / 1000, 1, 1 << 16),
                     gpus = std::clamp<std::int64_t>(lease.resources.gpus, 0, 1 << 10);
  const std::int64_t since = std::clamp<std::int64_t>(lease.since.ms, 0, now_ms);
  return (cpus + gpus * kGpuInCpus) * (std::min(now_ms - since, kLostMaxMs) + kRestartMs);
}

}  // namespace

bool Scheduler::Impl::preemptible(const LeaseView& lease, std::uint8_t by_tier) {
  return lease.role != SlotRole::Head && !lease.leaving && lease.tier >= kPreemptibleTier && lease.tier > by_tier;
}

void Scheduler::Impl::apply(const FreezeChanged& c) {
  frozen = c.frozen;
  if (frozen) return;
  for (std::size_t i = sleepers.size(); i-- > 0;)
    if (!classes[sleepers[i]].grows) wake(sleepers[i]);
}

// The machine as it will be without what leaves it anyway and without these.
Machine Scheduler::Impl::without(std::uint32_t node, const std::vector<LeaseId>& victims) const {
  const NodeView& view = pool.view(node);
  Machine then = pool.machine(node);
  const auto on = leases_on.find(view.node);
  if (on == leases_on.end()) return then;
  std::size_t stay = 0;
  for (const LeaseId id : on->second) {
    const LeaseView& lease = leases.at(id);
    if (!lease.leaving && std::find(victims.begin(), victims.end(), id) == victims.end()) {
      ++stay;
      continue;
    }
    const Amounts amounts = free_amounts(lease.resources);
    then.free = {sum(then.free.cpu, amounts.cpu), sum(then.free.memory, amounts.memory),
                 sum(then.free.disk, amounts.disk)};
    then.free_devices |= device_bits(view, lease.devices);
  }
  then.whole = stay == 0 && !proposed_on.contains(node);
  return then;
}

// What has to leave this machine so that it can host the need, the least first; nothing when that does not help.
std::optional<Scheduler::Impl::Room> Scheduler::Impl::room_on(const Query& query, std::uint32_t node,
                                                              std::uint8_t tier) const {
  const auto on = leases_on.find(pool.view(node).node);
  if (on == leases_on.end() || !pool.could_host(query, node)) return {};
  Room room{node, 0, {}};
  std::vector<std::pair<std::int64_t, LeaseId>> may;
  for (const LeaseId id : on->second) {
    const LeaseView& lease = leases.at(id);
    if (preemptible(lease, tier) && lease.since + kPreemptAfter <= WallTime{query.now_ms})
      may.emplace_back(cost_of(lease, query.now_ms), id);
  }
  std::sort(may.begin(), may.end());
  std::size_t next = 0;
  while (!pool.would_host(query, node, without(node, room.victims))) {
    if (next == may.size()) return {};
    room.victims.push_back(may[next++].second);
  }
  for (std::size_t i = room.victims.size(); i-- > 0;) {  // the dearest that turns out not to be needed stays
    std::vector<LeaseId> fewer = room.victims;
    fewer.erase(fewer.begin() + static_cast<std::ptrdiff_t>(i));
    if (pool.would_host(query, node, without(node, fewer))) room.victims = std::move(fewer);
  }
  for (const LeaseId id : room.victims) room.cost += cost_of(leases.at(id), query.now_ms);
  return room;
}

void Scheduler::Impl::keep_for(std::uint32_t item, const std::vector<std::uint32_t>& nodes) {
  auto& kept = latches.at(item);
  for (const std::uint32_t node : nodes) {
    if (!pool.live(node) || std::find(kept.begin(), kept.end(), node) != kept.end()) continue;
    kept.push_back(node);
    pool.keep(node, item);
  }
}

bool Scheduler::Impl::yields(std::uint32_t node) const {
  const auto on = leases_on.find(pool.view(node).node);
  return on != leases_on.end() &&
         std::any_of(on->second.begin(), on->second.end(), [&](LeaseId id) { return preemptible(leases.at(id), 0); });
}

// May the first of a class have work of a later tier leave one of these machines?
bool Scheduler::Impl::gains_by(const Class& c, const std::vector<std::uint32_t>& nodes, std::int64_t now_ms) const {
  if (c.grows) return false;
  std::uint8_t best = 0xff;
  for (const auto& [lane, line] : c.lines)
    if (line.size() > 0) best = std::min(best, lanes[lane].tier);
  Query query;
  query.weights = &weights, query.now_ms = now_ms, query.excluded = &nobody;
  return std::any_of(nodes.begin(), nodes.end(), [&](std::uint32_t node) {
    const auto on = leases_on.find(pool.view(node).node);
    if (on == leases_on.end() || std::none_of(on->second.begin(), on->second.end(),
                                              [&](LeaseId id) { return preemptible(leases.at(id), best); }))
      return false;
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
    if (gains_by(classes[sleepers[i]], nodes, now.ms)) wake(sleepers[i]);
}

// True: machines are being cleared for it. `again`: when what was decided has to be seen to.
bool Scheduler::Impl::make_way(std::uint32_t item, WallTime now, std::vector<Group>& out, std::int64_t& again) {
  const Item& it = items[item];
  const std::uint8_t tier = lanes[it.lane].tier;
  if (const auto way = ways.find(item); way != ways.end()) {
    if (now < way->second.expires) {  // what was decided is on its way
      keep_for(item, way->second.nodes);
      again = way->second.expires.ms;
      return true;
    }
    ways.erase(way);
  }
  Class& c = classes[it.cls];
  const auto could_host = [&](std::uint32_t node) {
    return std::any_of(c.needs.begin(), c.needs.end(), [&](const CountedNeed& need) {
      return pool.could_host(query_for(need, item, now.ms, false), node);
    });
  };
  std::set<std::uint32_t> nodes;
  std::size_t looked_at = 0;
  bool any = false;
  // The newest first: they lose the least. Where thousands would do, the rest is not looked at.
  const auto add = [&](const std::set<LeaseId>& of) {
    for (auto id = of.rbegin(); id != of.rend() && nodes.size() < kRoomsLookedAt; ++id) {
      if (++looked_at > kVictimsLookedAt) return;
      const LeaseView& lease = leases.at(*id);
      if (!lease.leaving && lease.since + kPreemptAfter > now) continue;
      const std::uint32_t node = pool.index_of(lease.node);
      if (node == kNone || (!nodes.contains(node) && !could_host(node))) continue;
      nodes.insert(node);
      any = any || lease.preempted || !lease.leaving;
    }
  };
  add(leaving);
  for (std::size_t t = std::max<std::size_t>(kPreemptibleTier, std::size_t{tier} + 1); t < interruptible.size(); ++t)
    add(interruptible[t]);
  if (!any) return false;
  if (latches.size() >= kLatchesMax && !it.latched) return false;

  pool.begin();
  mark_excluded(c, now);
  std::vector<std::uint32_t> chosen;
  std::vector<LeaseId> victims;
  bool promised = false;
  for (const CountedNeed& need : c.needs) {
    const Query query = query_for(need, item, now.ms, false);
    std::uint32_t found = 0;
    for (; found < need.count; ++found) {
      const Found free = pool.best(query);
      if (!free) break;
      pool.mark(free.node);
      chosen.push_back(free.node);
    }
    if (found == need.count) continue;
    std::vector<Room> rooms;
    for (const std::uint32_t node : nodes)
      if (!pool.marked(node))
        if (auto room = room_on(query, node, tier)) rooms.push_back(std::move(*room));
    if (rooms.size() < need.count - found) return false;
    std::sort(rooms.begin(), rooms.end(), [&](const Room& a, const Room& b) {
      return std::tuple(a.cost, a.victims.size(), pool.view(a.node).node) <
             std::tuple(b.cost, b.victims.size(), pool.view(b.node).node);
    });
    for (std::size_t i = 0; found < need.count; ++found, ++i) {
      pool.mark(rooms[i].node);
      chosen.push_back(rooms[i].node);
      victims.insert(victims.end(), rooms[i].victims.begin(), rooms[i].victims.end());
      for (const LeaseId id : leases_on.at(pool.view(rooms[i].node).node)) promised |= leases.at(id).preempted;
    }
  }
  if (victims.empty() && !promised) return false;  // it gets its machines without that
  if (!it.latched) latch(item);
  keep_for(item, chosen);
  again = 0;
  if (victims.empty()) return true;
  std::sort(victims.begin(), victims.end());
  ways[item] = {now + kProposalLife, chosen};
  again = ways[item].expires.ms;
  out.push_back({ActionKind::Preempt, it.cluster, {}, now + kProposalLife, std::move(victims)});
  return true;
}

}  // namespace muster::scheduler
