#pragma once
// The parts of decide(), one function a command. Each checks rights, then existence, then state, and works on a Draft.
// Private to control.
#include "control/life.h"
#include "model/node_labels.h"

namespace muster::control {

struct Asking {  // who asks and when
  const State& base;
  const Actor& actor;
  WallTime wall;
  Status may(access::Verb verb, const access::Object& object) const;  // system may everything
  // What the account is now, not what it was when it asked.
  access::Subject asker() const;
  Status system_only(std::string_view what) const;
  // The subject is the device of this node, or the system itself.
  Status device_only(NodeId node) const;
};
using Decided = Result<Decision>;
Decision done(Draft& draft, std::string id = {});
inline Decision one(Event event, std::string id = {}) {
  Decision decision;
  decision.events.push_back(std::move(event));
  decision.outcome.id = std::move(id);
  return decision;
}
Error missing(std::string_view what, const std::string& id);

Decided decide(const Asking& a, const CreateOrg& c);
Decided decide(const Asking& a, const CreateProject& c);
Decided decide(const Asking& a, const SetQuota& c);
Decided decide(const Asking& a, const SetImagePolicy& c);
Decided decide(const Asking& a, const DenyImage& c);
Decided decide(const Asking& a, const SetHeadroom& c);
Decided decide(const Asking& a, const SetTierShare& c);
Decided decide(const Asking& a, const CreatePrincipal& c);
Decided decide(const Asking& a, const CreateServiceAccount& c);
Decided decide(const Asking& a, const ChangePrincipal& c);
Decided decide(const Asking& a, const DisablePrincipal& c);
Decided decide(const Asking& a, const CreateApiToken& c);
Decided decide(const Asking& a, const RenewLogin& c);
Decided decide(const Asking& a, const GrantAccess& c);
Decided decide(const Asking& a, const RevokeGrant& c);
Decided decide(const Asking& a, const RevokeApiToken& c);
Decided decide(const Asking& a, const RevokeLogins& c);
Decided decide(const Asking& a, const CreateJoinToken& c);
Decided decide(const Asking& a, const RevokeJoinToken& c);
Decided decide(const Asking& a, const EnrollNode& c);
Decided decide(const Asking& a, const SetNode& c);
Decided decide(const Asking& a, const SetNodeTier& c);
Decided decide(const Asking& a, const SetOffer& c);
Decided decide(const Asking& a, const NodeOnline& c);
Decided decide(const Asking& a, const NodeSuspect& c);
Decided decide(const Asking& a, const NodeLost& c);
Decided decide(const Asking& a, const NodeContested& c);
Decided decide(const Asking& a, const SetHeld& c);
Decided decide(const Asking& a, const SetFreeze& c);
Decided decide(const Asking& a, const NoteSigningKeys& c);
Decided decide(const Asking& a, const ReportObserved& c);
Decided decide(const Asking& a, const ReportRay& c);
Decided decide(const Asking& a, const JudgePairs& c);
Decided decide(const Asking& a, const CountCarried& c);
Decided decide(const Asking& a, const NodePaused& c);
Decided decide(const Asking& a, const NodeLeft& c);
Decided decide(const Asking& a, const LeasesExpired& c);
Decided decide(const Asking& a, const RostersLate& c);
Decided decide(const Asking& a, const CreateCluster& c);
Decided decide(const Asking& a, const UpdateCluster& c);
Decided decide(const Asking& a, const StopCluster& c);
Decided decide(const Asking& a, const CreateJob& c);
Decided decide(const Asking& a, const StopJob& c);
Decided decide(const Asking& a, const SetJobLog& c);
Decided decide(const Asking& a, const ApplyPlan& c);
Decided decide(const Asking& a, const Tick& c);
Decided decide(const Asking& a, const BecomeLeader& c);
Decided decide(const Asking& a, const RaiseIncarnation& c);
Decided decide(const Asking& a, const RaiseFormat& c);

// Shared by NodeOnline and ReportObserved. Jobs come first: a job's end counts even if its head ends with it.
void observe_jobs(Draft& d, NodeId node, const std::vector<ObservedJob>& jobs);
void observe_leases(Draft& d, NodeId node, const std::vector<ObservedLease>& leases);
// Refuses what nobody can ever give: a pinned machine that is not the caller's, egress that no machine of the pool
// grants.
Status attainable(const State& state, OrgId tenant, const ClusterSpec& spec, const std::string& field);
// A pool that is named with its organisation, as it is stored: with the organisation's id.
Status resolve_pool(const State& state, ClusterSpec& spec, const std::string& field);
OrgId org_of(const State& state, ProjectId project);
// Older formats cannot hold a policy, a trust floor or a price, and what a restart forgets is none.
void raise_format_for(const Asking& a, const ClusterSpec& spec, Decision& decision);
Result<Cluster> new_cluster(const Asking& a, const Project& project, ClusterSpec spec, const std::string& field);

}  // namespace muster::control
