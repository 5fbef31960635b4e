#include "sim/checkers.h"

#include <algorithm>

#include "sim/server.h"

namespace muster::sim {
namespace {

using control::State;
using engine::DurableEvent;

// Who just woke or started needs a moment to stop what ended meanwhile.
bool settled(const Node& node, const View& view) {
  return node.core && view.world.now() - node.alive_since > Millis(8000);
}

// I1: at most one effective holder: of a device, of a lease, of a job attempt, of an overlay address.
class OneHolder final : public Checker {
 public:
  void driver(const Node& node, LeaseId lease, JobId job, std::uint32_t attempt, World& world) override {
    const std::string where = std::to_string(node.index) + "/" + lease.str();
    const auto [it, fresh] = drivers_.try_emplace({job, attempt}, where);
    if (!fresh)
      world.fail("I1: " + job.str() + " attempt " + std::to_string(attempt) + " was started twice: " + it->second +
                 " and " + where);
  }
  void durable(const DurableEvent& event, const State& state, World& world) override {
    const auto* granted = std::get_if<control::LeaseGranted>(&event.event);
    if (granted == nullptr) return;
    const auto [it, fresh] = addresses_.try_emplace({granted->slot.cluster, granted->slot.address}, granted->slot.id);
    if (!fresh && granted->slot.role != SlotRole::Head)
      world.fail("I1: address of " + it->second.str() + " was given again to " + granted->slot.id.str());
    std::set<std::string> held;
    for (const LeaseId id : state.live_leases(granted->lease.node)) {
      for (const std::string& device : state.leases.at(id).devices) {
        if (!held.insert(device).second)
          world.fail("I1: " + device + " of " + granted->lease.node.str() + " is leased twice");
      }
    }
    const muster::Node& node = state.nodes.at(granted->lease.node);
    Resources used;
    for (const LeaseId id : state.live_leases(node.id))
      used.gpus += state.leases.at(id).resources.gpus, used.cpu_milli += state.leases.at(id).resources.cpu_milli;
    if (used.cpu_milli > node.facts.capacity.cpu_milli)
      world.fail("I1: CPUs of " + node.id.str() + " are leased twice");
  }
  void step(const View& view) override {
    std::map<LeaseId, const Node*> running;
    const auto look = [&](const Node& node) {
      std::set<std::string> used;
      if (!node.powered) return;
      for (const auto& [lease, c] : node.containers) {
        if (!c.running) continue;
        const auto [it, fresh] = running.try_emplace(lease, &node);
        if (!fresh) view.world.fail("I1: " + lease.str() + " runs on two machines");
        for (const std::string& device : c.assignment.devices) {
          if (!used.insert(device).second) view.world.fail("I1: two containers hold " + device);
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

// I4: nothing runs once its lease has ended in the journal: neither use nor bill outside of the granted interval.
class WithinLease final : public Checker {
 public:
  void step(const View& view) override {
    if (view.state == nullptr) return;
    for (const auto& node : view.nodes) {
      if (node->liar || !node->powered || node->asleep || !settled(*node, view)) continue;
      for (const auto& [id, c] : node->containers) {
        const Lease* lease = view.state->find_lease(id);
        if (!c.running || lease == nullptr || lease->end == LeaseEnd::None || lease->epoch != c.assignment.epoch)
          continue;
        view.world.fail("I4: " + id.str() + " still runs on " + std::to_string(node->index) +
                        " after its lease ended (" + lease->reason + ")");
      }
    }
  }
};

// I5: who cannot reach the server stops by the lease's end; counted from the send of the last renewed heartbeat, never
// later.
class SelfFence final : public Checker {
 public:
  void step(const View& view) override {
    for (const auto& node : view.nodes) {
      if (!node->powered || node->asleep || !node->core || !settled(*node, view)) continue;
      for (const auto& [id, end] : node->allowed) {
        if (const auto counted = node->core->lease_end(id); counted && *counted > end) {
          view.world.fail("I5: " + id.str() + " counts " + std::to_string((*counted - end).count()) +
                          " ms more than its renewal allows");
        }
        const auto c = node->containers.find(id);
        if (c != node->containers.end() && c->second.running && node->time() > end + Millis(8000)) {
          view.world.fail("I5: " + id.str() + " runs past the end of its lease on node " + std::to_string(node->index));
        }
      }
    }
  }
};

// I6: an outage shorter than the lease disturbs nothing: no fence while the last renewal is young.
class NoEarlyFence final : public Checker {
 public:
  void renewed(LeaseId lease, World& world) override { last_[lease] = world.now(); }
  void sent(const Node& node, const session::AgentFrame& frame, World& world) override {
    const auto* seen = std::get_if<session::Observed>(&frame);
    if (seen == nullptr || node.liar) return;
    for (const ObservedLease& lease : seen->leases) {
      const auto allowed = node.allowed.find(lease.lease);
      if (lease.reason != "lease_ended" || allowed == node.allowed.end() || !told_.insert(lease.lease).second) continue;
      // What the server renewed counts once the answer arrived: it may come a moment after the end of a long outage's
      // lease. 60 s may be lost by a restart of the agent, since renewals are written down that seldom.
      if (node.time() < allowed->second - Millis(62'000))
        world.fail("I6: " + lease.lease.str() + " was fenced though it was renewed lately");
    }
  }
  void durable(const DurableEvent& event, const State&, World& world) override {
    const auto* ended = std::get_if<control::LeaseEnded>(&event.event);
    if (ended == nullptr || ended->end != LeaseEnd::Expired || !last_.contains(ended->lease)) return;
    if (world.now() - last_[ended->lease] < kLease)
      world.fail("I6: " + ended->lease.str() + " was ended as expired though it was renewed lately");
  }

 private:
  std::map<LeaseId, LeaseTime> last_;
  std::set<LeaseId> told_;
};

// I7: mass silence never causes mass eviction.
class NoMassEviction final : public Checker {
 public:
  void durable(const DurableEvent& event, const State& after, World& world) override {
    if (const auto* left = std::get_if<control::SlotLeft>(&event.event)) {
      if (open_) world.fail("I7: a silent worker was evicted without a replacement during a freeze");
      open_ = after.frozen && left->reason == "node_lost";
      if (left->reason == "node_lost") evictions_.push_back(world.now());
      while (!evictions_.empty() && world.now() - evictions_.front() > Millis(15'000))
        evictions_.erase(evictions_.begin());
    } else {
      const bool replaced = std::holds_alternative<control::SlotPromoted>(event.event) ||
                            std::holds_alternative<control::LeaseGranted>(event.event);
      if (open_ && !replaced) world.fail("I7: a silent worker was evicted without a replacement during a freeze");
      open_ = false;
    }
    const auto* ended = std::get_if<control::LeaseEnded>(&event.event);
    if (ended != nullptr && ended->end == LeaseEnd::Expired && after.frozen) {
      const Lease* lease = after.find_lease(ended->lease);
      if (lease != nullptr && ended->reason == "lease_expired" && wanted_.contains(ended->lease))
        world.fail("I7: " + ended->lease.str() + " was ended while everyone was silent");
    }
    if (const auto* granted = std::get_if<control::LeaseGranted>(&event.event)) wanted_.insert(granted->lease.id);
    if (const auto* changed = std::get_if<control::LeaseWantChanged>(&event.event)) {
      if (changed->want == LeaseWant::Stop) wanted_.erase(changed->lease);
    }
    for (const auto& [id, lease] : after.leases) {
      if (lease.want == LeaseWant::Stop && (ended == nullptr || ended->lease != id)) wanted_.erase(id);
    }
  }
  void step(const View& view) override {
    std::size_t silent = 0, on = 0;
    std::map<std::int64_t, std::size_t> together;
    for (const auto& node : view.nodes) {
      if (!node->id) continue;
      ++on;
      if (node->silent && node->cut_online && node->powered) ++together[node->cut_at.ms];
    }
    for (const auto& [at, count] : together) silent = std::max(silent, count);
    const bool mass = silent >= 6 && silent * 100 >= on * 50;
    if (!view.leading)
      leading_ = LeaseTime{0};
    else if (leading_ == LeaseTime{0})
      leading_ = view.world.now();
    if (!mass || !view.leading)
      since_ = LeaseTime{0};
    else if (since_ == LeaseTime{0})
      since_ = view.world.now();
    // 75 s of grace after a start, 7 s of silence, ticks, a commit.
    const Millis silence = view.world.now() - since_;
    const bool graceful = leading_ == LeaseTime{0} || since_ - leading_ < Millis(95'000);
    const Millis limit(graceful ? 95'000 : 25'000);
    if (since_ != LeaseTime{0} && silence > limit && silence < limit + Millis(2000) && !view.frozen) {
      view.world.fail("I7: most machines are silent and nothing is frozen");
    }
  }

 private:
  bool open_ = false;
  LeaseTime since_{0}, leading_{0};
  std::vector<LeaseTime> evictions_;
  std::set<LeaseId> wanted_;
};

// I9: nothing takes effect without a valid signature, a newer revision, a newer epoch and the right node.
class OnlyValid final : public Checker {
 public:
  void op(const Node& node, const agent::Op& op, const State* state, World& world) override {
    if (const auto* network = std::get_if<agent::ConfigureNetwork>(&op)) {
      std::uint64_t& highest = rosters_[{node.index, network->cluster}];
      if (network->roster_epoch < highest)
        world.fail("I9: node " + std::to_string(node.index) + " went back to an older roster");
      highest = std::max(highest, network->roster_epoch);
    }
    const auto* create = std::get_if<agent::CreateLease>(&op);
    if (create == nullptr) return;
    const LeaseId id = create->assignment.lease;
    const auto [boot, first] = boots_.try_emplace({node.index, id}, node.facts.boot_id);
    if (!first && boot->second != node.facts.boot_id)
      world.fail("I5: " + id.str() + " was started again after a reboot");
    const Lease* lease = state == nullptr ? nullptr : state->find_lease(id);
    if (lease != nullptr && lease->end != LeaseEnd::None)
      world.fail("I9: " + id.str() + " is created though its lease has ended");
  }
  void sent(const Node& node, const session::AgentFrame& frame, World& world) override {
    const std::vector<ObservedLease>* leases = nullptr;
    if (const auto* seen = std::get_if<session::Observed>(&frame)) {
      leases = &seen->leases;
      std::uint64_t& highest = revisions_[node.index];
      if (seen->revision < highest)
        world.fail("I9: node " + std::to_string(node.index) + " went back to an older revision");
      highest = std::max(highest, seen->revision);
    }
    if (const auto* inventory = std::get_if<session::Inventory>(&frame)) leases = &inventory->leases;
    if (leases == nullptr) return;
    for (const ObservedLease& lease : *leases) {
      if (lease.phase >= LeasePhase::Stopped) ended_claims_.insert({node.id, lease.lease, lease.epoch});
      if (!lease.overlay_key.empty()) key_claims_.insert({node.id, lease.lease, lease.epoch});
    }
  }
  void durable(const DurableEvent& event, const State& after, World& world) override {
    if (const auto* ended = std::get_if<control::LeaseEnded>(&event.event);
        ended != nullptr && ended->end == LeaseEnd::Confirmed) {
      const Lease* lease = after.find_lease(ended->lease);
      if (lease != nullptr && !ended_claims_.contains({lease->node, lease->id, lease->epoch}))
        world.fail("I9: the end of " + ended->lease.str() + " was confirmed by nobody who held it");
    }
    if (const auto* keyed = std::get_if<control::SlotKeyed>(&event.event)) {
      const Slot* slot = after.find_slot(keyed->slot);
      const Lease* lease = slot == nullptr ? nullptr : after.find_lease(slot->lease);
      if (lease != nullptr && !key_claims_.contains({lease->node, lease->id, lease->epoch}))
        world.fail("I9: " + keyed->slot.str() + " took a key that its holder never sent");
    }
    const auto* seen = std::get_if<control::LeaseObserved>(&event.event);
    const NodeId by = event.actor.subject.node;
    if (seen != nullptr && by) {
      const Lease* lease = after.find_lease(seen->lease);
      if (lease != nullptr && lease->node != by)
        world.fail("I9: " + by.str() + " was believed about " + seen->lease.str() + " of " + lease->node.str());
    }
    if (const auto* job = std::get_if<control::JobStateChanged>(&event.event); job != nullptr && by) {
      const Job* found = after.find_job(job->job);
      const Cluster* cluster = found == nullptr ? nullptr : after.find_cluster(found->cluster);
      const Slot* head = cluster == nullptr ? nullptr : after.find_head(*cluster);
      const Lease* lease = head == nullptr ? nullptr : after.find_lease(head->lease);
      const bool ends = job->state == JobState::Succeeded;
      if (ends && lease != nullptr && lease->node != by)
        world.fail("I9: " + by.str() + " was believed about " + job->job.str());
    }
  }

 private:
  std::map<std::pair<std::uint32_t, ClusterId>, std::uint64_t> rosters_;
  std::map<std::pair<std::uint32_t, LeaseId>, std::string> boots_;
  std::map<std::uint32_t, std::uint64_t> revisions_;
  std::set<std::tuple<NodeId, LeaseId, Epoch>> ended_claims_, key_claims_;
};

// What one decision may contain: gangs whole, retries bounded, tokens used once, members replaced before they are
// promoted.
class SoundDecisions final : public Checker {
 public:
  void durable(const DurableEvent& event, const State& after, World& world) override {
    if (const auto* enrolled = std::get_if<control::NodeEnrolled>(&event.event)) {
      if (!tokens_.insert(enrolled->token).second)
        world.fail("I9: join token " + enrolled->token.str() + " enrolled two machines");
    }
    if (const auto* job = std::get_if<control::JobStateChanged>(&event.event)) {
      const Job* found = after.find_job(job->job);
      if (found != nullptr && job->attempt > found->spec.retries + 1)
        world.fail("I1: " + job->job.str() + " was tried more often than its retries allow");
    }
    if (const auto* granted = std::get_if<control::LeaseGranted>(&event.event)) {
      const Cluster* cluster = after.find_cluster(granted->lease.cluster);
      const bool live = cluster != nullptr && cluster->state <= ClusterState::Running;
      if (!live) world.fail("I9: a lease was granted for a cluster that is not wanted any more");
      grants_.insert(granted->lease.cluster);
    }
    if (std::holds_alternative<control::SlotPromoted>(event.event) &&
        !std::holds_alternative<control::SlotLeft>(last_)) {
      world.fail("I1: a spare was promoted while the lost worker stayed in the roster");
    }
    last_ = event.event;
  }
  void step(const View& view) override {
    if (view.state == nullptr) return grants_.clear();
    for (const ClusterId id : grants_) {
      const Cluster* cluster = view.state->find_cluster(id);
      if (cluster == nullptr || cluster->state != ClusterState::Starting) continue;
      std::map<std::string, std::uint32_t> have;
      std::size_t head = 0;
      for (const SlotId slot_id : cluster->slots) {
        const Slot* slot = view.state->find_slot(slot_id);
        if (slot != nullptr && slot->role == SlotRole::Head) ++head;
        if (slot != nullptr && slot->role == SlotRole::Worker) ++have[slot->group];
      }
      for (const WorkerGroup& group : cluster->spec.groups) {
        if (gangs_.contains(id)) continue;
        if (have[group.name] < group.min) view.world.fail("I1: " + id.str() + " started without its whole gang");
      }
      gangs_.insert(id);
      for (const WorkerGroup& group : cluster->spec.groups) {
        if (have[group.name] > group.max + 8)
          view.world.fail("I10: " + id.str() + " holds more workers than its maximum");
      }
    }
    grants_.clear();
  }

 private:
  std::set<TokenId> tokens_;
  std::set<ClusterId> grants_, gangs_;
  control::Event last_;
};

// I10: queues and memory are bounded.
class Bounded final : public Checker {
 public:
  void step(const View& view) override {
    if (view.queued > 4 * 512 + 2)
      view.world.fail("I10: the engine queues " + std::to_string(view.queued) + " commands");
    if (view.world.steps % 64 != 0) return;
    for (const auto& node : view.nodes) {
      if (node->core && node->core->observed_leases().size() > 64)
        view.world.fail("I10: an agent holds too many leases");
      if (node->disk.size() > 256 * 1024) view.world.fail("I10: an agent's memory grows without bound");
    }
  }
};

}  // namespace

Checkers::Checkers() {
  all_.push_back(std::make_unique<OneHolder>());
  all_.push_back(std::make_unique<WithinLease>());
  all_.push_back(std::make_unique<SelfFence>());
  all_.push_back(std::make_unique<NoEarlyFence>());
  all_.push_back(std::make_unique<NoMassEviction>());
  all_.push_back(std::make_unique<OnlyValid>());
  all_.push_back(std::make_unique<SoundDecisions>());
  all_.push_back(std::make_unique<Bounded>());
}

}  // namespace muster::sim
