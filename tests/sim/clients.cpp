// What tenants ask for, again and again with the same idempotency key until it is answered; and what strangers try.
#include <algorithm>

#include "sim/sim.h"

namespace muster::sim {
namespace {
const char* const kNames[] = {"alpha", "beta", "gamma", "delta"};
// Without an account: of who has one the core asks that.
constexpr PrincipalId kOperator{8'001}, kOwner{8'002};
}  // namespace

control::Actor Sim::tenant(const std::string& request_id) {
  control::Actor actor;
  actor.subject.principal = tenant_;
  actor.subject.role = Role::Tenant;
  actor.subject.org = org_;
  actor.request_id = request_id;
  actor.request_hash = Bytes(32, static_cast<std::uint8_t>(request_id.size()));
  return actor;
}

control::Actor Sim::owner_of(ClusterId id, const std::string& request_id) {
  control::Actor actor = tenant(request_id);
  const Cluster* cluster = server_->state().find_cluster(id);
  if (guest_project_ && cluster != nullptr && cluster->project == guest_project_)
    actor.subject.principal = guest_, actor.subject.org = guest_org_;
  return actor;
}

ClusterSpec Sim::random_spec() {
  ClusterSpec spec;
  spec.name = kNames[world_.rng.below(std::size(kNames))];
  spec.image = "muster/ray:2.55.1";
  spec.head.resources.cpu_milli = 1000;
  spec.head.resources.memory_bytes = std::int64_t{2} << 30;
  WorkerGroup group;
  group.name = "workers";
  group.min = 1 + static_cast<std::uint32_t>(world_.rng.below(2));
  group.max = group.min + static_cast<std::uint32_t>(world_.rng.below(2));
  group.request.resources.cpu_milli = 1000;
  group.request.resources.memory_bytes = std::int64_t{2} << 30;
  group.request.resources.gpus = world_.rng.chance(1, 2) ? 1 : 0;
  if (tight()) group.min = 2, group.max = 3, group.request.resources.gpus = 2;
  if (with_parts() && group.request.resources.gpus == 1 && parts_.chance(2, 3))
    group.request.gpu_share_milli = static_cast<std::int32_t>(parts_.between(1, 7)) * 100;
  spec.groups.push_back(group);
  spec.spares = static_cast<std::uint32_t>(world_.rng.below(2));
  constexpr std::uint8_t kTiers[] = {0, 1, 1, 2, 3};
  spec.tier = kTiers[tiers_.below(std::size(kTiers))];
  spec.priority = static_cast<std::int32_t>(world_.rng.between(-5, 5));
  if (with_pairs() && !chaos_.calm && pairs_.chance(2, 3))
    spec.pair_kbps = kPairNeed, spec.replace_slow = pairs_.chance(3, 4);
  if (!with_offers() || chaos_.calm) return spec;
  spec.may_end_early = offers_.chance(1, 2);
  if (offers_.chance(1, 2)) spec.max_lifetime = Millis(offers_.between(2, 12) * 60'000);
  if (offers_.chance(1, 3)) spec.max_price = offers_.between(1, 5) * 500'000, spec.currency = "EUR";
  if (offers_.chance(1, 6)) spec.budget = offers_.between(20'000, 400'000), spec.currency = "EUR";
  return spec;
}

// Asks until it is answered, with the same idempotency key: crashes must neither lose nor double it.
void Sim::ask(Request request, std::uint32_t tries) {
  auto answered = std::make_shared<bool>(false);
  const auto again = [this, request, tries, answered] {
    if (*answered || tries > 40) return;
    *answered = true;
    ask(request, tries + 1);
  };
  world_.after(Millis(5000), again);
  server_->submit(control::Lane::Tenant, request.command, request.actor,
                  [this, request, tries, answered](const Result<engine::Reply>& reply) {
                    if (*answered) return;
                    *answered = true;
                    if (!reply.ok()) {
                      if (reply.error().code == Code::Unavailable || reply.error().code == Code::ResourceExhausted) {
                        if (tries <= 40)
                          world_.after(Millis(world_.rng.between(500, 4000)),
                                       [this, request, tries] { ask(request, tries + 1); });
                      }
                      return;
                    }
                    if (request.must_fail) return world_.fail("I9: " + request.kind + " was accepted");
                    const std::string id = reply->outcome.id;
                    if (request.actor.request_id.empty()) return;
                    const bool fresh = answered_.insert(request.actor.request_id).second;
                    checkers_.each([&](Checker& c) {
                      c.acknowledged(request.actor.request_id, id, server_->up() ? &server_->state() : nullptr, world_);
                    });
                    // The answer got lost on its way now and then: the same key once more, and once with another body.
                    if (tries < 3 && world_.rng.chance(1, 6))
                      world_.after(Millis(700), [this, request] { ask(request, 30); });
                    if (fresh && world_.rng.chance(1, 6)) {
                      Request other = request;
                      other.actor.request_hash = Bytes(32, 0xEE);
                      other.must_fail = true;
                      other.kind = "another request under the same idempotency key";
                      ask(other, 38);
                    }
                  });
}

// An operator gives and takes quotas, tight ones now and then.
void Sim::set_quota(Quota of_project, Quota of_org) {
  for (const control::SetQuota& command :
       {control::SetQuota{{}, project_, of_project}, control::SetQuota{org_, {}, of_org}}) {
    Request request{command, tenant("q" + std::to_string(next_request_++)), "quota", "", false};
    request.actor.subject = {.principal = kOperator, .role = Role::Operator};
    ask(request);
  }
}

void Sim::quota_step() {
  if (chaos_.calm) return note_keys();
  world_.after(Millis(quotas_.between(60'000, 240'000)), [this] { quota_step(); });
  const auto any = [&]() -> Quota {
    if (quotas_.chance(1, 3)) return {};
    return {quotas_.between(0, 6), quotas_.between(0, 12) * 1000, quotas_.between(0, 3)};
  };
  const Quota of_project = any();
  set_quota(of_project, any());
  set_headroom(static_cast<std::uint32_t>(headrooms_.below(4)), static_cast<std::uint8_t>(headrooms_.below(4)));
  set_tier_shares(static_cast<std::uint32_t>(headrooms_.below(500)));
  grant_rights();
}

// The tenant lets a stranger look on for some minutes and thinks better of it now and then; an operator looks in for a
// reason; and the stranger gives away what is not his.
void Sim::grant_rights() {
  control::GrantAccess give;
  give.project = project_, give.to = stranger_, give.right = Right::Logs, give.reason = "the job hangs, says the log";
  give.lifetime = Millis(headrooms_.between(60'000, 600'000));
  const auto actor = [&] { return tenant("g" + std::to_string(next_request_++)); };
  ask({give, actor(), "grant", "", false});
  if (headrooms_.chance(1, 2))
    ask({control::RevokeGrant{GrantId{1 + headrooms_.below(20)}}, actor(), "revoke", "", false});
  Request glass{give, actor(), "break-glass", "", false};
  std::get<control::GrantAccess>(glass.command).break_glass = true;
  std::get<control::GrantAccess>(glass.command).to = {};
  glass.actor.subject = {.principal = kOperator, .role = Role::Operator, .org = other_org_};
  ask(glass);
  Request foreign{give, actor(), "a grant of a foreign project", "", true};
  std::get<control::GrantAccess>(foreign.command).to = tenant_;
  foreign.actor.subject.principal = stranger_, foreign.actor.subject.org = other_org_;
  ask(foreign);
}

// Of the best tier that agreed to be interrupted, and of one that did not.
void Sim::set_tier_shares(std::uint32_t permille) {
  for (const std::uint8_t tier : {std::uint8_t{3}, std::uint8_t{1}})
    ask({control::SetTierShare{{tier, permille}}, SimServer::system_actor(), "tier", "", false});
}

// The signer has another key; it says so twice, and once that the one before has ended.
void Sim::note_keys() {
  const auto row = [](std::uint64_t n) {
    return SigningKeyRow{static_cast<std::uint8_t>(n % 3),
                         std::string(16, static_cast<char>('a' + n % 20)),
                         WallTime{static_cast<std::int64_t>(n)},
                         {}};
  };
  const std::uint64_t n = ++keys_noted_;
  control::NoteSigningKeys note{n, {row(n)}};
  if (n % 2 == 0) note.keys.push_back(row(n - 1));
  for (int i = 0; i < 2; ++i) ask({note, SimServer::system_actor(), "keys", "", false});
}

// Of every model that there is.
void Sim::set_headroom(std::uint32_t machines, std::uint8_t tier) {
  std::set<std::string> models;
  for (const auto& node : nodes_) models.insert(node->facts.devices.empty() ? "" : node->facts.devices.front().model);
  for (const std::string& model : models)
    ask({control::SetHeadroom{{model, machines, tier}}, SimServer::system_actor(), "headroom", "", false});
}

// Owners ask for their machines, give hours that begin and end while the simulation lasts, and take all of it back.
Offer Sim::random_offer() {
  Offer offer;
  offer.currency = offers_.chance(1, 8) ? "USD" : "EUR";
  if (offers_.chance(1, 4)) return offer;
  offer.price = offers_.between(0, 4) * 500'000, offer.gpu_price = offers_.between(0, 2) * 500'000;
  offer.floor = offer.price, offer.gpu_floor = offer.gpu_price;
  if (offers_.chance(1, 3)) offer.floor /= 2, offer.gpu_floor /= 2;
  if (offers_.chance(1, 6)) offer.tenants = {offers_.chance(1, 2) ? org_ : other_org_};
  if (offers_.chance(1, 8)) offer.images = {offers_.chance(1, 2) ? "muster/" : "other/"};
  if (offers_.chance(1, 5)) offer.longest = Millis(offers_.between(15, 70) * 60'000);
  if (offers_.chance(1, 2)) return offer;
  constexpr std::int64_t kMinute = 60'000;
  const auto minute = static_cast<std::int32_t>((world_.wall().ms / kMinute + 3 * 24 * 60) % (7 * 24 * 60));
  const auto in = [&](std::int64_t low, std::int64_t high) {
    return minute + static_cast<std::int32_t>(offers_.between(low, high));
  };
  for (WeekHours hours : {WeekHours{in(-20, 5), in(8, 90)}, WeekHours{in(95, 110), in(115, 200)}}) {
    hours = {std::max(hours.from, 0), std::min(hours.to, 7 * 24 * 60)};
    if (hours.from < hours.to) offer.hours.push_back(hours);
  }
  offer.notice = Millis(offers_.between(0, 2) * 60'000);
  return offer;
}

void Sim::set_offer(NodeId node, const Offer& offer) {
  Request request{control::SetOffer{node, offer}, tenant("o" + std::to_string(next_request_++)), "offer", "", false};
  request.actor.subject = {.principal = kOwner, .role = Role::Supplier, .org = other_org_};
  ask(request);
}

void Sim::offer_step() {
  if (chaos_.calm) return;
  world_.after(Millis(offers_.between(10'000, 90'000)), [this] { offer_step(); });
  const NodeId node = nodes_[offers_.below(nodes_.size())]->id;
  if (node != revoked_) set_offer(node, random_offer());
  if (!offers_.chance(1, 5)) return;
  Request foreign{control::SetOffer{node, random_offer()}, tenant("x" + std::to_string(next_request_++)),
                  "a stranger's offer of a machine", "", true};
  ask(foreign, 38);
}

// One way in four is slow, until the heal; each is full now and then, and a fast one has its bad minutes.
std::int64_t Sim::way_of(const Node& a, const Node& b) const {
  const auto [low, high] = std::minmax(a.index, b.index);
  const std::uint64_t mixed = (options_.seed * 1'000 + low * 31 + high) * 0x9e3779b97f4a7c15ULL;
  return !chaos_.calm && (mixed >> 40) % 4 == 0 ? kPairNeed / 5 : kPairNeed * 3;
}

void Sim::pair_step() {
  world_.after(Millis(15'000), [this] { pair_step(); });
  const auto machine = [&](NodeId id) -> const Node* {
    for (const auto& node : nodes_)
      if (node->id == id) return node.get();
    return nullptr;
  };
  for (const auto& node : nodes_) {
    if (!node->powered || node->asleep || !node->core || !node->core->online()) continue;
    for (const auto& [lease, container] : node->containers) {
      if (!container.ray_ready) continue;
      session::NetReport report;
      report.lease = lease;
      for (const RosterEntry& entry : container.entries) {
        const Node* other = entry.slot == container.assignment.slot ? nullptr : machine(entry.node);
        if (other == nullptr || pairs_.chance(1, 4)) continue;
        session::NetPair pair;
        pair.address = entry.address, pair.path = session::NetPath::Direct;
        const std::int64_t bad = !chaos_.calm && pairs_.chance(1, 8) ? kPairNeed / 4 : way_of(*node, *other);
        pair.carries_bytes_s = static_cast<std::uint64_t>((node->liar ? 1 : bad) * 125);
        pair.carries_age_ms = static_cast<std::uint64_t>(pairs_.between(0, 4'000));
        report.pairs.push_back(pair);
      }
      to_server(*node, node->connection, report);
    }
  }
}

void Sim::client_step() {
  if (chaos_.calm) return;
  world_.after(Millis(world_.rng.between(2000, 15'000)), [this] { client_step(); });
  if (!server_->up()) return;
  const control::State& state = server_->state();
  const std::string key = "r" + std::to_string(next_request_++);
  std::vector<ClusterId> live;
  for (const auto& [id, cluster] : state.clusters) {
    if (cluster.state <= ClusterState::Running) live.push_back(id);
  }
  const std::uint64_t dice = world_.rng.below(10);
  if (dice < 3 && with_parts() && parts_.chance(1, 3)) {
    control::Actor guest = tenant(key);
    guest.subject.principal = guest_, guest.subject.org = guest_org_;
    return ask({control::CreateCluster{guest_project_, random_spec()}, guest, "cluster", "", false});
  }
  if (dice < 3 || live.empty())
    return ask({control::CreateCluster{quotas_.chance(1, tight() ? 2 : 4) ? side_project_ : project_, random_spec()},
                tenant(key), "cluster", "", false});
  const ClusterId any = live[world_.rng.below(live.size())];
  if (dice < 7) {
    JobSpec job;
    job.name = "job";
    job.entrypoint = "python main.py";
    job.retries = static_cast<std::uint32_t>(world_.rng.below(3));
    if (world_.rng.chance(1, 5)) {
      job.ephemeral = true;
      job.cluster_spec = random_spec();
      job.cluster_spec.name = "job-" + key;
    } else {
      job.cluster = state.clusters.at(any).spec.name;
    }
    return ask({control::CreateJob{job.ephemeral ? project_ : state.clusters.at(any).project, job}, tenant(key), "job",
                "", false});
  }
  if (dice == 7) {
    ClusterSpec spec = state.clusters.at(any).spec;
    spec.groups[0].min = 1 + static_cast<std::uint32_t>(world_.rng.below(2));
    spec.groups[0].max = spec.groups[0].min + 1;
    return ask({control::UpdateCluster{any, spec, 0}, tenant(key), "update", "", false});
  }
  if (dice == 8) return ask({control::StopCluster{any, "asked"}, tenant(key), "stop", "", false});
  Request foreign{control::StopCluster{any, "foreign"}, tenant(key), "a stranger's stop of a cluster", "", true};
  foreign.actor.subject.principal = stranger_;
  foreign.actor.subject.org = other_org_;
  ask(foreign, 38);
  if (world_.rng.chance(1, 2)) {
    Request reuse{control::EnrollNode{Bytes(32, 100), Bytes(32, static_cast<std::uint8_t>(200 + world_.rng.below(50))),
                                      "copy", facts_of(90)},
                  SimServer::system_actor(), "a second enrolment with a used join token", "", true};
    ask(reuse, 38);
  }
}

}  // namespace muster::sim
