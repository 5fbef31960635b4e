#include "access/access.h"

#include <gtest/gtest.h>

#include <set>
#include <string>

namespace muster::access {
namespace {

constexpr OrgId kOwn{1}, kForeign{2};
constexpr PrincipalId kMe{10}, kOther{11};

Subject person(Role role) {
  return {.principal = kMe, .role = role, .org = kOwn};
}
// A member of an organisation that never had an administrator.
Subject founder() {
  Subject out = person(Role::Tenant);
  out.founding = true;
  return out;
}
Subject device(std::uint64_t id) {
  return {.node = NodeId{id}};
}

// The letters of the verbs a role has on a kind, written by hand: list Read Create Update Delete drAin reVoke eXec
// Forward loGs Submit sTop Enroll rePort.
constexpr std::string_view kLetters = "lrcudavxfgstep";

std::string verbs(const Subject& subject, Kind kind, bool own) {
  const Object object{
      .kind = kind, .owner = own ? kOwn : kForeign, .node = NodeId{own ? 7U : 8U}, .principal = own ? kMe : kOther};
  std::string out;
  for (std::size_t i = 0; i < kLetters.size(); ++i)
    if (check(subject, static_cast<Verb>(i), object).ok()) out += kLetters[i];
  return out;
}

struct Expectation {
  Role role;
  Kind kind;
  std::string_view own, foreign;
};
// "e" on machines: whoever holds a one-use token may enrol, the token is checked by the core.
constexpr Expectation kMatrix[] = {
    {Role::Operator, Kind::Platform, "lrcudavste", "lrcudavste"},
    {Role::Operator, Kind::Org, "lrcudavste", "lrcudavste"},
    {Role::Operator, Kind::Project, "lrcudavste", "lrcudavste"},
    {Role::Operator, Kind::Principal, "lrcudavste", "lrcudavste"},
    {Role::Operator, Kind::ApiToken, "lrcudavste", "lrcudavste"},
    {Role::Operator, Kind::JoinToken, "lrcudavste", "lrcudavste"},
    {Role::Operator, Kind::Node, "lrcudavste", "lrcudavste"},
    {Role::Operator, Kind::Cluster, "lrcudavxfgste", "lrcudavste"},
    {Role::Operator, Kind::Job, "lrcudavxfgste", "lrcudavste"},
    {Role::Operator, Kind::Queue, "lr", "lr"},
    {Role::Operator, Kind::Event, "lr", "lr"},
    {Role::Operator, Kind::Audit, "lr", "lr"},
    {Role::Operator, Kind::Blob, "lrcudxfgst", ""},
    {Role::Operator, Kind::Telemetry, "lr", "lr"},
    {Role::Operator, Kind::Registry, "lcd", ""},
    {Role::Operator, Kind::Offer, "lru", "lr"},
    {Role::Operator, Kind::ImagePolicy, "lru", "lru"},
    {Role::Operator, Kind::ServiceAccount, "lrcudv", "lrcudv"},
    {Role::Operator, Kind::Grant, "lrcv", "lrv"},
    {Role::Operator, Kind::BreakGlass, "lrcv", "lrcv"},
    {Role::Supplier, Kind::Platform, "", ""},
    {Role::Supplier, Kind::Org, "lr", ""},
    {Role::Supplier, Kind::Project, "", ""},
    {Role::Supplier, Kind::Principal, "lru", ""},
    {Role::Supplier, Kind::ApiToken, "lrcdv", ""},
    {Role::Supplier, Kind::JoinToken, "lrcdv", ""},
    {Role::Supplier, Kind::Node, "lruave", "e"},
    {Role::Supplier, Kind::Cluster, "", ""},
    {Role::Supplier, Kind::Job, "", ""},
    {Role::Supplier, Kind::Queue, "lr", ""},
    {Role::Supplier, Kind::Event, "lr", ""},
    {Role::Supplier, Kind::Audit, "lr", ""},
    {Role::Supplier, Kind::Blob, "", ""},
    {Role::Supplier, Kind::Telemetry, "lr", ""},
    {Role::Supplier, Kind::Registry, "", ""},
    {Role::Supplier, Kind::Offer, "lru", ""},
    {Role::Supplier, Kind::ImagePolicy, "", ""},
    {Role::Supplier, Kind::ServiceAccount, "lrcudv", ""},
    {Role::Supplier, Kind::Grant, "lrv", ""},
    {Role::Supplier, Kind::BreakGlass, "lr", ""},
    {Role::Tenant, Kind::Platform, "", ""},
    {Role::Tenant, Kind::Org, "lr", ""},
    {Role::Tenant, Kind::Project, "lr", ""},
    {Role::Tenant, Kind::Principal, "lru", ""},
    {Role::Tenant, Kind::ApiToken, "lrcdv", ""},
    {Role::Tenant, Kind::JoinToken, "lr", ""},
    {Role::Tenant, Kind::Node, "lruae", "e"},
    {Role::Tenant, Kind::Cluster, "lrcudxfgst", ""},
    {Role::Tenant, Kind::Job, "lrcudxfgst", ""},
    {Role::Tenant, Kind::Queue, "lr", ""},
    {Role::Tenant, Kind::Event, "lr", ""},
    {Role::Tenant, Kind::Audit, "lr", ""},
    {Role::Tenant, Kind::Blob, "lrcd", ""},
    {Role::Tenant, Kind::Telemetry, "lr", ""},
    {Role::Tenant, Kind::Registry, "l", ""},
    {Role::Tenant, Kind::Offer, "lr", ""},
    {Role::Tenant, Kind::ImagePolicy, "lr", ""},
    {Role::Tenant, Kind::ServiceAccount, "lrv", ""},
    {Role::Tenant, Kind::Grant, "lrv", ""},
    {Role::Tenant, Kind::BreakGlass, "lr", ""},
    {Role::Auditor, Kind::Platform, "lr", "lr"},
    {Role::Auditor, Kind::Org, "lr", "lr"},
    {Role::Auditor, Kind::Project, "lr", "lr"},
    {Role::Auditor, Kind::Principal, "lru", "lr"},
    {Role::Auditor, Kind::ApiToken, "lrcdv", "lr"},
    {Role::Auditor, Kind::JoinToken, "lr", "lr"},
    {Role::Auditor, Kind::Node, "lre", "lre"},
    {Role::Auditor, Kind::Cluster, "lr", "lr"},
    {Role::Auditor, Kind::Job, "lr", "lr"},
    {Role::Auditor, Kind::Queue, "lr", "lr"},
    {Role::Auditor, Kind::Event, "lr", "lr"},
    {Role::Auditor, Kind::Audit, "lr", "lr"},
    {Role::Auditor, Kind::Blob, "", ""},
    {Role::Auditor, Kind::Telemetry, "lr", "lr"},
    {Role::Auditor, Kind::Registry, "", ""},
    {Role::Auditor, Kind::Offer, "lr", "lr"},
    {Role::Auditor, Kind::ImagePolicy, "lr", "lr"},
    {Role::Auditor, Kind::ServiceAccount, "lr", "lr"},
    {Role::Auditor, Kind::Grant, "lr", "lr"},
    {Role::Auditor, Kind::BreakGlass, "lr", "lr"},
    {Role::TenantAdmin, Kind::Platform, "", ""},
    {Role::TenantAdmin, Kind::Org, "lr", ""},
    {Role::TenantAdmin, Kind::Project, "lrcu", ""},
    {Role::TenantAdmin, Kind::Principal, "lru", ""},
    {Role::TenantAdmin, Kind::ApiToken, "lrcdv", ""},
    {Role::TenantAdmin, Kind::JoinToken, "lrcdv", ""},
    {Role::TenantAdmin, Kind::Node, "lruave", "e"},
    {Role::TenantAdmin, Kind::Cluster, "lrcudxfgst", ""},
    {Role::TenantAdmin, Kind::Job, "lrcudxfgst", ""},
    {Role::TenantAdmin, Kind::Queue, "lr", ""},
    {Role::TenantAdmin, Kind::Event, "lr", ""},
    {Role::TenantAdmin, Kind::Audit, "lr", ""},
    {Role::TenantAdmin, Kind::Blob, "lrcd", ""},
    {Role::TenantAdmin, Kind::Telemetry, "lr", ""},
    {Role::TenantAdmin, Kind::Registry, "lcd", ""},
    {Role::TenantAdmin, Kind::Offer, "lru", ""},
    {Role::TenantAdmin, Kind::ImagePolicy, "lru", ""},
    {Role::TenantAdmin, Kind::ServiceAccount, "lrcudv", ""},
    {Role::TenantAdmin, Kind::Grant, "lrcv", ""},
    {Role::TenantAdmin, Kind::BreakGlass, "lr", ""},
    {Role::TenantViewer, Kind::Platform, "", ""},
    {Role::TenantViewer, Kind::Org, "lr", ""},
    {Role::TenantViewer, Kind::Project, "lr", ""},
    {Role::TenantViewer, Kind::Principal, "lru", ""},
    {Role::TenantViewer, Kind::ApiToken, "lrcdv", ""},
    {Role::TenantViewer, Kind::JoinToken, "lr", ""},
    {Role::TenantViewer, Kind::Node, "lre", "e"},
    {Role::TenantViewer, Kind::Cluster, "lrg", ""},
    {Role::TenantViewer, Kind::Job, "lrg", ""},
    {Role::TenantViewer, Kind::Queue, "lr", ""},
    {Role::TenantViewer, Kind::Event, "lr", ""},
    {Role::TenantViewer, Kind::Audit, "lr", ""},
    {Role::TenantViewer, Kind::Blob, "", ""},
    {Role::TenantViewer, Kind::Telemetry, "lr", ""},
    {Role::TenantViewer, Kind::Registry, "", ""},
    {Role::TenantViewer, Kind::Offer, "lr", ""},
    {Role::TenantViewer, Kind::ImagePolicy, "lr", ""},
    {Role::TenantViewer, Kind::ServiceAccount, "lrv", ""},
    {Role::TenantViewer, Kind::Grant, "lr", ""},
    {Role::TenantViewer, Kind::BreakGlass, "lr", ""},
    {Role::SupplierMember, Kind::Platform, "", ""},
    {Role::SupplierMember, Kind::Org, "lr", ""},
    {Role::SupplierMember, Kind::Project, "", ""},
    {Role::SupplierMember, Kind::Principal, "lru", ""},
    {Role::SupplierMember, Kind::ApiToken, "lrcdv", ""},
    {Role::SupplierMember, Kind::JoinToken, "lr", ""},
    {Role::SupplierMember, Kind::Node, "lruae", "e"},
    {Role::SupplierMember, Kind::Cluster, "", ""},
    {Role::SupplierMember, Kind::Job, "", ""},
    {Role::SupplierMember, Kind::Queue, "lr", ""},
    {Role::SupplierMember, Kind::Event, "lr", ""},
    {Role::SupplierMember, Kind::Audit, "lr", ""},
    {Role::SupplierMember, Kind::Blob, "", ""},
    {Role::SupplierMember, Kind::Telemetry, "lr", ""},
    {Role::SupplierMember, Kind::Registry, "", ""},
    {Role::SupplierMember, Kind::Offer, "lr", ""},
    {Role::SupplierMember, Kind::ImagePolicy, "", ""},
    {Role::SupplierMember, Kind::ServiceAccount, "lrv", ""},
    {Role::SupplierMember, Kind::Grant, "lrv", ""},
    {Role::SupplierMember, Kind::BreakGlass, "lr", ""},
};
// Of members where there never was an administrator: what every member might before there were any.
constexpr Expectation kFounders[] = {
    {Role::Tenant, Kind::Platform, "", ""},       {Role::Tenant, Kind::Org, "lr", ""},
    {Role::Tenant, Kind::Project, "lrcu", ""},    {Role::Tenant, Kind::Principal, "lru", ""},
    {Role::Tenant, Kind::ApiToken, "lrcdv", ""},  {Role::Tenant, Kind::JoinToken, "lrcdv", ""},
    {Role::Tenant, Kind::Node, "lruave", "e"},    {Role::Tenant, Kind::Cluster, "lrcudxfgst", ""},
    {Role::Tenant, Kind::Job, "lrcudxfgst", ""},  {Role::Tenant, Kind::Queue, "lr", ""},
    {Role::Tenant, Kind::Event, "lr", ""},        {Role::Tenant, Kind::Audit, "lr", ""},
    {Role::Tenant, Kind::Blob, "lrcd", ""},       {Role::Tenant, Kind::Telemetry, "lr", ""},
    {Role::Tenant, Kind::Registry, "lcd", ""},    {Role::Tenant, Kind::Offer, "lru", ""},
    {Role::Tenant, Kind::ImagePolicy, "lru", ""}, {Role::Tenant, Kind::ServiceAccount, "lrcudv", ""},
    {Role::Tenant, Kind::Grant, "lrcv", ""},      {Role::Tenant, Kind::BreakGlass, "lr", ""},
};

// Of accounts of others: who asks, and what he may do to one of each role in his own organisation, in the order none,
// operator, supplier, tenant, auditor, tenant-admin, tenant-viewer, supplier-member; and in another one.
struct AccountExpectation {
  Role role;
  std::string_view own[8], foreign[8];
};
constexpr AccountExpectation kAccounts[] = {
    {Role::None, {"", "", "", "", "", "", "", ""}, {"", "", "", "", "", "", "", ""}},
    {Role::Operator,
     {"lrcudavste", "lrcudavste", "lrcudavste", "lrcudavste", "lrcudavste", "lrcudavste", "lrcudavste", "lrcudavste"},
     {"lrcudavste", "lrcudavste", "lrcudavste", "lrcudavste", "lrcudavste", "lrcudavste", "lrcudavste", "lrcudavste"}},
    {Role::Supplier, {"", "", "", "", "", "", "", "lrcd"}, {"", "", "", "", "", "", "", ""}},
    {Role::Tenant, {"", "", "", "", "", "", "", ""}, {"", "", "", "", "", "", "", ""}},
    {Role::Auditor, {"lr", "lr", "lr", "lr", "lr", "lr", "lr", "lr"}, {"lr", "lr", "lr", "lr", "lr", "lr", "lr", "lr"}},
    {Role::TenantAdmin, {"", "", "", "lrcd", "", "lrcd", "lrcd", ""}, {"", "", "", "", "", "", "", ""}},
    {Role::TenantViewer, {"", "", "", "", "", "", "", ""}, {"", "", "", "", "", "", "", ""}},
    {Role::SupplierMember, {"", "", "", "", "", "", "", ""}, {"", "", "", "", "", "", "", ""}},
};

TEST(Access, EveryRoleKindVerbAndOwnership) {
  EXPECT_EQ(std::size(kMatrix), 7U * 20U);
  for (const Expectation& e : kMatrix) {
    const std::string where =
        "role " + std::to_string(static_cast<int>(e.role)) + ", " + std::string(kind_name(e.kind));
    EXPECT_EQ(verbs(person(e.role), e.kind, true), e.own) << where << ", own";
    EXPECT_EQ(verbs(person(e.role), e.kind, false), e.foreign) << where << ", foreign";
  }
}

TEST(Access, MembersWithoutAnAdministratorMayWhatTheyAlwaysMight) {
  EXPECT_EQ(std::size(kFounders), 20U);
  for (const Expectation& e : kFounders) {
    EXPECT_EQ(verbs(founder(), e.kind, true), e.own) << kind_name(e.kind) << ", own";
    EXPECT_EQ(verbs(founder(), e.kind, false), e.foreign) << kind_name(e.kind) << ", foreign";
  }
  for (const Expectation& e : kMatrix) {
    if (e.role == Role::Tenant) continue;
    Subject other = person(e.role);
    other.founding = true;
    EXPECT_EQ(verbs(other, e.kind, true), e.own) << "it is of members alone: " << kind_name(e.kind);
  }
}

TEST(Access, WhoHasASayInWhichAccounts) {
  const auto may = [](const Subject& subject, OrgId org, Role role) {
    std::string out;
    for (std::size_t i = 0; i < kLetters.size(); ++i) {
      const Object account{.kind = Kind::Principal, .owner = org, .principal = kOther, .role = role};
      if (check(subject, static_cast<Verb>(i), account).ok()) out += kLetters[i];
    }
    return out;
  };
  for (const AccountExpectation& e : kAccounts)
    for (int role = 0; role < 8; ++role) {
      const std::string where = "role " + std::to_string(static_cast<int>(e.role)) + " of " + std::to_string(role);
      EXPECT_EQ(may(person(e.role), kOwn, static_cast<Role>(role)), e.own[role]) << where;
      EXPECT_EQ(may(person(e.role), kForeign, static_cast<Role>(role)), e.foreign[role]) << where << ", foreign";
      EXPECT_EQ(may(founder(), kOwn, static_cast<Role>(role)), "") << "no member makes himself an administrator";
      Subject program = person(e.role);
      program.service = true;
      EXPECT_EQ(may(program, kOwn, static_cast<Role>(role)), "") << where << ", a program";
    }
  Subject admin = person(Role::TenantAdmin);
  admin.scopes = {"clusters", "nodes"};
  EXPECT_EQ(may(admin, kOwn, Role::Tenant), "") << "accounts are in the scope admin alone";
  const Object operators{.kind = Kind::Principal, .owner = kOwn, .principal = kOther, .role = Role::Operator};
  EXPECT_EQ(check(person(Role::TenantAdmin), Verb::Delete, operators).error().code, Code::NotFound);
  EXPECT_NE(check(person(Role::TenantAdmin), Verb::Create, operators).error().message.find("tenant-viewer"),
            std::string::npos);
}

TEST(Access, NobodyMayOnlyEnrol) {
  for (int kind = 0; kind < 20; ++kind) {
    const std::string expected = static_cast<Kind>(kind) == Kind::Node ? "e" : "";
    EXPECT_EQ(verbs(Subject{}, static_cast<Kind>(kind), true), expected);
    EXPECT_EQ(verbs(person(Role::None), static_cast<Kind>(kind), true), expected);
  }
  EXPECT_EQ(check(Subject{}, Verb::List, {.kind = Kind::Cluster}).error().code, Code::Unauthenticated);
}

TEST(Access, DevicesSpeakOnlyAboutThemselves) {
  for (int kind = 0; kind < 20; ++kind) {
    const Kind k = static_cast<Kind>(kind);
    const std::string expected = k == Kind::Node ? "rp" : k == Kind::Telemetry ? "p" : k == Kind::Blob ? "r" : "";
    EXPECT_EQ(verbs(device(7), k, true), expected) << kind_name(k);
    EXPECT_EQ(verbs(device(7), k, false), "") << kind_name(k);
  }
  Subject both = device(7);
  both.role = Role::Operator;
  EXPECT_FALSE(check(both, Verb::Report, {.kind = Kind::Node, .node = NodeId{7}}).ok()) << "a device has no role";
}

TEST(Access, AForeignObjectLooksMissing) {
  const Object foreign{.kind = Kind::Cluster, .owner = kForeign};
  EXPECT_EQ(check(person(Role::Tenant), Verb::Delete, foreign).error().code, Code::NotFound);
  EXPECT_FALSE(visible(person(Role::Tenant), foreign));
  EXPECT_EQ(check(person(Role::Auditor), Verb::Delete, foreign).error().code, Code::PermissionDenied);
  EXPECT_EQ(check(person(Role::Operator), Verb::Exec, foreign).error().code, Code::PermissionDenied);
}

TEST(Access, NoOrganisationOwnsNothing) {
  Subject tenant = person(Role::Tenant);
  tenant.org = {};
  EXPECT_FALSE(check(tenant, Verb::Read, {.kind = Kind::Cluster, .owner = {}}).ok());
}

TEST(Access, ScopesNarrow) {
  Subject subject = founder();
  const Object cluster{.kind = Kind::Cluster, .owner = kOwn}, node{.kind = Kind::Node, .owner = kOwn};
  subject.scopes = {"read"};
  EXPECT_TRUE(check(subject, Verb::Read, cluster).ok());
  EXPECT_EQ(check(subject, Verb::Create, cluster).error().code, Code::PermissionDenied);
  subject.scopes = {"clusters"};
  EXPECT_TRUE(check(subject, Verb::Exec, cluster).ok());
  EXPECT_FALSE(check(subject, Verb::Drain, node).ok());
  EXPECT_TRUE(check(subject, Verb::Read, {.kind = Kind::ImagePolicy, .owner = kOwn}).ok());
  EXPECT_FALSE(check(subject, Verb::Update, {.kind = Kind::ImagePolicy, .owner = kOwn}).ok())
      << "who may start clusters does not say what may run in them";
  subject.scopes = {"nodes"};
  EXPECT_TRUE(check(subject, Verb::Drain, node).ok());
  EXPECT_FALSE(check(subject, Verb::Read, cluster).ok());
  subject.scopes = {"admin"};
  EXPECT_TRUE(check(subject, Verb::Create, cluster).ok());
  EXPECT_FALSE(check(subject, Verb::List, {.kind = Kind::Audit}).ok()) << "a scope never widens the role";
  subject.scopes = {"nonsense"};
  EXPECT_EQ(verbs(subject, Kind::Cluster, true), "");
}

TEST(Access, WhoLacksTheSecondFactorOfHisRoleReachesHisOwnAccountAlone) {
  for (const Role role : {Role::Operator, Role::Supplier, Role::Tenant, Role::Auditor, Role::TenantAdmin,
                          Role::TenantViewer, Role::SupplierMember}) {
    Subject subject = person(role);
    subject.scopes = {std::string(kSecondFactorScope)};
    const Object own{.kind = Kind::Principal, .owner = kOwn, .principal = subject.principal};
    const Object other{.kind = Kind::Principal, .owner = kOwn, .principal = PrincipalId{4'711}};
    EXPECT_TRUE(check(subject, Verb::Read, own).ok());
    EXPECT_TRUE(check(subject, Verb::Update, own).ok()) << "to set it up, and for another password";
    EXPECT_FALSE(check(subject, Verb::Delete, own).ok());
    EXPECT_FALSE(check(subject, Verb::Update, other).ok()) << "an operator may otherwise";
    EXPECT_FALSE(check(subject, Verb::Read, other).ok());
    const Object token{.kind = Kind::ApiToken, .owner = kOwn, .principal = subject.principal};
    EXPECT_TRUE(check(subject, Verb::Revoke, token).ok()) << "logins without it end";
    EXPECT_FALSE(check(subject, Verb::Create, token).ok()) << "or it would give itself all";
    for (const Kind kind :
         {Kind::Platform, Kind::Org, Kind::Project, Kind::JoinToken, Kind::Node, Kind::Cluster, Kind::Job, Kind::Queue,
          Kind::Event, Kind::Audit, Kind::Blob, Kind::Telemetry, Kind::Registry, Kind::Offer, Kind::ImagePolicy,
          Kind::ServiceAccount, Kind::Grant, Kind::BreakGlass})
      EXPECT_EQ(verbs(subject, kind, true), kind == Kind::Node ? "e" : "")  // a join token lets anybody enrol
          << kind_name(kind);
    const Status refused = check(subject, Verb::List, {.kind = Kind::Cluster, .owner = kOwn});
    EXPECT_EQ(refused.error().code, Code::PermissionDenied);
    EXPECT_NE(refused.error().message.find("muster totp enable"), std::string::npos);
  }
}

// By hand: what differs from a person of the same role, on its own account and tokens, and on another's.
struct ProgramExpectation {
  Role role;
  Kind kind;
  std::string_view self, other;
};
constexpr ProgramExpectation kPrograms[] = {
    {Role::Operator, Kind::Principal, "lr", ""},
    {Role::Operator, Kind::ApiToken, "lrv", ""},
    {Role::Operator, Kind::ServiceAccount, "lrv", ""},
    {Role::Supplier, Kind::Principal, "lr", ""},
    {Role::Supplier, Kind::ApiToken, "lrv", ""},
    {Role::Supplier, Kind::ServiceAccount, "lrv", ""},
    {Role::Tenant, Kind::Principal, "lr", ""},
    {Role::Tenant, Kind::ApiToken, "lrv", ""},
    {Role::Tenant, Kind::ServiceAccount, "lrv", ""},
    {Role::Auditor, Kind::Principal, "lr", ""},
    {Role::Auditor, Kind::ApiToken, "lrv", ""},
    {Role::Auditor, Kind::ServiceAccount, "lr", ""},
    {Role::TenantAdmin, Kind::Principal, "lr", ""},
    {Role::TenantAdmin, Kind::ApiToken, "lrv", ""},
    {Role::TenantAdmin, Kind::ServiceAccount, "lrv", ""},
    {Role::TenantViewer, Kind::Principal, "lr", ""},
    {Role::TenantViewer, Kind::ApiToken, "lrv", ""},
    {Role::TenantViewer, Kind::ServiceAccount, "lrv", ""},
    {Role::SupplierMember, Kind::Principal, "lr", ""},
    {Role::SupplierMember, Kind::ApiToken, "lrv", ""},
    {Role::SupplierMember, Kind::ServiceAccount, "lrv", ""},
};

TEST(Access, AServiceAccountMakesNoAccountsAndNoTokens) {
  for (const ProgramExpectation& e : kPrograms) {
    Subject subject = person(e.role);
    subject.service = true;
    const auto may = [&](PrincipalId of) {
      std::string out;
      for (std::size_t i = 0; i < kLetters.size(); ++i)
        if (check(subject, static_cast<Verb>(i), {.kind = e.kind, .owner = kOwn, .principal = of}).ok())
          out += kLetters[i];
      return out;
    };
    const std::string where =
        "role " + std::to_string(static_cast<int>(e.role)) + ", " + std::string(kind_name(e.kind));
    EXPECT_EQ(may(kMe), e.self) << where;
    EXPECT_EQ(may(kOther), e.other) << where;
  }
  for (const Expectation& e : kMatrix) {
    if (e.kind == Kind::Principal || e.kind == Kind::ApiToken || e.kind == Kind::ServiceAccount ||
        e.kind == Kind::Grant || e.kind == Kind::BreakGlass)
      continue;
    Subject subject = person(e.role);
    subject.service = true;
    EXPECT_EQ(verbs(subject, e.kind, true), e.own) << kind_name(e.kind) << ": as a person of the role";
    EXPECT_EQ(verbs(subject, e.kind, false), e.foreign) << kind_name(e.kind);
  }
}

TEST(Access, AServiceAccountGetsNoRoleThatMayMoreThanItsMaker) {
  const auto given = [](Role maker) {  // none, operator, supplier, tenant, auditor, admin, viewer, supplier's member
    std::string out;
    for (int role = 0; role < 8; ++role) out += may_give(person(maker), static_cast<Role>(role)).ok() ? 'y' : '-';
    return out;
  };
  EXPECT_EQ(given(Role::None), "--------");
  EXPECT_EQ(given(Role::Operator), "-yyyyyyy");
  EXPECT_EQ(given(Role::Supplier), "--y----y");
  EXPECT_EQ(given(Role::Tenant), "---y--y-");
  EXPECT_EQ(given(Role::Auditor), "--------");
  EXPECT_EQ(given(Role::TenantAdmin), "---y-yy-");
  EXPECT_EQ(given(Role::TenantViewer), "--------");
  EXPECT_EQ(given(Role::SupplierMember), "--------");
}

TEST(Access, AViewersTokensOnlyRead) {
  EXPECT_TRUE(fit_for_token(Role::TenantViewer, {"read"}).ok());
  const std::vector<std::vector<std::string>> others{{}, {"admin"}, {"clusters"}, {"read", "admin"}, {"read", "nodes"}};
  for (const std::vector<std::string>& scopes : others)
    EXPECT_EQ(fit_for_token(Role::TenantViewer, scopes).error().field, "scopes");
  for (const Role role :
       {Role::Operator, Role::Supplier, Role::Tenant, Role::Auditor, Role::TenantAdmin, Role::SupplierMember})
    EXPECT_TRUE(fit_for_token(role, {}).ok());
}

// By hand: what each right is on a cluster and on a job that is another organisation's.
struct RightExpectation {
  Right right;
  std::string_view cluster, job;
};
constexpr RightExpectation kRights[] = {
    {Right::None, "", ""},         {Right::Look, "lr", "lr"},
    {Right::Logs, "lrg", "lrg"},   {Right::Submit, "lrgs", "lrgst"},
    {Right::Exec, "lrxfg", "lrg"}, {Right::Manage, "lrudxfgst", "lrudgst"},
};

TEST(Access, AGrantGivesItsRightOnItsClusterOrProjectAlone) {
  constexpr ProjectId kProject{20}, kOtherProject{21};
  constexpr ClusterId kCluster{30}, kOtherCluster{31};
  const auto may = [](const Subject& subject, Kind kind, ProjectId project, ClusterId cluster, OrgId owner = kForeign) {
    std::string out;
    for (std::size_t i = 0; i < kLetters.size(); ++i)
      if (check(subject, static_cast<Verb>(i), {.kind = kind, .owner = owner, .project = project, .cluster = cluster})
              .ok())
        out += kLetters[i];
    return out;
  };
  for (const RightExpectation& e : kRights) {
    Subject subject = person(Role::Tenant);
    subject.grants = {{GrantId{1}, kForeign, kProject, kCluster, e.right}};
    EXPECT_EQ(may(subject, Kind::Cluster, kProject, kCluster), e.cluster) << right_name(e.right);
    EXPECT_EQ(may(subject, Kind::Job, kProject, kCluster), e.job) << right_name(e.right);
    for (const Kind kind : {Kind::Cluster, Kind::Job}) {
      EXPECT_EQ(may(subject, kind, kProject, kOtherCluster), "") << right_name(e.right);
      EXPECT_EQ(may(subject, kind, kOtherProject, kOtherCluster), "") << right_name(e.right);
      EXPECT_EQ(may(subject, kind, kProject, kCluster, OrgId{3}), "") << "nobody's word but the owner's";
    }
    for (const Kind kind : {Kind::Project, Kind::Org, Kind::Blob, Kind::Registry, Kind::ApiToken, Kind::Principal,
                            Kind::Grant, Kind::Audit, Kind::JoinToken, Kind::Telemetry})
      EXPECT_EQ(may(subject, kind, kProject, kCluster), "") << kind_name(kind);
    subject.grants = {{GrantId{1}, kForeign, kProject, {}, e.right}};
    EXPECT_EQ(may(subject, Kind::Cluster, kProject, kOtherCluster), e.cluster) << "of the project";
    EXPECT_EQ(may(subject, Kind::Job, kProject, kOtherCluster), e.job);
    EXPECT_EQ(may(subject, Kind::Cluster, kOtherProject, kOtherCluster), "");
  }
  for (const RightExpectation& e : kRights) {  // given to his organisation or to him: he only looks
    Subject viewer = person(Role::TenantViewer);
    viewer.grants = {{GrantId{1}, kForeign, kProject, kCluster, e.right}};
    const std::string_view sees = e.right == Right::None ? "" : e.right == Right::Look ? "lr" : "lrg";
    EXPECT_EQ(may(viewer, Kind::Cluster, kProject, kCluster), sees) << right_name(e.right);
    EXPECT_EQ(may(viewer, Kind::Job, kProject, kCluster), sees) << right_name(e.right);
  }
  Subject narrow = person(Role::Tenant);
  narrow.grants = {{GrantId{1}, kForeign, kProject, kCluster, Right::Manage}};
  narrow.scopes = {"read"};
  EXPECT_EQ(may(narrow, Kind::Cluster, kProject, kCluster), "lr") << "scopes narrow grants too";
  narrow.scopes = {"nodes"};
  EXPECT_EQ(may(narrow, Kind::Cluster, kProject, kCluster), "");
  Subject machine = device(7);
  machine.grants = {{GrantId{1}, kForeign, kProject, kCluster, Right::Manage}};
  EXPECT_EQ(may(machine, Kind::Cluster, kProject, kCluster), "");
}

TEST(Access, WhatRestsOnAGrantAloneIsKnown) {
  Subject subject = person(Role::Operator);
  subject.grants = {{GrantId{4}, kForeign, ProjectId{20}, ClusterId{30}, Right::Exec}};
  const Object object{.kind = Kind::Cluster, .owner = kForeign, .project = ProjectId{20}, .cluster = ClusterId{30}};
  EXPECT_TRUE(check(subject, Verb::Exec, object).ok());
  EXPECT_EQ(grant_used(subject, Verb::Exec, object), GrantId{4});
  EXPECT_EQ(grant_used(subject, Verb::Stop, object), GrantId{}) << "an operator's role allows that";
  subject.grants.clear();
  EXPECT_FALSE(check(subject, Verb::Exec, object).ok());
  EXPECT_EQ(grant_used(subject, Verb::Exec, object), GrantId{});
  for (const Right right : {Right::None, Right::Look, Right::Logs, Right::Submit, Right::Exec, Right::Manage}) {
    EXPECT_EQ(may_be_granted(right, false).ok(), right != Right::None) << right_name(right);
    EXPECT_EQ(may_be_granted(right, true).ok(), right == Right::Logs || right == Right::Exec) << right_name(right);
  }
}

}  // namespace
}  // namespace muster::access
