// I14: who is told to leave to make room agreed to that by its tier, is no head, had its two minutes, and somebody of a
// better tier waits, or somebody of the same tier within its guarantee while the owner has his without it; in a freeze
// nobody is. Who is told to move had ten minutes, waits for nobody of a later tier, and has another lease already.
#include "sim/checkers.h"

namespace muster::sim {
namespace {

using control::State;
using engine::DurableEvent;

class FairPreemption final : public Checker {
 public:
  FairPreemption() : Checker("I14") {}
  void durable(const DurableEvent& event, const State& after, World& world) override {
    if (const auto* changed = std::get_if<control::LeaseWantChanged>(&event.event);
        changed != nullptr && changed->reason == "preempted")
      look(after, changed->lease, event.at, world);
    if (const auto* changed = std::get_if<control::LeaseWantChanged>(&event.event);
        changed != nullptr && changed->reason == "moved" && changed->want == LeaseWant::Drain)
      look_at_move(after, changed->lease, event.at, world);
    if (const auto* granted = std::get_if<control::LeaseGranted>(&event.event)) moving_.erase(granted->lease.cluster);
    if (!moving_.empty() && !std::holds_alternative<control::LeaseWantChanged>(event.event) &&
        !std::holds_alternative<control::TimerSet>(event.event))
      fail(world, moving_.begin()->str() + " had a worker told to move, and no other granted with that");
    if (const auto* left = std::get_if<control::SlotLeft>(&event.event); left != nullptr && left->reason == "preempted")
      if (const Slot* slot = after.find_slot(left->slot)) look(after, slot->lease, event.at, world);
  }

 private:
  void look_at_move(const State& state, LeaseId id, WallTime at, World& world) {
    if (!told_.insert(id).second) return;
    const Lease* lease = state.find_lease(id);
    const Slot* slot = lease == nullptr ? nullptr : state.find_slot(lease->slot);
    const Cluster* cluster = lease == nullptr ? nullptr : state.find_cluster(lease->cluster);
    if (slot == nullptr || cluster == nullptr) return;
    looked_at();
    moving_.insert(lease->cluster);
    if (slot->role != SlotRole::Worker) return fail(world, id.str() + " is no worker and was told to move");
    if (state.frozen) return fail(world, id.str() + " was told to move in a freeze");
    if (cluster->spec.tier < 2) return fail(world, id.str() + " never agreed to move");
    if (at - lease->granted_at < Millis(600'000))
      return fail(world, id.str() + " had " + std::to_string((at - lease->granted_at).count()) + " ms only");
    for (const auto& [other, each] : state.clusters)
      if (each.state == ClusterState::Queued && each.spec.tier <= cluster->spec.tier) return;
    fail(world, id.str() + " was told to move for nobody who may ask for that");
  }
  void look(const State& state, LeaseId id, WallTime at, World& world) {
    if (!told_.insert(id).second) return;
    const Lease* lease = state.find_lease(id);
    const Slot* slot = lease == nullptr ? nullptr : state.find_slot(lease->slot);
    const Cluster* cluster = lease == nullptr ? nullptr : state.find_cluster(lease->cluster);
    if (slot == nullptr || cluster == nullptr) return;
    looked_at();
    if (slot->role == SlotRole::Head) return fail(world, id.str() + " is a head and was told to make room");
    if (state.frozen) return fail(world, id.str() + " was told to make room in a freeze");
    if (cluster->spec.tier < 2) return fail(world, id.str() + " never agreed to make room");
    if (at - lease->granted_at < Millis(120'000))
      return fail(world, id.str() + " had " + std::to_string((at - lease->granted_at).count()) + " ms only");
    for (const auto& [other, each] : state.clusters)
      if (each.state == ClusterState::Queued && each.spec.tier < cluster->spec.tier) return;
    for (const auto& [other, each] : state.clusters)
      if (each.state == ClusterState::Queued && each.spec.tier == cluster->spec.tier &&
          may_reclaim(state, each, *cluster))
        return;
    fail(world, id.str() + " was told to make room for nobody who may ask for that");
  }

  // Counted from the tables: who starts is within its guarantee, and whom it is taken from still has his.
  bool may_reclaim(const State& state, const Cluster& by, const Cluster& of) const {
    const auto project = [&](const Cluster& each) { return state.projects.find(each.project); };
    const auto a = project(by), b = project(of);
    if (a == state.projects.end() || b == state.projects.end() || a->first == b->first) return false;
    const OrgId mine = a->second.org, theirs = b->second.org;
    const auto in_org = [&](OrgId org) {
      return [&state, org](const Cluster& each) {
        const auto found = state.projects.find(each.project);
        return found != state.projects.end() && found->second.org == org;
      };
    };
    const auto in_project = [](ProjectId id) { return [id](const Cluster& each) { return each.project == id; }; };
    const auto gpu_milli = [](std::int64_t gpus, std::int64_t share) { return share > 0 ? share : gpus * kGpuMilli; };
    Quota need{0, by.spec.head.resources.cpu_milli, 0, by.spec.head.resources.gpus * kGpuMilli};
    for (const WorkerGroup& group : by.spec.groups) {
      need.gpu_milli += gpu_milli(group.request.resources.gpus, group.request.gpu_share_milli) * group.min;
      need.cpu_milli += group.request.resources.cpu_milli * group.min;
    }
    const auto within = [&](const Share& share, const Quota& held) {
      const bool gpus = share.gpus > 0 && need.gpu_milli > 0, cpus = share.cpu_milli > 0 && need.cpu_milli > 0;
      return (gpus || cpus) && (!gpus || held.gpu_milli + need.gpu_milli <= share.gpus * kGpuMilli) &&
             (!cpus || held.cpu_milli + need.cpu_milli <= share.cpu_milli);
    };
    const auto kept = [](const Share& share, const Quota& stays) {
      return stays.gpu_milli >= share.gpus * kGpuMilli && stays.cpu_milli >= share.cpu_milli;
    };
    if (!kept(b->second.share, held(state, false, in_project(b->first)))) return false;
    if (mine == theirs) return within(a->second.share, held(state, true, in_project(a->first)));
    return within(state.orgs.find(mine)->second.share, held(state, true, in_org(mine))) &&
           kept(state.orgs.find(theirs)->second.share, held(state, false, in_org(theirs)));
  }

  Quota held(const State& state, bool leaving_too, const auto& counts) const {
    Quota out;
    for (const auto& [id, lease] : state.leases) {
      const Cluster* of = state.find_cluster(lease.cluster);
      const bool leaves = told_.contains(id) || lease.want == LeaseWant::Drain || lease.want == LeaseWant::Stop;
      if (lease.end == LeaseEnd::None && of != nullptr && counts(*of) && (leaving_too || !leaves))
        out.gpu_milli += lease.share_milli > 0 ? lease.share_milli : lease.resources.gpus * kGpuMilli,
            out.cpu_milli += lease.resources.cpu_milli;
    }
    return out;
  }
  std::set<LeaseId> told_;
  std::set<ClusterId> moving_;  // whose worker was told to, until the other one is granted
};

}  // namespace

CheckerPtr fair_preemption() {
  return std::make_unique<FairPreemption>();
}

}  // namespace muster::sim
