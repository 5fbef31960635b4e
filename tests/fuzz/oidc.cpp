// What an identity provider says: its tokens, its page about itself and its keys.
#include "crypto/sign.h"
#include "fuzz/fuzz.h"
#include "oidc/exchange.h"
#include "oidc/id_token.h"
#include "oidc/settings.h"

namespace muster::fuzz {
namespace {

using wire::Json;
constexpr std::int64_t kNowSeconds = 1'795'000'000;
constexpr const char* kIssuer = "https://login.example";

crypto::SigningKey token_key() {
  return *crypto::SigningKey::from_seed(Bytes(32, 9));
}
std::vector<oidc::Key> token_keys() {
  std::vector<oidc::Key> out;
  out.push_back({"k1", crypto::WebAlg::EdDsa, *crypto::WebKey::ed25519(token_key().public_key())});
  return out;
}

// The signature is set right before it is read: else nothing that is tried would pass it.
std::string signed_token(std::string_view head, std::string_view claims) {
  const std::string both = base64url(as_bytes(head)) + "." + base64url(as_bytes(claims));
  return both + "." + base64url(token_key().sign(as_bytes(both)));
}

constexpr std::string_view kHead = R"({"alg":"EdDSA","kid":"k1"})";
constexpr std::string_view kPerson =
    R"({"iss":"https://login.example","sub":"s-1","aud":"muster","exp":1795000300,"iat":1795000000,"nonce":"n","groups":["ml"]})";
constexpr std::string_view kLogout =
    R"({"iss":"https://login.example","sub":"s-1","sid":"t","aud":["muster"],"iat":1795000000,"jti":"j",)"
    R"("events":{"http://schemas.openid.net/event/backchannel-logout":{}}})";

Seeds seeds_id_token() {
  const auto seed = [](std::uint8_t kind, std::string_view head, std::string_view claims) {
    return Bytes{kind} + sized(as_bytes(head)) + claims;
  };
  // The same person said differently, so that more of what is tried is said of one.
  const auto person = [&](std::string_view more) {
    return seed(0, kHead,
                R"({"iss":"https://login.example","sub":"s-1","aud":"muster","exp":1795000300,"iat":1795000000,)"
                R"("nonce":"n")" +
                    std::string(more) + "}");
  };
  return {person(""),
          person(R"(,"azp":"muster")"),
          person(R"(,"email":"a@lab.example","email_verified":true)"),
          person(R"(,"a":{"b":["x"]})"),
          person(R"(,"nbf":1794999999,"name":"A B")"),
          seed(0, kHead, kPerson),
          seed(0, kHead, kLogout),
          seed(0, R"({"alg":"EdDSA","kid":"k1","typ":"logout+jwt"})", kLogout),
          seed(0, R"({"alg":"none"})", kPerson),
          seed(0, R"({"alg":"RS256","kid":"k2","crit":["x"]})", kPerson),
          Bytes{1} + signed_token(kHead, kPerson),
          Bytes{1} + signed_token(kHead, kLogout),
          Bytes{1} + "a.b.c"};
}
FUZZ_TARGET(id_token, 4 << 10) {
  Input in(input);
  const bool whole = in.byte() % 2 == 1;
  const std::string head = whole ? std::string() : as_string(in.sized());
  const std::string rest(in.text());
  const std::string token = whole ? rest : signed_token(head, rest);
  static const std::vector<oidc::Key> keys = token_keys();
  const WallTime now{kNowSeconds * 1000};
  const auto person = oidc::verify_id_token(token, keys, {kIssuer, "muster", "n", "", now});
  const auto logout = oidc::verify_logout_token(token, keys, kIssuer, "muster", now);
  MUSTER_CHECK(!(person.ok() && logout.ok()));  // one passes never for the other
  if (person.ok()) {
    MUSTER_CHECK((*person)["iss"].text() == kIssuer && (*person)["nonce"].text() == "n");
    MUSTER_CHECK(!(*person)["sub"].text().empty());
    plant((*person)["sub"].text().size() != 3);
    static const oidc::Settings settings = *oidc::parse_settings(
        R"({"issuer":"https://login.example","clientId":"muster","unknown":"create","emailDomains":["lab.example"],)"
        R"("rules":[{"claim":"a.b","value":"x","role":"tenant","org":"o"},{"claim":"groups","value":"ml","role":"tenant","org":"o"}]})");
    (void)oidc::check_email(settings, *person).ok();
    (void)oidc::find_rule(settings, *person);
    const std::string name = oidc::account_name(settings, *person);
    MUSTER_CHECK(!name.empty() && name.size() <= 48);
  }
  if (logout.ok()) MUSTER_CHECK(!logout->id.empty() && !(logout->subject.empty() && logout->session.empty()));
}

Seeds seeds_jwks() {
  const std::string x = base64url(token_key().public_key());
  return {
      Bytes{0} +
          (R"({"keys":[{"kty":"OKP","crv":"Ed25519","kid":"k1","use":"sig","alg":"EdDSA","x":")" + x + R"("}]})"),
      Bytes{0} + R"({"keys":[{"kty":"RSA","n":"sXch","e":"AQAB"},{"kty":"EC","crv":"P-256","x":"AA","y":"AA"},7]})",
      Bytes{1} + R"({"issuer":"https://login.example","authorization_endpoint":"https://login.example/a",)"
                 R"("token_endpoint":"https://login.example/t","jwks_uri":"https://login.example/k",)"
                 R"("token_endpoint_auth_methods_supported":["client_secret_post"]})",
      Bytes{2} + R"({"id_token":"a.b.c","access_token":"x","token_type":"Bearer"})",
      Bytes{2} + R"({"error":"authorization_pending"})",
      Bytes{3} +
          R"({"device_code":"d","user_code":"A-B","verification_uri":"https://login.example/d","expires_in":600,"interval":5})"};
}
FUZZ_TARGET(jwks, 4 << 10) {
  Input in(input);
  const std::uint8_t kind = in.byte() % 4;
  const std::string_view text = in.text();
  if (kind == 0) {
    const auto keys = oidc::parse_keys(text);
    if (keys.ok()) {
      MUSTER_CHECK(!keys->empty() && keys->size() <= 100);
      plant(keys->size() == 1 && keys->front().id.size() == 3);
      for (const oidc::Key& key : *keys) {
        if (key.alg) MUSTER_CHECK(key.key.fits(*key.alg));
        (void)key.key.verify(key.alg.value_or(crypto::WebAlg::Rs256), as_bytes("text"), Bytes(64, 1));
      }
    }
  } else if (kind == 1) {
    const auto page = oidc::parse_provider(text, kIssuer);
    if (page.ok()) MUSTER_CHECK(page->issuer == kIssuer && !page->jwks_uri.empty() && !page->token_endpoint.empty());
  } else if (kind == 2) {
    for (const int status : {200, 400}) {
      const auto tokens = oidc::parse_tokens(status, text);
      if (tokens.ok()) MUSTER_CHECK(!tokens->id_token.empty());
    }
  } else {
    const auto code = oidc::parse_device_code(200, text);
    if (code.ok()) MUSTER_CHECK(!code->device_code.empty() && code->interval > Millis(0));
  }
}

}  // namespace
}  // namespace muster::fuzz
