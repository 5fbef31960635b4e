// The helper on a head tells what only Ray knows. Hostile input: it can raise nothing above max, and lower nothing
// below min.
#include <algorithm>

#include "control/decide.h"
#include "model/validate.h"

namespace muster::control {
namespace {

constexpr std::size_t kDemandsMax = 256;
constexpr std::uint32_t kUnitsMax = 4096;
constexpr std::size_t kRayNodesMax = 2 * kWorkersMax;

struct Bin {
  Resources free;
  std::string group;
};

bool take(Bin& bin, const Resources& need) {
  if (!fits(need, bin.free)) return false;
  for (const auto& [name, amount] : need.custom_milli) {
    const auto it = bin.free.custom_milli.find(name);
    if (amount > 0 && (it == bin.free.custom_milli.end() || it->second < amount)) return false;
  }
  bin.free.cpu_milli -= need.cpu_milli, bin.free.memory_bytes -= need.memory_bytes, bin.free.gpus -= need.gpus;
  for (const auto& [name, amount] : need.custom_milli)
    if (const auto it = bin.free.custom_milli.find(name); it != bin.free.custom_milli.end()) it->second -= amount;
  return true;
}
bool sane(const Resources& r) {
  if (r.cpu_milli < 0 || r.memory_bytes < 0 || r.gpus < 0 || r.custom_milli.size() > 32) return false;
  return std::all_of(r.custom_milli.begin(), r.custom_milli.end(), [](const auto& entry) { return entry.second >= 0; });
}
// What one worker of a group offers to Ray; a whole machine is as large as the largest one seen, or large enough for
// anything.
Resources template_of(const WorkerGroup& group, const Resources& largest) {
  Resources r = group.request.resources;
  constexpr std::int64_t kUnknown = std::int64_t{1} << 50;
  if (group.request.whole_machine) r.cpu_milli = largest.cpu_milli != 0 ? largest.cpu_milli : kUnknown;
  if (group.request.whole_machine && largest.cpu_milli == 0) r.gpus = kUnknown;
  if (group.request.whole_machine && largest.cpu_milli != 0) r.gpus = std::max(r.gpus, largest.gpus);
  if (r.memory_bytes == 0) r.memory_bytes = largest.memory_bytes != 0 ? largest.memory_bytes : kUnknown;
  r.disk_bytes = kUnknown;
  return r;
}

struct RaySide {  // the report, matched to our slots
  std::map<std::uint32_t, const RayNodeReport*> by_address;
  std::map<std::string, Resources> largest;
};
RaySide match(const Draft& d, const Cluster& cluster, const RayReport& report) {
  RaySide side;
  for (std::size_t i = 0; i < std::min(report.nodes.size(), kRayNodesMax); ++i)
    if (report.nodes[i].alive && sane(report.nodes[i].total))
      side.by_address[report.nodes[i].address] = &report.nodes[i];
  for (const SlotId id : cluster.slots) {
    const Slot* slot = d.slot(id);
    const auto it = slot == nullptr ? side.by_address.end() : side.by_address.find(slot->address);
    if (it == side.by_address.end() || slot->role != SlotRole::Worker) continue;
    Resources& largest = side.largest[slot->group];
    largest.cpu_milli = std::max(largest.cpu_milli, it->second->total.cpu_milli);
    largest.memory_bytes = std::max(largest.memory_bytes, it->second->total.memory_bytes);
    largest.gpus = std::max(largest.gpus, it->second->total.gpus);
  }
  return side;
}

// First fit of the pending demands into workers that idle or are on their way, then into new ones up to max.
std::map<std::string, std::uint32_t> demanded(const Draft& d, const Cluster& cluster, const RayReport& report,
                                              const RaySide& side) {
  std::map<std::string, std::uint32_t> wanted = cluster.wanted, coming = cluster.wanted;
  std::vector<Bin> bins;
  for (const SlotId id : cluster.slots) {
    const Slot* slot = d.slot(id);
    if (slot == nullptr || slot->role != SlotRole::Worker) continue;
    const auto it = side.by_address.find(slot->address);
    if (it == side.by_address.end()) continue;
    if (auto& left = coming[slot->group]; left > 0) --left;
    if (it->second->idle.count() > 0)
      bins.push_back({it->second->total, slot->group}), bins.back().free.disk_bytes = std::int64_t{1} << 50;
  }
  const auto template_for = [&](const WorkerGroup& group) {
    const auto it = side.largest.find(group.name);
    return template_of(group, it == side.largest.end() ? Resources{} : it->second);
  };
  for (const WorkerGroup& group : cluster.spec.groups)
    for (std::uint32_t n = coming[group.name]; n > 0; --n) bins.push_back({template_for(group), group.name});
  const auto open_bin = [&](const Resources& need) {
    for (const WorkerGroup& group : cluster.spec.groups) {
      Bin bin{template_for(group), group.name};
      if (wanted[group.name] >= group.max || !take(bin, need)) continue;
      ++wanted[group.name];
      bins.push_back(std::move(bin));
      return true;
    }
    return false;
  };
  std::uint32_t units = kUnitsMax;
  for (std::size_t i = 0; i < std::min(report.demands.size(), kDemandsMax); ++i) {
    const RayDemand& demand = report.demands[i];
    if (!sane(demand.bundle)) continue;
    std::size_t at = 0;  // equal units: a bin that refused one refuses all
    for (std::uint32_t n = std::min(demand.count, units); n > 0; --n, --units) {
      while (at < bins.size() && !take(bins[at], demand.bundle)) ++at;
      if (at == bins.size() && !open_bin(demand.bundle)) break;
      if (demand.strict_spread) ++at;
    }
  }
  return wanted;
}

void release_idle(Draft& d, ClusterId id, const RaySide& side) {
  const Cluster& cluster = d.cluster(id);
  if (cluster.spec.idle_timeout.count() == 0 || d.state.frozen) return;
  const std::vector<SlotId> slots = cluster.slots;
  for (auto slot_it = slots.rbegin(); slot_it != slots.rend(); ++slot_it) {  // the newest first
    const Slot* slot = d.slot(*slot_it);
    const Lease* lease = slot == nullptr ? nullptr : d.lease(slot->lease);
    const auto ray = slot == nullptr ? side.by_address.end() : side.by_address.find(slot->address);
    if (lease == nullptr || slot->role != SlotRole::Worker || lease->want != LeaseWant::Run ||
        ray == side.by_address.end())
      continue;
    const WorkerGroup* group = find_group(cluster.spec, slot->group);
    if (group == nullptr || ray->second->idle < cluster.spec.idle_timeout) continue;
    const auto wanted = cluster.wanted.find(slot->group);
    if (wanted == cluster.wanted.end() || wanted->second <= group->min) continue;
    d.emit(ClusterWanted{id, slot->group, wanted->second - 1});
    drain_slot(d, *slot_it, "idle");
  }
}

}  // namespace

Decided decide(const Asking& a, const ReportRay& c) {
  TRY_VOID(a.device_only(c.node));
  const Lease* lease = a.base.find_lease(c.report.lease);
  const Slot* slot = lease == nullptr ? nullptr : a.base.find_slot(lease->slot);
  const Cluster* cluster = a.base.find_cluster(c.report.cluster);
  if (cluster == nullptr || slot == nullptr || slot->role != SlotRole::Head || lease->node != c.node ||
      lease->cluster != c.report.cluster || lease->end != LeaseEnd::None || cluster->state != ClusterState::Running)
    return Decision{};  // a late report of something that ended
  if (cluster->spec.groups.empty()) return Decision{};
  Draft d(a.base, a.actor, a.wall);
  d.pull(c.report.cluster);
  const RaySide side = match(d, d.cluster(cluster->id), c.report);
  bool raised = false;
  for (const auto& [group, workers] : demanded(d, *cluster, c.report, side))
    if (const auto it = cluster->wanted.find(group); it != cluster->wanted.end() && workers > it->second) {
      d.emit(ClusterWanted{cluster->id, group, workers});
      raised = true;
    }
  if (!raised && c.report.demands.empty()) release_idle(d, cluster->id, side);
  for (const SlotId id : std::vector<SlotId>(d.cluster(cluster->id).slots)) {  // drained: Ray no longer counts on it
    const Slot* worker = d.slot(id);
    const Lease* held = worker == nullptr ? nullptr : d.lease(worker->lease);
    const Lease* before = worker == nullptr ? nullptr : a.base.find_lease(worker->lease);
    if (held == nullptr || held->want != LeaseWant::Drain || before == nullptr || before->want != LeaseWant::Drain)
      continue;
    if (!side.by_address.contains(worker->address)) lose_slot(d, id, "drained");
  }
  return done(d, cluster->id.str());
}

}  // namespace muster::control
