// Logins by an identity provider without the network: the provider is played by the test, the journal is real.
#include <gtest/gtest.h>

#include <algorithm>

#include "crypto/random.h"
#include "crypto/sign.h"
#include "server/sso_people.h"
#include "server/sso_provider.h"
#include "server/sso_table.h"
#include "server/test_store.h"

namespace muster::server {
namespace {

using wire::Json;

const std::string kIssuer = "https://login.example";

// A provider with one key at a time. What it answers at its token endpoint is the test's to change.
struct PlayedProvider {
  crypto::SigningKey key = crypto::SigningKey::generate();
  std::string key_id = "k1", nonce = "n", subject = "s-1", userinfo_subject = "s-1", says_issuer = kIssuer;
  bool down = false;
  std::vector<std::string> asked;  // method and URL
  net::Client::Call last_post;

  std::string id_token() const {
    const std::int64_t now = read_clocks().wall.ms / 1000;
    Json head = Json::object(), claims = Json::object();
    head.set("alg", Json::string("EdDSA")).set("kid", Json::string(key_id));
    claims.set("iss", Json::string(kIssuer)).set("sub", Json::string(subject)).set("aud", Json::string("muster"));
    claims.set("exp", Json::number(now + 300)).set("iat", Json::number(now)).set("nonce", Json::string(nonce));
    const std::string both = base64url(as_bytes(head.dump())) + "." + base64url(as_bytes(claims.dump()));
    return both + "." + base64url(key.sign(as_bytes(both)));
  }
  Result<net::Response> answer(const std::string& url, const net::Client::Call& call) {
    asked.push_back(call.method + " " + url);
    if (down) return error(Code::Unavailable, "connection refused");
    Json body = Json::object();
    if (url == kIssuer + "/.well-known/openid-configuration") {
      body.set("issuer", Json::string(says_issuer));
      for (const char* each : {"authorization", "token", "userinfo", "device_authorization"})
        body.set(std::string(each) + "_endpoint", Json::string(kIssuer + "/" + each));
      body.set("jwks_uri", Json::string(kIssuer + "/jwks"));
    } else if (url == kIssuer + "/jwks") {
      Json one = Json::object(), keys = Json::array();
      one.set("kty", Json::string("OKP")).set("crv", Json::string("Ed25519")).set("kid", Json::string(key_id));
      one.set("x", Json::string(base64url(key.public_key())));
      body.set("keys", keys.push(one));
    } else if (url == kIssuer + "/token") {
      last_post = call;
      body.set("id_token", Json::string(id_token())).set("access_token", Json::string("at"));
    } else if (url == kIssuer + "/userinfo") {
      EXPECT_EQ(call.headers.at("Authorization"), "Bearer at");
      body.set("sub", Json::string(userinfo_subject)).set("groups", Json::array().push(Json::string("ml")));
    } else {
      return net::Response{404, "text/plain", {}, "no"};
    }
    return net::Response{200, "application/json", {}, body.dump()};
  }
  long count(const std::string& what) const { return std::count(asked.begin(), asked.end(), what); }
};

SsoProvider::Options played(PlayedProvider& by, const std::string& more = "") {
  SsoProvider::Options out;
  out.settings = *oidc::parse_settings(R"({"issuer":")" + kIssuer + R"(","clientId":"muster")" + more + "}");
  out.secret = "s3 cret";
  out.fetch = [&by](const std::string& url, const net::Client::Call& call) { return by.answer(url, call); };
  return out;
}
SsoProvider::BrowserCode some_code() {
  return {"c", "http://127.0.0.1:7/callback", "v", "n", ""};
}

TEST(SsoWithProvider, ExchangesACodeWithItsSecretAndAsksForKeysOnce) {
  PlayedProvider played_by;
  SsoProvider provider(played(played_by));
  const auto url = provider.authorization_url("http://127.0.0.1:7/callback", "st", "n", "v");
  ASSERT_TRUE(url.ok()) << url.error().message;
  EXPECT_TRUE(url->starts_with(kIssuer + "/authorization?response_type=code&client_id=muster&")) << *url;
  for (int i = 0; i < 3; ++i) {
    const auto claims = provider.claims_of_code(some_code());
    ASSERT_TRUE(claims.ok()) << claims.error().message;
    EXPECT_EQ((*claims)["sub"].text(), "s-1");
  }
  EXPECT_EQ(played_by.last_post.headers["Authorization"], "Basic " + base64(as_bytes("muster:s3%20cret")));
  EXPECT_EQ(played_by.last_post.body.find("cret"), std::string::npos);
  EXPECT_NE(played_by.last_post.body.find("code_verifier=v"), std::string::npos);
  EXPECT_EQ(played_by.count("GET " + kIssuer + "/jwks"), 1);
  EXPECT_EQ(played_by.count("GET " + kIssuer + "/.well-known/openid-configuration"), 1);
  EXPECT_EQ(played_by.count("GET " + kIssuer + "/userinfo"), 0) << "no rule asks for more";
  auto other = some_code();
  other.issuer = "https://evil.example";
  EXPECT_EQ(provider.claims_of_code(other).error().field, "iss");
  other = some_code();
  other.nonce = "another";
  EXPECT_EQ(provider.claims_of_code(other).error().field, "nonce");
}

TEST(SsoWithProvider, NewKeysAreFetchedOnceForAnUnknownOne) {
  PlayedProvider played_by;
  SsoProvider provider(played(played_by));
  ASSERT_TRUE(provider.claims_of_code(some_code()).ok());
  played_by.key = crypto::SigningKey::generate();
  played_by.key_id = "k2";
  EXPECT_TRUE(provider.claims_of_code(some_code()).ok()) << "it rotated its keys";
  EXPECT_EQ(played_by.count("GET " + kIssuer + "/jwks"), 2);
  played_by.key_id = "k3";
  for (int i = 0; i < 5; ++i) EXPECT_EQ(provider.claims_of_code(some_code()).error().field, "kid");
  EXPECT_EQ(played_by.count("GET " + kIssuer + "/jwks"), 2) << "invented key ids make no traffic";
  played_by.key_id = "k2";
  played_by.key = crypto::SigningKey::generate();
  EXPECT_EQ(provider.claims_of_code(some_code()).error().field, "signature") << "another key under a known id";
}

TEST(SsoWithProvider, OneThatIsDownOrAnotherIsSaidSoAndNotAskedAtOnceAgain) {
  PlayedProvider played_by;
  played_by.down = true;
  SsoProvider provider(played(played_by));
  for (int i = 0; i < 5; ++i) {
    const auto begun = provider.begin_device();
    EXPECT_EQ(begun.error().code, Code::Unavailable);
    EXPECT_NE(begun.error().message.find("cannot be reached"), std::string::npos) << begun.error().message;
  }
  EXPECT_EQ(played_by.asked.size(), 1U);
  PlayedProvider another;
  another.says_issuer = kIssuer + "/";
  SsoProvider wrong(played(another));
  EXPECT_NE(wrong.begin_device().error().message.find("another issuer"), std::string::npos);
}

TEST(SsoWithProvider, TheRestOfTheClaimsComesFromUserinfoOfTheSamePerson) {
  PlayedProvider played_by;
  SsoProvider provider(played(played_by, R"(,"rules":[{"claim":"groups","value":"ml","role":"tenant","org":"lab"}])"));
  const auto claims = provider.claims_of_code(some_code());
  ASSERT_TRUE(claims.ok()) << claims.error().message;
  EXPECT_NE(oidc::find_rule(provider.settings(), *claims), nullptr);
  played_by.userinfo_subject = "s-2";
  EXPECT_EQ(provider.claims_of_code(some_code()).error().field, "sub");
}

TEST(SsoLogins, AreUsedOnceAndBounded) {
  SsoTable table;
  LeaseTime now{1'000'000};
  const auto browser = [&](const std::string& source) {
    return table.add({.source = source, .state = source, .ends = now + Millis(600'000)}, now);
  };
  const std::string handle = browser("a");
  EXPECT_FALSE(table.find("guess", now).has_value());
  EXPECT_TRUE(table.find(handle, now).has_value());
  EXPECT_FALSE(table.find(handle, now).has_value()) << "once";
  const std::string late = browser("a");
  EXPECT_FALSE(table.find(late, now + Millis(600'000)).has_value());
  EXPECT_EQ(table.size(), 0U);

  const std::string code = table.add({.by_device = true,
                                      .source = "a",
                                      .interval = Millis(5000),
                                      .next_ask = now + Millis(5000),
                                      .ends = now + Millis(600'000)},
                                     now);
  EXPECT_EQ(table.find(code, now + Millis(1000))->wait, Millis(4000));
  EXPECT_FALSE(table.find(code, now + Millis(5000))->wait.has_value());
  EXPECT_EQ(table.find(code, now + Millis(5001))->wait, Millis(4999)) << "the next one waits its interval";
  EXPECT_EQ(table.slower(code, now + Millis(6000)), Millis(10'000));
  EXPECT_TRUE(table.find(code, now + Millis(15'999))->wait.has_value());
  EXPECT_FALSE(table.find(code, now + Millis(16'000))->wait.has_value());
  table.end(code);
  EXPECT_FALSE(table.find(code, now + Millis(30'000)).has_value());

  const std::string mine = browser("b");
  for (std::size_t i = 0; i < 3 * SsoTable::kOfSource; ++i) browser("flood");
  EXPECT_EQ(table.size(), SsoTable::kOfSource + 1);
  EXPECT_TRUE(table.find(mine, now).has_value()) << "who floods pushes out his own";
  for (std::size_t i = 0; i < SsoTable::kRows + 100; ++i) browser("s" + std::to_string(i / 40));
  EXPECT_EQ(table.size(), SsoTable::kRows);
}

class SsoPersons : public ::testing::Test {
 protected:
  void SetUp() override {
    engine::Runner::Options options;
    options.store = store_;
    runner_ = *engine::Runner::start(std::move(options));
    lab_ = *OrgId::parse(must(control::CreateOrg{"lab"}));
    people_ = std::make_unique<SsoPeople>(secret_, store_, *runner_);
  }
  std::string must(control::Command command) {
    control::Actor actor;
    actor.system = true;
    const auto reply = runner_->submit_wait(control::Lane::Operator, std::move(command), std::move(actor));
    EXPECT_TRUE(reply.ok()) << reply.error().message;
    if (!reply.ok()) return {};
    EXPECT_TRUE(runner_->wait_for(reply->seq, Millis(5000)));
    return reply->outcome.id;
  }
  static Json person(const std::string& subject, const std::string& group, const std::string& name = "ada") {
    Json out = Json::object();
    out.set("sub", Json::string(subject)).set("preferred_username", Json::string(name));
    return out.set("groups", Json::array().push(Json::string(group)));
  }
  Result<SsoPeople::Admitted> admit(const std::string& subject, const std::string& group) {
    return people_->admit(settings_, person(subject, group));
  }
  std::size_t logins(PrincipalId of) const {
    std::size_t count = 0;
    runner_->read([&](const control::State& state, const scheduler::Scheduler&) {
      count = control::logins_of(state, of, {}, read_clocks().wall).size();
    });
    return count;
  }

  std::shared_ptr<TestStore> store_ = std::make_shared<TestStore>();
  crypto::Secret32 secret_{crypto::random_key32()};
  std::unique_ptr<engine::Runner> runner_;
  std::unique_ptr<SsoPeople> people_;
  OrgId lab_;
  oidc::Settings settings_ =
      *oidc::parse_settings(R"({"issuer":"https://login.example","clientId":"m","unknown":"create",
    "rules":[{"claim":"groups","value":"ml","role":"tenant","org":"lab","project":"p"},
             {"claim":"groups","value":"ghosts","role":"tenant","org":"nowhere"}]})");
};

TEST_F(SsoPersons, AnAccountIsMadeOnceAndIsThePersonsWhateverItsName) {
  must(control::CreatePrincipal{"ada", Role::Operator, lab_});  // a local account of the same name is never taken over
  const auto first = admit("s-1", "ml");
  ASSERT_TRUE(first.ok()) << first.error().message;
  EXPECT_EQ(first->account.name, "ada-2");
  EXPECT_EQ(first->account.role, Role::Tenant);
  EXPECT_EQ(first->project, "p");
  EXPECT_EQ(admit("s-1", "ml")->account.id, first->account.id);
  EXPECT_EQ(people_->admit(settings_, person("s-1", "ml", "renamed"))->account.id, first->account.id);
  const auto other = admit("s-2", "ml");
  ASSERT_TRUE(other.ok());
  EXPECT_EQ(other->account.name, "ada-3") << "the same name is another person";
  auto elsewhere = settings_;
  elsewhere.issuer = "https://other.example";
  EXPECT_NE(people_->admit(elsewhere, person("s-1", "ml"))->account.id, first->account.id) << "another issuer's s-1";
  const auto rows = store_->list_side("sso", "", 10);
  ASSERT_TRUE(rows.ok());
  EXPECT_EQ(rows->size(), 3U);
  for (const auto& [row, bytes] : *rows) EXPECT_EQ((row + as_string(bytes)).find("s-1"), std::string::npos);
}

TEST_F(SsoPersons, WhatWasMadeBeforeACrashIsFoundAgain) {
  const auto first = admit("s-1", "ml");
  ASSERT_TRUE(first.ok());
  const auto rows = store_->list_side("sso", "", 10);
  ASSERT_TRUE(store_->erase_side("sso", rows->front().first).ok());  // as if the link had not been written
  EXPECT_EQ(admit("s-1", "ml")->account.id, first->account.id);
}

TEST_F(SsoPersons, SwitchedOffStaysOffUntilAnOperatorForgetsTheLink) {
  const auto first = admit("s-1", "ml");
  ASSERT_TRUE(first.ok());
  must(control::DisablePrincipal{first->account.id});
  const auto refused = admit("s-1", "ml");
  EXPECT_EQ(refused.error().code, Code::PermissionDenied);
  EXPECT_NE(refused.error().message.find("switched off"), std::string::npos) << refused.error().message;
  EXPECT_EQ(*SsoPeople::forget(*store_, first->account.id), 1U);
  EXPECT_EQ(*SsoPeople::forget(*store_, first->account.id), 0U);
  const auto anew = admit("s-1", "ml");
  ASSERT_TRUE(anew.ok()) << anew.error().message;
  EXPECT_NE(anew->account.id, first->account.id);
}

TEST_F(SsoPersons, WhoTheRulesNoLongerFitLosesHisLogins) {
  const auto first = admit("s-1", "ml");
  ASSERT_TRUE(first.ok());
  must(control::CreateApiToken{first->account.id, Bytes(32, 7), "login", {}, Millis(60'000)});
  EXPECT_EQ(logins(first->account.id), 1U);
  EXPECT_EQ(admit("s-1", "visitors").error().code, Code::PermissionDenied);
  EXPECT_EQ(logins(first->account.id), 0U);
  EXPECT_TRUE(admit("s-1", "ml").ok()) << "and comes in again when they do";
}

TEST_F(SsoPersons, RoleAndOrganisationFollowTheGroupsAtEachLogin) {
  const OrgId art = *OrgId::parse(must(control::CreateOrg{"art"}));
  settings_ = *oidc::parse_settings(R"({"issuer":"https://login.example","clientId":"m","unknown":"create","rules":[
    {"claim":"groups","value":"boss","role":"operator","org":"lab"},
    {"claim":"groups","value":"art","role":"auditor","org":"art"},
    {"claim":"groups","value":"ml","role":"tenant","org":"lab","project":"p"}]})");
  const auto first = admit("s-1", "ml");
  ASSERT_TRUE(first.ok()) << first.error().message;
  must(control::CreateApiToken{first->account.id, Bytes(32, 7), "login", {}, Millis(60'000)});
  const auto moved = admit("s-1", "art");
  ASSERT_TRUE(moved.ok()) << moved.error().message;
  EXPECT_EQ(moved->account.id, first->account.id) << "the same account";
  EXPECT_EQ(moved->account.role, Role::Auditor);
  EXPECT_EQ(moved->account.org, art);
  EXPECT_EQ(logins(first->account.id), 0U) << "what was open was opened as what he was";
  runner_->read([&](const control::State& state, const scheduler::Scheduler&) {
    EXPECT_EQ(state.principals.at(first->account.id), moved->account);
  });
  must(control::CreateApiToken{first->account.id, Bytes(32, 8), "login", {}, Millis(60'000)});
  EXPECT_TRUE(admit("s-1", "art").ok());
  EXPECT_EQ(logins(first->account.id), 1U) << "nothing ends where nothing changed";
  // Up and down again; but somebody must stay who can open the door.
  EXPECT_EQ(admit("s-1", "boss")->account.role, Role::Operator);
  const auto last = admit("s-1", "ml");
  EXPECT_EQ(last.error().code, Code::PermissionDenied);
  EXPECT_NE(last.error().message.find("last operator"), std::string::npos) << last.error().message;
  must(control::CreatePrincipal{"admin", Role::Operator, lab_});
  EXPECT_EQ(admit("s-1", "ml")->account.role, Role::Tenant);
  // What an operator made stays what he made it.
  const PrincipalId made = *PrincipalId::parse(must(control::CreatePrincipal{"zoe", Role::Auditor, lab_}));
  ASSERT_TRUE(people_->invite(settings_.issuer, "s-2", made).ok());
  EXPECT_EQ(admit("s-2", "boss")->account.role, Role::Auditor);
}

TEST_F(SsoPersons, ALogoutThereEndsTheLoginsHere) {
  Json claims = person("s-1", "ml");
  claims.set("sid", Json::string("session-1"));
  const auto one = people_->admit(settings_, claims);
  const auto other = admit("s-2", "ml");
  ASSERT_TRUE(one.ok() && other.ok());
  std::uint8_t number = 1;
  const auto log_in = [&](PrincipalId who) {
    must(control::CreateApiToken{who, Bytes(32, number++), "login", {}, Millis(60'000)});
  };
  log_in(one->account.id);
  log_in(other->account.id);
  const auto out = [&](const oidc::Logout& logout) { return people_->log_out(settings_, logout); };
  EXPECT_EQ(*out({"s-9", "", "j-1"}), 0U) << "nobody here";
  EXPECT_EQ(*out({"s-1", "", "j-2"}), 1U);
  EXPECT_EQ(logins(one->account.id), 0U);
  EXPECT_EQ(logins(other->account.id), 1U) << "another person goes on";
  log_in(one->account.id);
  EXPECT_EQ(out({"s-1", "", "j-2"}).error().field, "jti") << "a word that was heard before";
  EXPECT_EQ(logins(one->account.id), 1U);
  // By its session alone, known over a restart; and in another process's memory there is no list of ids.
  people_ = std::make_unique<SsoPeople>(secret_, store_, *runner_);
  EXPECT_EQ(*out({"", "session-2", "j-3"}), 0U);
  EXPECT_EQ(*out({"", "session-1", "j-4"}), 1U);
  EXPECT_EQ(logins(one->account.id), 0U);
  EXPECT_EQ(*out({"", "session-1", "j-5"}), 0U) << "it is over";
  const auto rows = store_->list_side("sso-sessions", "", 10);
  ASSERT_TRUE(rows.ok());
  EXPECT_TRUE(rows->empty());
  ASSERT_TRUE(people_->admit(settings_, claims).ok());
  const auto noted = store_->list_side("sso-sessions", "", 10);
  ASSERT_EQ(noted->size(), 1U);
  for (const auto& [row, bytes] : *noted) EXPECT_EQ((row + as_string(bytes)).find("session-1"), std::string::npos);
}

TEST_F(SsoPersons, StrangersAreToldWhatToAskFor) {
  const auto unknown = admit("s-9", "visitors");
  EXPECT_EQ(unknown.error().code, Code::PermissionDenied);
  EXPECT_NE(unknown.error().message.find("--sso-subject s-9"), std::string::npos) << unknown.error().message;
  EXPECT_EQ(admit("s-9", "ghosts").error().code, Code::FailedPrecondition) << "the rule's organisation is not there";
  settings_.unknown = oidc::Unknown::Refuse;
  EXPECT_EQ(admit("s-9", "ml").error().code, Code::PermissionDenied);
  EXPECT_EQ(admit("s 9<x>", "ml").error().message.find("s 9"), std::string::npos);
  const PrincipalId made = *PrincipalId::parse(must(control::CreatePrincipal{"zoe", Role::Operator, lab_}));
  ASSERT_TRUE(people_->check_free(settings_.issuer, "s-9", "zoe").ok());
  ASSERT_TRUE(people_->invite(settings_.issuer, "s-9", made).ok());
  EXPECT_TRUE(people_->check_free(settings_.issuer, "s-9", "zoe").ok()) << "a repeat";
  EXPECT_EQ(people_->check_free(settings_.issuer, "s-9", "another").error().code, Code::AlreadyExists);
  const auto invited = admit("s-9", "visitors");
  ASSERT_TRUE(invited.ok()) << invited.error().message;
  EXPECT_EQ(invited->account.role, Role::Operator) << "an invited account is what the operator made it";
}

}  // namespace
}  // namespace muster::server
