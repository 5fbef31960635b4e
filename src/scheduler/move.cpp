// Defragmentation: small work moves together so that a larger request fits. Only workers that agreed to be interrupted
// move (their tier), never for a request of a later tier than their own, not before they had their time, and only to
// machines that are free for them now and are reserved for them by the same decision. So nobody who ran ever waits for
// it: every decision lets one request start, and takes none of those that run back into the queue; it cannot go round
// in circles. A move has a price: what the moved lose (all since they were granted, and the way back) must be less than
// what the request wins (its size, for as long as it would wait otherwise). How long that is, is known when it has
// machines reserved by promised ends; else it is taken that it will wait as long as it has waited. Work that could be
// preempted anyway is moved at any price: it loses no more so.
#include <algorithm>

#include "scheduler/impl.h"
#include "scheduler/policy.h"

namespace muster::scheduler {
namespace {

constexpr std::size_t kMoveMachines = 256;     // looked at for one decision
constexpr std::size_t kMoveLeases = 8;         // of one machine, all sets of which are tried
constexpr std::size_t kMoveSets = 8;           // of one machine, the cheapest
constexpr std::size_t kMoveLooks = 20'000;     // leases, for one decision
constexpr std::int64_t kMoveAgainMs = 30'000;  // until it is looked at again
constexpr std::int64_t kSavedMaxMs = 30LL * 86'400'000;
constexpr std::int64_t kMoveSizeMax = 1 << 26;

}  // namespace

void Scheduler::Impl::compile(Shape& shape) {
  shape.needs.clear();
  for (const Bundle& bundle : shape.request.gang) shape.needs.push_back(pool.compile(shape.request, bundle));
}

void Scheduler::Impl::apply(const ShapeChanged& c) {
  if (const auto old = shapes.find(c.cluster); old != shapes.end()) {
    for (const Need& need : old->second.needs) pool.drop(need);
    shapes.erase(old);
  }
  if (c.request.gang.empty()) return;
  Shape shape{c.request, {}, 0, false};
  shape.request.cluster = c.cluster;
  const std::int64_t longest = length_step(c.request.longest.count());
  const std::int64_t length = longest > 0 ? longest + kStartAllowance.count() : 0;
  shape.fit_ms = c.request.may_end_early ? kStartAllowance.count() : length;
  shape.stays = length == 0 && !c.request.may_end_early;
  compile(shape);
  shapes.emplace(c.cluster, std::move(shape));
}

const Need* Scheduler::Impl::need_of(const LeaseView& lease) const {
  const auto of = shapes.find(lease.cluster);
  if (of == shapes.end()) return nullptr;
  const auto& bundles = of->second.request.gang;
  for (std::size_t i = 0; i < bundles.size(); ++i)
    if (bundles[i].role == lease.role && bundles[i].group == lease.group) return &of->second.needs[i];
  return nullptr;
}

bool Scheduler::Impl::movable(const LeaseView& lease, std::uint8_t by_tier, WallTime now) const {
  if (lease.role != SlotRole::Worker || lease.leaving || lease.tier < kPreemptibleTier || lease.tier < by_tier ||
      lease.since + kMoveAfter > now)
    return false;
  const Need* need = need_of(lease);
  return need != nullptr && !need->load.whole_machine;
}

// The sets of workers of which the machine must be rid, none of them larger than it must be.
void Scheduler::Impl::rooms_by_moves(const Query& query, std::uint32_t node, std::uint8_t by_tier, WallTime now,
                                     std::vector<Room>& out) const {
  const auto on = leases_on.find(pool.view(node).node);
  if (on == leases_on.end() || !pool.could_host(query, node)) return;
  if (pool.headroom_lacks(node) && !pool.entitled(query, node)) return;
  std::vector<std::pair<std::int64_t, LeaseId>> may;
  for (const LeaseId id : on->second)
    if (movable(leases.at(id), by_tier, now)) may.emplace_back(cost_of(leases.at(id), now.ms), id);
  std::sort(may.begin(), may.end());
  if (may.size() > kMoveLeases) may.resize(kMoveLeases);
  const auto room_of = [&](std::uint32_t set) {
    Room room{node, 0, {}};
    for (std::size_t i = 0; i < may.size(); ++i)
      if ((set >> i & 1U) != 0) room.cost += may[i].first, room.victims.push_back(may[i].second);
    return room;
  };
  const auto hosts = [&](std::uint32_t set) {
    return pool.would_host(query, node, without(node, room_of(set).victims));
  };
  const std::uint32_t all = (1U << may.size()) - 1;
  if (all == 0 || hosts(0) || !hosts(all)) return;  // what leaves anyway is waited for
  std::vector<Room> rooms;
  for (std::uint32_t set = 1; set <= all; ++set) {
    if (!hosts(set)) continue;
    bool least = true;
    for (std::size_t i = 0; i < may.size() && least; ++i) least = (set >> i & 1U) == 0 || !hosts(set & ~(1U << i));
    if (least) rooms.push_back(room_of(set));
  }
  std::sort(rooms.begin(), rooms.end(),
            [](const Room& a, const Room& b) { return std::pair(a.cost, a.victims) < std::pair(b.cost, b.victims); });
  if (rooms.size() > kMoveSets) rooms.resize(kMoveSets);
  out.insert(out.end(), rooms.begin(), rooms.end());
}

void Scheduler::Impl::take_back(Resettled& resettled, std::size_t from) {
  while (resettled.taken.size() > from) {
    pool.give_back(resettled.taken.back());
    resettled.log.pop_back();
    const LeaseView& lease = leases.at(resettled.victims.back());
    resettled.cost -= cost_of(lease, resettled.now_ms), resettled.size -= size_of(lease.resources);
    resettled.on.at(lease.cluster).pop_back();
    resettled.taken.pop_back(), resettled.places.pop_back(), resettled.victims.pop_back();
  }
}

// Room for each of them on a machine that nobody keeps, beside what the request itself takes, and on which their
// cluster has nothing yet; the largest first. All of them, or nothing is taken.
bool Scheduler::Impl::resettle(const Room& room, const std::vector<std::uint32_t>& cleared, WallTime now,
                               Resettled& out) {
  const std::size_t before = out.taken.size();
  std::vector<LeaseId> order = room.victims;
  std::sort(order.begin(), order.end(), [&](LeaseId a, LeaseId b) {
    const std::int64_t x = size_of(leases.at(a).resources), y = size_of(leases.at(b).resources);
    return std::pair(-x, a) < std::pair(-y, b);
  });
  for (const LeaseId id : order) {
    const LeaseView& lease = leases.at(id);
    const Shape& shape = shapes.at(lease.cluster);
    auto [on, fresh] = out.on.try_emplace(lease.cluster);
    if (fresh)
      for (const LeaseId other : leases_of.at(lease.cluster))
        if (const std::uint32_t node = pool.index_of(leases.at(other).node); node != kNone) on->second.push_back(node);
    std::vector<std::uint32_t> excluded = on->second;
    excluded.insert(excluded.end(), cleared.begin(), cleared.end());
    excluded.push_back(room.node);
    std::sort(excluded.begin(), excluded.end());
    Query query;
    query.need = need_of(lease), query.weights = &rules_of(shape.request.policy).other, query.now_ms = now.ms;
    query.length_ms = shape.fit_ms, query.stays = shape.stays;
    query.tenant = shares_mix ? 0 : shape.request.tenant.value;
    query.excluded = &excluded;
    const Found found = pool.best(query);
    if (!found) {
      take_back(out, before);
      return false;
    }
    const NodeView& view = pool.view(found.node);
    const Taken taken = pool.what_it_takes(query, found.node);
    Place place{SlotRole::Worker, lease.group, view.node, lease.resources};
    place.node_version = view.version, place.share_milli = taken.share, place.mig_start = taken.start;
    if (taken.device >= 0) place.devices.push_back(view.devices[static_cast<std::size_t>(taken.device)].uuid);
    for (std::size_t i = 0; i < view.devices.size() && i < 64; ++i)
      if ((taken.devices >> i & 1U) != 0) place.devices.push_back(view.devices[i].uuid);
    pool.take(taken);
    on->second.push_back(found.node);
    out.victims.push_back(id), out.places.push_back(std::move(place)), out.taken.push_back(taken);
    out.log.push_back(taken);
    out.cost += cost_of(lease, out.now_ms), out.size += size_of(lease.resources);
  }
  return true;
}

// How much sooner it starts, about; `grows`: that rises as it waits.
std::int64_t Scheduler::Impl::saved_ms(std::uint32_t item, WallTime now, bool& grows) const {
  const Item& it = items[item];
  const std::int64_t shadow = it.latched && shadows[item] > 0 ? shadows[item] : book(item, now).shadow;
  grows = shadow == 0;
  const std::int64_t ms = grows ? now.ms - it.waiter.since_ms : shadow - now.ms - kLeaving.count();
  return std::clamp<std::int64_t>(ms, 0, kSavedMaxMs);
}

bool Scheduler::Impl::move_for(std::uint32_t item, std::uint8_t tier, WallTime now, std::vector<Group>& out,
                               std::int64_t& again) {
  const Item& it = items[item];
  Class& c = classes[it.cls];
  again = std::max(now.ms + kMoveAgainMs, it.stays_until.ms);
  if (now < it.stays_until || (latches.size() >= kLatchesMax && !it.latched)) return false;
  std::set<std::uint32_t> nodes;
  std::size_t looks = 0;
  for (std::size_t t = std::max<std::size_t>(kPreemptibleTier, tier); t < interruptible.size(); ++t)
    for (auto id = interruptible[t].rbegin(); id != interruptible[t].rend() && nodes.size() < kMoveMachines; ++id) {
      if (++looks > kMoveLooks) break;
      const LeaseView& lease = leases.at(*id);
      if (!movable(lease, tier, now)) continue;
      if (const std::uint32_t node = pool.index_of(lease.node); node != kNone) nodes.insert(node);
    }
  if (nodes.empty()) return false;

  pool.begin();
  const Pending pending(pool);
  mark_excluded(c, now);
  std::vector<std::uint32_t> chosen, cleared;
  Resettled moved;
  moved.now_ms = now.ms;
  std::int64_t wins = 0;
  const auto take = [&](const CountedNeed& need, std::uint32_t node) {
    const NodeView& view = pool.view(node);
    Resources size = c.example.gang[need.bundle].request.resources;
    if (need.need.load.whole_machine) size = view.capacity, size.gpus = static_cast<std::int64_t>(view.devices.size());
    wins = std::min(wins + size_of(size), kMoveSizeMax);
    pool.mark(node);
    chosen.push_back(node);
  };
  bool complete = true;
  for (const CountedNeed& need : c.needs) {
    const Query query = query_for(need, item, now.ms, Reach::Never);
    std::uint32_t found = 0;
    for (; found < need.count; ++found) {
      const Found free = pool.best(query);
      if (!free) break;
      take(need, free.node);
      moved.log.push_back(pool.what_it_takes(query, free.node));
      pool.take(moved.log.back());
    }
    if (found == need.count) continue;
    std::vector<Room> rooms;
    for (const std::uint32_t node : nodes)
      if (!pool.marked(node)) rooms_by_moves(query, node, tier, now, rooms);
    std::sort(rooms.begin(), rooms.end(), [&](const Room& a, const Room& b) { return cheaper(a, b); });
    for (const Room& room : rooms) {
      if (found == need.count) break;
      // What moves may have gone to this machine meanwhile.
      if (pool.marked(room.node) || !pool.would_host(query, room.node, without(room.node, room.victims)) ||
          !resettle(room, cleared, now, moved))
        continue;
      take(need, room.node);
      pool.pend(room.node, need.need.flow);
      cleared.push_back(room.node);
      ++found;
    }
    complete = found == need.count;
    if (!complete) break;
  }
  for (std::size_t i = moved.log.size(); i-- > 0;) pool.give_back(moved.log[i]);
  bool grows = false;
  const std::int64_t saved = complete && !moved.victims.empty() ? saved_ms(item, now, grows) : 0;
  const bool anyway = std::all_of(moved.victims.begin(), moved.victims.end(),
                                  [&](LeaseId id) { return preemptible(leases.at(id), tier); });
  const bool worth = complete && !moved.victims.empty() && (anyway || moved.cost < wins * saved);
  if (!worth || !suit_each_other(c, chosen, now)) {
    if (complete && !worth && grows && wins > moved.size) {  // by when it will be
      const std::int64_t more = (moved.cost - wins * saved) / (wins - moved.size) + 1;
      again = now.ms + std::clamp<std::int64_t>(more, 1'000, kMoveAgainMs * 20);
    }
    return false;
  }
  for (const Taken& t : moved.taken) pool.take(t);
  if (!it.latched) latch(item);
  keep_for(item, chosen);
  ways[item] = {now + kProposalLife, chosen, true};
  again = ways[item].expires.ms;
  const ClusterId name = move_name(it.cluster);
  drop_proposal(name);
  Proposal proposal{now + kProposalLife, moved.taken, {}, lanes[it.lane].owner, {}};
  for (const Taken& t : moved.taken) proposed_on[t.node].push_back(name);
  for (std::size_t i = 0; i < moved.victims.size(); ++i)
    moves[{leases.at(moved.victims[i]).cluster, moved.places[i].node}] = name;
  usage.propose(proposal.owner, proposal.tier, proposal.held);
  proposals_due.emplace(proposal.expires, name);
  proposals.emplace(name, std::move(proposal));
  out.push_back({ActionKind::Move, it.cluster, std::move(moved.places), now + kProposalLife, std::move(moved.victims)});
  return true;
}

}  // namespace muster::scheduler
