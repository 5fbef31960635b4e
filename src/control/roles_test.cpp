// Roles within an organisation, as the core decides about them.
#include <gtest/gtest.h>

#include "control/control_world.h"

namespace muster::control {
namespace {

struct RoleWorld : World {
  OrgId other = OrgId::parse(must(CreateOrg{"other"}).id).value();
  PrincipalId add(const char* name, Role role, OrgId org) {
    return PrincipalId::parse(must(CreatePrincipal{name, role, org}).id).value();
  }
  // Whoever asks is what the account is: the role that is said here does not matter.
  Actor who(PrincipalId id) const { return as(Role::Operator, {}, id); }
  Result<Outcome> change(PrincipalId id, Role role, PrincipalId by) { return run(ChangePrincipal{id, role}, who(by)); }
  Role role_of(PrincipalId id) const { return state.principals.at(id).role; }
};

TEST(Roles, FromTheFirstAdministratorOnMembersNoLongerAdministrate) {
  RoleWorld w;
  const auto all = [&](PrincipalId by) {
    std::string out;
    static int n = 0;
    const std::string name = "n" + std::to_string(++n);
    const Bytes hash(32, static_cast<std::uint8_t>(100 + n));
    const auto may = [&](const Command& command) { out += w.run(command, w.who(by)).ok() ? 'y' : '-'; };
    may(CreateProject{w.tenant, name});
    may(SetQuota{{}, w.project, {n, 0, 0}});
    may(SetImagePolicy{{}, w.project, {{}, {name}, false, {}}});
    may(CreateServiceAccount{w.tenant, name, Role::Tenant, ""});
    may(CreateJoinToken{w.tenant, hash, {}, 1h});
    may(GrantAccess{false, w.project, {}, {}, w.other, Right::Look, "", 1h});
    ClusterSpec spec = World::spec();
    spec.name = name;
    may(CreateCluster{w.project, spec});
    return out;
  };
  const PrincipalId bob = w.add("bob", Role::Tenant, w.other);
  EXPECT_EQ(all(w.alice), "yyyyyyy") << "nobody else could";
  const PrincipalId ann = w.add("ann", Role::TenantAdmin, w.tenant);
  EXPECT_TRUE(w.state.orgs.at(w.tenant).administered);
  EXPECT_FALSE(w.state.orgs.at(w.other).administered);
  EXPECT_EQ(all(w.alice), "------y");
  EXPECT_EQ(all(ann), "yyyyyyy");
  EXPECT_EQ(all(w.add("vera", Role::TenantViewer, w.tenant)), "-------");
  EXPECT_EQ(all(bob), "-------");
  w.must(DisablePrincipal{ann});
  EXPECT_EQ(all(w.alice), "------y") << "it is for good: who ends the last one takes nothing over";
  EXPECT_EQ(all(ann), "-------");
  EXPECT_TRUE(decode_state(encode_state(w.state)).value() == w.state);
}

TEST(Roles, AnAdministratorHasASayInHisOwnAccountsAlone) {
  RoleWorld w;
  const PrincipalId ann = w.add("ann", Role::TenantAdmin, w.tenant), bob = w.add("bob", Role::Tenant, w.other);
  const PrincipalId root = w.add("root", Role::Operator, w.tenant), eve = w.add("eve", Role::Auditor, w.tenant);
  const PrincipalId sup = w.add("sup", Role::Supplier, w.tenant);
  const auto made = [&](const char* name, Role role, OrgId org, PrincipalId by) {
    return w.run(CreatePrincipal{name, role, org}, w.who(by));
  };
  for (const Role role : {Role::Tenant, Role::TenantViewer, Role::TenantAdmin}) {
    const std::string name = "m" + std::to_string(static_cast<int>(role));
    EXPECT_TRUE(made(name.c_str(), role, w.tenant, ann).ok());
    EXPECT_FALSE(made("x", role, w.other, ann).ok());
    EXPECT_FALSE(made("x", role, w.tenant, w.alice).ok()) << "members make no accounts";
    EXPECT_FALSE(made("x", role, w.other, bob).ok()) << "neither do those without an administrator";
    EXPECT_TRUE(w.change(w.alice, role, ann).ok());
    EXPECT_EQ(w.change(bob, role, ann).error().code, Code::NotFound);
    for (const PrincipalId each : {root, eve, sup})
      EXPECT_EQ(w.change(each, role, ann).error().code, Code::NotFound) << "not his to make less either";
    EXPECT_EQ(w.change(w.alice, role, w.alice).ok(), w.role_of(w.alice) == Role::TenantAdmin);
  }
  for (const Role role : {Role::Operator, Role::Auditor, Role::Supplier, Role::SupplierMember, Role::None}) {
    EXPECT_FALSE(made("x", role, w.tenant, ann).ok()) << static_cast<int>(role);
    EXPECT_FALSE(w.change(w.alice, role, ann).ok()) << static_cast<int>(role);
    EXPECT_FALSE(w.change(ann, role, ann).ok()) << "nor himself: " << static_cast<int>(role);
  }
  for (const PrincipalId each : {root, eve, sup, bob})
    EXPECT_EQ(w.run(DisablePrincipal{each}, w.who(ann)).error().code, Code::NotFound);
  EXPECT_FALSE(w.run(DisablePrincipal{ann}, w.who(ann)).ok());
  EXPECT_TRUE(w.run(DisablePrincipal{w.alice}, w.who(ann)).ok());
  EXPECT_FALSE(w.run(ChangePrincipal{ann, Role::Tenant, w.other}, w.who(root)).ok()) << "nobody is moved by hand";
  EXPECT_TRUE(w.change(bob, Role::Supplier, root).ok()) << "operators anybody, to anything";
  EXPECT_EQ(w.role_of(bob), Role::Supplier);
}

TEST(Roles, ASuppliersOwnerHasMembers) {
  RoleWorld w;
  const PrincipalId sup = w.add("sup", Role::Supplier, w.supplier), two = w.add("two", Role::Supplier, w.supplier);
  const NodeId box = w.enrol();
  const auto made = w.run(CreatePrincipal{"mem", Role::SupplierMember, w.supplier}, w.who(sup));
  ASSERT_TRUE(made.ok()) << made.error().message;
  const PrincipalId mem = PrincipalId::parse(made->id).value();
  using Action = SetNode::Action;
  for (const Action action : {Action::Drain, Action::Undrain, Action::Disable, Action::Enable})
    EXPECT_TRUE(w.run(SetNode{box, action}, w.who(mem)).ok());
  Offer offer;
  offer.currency = "EUR", offer.price = offer.floor = 1'000'000;
  EXPECT_FALSE(w.run(SetNode{box, Action::Revoke}, w.who(mem)).ok()) << "it cannot be undone";
  EXPECT_FALSE(w.run(SetOffer{box, offer}, w.who(mem)).ok());
  EXPECT_FALSE(w.run(CreateJoinToken{w.supplier, Bytes(32, 77), {}, 1h}, w.who(mem)).ok());
  EXPECT_TRUE(w.run(SetOffer{box, offer}, w.who(sup)).ok());
  EXPECT_FALSE(w.change(mem, Role::Supplier, sup).ok()) << "owners are made by operators";
  EXPECT_EQ(w.run(DisablePrincipal{two}, w.who(sup)).error().code, Code::NotFound) << "owners are each other's equals";
  EXPECT_TRUE(w.run(DisablePrincipal{mem}, w.who(sup)).ok());
}

TEST(Roles, TheLastAdministratorStays) {
  RoleWorld w;
  const PrincipalId ann = w.add("ann", Role::TenantAdmin, w.tenant), root = w.add("root", Role::Operator, {});
  w.add("other-admin", Role::TenantAdmin, w.other);
  w.must(CreateServiceAccount{w.tenant, "ci", Role::TenantAdmin, ""}, w.who(ann));
  for (const PrincipalId by : {ann, root}) {
    const auto refused = w.change(ann, Role::Tenant, by);
    EXPECT_EQ(refused.error().code, Code::FailedPrecondition) << "another organisation's and programs do not count";
    EXPECT_NE(refused.error().message.find("another tenant-admin"), std::string::npos);
  }
  ASSERT_TRUE(w.change(w.alice, Role::TenantAdmin, ann).ok());
  ASSERT_TRUE(w.change(ann, Role::Tenant, w.alice).ok());
  EXPECT_EQ(w.change(w.alice, Role::Tenant, ann).error().code, Code::NotFound) << "what he was counts no longer";
  EXPECT_TRUE(w.run(ChangePrincipal{w.alice, Role::TenantViewer}).ok()) << "who the provider says has left has left";
  EXPECT_TRUE(w.change(ann, Role::TenantAdmin, root).ok()) << "operators name another";
}

TEST(Roles, RightsAreThoseOfTheAccountAtCommit) {
  RoleWorld w;
  const PrincipalId ann = w.add("ann", Role::TenantAdmin, w.tenant), ben = w.add("ben", Role::TenantAdmin, w.tenant);
  Actor asked = w.as(Role::TenantAdmin, w.tenant, ben);  // as it was when the request came in
  ASSERT_TRUE(w.change(ben, Role::TenantViewer, ann).ok());
  EXPECT_FALSE(w.run(CreateProject{w.tenant, "late"}, asked).ok());
  EXPECT_FALSE(w.run(CreateCluster{w.project, World::spec()}, asked).ok());
  w.must(DisablePrincipal{ben});
  ASSERT_FALSE(w.run(CreateApiToken{ben, Bytes(32, 3), "t", {"read"}, 1h}, asked).ok());
  Actor program = w.as(Role::TenantAdmin, w.tenant, ann);
  program.subject.scopes = {"read"};
  EXPECT_FALSE(w.run(CreateProject{w.tenant, "scoped"}, program).ok()) << "a token's scopes stay what they are";
}

TEST(Roles, AnotherRoleEndsLoginsAndTokensWithAllRights) {
  RoleWorld w;
  const PrincipalId root = w.add("root", Role::Operator, {});
  const auto token = [&](std::uint8_t n, std::vector<std::string> scopes, Bytes refresh = {}) {
    return TokenId::parse(w.must(CreateApiToken{w.alice, Bytes(32, n), "t", std::move(scopes), 1h, refresh}).id)
        .value();
  };
  const TokenId login = token(1, {}, Bytes(32, 9)), plain = token(2, {}), narrow = token(3, {"read"}),
                wide = token(4, {"read", "admin"});
  const auto revoked = [&](TokenId id) { return w.state.api_tokens.at(id).revoked; };
  ASSERT_TRUE(w.change(w.alice, Role::Tenant, root).ok());
  EXPECT_FALSE(revoked(login)) << "the same role is no change";
  ASSERT_TRUE(w.change(w.alice, Role::TenantViewer, root).ok());
  EXPECT_TRUE(revoked(login) && revoked(plain) && revoked(wide));
  EXPECT_FALSE(revoked(narrow));
}

TEST(Roles, AViewerMakesTokensThatOnlyRead) {
  RoleWorld w;
  const PrincipalId vera = w.add("vera", Role::TenantViewer, w.tenant);
  std::uint8_t n = 0;
  const auto token = [&](std::vector<std::string> scopes, Bytes refresh = {}) {
    return w.run(CreateApiToken{vera, Bytes(32, ++n), "t", std::move(scopes), 1h, std::move(refresh)}, w.who(vera));
  };
  EXPECT_TRUE(token({"read"}).ok());
  EXPECT_EQ(token({}).error().field, "scopes");
  EXPECT_EQ(token({"clusters"}).error().field, "scopes");
  EXPECT_TRUE(token({}, Bytes(32, 99)).ok()) << "a login";
}

TEST(Roles, WhatAViewerIsGivenIsToLook) {
  RoleWorld w;
  const PrincipalId vera = w.add("vera", Role::TenantViewer, w.other);
  const auto given = [&](Right right) {
    return w.run(GrantAccess{false, w.project, {}, vera, {}, right, "", 1h}, w.user());
  };
  EXPECT_EQ(given(Right::Exec).error().field, "right");
  EXPECT_EQ(given(Right::Manage).error().field, "right");
  EXPECT_TRUE(given(Right::Logs).ok());
  const PrincipalId own = w.add("own", Role::TenantViewer, w.tenant);
  const auto inside = w.run(GrantAccess{false, w.project, {}, own, {}, Right::Logs, "", 1h}, w.user());
  EXPECT_EQ(inside.error().field, "to");
}

TEST(Roles, RaiseAnOldJournalToTheFormatThatKeepsThem) {
  const auto format_after = [](const auto& ask) {
    RoleWorld w;
    w.state.format_version = 8;
    ask(w);
    return w.state.format_version;
  };
  EXPECT_EQ(kRoleFormat, 9U);
  for (const Role role : {Role::TenantAdmin, Role::TenantViewer, Role::SupplierMember}) {
    EXPECT_EQ(format_after([&](RoleWorld& w) { w.add("new", role, w.tenant); }), kRoleFormat);
    EXPECT_EQ(format_after([&](RoleWorld& w) { w.must(ChangePrincipal{w.alice, role}); }), kRoleFormat);
    EXPECT_EQ(format_after([&](RoleWorld& w) { w.must(CreateServiceAccount{w.tenant, "ci", role, ""}); }), kRoleFormat);
  }
  EXPECT_EQ(format_after([](RoleWorld& w) { w.add("new", Role::Auditor, w.tenant); }), 8U) << "as it always was";
  EXPECT_EQ(format_after([](RoleWorld& w) { w.must(ChangePrincipal{w.alice, Role::Auditor}); }), 8U);
}

}  // namespace
}  // namespace muster::control
