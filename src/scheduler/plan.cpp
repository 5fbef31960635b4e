// Incremental planning: only classes that something woke are looked at, each by its first request; when that finds no
// place the class sleeps until enough machines got better.
#include <algorithm>
#include <bit>
#include <utility>

#include "scheduler/impl.h"
#include "scheduler/placement.h"

namespace muster::scheduler {
namespace {

constexpr std::uint32_t kTriesPerPlan = 20'000;
constexpr std::int64_t kHeapLifeMs = 1'000;  // ranks of ageing and aged requests drift apart

constexpr std::int64_t kOverdueLookMs = 10'000;
constexpr std::int64_t kClearedMs = 180'000;        // it has started by then, or will not by that
constexpr std::int64_t kHopelessMs = 600'000;       // before it is looked again whether there are such machines at all
constexpr std::int64_t kOverdueTurnMs = 7'200'000;  // who has not started by then waits for work without an end:
constexpr std::int64_t kOverdueRestMs = 3'600'000;  // others have their turn meanwhile

constexpr std::uint32_t kWaysPerPlan = 8;  // searches for room; the others have their turn a second later

}  // namespace

// A max-heap by "goes later": the first to go is on top.
bool Scheduler::Impl::later(const Candidate& a, const Candidate& b) {
  return std::tuple(a.turn, a.rank, -a.worth, a.who, a.cls) > std::tuple(b.turn, b.rank, -b.worth, b.who, b.cls);
}

bool Scheduler::Impl::goes_later(const Head& a, const Head& b) {
  return std::tuple(a.turn, a.rank, -a.worth, a.who) > std::tuple(b.turn, b.rank, -b.worth, b.who);
}

Scheduler::Impl::Impl(const Options& options)
    : shares_mix(options.shares_mix), backfill(options.backfill), pool(kernels(options.simd), options.sampled) {
  for (std::uint8_t tier = 0; tier < kTiers; ++tier) turns[tier] = turn_of(tier);
}

// ---- what is out
void Scheduler::Impl::restore(std::uint32_t node) {
  pool.restore(node);
  shadows_stale = true;
  const auto on = proposed_on.find(node);
  if (on == proposed_on.end()) return;
  for (const ClusterId cluster : on->second)
    for (const Taken& t : proposals.at(cluster).taken)
      if (t.node == node) pool.take(t);
}

void Scheduler::Impl::hold(std::uint32_t item, Proposal proposal) {
  Item& it = items[item];
  for (const Taken& t : proposal.taken) {
    pool.take(t);
    proposed_on[t.node].push_back(it.cluster);
    proposal.held[0] += t.amounts.cpu, proposal.held[1] += t.amounts.memory;
    proposal.held[2] += t.share > 0 ? t.share : std::popcount(t.devices) * std::int64_t{kWholeGpu};
  }
  proposal.owner = lanes[it.lane].owner;
  proposal.tier = lanes[it.lane].tier;
  usage.propose(proposal.owner, proposal.tier, proposal.held);
  proposals_due.emplace(proposal.expires, it.cluster);
  proposals.emplace(it.cluster, std::move(proposal));
  look_at_turns(false);
  it.proposed = true;
  lines.erase(line_of(classes[it.cls], it.lane), it.waiter, it.aged);
}

// It is no longer out; what it took is not given back. Only what it took of machines that are still there.
std::vector<Taken> Scheduler::Impl::withdraw(ClusterId cluster) {
  const auto found = proposals.find(cluster);
  if (found == proposals.end()) return {};
  Proposal proposal = std::move(found->second);
  proposals.erase(found);
  if (!moves.empty()) std::erase_if(moves, [&](const auto& each) { return each.second == cluster; });
  usage.withdraw(proposal.owner, proposal.tier, proposal.held);
  proposals_due.erase({proposal.expires, cluster});
  std::erase_if(proposal.taken, [&](const Taken& t) {
    const auto on = proposed_on.find(t.node);
    if (on == proposed_on.end()) return true;  // the machine is gone
    std::erase(on->second, cluster);
    if (on->second.empty()) proposed_on.erase(on);
    return !pool.live(t.node);
  });
  return std::move(proposal.taken);
}

void Scheduler::Impl::drop_proposal(ClusterId cluster) {
  for (const Taken& t : withdraw(cluster)) restore(t.node);
  if (const std::uint32_t item = find(cluster); item != kNone && items[item].proposed) {
    Item& it = items[item];
    it.proposed = false;
    lines.insert(line_of(classes[it.cls], it.lane), it.waiter, it.aged);
  }
}

void Scheduler::Impl::expire(WallTime now) {
  while (!proposals_due.empty() && proposals_due.begin()->first < now) {
    const ClusterId cluster = proposals_due.begin()->second;
    drop_proposal(cluster);
    const std::uint32_t item = find(cluster);
    if (item == kNone) continue;
    if (classes[items[item].cls].awake)
      push(items[item].cls, items[item].lane, heap_ms);
    else
      wake(items[item].cls);
  }
  while (!backoffs_due.empty() && backoffs_due.begin()->first <= now) {
    const std::uint32_t cls = backoffs_due.begin()->second;
    backoffs_due.erase(backoffs_due.begin());
    classes[cls].backoff_ends = {};
    wake(cls);
  }
  while (!latches_due.empty() && latches_due.begin()->first <= now.ms) {
    const std::uint32_t cls = latches_due.begin()->second;
    set_latch_due(cls, 0);
    wake(cls);
  }
}

void Scheduler::Impl::apply(const NodeChanged& c) {
  shadows_stale = true;
  const std::uint32_t node = pool.set(c.node);
  usage.machine(node, &c.node);
  if (const auto on = proposed_on.find(node); on != proposed_on.end())
    for (const ClusterId cluster : on->second)
      for (const Taken& t : proposals.at(cluster).taken)
        if (t.node == node) pool.take(t);
}

void Scheduler::Impl::apply(const NodeGone& c) {
  const std::uint32_t node = pool.index_of(c.node);
  if (node == kNone) return;
  shadows_stale = true;
  proposed_on.erase(node);
  usage.machine(node, nullptr);
  network.forget(node);
  if (node < places.size()) places[node] = {};
  for (auto& [item, kept] : latches) std::erase(kept, node);
  for (auto& [item, way] : ways) std::erase(way.nodes, node);
  pool.forget(c.node);
}

// ---- gangs that waited too long keep what they could use
std::uint64_t Scheduler::Impl::precedence_of(std::uint32_t item) const {
  return precedence_of(item, items[item].latched ? static_cast<std::uint32_t>(precedences[item]) : 0xffffffffU);
}
std::uint64_t Scheduler::Impl::precedence_of(std::uint32_t item, std::uint32_t place) const {
  return std::uint64_t{turn_of(items[item])} << 34 | static_cast<std::uint64_t>(rank_of(item)) << 32 | place;
}

void Scheduler::Impl::order_latches(std::int64_t now_ms) {
  std::vector<std::pair<std::int64_t, std::uint32_t>> order;
  for (const auto& [item, kept] : latches) {
    const Waiter& w = items[item].waiter;
    const std::int64_t worth = w.priority * kAgeStepMs + std::min(now_ms - w.since_ms, kAgedMs);
    order.emplace_back(usage.handicap_ms(lanes[items[item].lane].owner) - worth, item);
  }
  std::sort(order.begin(), order.end(), [&](const auto& a, const auto& b) {
    return std::pair(a.first, items[a.second].waiter.who) < std::pair(b.first, items[b.second].waiter.who);
  });
  precedences.resize(items.size(), ~std::uint64_t{0}), shadows.resize(items.size(), 0);
  for (std::uint32_t i = 0; i < order.size(); ++i) {
    const std::uint32_t item = order[i].second;
    // What others left for it is its own, whoever else goes first.
    const bool cleared = items[item].cleared_ms != 0 && now_ms - items[item].cleared_ms < kClearedMs;
    precedences[item] = cleared ? i + 1 : precedence_of(item, i + 1);
  }
}

// Does some request of the class get what is kept for that one?
bool Scheduler::Impl::not_kept_from(std::uint32_t cls, std::uint32_t keeper) const {
  for (const auto& [item, kept] : latches)
    if (items[item].cls == cls && precedences[item] <= precedences[keeper]) return true;
  return std::any_of(classes[cls].lines.begin(), classes[cls].lines.end(), [&](const auto& line) {
    return line.second.size() > 0 && std::pair(turn_of(lanes[line.first].tier), rank_of(classes[cls], line.first)) <
                                         std::pair(turn_of(items[keeper]), rank_of(keeper));
  });
}

// What is kept back from it even when nothing runs.
std::vector<std::uint32_t> Scheduler::Impl::never_for(const Query& query) const {
  std::vector<std::pair<WallTime, std::uint32_t>> all;
  for (std::uint32_t node = 0; node < pool.limit(); ++node)
    if (pool.could_host(query, node)) all.emplace_back(WallTime{}, node);
  return pool.kept_back(query, all);
}

// One of each class and tenant, and only for what could be had at all.
bool Scheduler::Impl::may_latch(std::uint32_t item) const {
  const Item& it = items[item];
  if (it.overdue) return true;
  if (latches.size() >= kLatchesMax) return false;
  for (const auto& [other, kept] : latches)
    if (items[other].cls == it.cls && !items[other].behind && lanes[items[other].lane].tenant == lanes[it.lane].tenant)
      return false;
  return could_be_had(item);
}

bool Scheduler::Impl::could_be_had(std::uint32_t item) const {
  const Item& it = items[item];
  const Class& c = classes[it.cls];
  std::vector<Query> queries;
  std::vector<std::uint32_t> counts;
  for (const CountedNeed& need : c.needs)
    queries.push_back(query_for(need, item, heap_ms)), counts.push_back(need.count);
  const auto kept = pool.holds_back() && !queries.empty() ? never_for(queries.front()) : std::vector<std::uint32_t>{};
  Matching all(std::move(counts));
  for (std::uint32_t node = 0; node < pool.limit() && !all.complete(); ++node)
    for (std::uint32_t n = 0; n < queries.size(); ++n)
      if (pool.could_host(queries[n], node) && !std::binary_search(kept.begin(), kept.end(), node)) all.add(node, n);
  return all.complete();
}

void Scheduler::Impl::latch(std::uint32_t item) {
  Item& it = items[item];
  it.latched = true;
  latches.try_emplace(item);
  Pool::Keeping keeping;
  for (const CountedNeed& need : classes[it.cls].needs) {
    const Amounts& more = need.need.amounts;
    Amounts& most = keeping.amounts;
    most = {std::max(most.cpu, more.cpu), std::max(most.memory, more.memory), std::max(most.disk, more.disk)};
    keeping.gpus = std::max(keeping.gpus, need.need.load.gpus);
    keeping.all = keeping.all || need.need.load.whole_machine || need.need.load.share > 0;
    keeping.constraints.push_back(need.need.constraint);
  }
  pool.set_keeping(item, std::move(keeping));
  order_latches(heap_ms);
}

void Scheduler::Impl::unlatch(std::uint32_t item) {
  const auto it = latches.find(item);
  if (it == latches.end()) return;
  for (const std::uint32_t node : it->second) release(node, item);
  latches.erase(it);
  pool.drop_keeping(item);
  ways.erase(item);
  items[item].latched = items[item].behind = false, items[item].cleared_ms = 0, shadows[item] = 0;
  std::erase(shadows_due, item);
  shadows_stale = true;
}

// The first of a class keeps what it finds. So that those behind it are not put off for ever by what is shorter than
// they are, the next few of the class have their machines booked too, as far as their whole start is certain.
void Scheduler::Impl::protect(std::uint32_t cls, WallTime now, std::int64_t& again) {
  const Class& c = classes[cls];
  std::vector<std::tuple<std::uint32_t, Rank, std::int64_t, std::uint64_t, std::uint32_t>> first;
  for (const auto& [lane, line] : c.lines) {
    const Lane& l = lanes[lane];
    Lines::Cursor cursor = lines.begin(line);
    for (std::size_t i = 0; i < kProtected && !lines.at_end(cursor); ++i, lines.next(line, cursor, now.ms)) {
      const auto [entry, worth] = lines.at(cursor, now.ms);
      first.emplace_back(turn_of(items[entry.request()]), rank_of(c, lane), usage.handicap_ms(l.owner) - worth,
                         entry.who, entry.request());
    }
  }
  std::sort(first.begin(), first.end());
  if (first.size() > kProtected) first.resize(kProtected);
  std::vector<std::uint32_t> fallen;
  for (const auto& [item, kept] : latches)
    if (items[item].cls == cls && items[item].behind &&
        std::none_of(first.begin(), first.end(), [&](const auto& f) { return std::get<4>(f) == item; }))
      fallen.push_back(item);
  for (const std::uint32_t item : fallen) unlatch(item);
  for (const auto& next : first) {
    const std::uint32_t item = std::get<4>(next);
    const std::int64_t due = items[item].waiter.since_ms + kLatchMs;
    if (items[item].latched || latches.size() + kLatchesOfFirsts >= kLatchesMax) continue;
    if (due > now.ms) {
      if (again == 0 || due < again) again = due;
      continue;
    }
    latch(item);
    items[item].behind = true;
    shadows_due.push_back(item);
  }
}

// ---- placing
Query Scheduler::Impl::query_for(const CountedNeed& need, std::uint32_t item, std::int64_t now_ms, Reach reach) const {
  Query q;
  q.need = &need.need;
  const Class& c = classes[items[item].cls];
  const PolicyRules& rules = rules_of(c.example.policy, lasts(c.length_ms, c.stays));
  q.weights = need.head ? &rules.head : &rules.other;
  q.now_ms = now_ms;
  q.asker = item;
  q.tenant = shares_mix ? 0 : lanes[items[item].lane].tenant.value;
  q.precedence = precedence_of(item);
  if (reach != Reach::Back) q.precedences = &precedences;
  q.length_ms = c.fit_ms, q.stays = c.stays, q.failover = need.failover;
  if (reach != Reach::Never && backfill)
    q.done_ms = done_by(c.length_ms, now_ms), q.shadows = &shadows, q.beside = true;
  return q;
}

// One more machine for need `n`, though no free one can host it: a machine that was chosen for another need is handed
// over, which takes a free one instead, perhaps by the same way (an augmenting path). So a gang fails only when no
// assignment exists at all.
bool Scheduler::Impl::make_room(std::uint32_t item, std::uint32_t n, std::int64_t now_ms, Reach reach,
                                std::vector<Choice>& chosen) {
  const Class& c = classes[items[item].cls];
  struct Step {
    std::uint32_t from = kNone, choice = kNone;  // the need that is handed what this one gives up
  };
  std::vector<Step> reached(c.needs.size());
  std::vector<std::uint32_t> todo{n};
  reached[n].from = n;
  for (std::size_t i = 0; i < todo.size(); ++i) {
    Query query = query_for(c.needs[todo[i]], item, now_ms, reach);
    if (i > 0)
      if (const Found free = pool.best(query)) {
        pool.mark(free.node);
        chosen.push_back({todo[i], free.node});
        for (std::uint32_t need = todo[i]; need != n; need = reached[need].from)
          chosen[reached[need].choice].need = reached[need].from;
        return true;
      }
    query.excluded = &nobody;
    for (std::uint32_t at = 0; at < chosen.size(); ++at) {
      const std::uint32_t need = chosen[at].need;
      if (reached[need].from != kNone || !pool.hosts(query, chosen[at].node)) continue;
      reached[need] = {todo[i], at};
      todo.push_back(need);
    }
  }
  return false;
}

// Machines that it uses or failed on lately.
void Scheduler::Impl::mark_excluded(Class& c, WallTime now) {
  if (!c.alone) return;
  WallTime ends;
  for (const NodeId id : c.example.avoid)
    if (const std::uint32_t node = pool.index_of(id); node != kNone) pool.mark(node);
  for (const auto& [id, until] : c.example.backoff) {
    if (until <= now) continue;
    if (ends.ms == 0 || until < ends) ends = until;
    if (const std::uint32_t node = pool.index_of(id); node != kNone) pool.mark(node);
  }
  each_too_slow(c.example, now, [&](std::uint32_t node) { pool.mark(node); });
  const auto cls = static_cast<std::uint32_t>(&c - classes.data());
  if (c.backoff_ends.ms != 0) backoffs_due.erase({c.backoff_ends, cls});
  c.backoff_ends = ends;
  if (ends.ms != 0) backoffs_due.emplace(ends, cls);
}

// A machine for as much of it as can be. True: for all. Else what it lacks first, and how many of that.
bool Scheduler::Impl::choose(std::uint32_t item, WallTime now, Reach reach, std::vector<Choice>& chosen,
                             std::uint32_t& lacks, std::uint32_t& lacking) {
  // What grows within a guarantee goes first, so it takes no more than that in one turn.
  if (classes[items[item].cls].grows && rank_of(item) != Rank::None) {
    const bool complete = choose(item, now, reach, true, chosen, lacks, lacking);
    if (!chosen.empty()) return complete;
  }
  return choose(item, now, reach, false, chosen, lacks, lacking);
}

bool Scheduler::Impl::choose(std::uint32_t item, WallTime now, Reach reach, bool within, std::vector<Choice>& chosen,
                             std::uint32_t& lacks, std::uint32_t& lacking) {
  const Item& it = items[item];
  Class& c = classes[it.cls];
  chosen.clear();
  pool.begin();
  const Pending pending(pool);
  mark_excluded(c, now);
  bool complete = true;
  Held taken{};
  Placement placement(*this, item, now, reach);
  for (std::uint32_t n = 0; n < c.needs.size(); ++n) {
    const CountedNeed& need = c.needs[n];
    const Query query = query_for(need, item, now.ms, reach);
    std::uint32_t found = 0;
    for (; found < need.count; ++found) {
      if (within &&
          (need.need.load.whole_machine || usage.rank(lanes[it.lane].owner, need.held, taken, taken) == Rank::None))
        break;
      if (const Found best = placement.best(n, query)) {
        pool.mark(best.node);
        chosen.push_back({n, best.node});
      } else if (!make_room(item, n, now.ms, reach, chosen)) {
        break;
      }
      placement.chose(chosen.back().node);
      if (c.flows) pend(c, chosen);
      for (std::size_t k = 0; k < taken.size(); ++k) taken[k] += need.held[k];
    }
    if (found == need.count) continue;
    if (complete) lacks = n, lacking = need.count - found;
    complete = false;
    if (!c.grows && !it.latched) break;
  }
  // Machines that were handed over from one need to another may be too much for their site together.
  for (; c.flows && !chosen.empty() && pool.overdrawn(); complete = false) {
    chosen.pop_back();
    pend(c, chosen);
  }
  return complete;
}

void Scheduler::Impl::pend(const Class& c, const std::vector<Choice>& chosen) {
  pool.clear_pending();
  for (const Choice& choice : chosen) pool.pend(choice.node, c.needs[choice.need].need.flow);
}

// Everything of the gang on distinct machines, or whatever of grow finds one.
bool Scheduler::Impl::place(std::uint32_t item, WallTime now, Group& group, Proposal& proposal) {
  Item& it = items[item];
  const Class& c = classes[it.cls];
  std::vector<Choice> chosen;
  std::uint32_t lacks = 0, lacking = 1;
  it.behind = false;
  // What others keep that go after it stays theirs where it can do without.
  const bool complete = (!latches.empty() && choose(item, now, Reach::Back, chosen, lacks, lacking)) ||
                        choose(item, now, Reach::Theirs, chosen, lacks, lacking);
  if (!complete && it.latched) {  // it keeps what it found, and waits for the rest
    if (borrowed(item, chosen)) choose(item, now, Reach::Never, chosen, lacks, lacking);
    reserve(item, now, chosen);
    lacks = kNone, lacking = 1;
  }
  if (c.grows) lacks = kNone, lacking = 1;
  if (chosen.empty() || (!complete && !c.grows)) {
    sleep(it.cls, lacks, lacking);
    return false;
  }
  group = {c.grows ? ActionKind::Grow : ActionKind::Start, it.cluster, {}, now + kProposalLife};
  proposal.expires = group.expires;
  proposal.ends = {done_by(c.length_ms, now.ms)};
  std::stable_sort(chosen.begin(), chosen.end(),
                   [&](const Choice& a, const Choice& b) { return c.needs[a.need].head && !c.needs[b.need].head; });
  const auto& bundles = c.grows ? c.example.grow : c.example.gang;
  for (const Choice& choice : chosen) {
    const Bundle& bundle = bundles[c.needs[choice.need].bundle];
    const NodeView& view = pool.view(choice.node);
    const Taken taken = pool.what_it_takes(query_for(c.needs[choice.need], item, now.ms), choice.node);
    Place place{bundle.role, bundle.group, view.node, bundle.request.resources};
    place.node_version = view.version;
    if (bundle.request.whole_machine) {
      place.resources = view.free;
      place.resources.custom_milli = bundle.request.resources.custom_milli;
      place.resources.traffic = bundle.request.resources.traffic;
      place.resources.gpus = static_cast<std::int64_t>(view.devices.size());
    }
    place.share_milli = taken.share, place.mig_start = taken.start;
    if (taken.device >= 0) place.devices.push_back(view.devices[static_cast<std::size_t>(taken.device)].uuid);
    for (std::size_t i = 0; i < view.devices.size() && i < 64; ++i)
      if ((taken.devices >> i & 1U) != 0) place.devices.push_back(view.devices[i].uuid);
    group.places.push_back(std::move(place));
    proposal.taken.push_back(taken);
  }
  return true;
}

// The oldest of those that waited as long as ageing counts, whatever their tier: what they keep nobody takes any more,
// so that no better tier and nothing smaller puts them off for ever. Few at a time, as others wait for that.
void Scheduler::Impl::look_at_overdue(WallTime now) {
  if (aged.size == 0 && overdue.empty()) return;
  const bool gone = std::any_of(overdue.begin(), overdue.end(), [&](auto item) { return !items[item].overdue; });
  if (!gone && now.ms >= overdue_ms && now.ms - overdue_ms < kOverdueLookMs) return;
  overdue_ms = now.ms;
  std::erase_if(hopeless, [&](const auto& each) { return each.second <= now.ms; });
  for (const std::uint32_t item : overdue)
    if (backfill && items[item].overdue && now.ms - items[item].overdue_ms > kOverdueTurnMs &&
        (!items[item].latched || shadows[item] == 0))  // else its start is known
      hopeless.emplace(items[item].waiter.who, now.ms + kOverdueRestMs);
  std::vector<std::uint32_t> found;
  std::size_t looked = 0;
  for (const Entry* e = since_sets.first(aged); e != nullptr && found.size() < kOverdueMax && looked < kOverdueLookedAt;
       e = since_sets.not_below(aged, {e->rank, e->who + 1})) {
    if (hopeless.contains(e->who)) continue;
    if (items[e->request()].overdue || (++looked, could_be_had(e->request())))
      found.push_back(e->request());
    else
      hopeless.emplace(e->who, now.ms + kHopelessMs);
  }
  const std::vector<std::uint32_t> before = std::exchange(overdue, std::move(found));
  for (const std::uint32_t item : before) items[item].overdue = false;
  for (const std::uint32_t item : overdue) {
    items[item].overdue = true;
    if (items[item].overdue_ms == 0 || std::find(before.begin(), before.end(), item) == before.end())
      items[item].overdue_ms = now.ms;
    wake(items[item].cls);
  }
  heap_good = false;
  if (!latches.empty()) order_latches(now.ms);
}

// ---- the pass
// A tier that holds less than it is guaranteed now may have what is kept for better ones: those of it that sleep look
// again.
void Scheduler::Impl::look_at_turns(bool wakes) {
  std::array<bool, kTiers> sooner{};
  bool changed = false, some = false;
  for (std::uint8_t tier = 0; tier < kTiers; ++tier) {
    const std::uint32_t before = std::exchange(turns[tier], turn_of(tier));
    changed = changed || turns[tier] != before;
    sooner[tier] = wakes && turns[tier] < before, some = some || sooner[tier];
  }
  if (!changed) return;
  shadows_stale = true, turns_good = false;
  if (!latches.empty()) order_latches(heap_ms);
  for (std::size_t i = some ? sleepers.size() : 0; i-- > 0;) {
    const auto& lines_of = classes[sleepers[i].cls].lines;
    if (std::any_of(lines_of.begin(), lines_of.end(), [&](const auto& line) {
          return line.second.size() > 0 && sooner[std::min<std::size_t>(lanes[line.first].tier, kTiers - 1)];
        }))
      wake(sleepers[i].cls);
  }
}

// Of a line: who is overdue, else the first.
std::pair<Entry, std::int64_t> Scheduler::Impl::first_of(std::uint32_t cls, std::uint32_t lane, const Lines::Line& line,
                                                         std::int64_t now_ms) const {
  for (const std::uint32_t item : overdue) {
    const Item& it = items[item];
    if (it.overdue && !it.proposed && it.cls == cls && it.lane == lane)
      return {it.waiter.aged(), -it.waiter.aged().rank};
  }
  return lines.first(line, now_ms);
}

void Scheduler::Impl::push(std::uint32_t cls, std::uint32_t lane, std::int64_t now_ms) {
  if (!heap_good) return;
  Lines::Line& line = line_of(classes[cls], lane);
  if (line.size() == 0) return;
  const auto [entry, worth] = first_of(cls, lane, line, now_ms);
  // One is enough: a thousand that came since the last pass would each put the same first there again.
  if (std::exchange(line.shown, entry.who) == entry.who) return;
  auto& heap = lanes[lane].heap;
  heap.push_back({cls, lane, turn_of(items[entry.request()]), rank_of(classes[cls], lane), worth, entry.who});
  std::push_heap(heap.begin(), heap.end(), later);
  if (heap.front().who == entry.who) show(lane);
}

// A lane's best candidate stands among the heads, with what its owner's use takes off; what stood there for it holds
// no more. So a handicap that changes moves one entry for each lane, however many requests wait.
void Scheduler::Impl::show(std::uint32_t lane) {
  Lane& l = lanes[lane];
  ++l.head;
  if (l.heap.empty()) return;
  const Candidate& first = l.heap.front();
  heads.push_back({lane, l.head, first.turn, first.rank, first.worth - usage.handicap_ms(l.owner), first.who});
  std::push_heap(heads.begin(), heads.end(), goes_later);
}

void Scheduler::Impl::turn_anew(Lane& lane) {
  for (Candidate& each : lane.heap) {
    const Item& item = items[Entry{0, each.who}.request()];
    each.turn = item.waiter.who == each.who ? turn_of(item) : turn_of(lane.tier);  // else it is gone
  }
  std::make_heap(lane.heap.begin(), lane.heap.end(), later);
}

void Scheduler::Impl::show_all() {  // some handicaps fell
  std::erase_if(heads, [&](const Head& head) { return head.number != lanes[head.lane].head; });
  for (Head& head : heads) {
    Lane& l = lanes[head.lane];
    rank_anew(l);
    const Candidate& first = l.heap.front();
    head.turn = first.turn, head.rank = first.rank, head.who = first.who;
    head.worth = first.worth - usage.handicap_ms(l.owner);
  }
  std::make_heap(heads.begin(), heads.end(), goes_later);
}

bool Scheduler::Impl::next(Candidate& top) {
  while (!heads.empty()) {
    std::pop_heap(heads.begin(), heads.end(), goes_later);
    const Head head = heads.back();
    heads.pop_back();
    Lane& l = lanes[head.lane];
    if (head.number != l.head) continue;
    if (!turns_good) {  // something of a tier started meanwhile that was guaranteed more than it held
      turns_good = true;
      for (std::uint32_t lane = 0; lane < lanes.size(); ++lane)
        if (!lanes[lane].heap.empty()) turn_anew(lanes[lane]);
      show(head.lane);
      show_all();
      continue;
    }
    if (const Candidate& first = l.heap.front(); rank_of(classes[first.cls], head.lane) != first.rank) {
      rank_anew(l);  // something of its tenant's started meanwhile
      show(head.lane);
      continue;
    }
    if (l.heap.front().worth - usage.handicap_ms(l.owner) <
        head.worth) {  // something of its tenant's started meanwhile
      show(head.lane);
      continue;
    }
    std::pop_heap(l.heap.begin(), l.heap.end(), later);
    top = l.heap.back();
    l.heap.pop_back();
    show(head.lane);
    return true;
  }
  return false;
}

void Scheduler::Impl::rebuild_heap(std::int64_t now_ms) {
  for (Lane& lane : lanes) lane.heap.clear();
  heads.clear();
  heap_good = turns_good = true, heap_ms = now_ms;
  for (std::uint32_t cls = 0; cls < classes.size(); ++cls) {
    for (auto& [lane, line] : classes[cls].lines) {
      line.shown = 0;
      if (!classes[cls].awake || line.size() == 0) continue;
      const auto [entry, worth] = first_of(cls, lane, line, now_ms);
      line.shown = entry.who;
      lanes[lane].heap.push_back(
          {cls, lane, turn_of(items[entry.request()]), rank_of(classes[cls], lane), worth, entry.who});
    }
  }
  for (std::uint32_t lane = 0; lane < lanes.size(); ++lane) {
    std::make_heap(lanes[lane].heap.begin(), lanes[lane].heap.end(), later);
    show(lane);
  }
}

void Scheduler::Impl::wake_by_machines(std::int64_t now_ms) {
  std::vector<std::uint32_t> improved;
  const bool few = pool.take_improved(improved);
  if (improved.empty()) return;
  shadows_stale = true;
  Amounts most;  // of any of them, so that most classes need no closer look
  std::int32_t gpus = 0;
  std::vector<std::uint32_t> yielding;  // where work runs that may have to leave: more may be had than is free
  const bool some_yield =
      !frozen && std::any_of(interruptible.begin(), interruptible.end(), [](const auto& of) { return !of.empty(); });
  for (const std::uint32_t node : improved) {
    const Machine& m = pool.machine(node);
    most = {std::max(most.cpu, m.free.cpu), std::max(most.memory, m.free.memory), std::max(most.disk, m.free.disk)};
    gpus = std::max(gpus, static_cast<std::int32_t>(std::popcount(m.free_devices)));
    if (some_yield && yields(node)) yielding.push_back(node);
    if (m.keeper != kNone) wake(items[m.keeper].cls);  // it may have been cleared for it
  }
  const auto hopeless = [&](const CountedNeed& n) { return n.need.load.gpus > gpus || !n.need.amounts.within(most); };
  for (std::size_t i = sleepers.size(); i-- > 0;) {
    const std::uint32_t cls = sleepers[i].cls;
    if (!few) {
      wake(cls);
      continue;
    }
    if (yielding.empty() && (sleepers[i].gpus > gpus || !sleepers[i].least.within(most))) continue;
    Class& c = classes[cls];
    // What is kept helps those who go before its keeper, and those that are gone before the keeper can start.
    const std::int64_t done = backfill ? done_by(c.length_ms, now_ms) : 0;
    // Needs before the lacking one too: another machine for one of them may set one free for it.
    if (c.needs.empty()) continue;  // it asks for nothing
    if (!yielding.empty() && gains_by(c, yielding, now_ms)) {
      wake(cls);
      continue;
    }
    const auto last = c.lacks == kNone ? c.needs.end() : c.needs.begin() + c.lacks + 1;
    if (std::all_of(c.needs.begin(), last, hopeless)) continue;
    Query query;
    query.weights = &weights, query.now_ms = now_ms, query.length_ms = c.fit_ms, query.stays = c.stays,
    query.excluded = &nobody, query.beside = backfill;
    const auto helps = [&](const CountedNeed& need, std::uint32_t node) {
      const std::uint32_t keeper = pool.machine(node).keeper;
      const bool open = keeper != kNone && ((done != 0 && done <= shadows[keeper]) || not_kept_from(cls, keeper));
      query.need = &need.need, query.asker = open ? keeper : kNone, query.failover = need.failover;
      query.any_flow = true;  // whose the uplink is kept for is seen when it looks
      return pool.hosts(query, node);
    };
    for (const std::uint32_t node : improved) {
      const bool hit = std::any_of(c.needs.begin(), last, [&](const auto& n) { return helps(n, node); });
      if (!hit || --c.lacking > 0) continue;
      wake(cls);
      break;
    }
  }
}

std::vector<Group> Scheduler::Impl::plan(const Budget& budget, WallTime now) {
  pool.advance(now.ms);
  usage.turn(now);
  expire(now);
  ripen(now);
  age(now.ms);
  look_at_turns();
  if (pool.take_recompile()) reclassify();
  pool.hold_back();
  look_at_overdue(now);
  wake_by_machines(now.ms);
  if (!latches.empty()) order_latches(now.ms), refresh_shadows(now);
  std::vector<Group> out;
  if (awake == 0) return out;
  pool.learn_if_due();
  const bool fallen = usage.take_fallen();
  if (!heap_good || now.ms - heap_ms > kHeapLifeMs || now.ms < heap_ms)
    rebuild_heap(now.ms);
  else if (fallen)
    show_all();
  std::uint32_t ways_looked_for = 0;
  Candidate top;
  for (std::uint32_t tries = 0; out.size() < budget.groups_max && tries < kTriesPerPlan && next(top); ++tries) {
    if (top.cls >= classes.size()) continue;
    Class& c = classes[top.cls];
    const auto line = std::lower_bound(c.lines.begin(), c.lines.end(), top.lane,
                                       [](const auto& entry, std::uint32_t lane) { return entry.first < lane; });
    if (line == c.lines.end() || line->first != top.lane) continue;
    if (line->second.shown == top.who) line->second.shown = 0;
    if (!c.awake || line->second.size() == 0) continue;
    const auto [entry, worth] = first_of(top.cls, top.lane, line->second, heap_ms);
    if (entry.who != top.who) {  // others came or went meanwhile
      push(top.cls, top.lane, heap_ms);
      continue;
    }
    const std::uint32_t item = entry.request();
    Group group;
    Proposal proposal;
    if (place(item, now, group, proposal)) {
      unlatch(item);
      hold(item, std::move(proposal));
      if (pool.holds_back()) pool.hold_back();  // a failover may have used what was kept back
      out.push_back(std::move(group));
      push(top.cls, top.lane, heap_ms);
      continue;
    }
    if (c.grows) continue;
    if (network_stands_against(item, now)) {  // it keeps nothing from others: that would not help
      unlatch(item);
      if (std::exchange(items[item].overdue, false)) hopeless.emplace(items[item].waiter.who, now.ms + kHopelessMs);
      continue;
    }
    const std::int64_t due = items[item].waiter.since_ms + kLatchMs;
    std::int64_t again = due > now.ms ? due : 0;
    if (backfill && items[item].latched) protect(top.cls, now, again);
    bool makes_way = false;
    if (!frozen) {
      std::int64_t look = 0;
      if (ways_looked_for++ < kWaysPerPlan)
        makes_way = make_way(item, now, out, look);
      else
        look = now.ms + 1'000;
      if (look != 0 && (again == 0 || look < again)) again = look;
    }
    set_latch_due(top.cls, again);
    if (items[item].latched) {
      // It may have kept machines to have others cleared, which came to nothing.
      if (!makes_way && due > now.ms)
        unlatch(item);
      else
        refresh_shadows(now, top.cls), claim(top.cls);
      continue;
    }
    if (due > now.ms || !may_latch(item)) continue;
    latch(item);
    wake(top.cls);
  }
  pool.settle();
  return out;
}

}  // namespace muster::scheduler
