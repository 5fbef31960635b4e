// Accounts of programs, as the core decides about them.
#include <gtest/gtest.h>

#include "control/control_world.h"

namespace muster::control {
namespace {

Actor program(const World& w, PrincipalId id) {
  Actor actor = w.as(Role::Tenant, w.tenant, id);
  actor.subject.service = true;
  return actor;
}

TEST(ServiceAccounts, BelongToTheirOrganisation) {
  World w;
  const OrgId other = OrgId::parse(w.must(CreateOrg{"other"}).id).value();
  const auto make = [&](const char* name, Role role, OrgId org, const Actor& actor) {
    return w.run(CreateServiceAccount{org, name, role, "nightly"}, actor);
  };
  const PrincipalId ci = PrincipalId::parse(make("ci", Role::Tenant, w.tenant, w.user())->id).value();
  const Principal& made = w.state.principals.at(ci);
  EXPECT_TRUE(made.service);
  EXPECT_EQ(made.made_by, w.alice);
  EXPECT_EQ(made.note, "nightly");
  EXPECT_FALSE(w.state.principal_by_name.contains("ci")) << "nobody logs in by its name";
  EXPECT_EQ(make("ci", Role::Tenant, w.tenant, w.user()).error().code, Code::AlreadyExists);
  EXPECT_TRUE(make("ci", Role::Tenant, other, w.as(Role::Tenant, other)).ok())
      << "another organisation's names are its own";
  EXPECT_EQ(make("x", Role::Tenant, other, w.user()).error().code, Code::PermissionDenied);
  for (const Role role : {Role::Operator, Role::Auditor, Role::Supplier, Role::None})
    EXPECT_FALSE(make("x", role, w.tenant, w.user()).ok()) << static_cast<int>(role);
  EXPECT_TRUE(make("root", Role::Operator, {}, w.as(Role::Operator, {})).ok());
  EXPECT_FALSE(make("x", Role::Tenant, w.tenant, program(w, ci)).ok()) << "programs make no accounts";
  EXPECT_FALSE(make("x", Role::Auditor, {}, w.as(Role::Auditor, {})).ok()) << "auditors change nothing";
  EXPECT_TRUE(decode_state(encode_state(w.state)).value() == w.state);
}

TEST(ServiceAccounts, TheirTokensAreTheirOrganisationsBusiness) {
  World w;
  const OrgId other = OrgId::parse(w.must(CreateOrg{"other"}).id).value();
  const auto account = [&](Role role) {
    return PrincipalId::parse(
               w.must(CreateServiceAccount{w.tenant, "a" + std::to_string(static_cast<int>(role)), role, ""}).id)
        .value();
  };
  const PrincipalId ci = account(Role::Tenant), root = account(Role::Operator);
  std::uint8_t n = 0;
  const auto token = [&](PrincipalId owner, const Actor& actor, Millis lifetime = 1h) {
    return w.run(CreateApiToken{owner, Bytes(32, ++n), "t", {"clusters"}, lifetime}, actor);
  };
  const auto made = token(ci, w.user());
  ASSERT_TRUE(made.ok()) << made.error().message;
  EXPECT_EQ(token(ci, w.user(), Millis(0)).error().field, "lifetime");
  EXPECT_FALSE(token(ci, program(w, ci)).ok()) << "or a stolen token would make itself another one";
  EXPECT_FALSE(token(root, w.user()).ok()) << "its role is more than the member's";
  EXPECT_EQ(token(ci, w.as(Role::Tenant, other)).error().code, Code::NotFound);
  const TokenId id = TokenId::parse(made->id).value();
  EXPECT_EQ(w.run(RevokeApiToken{id}, w.as(Role::Tenant, other)).error().code, Code::NotFound);
  EXPECT_TRUE(w.run(RevokeApiToken{id}, w.as(Role::Tenant, w.tenant, PrincipalId{77})).ok()) << "any member ends it";
  const TokenId own = TokenId::parse(token(ci, w.user())->id).value();
  EXPECT_TRUE(w.run(RevokeApiToken{own}, program(w, ci)).ok());
  const TokenId alices = TokenId::parse(w.must(CreateApiToken{w.alice, Bytes(32, 99), "a", {}, 1h}).id).value();
  EXPECT_FALSE(w.run(RevokeApiToken{alices}, w.as(Role::Tenant, w.tenant, PrincipalId{77})).ok())
      << "a person's tokens are his own";
}

TEST(ServiceAccounts, AreDisabledForGoodAndTheNameIsFree) {
  World w;
  const OrgId other = OrgId::parse(w.must(CreateOrg{"other"}).id).value();
  const PrincipalId ci =
      PrincipalId::parse(w.must(CreateServiceAccount{w.tenant, "ci", Role::Tenant, ""}, w.user()).id).value();
  EXPECT_EQ(w.run(DisablePrincipal{ci}, w.as(Role::Tenant, other)).error().code, Code::NotFound);
  EXPECT_FALSE(w.run(DisablePrincipal{ci}, program(w, ci)).ok());
  EXPECT_FALSE(w.run(DisablePrincipal{w.alice}, w.as(Role::Tenant, w.tenant, PrincipalId{77})).ok())
      << "people are no service accounts";
  EXPECT_TRUE(w.run(DisablePrincipal{ci}, w.user()).ok());
  EXPECT_FALSE(w.run(CreateApiToken{ci, Bytes(32, 1), "t", {}, 1h}, w.user()).ok());
  EXPECT_TRUE(w.run(CreateServiceAccount{w.tenant, "ci", Role::Tenant, ""}, w.user()).ok());
  EXPECT_FALSE(w.run(ChangePrincipal{ci, Role::Operator, {}}).ok());
  EXPECT_TRUE(decode_state(encode_state(w.state)).value() == w.state);
}

TEST(ServiceAccounts, ArePartOfABound) {
  World w;
  for (int i = 0; i < 500; ++i) {
    const std::string name = "s" + std::to_string(i);
    const PrincipalId id =
        PrincipalId::parse(w.must(CreateServiceAccount{w.tenant, name, Role::Tenant, ""}, w.user()).id).value();
    w.must(DisablePrincipal{id}, w.user());
  }
  EXPECT_EQ(w.run(CreateServiceAccount{w.tenant, "one-more", Role::Tenant, ""}, w.user()).error().code,
            Code::ResourceExhausted);
}

TEST(ServiceAccounts, RaiseAnOldJournalToTheFormatThatKeepsThem) {
  World w;
  w.state.format_version = 7;
  w.must(CreateServiceAccount{w.tenant, "ci", Role::Tenant, ""}, w.user());
  EXPECT_EQ(w.state.format_version, kAccessFormat);
}

}  // namespace
}  // namespace muster::control
