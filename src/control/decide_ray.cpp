// The helper on a head tells what only Ray knows. Hostile input: it can raise nothing above max, and lower nothing
// below min.
#include <algorithm>
#include <set>

#include "control/decide.h"
#include "model/validate.h"

namespace muster::control {
namespace {

constexpr std::size_t kDemandsMax = 256;
constexpr std::uint32_t kUnitsMax = 4096;
constexpr std::size_t kRayNodesMax = 2 * kWorkersMax;

bool take(Resources& free, const Resources& need) {
  if (!fits(need, free)) return false;
  for (const auto& [name, amount] : need.custom_milli) {
    const auto it = free.custom_milli.find(name);
    if (amount > 0 && (it == free.custom_milli.end() || it->second < amount)) return false;
  }
  free.cpu_milli -= need.cpu_milli, free.memory_bytes -= need.memory_bytes, free.gpus -= need.gpus;
  for (const auto& [name, amount] : need.custom_milli)
    if (const auto it = free.custom_milli.find(name); it != free.custom_milli.end()) it->second -= amount;
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
    if (report.nodes[i].alive && sane(report.nodes[i].total) && sane(report.nodes[i].free))
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

// First fit of what Ray asks for into what there is, what is on its way, and then new workers up to the bounds. Work
// that waits looks for room that is free now; a standing request looks at the cluster as if it were empty.
class Fitting {
 public:
  Fitting(const Draft& d, const Cluster& cluster, const RaySide& side) : d_(d), cluster_(cluster), side_(side) {
    for (const WorkerGroup& group : cluster.spec.groups) {
      const auto it = cluster.wanted.find(group.name);
      wanted_[group.name] = it == cluster.wanted.end() ? group.min : it->second;
      all_ += wanted_[group.name];
    }
  }
  void run(const RayReport& report) {
    pass(report, false);
    pass(report, true);
    withdraw();
  }
  const std::map<std::string, std::uint32_t>& wanted() const { return wanted_; }
  bool needs(SlotId slot) const { return needed_.contains(slot); }

 private:
  struct Bin {
    Resources free;
    SlotId slot;  // none: a worker of `group` that is not there yet
    std::string group;
    std::uint32_t apart = 0;
    bool used = false;
  };

  void pass(const RayReport& report, bool standing) {
    std::vector<Bin> bins = present(standing);
    std::uint32_t units = kUnitsMax;
    for (std::size_t i = 0; i < std::min(report.demands.size(), kDemandsMax); ++i) {
      const RayDemand& demand = report.demands[i];
      if (demand.standing == standing && sane(demand.bundle)) place(demand, bins, units);
    }
    coming_.clear();
    std::map<std::string, std::uint32_t> used;
    for (const Bin& bin : bins) {
      if (bin.slot) continue;
      ++coming_[bin.group];
      if (bin.used) ++used[bin.group];
    }
    for (const auto& [group, count] : used) used_[group] = std::max(used_[group], count);
  }

  // Workers that nothing asks for any more and that have no machine yet are not waited for.
  void withdraw() {
    std::map<std::string, std::uint32_t> placed;
    for (const SlotId id : cluster_.slots) {
      const Slot* slot = d_.slot(id);
      const Lease* lease = slot == nullptr ? nullptr : d_.lease(slot->lease);
      if (lease != nullptr && slot->role == SlotRole::Worker && lease->want == LeaseWant::Run) ++placed[slot->group];
    }
    for (const WorkerGroup& group : cluster_.spec.groups) {
      std::uint32_t& wanted = wanted_[group.name];
      const std::uint32_t kept = std::max(group.min, placed[group.name]);
      const std::uint32_t idle = coming_[group.name] - used_[group.name];
      if (wanted > kept) wanted -= std::min(wanted - kept, idle);
    }
  }

  std::vector<Bin> present(bool whole) const {
    std::vector<Bin> bins;
    auto coming = wanted_;
    for (const SlotId id : cluster_.slots) {
      const Slot* slot = d_.slot(id);
      const auto it = slot == nullptr ? side_.by_address.end() : side_.by_address.find(slot->address);
      if (it == side_.by_address.end() || slot->role == SlotRole::Spare) continue;
      const Lease* lease = d_.lease(slot->lease);
      if (lease == nullptr || lease->want != LeaseWant::Run) continue;
      if (auto left = coming.find(slot->group);
          slot->role == SlotRole::Worker && left != coming.end() && left->second > 0)
        --left->second;
      Bin bin{whole ? it->second->total : it->second->free, id};
      bin.free.disk_bytes = std::int64_t{1} << 50;
      bins.push_back(std::move(bin));
    }
    for (const WorkerGroup& group : cluster_.spec.groups)
      for (std::uint32_t n = coming[group.name]; n > 0; --n) bins.push_back({template_for(group), {}, group.name});
    return bins;
  }

  void place(const RayDemand& demand, std::vector<Bin>& bins, std::uint32_t& units) {
    const std::uint32_t apart = demand.strict_spread ? std::max<std::uint32_t>(demand.group, 1) : 0;
    std::size_t at = 0;  // equal units: a bin that refused one refuses all
    for (std::uint32_t n = std::min(demand.count, units); n > 0; --n, --units) {
      while (at < bins.size() && ((apart != 0 && bins[at].apart == apart) || !take(bins[at].free, demand.bundle))) ++at;
      if (at == bins.size() && !open(demand.bundle, bins)) return;
      if (bins[at].slot) needed_.insert(bins[at].slot);
      bins[at].apart = apart;
      bins[at].used = true;
      if (apart != 0) ++at;
    }
  }

  bool open(const Resources& need, std::vector<Bin>& bins) {
    for (const WorkerGroup& group : cluster_.spec.groups) {
      Bin bin{template_for(group), {}, group.name};
      const bool full = cluster_.spec.max_workers != 0 && all_ >= cluster_.spec.max_workers;
      if (full || wanted_[group.name] >= group.max || !take(bin.free, need)) continue;
      ++wanted_[group.name];
      ++all_;
      bins.push_back(std::move(bin));
      return true;
    }
    return false;
  }

  Resources template_for(const WorkerGroup& group) const {
    const auto it = side_.largest.find(group.name);
    return template_of(group, it == side_.largest.end() ? Resources{} : it->second);
  }

  const Draft& d_;
  const Cluster& cluster_;
  const RaySide& side_;
  std::map<std::string, std::uint32_t> wanted_, coming_, used_;
  std::uint32_t all_ = 0;
  std::set<SlotId> needed_;
};

void release_idle(Draft& d, ClusterId id, const RaySide& side, const Fitting& fitting) {
  const Cluster& cluster = d.cluster(id);
  if (cluster.spec.idle_timeout.count() == 0 || d.state.frozen) return;
  const std::vector<SlotId> slots = cluster.slots;
  for (auto slot_it = slots.rbegin(); slot_it != slots.rend(); ++slot_it) {  // the newest first
    const Slot* slot = d.slot(*slot_it);
    const Lease* lease = slot == nullptr ? nullptr : d.lease(slot->lease);
    const auto ray = slot == nullptr ? side.by_address.end() : side.by_address.find(slot->address);
    if (lease == nullptr || slot->role != SlotRole::Worker || lease->want != LeaseWant::Run ||
        ray == side.by_address.end() || fitting.needs(*slot_it))
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
  Fitting fitting(d, *cluster, side);
  fitting.run(c.report);
  for (const auto& [group, workers] : fitting.wanted())
    if (const auto it = cluster->wanted.find(group); it != cluster->wanted.end() && workers != it->second)
      d.emit(ClusterWanted{cluster->id, group, workers});
  release_idle(d, cluster->id, side, fitting);
  for (const SlotId id : std::vector<SlotId>(d.cluster(cluster->id).slots)) {  // drained: Ray no longer counts on it
    const Slot* worker = d.slot(id);
    const Lease* held = worker == nullptr ? nullptr : d.lease(worker->lease);
    const Lease* before = worker == nullptr ? nullptr : a.base.find_lease(worker->lease);
    if (held == nullptr || held->want != LeaseWant::Drain || before == nullptr || before->want != LeaseWant::Drain)
      continue;
    if (!side.by_address.contains(worker->address))
      lose_slot(
          d, id,
          held->reason == kPreempted || held->reason == kMoved || held->reason == kSlowWays ? held->reason : "drained");
  }
  return done(d, cluster->id.str());
}

}  // namespace muster::control
