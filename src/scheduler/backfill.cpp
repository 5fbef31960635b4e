#include "scheduler/backfill.h"

#include <algorithm>
#include <bit>

#include "scheduler/impl.h"

namespace muster::scheduler {
namespace {

constexpr std::int64_t kQuarterMs = 15 * 60'000;
constexpr std::int64_t kLongestMs = 36'864 * kQuarterMs;  // a year and a bit, which is a step
constexpr std::int64_t kLatest = std::int64_t{1} << 46;   // ms; far beyond any date
constexpr std::size_t kEdgesMax = 4'000'000;              // machines times needs, for one shadow
// A shadow costs a look at every machine (40 ms of 100,000), so one is found anew at a time, and so seldom that it
// stays some percent of a core; in between the last one counts. Small pools are always exact.
constexpr std::int64_t kMachinesPerMs = 64;
constexpr std::int64_t kToAskAgain = 10 * 60'000;  // a hint is worth something for so long

constexpr std::int64_t grain(std::int64_t quarters) {
  const auto width = static_cast<int>(std::bit_width(static_cast<std::uint64_t>(quarters)));
  return std::int64_t{1} << std::max(0, width - 4);
}

}  // namespace

std::int64_t length_step(std::int64_t longest_ms) {
  if (longest_ms <= 0 || longest_ms > kLongestMs) return 0;
  const std::int64_t quarters = (longest_ms + kQuarterMs - 1) / kQuarterMs, by = grain(quarters);
  return (quarters + by - 1) / by * by * kQuarterMs;
}

std::int64_t step_within(std::int64_t ms) {
  const std::int64_t quarters = std::min(ms, kLongestMs) / kQuarterMs;
  if (ms < kQuarterMs) return 0;
  return quarters / grain(quarters) * grain(quarters) * kQuarterMs;
}

// ---- matching
Matching::Matching(std::vector<std::uint32_t> counts)
    : lacks_(std::move(counts)), given_(lacks_.size()), spare_(lacks_.size()), dead_(lacks_.size()) {
  for (const std::uint32_t n : lacks_) missing_ += n;
}

void Matching::move(std::uint32_t machine, std::uint32_t need) {
  Spot& spot = at_[machine];
  if (spot.need != kNone) std::erase(given_[spot.need], machine);
  spot.need = need;
  given_[need].push_back(machine);
}

bool Matching::augment(std::uint32_t from) {
  if (dead_[from]) return false;
  struct Step {
    std::uint32_t before = kNone, machine = kNone;  // which of that need's machines goes over to this one
  };
  std::vector<Step> reached(lacks_.size());
  std::vector<std::uint32_t> todo{from};
  reached[from].before = from;
  for (std::size_t i = 0; i < todo.size(); ++i) {
    std::uint32_t need = todo[i];
    if (lacks_[need] > 0) {
      --lacks_[need], --missing_;
      for (; need != from; need = reached[need].before) move(reached[need].machine, need);
      auto& spare = spare_[from];
      while (at_[spare.back()].need != kNone) spare.pop_back();
      move(spare.back(), from);
      spare.pop_back();
      return true;
    }
    for (const std::uint32_t machine : given_[need])
      for (const std::uint32_t other : at_[machine].hosts)
        if (!dead_[other] && reached[other].before == kNone) reached[other] = {need, machine}, todo.push_back(other);
  }
  for (const std::uint32_t need : todo) dead_[need] = true;
  return false;
}

void Matching::add(std::uint32_t machine, std::uint32_t need) {
  if (machine >= at_.size()) at_.resize(machine + 1);
  Spot& spot = at_[machine];
  spot.hosts.push_back(need);
  if (spot.need == kNone) {
    spare_[need].push_back(machine);
    augment(need);
    return;
  }
  if (!dead_[spot.need] || dead_[need]) return;
  // Its need, and all that lead there, have a way again.
  std::fill(dead_.begin(), dead_.end(), false);
  for (std::uint32_t n = 0; n < spare_.size() && !complete(); ++n) {
    std::erase_if(spare_[n], [&](std::uint32_t m) { return at_[m].need != kNone; });
    while (!spare_[n].empty() && augment(n))
      std::erase_if(spare_[n], [&](std::uint32_t m) { return at_[m].need != kNone; });
  }
}

// ---- ends
// When it is gone: told to go, by its cluster's end, or by the longest that it can last from its grant.
std::optional<WallTime> Scheduler::Impl::end_of(const LeaseView& lease, WallTime now) const {
  if (lease.leaving) return now + kLeaving;
  WallTime end;
  if (const auto it = ends.find(lease.cluster); it != ends.end()) end = it->second;
  if (const auto it = starts.find(lease.cluster); it != starts.end() && lease.since.ms > 0) {
    const WallTime latest = WallTime{std::min(lease.since.ms, kLatest)} + kStartAllowance + it->second;
    if (end.ms == 0 || (latest > now && latest < end)) end = latest;
  }
  if (end.ms == 0) return {};
  return std::max(end, now) + kLeaving;
}

// What a machine is like after each of the ends that are promised on it, the first first.
std::vector<std::pair<WallTime, Machine>> Scheduler::Impl::after_ends(std::uint32_t node, WallTime now) const {
  const NodeView& view = pool.view(node);
  struct Coming {
    WallTime at;
    std::uint64_t id = 0; /* of the lease; 0: a proposal's */
    Amounts amounts;
    std::uint64_t devices = 0;
    Flow flow;
  };
  std::vector<Coming> coming;
  std::size_t all = 0;
  if (const auto on = leases_on.find(view.node); on != leases_on.end()) {
    all += on->second.size();
    for (const LeaseId id : on->second) {
      const LeaseView& lease = leases.at(id);
      const auto at = end_of(lease, now);
      if (!at) continue;
      coming.push_back({*at, id.value, free_amounts(lease.resources), device_bits(view, lease.devices),
                        needed_flow(lease.resources.traffic)});
    }
  }
  if (const auto on = proposed_on.find(node); on != proposed_on.end()) {
    all += on->second.size();
    for (const ClusterId cluster : on->second) {
      const Proposal& proposal = proposals.at(cluster);
      if (proposal.ends.ms == 0) continue;
      for (const Taken& t : proposal.taken)
        if (t.node == node) coming.push_back({proposal.ends, 0, t.amounts, t.all_devices(), t.flow});
    }
  }
  std::sort(coming.begin(), coming.end(),
            [](const Coming& a, const Coming& b) { return std::pair(a.at, a.id) < std::pair(b.at, b.id); });
  std::vector<std::pair<WallTime, Machine>> out;
  Machine then = pool.machine(node);
  Holders holders = holders_of(node);
  for (const Coming& c : coming) {
    then.free.cpu += c.amounts.cpu, then.free.memory += c.amounts.memory, then.free.disk += c.amounts.disk;
    then.free_devices |= holders.drop(c.devices);
    then.flow = then.flow.minus(c.flow);
    then.whole = out.size() + 1 == all;
    out.emplace_back(c.at, then);
  }
  return out;
}

// ---- bookings
// On which machines all of it would stand, and when: of each machine the time from which it could have it, by the ends
// that are promised; of those that others have booked who go before it, when they are done, if ever. The soonest first,
// and of those what it has already, so that a booking that nothing changes stays as it is.
Scheduler::Impl::Booking Scheduler::Impl::book(std::uint32_t item, WallTime now) const {
  const Class& c = classes[items[item].cls];
  // What machines of one site give back together, and what others of it take until then, is not foreseen.
  if (c.flows || pool.limit() * c.needs.size() > kEdgesMax) return {};
  const auto out = excluded(c.example, now);
  std::map<std::uint32_t, std::int64_t> others;  // when they are done; 0: never, or nobody knows
  for (const auto& [other, kept] : latches) {
    if (other == item || precedences[other] > precedences[item]) continue;
    const std::int64_t done = shadows[other] == 0 ? 0 : done_by(classes[items[other].cls].length_ms, shadows[other]);
    for (const std::uint32_t node : kept) {
      std::int64_t& at = others.try_emplace(node, done).first->second;
      at = at == 0 || done == 0 ? 0 : std::max(at, done);
    }
  }
  std::vector<Query> queries;
  std::vector<std::uint32_t> counts;
  for (const CountedNeed& need : c.needs) {
    queries.push_back(query_for(need, item, now.ms, Reach::Never));
    queries.back().excluded = &out;
    if (pool.holds_back()) queries.back().failover = 0;  // what will be kept back is another set then: see below
    counts.push_back(need.count);
  }
  struct Edge {
    WallTime at;
    std::uint8_t whose = 0; /* its own, nobody's, one's that goes after it */
    std::uint32_t machine = 0, need = 0;
    auto operator<=>(const Edge&) const = default;
  };
  std::vector<Edge> edges;
  for (std::uint32_t node = 0; node < pool.limit(); ++node) {
    if (!pool.live(node) || pool.machine(node).cell == kNone) continue;
    const std::uint32_t keeper = pool.machine(node).keeper;
    WallTime from = now;
    if (const auto booked = others.find(node); booked != others.end()) {
      if (booked->second == 0) continue;
      from.ms = std::max(from.ms, booked->second);
    }
    for (Query& query : queries) query.asker = from > now ? keeper : item;
    const std::uint8_t whose = keeper == item ? 0 : keeper == kNone ? 1 : 2;
    bool known = false;
    std::vector<std::pair<WallTime, Machine>> ahead;
    for (std::uint32_t n = 0; n < queries.size(); ++n) {
      if (pool.hosts(as_of(queries[n], from.ms), node)) {
        edges.push_back({from, whose, node, n});
        continue;
      }
      if (!std::exchange(known, true)) ahead = after_ends(node, now);
      const auto at = std::find_if(ahead.begin(), ahead.end(), [&](const auto& state) {
        return pool.would_host(as_of(queries[n], std::max(state.first, from).ms), node, state.second);
      });
      if (at != ahead.end()) edges.push_back({std::max(at->first, from), whose, node, n});
    }
  }
  std::sort(edges.begin(), edges.end());
  if (pool.holds_back() && !queries.empty()) {
    std::map<std::uint32_t, WallTime> first;
    for (const Edge& edge : edges) first.try_emplace(edge.machine, edge.at);
    std::vector<std::pair<WallTime, std::uint32_t>> from;
    for (const auto& [machine, at] : first) from.emplace_back(at, machine);
    Query asked = queries.front();
    asked.failover = c.needs.front().failover;
    const auto kept = pool.kept_back(asked, from);
    std::erase_if(edges, [&](const Edge& e) { return std::binary_search(kept.begin(), kept.end(), e.machine); });
  }
  Matching matching(std::move(counts));
  for (const Edge& edge : edges) {
    matching.add(edge.machine, edge.need);
    if (!matching.complete()) continue;
    Booking booking{std::max<std::int64_t>(edge.at.ms, 1), {}};
    for (const Edge& e : edges)
      if (e <= edge && matching.matched(e.machine)) booking.machines.push_back(e.machine);
    std::sort(booking.machines.begin(), booking.machines.end());
    booking.machines.erase(std::unique(booking.machines.begin(), booking.machines.end()), booking.machines.end());
    return suit_each_other(c, booking.machines, now) ? booking : Booking{};
  }
  return {};
}

void Scheduler::Impl::keep(std::uint32_t node, std::uint32_t item) {
  pool.keep(node, item, item != kNone && classes[items[item].cls].flows);
}

// What it kept is the next one's who booked it, or nobody's.
void Scheduler::Impl::release(std::uint32_t node, std::uint32_t item) {
  if (!pool.live(node) || pool.machine(node).keeper != item) return;
  std::uint32_t next = kNone;
  for (const auto& [other, kept] : latches)
    if (other != item && (next == kNone || precedences[other] < precedences[next]) &&
        std::find(kept.begin(), kept.end(), node) != kept.end())
      next = other;
  keep(node, next);
}

// The machines of a booking are kept, also while others work on them. Those that one before it has booked stay that
// one's until then; those that are free it claims when it is its turn, as others may go first.
bool Scheduler::Impl::keep_booked(std::uint32_t item, Booking booking, std::int64_t now_ms) {
  shadows[item] = booking.shadow;
  if (ways.contains(item) || (booking.shadow == 0 && !items[item].behind)) return false;  // it keeps what it found
  std::vector<std::uint32_t> before = std::exchange(latches.at(item), std::move(booking.machines));
  const std::vector<std::uint32_t>& kept = latches.at(item);
  for (const std::uint32_t node : before)
    if (!std::binary_search(kept.begin(), kept.end(), node)) release(node, item);
  bool unclaimed = false;
  for (const std::uint32_t node : kept) {
    const std::uint32_t keeper = pool.machine(node).keeper;
    if (keeper == item || (keeper != kNone && precedences[keeper] < precedences[item])) continue;
    if (keeper != kNone && std::find(shadows_due.begin(), shadows_due.end(), keeper) == shadows_due.end())
      shadows_due.push_back(keeper);
    const std::vector<CountedNeed>& needs = classes[items[item].cls].needs;
    const bool free = std::any_of(needs.begin(), needs.end(), [&](const CountedNeed& need) {
      Query query = query_for(need, item, now_ms, Reach::Never);
      query.excluded = &nobody;
      return pool.hosts(query, node);
    });
    if (!free) keep(node, item);
    unclaimed = unclaimed || (free && keeper == kNone);
  }
  return unclaimed;
}

// It is the turn of this class.
void Scheduler::Impl::claim(std::uint32_t cls) {
  std::vector<std::uint32_t> order;
  for (const auto& [item, kept] : latches)
    if (items[item].cls == cls) order.push_back(item);
  std::sort(order.begin(), order.end(),
            [&](std::uint32_t a, std::uint32_t b) { return precedences[a] < precedences[b]; });
  for (const std::uint32_t item : order)
    for (const std::uint32_t node : latches.at(item))
      if (pool.live(node) && pool.machine(node).keeper == kNone) keep(node, item);
}

// Time alone makes nothing possible: a shadow stands while now comes nearer to it. So those that sleep are looked at
// only when a shadow became known or later, and then only those that a machine that is kept for it could host.
void Scheduler::Impl::refresh_shadows(WallTime now, std::uint32_t turn) {
  if (!backfill) return;
  if (std::exchange(shadows_stale, false))
    for (const auto& [item, kept] : latches)
      if (std::find(shadows_due.begin(), shadows_due.end(), item) == shadows_due.end()) shadows_due.push_back(item);
  const std::int64_t pause = std::max(std::int64_t{pool.limit()} / kMachinesPerMs, shadow_pause_ms);
  std::vector<std::uint32_t> open;  // machines
  while (!shadows_due.empty() && (pause == 0 || now.ms < shadows_ms || now.ms - shadows_ms >= pause)) {
    // Who goes first is booked first; where one is due at a time, in turn.
    const auto due = pause > 0 ? shadows_due.begin()
                               : std::min_element(shadows_due.begin(), shadows_due.end(),
                                                  [&](auto a, auto b) { return precedences[a] < precedences[b]; });
    const std::uint32_t item = *due;
    shadows_due.erase(due);
    const std::int64_t shadow_before = shadows[item];
    if (keep_booked(item, book(item, now), now.ms) && items[item].cls != turn) wake(items[item].cls);
    const std::vector<std::uint32_t>& kept = latches.at(item);
    if (shadows[item] > shadow_before) open.insert(open.end(), kept.begin(), kept.end());
    shadows_ms = now.ms;
  }
  if (open.empty()) return;
  for (std::size_t i = sleepers.size(); i-- > 0;) {
    const std::uint32_t cls = sleepers[i].cls;
    const Class& c = classes[cls];
    if (c.length_ms == 0) continue;
    Query query;
    query.weights = &weights, query.now_ms = now.ms, query.length_ms = c.fit_ms, query.excluded = &nobody;
    const bool helps = std::any_of(open.begin(), open.end(), [&](std::uint32_t node) {
      const std::uint32_t keeper = pool.live(node) ? pool.machine(node).keeper : kNone;
      if (keeper == kNone || done_by(c.length_ms, now.ms) > shadows[keeper]) return false;
      query.asker = keeper;
      return std::any_of(c.needs.begin(), c.needs.end(), [&](const CountedNeed& need) {
        query.need = &need.need;
        return pool.hosts(query, node);
      });
    });
    if (helps) wake(cls);
  }
}

// ---- what is kept
// Is any of it kept for somebody who goes first?
bool Scheduler::Impl::borrowed(std::uint32_t item, const std::vector<Choice>& chosen) const {
  return std::any_of(chosen.begin(), chosen.end(), [&](const Choice& choice) {
    const std::uint32_t keeper = pool.machine(choice.node).keeper;
    return keeper != kNone && keeper != item && precedences[keeper] <= precedence_of(item);
  });
}

// The gang keeps what it found, and what it kept already and others still work on, as far as that is back in time. The
// soonest first, and never more than is needed. What is kept and what is not free yet are enough for the gang whenever
// all machines would be: what was not kept could only stand in for something that was.
void Scheduler::Impl::reserve(std::uint32_t item, WallTime now, const std::vector<Choice>& chosen) {
  const Class& c = classes[items[item].cls];
  std::vector<std::uint32_t>& kept = latches.at(item);
  const auto out = excluded(c.example, now);
  std::vector<std::uint32_t> counts, machines, fresh;
  std::vector<Query> queries;
  for (const CountedNeed& need : c.needs) {
    counts.push_back(need.count);
    queries.push_back(query_for(need, item, now.ms, Reach::Never));
    queries.back().excluded = &out;
  }
  // When, whose (its own, nobody's, one's that goes after it), which of the machines, need.
  std::vector<std::tuple<WallTime, int, std::uint32_t, std::uint32_t>> edges;
  for (const std::uint32_t node : kept) {
    if (!pool.live(node) || pool.machine(node).keeper != item || pool.machine(node).cell == kNone) continue;
    for (std::uint32_t n = 0; n < queries.size(); ++n) {
      const auto free = backfill ? hosts_from(queries[n], node, now) : std::nullopt;
      if (pool.hosts(queries[n], node))
        edges.emplace_back(now, 0, machines.size(), n);
      else if (free && (shadows[item] == 0 || free->ms <= shadows[item] || free->ms <= now.ms + kLeaving.count()))
        edges.emplace_back(*free, 0, machines.size(), n);
    }
    machines.push_back(node);
  }
  const std::size_t own = machines.size();
  for (const Choice& choice : chosen) {
    const auto end = machines.begin() + static_cast<std::ptrdiff_t>(own);
    if (std::find(machines.begin(), end, choice.node) != end) continue;
    const int whose = pool.machine(choice.node).keeper == kNone ? 1 : 2;
    for (std::uint32_t n = 0; n < queries.size(); ++n)
      if (pool.hosts(queries[n], choice.node)) edges.emplace_back(now, whose, machines.size(), n);
    machines.push_back(choice.node);
  }
  std::sort(edges.begin(), edges.end());
  Matching matching(std::move(counts));
  for (const auto& [at, whose, machine, need] : edges) matching.add(machine, need);
  for (std::uint32_t i = 0; i < machines.size(); ++i)
    if (matching.matched(i)) fresh.push_back(machines[i]);
  const std::vector<std::uint32_t> before = std::exchange(kept, std::move(fresh));
  for (const std::uint32_t node : before)
    if (std::find(kept.begin(), kept.end(), node) == kept.end()) release(node, item);
  for (const std::uint32_t node : kept)
    if (pool.machine(node).keeper != item) keep(node, item);
  if (c.flows) keep_uplinks(item, queries);
  shadows_stale = true;
}

// Machines that would do but for the uplink of their site, or their own: who goes after it takes no more of that.
void Scheduler::Impl::keep_uplinks(std::uint32_t item, const std::vector<Query>& queries) {
  std::vector<std::uint32_t>& kept = latches.at(item);
  std::size_t needed = 0;
  for (const CountedNeed& need : classes[items[item].cls].needs) needed += need.count;
  for (std::uint32_t node = 0; node < pool.limit() && kept.size() < needed; ++node) {
    if (!pool.live(node) || pool.machine(node).keeper != kNone) continue;
    const bool waits = std::any_of(queries.begin(), queries.end(), [&](const Query& query) {
      const FlowLack lack = pool.flow_lack(query, node);
      return (lack == FlowLack::Site || lack == FlowLack::Machine) && pool.could_host(query, node);
    });
    if (!waits) continue;
    kept.push_back(node);
    keep(node, item);
  }
}

// The longest that a request of this kind could last and start at once on what is kept; 0: none could.
std::int64_t Scheduler::Impl::longest_that_starts(std::uint32_t item, WallTime now) const {
  const Class& c = classes[items[item].cls];
  if (!backfill || c.grows) return 0;
  std::vector<std::int64_t> lengths;
  for (const auto& [keeper, kept] : latches) {
    const std::int64_t room = shadows[keeper] - done_by(kStartAllowance.count(), now.ms) - kToAskAgain;
    const std::int64_t length = shadows[keeper] == 0 ? 0 : step_within(room);
    if (length > 0 && (c.example.longest.count() == 0 || length < c.example.longest.count())) lengths.push_back(length);
  }
  std::sort(lengths.rbegin(), lengths.rend());
  const auto out = excluded(c.example, now);
  for (const std::int64_t length : lengths) {
    std::size_t needed = 0;  // what more demanding bundles take is not there for this one
    const bool starts_so = std::all_of(c.needs.begin(), c.needs.end(), [&](const CountedNeed& need) {
      Query query = query_for(need, item, now.ms);
      query.excluded = &out, query.length_ms = length + kStartAllowance.count(), query.shadows = &shadows;
      query.stays = false;
      query.done_ms = done_by(query.length_ms, now.ms) + kToAskAgain;
      std::size_t hosts = 0;
      needed += need.count;
      for (std::uint32_t node = 0; node < pool.limit() && hosts < needed; ++node)
        if (pool.hosts(query, node)) ++hosts;
      return hosts >= needed;
    });
    if (starts_so) return length;
  }
  return 0;
}

}  // namespace muster::scheduler
