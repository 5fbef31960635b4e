// Rights for a time on what is somebody else's: given by its owner, or taken by an operator (break-glass).
#include "control/decide.h"
#include "model/validate.h"

namespace muster::control {
namespace {

using access::Kind;
using access::Verb;

constexpr Millis kGrantLeast{60'000}, kGrantMost{std::int64_t{90} * 86'400'000},
    kGlassMost{std::int64_t{4} * 3'600'000};
constexpr std::size_t kGrantsOfAnOrg = 1000, kGrantsMax = 100'000, kReasonLeast = 10;

// Names who gets it; refuses where that can be nobody.
Status name_grantee(const Asking& a, const GrantAccess& c, Grant& grant) {
  if (static_cast<bool>(c.to) == static_cast<bool>(c.to_org))
    return error(Code::InvalidArgument, "name one account or one organisation, by the id that `muster whoami` tells it",
                 "to");
  if (c.to_org && !a.base.orgs.contains(c.to_org))
    return error(Code::InvalidArgument, "there is no such organisation", "to");
  const auto who = a.base.principals.find(c.to);
  if (c.to && (who == a.base.principals.end() || who->second.disabled))
    return error(Code::InvalidArgument, "there is no such account, or it is disabled", "to");
  if (c.to && who->second.role == Role::Auditor)
    return error(Code::InvalidArgument, "auditors see what there is already, and do nothing else", "to");
  if (c.to && who->second.role == Role::TenantViewer && who->second.org != grant.owner && grant.right > Right::Logs)
    return error(Code::InvalidArgument, "this account only looks; give it the right look or logs", "right");
  if (c.to_org == grant.owner || (c.to && who->second.org == grant.owner && access::of_tenant(who->second.role)))
    return error(Code::InvalidArgument, "the organisation that owns it may do that already", "to");
  grant.to = c.to, grant.to_org = c.to_org;
  return {};
}

Status take_glass(const Asking& a, const GrantAccess& c, Grant& grant) {
  if (c.to || c.to_org) return error(Code::InvalidArgument, "break-glass gives the right to who asks alone", "to");
  if (grant.owner == a.asker().org)
    return error(Code::FailedPrecondition, "it is your own organisation's; your role allows that already");
  if (c.reason.size() < kReasonLeast)
    return error(Code::InvalidArgument, "say why in ten characters or more: the owner reads it", "reason");
  grant.to = a.actor.subject.principal;
  return {};
}

}  // namespace

Decided decide(const Asking& a, const GrantAccess& c) {
  const Cluster* cluster = a.base.find_cluster(c.cluster);
  const ProjectId wanted = cluster != nullptr ? cluster->project : c.project;
  const auto project = c.cluster && cluster == nullptr ? a.base.projects.end() : a.base.projects.find(wanted);
  const bool known = project != a.base.projects.end();
  const OrgId owner = known ? project->second.org : OrgId{};
  // Of what one may not see there is nothing to give, whatever it is.
  access::Object sought{.kind = c.cluster ? Kind::Cluster : Kind::Project, .owner = owner};
  TRY_VOID(a.may(Verb::Read, sought));
  TRY_VOID(a.may(Verb::Create, {.kind = c.break_glass ? Kind::BreakGlass : Kind::Grant, .owner = owner}));
  if (!known) return missing(c.cluster ? "cluster" : "project", c.cluster ? c.cluster.str() : c.project.str());
  TRY_VOID(access::may_be_granted(c.right, c.break_glass));
  if (c.reason.size() > 200) return error(Code::InvalidArgument, "reason has more than 200 characters", "reason");
  if (!c.reason.empty()) TRY_VOID(validate_title(c.reason, "reason"));
  const Millis most = c.break_glass ? kGlassMost : kGrantMost;
  if (c.lifetime < kGrantLeast || c.lifetime > most)
    return error(Code::InvalidArgument,
                 c.break_glass ? "break-glass holds between one minute and four hours"
                               : "a grant holds between one minute and 90 days",
                 "lifetime");
  Grant grant{GrantId{a.base.last.grant + 1},
              c.break_glass,
              owner,
              project->first,
              c.cluster,
              {},
              {},
              c.right,
              c.reason,
              a.actor.subject.principal,
              a.wall,
              a.wall + c.lifetime};
  TRY_VOID(c.break_glass ? take_glass(a, c, grant) : name_grantee(a, c, grant));
  const auto first = a.base.grants_of_org.lower_bound({owner, GrantId{}});
  const auto last = a.base.grants_of_org.lower_bound({OrgId{owner.value + 1}, GrantId{}});
  if (static_cast<std::size_t>(std::distance(first, last)) >= kGrantsOfAnOrg || a.base.grants.size() >= kGrantsMax)
    return error(Code::ResourceExhausted, "too many grants are in force; revoke some first");
  const std::string id = grant.id.str();
  Decision decision = one(AccessGranted{std::move(grant)}, id);
  if (a.base.format_version < kAccessFormat)
    decision.events.insert(decision.events.begin(), FormatRaised{kAccessFormat});
  return decision;
}

Decided decide(const Asking& a, const RevokeGrant& c) {
  const auto it = a.base.grants.find(c.grant);
  access::Object object{.kind = Kind::Grant};
  if (it != a.base.grants.end())
    object = {.kind = it->second.break_glass ? Kind::BreakGlass : Kind::Grant,
              .owner = it->second.owner,
              .principal = it->second.to};
  TRY_VOID(a.may(Verb::Revoke, object));
  if (it == a.base.grants.end()) return missing("grant", c.grant.str());
  const bool own = a.actor.subject.principal == it->second.to;
  return one(GrantEnded{it->second, own ? "given back" : "revoked"}, c.grant.str());
}

}  // namespace muster::control
