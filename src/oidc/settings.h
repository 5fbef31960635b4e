#pragma once
// What an operator says of his identity provider, and what follows from a person's claims: is he let in, as what. Read
// from a JSON file (docs/operator.md); unknown keys are refused, so a misspelt limit cannot be no limit. The client
// secret is a file of its own and never in here. Pure; values; any thread. Errors name the key.
#include <optional>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"
#include "model/types.h"
#include "wire/json.h"

namespace muster::oidc {

// The first rule that fits decides. A rule without a claim fits everybody.
struct Rule {
  std::string claim, value;  // fits when the claim is this text, or a list that holds it
  Role role = Role::None;
  std::string org, project;  // names; project: what the command line uses from then on, empty = the first
};

enum class Unknown : std::uint8_t { Refuse, Create };  // what becomes of people who have no account

struct Settings {
  std::string issuer, client_id, client_secret_file, ca_file;
  std::vector<std::string> scopes = {"openid", "profile", "email"};
  std::string name_claim = "preferred_username";  // what accounts that are made are named after
  Unknown unknown = Unknown::Refuse;
  std::vector<std::string> email_domains;  // empty: any; otherwise email_verified must be true
  std::vector<Rule> rules;
  Millis login_lifetime{12LL * 3'600'000};  // one to 720 hours
};
Result<Settings> parse_settings(std::string_view text);

// A claim by its name, or where there is none of that name, by the dots in it ("realm_access.roles").
const wire::Json* find_claim(const wire::Json& claims, std::string_view name);
// Everything that the rules ask about is there: the userinfo endpoint need not be asked.
bool complete(const Settings& settings, const wire::Json& claims);

// PermissionDenied: the e-mail address is of no domain that may, or not verified.
Status check_email(const Settings& settings, const wire::Json& claims);
// nullptr: no rule fits.
const Rule* find_rule(const Settings& settings, const wire::Json& claims);
// A name as accounts have it (model/validate.h), at most 48 characters; "person" where the claims give nothing.
std::string account_name(const Settings& settings, const wire::Json& claims);
// What stands for the person from then on: SHA-256 over issuer and subject. Never the e-mail address.
Bytes person_key(const std::string& issuer, const std::string& subject);

}  // namespace muster::oidc
