// I1: at most one effective holder per (job, epoch).
#include <algorithm>

#include "sim/checkers.h"

namespace muster::sim {
namespace {

using control::State;
using engine::DurableEvent;

class OneHolder final : public Checker {
 public:
  OneHolder() : Checker("I1") {}
  void driver(const Node& node, LeaseId lease, JobId job, std::uint32_t attempt, World& world) override {
    looked_at();
    const std::string where = std::to_string(node.index) + "/" + lease.str();
    const auto [it, fresh] = drivers_.try_emplace({job, attempt}, where);
    if (!fresh)
      fail(world,
           job.str() + " attempt " + std::to_string(attempt) + " was started twice: " + it->second + " and " + where);
  }
  void durable(const DurableEvent& event, const State& state, World& world) override {
    const auto* granted = std::get_if<control::LeaseGranted>(&event.event);
    if (granted == nullptr) return;
    looked_at();
    const auto [it, fresh] = addresses_.try_emplace({granted->slot.cluster, granted->slot.address}, granted->slot.id);
    if (!fresh && granted->slot.role != SlotRole::Head)
      fail(world, "address of " + it->second.str() + " was given again to " + granted->slot.id.str());
    const muster::Node& node = state.nodes.at(granted->lease.node);
    Resources used;
    struct Held {
      std::int64_t milli = 0;
      std::set<OrgId> tenants;
      std::size_t leases = 0;
    };
    std::map<std::string, Held> held;
    for (const LeaseId id : state.live_leases(node.id)) {
      const Lease& lease = state.leases.at(id);
      used.cpu_milli += lease.resources.cpu_milli;
      const Cluster* cluster = state.find_cluster(lease.cluster);
      const OrgId tenant = cluster == nullptr ? OrgId{} : state.projects.at(cluster->project).org;
      for (const std::string& device : lease.devices) {
        Held& by = held[device];
        by.milli += lease.share_milli > 0 ? lease.share_milli : kGpuMilli;
        by.tenants.insert(tenant), ++by.leases;
      }
    }
    for (const auto& [uuid, by] : held) {
      const auto device = std::find_if(node.facts.devices.begin(), node.facts.devices.end(),
                                       [&](const Device& each) { return each.uuid == uuid; });
      const bool mig = device != node.facts.devices.end() && device->sharing == GpuSharing::Mig;
      if (by.milli > (mig ? device->part_milli : kGpuMilli) || (mig && by.leases > 1))
        fail(world, uuid + " of " + node.id.str() + " is leased twice");
      if (by.tenants.size() > 1) fail(world, uuid + " of " + node.id.str() + " is two organisations' at a time");
    }
    // What was free when it was granted decides; an owner who shares no more has to let it end.
    for (const std::string& uuid : granted->lease.devices) {
      const auto device = std::find_if(node.facts.devices.begin(), node.facts.devices.end(),
                                       [&](const Device& each) { return each.uuid == uuid; });
      const bool shared = device != node.facts.devices.end() && device->sharing != GpuSharing::Exclusive;
      if (granted->lease.share_milli > 0 && !shared)
        fail(world, "a share of " + uuid + " of " + node.id.str() + " was granted, which is not shared");
      if (granted->lease.share_milli == 0 && shared && device->sharing == GpuSharing::Mig)
        fail(world, uuid + " of " + node.id.str() + " was granted as a whole GPU");
    }
    if (used.cpu_milli > node.facts.capacity.cpu_milli) fail(world, "CPUs of " + node.id.str() + " are leased twice");
  }
  void step(const View& view) override {
    std::map<LeaseId, const Node*> running;
    const auto look = [&](const Node& node) {
      std::map<std::string, std::int64_t> used;
      if (!node.powered) return;
      for (const auto& [lease, c] : node.containers) {
        if (!c.running) continue;
        looked_at();
        const auto [it, fresh] = running.try_emplace(lease, &node);
        if (!fresh) fail(view.world, lease.str() + " runs on two machines");
        for (const std::string& device : c.assignment.devices) {
          const bool mig = device.rfind("MIG-", 0) == 0;
          const std::int64_t share = c.assignment.gpu_share_milli;
          used[device] += share > 0 && !mig ? share : std::int64_t{kGpuMilli};
          if (used[device] > kGpuMilli) fail(view.world, "two containers hold " + device);
        }
      }
    };
    for (const auto& node : view.nodes) look(*node);
    if (view.clone != nullptr) look(*view.clone);
  }

 private:
  std::map<std::pair<JobId, std::uint32_t>, std::string> drivers_;
  std::map<std::pair<ClusterId, std::uint32_t>, SlotId> addresses_;
};

// A member that still holds, well after somebody left, a network in which that one is a member, has itself left.
// Counted from what really is configured on the machines, not from what they say.
class FencedByRosters final : public Checker {
 public:
  FencedByRosters() : Checker("I1") {}
  void durable(const DurableEvent& event, const State& after, World& world) override {
    if (const auto* keyed = std::get_if<control::SlotKeyed>(&event.event)) joined_[keyed->slot] = world.now();
    if (const auto* freeze = std::get_if<control::FreezeSet>(&event.event); freeze != nullptr && !freeze->frozen)
      calm_ = world.now();
    const auto* left = std::get_if<control::SlotLeft>(&event.event);
    const Slot* slot = left == nullptr ? nullptr : after.find_slot(left->slot);
    // Who never brought a key was in no roster, and its departure takes nobody out of one.
    if (slot == nullptr || !joined_.contains(left->slot)) return;
    auto& removals = removals_[slot->cluster];
    if (removals.empty() || left->roster_epoch > removals.back().first)
      removals.emplace_back(left->roster_epoch, world.now());
  }
  void step(const View& view) override {
    if (!view.leading || view.frozen) leading_ = LeaseTime{0};
    if (!view.leading || view.frozen) return;
    if (leading_ == LeaseTime{0}) leading_ = view.world.now();
    for (const auto& node : view.nodes) {
      if (!node->powered || node->asleep || !node->core) continue;
      const muster::Node* known = view.state->find_node(node->id);
      if (known == nullptr || known->state != NodeState::Online) continue;
      for (const auto& [id, c] : node->containers) {
        if (!c.running || c.roster_epoch == 0) continue;
        const Slot* slot = view.state->find_slot(c.assignment.slot);
        const Cluster* cluster = slot == nullptr ? nullptr : view.state->find_cluster(slot->cluster);
        if (cluster == nullptr || cluster->state > ClusterState::Running || !slot->in_roster || slot->lease != id)
          continue;
        look(view.world, *node, *slot, c.roster_epoch);
      }
    }
  }

 private:
  void look(World& world, const Node& node, const Slot& slot, std::uint64_t holds) {
    looked_at();
    const auto it = removals_.find(slot.cluster);
    if (it == removals_.end()) return;
    const auto first =
        std::find_if(it->second.begin(), it->second.end(), [&](const auto& each) { return each.first > holds; });
    if (first == it->second.end()) return;
    const LeaseTime since = std::max({first->second, joined_[slot.id], calm_, leading_ + Millis(75'000)});
    const Millis limit(slot.role == SlotRole::Head ? 310'000 : 70'000);  // a tick, a repeat, a commit
    if (world.now() - since > limit)
      fail(world, slot.id.str() + " on " + std::to_string(node.index) + " is a member and holds roster " +
                      std::to_string(holds) + ", somebody left with " + std::to_string(first->first));
  }
  std::map<ClusterId, std::vector<std::pair<std::uint64_t, LeaseTime>>> removals_;
  std::map<SlotId, LeaseTime> joined_;
  LeaseTime leading_{0}, calm_{0};
};

// What one decision may contain: gangs whole, retries bounded, members replaced before they are promoted.
class SoundDecisions final : public Checker {
 public:
  SoundDecisions() : Checker("I1") {}
  void started(const engine::Base& base, const journal::Store&, World&) override {
    for (const auto& [id, cluster] : base.state.clusters)
      if (cluster.state != ClusterState::Queued) gangs_.insert(id);  // began in an entry that nobody was told of
  }
  void durable(const DurableEvent& event, const State& after, World& world) override {
    if (const auto* job = std::get_if<control::JobStateChanged>(&event.event)) {
      const Job* found = after.find_job(job->job);
      looked_at();
      if (found != nullptr && job->attempt > found->spec.retries + 1)
        fail(world, job->job.str() + " was tried more often than its retries allow");
    }
    if (const auto* granted = std::get_if<control::LeaseGranted>(&event.event)) {
      const Cluster* cluster = after.find_cluster(granted->lease.cluster);
      const bool live = cluster != nullptr && cluster->state <= ClusterState::Running;
      if (!live) fail(world, "a lease was granted for a cluster that is not wanted any more");
      if (live) count(*cluster, after, world);
    }
    const auto* changed = std::get_if<control::ClusterStateChanged>(&event.event);
    if (changed != nullptr && changed->state == ClusterState::Starting && gangs_.insert(changed->cluster).second)
      gang(after, changed->cluster, world);
    if (std::holds_alternative<control::SlotPromoted>(event.event) &&
        !std::holds_alternative<control::SlotLeft>(last_)) {
      fail(world, "a spare was promoted while the lost worker stayed in the roster");
    }
    last_ = event.event;
  }

 private:
  void gang(const State& state, ClusterId id, World& world) {
    const Cluster* cluster = state.find_cluster(id);
    if (cluster == nullptr) return;
    std::map<std::string, std::uint32_t> have;
    std::size_t heads = 0;
    for (const SlotId slot_id : cluster->slots) {
      const Slot* slot = state.find_slot(slot_id);
      if (slot != nullptr && slot->role == SlotRole::Head) ++heads;
      if (slot != nullptr && slot->role == SlotRole::Worker) ++have[slot->group];
    }
    if (heads != 1) fail(world, id.str() + " started without a head of its own");
    for (const WorkerGroup& group : cluster->spec.groups) {
      if (have[group.name] < group.min) fail(world, id.str() + " started without its whole gang");
    }
  }
  // Whoever is lost or drains may be replaced already; nobody else.
  void count(const Cluster& cluster, const State& state, World& world) {
    std::map<std::string, std::uint32_t> have;
    std::uint32_t spares = 0;
    for (const SlotId slot_id : cluster.slots) {
      const Slot* slot = state.find_slot(slot_id);
      const Lease* lease = slot == nullptr ? nullptr : state.find_lease(slot->lease);
      const muster::Node* node = lease == nullptr ? nullptr : state.find_node(lease->node);
      if (node == nullptr || node->state == NodeState::Lost || lease->want >= LeaseWant::Drain) continue;
      if (slot->role == SlotRole::Worker) ++have[slot->group];
      if (slot->role == SlotRole::Spare) ++spares;
    }
    for (const WorkerGroup& group : cluster.spec.groups) {
      if (have[group.name] > group.max)
        fail(world, cluster.id.str() + " was given " + std::to_string(have[group.name]) + " workers, at most " +
                        std::to_string(group.max) + " are wanted");
    }
    if (spares > cluster.spec.spares) fail(world, cluster.id.str() + " was given more spares than it asked for");
  }
  std::set<ClusterId> gangs_;
  control::Event last_;
};

}  // namespace

CheckerPtr one_holder() {
  return std::make_unique<OneHolder>();
}
CheckerPtr fenced_by_rosters() {
  return std::make_unique<FencedByRosters>();
}
CheckerPtr sound_decisions() {
  return std::make_unique<SoundDecisions>();
}

}  // namespace muster::sim
