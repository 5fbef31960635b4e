// Organisations, projects, accounts and tokens.
#include <algorithm>

#include "control/decide.h"
#include "model/names.h"
#include "model/validate.h"

namespace muster::control {
namespace {

using access::Kind;
using access::Verb;

constexpr std::size_t kTokensMax = 1'000'000;
constexpr std::int64_t kQuotaMax = 1'000'000'000, kWeightMax = 10'000;
constexpr Millis kJoinTokenMax{std::int64_t{30} * 24 * 3'600'000};

Status room(std::size_t size, std::size_t max, std::string_view what) {
  if (size < max) return {};
  return error(Code::ResourceExhausted,
               "there are already " + std::to_string(size) + " " + std::string(what) + "; remove some first");
}
Status limit(std::int64_t value, std::int64_t max, const std::string& field) {
  if (value >= 0 && value <= max) return {};
  return error(Code::InvalidArgument, field + " must lie between 0 (no limit) and " + std::to_string(kQuotaMax), field);
}
Status sha256(const Bytes& hash, const std::string& field) {
  if (hash.size() == 32) return {};
  return error(Code::InvalidArgument, field + " is not a SHA-256", field);
}

}  // namespace

Decided decide(const Asking& a, const CreateOrg& c) {
  TRY_VOID(a.may(Verb::Create, {.kind = Kind::Org}));
  TRY_VOID(validate_name(c.name, "name"));
  TRY_VOID(room(a.base.orgs.size(), 100'000, "organisations"));
  if (a.base.org_by_name.contains(c.name))
    return error(Code::AlreadyExists, "an organisation named " + c.name + " exists; choose another name", "name");
  const OrgId id{a.base.last.org + 1};
  return one(OrgCreated{{id, c.name}}, id.str());
}

Decided decide(const Asking& a, const CreateProject& c) {
  TRY_VOID(a.may(Verb::Create, {.kind = Kind::Project, .owner = c.org}));
  TRY_VOID(validate_name(c.name, "name"));
  if (!a.base.orgs.contains(c.org)) return missing("organisation", c.org.str());
  TRY_VOID(room(a.base.projects.size(), 200'000, "projects"));
  if (a.base.project_by_name.contains({c.org, c.name}))
    return error(Code::AlreadyExists, "this organisation has a project named " + c.name + "; choose another name",
                 "name");
  const ProjectId id{a.base.last.project + 1};
  return one(ProjectCreated{{id, c.org, c.name}}, id.str());
}

namespace {

// What the projects of an organisation are guaranteed is a part of what it is, and nobody is guaranteed more than it
// may hold: else the promise would be none.
Status keepable(const Asking& a, OrgId org, ProjectId project, const Quota& quota, const Share& share) {
  struct Row {
    const char *field, *what;
    std::int64_t Share::*guaranteed;
    std::int64_t Quota::*limit;
    std::int64_t unit;
  };
  constexpr Row kRows[] = {{"share.guaranteeGpus", "GPUs", &Share::gpus, &Quota::gpus, 1},
                           {"share.guaranteeCpus", "CPUs", &Share::cpu_milli, &Quota::cpu_milli, 1000}};
  const auto found = a.base.orgs.find(org);
  const Share whole = project && found != a.base.orgs.end() ? found->second.share : share;
  for (const Row& row : kRows) {
    const auto text = [&](std::int64_t n) { return std::to_string(n / row.unit) + " " + row.what; };
    if (quota.*row.limit > 0 && share.*row.guaranteed > quota.*row.limit)
      return error(Code::InvalidArgument,
                   "the guarantee of " + text(share.*row.guaranteed) + " is above the limit of " +
                       text(quota.*row.limit) + "; raise the limit or guarantee less",
                   row.field);
    std::int64_t of_projects = project ? share.*row.guaranteed : 0;
    for (const ProjectId each : projects_of(a.base, org))
      if (each != project) of_projects += a.base.projects.at(each).share.*row.guaranteed;
    if (of_projects > whole.*row.guaranteed && of_projects > 0)
      return error(Code::FailedPrecondition,
                   "the projects of the organisation would be guaranteed " + text(of_projects) +
                       " and the organisation is guaranteed " + text(whole.*row.guaranteed) +
                       "; guarantee the organisation more, or its projects less",
                   row.field);
  }
  return {};
}

}  // namespace

Decided decide(const Asking& a, const SetQuota& c) {
  const auto project = a.base.projects.find(c.project);
  const bool of_project = static_cast<bool>(c.project);
  const bool known = project != a.base.projects.end();
  TRY_VOID(a.may(Verb::Update, {.kind = of_project ? Kind::Project : Kind::Org,
                                .owner = !of_project ? c.org
                                         : known     ? project->second.org
                                                     : OrgId{}}));
  if (of_project && !known) return missing("project", c.project.str());
  if (!of_project && !a.base.orgs.contains(c.org)) return missing("organisation", c.org.str());
  TRY_VOID(limit(c.quota.gpus, kQuotaMax, "gpus"));
  TRY_VOID(limit(c.quota.cpu_milli, kQuotaMax * 1000, "cpus"));
  TRY_VOID(limit(c.quota.clusters, kQuotaMax, "clusters"));
  const std::string id = of_project ? c.project.str() : c.org.str();
  const OrgId org = of_project ? project->second.org : c.org;
  const Quota& now = of_project ? project->second.quota : a.base.orgs.find(c.org)->second.quota;
  const Share& before = of_project ? project->second.share : a.base.orgs.find(c.org)->second.share;
  const Share share = c.share.value_or(before);
  if (share != before) {  // it is at the others' expense
    TRY_VOID(a.may(Verb::Update, {.kind = Kind::Org, .owner = org}));
    if (share.weight < 1 || share.weight > kWeightMax)
      return error(Code::InvalidArgument,
                   "share.weight must lie between 1 and " + std::to_string(kWeightMax) +
                       "; 100 is what everybody has who was given none",
                   "share.weight");
    TRY_VOID(limit(share.gpus, kQuotaMax, "share.guaranteeGpus"));
    TRY_VOID(limit(share.cpu_milli, kQuotaMax * 1000, "share.guaranteeCpus"));
  }
  TRY_VOID(keepable(a, org, c.project, c.quota, share));
  if (now == c.quota && share == before) return Decision{{}, {id}};
  Decision decision = one(QuotaSet{org, c.project, c.quota, share}, id);
  // Older formats cannot hold a share, and one that a restart forgets is none.
  if (share != Share{} && a.base.format_version < kShareFormat)
    decision.events.insert(decision.events.begin(), FormatRaised{kShareFormat});
  return decision;
}

static Status fits_org(const State& state, Role role, OrgId org) {
  if (role < Role::Operator || role > Role::SupplierMember)
    return error(Code::InvalidArgument, "role must be " + std::string(kRolesInWords), "role");
  const bool needs_org = role != Role::Operator && role != Role::Auditor;
  if (org ? !state.orgs.contains(org) : needs_org)
    return error(Code::InvalidArgument, "org names no organisation; suppliers and tenants belong to one", "org");
  return {};
}

// Older formats do not know the roles that came later.
static void raise_format_for(const Asking& a, Role role, std::uint32_t format, Decision& decision) {
  if (role > Role::Auditor) format = std::max(format, kRoleFormat);
  if (a.base.format_version < format) decision.events.insert(decision.events.begin(), FormatRaised{format});
}

// Service accounts are their organisation's, other accounts their own.
static access::Object account_object(const State& state, PrincipalId id) {
  const auto it = state.principals.find(id);
  if (it == state.principals.end()) return {.kind = Kind::Principal, .principal = id};
  return {.kind = it->second.service ? Kind::ServiceAccount : Kind::Principal,
          .owner = it->second.org,
          .principal = id,
          .role = it->second.role};
}

Decided decide(const Asking& a, const CreateServiceAccount& c) {
  constexpr std::size_t kOfAnOrgMax = 500;
  TRY_VOID(a.may(Verb::Create, {.kind = Kind::ServiceAccount, .owner = c.org}));
  TRY_VOID(validate_name(c.name, "name"));
  TRY_VOID(fits_org(a.base, c.role, c.org));
  if (!a.actor.system) TRY_VOID(access::may_give(a.asker(), c.role));
  if (!c.note.empty()) TRY_VOID(validate_title(c.note, "note"));
  TRY_VOID(room(a.base.principals.size(), 1'000'000, "accounts"));
  const auto first = a.base.services_by_org.lower_bound({c.org, PrincipalId{}});
  const auto last = a.base.services_by_org.lower_bound({OrgId{c.org.value + 1}, PrincipalId{}});
  if (static_cast<std::size_t>(std::distance(first, last)) >= kOfAnOrgMax)
    return error(Code::ResourceExhausted, "this organisation made " + std::to_string(kOfAnOrgMax) +
                                              " service accounts already, disabled ones among them; make another "
                                              "token for one of them instead");
  if (a.base.service_by_name.contains({c.org, c.name}))
    return error(Code::AlreadyExists,
                 "this organisation has a service account named " + c.name + "; choose another name", "name");
  const PrincipalId id{a.base.last.principal + 1};
  Principal made{id, c.name, c.role, c.org, false, true, c.note, a.actor.subject.principal, a.wall};
  Decision decision = one(PrincipalCreated{std::move(made)}, id.str());
  raise_format_for(a, c.role, kAccessFormat, decision);
  return decision;
}

Decided decide(const Asking& a, const CreatePrincipal& c) {
  TRY_VOID(a.may(Verb::Create, {.kind = Kind::Principal, .owner = c.org, .role = c.role}));
  TRY_VOID(validate_name(c.name, "name"));
  TRY_VOID(fits_org(a.base, c.role, c.org));
  TRY_VOID(room(a.base.principals.size(), 1'000'000, "accounts"));
  if (a.base.principal_by_name.contains(c.name))
    return error(Code::AlreadyExists, "an account named " + c.name + " exists; choose another name", "name");
  const PrincipalId id{a.base.last.principal + 1};
  Decision decision = one(PrincipalCreated{{id, c.name, c.role, c.org, false}}, id.str());
  raise_format_for(a, c.role, 1, decision);
  return decision;
}

// Whether another account, of that organisation if one is named, has the role.
static bool others_have(const State& state, Role role, OrgId org, PrincipalId but) {
  return std::any_of(state.principals.begin(), state.principals.end(), [&](const auto& each) {
    return each.first != but && each.second.role == role && (!org || each.second.org == org) && !each.second.disabled &&
           !each.second.service;
  });
}

Decided decide(const Asking& a, const ChangePrincipal& c) {
  constexpr std::size_t kTokensEnded = 1000;  // the rest has the new role's rights alone
  const auto it = a.base.principals.find(c.principal);
  // To end what it is, and to make what it is to be: who may both.
  TRY_VOID(a.may(Verb::Delete, account_object(a.base, c.principal)));
  if (it == a.base.principals.end()) return missing("account", c.principal.str());
  const Principal& is = it->second;
  if (is.service) return error(Code::FailedPrecondition, "a service account stays what it was made as");
  const OrgId org = c.org.value_or(is.org);
  if (org != is.org) TRY_VOID(a.system_only("move an account to another organisation"));
  TRY_VOID(a.may(Verb::Create, {.kind = Kind::Principal, .owner = org, .principal = c.principal, .role = c.role}));
  TRY_VOID(fits_org(a.base, c.role, org));
  if (is.disabled) return error(Code::FailedPrecondition, "the account is disabled; it stays what it is");
  if (is.role == c.role && is.org == org) return Decision{{}, {c.principal.str()}};
  if (is.role == Role::Operator && c.role != Role::Operator && !others_have(a.base, Role::Operator, {}, c.principal))
    return error(Code::FailedPrecondition,
                 "this account is the last operator's; make another operator first, so that nobody is locked out");
  // An identity provider's word goes over it: who left there is no administrator here, and operators name another.
  if (is.role == Role::TenantAdmin && !a.actor.system && !others_have(a.base, is.role, is.org, c.principal))
    return error(Code::FailedPrecondition,
                 "this account is the last administrator's of its organisation; make another tenant-admin first");
  Decision decision = one(PrincipalChanged{c.principal, c.role, org}, c.principal.str());
  // What has all its rights was given as what it was; narrower tokens go on as far as it goes now.
  for (const auto& [id, token] : a.base.api_tokens) {
    const bool wide =
        token.scopes.empty() || std::find(token.scopes.begin(), token.scopes.end(), "admin") != token.scopes.end();
    if (token.owner != c.principal || token.revoked || !wide) continue;
    if (decision.events.size() > kTokensEnded) break;
    decision.events.emplace_back(ApiTokenRevoked{id});
  }
  raise_format_for(a, c.role, kKeysFormat, decision);
  return decision;
}

Decided decide(const Asking& a, const DisablePrincipal& c) {
  const auto it = a.base.principals.find(c.principal);
  TRY_VOID(a.may(Verb::Delete, account_object(a.base, c.principal)));
  if (it == a.base.principals.end()) return missing("account", c.principal.str());
  if (it->second.disabled) return Decision{{}, {c.principal.str()}};
  if (a.actor.subject.principal == c.principal)
    return error(
        Code::FailedPrecondition,
        "this is your own account; ask another operator to disable it, so that nobody locks the door from outside");
  return one(PrincipalDisabled{c.principal}, c.principal.str());
}

Decided decide(const Asking& a, const CreateApiToken& c) {
  const auto it = a.base.principals.find(c.owner);
  access::Object object = account_object(a.base, c.owner);
  const bool service = object.kind == Kind::ServiceAccount;
  if (!service) object.kind = Kind::ApiToken;
  TRY_VOID(a.may(service ? Verb::Update : Verb::Create, object));
  if (it == a.base.principals.end()) return missing("account", c.owner.str());
  // Its role may be more than who asks has: an organisation has members of several roles.
  if (service && !a.actor.system) TRY_VOID(access::may_give(a.asker(), it->second.role));
  if (service && c.lifetime.count() == 0)
    return error(Code::InvalidArgument, "a token of a service account has an end; give it a lifetime", "lifetime");
  if (it->second.disabled) return error(Code::FailedPrecondition, "the account is disabled; it gets no new tokens");
  TRY_VOID(sha256(c.hash, "hash"));
  if (!c.label.empty()) TRY_VOID(validate_title(c.label, "label"));
  if (c.refresh.empty()) TRY_VOID(access::fit_for_token(it->second.role, c.scopes));
  if (c.scopes.size() > 8) return error(Code::InvalidArgument, "scopes has more than 8 entries", "scopes");
  for (const std::string& scope : c.scopes)
    if (scope != "read" && scope != "clusters" && scope != "nodes" && scope != "admin" &&
        scope != access::kSecondFactorScope)
      return error(Code::InvalidArgument,
                   "there is no scope " + scope.substr(0, 32) + "; use read, clusters, nodes or admin", "scopes");
  if (c.lifetime.count() < 0 || c.lifetime > Millis(std::int64_t{3660} * 24 * 3'600'000))
    return error(Code::InvalidArgument, "lifetime must lie between 0 (no end) and ten years", "lifetime");
  TRY_VOID(room(a.base.api_tokens.size(), kTokensMax, "API tokens"));
  if (a.base.api_token_by_hash.contains(c.hash))
    return error(Code::AlreadyExists, "this token exists; make a new random one", "hash");
  const TokenId id{a.base.last.token + 1};
  const WallTime expires = c.lifetime.count() == 0 ? WallTime{} : a.wall + c.lifetime;
  if (!c.refresh.empty()) TRY_VOID(sha256(c.refresh, "refresh"));
  if (!c.refresh.empty() && service)
    return error(Code::FailedPrecondition, "a service account does not log in; make a token for it");
  Decision decision =
      one(ApiTokenCreated{{id, c.owner, c.hash, c.label, c.scopes, expires, false, c.refresh}}, id.str());
  if (!c.refresh.empty() && a.base.format_version < kAccessFormat)
    decision.events.insert(decision.events.begin(), FormatRaised{kAccessFormat});
  return decision;
}

Decided decide(const Asking& a, const RenewLogin& c) {
  TRY_VOID(sha256(c.refresh, "refreshToken"));
  TRY_VOID(sha256(c.next, "nextSha256"));
  const ApiToken* login = a.base.find_api_token(c.hash);
  const auto owner = login == nullptr ? a.base.principals.end() : a.base.principals.find(login->owner);
  const bool holds = login != nullptr && !login->refresh.empty() && !login->revoked && login->expires > a.wall &&
                     owner != a.base.principals.end() && !owner->second.disabled;
  if (!holds) return error(Code::Unauthenticated, "this login has ended; log in again: muster login", "refreshToken");
  const std::string id = login->id.str();
  // The answer to the same renewal was lost: only who made the next one can name it before it was ever sent.
  if (login->refresh == c.next) return Decision{{}, {id}};
  if (login->refresh == c.refresh) return one(LoginRenewed{login->id, c.next}, id);
  return one(RefreshReused{login->id}, "reused");
}

Decided decide(const Asking& a, const RevokeApiToken& c) {
  const auto it = a.base.api_tokens.find(c.token);
  access::Object object{.kind = Kind::ApiToken};
  if (it != a.base.api_tokens.end()) object = account_object(a.base, it->second.owner);
  if (object.kind == Kind::Principal) object.kind = Kind::ApiToken;
  TRY_VOID(a.may(Verb::Revoke, object));
  if (it == a.base.api_tokens.end()) return missing("API token", c.token.str());
  if (it->second.revoked) return Decision{{}, {c.token.str()}};
  return one(ApiTokenRevoked{c.token}, c.token.str());
}

Decided decide(const Asking& a, const RevokeLogins& c) {
  constexpr std::size_t kEventsMax = 2000;  // the rest with the next command
  const auto it = a.base.principals.find(c.owner);
  TRY_VOID(a.may(Verb::Update, {.kind = Kind::Principal,
                                .owner = it == a.base.principals.end() ? OrgId{} : it->second.org,
                                .principal = c.owner}));
  if (it == a.base.principals.end()) return missing("account", c.owner.str());
  Decision decision;
  decision.outcome.id = c.owner.str();
  for (const TokenId id : logins_of(a.base, c.owner, c.keep, a.wall)) {
    if (decision.events.size() >= kEventsMax) break;
    decision.events.emplace_back(ApiTokenRevoked{id});
  }
  return decision;
}

// A pool is its organisation's: a join token puts machines only into those of the organisation that it is for.
static Result<std::string> own_pool(const State& state, OrgId supplier, const std::string& text) {
  const auto pool = parse_pool("pool:" + text);
  if (!pool)
    return error(Code::InvalidArgument, "the label pool must be the name of a pool: 1 to 63 of a-z, 0-9, '-' and '_'",
                 "labels.pool");
  const Org& owner = state.orgs.at(supplier);
  if (!pool->org.empty() && pool->org != owner.name && pool->org != supplier.str())
    return error(Code::PermissionDenied,
                 "the pool " + text + " is not one of " + owner.name + ", for which this join token is; only " +
                     pool->org + " and operators put machines into it",
                 "labels.pool");
  return pool->name;
}

Decided decide(const Asking& a, const CreateJoinToken& c) {
  TRY_VOID(a.may(Verb::Create, {.kind = Kind::JoinToken, .owner = c.supplier}));
  if (!a.base.orgs.contains(c.supplier)) return missing("organisation", c.supplier.str());
  TRY_VOID(sha256(c.hash, "hash"));
  TRY_VOID(validate_labels(c.labels, "labels"));
  std::map<std::string, std::string> labels = c.labels;
  if (const auto pool = labels.find("pool"); pool != labels.end())
    pool->second = TRY(own_pool(a.base, c.supplier, pool->second));
  if (c.lifetime.count() <= 0 || c.lifetime > kJoinTokenMax)
    return error(Code::InvalidArgument, "lifetime must lie between one millisecond and 30 days", "lifetime");
  TRY_VOID(room(a.base.join_tokens.size(), kTokensMax, "join tokens"));
  if (a.base.join_token_by_hash.contains(c.hash))
    return error(Code::AlreadyExists, "this token exists; make a new random one", "hash");
  const TokenId id{a.base.last.token + 1};
  return one(JoinTokenCreated{{id, c.supplier, c.hash, std::move(labels), a.wall + c.lifetime, {}, false}}, id.str());
}

Decided decide(const Asking& a, const RevokeJoinToken& c) {
  const auto it = a.base.join_tokens.find(c.token);
  access::Object object{.kind = Kind::JoinToken};
  if (it != a.base.join_tokens.end()) object.owner = it->second.supplier;
  TRY_VOID(a.may(Verb::Revoke, object));
  if (it == a.base.join_tokens.end()) return missing("join token", c.token.str());
  if (it->second.revoked) return Decision{{}, {c.token.str()}};
  return one(JoinTokenRevoked{c.token}, c.token.str());
}

}  // namespace muster::control
