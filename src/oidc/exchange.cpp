#include "oidc/exchange.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "crypto/hash.h"
#include "wire/json.h"

namespace muster::oidc {
namespace {

using wire::Json;

constexpr wire::JsonLimits kAnswerLimits{.bytes = kDocumentMax, .depth = 16, .values = 5000};
constexpr std::size_t kTextMax = 32 << 10, kUserCodeMax = 64, kUrlMax = 2000;

// A word as the standards have it; anything else a provider says is not repeated.
std::string word(const Json& value) {
  std::string out;
  for (const char c : value.text().substr(0, 64))
    if ((c >= 'a' && c <= 'z') || c == '_') out += c;
  return out;
}

bool visible(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return c > ' ' && c < 0x7f; });
}

Result<Json> answer_of(int status, std::string_view body) {
  auto value = wire::parse_json(body, kAnswerLimits);
  const bool object = value.ok() && value->is(Json::Kind::Object);
  if (object && status == 200) return value;
  if (object && value->find("error") != nullptr) return meaning(word((*value)["error"]));
  return error(Code::Unavailable,
               fmt::format("the identity provider answers with status {} and nothing that can be read; try again later",
                           status));
}

}  // namespace

std::string pkce_challenge(std::string_view verifier) {
  return base64url(crypto::sha256(as_bytes(verifier)));
}

Fields authorization_fields(const Settings& settings, const std::string& redirect_uri, const std::string& state,
                            const std::string& nonce, const std::string& verifier) {
  return {{"response_type", "code"},
          {"client_id", settings.client_id},
          {"redirect_uri", redirect_uri},
          {"scope", fmt::format("{}", fmt::join(settings.scopes, " "))},
          {"state", state},
          {"nonce", nonce},
          {"code_challenge", pkce_challenge(verifier)},
          {"code_challenge_method", "S256"}};
}

Fields code_fields(const std::string& code, const std::string& redirect_uri, const std::string& verifier) {
  return {{"grant_type", "authorization_code"},
          {"code", code},
          {"redirect_uri", redirect_uri},
          {"code_verifier", verifier}};
}

Fields device_fields(const Settings& settings) {
  return {{"scope", fmt::format("{}", fmt::join(settings.scopes, " "))}};
}

Fields poll_fields(const std::string& device_code) {
  return {{"grant_type", "urn:ietf:params:oauth:grant-type:device_code"}, {"device_code", device_code}};
}

std::string basic_credentials(const std::string& encoded_id, const std::string& encoded_secret) {
  return "Basic " + base64(as_bytes(encoded_id + ":" + encoded_secret));
}

Result<Tokens> parse_tokens(int status, std::string_view body) {
  const Json answer = TRY(answer_of(status, body));
  const Json &id = answer["id_token"], &access = answer["access_token"];
  if (!id.is(Json::Kind::String) || id.text().empty())
    return error(Code::Unavailable, "the identity provider gives no ID token; is it an OpenID Connect provider?");
  if (!access.is(Json::Kind::String) || access.text().size() > kTextMax || !visible(access.text()))
    return error(Code::Unavailable, "the identity provider's access token cannot be read");
  return Tokens{id.text(), access.text()};
}

Result<DeviceCode> parse_device_code(int status, std::string_view body) {
  const Json answer = TRY(answer_of(status, body));
  DeviceCode out;
  out.device_code = answer["device_code"].text();
  out.user_code = answer["user_code"].text();
  out.url = answer["verification_uri"].text();
  if (out.url.empty()) out.url = answer["verification_url"].text();  // as some say it
  out.complete_url = answer["verification_uri_complete"].text();
  const std::int64_t lifetime = answer["expires_in"].integer(), interval = answer["interval"].integer(5);
  if (out.device_code.empty() || out.device_code.size() > kTextMax || out.user_code.empty() ||
      out.user_code.size() > kUserCodeMax || out.url.empty() || out.url.size() > kUrlMax ||
      out.complete_url.size() > kUrlMax || !visible(out.device_code) || !visible(out.url) ||
      !visible(out.complete_url) || !visible(out.user_code) || lifetime < 1)
    return error(Code::Unavailable, "the identity provider's device code cannot be read");
  out.lifetime = Millis(std::min<std::int64_t>(lifetime, 3600) * 1000);
  out.interval = Millis(std::clamp<std::int64_t>(interval, 1, 60) * 1000);
  return out;
}

Error meaning(std::string_view provider_error) {
  struct Row {
    std::string_view name;
    Code code;
    std::string_view text;
  };
  static constexpr Row kRows[] = {
      {"access_denied", Code::Cancelled, "the login was cancelled at the identity provider; begin again to log in"},
      {"authorization_pending", Code::Unavailable, "the login is not finished in the browser yet"},
      {"slow_down", Code::Unavailable, "the identity provider wants to be asked less often"},
      {"expired_token", Code::FailedPrecondition, "the code was not used in time; begin again"},
      {"invalid_grant", Code::FailedPrecondition, "the login took too long or was used before; begin again"},
      {"invalid_client", Code::FailedPrecondition,
       "the identity provider does not accept this control plane: its client id or secret is wrong; tell the operator"},
      {"unauthorized_client", Code::FailedPrecondition,
       "the identity provider does not allow this way to log in to this control plane; try the other one (with or "
       "without --device), or tell the operator to allow it there"},
      {"unsupported_grant_type", Code::FailedPrecondition,
       "the identity provider does not know this way to log in; try the other one (with or without --device)"},
      {"invalid_scope", Code::FailedPrecondition,
       "the identity provider does not know a scope that this control plane asks for; tell the operator"},
      {"login_required", Code::Cancelled, "the identity provider wants you to log in there first; begin again"},
      {"temporarily_unavailable", Code::Unavailable, "the identity provider is not available now; try again later"},
      {"server_error", Code::Unavailable, "the identity provider had a fault of its own; try again later"}};
  for (const Row& row : kRows)
    if (row.name == provider_error) return error(row.code, std::string(row.text), std::string(row.name));
  std::string name;  // of a browser's answer it may be anything
  for (const char c : provider_error.substr(0, 64))
    if ((c >= 'a' && c <= 'z') || c == '_') name += c;
  return error(Code::FailedPrecondition,
               fmt::format("the identity provider refuses the login ({}); tell the operator",
                           name.empty() ? "it does not say why" : name),
               name);
}

}  // namespace muster::oidc
