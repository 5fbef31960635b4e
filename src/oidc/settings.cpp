#include "oidc/settings.h"

#include <fmt/format.h>

#include <algorithm>

#include "crypto/hash.h"
#include "crypto/sign.h"
#include "model/names.h"
#include "model/validate.h"
#include "wire/names.h"

namespace muster::oidc {
namespace {

using wire::Json;

constexpr std::size_t kRulesMax = 1000, kListMax = 100, kNameMax = 48;

Error wrong(std::string_view field, std::string_view what) {
  return error(Code::InvalidArgument, fmt::format("{} {}", field, what), std::string(field));
}

Status only(const Json& object, std::string_view where, std::initializer_list<std::string_view> keys) {
  for (const auto& [key, value] : object.members())
    if (std::find(keys.begin(), keys.end(), key) == keys.end())
      return wrong(fmt::format("{}{}", where, key),
                   fmt::format("is no key here; these are: {}", fmt::join(keys, ", ")));
  return {};
}

// "" where it is absent.
Result<std::string> text_at(const Json& object, std::string_view where, std::string_view key) {
  const Json* found = object.find(key);
  if (found == nullptr) return std::string();
  const bool fits = found->is(Json::Kind::String) && !found->text().empty() && found->text().size() <= 1000 &&
                    std::none_of(found->text().begin(), found->text().end(),
                                 [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; });
  if (!fits) return wrong(fmt::format("{}{}", where, key), "must be a text");
  return found->text();
}
Result<std::vector<std::string>> texts_at(const Json& object, std::string_view key) {
  const Json* found = object.find(key);
  std::vector<std::string> out;
  if (found == nullptr) return out;
  if (!found->is(Json::Kind::Array) || found->items().size() > kListMax) return wrong(key, "must be a list of texts");
  for (const Json& each : found->items()) {
    if (!each.is(Json::Kind::String) || each.text().empty()) return wrong(key, "must be a list of texts");
    out.push_back(each.text());
  }
  return out;
}

Result<Rule> parse_rule(const Json& value, std::size_t index) {
  const std::string where = fmt::format("rules[{}].", index);
  if (!value.is(Json::Kind::Object)) return wrong(where, "must be an object");
  TRY_VOID(only(value, where, {"claim", "value", "role", "org", "project"}));
  Rule rule;
  rule.claim = TRY(text_at(value, where, "claim"));
  rule.value = TRY(text_at(value, where, "value"));
  rule.org = TRY(text_at(value, where, "org"));
  rule.project = TRY(text_at(value, where, "project"));
  if (rule.claim.empty() != rule.value.empty()) return wrong(where + "claim", "and value go together");
  const auto role = wire::parse_role(TRY(text_at(value, where, "role")));
  if (!role) return wrong(where + "role", fmt::format("must be {}", kRolesInWords));
  rule.role = *role;
  if (rule.org.empty()) return wrong(where + "org", "must name the organisation that the account is made in");
  if ((rule.role == Role::Operator || rule.role == Role::TenantAdmin) && rule.claim.empty())
    return wrong(where + "role", "would make an operator or administrator of everybody; name a claim and its value");
  return rule;
}

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c | 0x20) : c;
  return out;
}

bool holds(const Json& claim, const std::string& value) {
  if (claim.is(Json::Kind::String)) return claim.text() == value;
  return claim.is(Json::Kind::Array) && std::any_of(claim.items().begin(), claim.items().end(), [&](const Json& each) {
           return each.is(Json::Kind::String) && each.text() == value;
         });
}

}  // namespace

Result<Settings> parse_settings(std::string_view text) {
  const Json file = TRY(wire::parse_json(text));
  if (!file.is(Json::Kind::Object)) return error(Code::InvalidArgument, "it must be a JSON object");
  TRY_VOID(only(file, "",
                {"issuer", "clientId", "clientSecretFile", "caFile", "scopes", "nameClaim", "unknown", "emailDomains",
                 "rules", "loginHours"}));
  Settings out;
  out.issuer = TRY(text_at(file, "", "issuer"));
  out.client_id = TRY(text_at(file, "", "clientId"));
  if (out.issuer.empty()) return wrong("issuer", "is missing: the URL of the identity provider, exactly as it says it");
  if (out.client_id.empty()) return wrong("clientId", "is missing: the id under which the provider knows Muster");
  out.client_secret_file = TRY(text_at(file, "", "clientSecretFile"));
  out.ca_file = TRY(text_at(file, "", "caFile"));
  if (auto scopes = TRY(texts_at(file, "scopes")); !scopes.empty()) out.scopes = std::move(scopes);
  if (std::find(out.scopes.begin(), out.scopes.end(), "openid") == out.scopes.end())
    return wrong("scopes", "must hold openid");
  for (const std::string& scope : out.scopes)
    if (scope.find_first_of(" \"\\") != std::string::npos) return wrong("scopes", "must be one word each");
  if (auto name = TRY(text_at(file, "", "nameClaim")); !name.empty()) out.name_claim = std::move(name);
  const std::string unknown = TRY(text_at(file, "", "unknown"));
  if (!unknown.empty() && unknown != "refuse" && unknown != "create")
    return wrong("unknown", "must be refuse (only people whom an operator invited) or create (by the rules)");
  if (unknown == "create") out.unknown = Unknown::Create;
  for (std::string& domain : TRY(texts_at(file, "emailDomains"))) out.email_domains.push_back(lower(domain));
  if (const Json* rules = file.find("rules")) {
    if (!rules->is(Json::Kind::Array) || rules->items().size() > kRulesMax) return wrong("rules", "must be a list");
    for (const Json& each : rules->items()) out.rules.push_back(TRY(parse_rule(each, out.rules.size())));
  }
  if (out.unknown == Unknown::Create && out.rules.empty())
    return wrong("rules", "must say what people become for whom accounts are made");
  if (const Json* hours = file.find("loginHours")) {
    const std::int64_t count = hours->is(Json::Kind::Number) ? hours->integer() : 0;
    if (count < 1 || count > 720) return wrong("loginHours", "must be a whole number from 1 to 720");
    out.login_lifetime = Millis(count * 3'600'000);
  }
  return out;
}

const Json* find_claim(const Json& claims, std::string_view name) {
  const Json* at = &claims;
  while (true) {
    if (const Json* whole = at->find(name)) return whole;
    const auto dot = name.find('.');
    if (dot == std::string_view::npos) return nullptr;
    at = at->find(name.substr(0, dot));
    if (at == nullptr || !at->is(Json::Kind::Object)) return nullptr;
    name.remove_prefix(dot + 1);
  }
}

bool complete(const Settings& settings, const Json& claims) {
  const auto there = [&](std::string_view name) { return find_claim(claims, name) != nullptr; };
  if (!settings.email_domains.empty() && !(there("email") && there("email_verified"))) return false;
  if (settings.unknown == Unknown::Create && !there(settings.name_claim)) return false;
  return std::all_of(settings.rules.begin(), settings.rules.end(),
                     [&](const Rule& rule) { return rule.claim.empty() || there(rule.claim); });
}

Status check_email(const Settings& settings, const Json& claims) {
  if (settings.email_domains.empty()) return {};
  const Json& email = claims["email"];
  const auto at = email.text().rfind('@');
  if (!email.is(Json::Kind::String) || at == std::string::npos || at == 0)
    return error(Code::PermissionDenied,
                 "the identity provider tells no e-mail address, and only addresses of some domains may log in here; "
                 "ask the operator to add the scope email");
  if (!claims["email_verified"].truth())
    return error(Code::PermissionDenied,
                 "the identity provider has not verified your e-mail address; verify it there, then log in again");
  const std::string domain = lower(std::string_view(email.text()).substr(at + 1));
  if (std::find(settings.email_domains.begin(), settings.email_domains.end(), domain) != settings.email_domains.end())
    return {};
  return error(Code::PermissionDenied,
               "people of your e-mail domain may not log in here; use another account or ask an operator");
}

const Rule* find_rule(const Settings& settings, const Json& claims) {
  for (const Rule& rule : settings.rules) {
    if (rule.claim.empty()) return &rule;
    const Json* claim = find_claim(claims, rule.claim);
    if (claim != nullptr && holds(*claim, rule.value)) return &rule;
  }
  return nullptr;
}

std::string account_name(const Settings& settings, const Json& claims) {
  const auto plain = [](std::string_view text) {
    std::string out;
    for (const char c : lower(text.substr(0, text.find('@')))) {
      const bool good = (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
      if (good || (!out.empty() && (c == '-' || c == '_')))
        out += c;
      else if (!out.empty() && (c == '.' || c == ' ') && out.back() != '-')
        out += '-';
      if (out.size() == kNameMax) break;
    }
    return out;
  };
  for (const std::string& claim : {settings.name_claim, std::string("email"), std::string("name")}) {
    const Json* found = find_claim(claims, claim);
    if (found == nullptr || !found->is(Json::Kind::String)) continue;
    if (std::string name = plain(found->text()); validate_name(name, "name").ok()) return name;
  }
  return "person";
}

Bytes person_key(const std::string& issuer, const std::string& subject) {
  const auto digest = crypto::sha256(crypto::framed("muster-oidc-person-v1", {as_bytes(issuer), as_bytes(subject)}));
  return Bytes(digest.begin(), digest.end());
}

}  // namespace muster::oidc
