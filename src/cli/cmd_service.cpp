// service-account: accounts of programs
#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include "cli/config.h"
#include "cli/shell.h"
#include "cli/terminal.h"
#include "model/names.h"
#include "wire/names.h"
#include "wire/rest.h"

namespace muster::cli {
namespace {

struct ServiceOptions {
  std::string name, role, org, note, label, lifetime, out, token;
  std::vector<std::string> scopes;
};

Result<int> create_service(Shell& shell, const ServiceOptions& options) {
  const auto role = options.role.empty() ? std::optional(Role::None) : wire::parse_role(options.role);
  if (!role) return error(Code::InvalidArgument, fmt::format("--role is {}", kRolesInWords));
  Api* api = TRY(shell.api());
  const auto made =
      TRY(api->send("POST", "/api/v1/service-accounts",
                    wire::to_json(wire::CreateServiceAccountRequest{options.name, *role, options.org, options.note})));
  shell.show(made, [&] {
    return fmt::format("{} {} ({}); it has no password: `muster service-account token create {}` makes a token\n",
                       clean(made["id"].text()), clean(made["name"].text()), clean(made["role"].text()), options.name);
  });
  return 0;
}

Result<int> list_services(Shell& shell) {
  Api* api = TRY(shell.api());
  shell.show_list(TRY(api->list("/api/v1/service-accounts")), [&](const auto& items) {
    Table table({"ID", "NAME", "ROLE", "ORGANISATION", "STATE", "TOKENS", "MADE BY", "FOR"});
    for (const auto& i : items)
      table.add({i["id"].text(), i["name"].text(), i["role"].text(),
                 i["org"].text().empty() ? i["orgId"].text() : i["org"].text(),
                 i["disabled"].truth() ? "disabled" : "enabled", std::to_string(i["tokens"].integer()),
                 i["madeBy"].text(), i["note"].text()});
    return table.text(shell.colour());
  });
  return 0;
}

Result<int> disable_service(Shell& shell, const ServiceOptions& options) {
  Api* api = TRY(shell.api());
  const auto gone = TRY(api->send("DELETE", path_of("service-accounts", options.name)));
  shell.show(gone, [&] { return options.name + " is disabled for good; its tokens and open streams end with it\n"; });
  return 0;
}

Result<int> create_service_token(Shell& shell, const ServiceOptions& options) {
  Millis lifetime{0};
  if (!options.lifetime.empty()) {
    const auto seconds = parse_duration(options.lifetime);
    if (!seconds || *seconds <= 0)
      return error(Code::InvalidArgument, "--lifetime wants a duration such as 30m, 12h or 90d");
    lifetime = Millis(*seconds * 1'000);
  }
  Api* api = TRY(shell.api());
  const auto token =
      TRY(api->send("POST", path_of("service-accounts", options.name) + "/tokens",
                    wire::to_json(wire::CreateApiTokenRequest{options.label, options.scopes, lifetime})));
  const std::string id = clean(token["id"].text());
  if (!options.out.empty()) {
    TRY_VOID(write_secret_file(options.out, token["secret"].text() + "\n"));
    say(fmt::format("{} until {}, in {}", id, short_time(token["expiresAt"]), options.out));
    return 0;
  }
  say(fmt::format("{} until {}; shown once:", id, short_time(token["expiresAt"])));
  shell.show(token, [&] { return token["secret"].text() + "\n"; });
  return 0;
}

Result<int> list_service_tokens(Shell& shell, const ServiceOptions& options) {
  Api* api = TRY(shell.api());
  shell.show_list(TRY(api->list(path_of("service-accounts", options.name) + "/tokens")), [&](const auto& items) {
    Table table({"ID", "LABEL", "EXPIRES", "SCOPES", "STATE"});
    for (const auto& t : items) {
      std::string scopes;
      for (const auto& scope : t["scopes"].items()) scopes += (scopes.empty() ? "" : ",") + scope.text();
      table.add({t["id"].text(), t["label"].text(), short_time(t["expiresAt"]), scopes,
                 t["revoked"].truth() ? "revoked" : "valid"});
    }
    return table.text(shell.colour());
  });
  return 0;
}

Result<int> revoke_service_token(Shell& shell, const ServiceOptions& options) {
  Api* api = TRY(shell.api());
  const auto token = TRY(api->send("DELETE", path_of("tokens", options.token)));
  shell.show(token, [&] { return options.token + " is revoked\n"; });
  return 0;
}

using ServiceAction = Result<int> (*)(Shell&, const ServiceOptions&);
std::shared_ptr<ServiceOptions> add_action(CLI::App* command, Shell& shell, ServiceAction action,
                                           const std::string& footer) {
  auto options = std::make_shared<ServiceOptions>();
  command->footer(footer);
  command->callback(
      [options, action, &shell] { shell.action = [options, action, &shell] { return action(shell, *options); }; });
  return options;
}

}  // namespace

void add_service(CLI::App& app, Shell& shell) {
  auto* parent = app.add_subcommand("service-account", "Accounts of programs: no password, tokens only");
  parent->require_subcommand(1);
  auto* create = parent->add_subcommand("create", "Make one");
  auto options = add_action(create, shell, create_service,
                            "Example:\n  muster service-account create ci --note \"nightly training\"");
  create->add_option("name", options->name, "its name, unique in the organisation")->required();
  create->add_option("--role", options->role,
                     "one that may no more than yours (default: yours, an administrator's: tenant)");
  create->add_option("--org", options->org, "organisation (default: yours)");
  create->add_option("--note", options->note, "what it is for");

  auto* list = parent->add_subcommand("list", "List them");
  add_action(
      list, shell, [](Shell& s, const ServiceOptions&) { return list_services(s); },
      "Example:\n  muster service-account list");

  auto* disable = parent->add_subcommand("disable", "Disable one for good; its tokens and open streams end");
  options = add_action(disable, shell, disable_service, "Example:\n  muster service-account disable ci");
  disable->add_option("name", options->name, "name or id")->required();

  auto* token = parent->add_subcommand("token", "Its tokens");
  token->require_subcommand(1);
  auto* make = token->add_subcommand("create", "Make a token");
  options =
      add_action(make, shell, create_service_token,
                 "Example:\n  muster service-account token create ci --scope clusters --lifetime 90d --out ci.token");
  make->add_option("name", options->name, "name or id of the account")->required();
  make->add_option("--label", options->label, "where it is used");
  make->add_option("--scope", options->scopes, "read, clusters, nodes or admin; may repeat; none = all it may")
      ->allow_extra_args(false);
  make->add_option("--lifetime", options->lifetime, "such as 12h or 90d (default 30d, at most 400d)");
  make->add_option("--out", options->out, "write the secret to this file (0600) instead of printing it");

  auto* tokens = token->add_subcommand("list", "List its tokens");
  options = add_action(tokens, shell, list_service_tokens, "Example:\n  muster service-account token list ci");
  tokens->add_option("name", options->name, "name or id of the account")->required();

  auto* revoke = token->add_subcommand("revoke", "End one at once");
  options =
      add_action(revoke, shell, revoke_service_token,
                 "Example:\n  muster service-account token revoke ID    # from muster service-account token list");
  revoke->add_option("token", options->token, "id")->required();
}

}  // namespace muster::cli
