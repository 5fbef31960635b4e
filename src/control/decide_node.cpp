// Machines: enrolment, the owner's and operator's actions, liveness.
#include <algorithm>

#include "control/decide.h"
#include "control/mutants.h"
#include "model/offer.h"
#include "model/validate.h"

namespace muster::control {
namespace {

using access::Kind;
using access::Verb;

constexpr std::size_t kNodesMax = 1'000'000;
constexpr std::uint32_t kBarFormat = 2;  // the first that stores Node::barred

// The workers of a node leave their clusters for good; heads are the caller's question.
enum class Leave : std::uint8_t { Gently, AtOnce };
void take_workers_away(Draft& d, NodeId id, Leave how, const std::string& reason) {
  for (const LeaseId lease_id : d.base.live_leases(id)) {
    const Lease lease = *d.lease(lease_id);
    const Slot* slot = d.slot(lease.slot);
    if (slot == nullptr || slot->role == SlotRole::Head || lease.want == LeaseWant::Stop || !d.pull(lease.cluster))
      continue;
    if (how == Leave::Gently && slot->role == SlotRole::Worker)
      drain_slot(d, slot->id, reason);
    else
      lose_slot(d, slot->id, reason);
    settle(d, lease.cluster);
  }
}
void take_heads_away(Draft& d, NodeId id, const std::string& reason) {
  for (const LeaseId lease_id : d.base.live_leases(id)) {
    const Slot* slot = d.slot(d.lease(lease_id)->slot);
    if (slot != nullptr && slot->role == SlotRole::Head && d.pull(slot->cluster))
      fail_cluster(d, slot->cluster, reason);
  }
}
void settle_all(Draft& d, NodeId id) {
  for (const LeaseId lease : d.base.live_leases(id))
    if (const ClusterId cluster = d.lease(lease)->cluster; d.pull(cluster)) settle(d, cluster);
}

// Silence: the lost members leave all rosters. While we may be the ones cut off, only what a ready spare replaces
// leaves.
void lose_workers(Draft& d, NodeId id) {
  for (const LeaseId lease_id : d.base.live_leases(id)) {
    const Lease lease = *d.lease(lease_id);
    const Slot* slot = d.slot(lease.slot);
    if (slot == nullptr || slot->role == SlotRole::Head || lease.want == LeaseWant::Stop || !d.pull(lease.cluster))
      continue;
    if (d.state.frozen && !MUSTER_MUTANT(mutants::kForgetFreeze))
      replace_by_spare(d, slot->id, "node_lost");
    else
      lose_slot(d, slot->id, "node_lost");
  }
}

// Under a new boot id nothing of the old one runs; its leases are over, whatever the machine says of them.
void leave_behind(Draft& d, NodeId id) {
  take_workers_away(d, id, Leave::AtOnce, "node_rebooted");
  take_heads_away(d, id, "node_rebooted");
}

// Whether a machine is held is never its own word.
void hold(NodeFacts& facts, const std::string& held) {
  facts.labels.erase(std::string(kHeldLabel));
  if (!held.empty()) facts.labels.emplace(kHeldLabel, held);
}

bool off(NodeState state) {
  return state == NodeState::Disabled || state == NodeState::Revoked || state == NodeState::Enrolled ||
         state == NodeState::Quarantined;
}

Decision set_draining(const Asking& a, const Node& node, bool draining) {
  Draft d(a.base, a.actor, a.wall);
  d.pull(node.id);
  NodeState state = node.state;
  if (state == NodeState::Online || state == NodeState::Draining)
    state = draining ? NodeState::Draining : NodeState::Online;
  if (node.draining != draining) d.emit(NodeStateChanged{node.id, state, draining, draining ? "drain" : ""});
  if (draining) take_workers_away(d, node.id, Leave::Gently, "node_draining");
  return done(d, node.id.str());
}

// Whether the word of the platform, not of the machine's owner, is given; what either may is the access table's.
bool for_platform(const Asking& a) {
  return a.actor.system || a.asker().role == Role::Operator;
}

Decided enable(const Asking& a, const Node& node) {
  if (node.state != NodeState::Disabled && node.state != NodeState::Quarantined) {
    if (node.strikes == 0) return Decision{{}, {node.id.str()}};
    return one(NodeStruck{node.id, 0, {}, {}}, node.id.str());  // repaired, its owner says
  }
  if (node.barred && !for_platform(a))
    return error(Code::PermissionDenied,
                 "an operator disabled this machine, so only an operator can enable it; ask yours what he found");
  return one(NodeStateChanged{node.id, NodeState::Admitted, node.draining, "enabled"}, node.id.str());
}

// Older formats say nothing of that: their readers would take such devices for whole GPUs.
bool parts_given(const NodeFacts& facts) {
  return std::any_of(facts.devices.begin(), facts.devices.end(),
                     [](const Device& d) { return d.sharing != GpuSharing::Exclusive; });
}

Decided take_out(const Asking& a, const Node& node, NodeState target) {
  const bool revoke = target == NodeState::Revoked, bar = !revoke && for_platform(a);
  if (node.state == target && (!bar || node.barred)) return Decision{{}, {node.id.str()}};
  const std::string reason = revoke ? "node_revoked" : "node_disabled";
  Draft d(a.base, a.actor, a.wall);
  d.pull(node.id);
  // Older snapshots cannot hold a bar, and one that a restart forgets is none.
  if (bar && a.base.format_version < kBarFormat) d.emit(FormatRaised{kBarFormat});
  d.emit(NodeStateChanged{node.id, target, node.draining, bar ? std::string(kBarred) : reason});
  take_workers_away(d, node.id, Leave::AtOnce, reason);
  take_heads_away(d, node.id, reason);
  return done(d, node.id.str());
}

}  // namespace

Decided decide(const Asking& a, const EnrollNode& c) {
  TRY_VOID(a.may(Verb::Enroll, {.kind = Kind::Node}));
  const auto it = a.base.join_token_by_hash.find(c.token_hash);
  const JoinToken* token = it == a.base.join_token_by_hash.end() ? nullptr : &a.base.join_tokens.at(it->second);
  // The answer to an enrolment may get lost: the same key with the same token gets it again, and nothing is made twice.
  const Node* again = token != nullptr && token->used_by ? a.base.find_node(token->used_by) : nullptr;
  if (again != nullptr && again->device_key == c.device_key && again->state != NodeState::Revoked && !token->revoked &&
      (token->expires.ms == 0 || token->expires > a.wall))
    return Decision{{}, {again->id.str()}};
  const bool used = token != nullptr && token->used_by && !MUSTER_MUTANT(mutants::kAcceptUsedJoinToken);
  if (token == nullptr || token->revoked || used || (token->expires.ms != 0 && token->expires <= a.wall))
    return error(Code::Unauthenticated,
                 "the join token is unknown, used, revoked or expired; ask the supplier for a new one");
  if (c.device_key.size() != 32)
    return error(Code::InvalidArgument, "device_key is not an Ed25519 public key of 32 bytes", "device_key");
  if (a.base.node_by_key.contains(c.device_key))
    return error(Code::AlreadyExists,
                 "this device key is enrolled already; a copied machine must make a key of its own (`muster-agent "
                 "leave`, then join)",
                 "device_key");
  // Of a token from before pools were a right: no organisation has a pool of that name.
  if (const auto pool = token->labels.find("pool"); pool != token->labels.end() && !valid_name(pool->second))
    return error(Code::PermissionDenied,
                 "the join token names a pool that its organisation does not have; ask the supplier for a new token");
  TRY_VOID(validate_title(c.name, "name"));
  TRY_VOID(validate(c.facts));
  if (a.base.nodes.size() >= kNodesMax)
    return error(Code::ResourceExhausted, "this platform holds a million machines, which is its limit");
  Node node;
  node.id = NodeId{a.base.last.node + 1};
  node.supplier = token->supplier, node.name = c.name, node.device_key = c.device_key, node.state = NodeState::Admitted;
  node.facts = c.facts;
  hold(node.facts, c.held);
  if (a.base.format_version < kTrafficFormat) node.facts.image_bytes.clear();
  node.labels = token->labels, node.enrolled_at = a.wall, node.state_since = a.wall;
  const std::string id = node.id.str();
  const bool raise = parts_given(node.facts) && a.base.format_version < kGpuFormat;
  Decision decision = one(NodeEnrolled{std::move(node), token->id}, id);
  if (raise) decision.events.insert(decision.events.begin(), FormatRaised{kGpuFormat});
  return decision;
}

Decided decide(const Asking& a, const SetNode& c) {
  using Action = SetNode::Action;
  const Node* node = a.base.find_node(c.node);
  const access::Object object{.kind = Kind::Node, .owner = node == nullptr ? OrgId{} : node->supplier, .node = c.node};
  const bool drains = c.action == Action::Drain || c.action == Action::Undrain;
  TRY_VOID(a.may(c.action == Action::Revoke  ? Verb::Revoke
                 : drains                    ? Verb::Drain
                 : c.action == Action::Admit ? Verb::Enroll
                                             : Verb::Update,
                 c.action == Action::Admit ? access::Object{.kind = Kind::Platform} : object));
  if (node == nullptr) return missing("machine", c.node.str());
  if (node->state == NodeState::Revoked && c.action != Action::Revoke)
    return error(Code::FailedPrecondition, "the machine is revoked for good; enrol it again with a new join token");
  const std::string id = c.node.str();
  switch (c.action) {
    case Action::Admit:
      if (node->state != NodeState::Enrolled) return Decision{{}, {id}};
      return one(NodeStateChanged{c.node, NodeState::Admitted, node->draining, "admitted"}, id);
    case Action::Enable:
      return enable(a, *node);
    case Action::Drain:
      return set_draining(a, *node, true);
    case Action::Undrain:
      return set_draining(a, *node, false);
    case Action::Disable:
      return take_out(a, *node, NodeState::Disabled);
    case Action::Revoke:
      return take_out(a, *node, NodeState::Revoked);
  }
  return error(Code::InvalidArgument, "there is no such action on a machine", "action");
}

Decided decide(const Asking& a, const SetNodeTier& c) {
  TRY_VOID(a.may(Verb::Update, {.kind = Kind::Platform}));
  const Node* node = a.base.find_node(c.node);
  if (node == nullptr) return missing("machine", c.node.str());
  if (c.tier > TrustTier::Platform)
    return error(Code::InvalidArgument, "tier must be community, verified or platform", "tier");
  if (node->tier == c.tier) return Decision{{}, {c.node.str()}};
  return one(NodeTierChanged{c.node, c.tier}, c.node.str());
}

Decided decide(const Asking& a, const SetOffer& c) {
  const Node* node = a.base.find_node(c.node);
  TRY_VOID(
      a.may(Verb::Update, {.kind = Kind::Offer, .owner = node == nullptr ? OrgId{} : node->supplier, .node = c.node}));
  if (node == nullptr) return missing("machine", c.node.str());
  if (node->state == NodeState::Revoked)
    return error(Code::FailedPrecondition, "the machine is revoked for good; enrol it again with a new join token");
  Offer offer = c.offer;
  TRY_VOID(validate(offer));
  std::sort(offer.tenants.begin(), offer.tenants.end());
  offer.tenants.erase(std::unique(offer.tenants.begin(), offer.tenants.end()), offer.tenants.end());
  for (const OrgId tenant : offer.tenants)
    if (!a.base.orgs.contains(tenant))
      return error(Code::InvalidArgument, "tenants names " + tenant.str() + ", which does not exist", "tenants");
  offer.version = node->offer.version;
  if (offer == node->offer) return Decision{{}, {c.node.str()}};
  ++offer.version;
  Decision decision =
      one(NodeOffered{c.node, offer, offer.hours.empty() ? WallTime{} : a.wall + kHoursAnew}, c.node.str());
  // Older snapshots cannot hold an offer, and one that a restart forgets is none.
  if (a.base.format_version < kOfferFormat) decision.events.insert(decision.events.begin(), FormatRaised{kOfferFormat});
  return decision;
}

Decided decide(const Asking& a, const NodeOnline& c) {
  TRY_VOID(a.system_only("say that a machine is online"));
  const Node* node = a.base.find_node(c.node);
  if (node == nullptr) return missing("machine", c.node.str());
  if (node->state == NodeState::Revoked)
    return error(Code::FailedPrecondition, "the machine is revoked; enrol it again with a new join token");
  if (node->state == NodeState::Quarantined)
    return error(Code::FailedPrecondition, "the machine is quarantined: its device key is in use on two machines");
  Draft d(a.base, a.actor, a.wall);
  d.pull(c.node);
  NodeFacts facts = c.facts ? *c.facts : node->facts;
  if (!c.boot_id.empty()) facts.boot_id = c.boot_id;
  hold(facts, c.held ? *c.held : held_for(*node));
  if (a.base.format_version < kTrafficFormat) facts.image_bytes.clear();  // an older journal does without
  const bool rebooted = facts.boot_id != node->facts.boot_id && !MUSTER_MUTANT(mutants::kKeepLeasesOverReboot);
  if (facts != node->facts) {
    TRY_VOID(validate(facts));
    if (parts_given(facts) && a.base.format_version < kGpuFormat) d.emit(FormatRaised{kGpuFormat});
    d.emit(NodeFactsChanged{c.node, std::move(facts)});
  }
  observe_jobs(d, c.node, c.jobs);
  if (rebooted) leave_behind(d, c.node);
  const NodeState state = node->draining ? NodeState::Draining : NodeState::Online;
  const bool returned = !off(node->state) && node->state != state;
  if (returned) d.emit(NodeStateChanged{c.node, state, node->draining, ""});
  observe_leases(d, c.node, c.leases);
  if (returned) settle_all(d, c.node);
  return done(d, c.node.str());
}

Decided decide(const Asking& a, const SetHeld& c) {
  TRY_VOID(a.system_only("judge the versions of a machine"));
  const Node* node = a.base.find_node(c.node);
  if (node == nullptr) return missing("machine", c.node.str());
  if (node->state == NodeState::Revoked) return Decision{};
  Draft d(a.base, a.actor, a.wall);
  d.pull(c.node);
  if (held_for(*node) != c.held) {
    NodeFacts facts = node->facts;
    hold(facts, c.held);
    TRY_VOID(validate(facts));
    d.emit(NodeFactsChanged{c.node, std::move(facts)});
  }
  if (c.leave && !c.held.empty()) take_workers_away(d, c.node, Leave::Gently, "known_hole");
  return done(d, c.node.str());
}

Decided decide(const Asking& a, const NodeSuspect& c) {
  TRY_VOID(a.system_only("suspect a machine"));
  const Node* node = a.base.find_node(c.node);
  if (node == nullptr) return missing("machine", c.node.str());
  if (node->state != NodeState::Online && node->state != NodeState::Draining) return Decision{};
  return one(NodeStateChanged{c.node, NodeState::Suspect, node->draining, "silent"}, c.node.str());
}

Decided decide(const Asking& a, const NodeLost& c) {
  TRY_VOID(a.system_only("give up a machine"));
  const Node* node = a.base.find_node(c.node);
  if (node == nullptr) return missing("machine", c.node.str());
  if (off(node->state) || node->state == NodeState::Lost) return Decision{};
  Draft d(a.base, a.actor, a.wall);
  d.pull(c.node);
  d.emit(NodeStateChanged{c.node, NodeState::Lost, node->draining, "silent"});
  lose_workers(d, c.node);
  settle_all(d, c.node);
  return done(d, c.node.str());
}

Decided decide(const Asking& a, const NodeContested& c) {
  TRY_VOID(a.system_only("call a machine contested"));
  const Node* node = a.base.find_node(c.node);
  if (node == nullptr) return missing("machine", c.node.str());
  const std::string reason(kContested);
  Draft d(a.base, a.actor, a.wall);
  d.pull(c.node);
  // One that waits for its admission holds nothing, and enabling it must not admit it.
  if (!off(node->state) || node->state == NodeState::Disabled)
    d.emit(NodeStateChanged{c.node, NodeState::Quarantined, node->draining, reason});
  take_workers_away(d, c.node, Leave::AtOnce, reason);
  take_heads_away(d, c.node, "head_" + reason);
  for (const LeaseId id : a.base.live_leases(c.node)) {
    d.pull(id);
    const Lease& lease = *d.lease(id);
    if (lease.end == LeaseEnd::None && !contested(lease)) d.emit(LeaseWantChanged{id, LeaseWant::Stop, reason, {}});
  }
  settle_all(d, c.node);
  return done(d, c.node.str());
}

// The first ones of a platform are nothing to note: they came with it.
Decided decide(const Asking& a, const NoteSigningKeys& c) {
  TRY_VOID(a.system_only("say which keys sign"));
  const bool ever = std::any_of(c.keys.begin(), c.keys.end(), [](const auto& each) { return each.from.ms != 0; });
  if (c.revision <= a.base.signing_keys_revision || (!ever && a.base.signing_keys.empty()) ||
      c.keys.size() > kSigningKeyRowsMax)
    return Decision{};
  const auto missing = [](const auto& all, const SigningKeyRow& row) {
    return std::none_of(all.begin(), all.end(),
                        [&](const auto& each) { return each.kind == row.kind && each.id == row.id; });
  };
  SigningKeysNoted noted{c.revision, c.keys, {}, {}};
  for (const SigningKeyRow& row : c.keys)
    if (row.from.ms != 0 && missing(a.base.signing_keys, row)) noted.added.push_back(row);
  for (const SigningKeyRow& row : a.base.signing_keys)
    if (missing(c.keys, row)) noted.removed.push_back(row);
  Decision decision = one(std::move(noted));
  if (a.base.format_version < kKeysFormat) decision.events.insert(decision.events.begin(), FormatRaised{kKeysFormat});
  return decision;
}

Decided decide(const Asking& a, const SetFreeze& c) {
  TRY_VOID(a.may(Verb::Update, {.kind = Kind::Platform}));
  if (a.base.frozen == c.frozen) return Decision{};
  Draft d(a.base, a.actor, a.wall);
  d.emit(FreezeSet{c.frozen, c.reason.substr(0, 200)});
  if (c.frozen) return done(d);
  // Who is still silent when the freeze ends is lost for its own reasons.
  NodeId last;
  for (const auto& [node_id, lease] : a.base.leases_by_node) {
    if (node_id == last) continue;
    last = node_id;
    const Node* node = a.base.find_node(node_id);
    if (node == nullptr || node->state != NodeState::Lost) continue;
    d.pull(node_id);
    lose_workers(d, node_id);
    settle_all(d, node_id);
  }
  return done(d);
}

Decided decide(const Asking& a, const NodePaused& c) {
  TRY_VOID(a.device_only(c.node));
  const Node* node = a.base.find_node(c.node);
  if (node == nullptr) return missing("machine", c.node.str());
  if (!c.paused || !c.now) return set_draining(a, *node, c.paused);
  Draft d(a.base, a.actor, a.wall);
  d.pull(c.node);
  const bool up = node->state == NodeState::Online || node->state == NodeState::Draining;
  if (!node->draining) d.emit(NodeStateChanged{c.node, up ? NodeState::Draining : node->state, true, "owner_paused"});
  take_workers_away(d, c.node, Leave::AtOnce, "owner_paused");
  take_heads_away(d, c.node, "owner_paused");
  return done(d, c.node.str());
}

Decided decide(const Asking& a, const NodeLeft& c) {
  TRY_VOID(a.device_only(c.node));
  const Node* node = a.base.find_node(c.node);
  if (node == nullptr) return missing("machine", c.node.str());
  Draft d(a.base, a.actor, a.wall);
  d.pull(c.node);
  if (node->state != NodeState::Revoked) d.emit(NodeStateChanged{c.node, NodeState::Revoked, true, "left"});
  take_workers_away(d, c.node, Leave::AtOnce, "node_left");
  take_heads_away(d, c.node, "node_left");
  for (const LeaseId lease : a.base.live_leases(c.node)) {  // `leave` removed everything before it said so
    if (contested(*d.lease(lease))) continue;
    const ClusterId cluster = d.lease(lease)->cluster;
    end_lease(d, lease, LeaseEnd::Confirmed, "node_left");
    if (d.pull(cluster)) settle(d, cluster);
  }
  return done(d, c.node.str());
}

Decided decide(const Asking& a, const LeasesExpired& c) {
  TRY_VOID(a.system_only("end leases"));
  Draft d(a.base, a.actor, a.wall);
  constexpr std::size_t kEventsMax = 4000;  // the rest comes with the next verdict
  for (const LeaseId id : c.leases) {
    const Lease* lease = a.base.find_lease(id);
    if (lease == nullptr || lease->end != LeaseEnd::None || d.events.size() > kEventsMax) continue;
    const bool wanted = lease->want != LeaseWant::Stop;
    // While everyone is silent a wanted lease is not ended: the verdict comes again when the freeze is over.
    if (wanted && d.state.frozen && !MUSTER_MUTANT(mutants::kExpireWhileFrozen)) continue;
    if (!d.pull(lease->cluster)) continue;
    d.pull(id);
    const Slot* slot = d.slot(lease->slot);
    const bool head = slot != nullptr && slot->role == SlotRole::Head;
    if (head && wanted) fail_cluster(d, lease->cluster, "head_lost");
    end_lease(d, id, LeaseEnd::Expired, "lease_expired");
    settle(d, lease->cluster);
  }
  return done(d);
}

Decided decide(const Asking& a, const RostersLate& c) {
  TRY_VOID(a.system_only("judge who holds which roster"));
  Draft d(a.base, a.actor, a.wall);
  constexpr std::size_t kEventsMax = 4000;
  if (a.base.frozen) return done(d);  // the verdict comes again
  for (const LeaseId id : c.leases) {
    const Lease* lease = a.base.find_lease(id);
    if (lease == nullptr || lease->end != LeaseEnd::None || d.events.size() > kEventsMax) continue;
    if (!d.pull(lease->cluster)) continue;
    const Slot* slot = d.slot(lease->slot);
    if (slot == nullptr || !slot->in_roster || MUSTER_MUTANT(mutants::kKeepLateMember)) continue;
    const std::string reason = "roster_not_acknowledged";
    if (slot->role == SlotRole::Head) {
      fail_cluster(d, lease->cluster, "head_" + reason);
      continue;
    }
    back_off(d, lease->cluster, lease->node);
    lose_slot(d, slot->id, reason);
    settle(d, lease->cluster);
  }
  return done(d);
}

}  // namespace muster::control
