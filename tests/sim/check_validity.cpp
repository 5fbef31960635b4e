// I9: nothing takes effect without a valid signature, a newer revision, a newer epoch and the right node; and a copied
// machine is not the machine.
#include <algorithm>

#include "sim/checkers.h"

namespace muster::sim {
namespace {

using control::State;
using engine::DurableEvent;

// I9: nothing takes effect without a valid signature, a newer revision, a newer epoch and the right node.
class OnlyValid final : public Checker {
 public:
  OnlyValid() : Checker("I9") {}
  void op(const Node& node, const agent::Op& op, const State* state, World& world) override {
    if (const auto* network = std::get_if<agent::ConfigureNetwork>(&op)) {
      std::uint64_t& highest = rosters_[{node.index, network->cluster}];
      if (network->roster_epoch < highest)
        fail(world, "node " + std::to_string(node.index) + " went back to an older roster");
      highest = std::max(highest, network->roster_epoch);
    }
    const auto* create = std::get_if<agent::CreateLease>(&op);
    if (create == nullptr) return;
    looked_at();
    const LeaseId id = create->assignment.lease;
    const Lease* lease = state == nullptr ? nullptr : state->find_lease(id);
    if (lease != nullptr && lease->end != LeaseEnd::None)
      fail(world, id.str() + " is created though its lease has ended");
  }
  void sent(const Node& node, const session::AgentFrame& frame, World& world) override {
    const std::vector<ObservedLease>* leases = nullptr;
    if (const auto* seen = std::get_if<session::Observed>(&frame)) {
      leases = &seen->leases;
      std::uint64_t& highest = revisions_[node.index];
      if (seen->revision < highest)
        fail(world, "node " + std::to_string(node.index) + " went back to an older revision");
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
    if (const auto* enrolled = std::get_if<control::NodeEnrolled>(&event.event)) {
      looked_at();
      if (!tokens_.insert(enrolled->token).second)
        fail(world, "join token " + enrolled->token.str() + " enrolled two machines");
    }
    if (const auto* changed = std::get_if<control::NodeStateChanged>(&event.event)) {
      if (revoked_.contains(changed->node) && changed->state != NodeState::Revoked)
        fail(world, changed->node.str() + " came back though it was revoked");
      if (changed->state == NodeState::Revoked) revoked_.insert(changed->node);
    }
    if (const auto* granted = std::get_if<control::LeaseGranted>(&event.event)) {
      const muster::Node* node = after.find_node(granted->lease.node);
      if (node == nullptr || node->draining || node->state != NodeState::Online)
        fail(world, granted->lease.node.str() + " got a lease in a state that forbids it");
    }
    if (const auto* ended = std::get_if<control::LeaseEnded>(&event.event);
        ended != nullptr && ended->end == LeaseEnd::Confirmed) {
      looked_at();
      const Lease* lease = after.find_lease(ended->lease);
      if (lease != nullptr && !ended_claims_.contains({lease->node, lease->id, lease->epoch}))
        fail(world, "the end of " + ended->lease.str() + " was confirmed by nobody who held it");
    }
    if (const auto* keyed = std::get_if<control::SlotKeyed>(&event.event)) {
      const Slot* slot = after.find_slot(keyed->slot);
      const Lease* lease = slot == nullptr ? nullptr : after.find_lease(slot->lease);
      if (lease != nullptr && !key_claims_.contains({lease->node, lease->id, lease->epoch}))
        fail(world, keyed->slot.str() + " took a key that its holder never sent");
    }
    const auto* seen = std::get_if<control::LeaseObserved>(&event.event);
    const NodeId by = event.actor.subject.node;
    if (seen != nullptr && by) {
      const Lease* lease = after.find_lease(seen->lease);
      if (lease != nullptr && lease->node != by)
        fail(world, by.str() + " was believed about " + seen->lease.str() + " of " + lease->node.str());
    }
    if (const auto* job = std::get_if<control::JobStateChanged>(&event.event); job != nullptr && by) {
      const Job* found = after.find_job(job->job);
      const Cluster* cluster = found == nullptr ? nullptr : after.find_cluster(found->cluster);
      const Slot* head = cluster == nullptr ? nullptr : after.find_head(*cluster);
      const Lease* lease = head == nullptr ? nullptr : after.find_lease(head->lease);
      const bool ends = job->state == JobState::Succeeded;
      if (ends && lease != nullptr && lease->node != by)
        fail(world, by.str() + " was believed about " + job->job.str());
    }
  }

 private:
  std::map<std::pair<std::uint32_t, ClusterId>, std::uint64_t> rosters_;
  std::map<std::uint32_t, std::uint64_t> revisions_;
  std::set<TokenId> tokens_;
  std::set<NodeId> revoked_;
  std::set<std::tuple<NodeId, LeaseId, Epoch>> ended_claims_, key_claims_;
};

// A copy is believed to be the machine after a reboot only where nothing could tell: the original was not heard, by the
// server that decides, since the copy began or since somebody ended the quarantine of both. In quarantine neither is
// believed anything.
class NoCopyForReboot final : public Checker {
 public:
  NoCopyForReboot() : Checker("I9") {}
  void started(const engine::Base&, const journal::Store&, World& world) override { started_ = world.now(); }
  void step(const View& view) override {
    clone_ = view.clone;
    original_ = nullptr;
    for (const auto& node : view.nodes)
      if (clone_ != nullptr && node->key == clone_->key) original_ = node.get();
  }
  void durable(const DurableEvent& event, const State&, World& world) override {
    if (clone_ == nullptr || original_ == nullptr) return;
    const NodeId id = original_->id;
    if (const auto* state = std::get_if<control::NodeStateChanged>(&event.event);
        state != nullptr && state->node == id) {
      looked_at();
      const bool ends = state->state == NodeState::Admitted || state->state >= NodeState::Disabled;
      if (quarantined_ && !ends) fail(world, id.str() + " came out of quarantine though nobody enabled it");
      if (quarantined_ && ends) enabled_ = world.now();
      quarantined_ = state->state == NodeState::Quarantined;
    }
    const auto* changed = std::get_if<control::NodeFactsChanged>(&event.event);
    if (changed == nullptr || changed->node != id) return;
    if (quarantined_) fail(world, id.str() + " is in quarantine and was believed what it is");
    if (changed->facts.boot_id != clone_->facts.boot_id) return;
    looked_at();
    if (original_->booted() > clone_->booted()) return;  // it was rebooted since: for a moment both look alike
    const LeaseTime proof = std::max({clone_->booted() + Millis(30'000), started_, enabled_});
    if (original_->spoke_at > proof)
      fail(world, "a copy of " + id.str() + " was taken for its reboot though the machine itself was heard");
  }

 private:
  const Node *clone_ = nullptr, *original_ = nullptr;
  bool quarantined_ = false;
  LeaseTime started_{0}, enabled_{0};
};

}  // namespace

CheckerPtr only_valid() {
  return std::make_unique<OnlyValid>();
}
CheckerPtr no_copy_for_reboot() {
  return std::make_unique<NoCopyForReboot>();
}

}  // namespace muster::sim
