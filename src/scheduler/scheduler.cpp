#include "scheduler/scheduler.h"

#include <algorithm>

#include "scheduler/impl.h"

namespace muster::scheduler {

namespace {
constexpr std::int64_t kEndMax = std::int64_t{1} << 46;  // ms; far beyond any date
}

Scheduler::Scheduler(const Options& options) : impl_(std::make_unique<Impl>(options)) {}
Scheduler::~Scheduler() = default;
Scheduler::Scheduler(Scheduler&&) noexcept = default;
Scheduler& Scheduler::operator=(Scheduler&&) noexcept = default;

void Scheduler::apply(const Change& change) {
  std::visit([this](const auto& c) { impl_->apply(c); }, change);
}
void Scheduler::apply(Change&& change) {
  std::visit([this](auto&& c) { impl_->apply(std::move(c)); }, std::move(change));
}
std::vector<Group> Scheduler::plan(const Budget& budget, WallTime now) {
  return impl_->plan(budget, now);
}
std::vector<Change> Scheduler::snapshot() const {
  return impl_->snapshot();
}
std::vector<QueueView> Scheduler::queue(WallTime now) const {
  return impl_->page(now, 0, impl_->waiting);
}
std::vector<QueueView> Scheduler::queue_page(WallTime now, std::size_t offset, std::size_t limit) const {
  return impl_->page(now, offset, limit);
}
QueueView Scheduler::queue_of(ClusterId cluster, WallTime now) const {
  return impl_->view_of(cluster, now);
}
std::array<std::uint32_t, kTiers> Scheduler::held_by_tiers() const {
  std::array<std::uint32_t, kTiers> out{};
  for (std::uint8_t tier = 0; tier < kTiers; ++tier) out[tier] = impl_->usage.tier_permille(tier);
  return out;
}
std::map<std::string, std::uint32_t> Scheduler::refused_by(NodeId node, WallTime now) const {
  return impl_->refused_by(node, now);
}
std::size_t Scheduler::waiting() const {
  return impl_->waiting;
}

void Scheduler::Impl::apply(const LeaseGone& c) {
  const auto it = leases.find(c.lease);
  if (it == leases.end()) return;
  const LeaseView& lease = it->second;
  if (lease.role == SlotRole::Head && lease.since < c.at) run_times.add(lease.tenant, c.at - lease.since);
  usage.end(lease, c.at);
  const OrgId tenant = lease.tenant;
  const bool guaranteed = usage.guaranteed(usage.known(tenant, lease.project));
  drop_lease(lease);
  shadows_stale = true;
  if (guaranteed) wake_guaranteed(tenant);
}
void Scheduler::Impl::drop_lease(const LeaseView& lease) {
  const auto on = leases_on.find(lease.node);
  if (on->second.erase(lease.lease) > 0 && on->second.empty()) leases_on.erase(on);
  interruptible[std::min<std::size_t>(lease.tier, kTiers - 1)].erase(lease.lease);
  if (const auto of = leases_of.find(lease.cluster); of != leases_of.end()) {
    of->second.erase(lease.lease);
    if (of->second.empty()) leases_of.erase(of);
  }
  leaving.erase(lease.lease);
  ripening.erase({lease.since + kPreemptAfter, lease.lease});
  leases.erase(lease.lease);
}
void Scheduler::Impl::apply(const LeaseChanged& c) {
  LeaseView lease = c.lease;
  lease.since.ms = std::clamp<std::int64_t>(lease.since.ms, 0, kEndMax);
  bool counted = false;  // already, as it is: what it does now may be all that changed
  if (const auto it = leases.find(lease.lease); it != leases.end()) {
    const LeaseView& old = it->second;
    counted = old.tenant == lease.tenant && old.project == lease.project && old.tier == lease.tier &&
              old.since == lease.since && held_by(old) == held_by(lease);
    if (!counted) usage.undo(old);
    drop_lease(old);
  }
  if (!counted) usage.begin(lease);
  leases_on[lease.node].insert(lease.lease);
  leases.emplace(lease.lease, lease);
  shadows_stale = true;
  if (lease.tier >= kPreemptibleTier) leases_of[lease.cluster].insert(lease.lease);
  if (const auto moved = moves.find({lease.cluster, lease.node}); moved != moves.end())
    drop_proposal(ClusterId(moved->second));  // it came true
  if (lease.leaving) leaving.insert(lease.lease);
  if (!preemptible(lease, 0)) return;
  interruptible[std::min<std::size_t>(lease.tier, kTiers - 1)].insert(lease.lease);
  ripening.emplace(lease.since + kPreemptAfter, lease.lease);
}
void Scheduler::Impl::apply(const TermsChanged& c) {
  shadows_stale = true;
  ends.erase(c.cluster), starts.erase(c.cluster);
  if (const std::int64_t longest = length_step(c.longest.count()); longest > 0) starts.emplace(c.cluster, c.longest);
  if (c.ends_by.ms != 0) ends.emplace(c.cluster, WallTime{std::clamp<std::int64_t>(c.ends_by.ms, 1, kEndMax)});
}

std::vector<Change> Scheduler::Impl::snapshot() const {
  std::vector<Change> out;
  out.emplace_back(DayChanged{seed});
  for (std::uint32_t node = 0; node < pool.limit(); ++node)
    if (pool.live(node)) out.emplace_back(NodeChanged{pool.view(node)});
  for (const auto& [id, lease] : leases) out.emplace_back(LeaseChanged{lease});
  usage.snapshot(out);
  for (const auto& [cluster, end] : ends) {
    const auto starting = starts.find(cluster);
    out.emplace_back(TermsChanged{cluster, end, starting == starts.end() ? Millis{0} : starting->second});
  }
  for (const auto& [cluster, longest] : starts)
    if (!ends.contains(cluster)) out.emplace_back(TermsChanged{cluster, {}, longest});
  for (const Item& it : items) {
    if (!it.live) continue;
    Request r = classes[it.cls].example;
    const Lane& lane = lanes[it.lane];
    r.cluster = it.cluster, r.tier = lane.tier, r.tenant = lane.tenant, r.project = lane.project;
    r.priority = it.waiter.priority, r.since = {it.waiter.since_ms};
    out.emplace_back(RequestChanged{std::move(r)});
  }
  if (PathsChanged paths = network.all(); !paths.paths.empty()) out.emplace_back(std::move(paths));
  CoordinatesChanged placed;
  for (std::uint32_t node = 0; node < places.size(); ++node)
    if (places[node] != Coordinate{}) placed.places.emplace_back(pool.view(node).node, places[node]);
  if (!placed.places.empty()) out.emplace_back(std::move(placed));
  ReliabilityChanged reliabilities;
  for (std::uint32_t node = 0; node < pool.limit(); ++node)
    if (pool.live(node) && pool.reliability(node))
      reliabilities.nodes.emplace_back(pool.view(node).node, *pool.reliability(node));
  if (!reliabilities.nodes.empty()) out.emplace_back(std::move(reliabilities));
  out.emplace_back(FreezeChanged{frozen});
  if (pool.holds_back()) out.emplace_back(HeadroomChanged{pool.headroom()});
  for (const auto& [cluster, shape] : shapes) out.emplace_back(ShapeChanged{cluster, shape.request});
  out.emplace_back(pool.learned());
  if (!arrivals.empty()) out.emplace_back(ArrivalsChanged{{arrivals.begin(), arrivals.end()}});
  for (RunsChanged& runs : run_times.all()) out.emplace_back(std::move(runs));
  return out;
}

Forecast forecast(const std::vector<Change>& snapshot, const RequestChanged& request, WallTime now) {
  Scheduler fork;
  for (const Change& change : snapshot) fork.apply(change);
  fork.apply(request);
  const ClusterId asked = request.request.cluster;
  for (std::size_t rounds = fork.waiting(); rounds > 0; --rounds) {  // each places at least one request or is the last
    const std::vector<Group> groups = fork.plan({.groups_max = 1024}, now);
    for (const Group& group : groups)
      if (group.cluster == asked && group.kind != ActionKind::Preempt && group.kind != ActionKind::Move)
        return {group, {}};
    if (groups.empty()) break;
  }
  return {{}, fork.queue_of(asked, now)};
}

}  // namespace muster::scheduler
