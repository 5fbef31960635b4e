#include "scheduler/sketch.h"

#include <algorithm>
#include <bit>
#include <numeric>

#include "scheduler/order.h"

namespace muster::scheduler {
namespace {

constexpr std::size_t kComesKnown = 8;
constexpr Millis kComesSpan{600'000};
constexpr std::size_t kRoomsSketched = 64;          // machines where work may leave, for one decision
constexpr std::size_t kComesLeast = 1'024;          // of a play, and four times as many as wait
constexpr std::uint32_t kEventsSketched = 200'000;  // of a play

std::uint32_t gpus_in(std::uint64_t devices) {
  return static_cast<std::uint32_t>(std::popcount(devices));
}

}  // namespace

// ---- what comes
Stream::Stream(const std::deque<Arrival>& came, WallTime now) {
  if (came.size() < kComesKnown) return;
  for (const Arrival& arrival : came) coming += arrival.times;
  const Millis span = now - came.front().request.since;
  if (span < kComesSpan || coming == 0) return;
  gap_ms = std::max<std::int64_t>(1, span.count() / static_cast<std::int64_t>(coming));
}
std::int64_t Stream::gap(std::uint64_t seed, std::uint64_t n) const {
  return static_cast<std::int64_t>(hash_with(seed + 1, n) >> 8) % (2 * gap_ms) + 1;
}
std::size_t Stream::kind(std::uint64_t seed, std::uint64_t n, const std::deque<Arrival>& came) const {
  std::uint64_t at = hash_with(seed + 2, n) % coming;
  std::size_t i = 0;
  for (; i + 1 < came.size() && at >= came[i].times; ++i) at -= came[i].times;
  return i;
}

// ---- what all plays share
Sketch::Sketch(Scheduler::Impl& fork, WallTime now, const std::map<ClusterId, std::size_t>& rows)
    : fork_(fork), began_(now), stream_(fork.arrivals, now) {
  now_ms_ = now.ms;
  add_leases();
  start_what_can(rows);
  add_asks(rows);
  add_machines();
}

std::uint32_t Sketch::curve_of(OrgId tenant) {
  const auto [at, fresh] = curve_of_.try_emplace(tenant, static_cast<std::uint32_t>(curves_.size()));
  if (fresh) curves_.push_back(fork_.run_times.curve(tenant));
  return at->second;
}

void Sketch::add_hold(std::uint32_t run, const Hold& hold) {
  auto& holds = now_state_.holds;
  const auto id = static_cast<std::uint32_t>(holds.size());
  holds.push_back(hold);
  Hold& h = holds.back();
  h.run = run, h.next = std::exchange(now_state_.runs[run].first, id);
  Spot& spot = now_state_.spots[h.node];
  h.after = std::exchange(spot.first, id);
  if (h.after != kNone) holds[h.after].before = id;
  ++spot.leases;
  if (!h.may_leave) return;
  young_[std::min<std::size_t>(h.tier, kTiers - 1)].push_back(id);
  hopeless_ = {};
}

void Sketch::add_leases() {
  now_state_.spots.resize(fork_.pool.limit());
  std::vector<std::pair<std::int64_t, const LeaseView*>> order;  // the dearest first, of those that may have to leave
  for (const auto& [id, lease] : fork_.leases) order.emplace_back(Scheduler::Impl::cost_of(lease, began_.ms), &lease);
  std::stable_sort(order.begin(), order.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
  for (const auto& [cost, lease] : order) {
    const std::int64_t since = lease->since.ms;
    const std::uint32_t node = fork_.pool.index_of(lease->node);
    if (node == kNone) continue;
    const auto [at, fresh] = run_of_.try_emplace(lease->cluster, static_cast<std::uint32_t>(now_state_.runs.size()));
    if (fresh) {
      Run run;
      run.curve = curve_of(lease->tenant), run.cluster = lease->cluster.value, run.since_ms = since;
      if (const auto end = fork_.ends.find(lease->cluster); end != fork_.ends.end()) run.promised_ms = end->second.ms;
      now_state_.runs.push_back(run);
    }
    now_state_.runs[at->second].since_ms = std::min(now_state_.runs[at->second].since_ms, since);
    Hold hold;
    hold.node = node, hold.since_ms = since, hold.tier = lease->tier, hold.leaving = lease->leaving;
    hold.amounts = free_amounts(lease->resources);
    hold.devices = device_bits(fork_.pool.view(node), lease->devices);
    hold.may_leave = Scheduler::Impl::preemptible(*lease, 0);
    add_hold(at->second, hold);
  }
}

// It came true: what it took is held from now on.
void Sketch::commit(ClusterId cluster, const std::vector<Place>& places) {
  const std::uint32_t item = fork_.find(cluster);
  const auto [at, fresh] = run_of_.try_emplace(cluster, static_cast<std::uint32_t>(now_state_.runs.size()));
  std::uint8_t tier = 1;
  if (item != kNone) {
    const auto& lane = fork_.lanes[fork_.items[item].lane];
    tier = lane.tier;
    if (fresh) {
      Run run;
      run.curve = curve_of(lane.tenant), run.cluster = cluster.value, run.since_ms = began_.ms;
      const Millis longest = fork_.classes[fork_.items[item].cls].example.longest;
      if (longest.count() > 0) run.promised_ms = (began_ + longest).ms;
      now_state_.runs.push_back(run);
    }
  } else if (fresh) {
    now_state_.runs.push_back({kNone, curve_of({}), cluster.value, began_.ms, 0, false});
  }
  const std::vector<Taken> taken = fork_.withdraw(cluster);
  fork_.drop_request(cluster);
  for (std::size_t i = 0; i < taken.size(); ++i) {
    Hold hold;
    hold.node = taken[i].node, hold.since_ms = began_.ms, hold.tier = tier;
    hold.amounts = taken[i].amounts, hold.devices = taken[i].devices;
    hold.may_leave = tier >= kPreemptibleTier && i < places.size() && places[i].role != SlotRole::Head;
    add_hold(at->second, hold);
  }
}

void Sketch::start_what_can(const std::map<ClusterId, std::size_t>& rows) {
  const auto started = [&](ClusterId cluster) {
    if (const auto row = rows.find(cluster); row != rows.end())
      started_.push_back(static_cast<std::uint32_t>(row->second));
  };
  for (const auto& [cluster, proposal] : std::map(fork_.proposals)) {
    if (fork_.find(cluster) == kNone) {  // places for what is moved
      fork_.drop_proposal(cluster);
      continue;
    }
    started(cluster);
    commit(cluster, {});
  }
  makes_room_ = !std::exchange(fork_.frozen, true);  // below
  for (bool more = true; more;) {
    const std::vector<Group> groups = fork_.plan({.groups_max = 256}, began_);
    more = !groups.empty();
    for (const Group& group : groups) {
      if (group.kind == ActionKind::Start) started(group.cluster);
      commit(group.cluster, group.places);
    }
  }
}

std::uint64_t Sketch::kind_bit(const Need& need) {
  const auto next = static_cast<std::uint32_t>(bit_of_.size() % 64);
  return std::uint64_t{1} << bit_of_.try_emplace(need.constraint, next).first->second;
}

Sketch::Ask Sketch::ask_for(std::uint32_t cls, std::uint32_t lane) {
  const auto& c = fork_.classes[cls];
  Ask ask;
  ask.first = static_cast<std::uint32_t>(parts_.size()), ask.cls = cls, ask.lane = lane;
  ask.tier = fork_.lanes[lane].tier, ask.curve = curve_of(fork_.lanes[lane].tenant);
  ask.bound = {~std::uint32_t{0}, ~std::uint32_t{0}, ~std::uint32_t{0}, 0};
  if (c.alone) ask.excluded = fork_.excluded(c.example, began_);
  const auto& bundles = c.grows ? c.example.grow : c.example.gang;
  for (const auto& counted : c.needs) {
    Part part;
    part.need = &counted.need, part.count = counted.count, part.failover = counted.failover;
    part.role = bundles[counted.bundle].role;
    if (counted.need.load.share > 0) {
      wholes_.push_back(counted.need);
      wholes_.back().load.share = 0, wholes_.back().load.gpus = 1;
      part.need = &wholes_.back();
    }
    const Need& need = *part.need;
    part.bound = {need.amounts.cpu, need.amounts.memory, static_cast<std::uint32_t>(need.load.gpus), kind_bit(need)};
    part.plain = need.pinned.empty() && !need.own && !need.priced && !need.load.whole_machine && !c.alone &&
                 !fork_.pool.holds_back();
    ask.bound = {std::min(ask.bound.cpu, part.bound.cpu), std::min(ask.bound.memory, part.bound.memory),
                 std::min(ask.bound.gpus, part.bound.gpus), ask.bound.kinds | part.bound.kinds};
    ask.machines += part.count;
    parts_.push_back(part);
    ++ask.parts;
  }
  return ask;
}

void Sketch::add_asks(const std::map<ClusterId, std::size_t>& rows) {
  std::vector<std::pair<std::uint32_t, std::uint32_t>> come;  // class, lane
  if (stream_.gap_ms > 0)
    for (const Arrival& arrival : fork_.arrivals)
      come.emplace_back(fork_.class_for(Request(arrival.request)), fork_.lane_for(arrival.request));
  Scheduler::Impl::Walk walk(fork_, began_);
  std::vector<std::uint32_t> items;
  for (const auto& [tier, lanes] : walk.tiers()) {
    for (const std::uint32_t item : fork_.overdue)
      if (fork_.items[item].overdue && fork_.lanes[fork_.items[item].lane].tier == tier) items.push_back(item);
    walk.begin(tier);
    for (std::uint32_t item = 0; walk.next(item);) items.push_back(item);
  }
  std::size_t shares = 0;
  const auto count = [&](std::uint32_t cls) {
    for (const auto& need : fork_.classes[cls].needs) shares += need.need.load.share > 0 ? 1 : 0;
  };
  for (const std::uint32_t item : items) count(fork_.items[item].cls);
  for (const auto& [cls, lane] : come) count(cls);
  wholes_.reserve(shares);  // parts point into it
  const auto key = [&](std::int64_t since, std::int32_t priority, std::uint32_t lane) {
    return since - std::int64_t{priority} * kAgeStepMs + walk.handicap(lane);
  };
  std::int64_t last = 0;
  std::map<std::uint32_t, std::uint32_t> ask_of;  // item -> ask
  for (const std::uint32_t item : items) {
    const auto& it = fork_.items[item];
    Ask ask = ask_for(it.cls, it.lane);
    ask.cluster = it.cluster, ask.since_ms = it.waiter.since_ms;
    ask.key = key(it.waiter.since_ms, it.waiter.priority, it.lane);
    if (!asks_.empty() && asks_.back().tier == ask.tier) ask.key = std::max(ask.key, last);
    last = ask.key;
    if (const auto row = rows.find(it.cluster); row != rows.end()) ask.row = static_cast<std::uint32_t>(row->second);
    if (const auto run = run_of_.find(it.cluster); run != run_of_.end()) ask.run = run->second;
    ask_of[item] = static_cast<std::uint32_t>(asks_.size());
    asks_.push_back(std::move(ask));
  }
  waiting_ = static_cast<std::uint32_t>(asks_.size());
  had_.assign(waiting_, -1), by_since_.resize(waiting_);
  std::iota(by_since_.begin(), by_since_.end(), 0U);
  std::sort(by_since_.begin(), by_since_.end(), [&](std::uint32_t a, std::uint32_t b) {
    return std::pair(asks_[a].since_ms, asks_[a].cluster) < std::pair(asks_[b].since_ms, asks_[b].cluster);
  });
  least_key_ = began_.ms;
  for (const Ask& ask : asks_) least_key_ = std::min(least_key_, ask.key);
  for (std::size_t i = 0; i < come.size(); ++i) {
    Ask ask = ask_for(come[i].first, come[i].second);
    ask.key = key(0, fork_.arrivals[i].request.priority, come[i].second);
    asks_.push_back(std::move(ask));
  }
  for (const auto& [item, kept] : fork_.latches) {
    const auto ask = ask_of.find(item);
    if (ask == ask_of.end()) continue;
    Gathering g{ask->second, {}, {}};
    for (const std::uint32_t node : kept)
      if (fork_.pool.live(node) && fork_.pool.machine(node).keeper == item) g.nodes.push_back(node);
    first_gatherings_.push_back(std::move(g));
  }
}

std::uint32_t Sketch::accepts_row(std::uint32_t cls) {
  const auto [at, fresh] = accepts_of_.try_emplace(cls, static_cast<std::uint32_t>(accepts_.size()));
  if (!fresh) return at->second;
  Accepts accepts{0, ~std::uint64_t{0}};
  Matcher& matcher = fork_.pool.matcher();
  for (const auto& [constraint, bit] : bit_of_) {
    const Verdict verdict = matcher.judge(constraint, cls);
    if (verdict != Verdict::No) accepts.may |= std::uint64_t{1} << bit;
    if (verdict != Verdict::Yes) accepts.surely &= ~(std::uint64_t{1} << bit);
  }
  const NodeClass& k = matcher.class_of(cls);
  const OfferTerms& offer = matcher.offers[k.offer];
  if (k.until_ms != 0 || offer.shortest_ms > 0 || offer.longest_ms > 0) accepts.surely = 0;
  accepts_.push_back(accepts);
  return at->second;
}

void Sketch::add_machines() {
  const Pool& pool = fork_.pool;
  for (std::uint32_t node = 0; node < pool.limit(); ++node) order_.push_back(node);
  std::stable_sort(order_.begin(), order_.end(), [&](std::uint32_t a, std::uint32_t b) {
    return pool.view(a).devices.size() < pool.view(b).devices.size();
  });
  place_.resize(order_.size());
  for (std::uint32_t i = 0; i < order_.size(); ++i) place_[order_[i]] = i;
  std::vector<Bound> bounds(order_.size());
  for (std::uint32_t node = 0; node < pool.limit(); ++node) {
    if (!pool.live(node)) continue;
    const Machine& m = pool.machine(node);
    const NodeView& view = pool.view(node);
    Spot& spot = now_state_.spots[node];
    spot.free = m.free, spot.devices = m.free_devices, spot.open = m.cell != kNone;
    spot.accepts = accepts_row(pool.class_of(node));
    spot.timed = !view.offer.hours.empty();
    if (spot.timed && spot.open) {
      spot.until_ms = fork_.pool.matcher().class_of(pool.class_of(node)).until_ms;
      if (spot.until_ms > 0) hours_.push_back({node, {0, spot.until_ms}});
    }
    for (const Pool::Opening& opening : pool.openings(node)) hours_.push_back({node, opening});
    if (!spot.open && view.schedulable && !pool.closed(node) && view.backoff_until > began_)
      hours_.push_back({node, {view.backoff_until.ms, 0}});
    if (spot.open)
      bounds[place_[node]] = {spot.free.cpu, spot.free.memory, gpus_in(spot.devices), accepts_[spot.accepts].may};
  }
  now_state_.machines.assign(bounds);
  base_ = now_state_, base_young_ = young_;
}

// ---- one play
void Sketch::push(std::int64_t at, What what, std::uint32_t id) {
  due_.push_back({at, what, id});
  std::push_heap(due_.begin(), due_.end(), std::greater<>());
}

void Sketch::end_of_run(std::uint32_t id, std::int64_t elapsed_ms) {
  const Run& run = now_state_.runs[id];
  const auto u = static_cast<std::uint32_t>(hash_with(seed_, run.cluster) >> 32);
  const auto drawn = curves_[run.curve].length(Millis(elapsed_ms), u);
  std::int64_t at = drawn ? run.since_ms + drawn->count() : kNotYet.ms;
  if (run.promised_ms != 0) at = std::min(at, run.promised_ms);
  if (at <= end_ms_) due_.push_back({std::max(at, now_ms_) + kLeaving.count(), What::RunEnds, id});
}

// The order: those that wait, and between them the places of those that will come.
void Sketch::line_up(std::uint64_t seed) {
  constexpr unsigned kNumber = 17, kKey = 42;  // bits; the tier is above them
  comes_.clear(), leaves_.clear(), line_up_.clear(), bounds_.clear();
  leaf_of_.assign(waiting_, kNone);
  const auto place = [&](const Ask& ask, std::int64_t key) {
    constexpr std::int64_t kMost = (std::int64_t{1} << kKey) - 2;
    return std::uint64_t{std::min<std::uint8_t>(ask.tier, 31)} << kKey |
           static_cast<std::uint64_t>(std::clamp<std::int64_t>(key - least_key_, 0, kMost));
  };
  if (stream_.gap_ms > 0) {
    const std::size_t most = std::min<std::size_t>(kComesLeast + 4 * std::size_t{waiting_}, (1U << kNumber) - 1);
    std::int64_t at = began_.ms;
    for (std::uint32_t n = 1;; ++n) {
      at += stream_.gap(seed, n);
      if (at > end_ms_) break;
      if (comes_.size() == most) {  // what has not started by then counts as beyond
        end_ms_ = at;
        break;
      }
      const auto ask = static_cast<std::uint32_t>(waiting_ + stream_.kind(seed, n, fork_.arrivals));
      line_up_.push_back(place(asks_[ask], asks_[ask].key + at) << kNumber | comes_.size());
      comes_.push_back({at, ask});
    }
    std::sort(line_up_.begin(), line_up_.end());
  }
  bounds_.reserve(waiting_ + comes_.size()), leaves_.reserve(waiting_ + comes_.size());
  std::size_t next = 0;
  const auto come_before = [&](std::uint64_t end) {
    for (; next < line_up_.size() && line_up_[next] >> kNumber < end; ++next) {
      Coming& c = comes_[line_up_[next] & ((1U << kNumber) - 1)];
      c.leaf = static_cast<std::uint32_t>(leaves_.size());
      leaves_.push_back({c.ask, kOwnClusters + 1 + (line_up_[next] & ((1U << kNumber) - 1)), c.at, 0});
      bounds_.push_back(Tournament<true>::nobody());
    }
  };
  for (std::uint32_t i = 0; i < waiting_; ++i) {
    const Ask& ask = asks_[i];
    come_before(place(ask, ask.key));
    leaf_of_[i] = static_cast<std::uint32_t>(leaves_.size());
    leaves_.push_back({i, ask.cluster.value, ask.since_ms, ask.machines});
    bounds_.push_back(ask.parts == 0 ? Tournament<true>::nobody() : ask.bound);
  }
  come_before(~std::uint64_t{0} >> kNumber);
  line_.assign(bounds_);
}

void Sketch::play(std::uint64_t seed, const ForwardOptions& options, std::vector<WallTime>& starts) {
  seed_ = seed, now_ms_ = began_.ms, starts_ = &starts;
  left_ = starts.size() - started_.size();
  std::fill(starts.begin(), starts.end(), kNotYet);
  for (const std::uint32_t row : started_) starts[row] = began_;
  now_state_ = base_, young_ = base_young_;
  end_ms_ = began_.ms + options.horizon.count();
  line_up(seed);
  due_.clear(), gatherings_.clear(), hopeless_ = {};
  overdue_.clear(), next_overdue_ = 0;
  room_from_ = 0;
  for (std::uint32_t run = 0; run < now_state_.runs.size(); ++run)
    end_of_run(run, began_.ms - now_state_.runs[run].since_ms);
  for (std::uint32_t hold = 0; hold < now_state_.holds.size(); ++hold)
    if (now_state_.holds[hold].leaving) due_.push_back({began_.ms + kLeaving.count(), What::HoldEnds, hold});
  for (std::uint32_t i = 0; i < hours_.size(); ++i) {
    if (hours_[i].opening.from_ms > 0) due_.push_back({hours_[i].opening.from_ms, What::Opens, i});
    if (hours_[i].opening.to_ms > 0) due_.push_back({hours_[i].opening.to_ms, What::Closes, i});
  }
  for (std::uint32_t leaf = 0; leaf < leaves_.size(); ++leaf)
    if (leaves_[leaf].ask < waiting_ && asks_[leaves_[leaf].ask].machines > 1 && line_.there(leaf))
      due_.push_back({std::max(began_.ms, leaves_[leaf].since_ms + kLatchMs), What::Latches, leaf});
  std::make_heap(due_.begin(), due_.end(), std::greater<>());
  for (const Gathering& first : first_gatherings_) {
    Gathering g{leaf_of_[first.leaf], {}, first.nodes};
    for (const std::uint32_t node : g.nodes) now_state_.spots[node].kept = g.leaf, show(node);
    gatherings_.push_back(std::move(g));
    gather_free(gatherings_.back().leaf);
  }
  for (const Gathering& first : first_gatherings_)
    if (line_.there(leaf_of_[first.leaf])) make_room_for(leaf_of_[first.leaf]);
  make_room();
  std::size_t come = 0;
  for (std::uint32_t events = 0; left_ > 0 && events < kEventsSketched; ++events) {
    if (come < comes_.size() && (due_.empty() || comes_[come].at < due_.front().at)) {
      now_ms_ = comes_[come].at;
      activate(comes_[come++].leaf);
      continue;
    }
    if (due_.empty() || due_.front().at > end_ms_) break;
    const Due due = due_.front();
    std::pop_heap(due_.begin(), due_.end(), std::greater<>());
    due_.pop_back();
    now_ms_ = std::max(now_ms_, due.at);
    happen(due);
  }
}

void Sketch::happen(const Due& due) {
  State& s = now_state_;
  switch (due.what) {
    case What::RunEnds:
      return end_run(due.id);
    case What::HoldEnds: {
      const std::uint32_t node = s.holds[due.id].node;
      free(due.id);
      return serve(node);
    }
    case What::Opens:
    case What::Closes: {
      Spot& spot = s.spots[hours_[due.id].node];
      spot.open = due.what == What::Opens;
      spot.until_ms = spot.open ? hours_[due.id].opening.to_ms : 0;
      show(hours_[due.id].node);
      if (spot.open) serve(hours_[due.id].node);
      return;
    }
    case What::Latches:
      if (line_.there(due.id)) gather_free(due.id);
      return;
  }
}

// It has come: a free machine may do, or one where others make room.
void Sketch::activate(std::uint32_t leaf) {
  const Ask& ask = asks_[leaves_[leaf].ask];
  if (ask.parts == 0) return;
  line_.set(leaf, ask.bound);
  if (ask.machines > 1) push(now_ms_ + kLatchMs, What::Latches, leaf);
  std::vector<std::pair<std::uint32_t, std::uint32_t>> found;
  for (std::uint32_t p = 0; p < ask.parts; ++p) {
    const Part& part = parts_[ask.first + p];
    std::uint32_t from = 0;
    for (std::uint32_t i = 0; i < part.count; ++i) {
      std::uint32_t node = machine_for(ask, part, from);
      while (node != kNone && std::any_of(found.begin(), found.end(), [&](const auto& f) { return f.first == node; }))
        from = place_[node] + 1, node = machine_for(ask, part, from);
      if (node == kNone) {
        if (gatherings_.size() < kLatchesMax) make_room_for(leaf);
        return;
      }
      found.emplace_back(node, p);
      from = place_[node] + 1;
    }
  }
  start(leaf, std::move(found));
}

void Sketch::show(std::uint32_t node) {
  const Spot& spot = now_state_.spots[node];
  now_state_.machines.set(
      place_[node], spot.open && spot.kept == kNone
                        ? Bound{spot.free.cpu, spot.free.memory, gpus_in(spot.devices), accepts_[spot.accepts].may}
                        : Tournament<false>::nobody());
}

void Sketch::end_run(std::uint32_t id) {
  if (std::exchange(now_state_.runs[id].over, true)) return;
  const std::uint32_t first = now_state_.runs[id].first;
  for (std::uint32_t hold = first; hold != kNone; hold = now_state_.holds[hold].next) free(hold);
  for (std::uint32_t hold = first; hold != kNone; hold = now_state_.holds[hold].next)
    serve(now_state_.holds[hold].node);
}

void Sketch::free(std::uint32_t id) {
  Hold& hold = now_state_.holds[id];
  if (std::exchange(hold.gone, true)) return;
  Spot& spot = now_state_.spots[hold.node];
  spot.free.cpu += hold.amounts.cpu, spot.free.memory += hold.amounts.memory, spot.free.disk += hold.amounts.disk;
  spot.devices |= hold.devices;
  --spot.leases;
  (hold.before == kNone ? spot.first : now_state_.holds[hold.before].after) = hold.after;
  if (hold.after != kNone) now_state_.holds[hold.after].before = hold.before;
  show(hold.node);
}

Query Sketch::query_of(const Ask& ask, const Part& part) const {
  const auto& c = fork_.classes[ask.cls];
  Query q;
  q.need = part.need, q.weights = &fork_.weights, q.now_ms = now_ms_, q.excluded = &ask.excluded;
  q.length_ms = c.fit_ms, q.stays = c.stays, q.failover = part.failover;
  return q;
}

bool Sketch::hosts(const Ask& ask, const Part& part, std::uint32_t node, const Spot& spot) const {
  if (!part.need->amounts.within(spot.free) || gpus_in(spot.devices) < part.bound.gpus || !spot.open) return false;
  if (part.plain && !spot.timed && (accepts_[spot.accepts].surely & part.bound.kinds) != 0) return true;
  Machine then = fork_.pool.machine(node);
  then.free = spot.free, then.free_devices = spot.devices, then.keeper = kNone, then.cell = 0;
  then.whole = spot.leases == 0;
  const Query query = query_of(ask, part);
  if (spot.timed) return fork_.pool.would_host_in(query, node, then, {0, spot.until_ms});
  return fork_.pool.would_host(query, node, then);
}

// Which of its machines this one can be; kNone: none that it lacks.
std::uint32_t Sketch::part_for(std::uint32_t leaf, std::uint32_t node) const {
  const Ask& ask = asks_[leaves_[leaf].ask];
  const Spot& spot = now_state_.spots[node];
  const Gathering* g = ask.machines > 1 ? gathering_of(leaf) : nullptr;
  for (std::uint32_t p = 0; p < ask.parts; ++p) {
    const Part& part = parts_[ask.first + p];
    if (g != nullptr &&
        std::count_if(g->found.begin(), g->found.end(), [&](const auto& f) { return f.second == p; }) >= part.count)
      continue;
    if (hosts(ask, part, node, spot)) return p;
  }
  return kNone;
}

const Sketch::Gathering* Sketch::gathering_of(std::uint32_t leaf) const {
  const auto g = std::find_if(gatherings_.begin(), gatherings_.end(), [&](const auto& g) { return g.leaf == leaf; });
  return g == gatherings_.end() ? nullptr : &*g;
}
Sketch::Gathering* Sketch::gathering_of(std::uint32_t leaf) {
  return const_cast<Gathering*>(static_cast<const Sketch*>(this)->gathering_of(leaf));
}

// One of each class and tenant, and sixteen in all.
bool Sketch::may_gather(std::uint32_t leaf) const {
  if (gathering_of(leaf) != nullptr) return true;
  if (std::find(overdue_.begin(), overdue_.end(), leaf) != overdue_.end()) return true;
  if (gatherings_.size() >= kLatchesMax || leaves_[leaf].since_ms + kLatchMs > now_ms_) return false;
  const Ask& ask = asks_[leaves_[leaf].ask];
  return std::none_of(gatherings_.begin(), gatherings_.end(), [&](const Gathering& g) {
    const Ask& other = asks_[leaves_[g.leaf].ask];
    return other.cls == ask.cls && fork_.lanes[other.lane].tenant == fork_.lanes[ask.lane].tenant;
  });
}

void Sketch::look_at_overdue() {
  std::erase_if(overdue_, [&](std::uint32_t leaf) { return !line_.there(leaf); });
  while (overdue_.size() < kOverdueMax && next_overdue_ < by_since_.size() + comes_.size()) {
    const bool came = next_overdue_ >= by_since_.size();
    const Coming* coming = came ? &comes_[next_overdue_ - by_since_.size()] : nullptr;
    const std::uint32_t ask = came ? coming->ask : by_since_[next_overdue_];
    if ((came ? coming->at : asks_[ask].since_ms) + kAgedMs > now_ms_) return;
    ++next_overdue_;
    const std::uint32_t leaf = came ? coming->leaf : leaf_of_[ask];
    if (!line_.there(leaf) || fork_.classes[asks_[ask].cls].grows) continue;
    if (!came && had_[ask] < 0) had_[ask] = fork_.could_be_had(fork_.find(asks_[ask].cluster)) ? 1 : 0;
    if (!came && had_[ask] == 0) continue;
    overdue_.push_back(leaf);
    if (asks_[ask].machines > 1) gather_free(leaf);
  }
}

// This machine has something free: the first that it can host has it, and so on with what is left.
void Sketch::serve(std::uint32_t node) {
  look_at_overdue();
  for (std::size_t i = 0; i < overdue_.size(); ++i)
    if (now_state_.spots[node].kept == kNone && now_state_.spots[node].open && line_.there(overdue_[i]))
      offer(overdue_[i], node);
  for (std::uint32_t from = 0;;) {
    const Spot& spot = now_state_.spots[node];
    if (spot.kept != kNone) {
      const std::uint32_t keeper = spot.kept;
      if (!offer(keeper, node) || now_state_.spots[node].kept == keeper) return;
      continue;
    }
    if (!spot.open) return;
    const std::uint32_t leaf =
        line_.first(from, {spot.free.cpu, spot.free.memory, gpus_in(spot.devices), accepts_[spot.accepts].may});
    if (leaf == kNone) return;
    if (!offer(leaf, node)) from = leaf + 1;
  }
}

// False: it has no use for it.
bool Sketch::offer(std::uint32_t leaf, std::uint32_t node) {
  const Ask& ask = asks_[leaves_[leaf].ask];
  const bool grows = fork_.classes[ask.cls].grows;
  const std::uint32_t p = part_for(leaf, node);
  if (p == kNone) return false;
  if (grows) {
    if (ask.run != kNone && !now_state_.runs[ask.run].over) take(ask.run, ask, parts_[ask.first + p], node);
    if (ask.run == kNone || now_state_.runs[ask.run].over || --leaves_[leaf].left == 0)
      line_.set(leaf, Tournament<true>::nobody());
    return true;
  }
  if (ask.machines == 1) {
    start(leaf, {{node, p}});
    return true;
  }
  Gathering* g = gathering_of(leaf);
  if (g != nullptr && std::any_of(g->found.begin(), g->found.end(), [&](const auto& f) { return f.first == node; }))
    return false;
  if (g == nullptr) {
    if (!may_gather(leaf)) return false;
    g = &gatherings_.emplace_back(Gathering{leaf, {}, {}});
  }
  g->found.emplace_back(node, p);
  if (now_state_.spots[node].kept != leaf) {
    now_state_.spots[node].kept = leaf;
    g->nodes.push_back(node);
    show(node);
  }
  if (g->found.size() == ask.machines) start(leaf, std::vector(g->found));
  return true;
}

std::uint32_t Sketch::machine_for(const Ask& ask, const Part& part, std::uint32_t from) const {
  for (;; ++from) {
    from = now_state_.machines.first(from, part.bound);
    if (from == kNone) return kNone;
    const std::uint32_t node = order_[from];
    if (hosts(ask, part, node, now_state_.spots[node])) return node;
  }
}

// A gang that has waited long enough has what is free, and what it keeps already.
void Sketch::gather_free(std::uint32_t leaf) {
  const Ask& ask = asks_[leaves_[leaf].ask];
  if (fork_.classes[ask.cls].grows) return;
  if (const Gathering* g = gathering_of(leaf)) {
    for (const std::uint32_t node : std::vector(g->nodes)) {
      if (now_state_.spots[node].kept == leaf && line_.there(leaf)) offer(leaf, node);
      if (gathering_of(leaf) == nullptr) return;
    }
  }
  for (std::uint32_t p = 0; p < ask.parts; ++p) {
    const Part& part = parts_[ask.first + p];
    for (std::uint32_t from = 0; line_.there(leaf) && may_gather(leaf);) {
      const std::uint32_t node = machine_for(ask, part, from);
      if (node == kNone || !offer(leaf, node)) break;
      from = place_[node] + 1;
    }
  }
}

void Sketch::start(std::uint32_t leaf, std::vector<std::pair<std::uint32_t, std::uint32_t>> found) {
  const Ask& ask = asks_[leaves_[leaf].ask];
  line_.set(leaf, Tournament<true>::nobody());
  if (ask.row != kNone && (*starts_)[ask.row] == kNotYet) (*starts_)[ask.row] = WallTime{now_ms_}, --left_;
  std::uint32_t run = ask.run;  // of a cluster that is back at its minimum
  const bool fresh = run == kNone || now_state_.runs[run].over;
  if (fresh) {
    run = static_cast<std::uint32_t>(now_state_.runs.size());
    const Millis longest = fork_.classes[ask.cls].example.longest;
    now_state_.runs.push_back(
        {kNone, ask.curve, leaves_[leaf].cluster, now_ms_, longest.count() > 0 ? now_ms_ + longest.count() : 0, false});
  }
  for (const auto& [node, p] : found) {
    now_state_.spots[node].kept = kNone;
    take(run, ask, parts_[ask.first + p], node);
  }
  const std::size_t before = due_.size();
  if (fresh) end_of_run(run, 0);
  if (due_.size() > before) std::push_heap(due_.begin(), due_.end(), std::greater<>());
  if (gathering_of(leaf) != nullptr) release(leaf);
}

void Sketch::take(std::uint32_t run, const Ask& ask, const Part& part, std::uint32_t node) {
  Spot& spot = now_state_.spots[node];
  Hold hold;
  hold.node = node, hold.since_ms = now_ms_, hold.tier = ask.tier;
  hold.may_leave = ask.tier >= kPreemptibleTier && part.role != SlotRole::Head;
  if (part.need->load.whole_machine) {
    hold.amounts = spot.free, hold.devices = spot.devices;
  } else {
    hold.amounts = part.need->amounts;
    std::uint64_t left = spot.devices;
    for (std::int32_t i = 0; i < part.need->load.gpus; ++i) left &= left - 1;
    hold.devices = spot.devices & ~left;
  }
  spot.free.cpu -= hold.amounts.cpu, spot.free.memory -= hold.amounts.memory, spot.free.disk -= hold.amounts.disk;
  spot.devices &= ~hold.devices;
  add_hold(run, hold);
  show(node);
}

// What it kept is anybody's again.
void Sketch::release(std::uint32_t leaf) {
  const auto g = std::find_if(gatherings_.begin(), gatherings_.end(), [&](const auto& g) { return g.leaf == leaf; });
  const std::vector<std::uint32_t> nodes = std::move(g->nodes);
  gatherings_.erase(g);
  for (const std::uint32_t node : nodes)
    if (now_state_.spots[node].kept == leaf) now_state_.spots[node].kept = kNone, show(node);
  for (const std::uint32_t node : nodes) serve(node);
  make_room();
}

// ---- room that later tiers make
// In the order, as long as somebody may be looked after; what found nothing is not looked at again.
void Sketch::make_room() {
  if (!makes_room_ || std::all_of(young_.begin(), young_.end(), [](const auto& of) { return of.empty(); })) return;
  while (gatherings_.size() < kLatchesMax && room_from_ < leaves_.size()) {
    const std::uint32_t leaf = line_.first(
        room_from_, {~std::uint32_t{0} - 1, ~std::uint32_t{0} - 1, ~std::uint32_t{0} - 1, ~std::uint64_t{0}});
    if (leaf == kNone) {
      room_from_ = static_cast<std::uint32_t>(leaves_.size());
      return;
    }
    room_from_ = leaf + 1;
    make_room_for(leaf);
  }
}

bool Sketch::make_room_for(std::uint32_t leaf) {
  const Ask& ask = asks_[leaves_[leaf].ask];
  Gathering* g = gathering_of(leaf);
  if (!makes_room_ || fork_.classes[ask.cls].grows || (g != nullptr && g->clearing)) return false;
  const std::size_t first = std::max<std::size_t>(kPreemptibleTier, std::size_t{ask.tier} + 1);
  std::vector<std::uint32_t> nodes, victims;
  for (std::uint32_t p = 0; p < ask.parts; ++p) {
    const Part& part = parts_[ask.first + p];
    Hopeless& hopeless = hopeless_[static_cast<std::size_t>(std::countr_zero(part.bound.kinds))];
    if (hopeless.tier <= ask.tier && hopeless.need.cpu <= part.bound.cpu && hopeless.need.memory <= part.bound.memory &&
        hopeless.need.gpus <= part.bound.gpus)
      return false;
    std::uint32_t found = 0;
    std::size_t looked = 0;
    if (g != nullptr)
      found = static_cast<std::uint32_t>(
          std::count_if(g->found.begin(), g->found.end(), [&](const auto& f) { return f.second == p; }));
    for (std::size_t t = first; t < kTiers && found < part.count; ++t) {
      auto& young = young_[t];
      std::size_t gone = 0;
      for (std::size_t i = young.size(), n = 0;
           i-- > 0 && found < part.count && looked < kRoomsSketched && n < 4 * kRoomsSketched; ++n) {
        const Hold& hold = now_state_.holds[young[i]];
        if (hold.gone || hold.leaving) {
          ++gone;
          continue;
        }
        Spot then = now_state_.spots[hold.node];
        if (hold.since_ms + kPreemptAfter.count() > now_ms_ || (then.kept != kNone && then.kept != leaf) ||
            !then.open || (accepts_[then.accepts].may & part.bound.kinds) == 0 ||
            std::find(nodes.begin(), nodes.end(), hold.node) != nodes.end())
          continue;
        ++looked;
        const std::size_t before = victims.size();
        bool fits = false;
        for (std::uint32_t id = then.first; id != kNone && !fits; id = now_state_.holds[id].after) {
          const Hold& on = now_state_.holds[id];
          if (!on.may_leave || on.leaving || on.tier < first || on.since_ms + kPreemptAfter.count() > now_ms_) continue;
          then.free.cpu += on.amounts.cpu, then.free.memory += on.amounts.memory, then.free.disk += on.amounts.disk;
          then.devices |= on.devices, --then.leases;
          victims.push_back(id);
          fits = hosts(ask, part, hold.node, then);
        }
        if (!fits) {
          victims.resize(before);
          continue;
        }
        nodes.push_back(hold.node);
        ++found;
      }
      if (gone > kRoomsSketched / 2)
        std::erase_if(young,
                      [&](std::uint32_t id) { return now_state_.holds[id].gone || now_state_.holds[id].leaving; });
    }
    if (found == part.count) continue;
    if (hopeless.tier > kTiers || part.bound.gpus < hopeless.need.gpus || part.bound.cpu < hopeless.need.cpu)
      hopeless = {ask.tier, part.bound};
    return false;
  }
  for (const std::uint32_t node : nodes) now_state_.spots[node].kept = leaf, show(node);
  for (const std::uint32_t id : victims) {
    now_state_.holds[id].leaving = true;
    push(now_ms_ + kLeaving.count(), What::HoldEnds, id);
  }
  if (g == nullptr) g = &gatherings_.emplace_back(Gathering{leaf, {}, {}});
  g->nodes.insert(g->nodes.end(), nodes.begin(), nodes.end());
  g->clearing = true;
  return true;
}

}  // namespace muster::scheduler
