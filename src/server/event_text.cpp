#include "server/event_text.h"

#include <fmt/format.h>

#include "crypto/signing_keys.h"
#include "model/node_labels.h"
#include "model/offer.h"
#include "server/views.h"
#include "wire/names.h"

namespace muster::server {
namespace {

using namespace control;  // NOLINT: the events are the vocabulary of this file

access::Object nobody() {
  return {access::Kind::Platform, {}, {}, {}};
}
access::Object of(const State& s, ClusterId id) {
  const Cluster* cluster = s.find_cluster(id);
  return cluster != nullptr ? object_of(s, *cluster) : nobody();
}
access::Object of(const State& s, JobId id) {
  const Job* job = s.find_job(id);
  return job != nullptr ? object_of(s, *job) : nobody();
}
access::Object of(const State& s, NodeId id) {
  const Node* node = s.find_node(id);
  return node != nullptr ? object_of(*node) : nobody();
}
access::Object of(const State& s, SlotId id) {
  const Slot* slot = s.find_slot(id);
  return slot != nullptr ? of(s, slot->cluster) : nobody();
}
access::Object of(const State& s, LeaseId id) {
  const Lease* lease = s.find_lease(id);
  return lease != nullptr ? of(s, lease->cluster) : nobody();
}
template <typename Table, typename Key>
access::Object of_token(const State& s, const Table& table, Key id) {
  const auto found = table.find(id);
  if (found == table.end()) return nobody();
  if constexpr (std::is_same_v<typename Table::mapped_type, ApiToken>) {
    return object_of(s, found->second);
  } else {
    return object_of(found->second);
  }
}
std::string because(const std::string& reason) {
  return reason.empty() ? std::string() : ": " + reason;
}
std::string name_of(const State& s, NodeId id) {
  const Node* node = s.find_node(id);
  return node != nullptr && !node->name.empty() ? fmt::format("{} ({})", node->name, id.str()) : id.str();
}
std::string name_of(const State& s, ClusterId id) {
  const Cluster* cluster = s.find_cluster(id);
  return cluster != nullptr ? fmt::format("cluster {}", cluster->spec.name) : id.str();
}

struct Teller {
  const State& s;
  access::Object object = nobody();
  std::map<std::string, std::string> data = {};
  bool shown = true;

  std::string operator()(const OrgCreated& e) {
    object = object_of(e.org);
    return fmt::format("organisation {} was made", e.org.name);
  }
  std::string operator()(const ProjectCreated& e) {
    object = object_of(e.project);
    return fmt::format("project {} was made", e.project.name);
  }
  std::string operator()(const QuotaSet& e) {
    const auto project = s.projects.find(e.project);
    const auto org = s.orgs.find(e.org);
    if (project != s.projects.end())
      object = object_of(project->second);
    else if (org != s.orgs.end())
      object = object_of(org->second);
    const auto amount = [](std::int64_t n, double unit, std::string_view what) {
      return n == 0 ? fmt::format("any number of {}", what) : fmt::format("{} {}", static_cast<double>(n) / unit, what);
    };
    std::string share;
    if (e.share.weight != Share{}.weight) share += fmt::format("; its weight is {}", e.share.weight);
    if (e.share.gpus > 0) share += fmt::format("; {} GPUs are guaranteed", e.share.gpus);
    if (e.share.cpu_milli > 0)
      share += fmt::format("; {} CPUs are guaranteed", static_cast<double>(e.share.cpu_milli) / 1000);
    return fmt::format("{} may hold {}, {}, {}{}",
                       project != s.projects.end() ? "project " + project->second.name
                       : org != s.orgs.end()       ? "organisation " + org->second.name
                                                   : e.org.str(),
                       amount(e.quota.gpus, 1, "GPUs"), amount(e.quota.cpu_milli, 1000, "CPUs"),
                       amount(e.quota.clusters, 1, "clusters"), share);
  }
  std::string operator()(const TierShareSet& e) {
    if (e.row.permille == 0) return fmt::format("tier {} is guaranteed nothing any more", e.row.tier);
    return fmt::format("tier {} is guaranteed {:g} % of the machines", e.row.tier, e.row.permille / 10.0);
  }
  std::string operator()(const HeadroomSet& e) {
    const std::string what = e.row.gpu_model.empty() ? "without a GPU" : "with " + e.row.gpu_model;
    if (e.row.machines == 0) return fmt::format("no machines {} are kept back for failovers any more", what);
    return fmt::format("{} machine{} {} {} kept back for failovers of tier {}{}", e.row.machines,
                       e.row.machines == 1 ? "" : "s", what, e.row.machines == 1 ? "is" : "are", e.row.tier,
                       e.row.tier == 0 ? "" : " or better");
  }
  std::string operator()(const SigningKeysNoted& e) {
    std::vector<std::string> said;
    const auto name = [](const SigningKeyRow& row) {
      return fmt::format("the {} key {}", crypto::key_kind_name(static_cast<crypto::KeyKind>(row.kind % 3)), row.id);
    };
    for (const auto& row : e.added) said.push_back(fmt::format("{} signs from {} on", name(row), format_utc(row.from)));
    for (const auto& row : e.removed) said.push_back(fmt::format("{} is believed no longer", name(row)));
    for (const auto& row : e.keys)
      if (row.until.ms != 0) said.push_back(fmt::format("{} is believed until {}", name(row), format_utc(row.until)));
    return fmt::format("signing keys: {}", said.empty() ? "stated anew" : fmt::format("{}", fmt::join(said, "; ")));
  }
  std::string operator()(const ImagePolicySet& e) {
    const auto project = s.projects.find(e.project);
    const auto org = s.orgs.find(e.org);
    if (project != s.projects.end())
      object = object_of(project->second);
    else if (org != s.orgs.end())
      object = object_of(org->second);
    const std::string whose = project != s.projects.end() ? "project " + project->second.name
                              : e.org == kPlatformOrg     ? "everybody"
                              : org != s.orgs.end()       ? "organisation " + org->second.name
                                                          : e.org.str();
    if (e.policy == ImagePolicy{}) return fmt::format("{} may run every image", whose);
    std::string what;
    if (!e.policy.allow.empty()) what += fmt::format("; allowed: {}", fmt::join(e.policy.allow, ", "));
    if (!e.policy.deny.empty()) what += fmt::format("; denied: {}", fmt::join(e.policy.deny, ", "));
    if (e.policy.require_digest) what += "; named by their digests";
    if (!e.policy.keys.empty()) what += fmt::format("; signed with one of {} keys", e.policy.keys.size());
    return fmt::format("images for {}: {}", whose, what.substr(2));
  }
  std::string operator()(const PrincipalCreated& e) {
    object = object_of(e.principal);
    return fmt::format("{} {} ({}) was made{}", e.principal.service ? "service account" : "account", e.principal.name,
                       wire::text(e.principal.role), because(e.principal.note));
  }
  std::string operator()(const PrincipalChanged& e) {
    const auto found = s.principals.find(e.principal);
    if (found == s.principals.end()) return "an account was changed";
    object = object_of(found->second);
    const auto org = s.orgs.find(e.org);
    return fmt::format("account {} is {} of {} now", found->second.name, wire::text(e.role),
                       org == s.orgs.end() ? "the platform" : org->second.name);
  }
  std::string operator()(const PrincipalDisabled& e) {
    const auto found = s.principals.find(e.principal);
    if (found == s.principals.end()) return "an account was disabled";
    object = object_of(found->second);
    return fmt::format("{} {} was disabled", found->second.service ? "service account" : "account", found->second.name);
  }
  std::string operator()(const ApiTokenCreated& e) {
    object = object_of(s, e.token);
    const auto owner = s.principals.find(e.token.owner);
    if (owner != s.principals.end() && owner->second.service)
      return fmt::format("API token {} of service account {} was made", e.token.label, owner->second.name);
    return fmt::format("API token {} was made", e.token.label);
  }
  std::string operator()(const ApiTokenRevoked& e) {
    object = of_token(s, s.api_tokens, e.token);
    return "API token was revoked";
  }
  std::string grant_text(const Grant& grant) const {
    const std::string what = grant.cluster ? name_of(s, grant.cluster) : grant.project.str();
    return fmt::format("the right {} on {}", wire::text(grant.right), what);
  }
  std::string operator()(const AccessGranted& e) {
    object = object_of(e.grant);
    const Grant& grant = e.grant;
    if (grant.break_glass)
      return fmt::format("break-glass: an operator took {} until {}{}", grant_text(grant), format_utc(grant.until),
                         because(grant.reason));
    return fmt::format("{} was given to {} until {}{}", grant_text(grant),
                       grant.to ? grant.to.str() : grant.to_org.str(), format_utc(grant.until), because(grant.reason));
  }
  std::string operator()(const GrantEnded& e) {
    object = object_of(e.grant);
    return fmt::format("{}{} ended: {}", e.grant.break_glass ? "break-glass: " : "", grant_text(e.grant), e.reason);
  }
  std::string operator()(const LoginRenewed&) { return hidden(); }
  std::string operator()(const RefreshReused& e) {
    object = of_token(s, s.api_tokens, e.token);
    return "a used refresh token came again: the login was ended, for who has it and for who took it";
  }
  std::string operator()(const JoinTokenCreated& e) {
    object = object_of(e.token);
    return "join token was made";
  }
  std::string operator()(const JoinTokenRevoked& e) {
    object = of_token(s, s.join_tokens, e.token);
    return "join token was revoked";
  }
  std::string operator()(const NodeEnrolled& e) {
    object = object_of(e.node);
    return fmt::format("machine {} enrolled", e.node.name);
  }
  std::string operator()(const NodeFactsChanged& e) {
    object = of(s, e.node);
    // Which hole it is its supplier and the platform see at the machine.
    const bool held = e.facts.labels.contains(std::string(kHeldLabel));
    return fmt::format("machine {} {}", name_of(s, e.node),
                       held ? "gets nothing new: a hole is known in its software" : "reported what it has");
  }
  std::string operator()(const NodeStateChanged& e) {
    object = of(s, e.node);
    data["state"] = wire::text(e.state);
    return fmt::format("machine {} is {}{}", name_of(s, e.node), wire::text(e.state), because(e.reason));
  }
  std::string operator()(const NodeTierChanged& e) {
    object = of(s, e.node);
    return fmt::format("machine {} has trust tier {}", name_of(s, e.node), wire::text(e.tier));
  }
  std::string operator()(const NodeOffered& e) {
    object = of(s, e.node);
    object.kind = access::Kind::Offer;
    const Offer& o = e.offer;
    return fmt::format("machine {} is offered for {} an hour{}{}{}", name_of(s, e.node),
                       money_text(o.price, o.currency),
                       o.gpu_price == 0 ? "" : fmt::format(" and {} for each GPU", money_text(o.gpu_price, o.currency)),
                       o.schedule.empty() ? "" : fmt::format(", {} ({})", o.schedule, o.zone),
                       o.tenants.empty() ? "" : fmt::format(", to {} organisations", o.tenants.size()));
  }
  std::string operator()(const NodeStruck& e) {
    object = of(s, e.node);
    if (e.strikes == 0) return fmt::format("machine {} is trusted with starts again", name_of(s, e.node));
    return fmt::format("a start failed on machine {}, of {} clusters in a row{}", name_of(s, e.node), e.strikes,
                       e.until.ms == 0 ? "" : "; it gets nothing for a while");
  }
  std::string operator()(const FreezeSet& e) {
    return e.frozen ? "evictions are frozen" + because(e.reason) : "evictions are no longer frozen";
  }
  std::string operator()(const PairJudged& e) {
    object = of(s, e.cluster);
    data["from"] = e.from.str(), data["to"] = e.to.str();
    data["kbps"] = std::to_string(e.kbps), data["need_kbps"] = std::to_string(e.need_kbps);
    data["slow"] = e.slow ? "true" : "false";
    const auto mbps = [](std::int64_t kbps) { return fmt::format("{:.1f} Mbit/s", static_cast<double>(kbps) / 1000); };
    if (e.slow)
      return fmt::format("{}: the way from {} to {} carries {}, {} is asked for", name_of(s, e.cluster), on(e.from),
                         on(e.to), mbps(e.kbps), mbps(e.need_kbps));
    if (e.kbps == 0)
      return fmt::format("{}: nobody knows any more whether the way from {} to {} is slow", name_of(s, e.cluster),
                         on(e.from), on(e.to));
    return fmt::format("{}: the way from {} to {} carries {} again", name_of(s, e.cluster), on(e.from), on(e.to),
                       mbps(e.kbps));
  }
  std::string operator()(const CarriedCounted& e) {
    object = of(s, e.node);
    data["cluster"] = e.cluster.str(), data["bytes"] = std::to_string(e.bytes);
    return fmt::format("machine {} carried {} bytes for others of a cluster, as both ends signed", name_of(s, e.node),
                       e.bytes);
  }
  std::string operator()(const ReplacementSought& e) {
    object = of(s, e.cluster);
    if (e.slot)
      return fmt::format("{}: another machine is sought for {}, whose ways to others are slow", name_of(s, e.cluster),
                         on(e.slot));
    return fmt::format("{}: no other machine is sought any more; {} workers were replaced so far for slow ways",
                       name_of(s, e.cluster), e.done);
  }
  std::string on(SlotId id) {  // "slot-3 on gaming-pc"
    const Slot* slot = s.find_slot(id);
    const Lease* lease = slot == nullptr ? nullptr : s.find_lease(slot->lease);
    return lease == nullptr ? id.str() : fmt::format("{} on {}", id.str(), name_of(s, lease->node));
  }
  std::string operator()(const BackoffSet& e) {
    object = of(s, e.cluster);
    return fmt::format("{} leaves machine {} alone for a while", name_of(s, e.cluster), e.node.str());
  }
  std::string operator()(const BackoffEnded&) { return hidden(); }
  std::string operator()(const ClusterCreated& e) {
    object = object_of(s, e.cluster);
    return fmt::format("cluster {} was asked for", e.cluster.spec.name);
  }
  std::string operator()(const ClusterUpdated& e) {
    object = of(s, e.cluster);
    return fmt::format("{} was changed to generation {}", name_of(s, e.cluster), e.generation);
  }
  std::string operator()(const ClusterStateChanged& e) {
    object = of(s, e.cluster);
    data["state"] = wire::text(e.state);
    return fmt::format("{} is {}{}", name_of(s, e.cluster), wire::text(e.state), because(e.reason));
  }
  std::string operator()(const ClusterWanted& e) {
    object = of(s, e.cluster);
    return fmt::format("{} wants {} workers in {}", name_of(s, e.cluster), e.workers, e.group);
  }
  std::string operator()(const ClusterProbed& e) {
    object = of(s, e.cluster);
    return fmt::format("{} runs Ray {} on Python {}", name_of(s, e.cluster), e.probe.ray_version,
                       e.probe.python_version);
  }
  std::string operator()(const LeaseGranted& e) {
    object = of(s, e.lease.cluster);
    data["node"] = e.lease.node.str();
    data["role"] = wire::text(e.slot.role);
    data["cluster"] = e.lease.cluster.str();
    if (e.lease.price > 0) data["price_micros"] = std::to_string(e.lease.price), data["currency"] = e.lease.currency;
    if (e.lease.leaves_at.ms != 0) data["leaves_at"] = format_utc(e.lease.leaves_at);
    return fmt::format(
        "{}: {} {} goes to machine {}{}", name_of(s, e.lease.cluster), wire::text(e.slot.role), e.slot.id.str(),
        name_of(s, e.lease.node),
        e.lease.price > 0 ? fmt::format(", for {} an hour", money_text(e.lease.price, e.lease.currency)) : "");
  }
  std::string operator()(const SlotKeyed& e) {
    object = of(s, e.slot);
    return fmt::format("{} is in the roster", e.slot.str());
  }
  std::string operator()(const SlotLeft& e) {
    object = of(s, e.slot);
    return fmt::format("{} left the roster{}", e.slot.str(), because(e.reason));
  }
  std::string operator()(const SlotPromoted& e) {
    object = of(s, e.slot);
    return fmt::format("spare {} becomes a worker of {}", e.slot.str(), e.group);
  }
  std::string operator()(const LeaseWantChanged& e) {
    object = of(s, e.lease);
    data["want"] = wire::text(e.want);
    return fmt::format("{} is told to {}{}", e.lease.str(), wire::text(e.want), because(e.reason));
  }
  std::string operator()(const LeaseObserved& e) {
    object = of(s, e.lease);
    data["phase"] = wire::text(e.phase);
    return fmt::format("{} is {}{}", e.lease.str(), wire::text(e.phase), because(e.reason));
  }
  std::string operator()(const LeaseEnded& e) {
    object = of(s, e.lease);
    return fmt::format("{} ended{}", e.lease.str(), because(e.reason));
  }
  std::string operator()(const JobCreated& e) {
    object = object_of(s, e.job);
    return fmt::format("job {} was submitted", e.job.id.str());
  }
  std::string operator()(const JobStateChanged& e) {
    object = of(s, e.job);
    data["state"] = wire::text(e.state);
    data["attempt"] = std::to_string(e.attempt);
    return fmt::format("{} is {}{}", e.job.str(), wire::text(e.state), because(e.reason));
  }
  std::string operator()(const JobLogSet&) { return hidden(); }
  std::string operator()(const RequestRecorded&) { return hidden(); }
  std::string operator()(const RequestsAged&) { return hidden(); }
  std::string operator()(const Archived&) { return hidden(); }
  std::string operator()(const TimerSet&) { return hidden(); }
  std::string operator()(const LeaderChanged& e) {
    return fmt::format("the control plane took over as leader {}", e.leader_epoch);
  }
  std::string operator()(const IncarnationRaised& e) {
    return fmt::format("the control plane was restored: incarnation {}{}", e.incarnation, because(e.why));
  }
  std::string operator()(const FormatRaised& e) { return fmt::format("the journal's format is {}", e.version); }
  std::string hidden() {
    shown = false;
    return {};
  }
};

}  // namespace

std::optional<ShownEvent> show_event(const State& state, const engine::DurableEvent& event) {
  Teller teller{state};
  std::string text = std::visit(teller, event.event);
  if (!teller.shown) return {};
  ShownEvent out;
  out.object = teller.object;
  std::string actor = event.actor.system ? "system" : event.actor.subject.principal.str();
  if (actor.empty()) actor = event.actor.subject.node.str();
  out.view = {event.seq,
              event.at,
              std::string(event_name(event.event)),
              event_subject(event.event),
              std::move(text),
              std::move(actor),
              std::move(teller.data)};
  return out;
}

}  // namespace muster::server
