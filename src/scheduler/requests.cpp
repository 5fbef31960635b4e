// Requests find their class and lane; classes sleep and wake.
#include <algorithm>

#include "scheduler/impl.h"
#include "scheduler/policy.h"

namespace muster::scheduler {
namespace {

std::uint64_t hash_of(const std::map<std::string, std::string>& map) {
  std::uint64_t h = map.size();
  for (const auto& [key, value] : map) h = hash_with(hash_with(h, hash_text(key)), hash_text(value));
  return h;
}
std::uint64_t hash_of(const NodeRequest& r) {
  std::uint64_t h = hash_with(static_cast<std::uint64_t>(r.resources.cpu_milli),
                              static_cast<std::uint64_t>(r.resources.memory_bytes));
  h = hash_with(h, static_cast<std::uint64_t>(r.resources.gpus) << 1 | (r.whole_machine ? 1U : 0U));
  h = hash_with(h, static_cast<std::uint64_t>(r.resources.disk_bytes));
  if (!r.gpu_model.empty()) h = hash_with(h, hash_text(r.gpu_model));
  if (!r.constraints.empty()) h = hash_with(h, hash_of(r.constraints));
  for (const NodeId id : r.pinned) h = hash_with(h, id.value);
  if (r.gpu_share_milli != 0 || r.gpu_memory_bytes != 0)
    h = hash_with(hash_with(h, static_cast<std::uint64_t>(r.gpu_memory_bytes)),
                  static_cast<std::uint64_t>(r.gpu_share_milli));
  if (const Traffic& t = r.resources.traffic; t.any())
    h = hash_with(
        hash_with(hash_with(h, static_cast<std::uint64_t>(t.up_kbps)), static_cast<std::uint64_t>(t.down_kbps)),
        static_cast<std::uint64_t>(t.volume_bytes));
  for (const GpuChoice& choice : r.gpu_any)
    h = hash_with(hash_with(h, hash_text(choice.model)), static_cast<std::uint64_t>(choice.speed_permille));
  return h;
}
bool same(const NodeRequest& a, const NodeRequest& b) {  // Ray's own labels and custom resources place nothing
  return a.resources.cpu_milli == b.resources.cpu_milli && a.resources.memory_bytes == b.resources.memory_bytes &&
         a.resources.gpus == b.resources.gpus && a.resources.disk_bytes == b.resources.disk_bytes &&
         a.resources.traffic == b.resources.traffic && a.whole_machine == b.whole_machine &&
         a.gpu_model == b.gpu_model && a.constraints == b.constraints && a.pinned == b.pinned &&
         a.gpu_memory_bytes == b.gpu_memory_bytes && a.gpu_share_milli == b.gpu_share_milli && a.gpu_any == b.gpu_any;
}
bool same(const std::vector<Bundle>& a, const std::vector<Bundle>& b) {
  return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin(), [](const Bundle& x, const Bundle& y) {
           return x.role == y.role && x.count == y.count && x.group == y.group && same(x.request, y.request);
         });
}
// Requests with exclusions of their own, and those that grow, are a class of their own.
bool alone(const Request& r) {
  return r.gang.empty() || !r.backoff.empty() || !r.avoid.empty();
}
bool by_tenant(const Request& r) {  // its own machines are others', or cost it nothing
  return r.pool == "own" || r.max_price > 0 || !r.currency.empty();
}
std::uint64_t hash_of(const Request& r) {
  if (alone(r)) return hash_with(0x0a1e, r.cluster.value);
  std::uint64_t h = hash_with(hash_text(r.pool), hash_text(r.image));
  h = hash_with(h, hash_text(r.arch) ^ (static_cast<std::uint64_t>(r.runtime) << 1 | (r.egress ? 1U : 0U)));
  if (by_tenant(r)) h = hash_with(h, r.tenant.value);
  h = hash_with(h, static_cast<std::uint64_t>(length_step(r.longest.count())));
  h = hash_with(h, static_cast<std::uint64_t>(r.policy) << 8 | static_cast<std::uint64_t>(r.min_trust));
  if (r.max_price != 0 || !r.currency.empty())
    h = hash_with(hash_with(h, static_cast<std::uint64_t>(r.max_price)), hash_text(r.currency));
  if (r.may_end_early) h = hash_with(h, 1);
  if (r.pair_kbps > 0) h = hash_with(h, static_cast<std::uint64_t>(r.pair_kbps));
  for (const Bundle& b : r.gang)
    h = hash_with(hash_with(h, hash_of(b.request)), std::uint64_t{b.count} << 8 | static_cast<std::uint64_t>(b.role));
  return h;
}
bool same_class(const Request& a, const Request& b, bool tenant_matters) {
  if (alone(a) || alone(b)) return false;
  return a.arch == b.arch && a.runtime == b.runtime && a.egress == b.egress && a.running == b.running &&
         a.pool == b.pool && a.image == b.image && a.policy == b.policy && a.min_trust == b.min_trust &&
         (!(tenant_matters || by_tenant(a)) || a.tenant == b.tenant) && a.max_price == b.max_price &&
         a.currency == b.currency && a.may_end_early == b.may_end_early && a.pair_kbps == b.pair_kbps &&
         length_step(a.longest.count()) == length_step(b.longest.count()) && same(a.gang, b.gang);
}

constexpr std::int64_t kTimeMax = std::int64_t{1} << 46;  // ms; far beyond any date

}  // namespace

std::uint32_t Scheduler::Impl::find(ClusterId cluster) const {
  return item_index.find(mix(cluster.value), [&](std::uint32_t i) { return items[i].cluster == cluster; });
}

void Scheduler::Impl::compile(Class& c) {
  const auto& bundles = c.grows ? c.example.grow : c.example.gang;
  for (std::uint32_t i = 0; i < bundles.size(); ++i) {
    if (bundles[i].count == 0) continue;
    c.needs.push_back({pool.compile(c.example, bundles[i]), bundles[i].count, i, bundles[i].role == SlotRole::Head});
    if (c.grows && bundles[i].failover) c.needs.back().failover = std::min<std::uint8_t>(c.example.tier, kNotHeld - 1);
    const Need& need = c.needs.back().need;
    c.flows = c.flows || need.flow.any();
    const std::int64_t gpu = need.load.share > 0 ? need.load.share : std::int64_t{need.load.gpus} * kWholeGpu;
    Held& one = c.needs.back().held = {need.amounts.cpu, need.amounts.memory, gpu};
    for (std::size_t k = 0; k < one.size(); ++k) c.held[k] += one[k] * bundles[i].count;
    if (c.grows && !need.load.whole_machine) c.parts.push_back(one);
  }
  if (!c.grows &&
      std::none_of(c.needs.begin(), c.needs.end(), [](const CountedNeed& n) { return n.need.load.whole_machine; }))
    c.parts.push_back(c.held);
  // The most demanding first, so that a small one does not take the only large machine.
  std::stable_sort(c.needs.begin(), c.needs.end(), [](const CountedNeed& a, const CountedNeed& b) {
    const auto weight = [](const CountedNeed& n) {
      return std::tuple(n.need.pinned.empty() ? 0 : 1, n.need.load.whole_machine ? 1 : 0, n.need.load.gpus,
                        n.need.amounts.cpu, n.need.amounts.memory);
    };
    return weight(a) > weight(b);
  });
}

std::uint32_t Scheduler::Impl::class_for(Request&& request) {
  const std::uint64_t hash = hash_of(request);
  const bool tenants = pool.matcher().offers_restrict();
  std::uint32_t id =
      class_index.find(hash, [&](std::uint32_t i) { return same_class(classes[i].example, request, tenants); });
  if (id == kNone) {
    if (free_classes.empty()) {
      id = static_cast<std::uint32_t>(classes.size());
      classes.emplace_back();
    } else {
      id = free_classes.back();
      free_classes.pop_back();
    }
    Class& c = classes[id];
    c = {};
    c.grows = request.gang.empty();
    c.alone = alone(request);
    c.example = std::move(request);
    c.example.longest = Millis(length_step(c.example.longest.count()));
    if (c.example.longest.count() > 0) c.length_ms = c.example.longest.count() + kStartAllowance.count();
    // What takes what it gets wants half an hour of it, so that it has begun before it ends.
    c.fit_ms = c.example.may_end_early ? kStartAllowance.count() : c.length_ms;
    c.stays = c.length_ms == 0 && !c.example.may_end_early;
    c.hash = hash;
    compile(c);
    class_index.insert(hash, id);
  }
  ++classes[id].members;
  return id;
}

void Scheduler::Impl::leave_class(std::uint32_t cls) {
  Class& c = classes[cls];
  if (--c.members > 0) return;
  if (c.awake) --awake;
  rouse(c);
  if (c.backoff_ends.ms != 0) backoffs_due.erase({c.backoff_ends, cls});
  set_latch_due(cls, 0);
  class_index.erase(c.hash, [&](std::uint32_t i) { return i == cls; });
  for (const CountedNeed& n : c.needs) pool.drop(n.need);
  c = {};
  free_classes.push_back(cls);
}

std::uint32_t Scheduler::Impl::lane_for(const Request& r) {
  const auto [it, fresh] =
      lane_index.try_emplace({r.tier, r.tenant, r.project}, static_cast<std::uint32_t>(lanes.size()));
  if (fresh) lanes.push_back({r.tier, r.tenant, r.project, {}, usage.owner(r.tenant, r.project), {}, 0});
  return it->second;
}

Lines::Line& Scheduler::Impl::line_of(Class& c, std::uint32_t lane) {
  const auto it = std::lower_bound(c.lines.begin(), c.lines.end(), lane,
                                   [](const auto& entry, std::uint32_t wanted) { return entry.first < wanted; });
  if (it != c.lines.end() && it->first == lane) return it->second;
  return c.lines.insert(it, {lane, {}})->second;
}

void Scheduler::Impl::rouse(Class& c) {  // out of the sleepers
  if (c.sleeper == kNone) return;
  const Sleeper last = sleepers.back();
  sleepers[c.sleeper] = last;
  classes[last.cls].sleeper = c.sleeper;
  sleepers.pop_back();
  c.sleeper = kNone;
}

void Scheduler::Impl::wake(std::uint32_t cls) {
  Class& c = classes[cls];
  if (c.awake) return;
  c.awake = true;
  ++awake;
  rouse(c);
  if (heap_good)
    for (const auto& [lane, line] : c.lines) push(cls, lane, heap_ms);
}

void Scheduler::Impl::sleep(std::uint32_t cls, std::uint32_t lacks, std::uint32_t lacking) {
  Class& c = classes[cls];
  if (c.awake) --awake;
  c.awake = false;
  c.lacks = lacks, c.lacking = lacking;
  if (c.sleeper == kNone) {
    c.sleeper = static_cast<std::uint32_t>(sleepers.size());
    sleepers.push_back({cls});
  }
  Sleeper& out = sleepers[c.sleeper];
  for (std::size_t n = 0; n < c.needs.size() && (lacks == kNone || n <= lacks); ++n) {
    const Need& need = c.needs[n].need;
    const auto least = [&](auto& so_far, auto wanted) { so_far = n == 0 ? wanted : std::min(so_far, wanted); };
    least(out.gpus, static_cast<std::int32_t>(need.load.gpus));
    least(out.least.cpu, need.amounts.cpu), least(out.least.memory, need.amounts.memory);
    least(out.least.disk, need.amounts.disk);
  }
}

// ---- guarantees
Rank Scheduler::Impl::rank_of(const Class& c, std::uint32_t lane, const Held& tenant_too,
                              const Held& project_too) const {
  const Usage::Owner owner = lanes[lane].owner;
  Rank best = Rank::None;
  if (!usage.guaranteed(owner)) return best;
  for (const Held& part : c.parts) best = std::min(best, usage.rank(owner, part, tenant_too, project_too));
  return best;
}

void Scheduler::Impl::rank_anew(Lane& lane) {
  if (!usage.guaranteed(lane.owner)) return;
  for (Candidate& each : lane.heap) each.rank = rank_of(classes[each.cls], each.lane);
  std::make_heap(lane.heap.begin(), lane.heap.end(), later);
}

// It holds less: what was beyond its guarantee may be within it, and have room made.
void Scheduler::Impl::wake_guaranteed(OrgId tenant) {
  for (std::size_t i = sleepers.size(); i-- > 0;) {
    const Class& c = classes[sleepers[i].cls];
    if (!c.grows && std::any_of(c.lines.begin(), c.lines.end(), [&](const auto& line) {
          return line.second.size() > 0 && lanes[line.first].tenant == tenant && rank_of(c, line.first) != Rank::None;
        }))
      wake(sleepers[i].cls);
  }
}

void Scheduler::Impl::apply(const ShareChanged& c) {
  usage.set(c);
  for (std::size_t i = sleepers.size(); i-- > 0;)
    if (!classes[sleepers[i].cls].grows) wake(sleepers[i].cls);
}

void Scheduler::Impl::apply(const TierSharesChanged& c) {
  usage.set(c);
  look_at_turns();
}

void Scheduler::Impl::apply(const PathsChanged& c) {
  bool news = false;
  for (const PathSeen& path : c.paths) {
    const std::uint32_t from = pool.index_of(path.from), to = pool.index_of(path.to);
    if (from != kNone && to != kNone) news = network.note(from, to, path) || news;
  }
  if (!news) return;
  for (std::size_t i = sleepers.size(); i-- > 0;)
    if (domains_of(classes[sleepers[i].cls].example) == Domains::Together) wake(sleepers[i].cls);
}

void Scheduler::Impl::apply(const ReliabilityChanged& c) {
  for (const auto& [node, reliability] : c.nodes) pool.set_reliability(node, reliability);
}

// Places choose among machines and keep nobody waiting, so nobody is woken.
void Scheduler::Impl::apply(const CoordinatesChanged& c) {
  for (const auto& [id, at] : c.places) {
    const std::uint32_t node = pool.index_of(id);
    if (node == kNone) continue;
    if (places.size() <= node) places.resize(node + 1);
    places[node] = at;
  }
}

void Scheduler::Impl::apply(const HeadroomChanged& c) {
  pool.set_headroom(c.rows);
  pool.hold_back();
  shadows_stale = true;
}

void Scheduler::Impl::set_latch_due(std::uint32_t cls, std::int64_t due) {
  Class& c = classes[cls];
  if (c.latch_due != 0) latches_due.erase({c.latch_due, cls});
  c.latch_due = due;
  if (due != 0) latches_due.emplace(due, cls);
}

template <class Needs, class Each>
void Scheduler::Impl::learn_from(ClusterId cluster, const Needs& needs, const Each& each) {
  std::uint64_t hash = 1;
  for (const auto& need : needs) {
    const auto& [request, count] = each(need);
    hash = hash_with(hash_with(hash, hash_of(request)), count);
  }
  const std::uint32_t known =
      learned_index.find(mix(cluster.value), [&](std::uint32_t i) { return learned[i].first == cluster; });
  if (known != kNone && learned[known].second == hash) return;
  if (known != kNone) {
    learned[known].second = hash;
  } else {
    std::uint32_t i = static_cast<std::uint32_t>(learned.size());
    if (free_learned.empty())
      learned.emplace_back(cluster, hash);
    else
      i = free_learned.back(), free_learned.pop_back(), learned[i] = {cluster, hash};
    learned_index.insert(mix(cluster.value), i);
  }
  for (const auto& need : needs) {  // who takes whole machines, whatever they have, says nothing of what is scarce
    const auto& [request, count] = each(need);
    if (request.whole_machine || count == 0) continue;
    pool.observe(pool.task_of(request), count);
  }
}

void Scheduler::Impl::apply(const DemandChanged& c) {
  if (c.needs.empty()) {
    learned_index.erase(mix(c.cluster.value), [&](std::uint32_t i) {
      if (learned[i].first != c.cluster) return false;
      free_learned.push_back(i);
      return true;
    });
    return;
  }
  learn_from(c.cluster, c.needs, [](const auto& need) { return std::pair<const NodeRequest&, std::uint32_t>(need); });
}

void Scheduler::Impl::drop_request(ClusterId cluster) {
  drop_proposal(cluster);
  const std::uint32_t item = find(cluster);
  if (item == kNone) return;
  Item& it = items[item];
  unlatch(item);
  Class& c = classes[it.cls];
  Lines::Line& line = line_of(c, it.lane);
  if (!it.proposed) lines.erase(line, it.waiter, it.aged);
  if (line.shown == it.waiter.who) line.shown = 0;  // the same may come again with another worth
  lines.erase(lanes[it.lane].line, it.waiter, it.aged);
  if (!it.aged)
    since_sets.erase(ageing, {it.waiter.since_ms, it.waiter.who});
  else if (!classes[it.cls].grows)
    since_sets.erase(aged, {it.waiter.since_ms, it.waiter.who});
  item_index.erase(mix(cluster.value), [&](std::uint32_t i) { return i == item; });
  leave_class(it.cls);
  it = {};
  free_items.push_back(item);
  --waiting;
}

// One in a second is remembered, for all that came in that second. Where so many come that an hour of them is too much,
// fewer are, so that they still tell of more than some minutes.
void Scheduler::Impl::note_arrival(const Request& r) {
  constexpr std::size_t kRemembered = 128;
  constexpr Millis kRememberedSpan{3'600'000};
  const WallTime since{std::clamp<std::int64_t>(r.since.ms, -kTimeMax, kTimeMax)};
  const Millis span = arrivals.empty() ? Millis(0) : arrivals.back().request.since - arrivals.front().request.since;
  const Millis grain = std::clamp<Millis>(span / kRemembered, Millis(1'000), kRememberedSpan / kRemembered);
  if (!arrivals.empty() && since < arrivals.back().request.since + grain) {
    if (arrivals.back().times < 1'000'000) ++arrivals.back().times;
    return;
  }
  arrivals.push_back({r, 1});
  arrivals.back().request.since = since;
  arrivals.back().request.backoff.clear();
  if (arrivals.size() <= kRemembered) return;
  if (span >= kRememberedSpan) {
    arrivals.pop_front();
    return;
  }
  for (std::size_t i = 0; 2 * i < arrivals.size(); ++i) {
    if (i > 0) arrivals[i] = std::move(arrivals[2 * i]);
    if (2 * i + 1 < arrivals.size()) arrivals[i].times += arrivals[2 * i + 1].times;
  }
  arrivals.resize((arrivals.size() + 1) / 2);
}

void Scheduler::Impl::apply(const ArrivalsChanged& c) {
  arrivals.assign(c.arrivals.begin(), c.arrivals.end());
}

void Scheduler::Impl::apply(const RequestChanged& change) {
  apply(RequestChanged(change));
}
void Scheduler::Impl::apply(RequestChanged&& change) {
  Request& r = change.request;
  const ClusterId cluster = r.cluster;
  if (!playing && !r.gang.empty() && !r.running && find(cluster) == kNone) note_arrival(r);
  drop_request(cluster);
  if (!r.gang.empty() && !r.running)
    learn_from(cluster, r.gang,
               [](const Bundle& b) { return std::pair<const NodeRequest&, std::uint32_t>(b.request, b.count); });
  std::uint32_t item = 0;
  if (free_items.empty()) {
    item = static_cast<std::uint32_t>(items.size());
    items.emplace_back();
  } else {
    item = free_items.back();
    free_items.pop_back();
  }
  Item& it = items[item];
  it.waiter = {std::clamp<std::int64_t>(r.since.ms, -kTimeMax, kTimeMax), std::clamp(r.priority, -1'000, 1'000),
               cluster.value << kRequestBits | item};
  const std::uint32_t lane = lane_for(r), cls = class_for(std::move(r));
  it.cluster = cluster, it.cls = cls, it.lane = lane, it.live = true;
  lines.insert(lanes[lane].line, it.waiter, false);
  lines.insert(line_of(classes[cls], lane), it.waiter, false);
  since_sets.insert(ageing, {it.waiter.since_ms, it.waiter.who});
  item_index.insert(mix(cluster.value), item);
  ++waiting;
  if (classes[cls].awake)
    push(cls, lane, heap_ms);
  else
    wake(cls);
}

void Scheduler::Impl::apply(const RequestGone& change) {
  drop_request(change.cluster);
}

// Tenants and images matter from now on: every request finds its class anew.
void Scheduler::Impl::reclassify() {
  std::vector<Request> all;
  for (const Item& it : items) {
    if (!it.live) continue;
    Request r = classes[it.cls].example;
    const Lane& lane = lanes[it.lane];
    r.cluster = it.cluster, r.tier = lane.tier, r.tenant = lane.tenant, r.project = lane.project;
    r.priority = it.waiter.priority, r.since = {it.waiter.since_ms};
    all.push_back(std::move(r));
  }
  for (Request& r : all) apply(RequestChanged{std::move(r)});
  for (auto& [cluster, shape] : shapes) {
    for (const Need& need : shape.needs) pool.drop(need);
    compile(shape);
  }
}

void Scheduler::Impl::age(std::int64_t now_ms) {
  while (const Entry* first = since_sets.first(ageing)) {
    if (first->rank + kAgedMs > now_ms) return;
    const Entry e = *first;
    Item& it = items[e.request()];
    since_sets.erase(ageing, e);
    lines.erase(lanes[it.lane].line, it.waiter, false);
    lines.insert(lanes[it.lane].line, it.waiter, true);
    if (!it.proposed) {
      Lines::Line& line = line_of(classes[it.cls], it.lane);
      lines.erase(line, it.waiter, false);
      lines.insert(line, it.waiter, true);
    }
    it.aged = true;
    if (!classes[it.cls].grows) since_sets.insert(aged, e);
  }
}

}  // namespace muster::scheduler
