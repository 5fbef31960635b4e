#include "oidc/provider.h"

#include <fmt/format.h>

#include <algorithm>

#include "wire/json.h"

namespace muster::oidc {
namespace {

using wire::Json;

constexpr std::size_t kKeysMax = 100;
constexpr wire::JsonLimits kDocumentLimits{.bytes = kDocumentMax, .depth = 16, .values = 20'000};

Error bad_page(std::string_view what) {
  return error(Code::Unavailable, fmt::format("the identity provider's page about itself is wrong: {}", what));
}

Result<Json> object_of(std::string_view body, std::string_view what) {
  auto value = wire::parse_json(body, kDocumentLimits);
  if (!value.ok() || !value->is(Json::Kind::Object))
    return error(Code::Unavailable, fmt::format("the identity provider's {} is no JSON object", what));
  return value;
}

bool lists(const Json& list, std::string_view text) {
  return std::any_of(list.items().begin(), list.items().end(), [&](const Json& each) { return each.text() == text; });
}

Bytes part(const Json& key, std::string_view name) {
  const Json& value = key[name];
  auto bytes = value.is(Json::Kind::String) ? unbase64url(value.text()) : std::nullopt;
  return bytes ? std::move(*bytes) : Bytes();
}

Result<crypto::WebKey> key_of(const Json& key) {
  const std::string& kind = key["kty"].text();
  if (kind == "RSA") return crypto::WebKey::rsa(part(key, "n"), part(key, "e"));
  if (kind == "EC" && key["crv"].text() == "P-256") return crypto::WebKey::p256(part(key, "x"), part(key, "y"));
  if (kind == "OKP" && key["crv"].text() == "Ed25519") return crypto::WebKey::ed25519(part(key, "x"));
  return error(Code::Unsupported, "another kind");
}

}  // namespace

std::string discovery_url(const std::string& issuer) {
  return (issuer.ends_with('/') ? issuer.substr(0, issuer.size() - 1) : issuer) + "/.well-known/openid-configuration";
}

Result<Provider> parse_provider(std::string_view body, const std::string& issuer) {
  const Json page = TRY(object_of(body, "page about itself"));
  Provider out;
  out.issuer = page["issuer"].text();
  if (!page["issuer"].is(Json::Kind::String) || out.issuer != issuer)
    return bad_page(
        "it says that it is another issuer; write issuer into the file of --sso exactly as the page has it");
  const struct {
    const char* name;
    std::string& to;
    bool needed;
  } urls[] = {{"authorization_endpoint", out.authorization_endpoint, true},
              {"token_endpoint", out.token_endpoint, true},
              {"jwks_uri", out.jwks_uri, true},
              {"userinfo_endpoint", out.userinfo_endpoint, false},
              {"device_authorization_endpoint", out.device_endpoint, false}};
  for (const auto& [name, to, needed] : urls) {
    const Json* found = page.find(name);
    if (found == nullptr && !needed) continue;
    if (found == nullptr || !found->is(Json::Kind::String) || found->text().size() > 2000)
      return bad_page(fmt::format("{} is missing", name));
    to = found->text();
  }
  out.names_itself = page["authorization_response_iss_parameter_supported"].truth();
  if (const Json* ways = page.find("token_endpoint_auth_methods_supported"))
    out.secret_in_body = !lists(*ways, "client_secret_basic") && lists(*ways, "client_secret_post");
  return out;
}

Result<std::vector<Key>> parse_keys(std::string_view body) {
  const Json set = TRY(object_of(body, "list of keys"));
  std::vector<Key> out;
  for (const Json& each : set["keys"].items()) {
    if (out.size() >= kKeysMax) break;
    if (!each.is(Json::Kind::Object)) continue;
    const Json *use = each.find("use"), *for_what = each.find("key_ops"), *alg = each.find("alg");
    if (use != nullptr && use->text() != "sig") continue;
    if (for_what != nullptr && !lists(*for_what, "verify")) continue;
    const auto named = alg != nullptr ? crypto::web_alg(alg->text()) : std::nullopt;
    if (alg != nullptr && !named) continue;
    auto key = key_of(each);
    if (!key.ok() || (named && !key->fits(*named))) continue;
    const Json& id = each["kid"];
    out.push_back({id.is(Json::Kind::String) ? id.text() : std::string(), named, std::move(*key)});
  }
  if (out.empty())
    return error(Code::Unavailable,
                 "the identity provider shows no key that can be used; it must sign by RS256, PS256, ES256 or EdDSA");
  return out;
}

}  // namespace muster::oidc
