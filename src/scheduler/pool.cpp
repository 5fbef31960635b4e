#include "scheduler/pool.h"

#include <algorithm>
#include <bit>
#include <limits>

namespace muster::scheduler {
namespace {

constexpr std::uint32_t kNumberBits = 24;  // of a machine's number inside its order
constexpr std::size_t kHoldersMax = 512;   // of an image that are looked at one by one; more make it hot
constexpr std::size_t kImprovedMax = 512;
constexpr std::int64_t kFetchMaxMs = 86'400'000;
constexpr std::int64_t kForever = std::numeric_limits<std::int64_t>::max();

std::uint32_t down(std::int64_t value, unsigned shift) {
  return static_cast<std::uint32_t>(std::clamp<std::int64_t>(value >> shift, 0, 1 << 30));
}
std::uint32_t up(std::int64_t value, unsigned shift) {  // what is beyond all bounds fits nowhere
  const std::int64_t most = std::int64_t{1} << (30 + shift);
  if (value > most) return (1U << 30) + 1;
  return down(std::max<std::int64_t>(value, 0) + (std::int64_t{1} << shift) - 1, shift);
}
// Different ids below 2^40 have different orders.
std::uint64_t scramble(std::uint64_t id, std::uint64_t seed) {
  constexpr std::uint64_t kMask = (std::uint64_t{1} << 40) - 1;
  std::uint64_t x = (id ^ mix(seed)) & kMask;
  for (const std::uint64_t odd : {0x9e3779b97fULL, 0xd6e8feb86dULL}) {
    x = (x * odd) & kMask;
    x ^= x >> 21;
  }
  return x;
}
constexpr std::int64_t kPointsPerMilli = 1024;  // packing.h
constexpr std::uint32_t kAnyGpu = kAnyModel & ~(1U << kNoGpu);
std::int32_t share_of(const NodeRequest& r) {
  return r.resources.gpus <= 1 ? std::clamp(r.gpu_share_milli, 0, kWholeGpu - 1) : 0;
}
std::uint64_t cell_hash(std::uint32_t model, std::uint32_t state, std::uint32_t cls) {
  return hash_with(std::uint64_t{model} << 32 | state, cls);
}

}  // namespace

Amounts free_amounts(const Resources& r) {
  return {down(r.cpu_milli, 0), down(r.memory_bytes, 20), down(r.disk_bytes, 20)};
}
Amounts needed_amounts(const Resources& r) {
  return {up(r.cpu_milli, 0), up(r.memory_bytes, 20), up(r.disk_bytes, 20)};
}

std::uint64_t device_bits(const NodeView& view, const std::vector<std::string>& uuids) {
  std::uint64_t bits = 0;
  for (std::size_t i = 0; i < std::min<std::size_t>(view.devices.size(), 64); ++i)
    if (std::find(uuids.begin(), uuids.end(), view.devices[i].uuid) != uuids.end()) bits |= std::uint64_t{1} << i;
  for (const DeviceUse& use : view.shared)
    for (std::size_t i = 0; use.sharing == Sharing::Instance && i < std::min<std::size_t>(view.devices.size(), 64); ++i)
      if (view.devices[i].uuid == use.uuid) bits &= ~(std::uint64_t{1} << i);
  return bits;
}

Pool::Pool(const Kernels& kernels, std::uint32_t sampled) : kernels_(&kernels), sampled_(sampled) {
  states_.use(kNoGpu);
  model_names_.emplace_back();
  packing_.learn({}, states_.models_used());
}

// ---- machines
std::uint64_t Pool::order_of(NodeId id, std::uint32_t node) const {
  return scramble(id.value, seed_) << kNumberBits | node;
}

std::uint32_t Pool::index_of(NodeId id) const {
  return by_id_.find(mix(id.value), [&](std::uint32_t i) { return infos_[i].view.node == id; });
}

std::uint32_t Pool::model_number(const std::string& name) {
  if (name.empty()) return kModels - 1;
  for (std::uint32_t m = 1; m < model_names_.size(); ++m)
    if (model_names_[m] == name) return m;
  if (model_names_.size() >= kModels - 1) return kModels - 1;  // all others
  model_names_.push_back(name);
  return static_cast<std::uint32_t>(model_names_.size() - 1);
}

// The present hours, or when the next begin; the owner's notice is taken off the end.
void Pool::set_hours(Info& info) {
  const Offer& offer = info.view.offer;
  info.until_ms = 0, info.open = true, info.longest_open_ms = 0;
  if (offer.hours.empty()) return;
  info.open = false;
  const std::int64_t notice = std::max<std::int64_t>(0, offer.notice.count());
  std::int64_t next = kForever;
  for (const Interval& i : offer.hours) {
    const std::int64_t end = i.to.ms - std::min(notice, i.to.ms);
    if (end > i.from.ms && i.from.ms >= 0) info.longest_open_ms = std::max(info.longest_open_ms, end - i.from.ms);
    if (i.from.ms <= now_ms_ && now_ms_ < end)
      info.open = true, info.until_ms = std::max(info.until_ms, end);
    else if (i.from.ms > now_ms_)
      next = std::min(next, i.from.ms);
  }
  if (info.open) next = std::min(next, info.until_ms);
  if (next != kForever) wakes_.emplace(next, info.view.node);
}

std::uint8_t Pool::hot_bits(const Info& info) const {
  std::uint8_t bits = 0;
  for (std::uint32_t i = 0; i < kHotImages; ++i)
    if (hot_[i] != 0 && std::find(info.images.begin(), info.images.end(), hot_[i]) != info.images.end())
      bits |= static_cast<std::uint8_t>(1U << i);
  return bits;
}

void Pool::drop_images(std::uint32_t node) {
  Info& info = infos_[node];
  for (const std::uint32_t image : info.images) {
    auto& holders = holders_[image];
    holder_orders_.erase(holders, info.order);
    if (holders.size == 0) {
      std::replace(hot_.begin(), hot_.end(), image, 0U);
      holders_.erase(image);
    }
    matcher_.symbols.release(image);
  }
  info.images.clear();
}

void Pool::set_images(std::uint32_t node) {
  Info& info = infos_[node];
  for (const std::string& name : info.view.images) {
    const std::uint32_t image = matcher_.symbols.acquire(name);
    if (image == 0 || std::find(info.images.begin(), info.images.end(), image) != info.images.end()) {
      matcher_.symbols.release(image);
      continue;
    }
    info.images.push_back(image);
    holder_orders_.insert(holders_[image], info.order);
  }
}

void Pool::make_hot(std::uint32_t image) {
  const auto slot = std::find(hot_.begin(), hot_.end(), 0U);
  if (slot == hot_.end() || std::find(hot_.begin(), hot_.end(), image) != hot_.end()) return;
  *slot = image;
  std::vector<std::uint32_t> nodes;
  holder_orders_.each(holders_[image], [&](std::uint64_t order) {
    nodes.push_back(static_cast<std::uint32_t>(order & ((1U << kNumberBits) - 1)));
    return true;
  });
  for (const std::uint32_t node : nodes) classify(node);
}

bool Pool::plannable(std::uint32_t node) const {
  const Info& info = infos_[node];
  return info.live && info.open && info.view.schedulable && info.view.backoff_until.ms <= now_ms_;
}

// Of the machines that little is known of one in four counts at its best, others every day, so that they come to be
// known; never for heads, and a bad one soon has enough against it.
bool Pool::explored(const NodeView& view) const {
  return view.reliability.newcomer() && mix(view.node.value ^ mix(seed_)) % kExploredOf == 0;
}

void Pool::set_reliability(NodeId id, const Reliability& reliability) {
  const std::uint32_t node = index_of(id);
  if (node == kNone) return;
  Info& info = infos_[node];
  info.told = reliability;
  if (info.view.reliability == reliability) return;
  info.view.reliability = reliability;
  classify(node);  // nobody is woken: it chooses among machines and refuses none
}

void Pool::classify(std::uint32_t node) {
  unlink(node);
  Info& info = infos_[node];
  const std::uint32_t old = info.cls;
  const bool counted = old != kNone;
  if (counted) count_levels(matcher_.class_of(old), info.model, -1);
  info.cls = matcher_.acquire_class(info.view, hot_bits(info), info.until_ms, explored(info.view));
  if (counted) matcher_.release_class(old);
  count_levels(matcher_.class_of(info.cls), info.model, 1);
  link(node);
}

void Pool::count_currency(std::uint32_t currency, std::uint32_t by) {
  if (currency == 0) return;
  if ((asked_in_[currency] += by) == 0) asked_in_.erase(currency);
  currency_ = 0;
  for (const auto& [each, machines] : asked_in_) {
    const std::uint32_t most = currency_ == 0 ? 0 : asked_in_.at(currency_);
    if (machines > most || (machines == most && matcher_.symbols[each] < matcher_.symbols[currency_])) currency_ = each;
  }
}

void Pool::count_levels(const NodeClass& k, std::uint32_t model, std::int32_t sign) {
  Levels& l = levels_[model];
  const auto lowest = [](const auto& counts) {
    std::uint32_t i = 0;
    while (i + 1 < counts.size() && counts[i] == 0) ++i;
    return i;
  };
  const auto highest = [](const auto& counts) {
    auto i = static_cast<std::uint32_t>(counts.size()) - 1;
    while (i > 0 && counts[i] == 0) --i;
    return i;
  };
  const auto by = static_cast<std::uint32_t>(sign);
  count_currency(k.currency, by);
  l.price[k.price] += by, l.risk[k.risk] += by, l.risk[k.risk_hoped] += by, l.link[k.link] += by,
      l.tier[std::min<std::size_t>(k.tier, 2)] += by;
  if (sign > 0) {
    l.cheapest = std::min<std::uint32_t>(l.price[l.cheapest] == 0 ? lowest(l.price) : l.cheapest, k.price);
    l.safest = std::min<std::uint32_t>(l.risk[l.safest] == 0 ? lowest(l.risk) : l.safest, k.risk_hoped);
    l.fastest = std::max<std::uint32_t>(l.fastest, k.link);
    l.most_trusted = std::max<std::uint32_t>(l.most_trusted, k.tier);
  } else {
    if (l.price[l.cheapest] == 0) l.cheapest = lowest(l.price);
    if (l.risk[l.safest] == 0) l.safest = lowest(l.risk);
    if (l.link[l.fastest] == 0) l.fastest = highest(l.link);
    if (l.tier[l.most_trusted] == 0) l.most_trusted = highest(l.tier);
  }
}

void Pool::set_machine(std::uint32_t node) {
  const Info& info = infos_[node];
  Machine& m = moving_.machines[node];
  m.free = free_amounts(info.view.free);
  most_ = {std::max(most_.cpu, m.free.cpu), std::max(most_.memory, m.free.memory), std::max(most_.disk, m.free.disk)};
  m.free_devices = 0;
  set_flow(node, needed_flow(info.view.traffic));
  const std::size_t devices = std::min<std::size_t>(info.view.devices.size(), 64);
  for (std::size_t i = 0; i < devices; ++i)
    for (const std::string& uuid : info.view.free_devices)
      if (uuid == info.view.devices[i].uuid) m.free_devices |= std::uint64_t{1} << i;
  m.whole = info.view.whole;
  if (info.view.shared.empty()) {
    if (m.sharable != kNone) moving_.free_sharables.push_back(std::exchange(m.sharable, kNone));
    return;
  }
  if (m.sharable == kNone) {
    if (moving_.free_sharables.empty()) {
      m.sharable = static_cast<std::uint32_t>(moving_.sharables.size());
      moving_.sharables.emplace_back();
    } else {
      m.sharable = moving_.free_sharables.back();
      moving_.free_sharables.pop_back();
    }
  }
  Sharable& s = moving_.sharables[m.sharable] = {};
  for (std::size_t i = 0; i < std::min<std::size_t>(devices, kDevicesScored); ++i)
    for (const DeviceUse& use : info.view.shared) {
      if (use.uuid != info.view.devices[i].uuid || use.sharing == Sharing::Exclusive) continue;
      if (use.sharing == Sharing::Instance) {
        s.size[i] = static_cast<std::int16_t>(std::clamp(use.instance_milli, 1, kWholeGpu - 1));
        s.free[i] = use.free_milli > 0 ? s.size[i] : std::int16_t{0};
        m.free_devices &= ~(std::uint64_t{1} << i);
        continue;
      }
      const bool mig = use.sharing == Sharing::Mig;
      s.free[i] = mig ? mig_free(use.mig_used)
                      : static_cast<std::int16_t>(std::clamp<std::int32_t>(use.free_milli, 0, kWholeGpu));
      if (mig) s.mig |= static_cast<std::uint16_t>(1U << i), s.slots[i] = use.mig_used;
      s.holder[i] = use.holder.value;
      if (s.free[i] < kWholeGpu) m.free_devices &= ~(std::uint64_t{1} << i);
    }
}

std::uint32_t Pool::set(const NodeView& view) {
  std::uint32_t node = index_of(view.node);
  if (node == kNone) {
    if (free_infos_.empty()) {
      node = limit();
      infos_.emplace_back(), marks_.push_back(0), moving_.machines.emplace_back();
    } else {
      node = free_infos_.back();
      free_infos_.pop_back();
    }
    const bool touched = infos_[node].touched, held_due = infos_[node].held_due;
    infos_[node] = {};
    infos_[node].touched = touched, infos_[node].held_due = held_due;
    infos_[node].order = order_of(view.node, node);
    by_id_.insert(mix(view.node.value), node);
  } else {
    unlink(node);
    Info& old = infos_[node];
    if (old.view.supplier != view.supplier) groups_.erase(by_supplier_[old.view.supplier], node);
  }
  Info& info = infos_[node];
  const bool fresh = !info.live;
  const bool images = fresh || info.view.images != view.images;
  if (images) drop_images(node);
  if (fresh || info.view.supplier != view.supplier) groups_.insert(by_supplier_[view.supplier], node);
  set_site(node, info.view.site, view.site);
  set_uplink(node, view);
  info.view = view;
  if (info.told) info.view.reliability = *info.told;
  info.live = true;
  some_ask_ = some_ask_ || view.offer != Offer{};
  if (images) set_images(node);
  const auto label = [&](const char* key) {
    const auto it = view.labels.find(key);
    return it == view.labels.end() ? 0 : matcher_.symbols.acquire(it->second);
  };
  const std::uint32_t site = matcher_.symbols.acquire(view.site), region = label("region"), name = label("pool");
  matcher_.symbols.release(info.site), matcher_.symbols.release(info.region);
  info.site = site, info.region = region;
  if (name != info.pool) {
    if (info.pool != 0) groups_.erase(by_pool_[info.pool], node);
    if (name != 0) groups_.insert(by_pool_[name], node);
  }
  matcher_.symbols.release(info.pool);
  info.pool = name;
  const bool mixed = std::any_of(view.devices.begin(), view.devices.end(),
                                 [&](const Device& d) { return d.model != view.devices.front().model; });
  const std::uint32_t model = view.devices.empty() ? kNoGpu
                              : mixed              ? kModels - 1
                                                   : model_number(view.devices.front().model);
  if (info.cls != kNone && model != info.model) {
    count_levels(matcher_.class_of(info.cls), info.model, -1);
    matcher_.release_class(info.cls);
    info.cls = kNone;
  }
  info.model = model;
  if (states_.use(model)) packing_.learn(expected_, states_.models_used());
  const Resources& capacity = view.capacity;
  info.capacity =
      capacity.cpu_milli > 0 || capacity.memory_bytes > 0 ? free_amounts(capacity) : free_amounts(view.free);
  if (view.backoff_until.ms > now_ms_) wakes_.emplace(view.backoff_until.ms, view.node);
  set_hours(info);
  set_machine(node);
  classify(node);
  if (images)
    for (const std::uint32_t image : std::vector<std::uint32_t>(info.images))
      if (holders_[image].size > kHoldersMax) make_hot(image);
  touch(node);
  return node;
}

void Pool::set_site(std::uint32_t node, const std::string& old, const std::string& site) {
  if (old == site) return;
  if (!old.empty()) {
    auto& of = by_site_[old];
    by_size_.erase({of.size, old});
    groups_.erase(of, node);
    if (of.size > 0)
      by_size_.emplace(of.size, old);
    else
      by_site_.erase(old);
  }
  if (site.empty()) return;
  auto& of = by_site_[site];
  by_size_.erase({of.size, site});
  groups_.insert(of, node);
  by_size_.emplace(of.size, site);
}

void Pool::forget(NodeId id) {
  const std::uint32_t node = index_of(id);
  if (node == kNone) return;
  unlink(node);
  leave_uplink(node);
  Info& info = infos_[node];
  drop_images(node);
  groups_.erase(by_supplier_[info.view.supplier], node);
  if (by_supplier_[info.view.supplier].size == 0) by_supplier_.erase(info.view.supplier);
  set_site(node, info.view.site, "");
  if (info.pool != 0) {
    groups_.erase(by_pool_[info.pool], node);
    if (by_pool_[info.pool].size == 0) by_pool_.erase(info.pool);
    matcher_.symbols.release(info.pool);
  }
  matcher_.symbols.release(info.site), matcher_.symbols.release(info.region);
  count_levels(matcher_.class_of(info.cls), info.model, -1);
  matcher_.release_class(info.cls);
  by_id_.erase(mix(id.value), [&](std::uint32_t i) { return i == node; });
  leave_held_order(node);
  const bool touched = info.touched, held_due = info.held_due;
  info = {};
  info.touched = touched, info.held_due = held_due;
  if (moving_.machines[node].sharable != kNone) moving_.free_sharables.push_back(moving_.machines[node].sharable);
  moving_.machines[node] = {};
  free_infos_.push_back(node);
}

void Pool::reseed(std::uint64_t seed) {
  if (seed == seed_) return;
  seed_ = seed;
  for (std::uint32_t node = 0; node < limit(); ++node) {
    if (!live(node)) continue;
    unlink(node);
    Info& info = infos_[node];
    for (const std::uint32_t image : info.images) holder_orders_.erase(holders_[image], info.order);
    info.order = order_of(info.view.node, node);
    for (const std::uint32_t image : info.images) holder_orders_.insert(holders_[image], info.order);
    link(node);
    if (info.view.reliability.newcomer()) classify(node);
    if (holds_back()) touch(node);
  }
}

void Pool::advance(std::int64_t now_ms) {
  now_ms_ = now_ms;
  while (!wakes_.empty() && wakes_.begin()->first <= now_ms) {
    const NodeId id = wakes_.begin()->second;
    wakes_.erase(wakes_.begin());
    const std::uint32_t node = index_of(id);
    if (node == kNone) continue;
    const std::int64_t until = infos_[node].until_ms;
    set_hours(infos_[node]);
    if (until != infos_[node].until_ms) {
      classify(node);
    } else {
      unlink(node);
      link(node);
    }
    touch(node);
  }
}

void Pool::touch(std::uint32_t node) {
  note_touched(node);
  if (holds_back() && !std::exchange(infos_[node].held_due, true)) held_due_.push_back(node);
}

void Pool::restore(std::uint32_t node) {
  unlink(node);
  set_machine(node);
  link(node);
  touch(node);
}

Pool::Seen Pool::seen_now(std::uint32_t node) const {
  const Machine& m = moving_.machines[node];
  return {m.free,
          m.free_devices,
          m.cell == kNone ? 0 : matcher_.class_serial(infos_[node].cls),
          m.whole,
          m.keeper,
          infos_[node].view.offer.price_version,
          m.held,
          infos_[node].own.minus(m.flow)};
}

bool Pool::better(const Seen& now, const Seen& then) {
  return now.cls != 0 &&
         (then.cls != now.cls || !now.free.within(then.free) || (now.free_devices & ~then.free_devices) != 0 ||
          (now.whole && !then.whole) || (then.keeper != kNone && now.keeper != then.keeper) ||
          now.terms != then.terms || now.held > then.held || !now.flow.within(then.flow));
}

bool Pool::take_improved(std::vector<std::uint32_t>& out) {
  out.clear();
  for (const std::uint32_t node : touched_) {
    Info& info = infos_[node];
    info.touched = false;
    const Seen now = seen_now(node);
    if (better(now, info.seen)) out.push_back(node);
    info.seen = now;
  }
  touched_.clear();
  if (!touched_uplinks_.empty()) add_improved_uplinks(out);
  return out.size() <= kImprovedMax;
}

void Pool::settle() {
  if (!touched_uplinks_.empty()) settle_uplinks();
  std::erase_if(touched_, [&](std::uint32_t node) {
    Info& info = infos_[node];
    Seen& then = info.seen;
    const Seen now = seen_now(node);
    const bool open = better(now, then);
    if (then.cls != now.cls) then.cls = 0;
    then.free = {std::min(then.free.cpu, now.free.cpu), std::min(then.free.memory, now.free.memory),
                 std::min(then.free.disk, now.free.disk)};
    then.free_devices &= now.free_devices;
    then.whole = then.whole && now.whole;
    if (then.keeper == kNone) then.keeper = now.keeper;
    then.held = std::min(then.held, now.held);
    then.flow = {std::min(then.flow.up, now.flow.up), std::min(then.flow.down, now.flow.down),
                 std::min(then.flow.volume, now.flow.volume)};
    info.touched = open;
    return !open;
  });
}

// ---- cells
Condition Pool::condition_of(std::uint32_t node) const {
  const Machine& m = moving_.machines[node];
  Condition c;
  c.model = infos_[node].model;
  c.gpus = std::min<std::int32_t>(std::popcount(m.free_devices), kDevicesScored);
  c.cpu = level_of(m.free.cpu);
  if (m.sharable != kNone) c.shares = shares_of(moving_.sharables[m.sharable]);
  c.whole = m.whole;
  return c;
}

void Pool::link(std::uint32_t node) {
  if (!plannable(node)) return;
  const Condition condition = condition_of(node);
  const std::uint32_t model = condition.model, cls = infos_[node].cls;
  const std::uint32_t state = states_.acquire(condition, packing_);
  PerModelMoving& per = moving_.models[model];
  if (state >= per.cells.size()) per.cells.resize(state + 1), per.live.resize(state / kRowBlock + 1, 0);
  const std::uint64_t hash = cell_hash(model, state, cls);
  std::uint32_t cell = moving_.cell_index.find(hash, [&](std::uint32_t i) {
    const Cell& c = moving_.cells[i];
    return c.model == model && c.state == state && c.cls == cls;
  });
  if (cell == kNone) {
    if (moving_.free_cells.empty()) {
      cell = static_cast<std::uint32_t>(moving_.cells.size());
      moving_.cells.emplace_back();
    } else {
      cell = moving_.free_cells.back();
      moving_.free_cells.pop_back();
    }
    moving_.cells[cell] = {model, state, cls, {}};
    moving_.cell_index.insert(hash, cell);
    if (per.cells[state].size == 0) per.live[state / kRowBlock] |= std::uint64_t{1} << (state % kRowBlock);
    moving_.lists.insert(per.cells[state], cell);
  }
  moving_.orders.insert(moving_.cells[cell].nodes, infos_[node].order);
  moving_.machines[node].cell = cell;
  moving_.free_milli[model] += std::int64_t{condition.gpus} * kWholeGpu;
  pressure_stale_ = true;
}

void Pool::unlink(std::uint32_t node) {
  Machine& m = moving_.machines[node];
  if (m.cell == kNone) return;
  Cell& c = moving_.cells[m.cell];
  moving_.free_milli[c.model] -= std::int64_t{states_.at(c.model, c.state).gpus} * kWholeGpu;
  pressure_stale_ = true;
  moving_.orders.erase(c.nodes, infos_[node].order);
  if (c.nodes.size == 0) {
    PerModelMoving& per = moving_.models[c.model];
    moving_.lists.erase(per.cells[c.state], m.cell);
    if (per.cells[c.state].size == 0) per.live[c.state / kRowBlock] &= ~(std::uint64_t{1} << (c.state % kRowBlock));
    moving_.cell_index.erase(cell_hash(c.model, c.state, c.cls), [&](std::uint32_t i) { return i == m.cell; });
    moving_.free_cells.push_back(m.cell);
  }
  m.cell = kNone;
}

// ---- needs
std::uint32_t Pool::models_of(const NodeRequest& r) {
  if (r.gpu_any.empty()) return r.gpu_model.empty() ? kAnyGpu : 1U << model_number(r.gpu_model);
  std::uint32_t models = 0;
  for (const GpuChoice& choice : r.gpu_any) models |= 1U << model_number(choice.model);
  return models;
}

Task Pool::task_of(const NodeRequest& r) {
  const std::int32_t share = share_of(r);
  const std::int64_t gpus = share > 0 ? 1 : std::max<std::int64_t>(r.resources.gpus, 0);
  return bounded(needed_amounts(r.resources).cpu, gpus, share > 0 ? share : kWholeGpu,
                 gpus > 0 ? models_of(r) : kAnyModel);
}

Need Pool::compile(const Request& request, const Bundle& bundle) {
  const NodeRequest& r = bundle.request;
  Need need;
  need.amounts = needed_amounts(r.resources);
  need.flow = needed_flow(r.resources.traffic);
  some_flow_ = some_flow_ || need.flow.any();
  need.constraint = matcher_.acquire_constraint(request, r);
  need.task = task_of(r);
  const std::int32_t share = share_of(r);
  const std::int64_t gpus = share > 0 ? 0 : std::clamp<std::int64_t>(r.resources.gpus, 0, 64);
  const bool any_machine = gpus == 0 && share == 0 && r.gpu_model.empty() && r.gpu_any.empty();
  need.models = any_machine ? kAnyModel : models_of(r) | 1U << (kModels - 1);  // machines of several models stand there
  need.load = {static_cast<std::int32_t>(need.amounts.cpu), static_cast<std::int32_t>(gpus), share, r.whole_machine};
  need.image = matcher_.symbols.acquire(request.image);
  need.pinned = r.pinned;
  need.bid = {request.max_price, request.currency};
  need.priced = request.max_price > 0 || !request.currency.empty();
  if (need.priced) need.payer = request.tenant;
  if (request.pool == "own") need.own = request.tenant;
  if (request.pool.starts_with("pool:")) need.named_pool = matcher_.symbols.acquire(request.pool.substr(5));
  return need;
}

void Pool::drop(const Need& need) {
  matcher_.release_constraint(need.constraint);
  matcher_.symbols.release(need.image), matcher_.symbols.release(need.named_pool);
}

bool Pool::take_recompile() {
  if (matcher_.take_new_keys())
    for (std::uint32_t node = 0; node < limit(); ++node)
      if (live(node)) classify(node), touch(node);
  return matcher_.take_restriction();
}

// ---- the expected workload
void Pool::learn_if_due() {
  if (!std::exchange(learn_due_, false)) return;
  expected_ = workload_.expected();
  packing_.learn(expected_, states_.models_used());
  states_.value_all(packing_);
}

LearnedChanged Pool::learned() const {
  LearnedChanged out{{}, workload_.arrivals(), workload_.learn_at(), learn_due_};
  std::map<Task, std::int32_t> weights;
  for (const auto& [weight, task] : expected_) weights[task] = weight;
  std::map<Task, std::int64_t> all = workload_.seen();
  for (const auto& [task, weight] : weights) all.try_emplace(task, 0);
  for (const auto& [task, times] : all) {
    LearnedShape shape{task.cpu_milli, task.devices, task.share, {}, times, 0};
    if (const auto it = weights.find(task); it != weights.end()) shape.weight = it->second;
    if (task.devices > 0 && (task.models & kAnyGpu) != kAnyGpu)
      for (std::uint32_t m = 1; m < kModels; ++m)
        if ((task.models >> m & 1U) != 0) shape.models.push_back(m < model_names_.size() ? model_names_[m] : "");
    out.shapes.push_back(std::move(shape));
  }
  return out;
}

void Pool::restore(const LearnedChanged& learned) {
  std::map<Task, std::int64_t> seen;
  expected_.clear();
  std::int64_t sum = 0;
  for (const LearnedShape& shape : learned.shapes) {
    std::uint32_t models = shape.models.empty() ? kAnyModel & ~(1U << kNoGpu) : 0;
    for (const std::string& name : shape.models) models |= 1U << model_number(name);
    const Task task = bounded(shape.cpu_milli, shape.devices, shape.share, models);
    seen[task] += std::max<std::int64_t>(0, shape.times);
    const std::int32_t weight = std::clamp(shape.weight, 0, 65'536);
    if (weight > 0 && sum + weight <= 65'536) sum += weight, expected_.emplace_back(weight, task);
  }
  workload_.restore(seen, learned.arrivals, learned.learn_at);
  packing_.learn(expected_, states_.models_used());
  states_.value_all(packing_);
  pressure_stale_ = true, learn_due_ = learned.due;
}

// ---- values
void Pool::refresh_pressure() {
  if (!std::exchange(pressure_stale_, false)) return;
  pressure_ = pressure_of(moving_.free_milli, workload_.demand());
}

// Prices of different currencies are not compared: who names none compares those that most machines ask, and all
// others come after them. Who names one is refused the others anyway.
std::int64_t Pool::penalty(const Query& query, const NodeClass& k) const {
  const Weights& w = *query.weights;
  const bool other = k.currency != currency_ && k.price != 0 && query.need->bid.currency.empty();
  return std::int64_t{w.price[other ? kPriceLevels - 1 : k.price]} + w.risk[w.hopes ? k.risk_hoped : k.risk] +
         w.link[k.link] + w.tier[std::min<std::size_t>(k.tier, 2)] + (k.relayed ? w.relayed : 0);
}

std::int64_t Pool::least_penalty(const Weights& w, std::uint32_t model) const {
  const Levels& l = levels_[model];
  return std::int64_t{w.price[l.cheapest]} + w.risk[l.safest] + w.link[l.fastest] + w.tier[l.most_trusted];
}

std::int64_t Pool::scarcity(const Query& query, std::uint32_t model) const {
  return pressure_[model] * query.need->task.gpu_milli() * query.weights->scarcity / 65'536 / 32;
}

bool Pool::timely(const Query& query, const NodeClass& k, std::int64_t until_ms) const {
  if (until_ms != 0 && (query.stays || query.length_ms > until_ms - query.now_ms)) return false;
  if (query.stays && matcher_.offers[k.offer].longest_ms > 0) return false;
  const OfferTerms& offer = matcher_.offers[k.offer];
  return (offer.longest_ms <= 0 || query.length_ms <= offer.longest_ms) && query.length_ms >= offer.shortest_ms;
}

// As timely(), at the best of its hours.
bool Pool::long_enough(const Query& query, std::uint32_t node) const {
  const Info& info = infos_[node];
  if (!info.view.offer.hours.empty() && (query.stays || query.length_ms > info.longest_open_ms)) return false;
  const OfferTerms& offer = matcher_.offers[matcher_.class_of(info.cls).offer];
  if (query.stays && offer.longest_ms > 0) return false;
  return (offer.longest_ms <= 0 || query.length_ms <= offer.longest_ms) && query.length_ms >= offer.shortest_ms;
}

std::int64_t Pool::asked(const Query& query, std::uint32_t node) const {
  const NodeView& view = infos_[node].view;
  const Load& load = query.need->load;
  const std::int64_t gpus = load.whole_machine ? static_cast<std::int64_t>(view.devices.size()) : load.gpus;
  return asked_price(view.offer.price_per_hour, view.offer.price_per_gpu_hour, gpus, load.share);
}

bool Pool::affordable(const Query& query, std::uint32_t node) const {
  const Need& need = *query.need;
  const NodeView& view = infos_[node].view;
  if (!need.priced || (need.payer && need.payer == view.supplier)) return true;
  const std::int64_t gpus = need.load.whole_machine ? static_cast<std::int64_t>(view.devices.size()) : need.load.gpus;
  const std::int64_t least =
      asked_price(view.offer.floor_per_hour, view.offer.floor_per_gpu_hour, gpus, need.load.share);
  return agreed_price(asked(query, node), least, view.offer.currency, need.bid).has_value();
}

bool Pool::is_cold(const Query& query, const Info& info) const {
  return query.need->image != 0 &&
         std::find(info.images.begin(), info.images.end(), query.need->image) == info.images.end();
}

std::int64_t Pool::image_bytes(const Query& query) const {
  std::int64_t most = 0;
  const std::uint32_t image = query.need->image;
  const auto holders = image == 0 ? holders_.end() : holders_.find(image);
  if (holders == holders_.end()) return 0;
  std::size_t looked = 0;
  const std::string& name = matcher_.symbols[image];
  holder_orders_.each(holders->second, [&](std::uint64_t o) {
    const auto& sizes = infos_[static_cast<std::uint32_t>(o & ((1U << kNumberBits) - 1))].view.image_bytes;
    if (const auto it = sizes.find(name); it != sizes.end()) most = std::max(most, it->second);
    return ++looked < kHoldersMax;
  });
  return most;
}

std::int64_t Pool::fetch_ms(const Query& query, std::int64_t bytes, std::uint32_t node) const {
  if (bytes <= 0 || !is_cold(query, infos_[node])) return 0;
  const Link& link = infos_[node].view.link;
  std::int64_t kbps = link.down_kbps;
  if (link.own_down_kbps > 0 && (kbps <= 0 || link.own_down_kbps < kbps)) kbps = link.own_down_kbps;
  if (kbps <= 0) return 0;
  return std::min<std::int64_t>(std::min(bytes, std::int64_t{1} << 50) / kbps * 8, kFetchMaxMs);
}

// Is there enough for both? Any of the machine's devices must do for the keeper, as nobody says which are its.
bool Pool::fits_beside(const Query& query, std::uint32_t node, const Machine& m) const {
  const auto keeping = keepings_.find(m.keeper);
  const Need& need = *query.need;
  if (keeping == keepings_.end() || keeping->second.all || need.load.whole_machine || need.load.share > 0) return false;
  const Keeping& k = keeping->second;
  const auto both = [](std::uint32_t a, std::uint32_t b, std::uint32_t free) { return std::uint64_t{a} + b <= free; };
  if (!both(need.amounts.cpu, k.amounts.cpu, m.free.cpu) ||
      !both(need.amounts.memory, k.amounts.memory, m.free.memory) ||
      !both(need.amounts.disk, k.amounts.disk, m.free.disk) ||
      std::popcount(m.free_devices) < std::int64_t{need.load.gpus} + k.gpus)
    return false;
  return std::all_of(k.constraints.begin(), k.constraints.end(), [&](std::uint32_t constraint) {
    return matcher_.judged(constraint, infos_[node].cls) == Verdict::Yes;
  });
}

bool Pool::hosts_if_judged(const Query& query, std::uint32_t node, const Machine& m, Verdict verdict) const {
  const Need& need = *query.need;
  if (query.excluded == nullptr ? marked(node)
                                : std::binary_search(query.excluded->begin(), query.excluded->end(), node))
    return false;
  if (!need.amounts.within(m.free) || kept_from(query, node, m) || !affordable(query, node)) return false;
  if (need.flow.any() && !query.any_flow && !flow_within(query, node, m)) return false;
  const auto free = static_cast<std::int32_t>(std::popcount(m.free_devices));
  if (need.load.whole_machine) {
    const Info& info = infos_[node];
    if (!m.whole || free != static_cast<std::int32_t>(std::min<std::size_t>(info.view.devices.size(), 64)))
      return false;
    const Constraint& c = matcher_.constraint(need.constraint);
    // Every device goes with it, so every one must be of the kind that was asked for.
    if (!c.models.empty() && !std::all_of(info.view.devices.begin(), info.view.devices.end(),
                                          [&](const Device& d) { return matcher_.device_fits(c, d); }))
      return false;
  }
  if (free < need.load.gpus) return false;
  if (need.load.share > 0 && share_device(query, node).first < 0) return false;
  if (verdict == Verdict::Yes) return true;
  const NodeView& view = infos_[node].view;
  if (!matcher_.admits(need.constraint, view)) return false;
  if (need.load.gpus == 0) return true;
  const Constraint& c = matcher_.constraint(need.constraint);
  std::int32_t fitting = 0;
  for (std::size_t i = 0; i < std::min<std::size_t>(view.devices.size(), 64); ++i)
    if ((m.free_devices >> i & 1U) != 0 && matcher_.device_fits(c, view.devices[i])) ++fitting;
  return fitting >= need.load.gpus;
}

bool Pool::hosts(const Query& query, std::uint32_t node) const {
  return would_host(query, node, moving_.machines[node]);
}

bool Pool::would_host(const Query& query, std::uint32_t node, const Machine& machine) const {
  return machine.cell != kNone && fits(query, node, machine, matcher_.class_of(infos_[node].cls).until_ms);
}

std::vector<Pool::Opening> Pool::openings(std::uint32_t node) const {
  std::vector<Opening> out;
  const NodeView& view = infos_[node].view;
  if (!infos_[node].live || !view.schedulable) return out;
  for (const Interval& i : view.offer.hours) {
    const Opening hours{i.from.ms, i.to.ms - std::min(std::max<std::int64_t>(0, view.offer.notice.count()), i.to.ms)};
    if (hours.from_ms > now_ms_ && hours.from_ms >= view.backoff_until.ms && hours.to_ms > hours.from_ms)
      out.push_back(hours);
  }
  std::sort(out.begin(), out.end(), [](const Opening& a, const Opening& b) { return a.from_ms < b.from_ms; });
  return out;
}

bool Pool::would_host_in(const Query& query, std::uint32_t node, const Machine& machine, const Opening& hours) const {
  return query.now_ms >= hours.from_ms && fits(query, node, machine, hours.to_ms);
}

bool Pool::fits(const Query& query, std::uint32_t node, const Machine& machine, std::int64_t until_ms) const {
  const std::uint32_t cls = infos_[node].cls;
  const Verdict verdict = matcher_.judged(query.need->constraint, cls);
  const Need& need = *query.need;
  if (verdict == Verdict::No || !timely(query, matcher_.class_of(cls), until_ms)) return false;
  if (!need.pinned.empty() &&
      std::find(need.pinned.begin(), need.pinned.end(), infos_[node].view.node) == need.pinned.end())
    return false;
  return hosts_if_judged(query, node, machine, verdict);
}

bool Pool::is_there(const Query& query, std::uint32_t node, Verdict verdict) const {
  const Info& info = infos_[node];
  const Need& need = *query.need;
  if (verdict == Verdict::No || (verdict == Verdict::Check && !matcher_.admits(need.constraint, info.view)))
    return false;
  return need.pinned.empty() || std::find(need.pinned.begin(), need.pinned.end(), info.view.node) != need.pinned.end();
}

bool Pool::could_host(const Query& query, std::uint32_t node) const {
  const Info& info = infos_[node];
  const Need& need = *query.need;
  return info.live && info.view.schedulable && need.amounts.within(info.capacity) &&
         is_there(query, node, matcher_.judged(need.constraint, info.cls)) && long_enough(query, node) &&
         affordable(query, node) && flow_ever(need.flow, node);
}

bool Pool::could_serve(const Query& query, std::uint32_t node) const {
  const Info& info = infos_[node];
  const Need& need = *query.need;
  return info.live && info.view.schedulable && need.amounts.within(info.capacity) &&
         is_there(query, node, matcher_.suits(need.constraint, info.cls));
}

Refusal Pool::refusal(const Query& query, std::uint32_t node) const {
  const std::uint32_t constraint = query.need->constraint, cls = infos_[node].cls;
  if (!matcher_.takes_tenant(constraint, cls)) return Refusal::Tenants;
  if (!matcher_.takes_image(constraint, cls)) return Refusal::Images;
  if (!long_enough(query, node)) return Refusal::Length;
  if (!flow_ever(query.need->flow, node)) return Refusal::Link;
  return affordable(query, node) ? Refusal::None : Refusal::Price;
}

std::pair<std::int32_t, std::int64_t> Pool::share_device(const Query& query, std::uint32_t node) const {
  const Machine& m = moving_.machines[node];
  std::pair<std::int32_t, std::int64_t> best{-1, 0};
  if (m.sharable == kNone) return best;
  const Sharable& s = moving_.sharables[m.sharable];
  const NodeView& view = infos_[node].view;
  const Constraint& c = matcher_.constraint(query.need->constraint);
  const std::int32_t share = query.need->load.share;
  const Condition now = condition_of(node);
  std::array<bool, kWholeGpu + 1> seen{};
  for (std::int32_t i = 0; i < std::min<std::int32_t>(kDevicesScored, static_cast<std::int32_t>(view.devices.size()));
       ++i) {
    const std::int16_t free = s.free[static_cast<std::size_t>(i)];
    if (!share_fits(s, i, share, query.tenant)) continue;
    const std::int32_t size = s.size[static_cast<std::size_t>(i)];
    if (size > 0 && !c.takes_instances()) continue;
    if (free == kWholeGpu && (m.free_devices >> i & 1U) == 0) continue;
    if (!matcher_.device_fits(c, view.devices[static_cast<std::size_t>(i)])) continue;
    if (std::exchange(seen[static_cast<std::size_t>(free)], true)) continue;  // equal devices score alike
    std::int64_t value = States::score_share(now, free, query.need->load, packing_);
    if (size > 0) value -= std::int64_t{size - share} * kPointsPerMilli;  // the rest of an instance is nobody's
    if (best.first < 0 || value > best.second) best = {i, value};
  }
  return best;
}

// ---- search
void Pool::refresh_top(Segment& s) const {
  s.top = kernels_->largest(s.block_max.data(), static_cast<std::uint32_t>(s.block_max.size()), s.top_block);
}

void Pool::open_condition(const Query& query, std::uint32_t model, std::uint32_t state, std::int64_t score, Found& best,
                          std::uint64_t& order) {
  const std::int64_t value = score - scarcity(query, model);
  const std::uint32_t hot = hot_bit(query.need->image);
  moving_.lists.each(moving_.models[model].cells[state], [&](std::uint32_t number) {
    const Cell& cell = moving_.cells[number];
    const NodeClass& k = matcher_.class_of(cell.cls);
    std::int64_t here = value - penalty(query, k);
    if (query.need->image != 0 && (k.hot & hot) == 0) here -= query.weights->cold;
    if (best && here < best.value) return true;
    const Verdict verdict = matcher_.judge(query.need->constraint, cell.cls);
    if (verdict == Verdict::No || !timely(query, k)) return true;
    // Whose the shares on a device are is not in its condition: there the value is only a bound.
    const bool bound = query.need->load.share > 0 && query.tenant != 0;
    moving_.orders.each(cell.nodes, [&](std::uint64_t o) {
      if (best && here == best.value && o >= order && !bound) return false;
      const auto node = static_cast<std::uint32_t>(o & ((1U << kNumberBits) - 1));
      if (!hosts_if_judged(query, node, moving_.machines[node], verdict)) return true;
      const std::int64_t total = bound ? here - score + share_device(query, node).second : here;
      if (best && (total < best.value || (total == best.value && o >= order))) return true;
      best = {node, total};
      order = o;
      return bound;
    });
    return true;
  });
}

std::pair<std::int64_t, std::uint64_t> Pool::value(const Query& query, std::uint32_t node) {
  refresh_pressure();
  const Info& info = infos_[node];
  const Cell& cell = moving_.cells[moving_.machines[node].cell];
  std::int64_t value = query.need->load.share > 0 && query.tenant != 0
                           ? share_device(query, node).second
                           : states_.score(cell.model, cell.state, query.need->load, packing_);
  if (value == kNever) value = -(std::int64_t{1} << 40);  // it fits, though scores do not know how
  value -= scarcity(query, cell.model) + penalty(query, matcher_.class_of(cell.cls));
  return {is_cold(query, info) ? value - query.weights->cold : value, info.order};
}

void Pool::consider(const Query& query, std::uint32_t node, Found& best, std::uint64_t& order) {
  if (!hosts(query, node)) return;
  const auto [value, place] = this->value(query, node);
  if (best && (value < best.value || (value == best.value && place >= order))) return;
  best = {node, value};
  order = place;
}

Found Pool::best_of_list(const Query& query) {
  Found best;
  std::uint64_t order = 0;
  const Need& need = *query.need;
  const auto look = [&](std::uint32_t node) {
    consider(query, node, best, order);
    return true;
  };
  if (!need.pinned.empty()) {
    for (const NodeId id : need.pinned)
      if (const std::uint32_t node = index_of(id); node != kNone) look(node);
  } else if (need.own) {
    if (const auto it = by_supplier_.find(need.own); it != by_supplier_.end()) groups_.each(it->second, look);
  } else if (const auto it = by_pool_.find(need.named_pool); it != by_pool_.end()) {
    groups_.each(it->second, look);
  }
  return best;
}

Found Pool::best_of(const Query& query, const std::vector<std::uint32_t>& nodes) {
  refresh_pressure();
  Found best;
  std::uint64_t order = 0;
  for (const std::uint32_t node : nodes) consider(query, node, best, order);
  return best;
}

// As schedulers do that cannot compare all: the first few that would do, from another place on each time.
Found Pool::best_of_some(const Query& query) {
  Found best;
  std::uint64_t order = 0;
  const auto from = static_cast<std::uint32_t>(hash_with(seed_, ++samples_) % std::max(1U, limit()));
  std::uint32_t seen = 0;
  for (std::uint32_t i = 0; i < limit() && seen < sampled_; ++i) {
    const std::uint32_t node = (from + i) % limit();
    if (!hosts(query, node)) continue;
    ++seen;
    consider(query, node, best, order);
  }
  return best;
}

Found Pool::best(const Query& query) {
  const Need& need = *query.need;
  if (!need.amounts.within(most_)) return {};
  refresh_pressure();
  if (!need.pinned.empty() || need.own || need.named_pool != 0) return best_of_list(query);
  if (sampled_ > 0) return best_of_some(query);
  const std::uint32_t hot = hot_bit(need.image);
  const std::int64_t cold = need.image != 0 && hot == 0 ? query.weights->cold : 0;
  std::uint32_t used = need.models & states_.models_used();
  std::array<Segment*, kModels> open{};
  std::size_t n = 0;
  for (std::uint32_t m = 0; m < kModels; ++m) {
    if ((used >> m & 1U) == 0 || moving_.models[m].live.empty()) continue;
    Segment& s = segments_[m];
    s.model = m;
    auto& live = moving_.models[m].live;
    live.resize((states_.size(m) + kRowBlock - 1) / kRowBlock, 0);
    states_.scores(m, need.load, packing_, live, *kernels_, s.scores, s.block_max);
    s.offset = -scarcity(query, m) - least_penalty(*query.weights, m) - cold;
    refresh_top(s);
    if (s.top != kNever) open[n++] = &s;
  }
  Found best;
  std::uint64_t order = 0;
  if (cold > 0)
    if (const auto it = holders_.find(need.image); it != holders_.end()) {
      std::size_t looked = 0;
      holder_orders_.each(it->second, [&](std::uint64_t o) {
        consider(query, static_cast<std::uint32_t>(o & ((1U << kNumberBits) - 1)), best, order);
        return ++looked < kHoldersMax;
      });
    }
  while (n > 0) {
    std::size_t at = 0;
    for (std::size_t i = 1; i < n; ++i)
      if (open[i]->top + open[i]->offset > open[at]->top + open[at]->offset) at = i;
    Segment& s = *open[at];
    if (best && s.top + s.offset < best.value) break;
    std::int32_t* block = s.scores.data() + std::size_t{s.top_block} * kRowBlock;
    std::uint32_t in_block = 0;
    const std::int32_t score = kernels_->largest(block, kRowBlock, in_block);
    block[in_block] = kNever;
    std::uint32_t ignored = 0;
    s.block_max[s.top_block] = kernels_->largest(block, kRowBlock, ignored);
    const std::uint32_t state = s.top_block * kRowBlock + in_block;
    refresh_top(s);
    open_condition(query, s.model, state, score, best, order);
    if (s.top == kNever) open[at] = open[--n];
  }
  return best;
}

Taken Pool::what_it_takes(const Query& query, std::uint32_t node) const {
  const Machine& m = moving_.machines[node];
  const Need& need = *query.need;
  if (need.load.whole_machine) return {node, m.free, m.free_devices, 0, -1, -1, 0, m.whole, need.flow};
  Taken taken{node, need.amounts, 0, need.load.share, -1, -1, query.tenant, m.whole, need.flow};
  if (need.load.share > 0) {
    taken.device = share_device(query, node).first;
    const Sharable& s = moving_.sharables[m.sharable];
    taken.instance = taken.device >= 0 && s.size[static_cast<std::size_t>(taken.device)] > 0;
    if ((s.mig >> taken.device & 1U) != 0)
      taken.start = mig_start(s.slots[static_cast<std::size_t>(taken.device)], mig_slots(need.load.share));
    return taken;
  }
  const NodeView& view = infos_[node].view;
  const Constraint& c = matcher_.constraint(need.constraint);
  std::int32_t left = need.load.gpus;
  for (std::size_t i = 0; i < std::min<std::size_t>(view.devices.size(), 64) && left > 0; ++i) {
    if ((m.free_devices >> i & 1U) == 0 || !matcher_.device_fits(c, view.devices[i])) continue;
    taken.devices |= std::uint64_t{1} << i;
    --left;
  }
  return taken;
}

Taken Pool::taken_by(const LeaseView& lease, std::uint32_t node) const {
  const NodeView& view = infos_[node].view;
  const Flow flow = needed_flow(lease.resources.traffic);
  Taken taken{node, free_amounts(lease.resources), 0, 0, -1, -1, 0, false, flow};
  if (lease.share_milli <= 0) {
    taken.devices = device_bits(view, lease.devices);
    return taken;
  }
  taken.share = std::min(lease.share_milli, kWholeGpu), taken.tenant = lease.tenant.value;
  const std::uint32_t sharable = moving_.machines[node].sharable;
  for (std::size_t i = 0; i < std::min<std::size_t>(view.devices.size(), kDevicesScored); ++i)
    if (!lease.devices.empty() && view.devices[i].uuid == lease.devices.front()) {
      taken.device = static_cast<std::int32_t>(i);
      taken.instance = sharable != kNone && moving_.sharables[sharable].size[i] > 0;
    }
  return taken;
}

void Pool::change_share(Machine& m, const Taken& t, bool taken) {
  if (m.sharable == kNone || t.device < 0) return;  // the machine's devices changed meanwhile
  Sharable& s = moving_.sharables[m.sharable];
  const auto i = static_cast<std::size_t>(t.device);
  if (s.free[i] == kNotShared) return;
  if (s.size[i] > 0) {
    s.free[i] = taken ? std::int16_t{0} : s.size[i];
    return;
  }
  if ((s.mig >> i & 1U) != 0) {
    const auto run = static_cast<std::uint8_t>(((1U << mig_slots(t.share)) - 1) << std::max(0, t.start));
    s.slots[i] = static_cast<std::uint8_t>(taken ? s.slots[i] | run : s.slots[i] & ~run);
    s.free[i] = mig_free(s.slots[i]);
  } else {
    s.free[i] = static_cast<std::int16_t>(std::clamp(s.free[i] + (taken ? -t.share : t.share), 0, kWholeGpu));
    s.holder[i] = s.free[i] == kWholeGpu ? 0 : t.tenant;
  }
  const std::uint64_t bit = std::uint64_t{1} << i;
  m.free_devices = s.free[i] == kWholeGpu ? m.free_devices | bit : m.free_devices & ~bit;
}

void Pool::take(const Taken& t) {
  unlink(t.node);
  Machine& m = moving_.machines[t.node];
  m.free.cpu -= std::min(m.free.cpu, t.amounts.cpu), m.free.memory -= std::min(m.free.memory, t.amounts.memory);
  m.free.disk -= std::min(m.free.disk, t.amounts.disk);
  m.free_devices &= ~t.devices;
  m.whole = false;
  if (t.flow.any()) set_flow(t.node, m.flow.plus(t.flow));
  if (t.share > 0) change_share(m, t, true);
  link(t.node);
  touch(t.node);
}

void Pool::give_back(const Taken& t) {
  unlink(t.node);
  Machine& m = moving_.machines[t.node];
  m.free.cpu += t.amounts.cpu, m.free.memory += t.amounts.memory, m.free.disk += t.amounts.disk;
  most_ = {std::max(most_.cpu, m.free.cpu), std::max(most_.memory, m.free.memory), std::max(most_.disk, m.free.disk)};
  m.free_devices |= t.devices;
  m.whole = t.whole;
  if (t.flow.any()) set_flow(t.node, m.flow.minus(t.flow));
  if (t.share > 0) change_share(m, t, false);
  link(t.node);
  touch(t.node);
}

}  // namespace muster::scheduler
