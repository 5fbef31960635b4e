#include "oidc/id_token.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "crypto/secret.h"

namespace muster::oidc {
namespace {

using wire::Json;

constexpr wire::JsonLimits kClaimLimits{.bytes = kTokenMax, .depth = 16, .values = 10'000};
constexpr std::size_t kSubjectMax = 255;
constexpr double kSecondsMax = 1e11;

Error refused(std::string_view why, std::string_view claim) {
  return error(
      Code::PermissionDenied,
      fmt::format("the identity provider's token is refused: {}; begin again, and tell the operator if it stays so",
                  why),
      std::string(claim));
}
Error wrong_clock(std::string_view why, std::string_view claim) {
  return error(Code::PermissionDenied,
               fmt::format("the identity provider's token is {}: the clocks of the control plane and of the identity "
                           "provider differ; ask the operator to set them by the network",
                           why),
               std::string(claim));
}

struct Parts {
  std::string_view head, body, signature, signed_text;
};
Result<Parts> split(std::string_view token) {
  if (token.size() > kTokenMax) return refused("it is too long", "token");
  const auto first = token.find('.');
  const auto second = first == std::string_view::npos ? first : token.find('.', first + 1);
  if (second == std::string_view::npos || token.find('.', second + 1) != std::string_view::npos)
    return refused("it is not signed as a token is", "token");
  return Parts{token.substr(0, first), token.substr(first + 1, second - first - 1), token.substr(second + 1),
               token.substr(0, second)};
}

Result<Json> decoded(std::string_view part) {
  const auto bytes = unbase64url(part);
  if (!bytes) return refused("it is not base64url", "token");
  auto value = wire::parse_json(as_string(*bytes), kClaimLimits);
  if (!value.ok() || !value->is(Json::Kind::Object)) return refused("it holds no JSON object", "token");
  return value;
}

bool same(std::string_view a, std::string_view b) {
  return crypto::equal(as_bytes(a), as_bytes(b));
}

// Milliseconds; the claim may be absent unless it is needed.
Result<std::optional<std::int64_t>> time_of(const Json& claims, std::string_view name, bool needed) {
  const Json* found = claims.find(name);
  if (found == nullptr && !needed) return std::optional<std::int64_t>();
  const double seconds = found != nullptr && found->is(Json::Kind::Number) ? found->real(-1) : -1;
  if (!std::isfinite(seconds) || seconds <= 0 || seconds > kSecondsMax)
    return refused(fmt::format("{} is no time", name), name);
  return std::optional(static_cast<std::int64_t>(seconds * 1000));
}

// "" where it is absent.
Result<std::string> short_text(const Json& claims, std::string_view name) {
  const Json* found = claims.find(name);
  if (found == nullptr) return std::string();
  if (!found->is(Json::Kind::String) || found->text().empty() || found->text().size() > kSubjectMax)
    return refused(fmt::format("{} is no text", name), name);
  return found->text();
}

Status check_signature(const Parts& parts, const TokenHead& head, const std::vector<Key>& keys) {
  const auto signature = unbase64url(parts.signature);
  if (!signature) return refused("it is not base64url", "signature");
  for (const Key& key : keys) {
    if (!head.key_id.empty() && key.id != head.key_id) continue;
    if (key.alg && *key.alg != head.alg) continue;
    if (key.key.verify(head.alg, as_bytes(parts.signed_text), *signature)) return {};
  }
  return knows_key(keys, head) ? refused("its signature is wrong", "signature")
                               : refused("it is signed with a key that the provider does not show", "kid");
}

constexpr std::string_view kLogoutEvent = "http://schemas.openid.net/event/backchannel-logout";

Status check_audience(const Json& claims, const std::string& client_id) {
  const Json& aud = claims["aud"];
  bool named = aud.is(Json::Kind::String) && aud.text() == client_id;
  for (const Json& each : aud.items()) {
    if (!each.is(Json::Kind::String)) return refused("its audience is no list of texts", "aud");
    named = named || each.text() == client_id;
  }
  if (!named) return refused("it is meant for another program", "aud");
  const Json* party = claims.find("azp");
  if (party == nullptr && aud.items().size() > 1) return refused("it has several audiences and no azp", "azp");
  if (party != nullptr && (!party->is(Json::Kind::String) || party->text() != client_id))
    return refused("it was given to another program", "azp");
  return {};
}

Status check_times(const Json& claims, WallTime now) {
  const auto expires = TRY(time_of(claims, "exp", true)), issued = TRY(time_of(claims, "iat", true)),
             not_before = TRY(time_of(claims, "nbf", false));
  if (*issued > now.ms + kSkew.count()) return wrong_clock("from the future", "iat");
  if (*issued + kFresh.count() + kSkew.count() < now.ms) return wrong_clock("too old", "iat");
  if (*expires + kSkew.count() <= now.ms) return wrong_clock("over", "exp");
  if (not_before && *not_before > now.ms + kSkew.count()) return wrong_clock("not valid yet", "nbf");
  return {};
}

Status check_access_token(const Json& claims, const TokenHead& head, const Expected& expected) {
  const Json* given = claims.find("at_hash");
  if (given == nullptr) return {};
  Bytes digest = crypto::web_digest(head.alg, as_bytes(expected.access_token));
  digest.resize(digest.size() / 2);
  if (!given->is(Json::Kind::String) || !same(given->text(), base64url(digest)))
    return refused("it does not belong to the access token that came with it", "at_hash");
  return {};
}

}  // namespace

Result<TokenHead> token_head(std::string_view token) {
  const Parts parts = TRY(split(token));
  const Json head = TRY(decoded(parts.head));
  const Json &alg = head["alg"], *id = head.find("kid");
  const auto known = alg.is(Json::Kind::String) ? crypto::web_alg(alg.text()) : std::nullopt;
  if (!known) return refused("its algorithm is none of RS256, PS256, ES256 and EdDSA", "alg");
  if (head.find("crit") != nullptr) return refused("it demands an extension", "crit");
  if (id != nullptr && (!id->is(Json::Kind::String) || id->text().size() > 1000))
    return refused("its key id is no text", "kid");
  return TokenHead{*known, id != nullptr ? id->text() : std::string()};
}

bool knows_key(const std::vector<Key>& keys, const TokenHead& head) {
  return std::any_of(keys.begin(), keys.end(), [&](const Key& key) {
    return key.key.fits(head.alg) && (head.key_id.empty() || key.id == head.key_id);
  });
}

Result<Json> verify_id_token(std::string_view token, const std::vector<Key>& keys, const Expected& expected) {
  const TokenHead head = TRY(token_head(token));
  const Parts parts = TRY(split(token));
  TRY_VOID(check_signature(parts, head, keys));
  const Json claims = TRY(decoded(parts.body));
  const Json &issuer = claims["iss"], &subject = claims["sub"];
  if (!issuer.is(Json::Kind::String) || issuer.text() != expected.issuer)
    return refused("another issuer made it", "iss");
  if (claims.find("events") != nullptr) return refused("it tells of an event and not of a login", "events");
  TRY_VOID(check_audience(claims, expected.client_id));
  TRY_VOID(check_times(claims, expected.now));
  if (!expected.nonce.empty() &&
      (!claims["nonce"].is(Json::Kind::String) || !same(claims["nonce"].text(), expected.nonce)))
    return refused("it is of another login", "nonce");
  TRY_VOID(check_access_token(claims, head, expected));
  if (!subject.is(Json::Kind::String) || subject.text().empty() || subject.text().size() > kSubjectMax)
    return refused("it does not say who the person is", "sub");
  return claims;
}

Result<Logout> verify_logout_token(std::string_view token, const std::vector<Key>& keys, const std::string& issuer,
                                   const std::string& client_id, WallTime now) {
  const TokenHead head = TRY(token_head(token));
  const Parts parts = TRY(split(token));
  const Json header = TRY(decoded(parts.head));
  if (const Json* type = header.find("typ");
      type != nullptr && type->text() != "logout+jwt" && type->text() != "JWT" && type->text() != "jwt")
    return refused("it is a token of another type", "typ");
  TRY_VOID(check_signature(parts, head, keys));
  const Json claims = TRY(decoded(parts.body));
  if (!claims["iss"].is(Json::Kind::String) || claims["iss"].text() != issuer)
    return refused("another issuer made it", "iss");
  TRY_VOID(check_audience(claims, client_id));
  const auto issued = TRY(time_of(claims, "iat", true)), expires = TRY(time_of(claims, "exp", false));
  if (*issued > now.ms + kSkew.count()) return wrong_clock("from the future", "iat");
  if (*issued + kLogoutFresh.count() < now.ms) return wrong_clock("too old", "iat");
  if (expires && *expires + kSkew.count() <= now.ms) return wrong_clock("over", "exp");
  const Json& events = claims["events"];
  const Json* event = events.is(Json::Kind::Object) ? events.find(kLogoutEvent) : nullptr;
  if (event == nullptr || !event->is(Json::Kind::Object)) return refused("it tells of no logout", "events");
  if (claims.find("nonce") != nullptr) return refused("it has a nonce, so it is no logout's", "nonce");
  Logout out;
  out.subject = TRY(short_text(claims, "sub"));
  out.session = TRY(short_text(claims, "sid"));
  out.id = TRY(short_text(claims, "jti"));
  if (out.id.empty()) return refused("it has no id", "jti");
  if (out.subject.empty() && out.session.empty()) return refused("it says neither who nor which session", "sub");
  return out;
}

}  // namespace muster::oidc
