#pragma once
// The one place that decides who may do what: role x object x verb, deny by default, ownership checked here. Every
// REST, SSE, WebSocket, exec and agent request asks it, and the core asks again at commit. Pure and thread-safe. A
// foreign object looks like a missing one (NotFound), a forbidden verb on a visible object is PermissionDenied.
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "model/types.h"

namespace muster::access {

enum class Kind : std::uint8_t {
  Platform,
  Org,
  Project,
  Principal,
  ApiToken,
  JoinToken,
  Node,
  Cluster,
  Job,
  Queue,
  Event,
  Audit,
  Blob,
  Telemetry,
  Registry,
  Offer,
  ImagePolicy,
  ServiceAccount,  // create, update: give it a token; delete: disable it; revoke: one of its tokens
  Grant,           // a right that an organisation gives to others
  BreakGlass       // one that an operator takes
};
enum class Verb : std::uint8_t {
  List,
  Read,
  Create,
  Update,
  Delete,
  Drain,
  Revoke,
  Exec,
  Forward,
  Logs,
  Submit,
  Stop,
  Enroll,
  Report
};

// A grant in force, as far as access asks of it.
struct Granted {
  GrantId id;
  OrgId owner;
  ProjectId project;
  ClusterId cluster;  // none: everything of the project
  Right right = Right::None;
  bool operator==(const Granted&) const = default;
};
// Who asks. A device is its own kind of subject (node set, role None).
struct Subject {
  PrincipalId principal;
  Role role = Role::None;
  OrgId org;
  NodeId node;
  std::vector<std::string> scopes;
  bool service = false;              // a service account: makes no accounts and no tokens, whatever its role
  std::vector<Granted> grants = {};  // in force for this principal or its organisation
  bool founding = false;             // its organisation never had an administrator (Org::administered)
  bool operator==(const Subject&) const = default;
};
// What is asked about. owner: the organisation that owns the object (supplier of a node, tenant of a cluster);
// node/principal where ownership is finer. For Create/List owner is the organisation it would be created or listed in.
struct Object {
  Kind kind = Kind::Platform;
  OrgId owner;
  NodeId node;
  PrincipalId principal;
  ProjectId project = {};  // of a cluster or job, for grants
  ClusterId cluster = {};
  Role role = Role::None;  // of an account: what it is, or is to be
  bool operator==(const Object&) const = default;
};

// The scope of a login that still lacks the second factor which its role needs: the own account alone, to set it up.
inline constexpr std::string_view kSecondFactorScope = "second-factor";

Status check(const Subject& subject, Verb verb, const Object& object);
bool visible(const Subject& subject, const Object& object);  // may the subject know that it exists
// The grant that this rests on; none: the role alone allows it, or nothing does. What was opened by it ends with it.
GrantId grant_used(const Subject& subject, Verb verb, const Object& object);
// Which rights there are to give, and to take by break-glass: operators look at and stop everything anyway.
Status may_be_granted(Right right, bool break_glass);
std::string_view right_name(Right right);  // "look", "logs", "submit", "exec", "manage"
// A service account gets no role that may more than its maker; operators give every role.
Status may_give(const Subject& subject, Role role);
// A token of this role's accounts that is no login: who only looks makes tokens that only read.
Status fit_for_token(Role role, const std::vector<std::string>& scopes);
// Members, administrators and viewers of an organisation that uses machines.
bool of_tenant(Role role);
std::string_view verb_name(Verb verb);
std::string_view kind_name(Kind kind);

}  // namespace muster::access
