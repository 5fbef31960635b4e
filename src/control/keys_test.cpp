// Which keys sign, as the journal keeps it.
#include <gtest/gtest.h>

#include "control/control_world.h"

namespace muster::control {
namespace {

SigningKeyRow key_row(char name, std::int64_t from, std::int64_t until = 0) {
  return {1, std::string(16, name), WallTime{from}, WallTime{until}};
}

SigningKeysNoted last_note(const World& w) {
  SigningKeysNoted out;
  for (const Event& event : w.journal)
    if (const auto* noted = std::get_if<SigningKeysNoted>(&event)) out = *noted;
  return out;
}

TEST(SigningKeysNote, SaysWhatChangedOnce) {
  World w;
  const auto noted = [&] { return w.count<SigningKeysNoted>(); };
  w.must(NoteSigningKeys{5, {key_row('a', 0)}});
  EXPECT_EQ(noted(), 0) << "those that came with the platform are no news";
  EXPECT_FALSE(w.run(NoteSigningKeys{6, {key_row('b', 7)}}, w.user()).ok()) << "the signer's word only";
  w.must(NoteSigningKeys{6, {key_row('a', 0, 9), key_row('b', 7)}});
  EXPECT_EQ(noted(), 1);
  EXPECT_EQ(last_note(w).added, std::vector{key_row('b', 7)});
  EXPECT_TRUE(last_note(w).removed.empty());
  w.must(NoteSigningKeys{6, {key_row('a', 0, 9), key_row('b', 7)}});
  w.must(NoteSigningKeys{5, {key_row('c', 7)}});
  EXPECT_EQ(noted(), 1) << "a repeat, and what is older";
  w.must(NoteSigningKeys{8, {key_row('b', 7)}});
  EXPECT_EQ(last_note(w).removed, std::vector{key_row('a', 0, 9)});
  EXPECT_TRUE(decode_state(encode_state(w.state)).value() == w.state);
}

TEST(SigningKeysNote, RaisesAnOldJournalToTheFormatThatKeepsIt) {
  World w;
  w.state.format_version = 1;
  w.must(NoteSigningKeys{5, {key_row('a', 0)}});
  EXPECT_EQ(w.state.format_version, 1u) << "nothing was written";
  w.must(NoteSigningKeys{6, {key_row('b', 7)}});
  EXPECT_EQ(w.state.format_version, kKeysFormat);
}

TEST(PrincipalChange, OnlyTheSystemMovesOneAndTheLastOperatorStays) {
  World w;
  const OrgId art = OrgId::parse(w.must(CreateOrg{"art"}).id).value();
  const auto change = [&](PrincipalId who, Role role, OrgId org) { return w.run(ChangePrincipal{who, role, org}); };
  for (const Role role : {Role::Operator, Role::Tenant, Role::Auditor})
    EXPECT_FALSE(w.run(ChangePrincipal{w.alice, Role::Operator, art}, w.as(role, w.tenant)).ok());
  ASSERT_TRUE(change(w.alice, Role::Auditor, art).ok());
  EXPECT_EQ(w.state.principals.at(w.alice).role, Role::Auditor);
  EXPECT_EQ(w.state.principals.at(w.alice).org, art);
  const int before = w.count<PrincipalChanged>();
  ASSERT_TRUE(change(w.alice, Role::Auditor, art).ok());
  EXPECT_EQ(w.count<PrincipalChanged>(), before) << "nothing changed";
  EXPECT_EQ(change(w.alice, Role::Tenant, OrgId{99}).error().field, "org");
  EXPECT_EQ(change(w.alice, Role::Tenant, {}).error().field, "org");
  EXPECT_EQ(change(w.alice, Role::None, art).error().field, "role");
  EXPECT_EQ(change(PrincipalId{999}, Role::Tenant, art).error().code, Code::NotFound);
  const auto made = [&](const char* name, Role role) {
    return PrincipalId::parse(w.must(CreatePrincipal{name, role, art}).id).value();
  };
  for (const auto& [id, each] : std::map(w.state.principals))
    if (each.role == Role::Operator) w.must(DisablePrincipal{id});
  const PrincipalId only = made("only", Role::Operator);
  EXPECT_EQ(change(only, Role::Tenant, art).error().code, Code::FailedPrecondition);
  made("second", Role::Operator);
  EXPECT_TRUE(change(only, Role::Tenant, art).ok());
  w.must(DisablePrincipal{only});
  EXPECT_EQ(change(only, Role::Operator, art).error().code, Code::FailedPrecondition) << "it stays off";
  w.state.format_version = 1;
  ASSERT_TRUE(change(w.alice, Role::Tenant, art).ok());
  EXPECT_EQ(w.state.format_version, kKeysFormat);
}

}  // namespace
}  // namespace muster::control
