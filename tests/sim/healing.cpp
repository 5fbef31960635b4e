// Liveness mode, I8: after the heal all states agree within T, and what is asked for from then on comes true in time.
#include <algorithm>

#include "sim/sim.h"

namespace muster::sim {

// True: some were still in force.
bool Sim::clear_offers() {
  bool some = false;
  if (!server_->up()) return true;
  for (const auto& [id, node] : server_->state().nodes) {
    Offer plain;
    plain.currency = "EUR", plain.version = node.offer.version;
    if (id == revoked_ || node.state == NodeState::Revoked || node.offer.version == 0 || node.offer == plain) continue;
    some = true;
    set_offer(id, plain);
  }
  return some;
}

void Sim::heal() {
  chaos_.calm = true;
  world_.note("heal");
  if (memory_) memory_->settle(), memory_->set_disk_full(false), memory_->inject(store::Fault::None);
  if (clone_) clone_->power_off();
  for (const auto& node : nodes_) {
    node->silent = node->disk_full = node->liar = node->network_stuck = false;
    node->wall_step = 0;
    if (!node->powered) node->boot();
    node->kill_agent();  // also clears a refusal for good
    node->start_agent();
    if (node->core && node->core->paused()) node->owner(agent::OwnerAction::Resume);
  }
  if (!server_->up()) server_->start();
  if (with_quotas()) set_quota({}, {}), set_headroom(0, 0), set_tier_shares(0);
  if (with_offers()) clear_offers();
  for (const auto& node : nodes_) {
    if (node->id == revoked_) continue;
    for (const auto action : {control::SetNode::Action::Enable, control::SetNode::Action::Undrain})
      ask({control::SetNode{node->id, action}, SimServer::system_actor(), "node", "", false});
  }
}

// What was wished before the heal may come true after it: a quota by a late retry, an owner's pause when its agent is
// back. It is wished away until it is gone.
std::string Sim::settle_wishes() {
  if (!server_->up()) return "the server is down";
  for (const auto& node : nodes_)
    if (node->core && node->core->paused()) node->owner(agent::OwnerAction::Resume);
  if (clone_) end_quarantine(clone_->id);
  if (with_offers() && clear_offers()) return "an owner still asks for a machine";
  if (tight() || with_offers() ||
      with_parts())  // there may be more than ever fits, or who leaves at a time that was agreed
    for (const auto& [id, cluster] : server_->state().clusters)
      if (!control::terminal(cluster.state)) {
        ask({control::StopCluster{id, "asked"}, owner_of(id, "end-" + id.str()), "stop", "", false});
        return id.str() + " still runs";
      }
  if (with_quotas() && !server_->state().headroom.empty()) {
    set_headroom(0, 0);
    return "machines are kept back for failovers";
  }
  if (with_quotas() && !server_->state().tier_shares.empty()) {
    set_tier_shares(0);
    return "a tier is guaranteed some of the machines";
  }
  if (!with_quotas() || server_->state().limited_projects.empty()) return {};
  set_quota({}, {});
  return "a quota still bounds a project";
}

std::string Sim::not_converged() const {
  if (!server_->leading()) return "the server does not lead";
  const control::State& state = server_->state();
  if (state.frozen) return "still frozen";
  for (const auto& node : nodes_) {
    const muster::Node* known = state.find_node(node->id);
    if (node->id == revoked_) continue;
    if (known == nullptr || known->state != NodeState::Online)
      return "node " + std::to_string(node->index) + " is not online: state " +
             (known == nullptr ? "unknown" : std::to_string(static_cast<int>(known->state))) +
             (known != nullptr && known->draining ? ", draining" : "") +
             (node->core && node->core->paused() ? ", paused" : "");
    if (!node->core || !node->core->online())
      return "agent " + std::to_string(node->index) +
             " has no session: " + (node->core ? node->core->last_refusal() : "");
    const std::vector<LeaseId> live = state.live_leases(node->id);
    const std::vector<ObservedLease> seen = node->core->observed_leases();
    if (live.size() != seen.size())
      return "node " + std::to_string(node->index) + " holds " + std::to_string(seen.size()) + " leases, the journal " +
             std::to_string(live.size());
    for (const ObservedLease& lease : seen) {
      const Lease* granted = state.find_lease(lease.lease);
      if (granted == nullptr || granted->want == LeaseWant::Stop) return lease.lease.str() + " is not let go of";
      if (granted->phase != lease.phase) return lease.lease.str() + " is seen differently";
    }
  }
  for (const auto& [id, cluster] : state.clusters) {
    if (control::terminal(cluster.state)) continue;
    if (cluster.state != ClusterState::Running)
      return id.str() + " does not run: state " + std::to_string(static_cast<int>(cluster.state)) + " " +
             cluster.reason;
    std::map<std::string, std::uint32_t> ready;
    for (const SlotId slot_id : cluster.slots) {
      const Slot* slot = state.find_slot(slot_id);
      const Lease* lease = slot == nullptr ? nullptr : state.find_lease(slot->lease);
      if (lease == nullptr) return id.str() + " has a slot without a lease";
      const LeasePhase wanted = slot->role == SlotRole::Spare ? LeasePhase::Standby : LeasePhase::Ready;
      if (lease->phase != wanted)
        return id.str() + ": " + slot_id.str() + " is in phase " + std::to_string(static_cast<int>(lease->phase)) +
               " " + lease->reason;
      if (slot->role == SlotRole::Worker) ++ready[slot->group];
    }
    for (const WorkerGroup& group : cluster.spec.groups) {
      if (ready[group.name] < group.min) return id.str() + " lacks workers";
    }
  }
  for (const auto& [id, job] : state.jobs) {
    if (!control::terminal(job.state))
      return id.str() + " has not ended: state " + std::to_string(static_cast<int>(job.state)) + " " + job.reason;
    if (job.state != JobState::Succeeded) continue;
    const auto log = server_->logs.find({id, job.attempt});
    const auto lines = log == server_->logs.end() ? 0 : std::count(log->second.begin(), log->second.end(), '\n');
    const bool archived_early = job.log_bytes == 0;
    if (told_by_liars_.contains(id)) continue;
    // Who was revoked when its job had ended is not let in again to bring the rest of the log.
    if (const auto by = told_by_.find(id); by != told_by_.end() && by->second == revoked_) continue;
    if (!archived_early && (log == server_->logs.end() || log->second.size() < job.log_bytes))
      return "the log of " + id.str() + " has " + std::to_string(lines) + " lines only";
  }
  return {};
}

bool Sim::run_until(const std::function<std::string()>& unmet, Millis limit, const std::string& what) {
  const LeaseTime end = world_.now() + limit;
  std::string why = "nothing happened";
  LeaseTime looked{0};
  while (world_.now() < end && world_.failure.empty()) {
    if (!world_.step()) break;
    check();
    if (world_.now() - looked < Millis(1000)) continue;
    looked = world_.now();
    why = unmet();
    if (why.empty()) return true;
  }
  if (world_.failure.empty()) world_.fail("I8: " + what + ": " + why);
  return false;
}

// After the heal a fresh request must come true, a change must take, a spare must step in, and a stop must end, each in
// good time.
void Sim::prove_progress() {
  std::map<std::string, std::string> done;
  const auto request = [&](control::Command command, const std::string& name) {
    server_->submit(control::Lane::Tenant, std::move(command), tenant("final-" + name),
                    [&done, name](const Result<engine::Reply>& reply) {
                      done[name] = reply.ok() ? reply->outcome.id : "error: " + reply.error().message;
                    });
  };
  ClusterSpec spec = random_spec();
  spec.name = "final";
  spec.spares = 1;
  spec.groups[0].min = 1;
  request(control::CreateCluster{project_, spec}, "cluster");
  const auto cluster = [&]() -> const Cluster* {
    const auto id = ClusterId::parse(done["cluster"]);
    return id && server_->up() ? server_->state().find_cluster(*id) : nullptr;
  };
  if (!run_until(
          [&] {
            return cluster() != nullptr && cluster()->state == ClusterState::Running ? not_converged()
                                                                                     : "no cluster: " + done["cluster"];
          },
          Millis(240'000), "a fresh cluster did not come up"))
    return;
  JobSpec job;
  job.name = "final";
  job.entrypoint = "true";
  job.cluster = "final";
  job.retries = 2;
  request(control::CreateJob{project_, job}, "job");
  const auto job_done = [&]() -> std::string {
    const auto id = JobId::parse(done["job"]);
    const Job* found = id ? server_->state().find_job(*id) : nullptr;
    return found != nullptr && control::terminal(found->state) ? "" : "job " + done["job"];
  };
  if (!run_until(job_done, Millis(90'000), "a fresh job did not end")) return;
  const std::uint64_t number = JobId::parse(done["job"])->value;
  const Job* ended = server_->state().find_job(JobId{number});
  if (number % 11 != 10 && ended->state != JobState::Succeeded)
    return world_.fail("I8: the fresh job did not succeed: " + ended->reason);
  // A worker's machine vanishes; the spare steps in.
  Node* victim = nullptr;
  for (const SlotId slot_id : cluster()->slots) {
    const Slot* slot = server_->state().find_slot(slot_id);
    if (slot->role != SlotRole::Worker) continue;
    const NodeId on = server_->state().find_lease(slot->lease)->node;
    bool heads = false;
    for (const LeaseId lease : server_->state().live_leases(on))
      heads = heads || server_->state().find_slot(server_->state().leases.at(lease).slot)->role == SlotRole::Head;
    for (const auto& node : nodes_) {
      if (node->id == on && !heads) victim = node.get();
    }
  }
  if (victim != nullptr) {
    const NodeId on = victim->id;
    cut(*victim, Millis(60'000));
    const auto replaced = [&]() -> std::string {
      std::uint32_t ready = 0;
      for (const SlotId slot_id : cluster()->slots) {
        const Slot* slot = server_->state().find_slot(slot_id);
        const Lease* lease = server_->state().find_lease(slot->lease);
        if (slot->role == SlotRole::Worker && lease->node == on) return "the lost worker is still a member";
        if (slot->role == SlotRole::Worker && lease->phase == LeasePhase::Ready) ++ready;
      }
      return ready >= 1 ? "" : "no worker is ready";
    };
    if (!run_until(replaced, Millis(45'000), "a lost worker was not replaced")) return;
  }
  // What was granted while all is well lives on well past one lease time.
  if (!run_until([&]() -> std::string { return not_converged(); }, Millis(400'000), "no agreement after the loss"))
    return;
  const LeaseTime later = world_.now() + kLease + Millis(60'000);
  if (!run_until([&]() -> std::string { return world_.now() >= later ? not_converged() : "waiting"; },
                 kLease + Millis(90'000), "leases do not outlive their first term"))
    return;
  if (cluster() == nullptr || cluster()->state != ClusterState::Running)
    return world_.fail("I6: a healthy cluster ended by itself");
  request(control::StopCluster{*ClusterId::parse(done["cluster"]), "done"}, "stop");
  run_until(
      [&]() -> std::string {
        return cluster() != nullptr && cluster()->state == ClusterState::Stopped ? "" : "not stopped";
      },
      Millis(60'000), "a stop did not end");
}

}  // namespace muster::sim
