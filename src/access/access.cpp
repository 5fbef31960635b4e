#include "access/access.h"

#include <algorithm>
#include <array>
#include <utility>

namespace muster::access {
namespace {

constexpr std::size_t kKinds = 20;
constexpr std::size_t kVerbs = 14;
constexpr std::array<std::string_view, kKinds> kKindNames = {
    "platform",     "organisation",    "project", "account",          "API token", "join token", "machine",  "cluster",
    "job",          "queue",           "event",   "audit log",        "blob",      "telemetry",  "registry", "offer",
    "image policy", "service account", "grant",   "break-glass grant"};
constexpr std::array<std::string_view, kVerbs> kVerbNames = {"list",   "read",   "create", "update",  "delete",
                                                             "drain",  "revoke", "exec",   "forward", "logs",
                                                             "submit", "stop",   "enroll", "report"};

// Whose objects a permission reaches. Own = of the subject's organisation; Self = of the very principal or device;
// Staff = accounts of the subject's organisation with a role that the subject's has a say in (leads).
enum class Reach : std::uint8_t { No, Self, Own, Staff, Any };

constexpr std::uint32_t bits(std::initializer_list<Verb> verbs) {
  std::uint32_t out = 0;
  for (const Verb verb : verbs) out |= 1U << static_cast<unsigned>(verb);
  return out;
}
using enum Verb;
constexpr std::uint32_t kLook = bits({List, Read});
constexpr std::uint32_t kWork = bits({List, Read, Create, Update, Delete, Exec, Forward, Logs, Submit, Stop});
constexpr std::uint32_t kMachine = bits({List, Read, Update, Drain, Revoke});
constexpr std::uint32_t kTend = bits({List, Read, Update, Drain});  // on and off, and empty: all of it can be undone
constexpr std::uint32_t kWatch = bits({List, Read, Logs});
constexpr std::uint32_t kJoin = bits({List, Read, Create, Delete, Revoke});
constexpr std::uint32_t kAccount = bits({List, Create, Delete});
constexpr std::uint32_t kOwnAccount = bits({List, Read, Update});     // update: its password
constexpr std::uint32_t kStaff = bits({List, Read, Create, Delete});  // both together: another role
constexpr std::uint32_t kAsk = bits({List, Read, Update});
constexpr std::uint32_t kOwnToken = bits({List, Read, Create, Delete, Revoke});
constexpr std::uint32_t kProgram = bits({List, Read, Create, Update, Delete, Revoke});
constexpr std::uint32_t kGive = bits({List, Read, Create, Revoke});
constexpr std::uint32_t kTake = bits({List, Read, Revoke});
constexpr std::uint32_t kEverything = bits({List, Read, Create, Update, Delete, Drain, Revoke, Submit, Stop, Enroll});

// The table. A role may do `verbs` to objects of `kind` within `reach`; what has no row is denied. Operators run the
// platform but do not look into tenants' containers: exec, forward and logs follow the ownership of the cluster, or a
// grant. In an organisation that never had an administrator its members have the administrator's rows, but for
// accounts: nobody else is there to do it.
struct Row {
  Role role;
  Kind kind;
  Reach reach;
  std::uint32_t verbs;
};
constexpr Row kTable[] = {
    {Role::Operator, Kind::Platform, Reach::Any, kEverything},
    {Role::Operator, Kind::Org, Reach::Any, kEverything},
    {Role::Operator, Kind::Project, Reach::Any, kEverything},
    {Role::Operator, Kind::Principal, Reach::Any, kEverything},
    {Role::Operator, Kind::ApiToken, Reach::Any, kEverything},
    {Role::Operator, Kind::JoinToken, Reach::Any, kEverything},
    {Role::Operator, Kind::Node, Reach::Any, kEverything},
    {Role::Operator, Kind::Cluster, Reach::Any, kEverything},
    {Role::Operator, Kind::Cluster, Reach::Own, kWork},
    {Role::Operator, Kind::Job, Reach::Any, kEverything},
    {Role::Operator, Kind::Job, Reach::Own, kWork},
    {Role::Operator, Kind::Queue, Reach::Any, kLook},
    {Role::Operator, Kind::Event, Reach::Any, kLook},
    {Role::Operator, Kind::Audit, Reach::Any, kLook},
    {Role::Operator, Kind::Blob, Reach::Own, kWork},
    {Role::Operator, Kind::Telemetry, Reach::Any, kLook},
    {Role::Operator, Kind::Registry, Reach::Own, kAccount},
    {Role::Operator, Kind::Offer, Reach::Any, kLook},  // what is asked for a machine is its owner's word alone
    {Role::Operator, Kind::Offer, Reach::Own, kAsk},
    {Role::Operator, Kind::ImagePolicy, Reach::Any, kAsk},
    {Role::Operator, Kind::ServiceAccount, Reach::Any, kProgram},
    {Role::Operator, Kind::Grant, Reach::Any, kTake},  // to give what is another's is its own word: break-glass
    {Role::Operator, Kind::Grant, Reach::Own, kGive},
    {Role::Operator, Kind::BreakGlass, Reach::Any, kGive},

    {Role::Supplier, Kind::Org, Reach::Own, kLook},
    {Role::Supplier, Kind::Principal, Reach::Self, kOwnAccount},
    {Role::Supplier, Kind::Principal, Reach::Staff, kStaff},
    {Role::Supplier, Kind::ApiToken, Reach::Self, kOwnToken},
    {Role::Supplier, Kind::JoinToken, Reach::Own, kJoin},
    {Role::Supplier, Kind::Node, Reach::Own, kMachine},
    {Role::Supplier, Kind::Queue, Reach::Own, kLook},
    {Role::Supplier, Kind::Event, Reach::Own, kLook},
    {Role::Supplier, Kind::Audit, Reach::Own, kLook},
    {Role::Supplier, Kind::Telemetry, Reach::Own, kLook},
    {Role::Supplier, Kind::Offer, Reach::Own, kAsk},
    {Role::Supplier, Kind::ServiceAccount, Reach::Own, kProgram},
    {Role::Supplier, Kind::Grant, Reach::Own, kLook},
    {Role::Supplier, Kind::Grant, Reach::Self, kTake},  // given to him; he may give it back
    {Role::Supplier, Kind::BreakGlass, Reach::Own, kLook},

    // Looks after machines. Which there are and what they cost binds the organisation: the owner's.
    {Role::SupplierMember, Kind::Org, Reach::Own, kLook},
    {Role::SupplierMember, Kind::Principal, Reach::Self, kOwnAccount},
    {Role::SupplierMember, Kind::ApiToken, Reach::Self, kOwnToken},
    {Role::SupplierMember, Kind::JoinToken, Reach::Own, kLook},
    {Role::SupplierMember, Kind::Node, Reach::Own, kTend},
    {Role::SupplierMember, Kind::Queue, Reach::Own, kLook},
    {Role::SupplierMember, Kind::Event, Reach::Own, kLook},
    {Role::SupplierMember, Kind::Audit, Reach::Own, kLook},
    {Role::SupplierMember, Kind::Telemetry, Reach::Own, kLook},
    {Role::SupplierMember, Kind::Offer, Reach::Own, kLook},
    {Role::SupplierMember, Kind::ServiceAccount, Reach::Own, kLook},
    {Role::SupplierMember, Kind::ServiceAccount, Reach::Self, bits({Revoke})},  // it may end its own tokens
    {Role::SupplierMember, Kind::Grant, Reach::Own, kLook},
    {Role::SupplierMember, Kind::Grant, Reach::Self, kTake},
    {Role::SupplierMember, Kind::BreakGlass, Reach::Own, kLook},

    {Role::TenantAdmin, Kind::Org, Reach::Own, kLook},
    {Role::TenantAdmin, Kind::Project, Reach::Own, bits({List, Read, Create, Update})},
    {Role::TenantAdmin, Kind::Principal, Reach::Self, kOwnAccount},
    {Role::TenantAdmin, Kind::Principal, Reach::Staff, kStaff},
    {Role::TenantAdmin, Kind::ApiToken, Reach::Self, kOwnToken},
    {Role::TenantAdmin, Kind::JoinToken, Reach::Own, kJoin},  // machines of its own (pool own)
    {Role::TenantAdmin, Kind::Node, Reach::Own, kMachine},
    {Role::TenantAdmin, Kind::Cluster, Reach::Own, kWork},
    {Role::TenantAdmin, Kind::Job, Reach::Own, kWork},
    {Role::TenantAdmin, Kind::Queue, Reach::Own, kLook},
    {Role::TenantAdmin, Kind::Event, Reach::Own, kLook},
    {Role::TenantAdmin, Kind::Audit, Reach::Own, kLook},
    {Role::TenantAdmin, Kind::Blob, Reach::Own, bits({List, Read, Create, Delete})},
    {Role::TenantAdmin, Kind::Telemetry, Reach::Own, kLook},
    {Role::TenantAdmin, Kind::Registry, Reach::Own, kAccount},
    {Role::TenantAdmin, Kind::Offer, Reach::Own, kAsk},
    {Role::TenantAdmin, Kind::ImagePolicy, Reach::Own, kAsk},
    {Role::TenantAdmin, Kind::ServiceAccount, Reach::Own, kProgram},
    {Role::TenantAdmin, Kind::Grant, Reach::Own, kGive},
    {Role::TenantAdmin, Kind::Grant, Reach::Self, kTake},
    {Role::TenantAdmin, Kind::BreakGlass, Reach::Own, kLook},  // the owner sees who looks in

    {Role::Tenant, Kind::Org, Reach::Own, kLook},
    {Role::Tenant, Kind::Project, Reach::Own, kLook},
    {Role::Tenant, Kind::Principal, Reach::Self, kOwnAccount},
    {Role::Tenant, Kind::ApiToken, Reach::Self, kOwnToken},
    {Role::Tenant, Kind::JoinToken, Reach::Own, kLook},
    {Role::Tenant, Kind::Node, Reach::Own, kTend},
    {Role::Tenant, Kind::Cluster, Reach::Own, kWork},
    {Role::Tenant, Kind::Job, Reach::Own, kWork},
    {Role::Tenant, Kind::Queue, Reach::Own, kLook},
    {Role::Tenant, Kind::Event, Reach::Own, kLook},
    {Role::Tenant, Kind::Audit, Reach::Own, kLook},
    {Role::Tenant, Kind::Blob, Reach::Own, bits({List, Read, Create, Delete})},
    {Role::Tenant, Kind::Telemetry, Reach::Own, kLook},
    {Role::Tenant, Kind::Registry, Reach::Own, bits({List})},
    {Role::Tenant, Kind::Offer, Reach::Own, kLook},
    {Role::Tenant, Kind::ImagePolicy, Reach::Own, kLook},
    {Role::Tenant, Kind::ServiceAccount, Reach::Own, kLook},
    {Role::Tenant, Kind::ServiceAccount, Reach::Self, bits({Revoke})},
    {Role::Tenant, Kind::Grant, Reach::Own, kLook},
    {Role::Tenant, Kind::Grant, Reach::Self, kTake},
    {Role::Tenant, Kind::BreakGlass, Reach::Own, kLook},

    // Sees what a member sees, but for uploads and logins to registries: both hold secrets.
    {Role::TenantViewer, Kind::Org, Reach::Own, kLook},
    {Role::TenantViewer, Kind::Project, Reach::Own, kLook},
    {Role::TenantViewer, Kind::Principal, Reach::Self, kOwnAccount},
    {Role::TenantViewer, Kind::ApiToken, Reach::Self, kOwnToken},  // logging in makes one
    {Role::TenantViewer, Kind::JoinToken, Reach::Own, kLook},
    {Role::TenantViewer, Kind::Node, Reach::Own, kLook},
    {Role::TenantViewer, Kind::Cluster, Reach::Own, kWatch},
    {Role::TenantViewer, Kind::Job, Reach::Own, kWatch},
    {Role::TenantViewer, Kind::Queue, Reach::Own, kLook},
    {Role::TenantViewer, Kind::Event, Reach::Own, kLook},
    {Role::TenantViewer, Kind::Audit, Reach::Own, kLook},
    {Role::TenantViewer, Kind::Telemetry, Reach::Own, kLook},
    {Role::TenantViewer, Kind::Offer, Reach::Own, kLook},
    {Role::TenantViewer, Kind::ImagePolicy, Reach::Own, kLook},
    {Role::TenantViewer, Kind::ServiceAccount, Reach::Own, kLook},
    {Role::TenantViewer, Kind::ServiceAccount, Reach::Self, bits({Revoke})},
    {Role::TenantViewer, Kind::Grant, Reach::Own, kLook},
    {Role::TenantViewer, Kind::BreakGlass, Reach::Own, kLook},

    {Role::Auditor, Kind::Platform, Reach::Any, kLook},
    {Role::Auditor, Kind::Org, Reach::Any, kLook},
    {Role::Auditor, Kind::Project, Reach::Any, kLook},
    {Role::Auditor, Kind::Principal, Reach::Any, kLook},
    {Role::Auditor, Kind::Principal, Reach::Self, kOwnAccount},
    {Role::Auditor, Kind::ApiToken, Reach::Any, kLook},
    {Role::Auditor, Kind::ApiToken, Reach::Self, kOwnToken},  // logging in makes one
    {Role::Auditor, Kind::JoinToken, Reach::Any, kLook},
    {Role::Auditor, Kind::Node, Reach::Any, kLook},
    {Role::Auditor, Kind::Cluster, Reach::Any, kLook},
    {Role::Auditor, Kind::Job, Reach::Any, kLook},
    {Role::Auditor, Kind::Queue, Reach::Any, kLook},
    {Role::Auditor, Kind::Event, Reach::Any, kLook},
    {Role::Auditor, Kind::Audit, Reach::Any, kLook},
    {Role::Auditor, Kind::Telemetry, Reach::Any, kLook},
    {Role::Auditor, Kind::Offer, Reach::Any, kLook},
    {Role::Auditor, Kind::ImagePolicy, Reach::Any, kLook},
    {Role::Auditor, Kind::ServiceAccount, Reach::Any, kLook},
    {Role::Auditor, Kind::Grant, Reach::Any, kLook},
    {Role::Auditor, Kind::BreakGlass, Reach::Any, kLook},
};
// A device (an enrolled machine) speaks only about itself. Blobs it may read are named by its own assignments: the
// server passes the node the assignment is for.
constexpr Row kDevice[] = {
    {Role::None, Kind::Node, Reach::Self, bits({Read, Report})},
    {Role::None, Kind::Telemetry, Reach::Self, bits({Report})},
    {Role::None, Kind::Blob, Reach::Self, bits({Read})},
};

// Which accounts a role has a say in. None that may what it may not: nobody makes himself more through another.
constexpr bool leads(Role who, Role whom) {
  if (who == Role::TenantAdmin) return whom == Role::TenantAdmin || whom == Role::Tenant || whom == Role::TenantViewer;
  return who == Role::Supplier && whom == Role::SupplierMember;
}

bool reaches(Reach reach, const Subject& subject, const Object& object) {
  switch (reach) {
    case Reach::Any:
      return true;
    case Reach::Own:
      return subject.org && subject.org == object.owner;
    case Reach::Staff:
      return subject.org && subject.org == object.owner && leads(subject.role, object.role);
    case Reach::Self:
      return subject.node ? subject.node == object.node : subject.principal && subject.principal == object.principal;
    case Reach::No:
      return false;
  }
  return false;
}

// Scopes narrow a token: no scope = all the owner may; each scope opens a part, "read" all of it for looking.
bool in_scope(const Subject& subject, Verb verb, const Object& object) {
  if (subject.scopes.empty()) return true;
  const Kind kind = object.kind;
  for (const std::string& scope : subject.scopes) {
    if (scope == kSecondFactorScope && reaches(Reach::Self, subject, object) &&
        ((kind == Kind::Principal && (verb == Read || verb == Update)) || (kind == Kind::ApiToken && verb == Revoke)))
      return true;
    if (scope == "admin") return true;
    if (scope == "read" && (verb == List || verb == Read)) return true;
    if (scope == "clusters" && (kind == Kind::Cluster || kind == Kind::Job || kind == Kind::Blob ||
                                kind == Kind::Queue || kind == Kind::Registry))
      return true;
    if (scope == "clusters" && (kind == Kind::Project || kind == Kind::ImagePolicy) && (verb == List || verb == Read))
      return true;
    if (scope == "nodes" &&
        (kind == Kind::Node || kind == Kind::JoinToken || kind == Kind::Telemetry || kind == Kind::Offer))
      return true;
  }
  return false;
}

// What a service account may of accounts and tokens, whatever its role: see its own, and end its own tokens. Else
// whoever has one of its tokens could make himself another that outlives it.
bool fit_for_service(const Subject& subject, Verb verb, const Object& object) {
  const bool self = object.principal == subject.principal;
  switch (object.kind) {
    case Kind::Principal:
      return self && (verb == List || verb == Read);
    case Kind::ApiToken:
    case Kind::ServiceAccount:
      return self && (verb == List || verb == Read || verb == Revoke);
    case Kind::Grant:
    case Kind::BreakGlass:
      return verb == List || verb == Read;
    default:
      return true;
  }
}

// The second table: what a right on a cluster or job is.
std::uint32_t verbs_of(Right right, Kind kind) {
  const bool cluster = kind == Kind::Cluster;
  const std::uint32_t logs = kLook | bits({Logs});
  const std::uint32_t submit = logs | (cluster ? bits({Submit}) : bits({Submit, Stop}));
  const std::uint32_t exec = logs | (cluster ? bits({Exec, Forward}) : 0U);
  switch (right) {
    case Right::None:
      return 0;
    case Right::Look:
      return kLook;
    case Right::Logs:
      return logs;
    case Right::Submit:
      return submit;
    case Right::Exec:
      return exec;
    case Right::Manage:
      return submit | exec | bits({Update, Delete, Stop});
  }
  return 0;
}

GrantId by_grant(const Subject& subject, Verb verb, const Object& object) {
  if (object.kind != Kind::Cluster && object.kind != Kind::Job) return {};
  // What others give an organisation is not for those who only look in it, however much it is.
  if (subject.role == Role::TenantViewer && (kWatch >> static_cast<unsigned>(verb) & 1U) == 0) return {};
  for (const Granted& each : subject.grants) {
    // To list is to ask for whatever there is; each item is asked for again.
    const bool lists = verb == List && !object.project && !object.cluster;
    const bool covers = each.owner == object.owner && each.project == object.project &&
                        (!each.cluster || each.cluster == object.cluster);
    if (lists || (covers && (verbs_of(each.right, object.kind) >> static_cast<unsigned>(verb) & 1U) != 0))
      return each.id;
  }
  return {};
}

template <std::size_t N>
bool granted(const Row (&table)[N], const Subject& subject, Verb verb, const Object& object) {
  const bool founder = subject.founding && subject.role == Role::Tenant;
  return std::any_of(std::begin(table), std::end(table), [&](const Row& row) {
    const bool his = row.role == subject.role || (founder && row.role == Role::TenantAdmin);
    return his && row.kind == object.kind && (row.verbs >> static_cast<unsigned>(verb) & 1U) != 0 &&
           reaches(row.reach, subject, object);
  });
}

bool allowed(const Subject& subject, Verb verb, const Object& object) {
  if (object.kind == Kind::Node && verb == Verb::Enroll && !subject.node)
    return true;  // the one-use token is the permission
  if (subject.node) return subject.role == Role::None && granted(kDevice, subject, verb, object);
  if (!subject.principal || subject.role == Role::None) return false;
  if (subject.service && !fit_for_service(subject, verb, object)) return false;
  return in_scope(subject, verb, object) && (granted(kTable, subject, verb, object) || by_grant(subject, verb, object));
}

}  // namespace

std::string_view verb_name(Verb verb) {
  const auto index = static_cast<std::size_t>(verb);
  return index < kVerbs ? kVerbNames[index] : "?";
}
std::string_view kind_name(Kind kind) {
  const auto index = static_cast<std::size_t>(kind);
  return index < kKinds ? kKindNames[index] : "?";
}

bool visible(const Subject& subject, const Object& object) {
  return allowed(subject, Verb::Read, object) || allowed(subject, Verb::List, object);
}

GrantId grant_used(const Subject& subject, Verb verb, const Object& object) {
  if (subject.grants.empty() || !allowed(subject, verb, object) || granted(kTable, subject, verb, object)) return {};
  return by_grant(subject, verb, object);
}

std::string_view right_name(Right right) {
  constexpr std::array<std::string_view, 6> kNames{"none", "look", "logs", "submit", "exec", "manage"};
  const auto index = static_cast<std::size_t>(right);
  return index < kNames.size() ? kNames[index] : "?";
}

Status may_be_granted(Right right, bool break_glass) {
  if (right == Right::None || right > Right::Manage)
    return error(Code::InvalidArgument, "right must be look, logs, submit, exec or manage", "right");
  if (!break_glass || right == Right::Logs || right == Right::Exec) return {};
  return error(Code::InvalidArgument, "by break-glass an operator takes the right logs or exec; the rest he has",
               "right");
}

Status may_give(const Subject& subject, Role role) {
  constexpr std::array<std::pair<Role, Role>, 7> kLess{{{Role::Supplier, Role::Supplier},
                                                        {Role::Supplier, Role::SupplierMember},
                                                        {Role::TenantAdmin, Role::TenantAdmin},
                                                        {Role::TenantAdmin, Role::Tenant},
                                                        {Role::TenantAdmin, Role::TenantViewer},
                                                        {Role::Tenant, Role::Tenant},
                                                        {Role::Tenant, Role::TenantViewer}}};
  if (subject.role == Role::Operator && role != Role::None) return {};
  if (std::find(kLess.begin(), kLess.end(), std::pair(subject.role, role)) != kLess.end()) return {};
  return error(Code::PermissionDenied,
               "a service account gets no role that may more than yours; leave the role out, or ask an operator",
               "role");
}

Status fit_for_token(Role role, const std::vector<std::string>& scopes) {
  if (role != Role::TenantViewer || scopes == std::vector<std::string>{"read"}) return {};
  return error(Code::PermissionDenied, "a viewer's tokens only read; make it with the scope read and no other",
               "scopes");
}

bool of_tenant(Role role) {
  return role == Role::Tenant || role == Role::TenantAdmin || role == Role::TenantViewer;
}

Status check(const Subject& subject, Verb verb, const Object& object) {
  if (allowed(subject, verb, object)) return {};
  if (!subject.principal && !subject.node)
    return error(Code::Unauthenticated, "nobody is logged in; run `muster login` or send an API token");
  if (subject.scopes == std::vector<std::string>{std::string(kSecondFactorScope)})
    return error(Code::PermissionDenied,
                 "this account needs a second factor before it may do more: set one up with `muster totp enable`, "
                 "then log in again with a code");
  const std::string kind(kind_name(object.kind));
  const std::string name(verb_name(verb));
  if (object.kind == Kind::Principal && verb == Verb::Create && subject.scopes.empty() && object.role != Role::None &&
      (subject.role == Role::TenantAdmin || subject.role == Role::Supplier))
    return error(Code::PermissionDenied,
                 subject.role == Role::Supplier
                     ? "you give accounts of your organisation the role supplier-member, and no other; ask an operator"
                     : "you give accounts of your organisation the roles tenant-admin, tenant and tenant-viewer, and "
                       "no others; ask an operator");
  if (!visible(subject, object) && verb != Verb::Create && verb != Verb::List)
    return error(Code::NotFound, "there is no such " + kind + "; list what you may see, then try again");
  if (!subject.scopes.empty())
    return error(Code::PermissionDenied, "your role or the scopes of this token do not allow to " + name + " this " +
                                             kind + "; ask an operator or use a token with a wider scope");
  return error(Code::PermissionDenied,
               "your role does not allow to " + name + " this " + kind + "; ask an operator or the owner");
}

}  // namespace muster::access
