#include "scheduler/matcher.h"

#include <algorithm>
#include <bit>

#include "model/offer.h"

namespace muster::scheduler {
namespace {

constexpr std::size_t kKeysMax = 64;  // label keys that split the pool; more are looked up machine by machine

std::uint64_t hash_all(std::initializer_list<std::uint64_t> values) {
  std::uint64_t h = values.size();
  for (const std::uint64_t value : values) h = hash_with(h, value);
  return h;
}
template <class List>
bool has(const List& list, const typename List::value_type& item) {
  return std::find(list.begin(), list.end(), item) != list.end();
}
std::uint32_t mib(std::int64_t bytes) {
  return static_cast<std::uint32_t>(std::clamp<std::int64_t>(bytes >> 20, 0, 1 << 30));
}
std::uint8_t octave_level(std::int64_t value, unsigned per_octave_log, unsigned most) {
  if (value <= 0) return 0;
  const auto v = static_cast<std::uint64_t>(value);
  const auto width = static_cast<unsigned>(std::bit_width(v));  // 1..63
  const unsigned fraction =
      width > per_octave_log ? static_cast<unsigned>(v >> (width - 1 - per_octave_log)) & ((1U << per_octave_log) - 1)
                             : 0;
  return static_cast<std::uint8_t>(std::min(((width - 1) << per_octave_log) + fraction, most));
}

// The largest share of the device that a lease may have, and whether it is a MIG instance.
std::pair<std::int32_t, bool> part_of(const NodeView& view, const std::string& uuid) {
  for (const DeviceUse& use : view.shared) {
    if (use.uuid != uuid || use.sharing == Sharing::Exclusive) continue;
    if (use.sharing == Sharing::Instance) return {std::clamp(use.instance_milli, 1, 1'000), true};
    return {1'000, false};
  }
  return {0, false};
}

}  // namespace

std::uint8_t price_level(std::int64_t micro_per_hour) {
  if (micro_per_hour <= 0) return 0;
  // From a thousandth of a credit upwards; what costs less costs next to nothing.
  return static_cast<std::uint8_t>(std::clamp<int>(octave_level(micro_per_hour, 3, 255) - 80, 1, kPriceLevels - 1));
}
std::uint8_t risk_level(std::int64_t failures_ppm) {
  return octave_level(failures_ppm, 1, kRiskLevels - 1);
}
std::int64_t risk_ppm(std::uint8_t level) {
  if (level == 0) return 0;
  const std::int64_t octave = std::int64_t{1} << (level >> 1);
  return (level & 1U) != 0 ? octave + octave / 2 : octave;
}
std::uint8_t link_level(std::int64_t kbps) {
  return octave_level(kbps, 0, kLinkLevels - 1);
}

std::uint64_t DeviceSet::hash() const {
  std::uint64_t h = kinds.size();
  for (const DeviceKind& k : kinds)
    h = hash_all(
        {h, k.model, k.memory_mib, k.count, static_cast<std::uint64_t>(k.part) << 1 | std::uint64_t{k.instance}});
  return h;
}
std::uint64_t LabelSet::hash() const {
  std::uint64_t h = labels.size();
  for (const auto& [key, value] : labels) h = hash_all({h, key, value});
  return h;
}
std::uint64_t SymbolSet::hash() const {
  std::uint64_t h = symbols.size();
  for (const std::uint32_t s : symbols) h = hash_with(h, s);
  return h;
}
std::uint64_t OfferTerms::hash() const {
  std::uint64_t h = hash_all({static_cast<std::uint64_t>(shortest_ms), static_cast<std::uint64_t>(longest_ms),
                              tenants.size(), refused.size(), images.size()});
  for (const OrgId t : tenants) h = hash_with(h, t.value);
  for (const OrgId t : refused) h = hash_with(h, t.value);
  for (const std::string& i : images) h = hash_with(h, hash_text(i));
  return h;
}
std::uint64_t NodeClass::hash() const {
  return hash_all({arch, pool, jurisdiction, devices, labels, taints, offer, driver, cuda, currency,
                   static_cast<std::uint64_t>(until_ms),
                   runtimes | std::uint64_t{tier} << 8 | std::uint64_t{price} << 16 | std::uint64_t{risk} << 24 |
                       std::uint64_t{risk_hoped} << 32 | std::uint64_t{link} << 40 | std::uint64_t{hot} << 48 |
                       std::uint64_t{egress} << 56 | std::uint64_t{relayed} << 57});
}
std::uint64_t Constraint::hash() const {
  std::uint64_t h = hash_all(
      {arch, pool, image, gpus, gpu_memory_mib, static_cast<std::uint64_t>(kind), tenant.value,
       runtime | std::uint64_t{floor} << 8 | std::uint64_t{egress} << 16 | static_cast<std::uint64_t>(share) << 24,
       models.size()});
  for (const std::uint32_t m : models) h = hash_with(h, m);
  for (const auto& [key, value] : labels) h = hash_all({h, key, value});
  return h;
}

bool Constraint::takes_instances() const {
  return (runtime >> static_cast<unsigned>(RuntimeKind::Venv) & 1U) == 0;
}

bool Matcher::key_matters(const std::string& key) const {
  return std::binary_search(keys_.begin(), keys_.end(), key);
}

std::uint32_t Matcher::acquire_class(const NodeView& view, std::uint8_t hot, std::int64_t until_ms, bool explored) {
  NodeClass k;
  k.arch = symbols.acquire(view.arch);
  if (const auto pool = view.labels.find("pool"); pool != view.labels.end()) k.pool = symbols.acquire(pool->second);
  k.jurisdiction = symbols.acquire(view.jurisdiction);
  DeviceSet devices;
  for (const Device& d : view.devices) {
    const std::uint32_t model = symbols.acquire(d.model), memory = mib(d.memory_bytes);
    const auto [part, instance] = part_of(view, d.uuid);
    const auto same = std::find_if(devices.kinds.begin(), devices.kinds.end(), [&](const DeviceKind& kind) {
      return kind.model == model && kind.memory_mib == memory && kind.part == part && kind.instance == instance;
    });
    if (same != devices.kinds.end())
      ++same->count, symbols.release(model);
    else
      devices.kinds.push_back({model, memory, 1, part, instance});
  }
  std::sort(devices.kinds.begin(), devices.kinds.end());
  bool fresh = false;
  const auto models = devices.kinds;
  k.devices = device_sets.acquire(std::move(devices), &fresh);
  if (!fresh)
    for (const DeviceKind& kind : models) symbols.release(kind.model);
  LabelSet labels;
  for (const auto& [key, value] : view.labels)
    if (key_matters(key)) labels.labels.emplace_back(symbols.acquire(key), symbols.acquire(value));
  std::sort(labels.labels.begin(), labels.labels.end());
  const auto pairs = labels.labels;
  k.labels = label_sets.acquire(std::move(labels), &fresh);
  if (!fresh)
    for (const auto& [key, value] : pairs) symbols.release(key), symbols.release(value);
  SymbolSet taints;
  for (const std::string& taint : view.taints) taints.symbols.push_back(symbols.acquire(taint));
  std::sort(taints.symbols.begin(), taints.symbols.end());
  const auto names = taints.symbols;
  k.taints = taint_sets.acquire(std::move(taints), &fresh);
  if (!fresh)
    for (const std::uint32_t name : names) symbols.release(name);
  k.offer = offers.acquire({view.offer.tenants, view.offer.refused, view.offer.images, view.offer.shortest.count(),
                            view.offer.longest.count()});
  k.driver = view.driver, k.cuda = view.cuda, k.until_ms = until_ms;
  for (const RuntimeKind r : view.runtimes)
    k.runtimes |= static_cast<std::uint8_t>(1U << (static_cast<unsigned>(r) & 7U));
  k.tier = static_cast<std::uint8_t>(view.tier);
  const auto devices_in_all = std::max<std::int64_t>(1, static_cast<std::int64_t>(view.devices.size()));
  k.price =
      price_level(std::clamp<std::int64_t>(view.offer.price_per_hour, 0, kPriceMax) / devices_in_all +
                  (view.devices.empty() ? 0 : std::clamp<std::int64_t>(view.offer.price_per_gpu_hour, 0, kPriceMax)));
  if (k.price != 0) k.currency = symbols.acquire(view.offer.currency);
  const std::int64_t mean = std::clamp<std::int64_t>(view.reliability.failures_ppm, 0, 1'000'000),
                     spread = std::clamp<std::int64_t>(view.reliability.uncertainty_ppm, 0, 1'000'000);
  k.risk = risk_level(mean + spread);
  k.risk_hoped = explored ? risk_level(std::max<std::int64_t>(0, mean - spread)) : k.risk;
  const auto known = [](std::int64_t a, std::int64_t b) { return a <= 0 ? b : b <= 0 ? a : std::min(a, b); };
  k.link = link_level(known(view.link.up_kbps, view.link.down_kbps));
  k.hot = hot, k.egress = view.egress, k.relayed = view.link.relayed;
  const NodeClass parts = k;
  const std::uint32_t id = classes_.acquire(std::move(k), &fresh);
  if (fresh) {
    if (offers[parts.offer].choosy() && !restricted_) restricted_ = restriction_new_ = true;
  } else {  // its parts are held already
    symbols.release(parts.arch), symbols.release(parts.pool), symbols.release(parts.jurisdiction);
    symbols.release(parts.currency);
    device_sets.release(parts.devices), label_sets.release(parts.labels), taint_sets.release(parts.taints);
    offers.release(parts.offer);
  }
  return id;
}

void Matcher::release_class(std::uint32_t id) {
  if (!classes_.release(id)) return;
  const NodeClass k = classes_[id];
  symbols.release(k.arch), symbols.release(k.pool), symbols.release(k.jurisdiction), symbols.release(k.currency);
  if (device_sets.release(k.devices))
    for (const DeviceKind& kind : device_sets[k.devices].kinds) symbols.release(kind.model);
  if (label_sets.release(k.labels))
    for (const auto& [key, value] : label_sets[k.labels].labels) symbols.release(key), symbols.release(value);
  if (taint_sets.release(k.taints))
    for (const std::uint32_t name : taint_sets[k.taints].symbols) symbols.release(name);
  offers.release(k.offer);
  for (std::uint32_t c = 0; c < constraints_.limit(); ++c)
    if (auto& verdicts = constraints_.value(c).verdicts; id < verdicts.size()) verdicts[id] = Verdict::Unknown;
}

std::uint32_t Matcher::acquire_constraint(const Request& request, const NodeRequest& need) {
  Constraint c;
  c.arch = symbols.acquire(request.arch);
  c.kind = request.pool == "own"               ? PoolKind::Own
           : request.pool.starts_with("pool:") ? PoolKind::Named
                                               : PoolKind::Market;
  if (c.kind == PoolKind::Named) c.pool = symbols.acquire(std::string_view(request.pool).substr(5));
  if (c.kind == PoolKind::Own || restricted_) c.tenant = request.tenant;
  if (restricted_) c.image = symbols.acquire(request.image);
  c.runtime = static_cast<std::uint8_t>(1U << (static_cast<unsigned>(request.runtime) & 7U));
  c.egress = request.egress;
  c.floor = static_cast<std::uint8_t>(request.min_trust);
  c.gpus = static_cast<std::uint32_t>(std::clamp<std::int64_t>(need.resources.gpus, 0, 1 << 20));
  if (need.gpu_share_milli > 0) c.gpus = 1, c.share = std::min(need.gpu_share_milli, 1'000);
  if (need.gpu_any.empty() && !need.gpu_model.empty()) c.models.push_back(symbols.acquire(need.gpu_model));
  for (const GpuChoice& choice : need.gpu_any) c.models.push_back(symbols.acquire(choice.model));
  if (!c.models.empty()) c.gpus = std::max(c.gpus, 1U);
  constexpr std::int64_t kMib = 1 << 20;
  c.gpu_memory_mib = mib(std::clamp<std::int64_t>(need.gpu_memory_bytes, 0, kMib << 30) + kMib - 1);
  for (const auto& [key, value] : need.constraints) {
    if (!key_matters(key) && keys_.size() < kKeysMax) {
      keys_.insert(std::lower_bound(keys_.begin(), keys_.end(), key), key);
      new_keys_ = true;
    }
    c.labels.emplace_back(symbols.acquire(key), symbols.acquire(value));
  }
  std::sort(c.labels.begin(), c.labels.end());
  bool fresh = false;
  const std::uint32_t id = constraints_.acquire({std::move(c), {}}, &fresh);
  if (fresh) {
    constraints_.value(id).verdicts.clear();
  } else {  // its parts are held already
    const Constraint& parts = constraints_[id].constraint;
    symbols.release(parts.arch), symbols.release(parts.pool), symbols.release(parts.image);
    for (const std::uint32_t model : parts.models) symbols.release(model);
    for (const auto& [key, value] : parts.labels) symbols.release(key), symbols.release(value);
  }
  return id;
}

void Matcher::release_constraint(std::uint32_t id) {
  if (!constraints_.release(id)) return;
  const Constraint& c = constraints_[id].constraint;
  symbols.release(c.arch), symbols.release(c.pool), symbols.release(c.image);
  for (const std::uint32_t model : c.models) symbols.release(model);
  for (const auto& [key, value] : c.labels) symbols.release(key), symbols.release(value);
  constraints_.value(id).verdicts = {};
}

Verdict Matcher::judge(std::uint32_t constraint, std::uint32_t cls) {
  auto& verdicts = constraints_.value(constraint).verdicts;
  if (cls >= verdicts.size()) verdicts.resize(classes_.limit(), Verdict::Unknown);
  if (verdicts[cls] == Verdict::Unknown) verdicts[cls] = decide(constraints_[constraint].constraint, classes_[cls]);
  return verdicts[cls];
}

Verdict Matcher::judged(std::uint32_t constraint, std::uint32_t cls) const {
  const Judged& j = constraints_[constraint];
  if (cls < j.verdicts.size() && j.verdicts[cls] != Verdict::Unknown) return j.verdicts[cls];
  return decide(j.constraint, classes_[cls]);
}

Verdict Matcher::suits(std::uint32_t constraint, std::uint32_t cls) const {
  return suits(constraints_[constraint].constraint, classes_[cls]);
}
bool Matcher::takes_tenant(std::uint32_t constraint, std::uint32_t cls) const {
  return takes_tenant(constraints_[constraint].constraint, classes_[cls]);
}
bool Matcher::takes_image(std::uint32_t constraint, std::uint32_t cls) const {
  return takes_image(constraints_[constraint].constraint, classes_[cls]);
}

Verdict Matcher::decide(const Constraint& c, const NodeClass& k) const {
  const Verdict verdict = suits(c, k);
  if (verdict == Verdict::No || !takes_tenant(c, k) || !takes_image(c, k)) return Verdict::No;
  return verdict;
}

bool Matcher::takes_tenant(const Constraint& c, const NodeClass& k) const {
  const OfferTerms& offer = offers[k.offer];
  return (offer.tenants.empty() || has(offer.tenants, c.tenant)) && !has(offer.refused, c.tenant);
}
bool Matcher::takes_image(const Constraint& c, const NodeClass& k) const {
  const OfferTerms& offer = offers[k.offer];
  return offer.images.empty() || image_offered(offer.images, symbols[c.image]);
}

Verdict Matcher::suits(const Constraint& c, const NodeClass& k) const {
  if (k.arch != c.arch || (k.runtimes & c.runtime) == 0 || (c.egress && !k.egress) || k.tier < c.floor)
    return Verdict::No;
  if (c.kind == PoolKind::Named && k.pool != c.pool) return Verdict::No;
  Verdict verdict = c.kind == PoolKind::Own ? Verdict::Check : Verdict::Yes;
  const auto& labels = label_sets[k.labels].labels;
  for (const auto& [key, value] : c.labels) {
    if (!key_matters(symbols[key])) {
      verdict = Verdict::Check;
      continue;
    }
    if (!has(labels, {key, value})) return Verdict::No;
  }
  if (c.gpus > 0) {
    const auto& kinds = device_sets[k.devices].kinds;
    std::uint32_t fitting = 0;
    for (const DeviceKind& kind : kinds)
      if (kind.memory_mib >= c.gpu_memory_mib && (c.models.empty() || has(c.models, kind.model)) &&
          (c.share > 0 ? kind.part >= c.share && (!kind.instance || c.takes_instances()) : !kind.instance))
        fitting += kind.count;
    if (fitting < c.gpus) return Verdict::No;
    if (kinds.size() > 1) verdict = Verdict::Check;
  }
  if (!taint_sets[k.taints].symbols.empty()) return Verdict::No;
  return verdict;
}

bool Matcher::device_fits(const Constraint& c, const Device& device) const {
  if (mib(device.memory_bytes) < c.gpu_memory_mib) return false;
  return c.models.empty() || std::any_of(c.models.begin(), c.models.end(),
                                         [&](std::uint32_t model) { return symbols[model] == device.model; });
}

bool Matcher::admits(std::uint32_t constraint, const NodeView& view) const {
  const Constraint& c = constraints_[constraint].constraint;
  if (c.kind == PoolKind::Own && view.supplier != c.tenant) return false;
  return std::all_of(c.labels.begin(), c.labels.end(), [&](const auto& label) {
    const auto it = view.labels.find(symbols[label.first]);
    return it != view.labels.end() && it->second == symbols[label.second];
  });
}

}  // namespace muster::scheduler
