// Hostile and honest bytes of an identity provider: for every check there is a token that fails it and nothing else.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "crypto/hash.h"
#include "crypto/sign.h"
#include "oidc/exchange.h"
#include "oidc/id_token.h"
#include "oidc/settings.h"

namespace muster::oidc {
namespace {

using wire::Json;

constexpr std::int64_t kNow = 1'800'000'000;  // seconds

Json text(std::string value) {
  return Json::string(std::move(value));
}
Json number(std::int64_t value) {
  return Json::number(value);
}

// A provider with one key, and what it says of a person who logs in now.
struct Issuer {
  crypto::SigningKey key = crypto::SigningKey::generate();
  Json head = Json::object(), claims = Json::object();
  std::vector<Key> keys;
  Expected expected{"https://login.example/realms/lab", "muster", "n-1", "access-1", WallTime{kNow * 1000}};

  Issuer() {
    head.set("alg", text("EdDSA")).set("kid", text("k1"));
    claims.set("iss", text(expected.issuer)).set("sub", text("248289761001")).set("aud", text("muster"));
    claims.set("exp", number(kNow + 300)).set("iat", number(kNow)).set("nonce", text("n-1"));
    keys.push_back({"k1", crypto::WebAlg::EdDsa, *crypto::WebKey::ed25519(key.public_key())});
  }
  std::string signed_text(const std::string& head_text, const std::string& claims_text) const {
    const std::string both = base64url(as_bytes(head_text)) + "." + base64url(as_bytes(claims_text));
    return both + "." + base64url(key.sign(as_bytes(both)));
  }
  std::string token() const { return signed_text(head.dump(), claims.dump()); }
  // The claim at fault; "" where the token is good.
  std::string fault(const std::string& of) const {
    const auto verdict = verify_id_token(of, keys, expected);
    if (verdict.ok()) return "";
    EXPECT_EQ(verdict.error().message.find("248289761001"), std::string::npos) << verdict.error().message;
    return verdict.error().field;
  }
  std::string fault() const { return fault(token()); }
  std::string fault_with(const std::string& name, Json value) const {
    Issuer other = *this;
    other.claims.set(name, std::move(value));
    return other.fault();
  }
  std::string fault_without(const std::string& name) const {
    Issuer other = *this;
    other.claims = Json::object();
    for (const auto& [key_name, value] : claims.members())
      if (key_name != name) other.claims.set(key_name, value);
    return other.fault();
  }
};

Json list(std::initializer_list<Json> values) {
  Json out = Json::array();
  for (const Json& each : values) out.push(each);
  return out;
}

TEST(IdToken, IsTakenWhenEverythingIsRight) {
  const Issuer issuer;
  const auto claims = verify_id_token(issuer.token(), issuer.keys, issuer.expected);
  ASSERT_TRUE(claims.ok()) << claims.error().message;
  EXPECT_EQ((*claims)["sub"].text(), "248289761001");
}

TEST(IdToken, EveryClaimIsChecked) {
  const Issuer issuer;
  EXPECT_EQ(issuer.fault_with("iss", text("https://login.example/realms/lab/")), "iss") << "exactly, not almost";
  EXPECT_EQ(issuer.fault_without("iss"), "iss");
  EXPECT_EQ(issuer.fault_with("iss", list({text("https://login.example/realms/lab")})), "iss");
  EXPECT_EQ(issuer.fault_with("sub", text("")), "sub");
  EXPECT_EQ(issuer.fault_with("sub", text(std::string(256, 'x'))), "sub");
  EXPECT_EQ(issuer.fault_with("sub", number(7)), "sub");
  EXPECT_EQ(issuer.fault_without("sub"), "sub");
  EXPECT_EQ(issuer.fault_with("aud", text("other")), "aud");
  EXPECT_EQ(issuer.fault_with("aud", list({})), "aud");
  EXPECT_EQ(issuer.fault_without("aud"), "aud");
  EXPECT_EQ(issuer.fault_with("aud", list({text("muster"), number(1)})), "aud");
  EXPECT_EQ(issuer.fault_with("aud", list({text("muster")})), "");
  EXPECT_EQ(issuer.fault_with("aud", list({text("muster"), text("other")})), "azp") << "several audiences want an azp";
  EXPECT_EQ(issuer.fault_with("azp", text("other")), "azp");
  EXPECT_EQ(issuer.fault_with("azp", text("muster")), "");
  Issuer several = issuer;
  several.claims.set("aud", list({text("other"), text("muster")})).set("azp", text("muster"));
  EXPECT_EQ(several.fault(), "");
  EXPECT_EQ(issuer.fault_with("nonce", text("n-2")), "nonce");
  EXPECT_EQ(issuer.fault_with("nonce", number(1)), "nonce");
  EXPECT_EQ(issuer.fault_without("nonce"), "nonce");
  Issuer device = issuer;
  device.expected.nonce.clear();
  EXPECT_EQ(device.fault(), "") << "none was sent, so none is looked at";
}

TEST(IdToken, TimesHaveAMinuteOfSkew) {
  const Issuer issuer;
  EXPECT_EQ(issuer.fault_with("exp", number(kNow - 59)), "");
  EXPECT_EQ(issuer.fault_with("exp", number(kNow - 60)), "exp");
  EXPECT_EQ(issuer.fault_with("iat", number(kNow + 60)), "");
  EXPECT_EQ(issuer.fault_with("iat", number(kNow + 61)), "iat");
  EXPECT_EQ(issuer.fault_with("iat", number(kNow - 660)), "");
  EXPECT_EQ(issuer.fault_with("iat", number(kNow - 661)), "iat") << "a login is fresh";
  EXPECT_EQ(issuer.fault_with("nbf", number(kNow + 60)), "");
  EXPECT_EQ(issuer.fault_with("nbf", number(kNow + 61)), "nbf");
  EXPECT_EQ(issuer.fault_with("exp", Json::number(kNow + 0.5)), "") << "fractions are allowed";
  for (const char* name : {"exp", "iat"}) {
    EXPECT_EQ(issuer.fault_without(name), name);
    EXPECT_EQ(issuer.fault_with(name, text(std::to_string(kNow))), name) << "a text is no time";
    EXPECT_EQ(issuer.fault_with(name, number(-1)), name);
    EXPECT_EQ(issuer.fault_with(name, Json::number(1e300)), name);
    EXPECT_EQ(issuer.fault_with(name, Json::boolean(true)), name);
  }
  EXPECT_EQ(issuer.fault_with("nbf", text("x")), "nbf");
  Issuer late = issuer;
  late.claims.set("exp", number(kNow - 100));
  const auto verdict = verify_id_token(late.token(), late.keys, late.expected);
  EXPECT_NE(verdict.error().message.find("clocks"), std::string::npos) << verdict.error().message;
}

TEST(IdToken, SignatureAlgorithmAndKeyAreThoseOfTheProvider) {
  Issuer issuer;
  const std::string good = issuer.token();
  for (const char* alg : {"none", "None", "HS256", "HS384", "HS512", "RS1", "", "eddsa"}) {
    Issuer other = issuer;
    other.head.set("alg", text(alg));
    EXPECT_EQ(other.fault(), "alg") << alg;
  }
  const std::string unsigned_token = base64url(as_bytes(R"({"alg":"none"})")) + good.substr(good.find('.'));
  EXPECT_EQ(issuer.fault(unsigned_token.substr(0, unsigned_token.rfind('.') + 1)), "alg");
  EXPECT_EQ(issuer.fault(good.substr(0, good.rfind('.') + 1)), "signature") << "no signature at all";
  // HMAC with the public key, the classic confusion, said to be EdDSA and said to be HS256.
  const std::string both = good.substr(0, good.rfind('.'));
  const auto mac = crypto::hmac_sha256(issuer.key.public_key(), as_bytes(both));
  EXPECT_EQ(issuer.fault(both + "." + base64url(mac)), "signature");
  Issuer rs = issuer;
  rs.head.set("alg", text("RS256"));
  EXPECT_EQ(rs.fault(), "kid") << "no RSA key is shown";
  Issuer crit = issuer;
  crit.head.set("crit", list({text("exp")}));
  EXPECT_EQ(crit.fault(), "crit");
  Issuer unknown = issuer;
  unknown.head.set("kid", text("k2"));
  EXPECT_EQ(unknown.fault(), "kid");
  EXPECT_FALSE(knows_key(unknown.keys, *token_head(unknown.token())));
  EXPECT_TRUE(knows_key(issuer.keys, *token_head(good)));
  unknown.head.set("kid", number(1));
  EXPECT_EQ(unknown.fault(), "kid");
  Issuer nameless = issuer;
  nameless.head = Json::object().set("alg", text("EdDSA"));
  EXPECT_EQ(nameless.fault(), "") << "without a key id every key that fits is tried";
  Issuer forger = issuer;
  forger.key = crypto::SigningKey::generate();
  EXPECT_EQ(forger.fault(), "signature");
  // Every byte of what is signed counts.
  for (std::size_t at = 0; at < good.size(); at += 7) {
    std::string damaged = good;
    damaged[at] = damaged[at] == 'A' ? 'B' : 'A';
    if (damaged != good) EXPECT_NE(issuer.fault(damaged), "") << at;
  }
}

TEST(IdToken, BelongsToItsAccessToken) {
  Issuer issuer;
  Bytes half = crypto::web_digest(crypto::WebAlg::EdDsa, as_bytes("access-1"));
  half.resize(32);
  EXPECT_EQ(issuer.fault_with("at_hash", text(base64url(half))), "");
  half[0] ^= 1;
  EXPECT_EQ(issuer.fault_with("at_hash", text(base64url(half))), "at_hash");
  EXPECT_EQ(issuer.fault_with("at_hash", text("")), "at_hash");
  EXPECT_EQ(issuer.fault_with("at_hash", number(1)), "at_hash");
}

TEST(IdToken, HostileBytesAreRefused) {
  const Issuer issuer;
  const std::string good = issuer.token();
  const std::string deep = std::string(500, '[') + std::string(500, ']');
  for (const std::string& bad :
       {std::string(), std::string("."), std::string(".."), std::string("..."), good + ".x", std::string("a.b.c"),
        std::string(kTokenMax + 1, 'a'), issuer.signed_text("[]", "{}"), issuer.signed_text("{", "{}"),
        issuer.signed_text(issuer.head.dump(), "[]"), issuer.signed_text(issuer.head.dump(), ""),
        issuer.signed_text(issuer.head.dump(), R"({"iss":"a","iss":"b"})"),
        issuer.signed_text(issuer.head.dump(), "{\"a\":" + deep + "}"),
        issuer.signed_text(issuer.head.dump(), "{\"a\":\"\xff\"}"), "=" + good, good + "=", " " + good})
    EXPECT_NE(issuer.fault(bad), "") << bad.substr(0, 80);
}

TEST(LogoutToken, EveryClaimIsCheckedAndNoIdTokenPassesForOne) {
  const std::string event = "http://schemas.openid.net/event/backchannel-logout";
  Issuer issuer;
  issuer.head.set("typ", text("logout+jwt"));
  Json claims = Json::object();
  claims.set("iss", text(issuer.expected.issuer)).set("aud", text("muster")).set("iat", number(kNow));
  claims.set("exp", number(kNow + 120)).set("jti", text("j-1")).set("sub", text("248289761001"));
  claims.set("sid", text("s-1")).set("events", Json::object().set(event, Json::object()));
  const auto read = [&](const std::string& token) {
    return verify_logout_token(token, issuer.keys, issuer.expected.issuer, "muster", issuer.expected.now);
  };
  const auto fault = [&](const Json& said) {
    const auto out = read(issuer.signed_text(issuer.head.dump(), said.dump()));
    return out.ok() ? std::string() : out.error().field;
  };
  const auto with = [&](const std::string& name, Json value) {
    return fault(Json(claims).set(name, std::move(value)));
  };
  const auto without = [&](std::initializer_list<std::string> names) {
    Json out = Json::object();
    for (const auto& [name, value] : claims.members())
      if (std::find(names.begin(), names.end(), name) == names.end()) out.set(name, value);
    return fault(out);
  };
  const auto good = read(issuer.signed_text(issuer.head.dump(), claims.dump()));
  ASSERT_TRUE(good.ok()) << good.error().message;
  EXPECT_EQ(good->subject + good->session + good->id, "248289761001s-1j-1");
  EXPECT_EQ(with("iss", text("https://evil.example")), "iss");
  EXPECT_EQ(with("aud", text("another")), "aud");
  EXPECT_EQ(with("iat", number(kNow - 301)), "iat");
  EXPECT_EQ(with("iat", number(kNow + 61)), "iat");
  EXPECT_EQ(with("exp", number(kNow - 60)), "exp");
  EXPECT_EQ(with("jti", number(1)), "jti");
  EXPECT_EQ(with("jti", text("")), "jti");
  EXPECT_EQ(with("nonce", text("n")), "nonce");
  EXPECT_EQ(with("events", Json::object()), "events");
  EXPECT_EQ(with("events", Json::object().set(event, text("yes"))), "events");
  EXPECT_EQ(with("events", text(event)), "events");
  EXPECT_EQ(with("sid", text(std::string(256, 'x'))), "sid");
  EXPECT_EQ(without({"iss"}), "iss");
  EXPECT_EQ(without({"aud"}), "aud");
  EXPECT_EQ(without({"iat"}), "iat");
  EXPECT_EQ(without({"jti"}), "jti");
  EXPECT_EQ(without({"events"}), "events");
  EXPECT_EQ(without({"sub", "sid"}), "sub");
  EXPECT_EQ(without({"sub"}), "");
  EXPECT_EQ(without({"sid"}), "");
  EXPECT_EQ(without({"exp"}), "") << "providers of before it was asked for";
  // Neither passes for the other, whatever its head says.
  Issuer person;
  EXPECT_FALSE(read(person.token()).ok());
  Issuer device = person;
  device.expected.nonce.clear();
  Json both = claims;
  device.keys = issuer.keys;
  EXPECT_EQ(device.fault(issuer.signed_text(person.head.dump(), both.set("exp", number(kNow + 300)).dump())), "events");
  // Signed by somebody else, or not at all.
  EXPECT_EQ(read(person.signed_text(issuer.head.dump(), claims.dump())).error().field, "signature");
  EXPECT_FALSE(read(issuer.signed_text(R"({"alg":"none","kid":"k1"})", claims.dump())).ok());
  issuer.head.set("typ", text("at+jwt"));
  EXPECT_EQ(fault(claims), "typ");
}

TEST(Provider, MustBeTheIssuerThatWasAsked) {
  const std::string issuer = "https://login.example";
  Json page = Json::object();
  page.set("issuer", text(issuer)).set("authorization_endpoint", text(issuer + "/auth"));
  page.set("token_endpoint", text(issuer + "/token")).set("jwks_uri", text(issuer + "/jwks"));
  const auto good = parse_provider(page.dump(), issuer);
  ASSERT_TRUE(good.ok()) << good.error().message;
  EXPECT_TRUE(good->device_endpoint.empty());
  EXPECT_FALSE(good->secret_in_body);
  for (const char* other : {"https://login.example/", "https://LOGIN.example", "http://login.example", ""})
    EXPECT_FALSE(parse_provider(page.dump(), other).ok()) << other;
  for (const char* needed : {"authorization_endpoint", "token_endpoint", "jwks_uri", "issuer"}) {
    Json less = page;
    less.set(needed, number(1));
    EXPECT_FALSE(parse_provider(less.dump(), issuer).ok()) << needed;
  }
  for (const char* bad : {"", "[]", "null", "<html>", "{\"issuer\":"}) EXPECT_FALSE(parse_provider(bad, issuer).ok());
  page.set("token_endpoint_auth_methods_supported", list({text("client_secret_post")}));
  page.set("device_authorization_endpoint", text(issuer + "/device"));
  page.set("authorization_response_iss_parameter_supported", Json::boolean(true));
  const auto more = parse_provider(page.dump(), issuer);
  ASSERT_TRUE(more.ok());
  EXPECT_TRUE(more->secret_in_body && more->names_itself);
  EXPECT_EQ(more->device_endpoint, "https://login.example/device");
  EXPECT_EQ(discovery_url("https://a.example/x/"), "https://a.example/x/.well-known/openid-configuration");
}

TEST(Provider, KeysOfOtherUsesArePassedOver) {
  const std::string x = base64url(crypto::SigningKey::generate().public_key());
  const auto key = [&](const std::string& more) {
    return R"({"kty":"OKP","crv":"Ed25519","x":")" + x + "\"" + more + "}";
  };
  const auto count = [](const std::string& keys) {
    const auto parsed = parse_keys("{\"keys\":[" + keys + "]}");
    return parsed.ok() ? parsed->size() : 0;
  };
  EXPECT_EQ(count(key(R"(,"kid":"a","use":"sig","alg":"EdDSA")")), 1U);
  EXPECT_EQ(count(key("") + "," + key(R"(,"use":"enc")")), 1U);
  for (const char* more : {R"(,"use":"enc")", R"(,"key_ops":["sign"])", R"(,"alg":"HS256")", R"(,"alg":"RS256")"})
    EXPECT_EQ(count(key(more)), 0U) << more;
  EXPECT_EQ(count(R"({"kty":"oct","k":"c2VjcmV0"})"), 0U) << "no shared secret is a key of ours";
  EXPECT_EQ(count(R"({"kty":"OKP","crv":"Ed25519","x":"AA"})"), 0U);
  EXPECT_EQ(count(R"(1,null,[],"x",{"kty":1})"), 0U);
  std::string many = key("");
  for (int i = 0; i < 200; ++i) many += "," + key("");
  EXPECT_EQ(count(many), 100U);
  EXPECT_FALSE(parse_keys("{}").ok());
  EXPECT_FALSE(parse_keys("[]").ok());
}

TEST(Settings, SayWhatIsWrongWithThem) {
  const auto field = [](const std::string& text_of_file) {
    const auto parsed = parse_settings(text_of_file);
    return parsed.ok() ? std::string() : parsed.error().field;
  };
  const std::string base = R"("issuer":"https://a.example","clientId":"m")";
  const auto with = [&](const std::string& more) { return field("{" + base + "," + more + "}"); };
  EXPECT_EQ(field("{" + base + "}"), "");
  EXPECT_EQ(field(R"({"clientId":"m"})"), "issuer");
  EXPECT_EQ(field(R"({"issuer":"https://a.example"})"), "clientId");
  EXPECT_EQ(with(R"("clientSecret":"s3cret")"), "clientSecret") << "a secret is not for this file";
  EXPECT_EQ(with(R"("emailDomain":["a"])"), "emailDomain") << "a misspelt limit is no limit";
  EXPECT_EQ(with(R"("scopes":["email"])"), "scopes");
  EXPECT_EQ(with(R"("scopes":["openid","a b"])"), "scopes");
  EXPECT_EQ(with(R"("unknown":"maybe")"), "unknown");
  EXPECT_EQ(with(R"("unknown":"create")"), "rules");
  EXPECT_EQ(with(R"("loginHours":0)"), "loginHours");
  EXPECT_EQ(with(R"("loginHours":721)"), "loginHours");
  EXPECT_EQ(with(R"("rules":[{"claim":"groups","role":"tenant","org":"a"}])"), "rules[0].claim");
  EXPECT_EQ(with(R"("rules":[{"role":"tenant"}])"), "rules[0].org");
  EXPECT_EQ(with(R"("rules":[{"role":"king","org":"a"}])"), "rules[0].role");
  EXPECT_EQ(with(R"("rules":[{"role":"operator","org":"a"}])"), "rules[0].role") << "operator for everybody";
  EXPECT_EQ(with(R"("rules":[{"role":"tenant-admin","org":"a"}])"), "rules[0].role") << "and administrator";
  EXPECT_EQ(with(R"("rules":[{"role":"tenant","org":"a","grop":"x"}])"), "rules[0].grop");
  const auto full = parse_settings("{" + base + R"(,"unknown":"create","emailDomains":["Lab.Example"],"loginHours":8,
    "rules":[{"claim":"groups","value":"admins","role":"operator","org":"platform"},{"role":"tenant","org":"lab","project":"p"}]})");
  ASSERT_TRUE(full.ok()) << full.error().message;
  EXPECT_EQ(full->login_lifetime, Millis(8 * 3'600'000));
  EXPECT_EQ(full->email_domains.front(), "lab.example");
  EXPECT_EQ(full->rules.size(), 2U);
}

TEST(Settings, RulesAndAddressesDecideWhoComesInAsWhat) {
  auto settings = *parse_settings(R"({"issuer":"https://a.example","clientId":"m","unknown":"create",
    "emailDomains":["lab.example"],"rules":[
    {"claim":"groups","value":"admins","role":"operator","org":"platform"},
    {"claim":"realm_access.roles","value":"gpu","role":"supplier","org":"hall"},
    {"claim":"https://a.example/kind","value":"staff","role":"tenant","org":"lab"}]})");
  const auto parsed = [](const std::string& json_text) { return *wire::parse_json(json_text); };
  const auto org = [&](const std::string& json_text) {
    const Rule* rule = find_rule(settings, parsed(json_text));
    return rule == nullptr ? std::string() : rule->org;
  };
  EXPECT_EQ(org(R"({"groups":["x","admins"]})"), "platform");
  EXPECT_EQ(org(R"({"groups":"admins"})"), "platform");
  EXPECT_EQ(org(R"({"groups":"admins-of-nothing"})"), "");
  EXPECT_EQ(org(R"({"groups":{"admins":true}})"), "");
  EXPECT_EQ(org(R"({"realm_access":{"roles":["gpu"]},"groups":["admins"]})"), "platform") << "the first that fits";
  EXPECT_EQ(org(R"({"realm_access":{"roles":["gpu"]}})"), "hall");
  EXPECT_EQ(org(R"({"realm_access.roles":"gpu"})"), "hall");
  EXPECT_EQ(org(R"({"https://a.example/kind":"staff"})"), "lab");
  EXPECT_EQ(org("{}"), "");
  const auto email = [&](const std::string& json_text) { return check_email(settings, parsed(json_text)).ok(); };
  EXPECT_TRUE(email(R"({"email":"a@LAB.example","email_verified":true})"));
  for (const char* bad :
       {R"({"email":"a@lab.example"})", R"({"email":"a@lab.example","email_verified":false})",
        R"({"email":"a@lab.example","email_verified":"true"})", R"({"email_verified":true})",
        R"({"email":"a@lab.example.org","email_verified":true})", R"({"email":"a@xlab.example","email_verified":true})",
        R"({"email":"@lab.example","email_verified":true})", R"({"email":"lab.example","email_verified":true})",
        R"({"email":["a@lab.example"],"email_verified":true})"})
    EXPECT_FALSE(email(bad)) << bad;
  settings.email_domains.clear();
  EXPECT_TRUE(email("{}"));
  const auto name = [&](const std::string& json_text) { return account_name(settings, parsed(json_text)); };
  EXPECT_EQ(name(R"({"preferred_username":"Ada.Lovelace@lab.example"})"), "ada-lovelace");
  EXPECT_EQ(name(R"({"email":"bob_7@lab.example"})"), "bob_7");
  EXPECT_EQ(name(R"({"preferred_username":"../../etc","name":"--"})"), "etc");
  EXPECT_EQ(name(R"({"preferred_username":"\u00e4\u00f6"})"), "person");
  EXPECT_EQ(name(R"({"preferred_username":["x"]})"), "person");
  EXPECT_LE(name("{\"preferred_username\":\"" + std::string(300, 'x') + "\"}").size(), 48U);
  EXPECT_NE(person_key("https://a", "b"), person_key("https://ab", ""));
  EXPECT_NE(person_key("https://a", "b"), person_key("https://b", "b"));
  EXPECT_FALSE(complete(settings, parsed(R"({"groups":[]})")));
}

TEST(Exchange, SaysItAsTheStandardsDo) {
  // RFC 7636, appendix B.
  EXPECT_EQ(pkce_challenge("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"),
            "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
  const auto settings = *parse_settings(R"({"issuer":"https://a.example","clientId":"m"})");
  const Fields fields = authorization_fields(settings, "http://127.0.0.1:7/callback", "s", "n", "v");
  EXPECT_EQ(
      std::count(fields.begin(), fields.end(), std::pair<std::string, std::string>("code_challenge_method", "S256")),
      1);
  for (const auto& [key, value] : fields) EXPECT_NE(value, "v") << "the verifier stays here";
  EXPECT_EQ(basic_credentials("Aladdin", "open%20sesame"), "Basic QWxhZGRpbjpvcGVuJTIwc2VzYW1l");
  const auto tokens = parse_tokens(200, R"({"id_token":"i","access_token":"a","token_type":"Bearer"})");
  ASSERT_TRUE(tokens.ok());
  EXPECT_EQ(tokens->id_token + tokens->access_token, "ia");
  EXPECT_FALSE(parse_tokens(200, R"({"access_token":"a"})").ok());
  EXPECT_FALSE(parse_tokens(200, "{\"id_token\":\"i\",\"access_token\":\"a\\r\\nX: y\"}").ok());
  EXPECT_EQ(parse_tokens(400, R"({"error":"invalid_grant"})").error().field, "invalid_grant");
  EXPECT_EQ(parse_tokens(401, R"({"error":"invalid_client"})").error().code, Code::FailedPrecondition);
  EXPECT_EQ(parse_tokens(500, "<html>").error().code, Code::Unavailable);
  EXPECT_EQ(parse_tokens(302, R"({"id_token":"i","access_token":"a"})").error().code, Code::Unavailable);
  EXPECT_EQ(meaning("access_denied").code, Code::Cancelled);
  EXPECT_EQ(meaning("<script>alert(1)</script>").message.find('<'), std::string::npos);
  const auto code = parse_device_code(
      200, R"({"device_code":"d","user_code":"WDJB-MJHT","verification_uri":"https://a.example/d","expires_in":900})");
  ASSERT_TRUE(code.ok()) << code.error().message;
  EXPECT_EQ(code->interval, Millis(5000));
  EXPECT_EQ(code->lifetime, Millis(900'000));
  EXPECT_FALSE(
      parse_device_code(200, R"({"device_code":"d","user_code":"U","verification_uri":"https://a.example/d"})").ok());
  EXPECT_FALSE(
      parse_device_code(
          200,
          "{\"device_code\":\"d\",\"user_code\":\"U\\u001b[2J\",\"verification_uri\":\"https://a/\",\"expires_in\":9}")
          .ok());
}

}  // namespace
}  // namespace muster::oidc
