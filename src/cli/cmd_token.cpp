// token and join-token: create, list, revoke. Secrets go to standard output once, or to a 0600 file.
#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include "cli/config.h"
#include "cli/shell.h"
#include "cli/terminal.h"
#include "wire/rest.h"

namespace muster::cli {
namespace {

struct TokenOptions {
  std::string id, label, lifetime, org, out;
  std::vector<std::string> scopes, labels;
};

Result<Millis> lifetime_of(const TokenOptions& options) {
  if (options.lifetime.empty()) return Millis(0);
  const auto seconds = parse_duration(options.lifetime);
  if (!seconds || *seconds <= 0)
    return error(Code::InvalidArgument, "--lifetime wants a duration such as 30m, 12h or 90d");
  return Millis(*seconds * 1'000);
}

Result<int> create(Shell& shell, const TokenOptions& options) {
  Api* api = TRY(shell.api());
  const auto token = TRY(
      api->send("POST", "/api/v1/tokens",
                wire::to_json(wire::CreateApiTokenRequest{options.label, options.scopes, TRY(lifetime_of(options))})));
  if (!options.out.empty()) {
    TRY_VOID(write_secret_file(options.out, token["secret"].text() + "\n"));
    say(fmt::format("{} until {}, in {}", clean(token["id"].text()), short_time(token["expiresAt"]), options.out));
    return 0;
  }
  say(fmt::format("{} until {}; shown once:", clean(token["id"].text()), short_time(token["expiresAt"])));
  shell.show(token, [&] { return token["secret"].text() + "\n"; });
  return 0;
}

Result<int> create_join(Shell& shell, const TokenOptions& options) {
  std::map<std::string, std::string> labels;
  for (const auto& pair : options.labels) {
    const auto equals = pair.find('=');
    if (equals == std::string::npos || equals == 0)
      return error(Code::InvalidArgument, "--label wants NAME=VALUE, not " + pair);
    labels[pair.substr(0, equals)] = pair.substr(equals + 1);
  }
  Api* api = TRY(shell.api());
  const auto token =
      TRY(api->send("POST", "/api/v1/join-tokens",
                    wire::to_json(wire::CreateJoinTokenRequest{options.org, labels, TRY(lifetime_of(options))})));
  if (!options.out.empty()) TRY_VOID(write_secret_file(options.out, token["secret"].text() + "\n"));
  say(fmt::format(
      "{} enrols one machine until {}. On that machine, run\n\n  muster-agent join {} --token-file {}\n\n{}",
      clean(token["id"].text()), short_time(token["expiresAt"]), api->account().server,
      options.out.empty() ? "-" : "FILE",
      options.out.empty() ? "then paste this token (shown once) and press Enter and Ctrl-D:"
                          : "with the token from " + options.out));
  if (options.out.empty()) shell.show(token, [&] { return token["secret"].text() + "\n"; });
  return 0;
}

Result<int> list_tokens(Shell& shell, bool join) {
  Api* api = TRY(shell.api());
  shell.show_list(TRY(api->list(join ? "/api/v1/join-tokens" : "/api/v1/tokens")), [&](const auto& items) {
    Table table({"ID", join ? "SUPPLIER" : "LABEL", "EXPIRES", join ? "USED BY" : "SCOPES", "STATE"});
    for (const auto& t : items) {
      std::string scopes;
      for (const auto& scope : t["scopes"].items()) scopes += (scopes.empty() ? "" : ",") + scope.text();
      table.add({t["id"].text(), join ? t["supplierOrgId"].text() : t["label"].text(), short_time(t["expiresAt"]),
                 join ? t["usedBy"].text() : scopes, t["revoked"].truth() ? "revoked" : "valid"});
    }
    return table.text(shell.colour());
  });
  return 0;
}

Result<int> revoke(Shell& shell, bool join, const std::string& id) {
  Api* api = TRY(shell.api());
  const auto token = TRY(api->send("DELETE", path_of(join ? "join-tokens" : "tokens", id)));
  shell.show(token, [&] { return id + " is revoked\n"; });
  return 0;
}

}  // namespace

void add_token(CLI::App& app, Shell& shell) {
  for (const bool join : {false, true}) {
    auto options = std::make_shared<TokenOptions>();
    auto* parent = app.add_subcommand(join ? "join-token" : "token",
                                      join ? "One-use tokens that enrol machines" : "API tokens of this account");
    parent->require_subcommand(1);
    auto* create_command =
        parent->add_subcommand("create", join ? "Make a token for one machine" : "Make an API token");
    create_command->add_option("--lifetime", options->lifetime,
                               join ? "default 1h, at most 24h" : "such as 12h or 90d");
    create_command->add_option("--out", options->out, "write the secret to this file (0600) instead of printing it");
    if (join) {
      create_command->add_option("--org", options->org, "supplier organisation (default: yours)");
      create_command
          ->add_option("--label", options->labels,
                       "NAME=VALUE put on the machine, may repeat; pool=NAME: into that pool of the organisation")
          ->allow_extra_args(false);
      create_command->footer("Example:\n  muster join-token create --label region=eu --label pool=gold");
    } else {
      create_command->add_option("--label", options->label, "what it is for");
      create_command
          ->add_option("--scope", options->scopes, "read, clusters, nodes or admin; may repeat; none = all you may")
          ->allow_extra_args(false);
      create_command->footer(
          "Example:\n  muster token create --label ci --scope clusters --lifetime 90d --out ci.token");
    }
    create_command->callback([options, join, &shell] {
      shell.action = [options, join, &shell] { return join ? create_join(shell, *options) : create(shell, *options); };
    });
    const std::string name = join ? "join-token" : "token";
    auto* list_command = parent->add_subcommand("list", "List them");
    list_command->footer(fmt::format("Example:\n  muster {} list -o json", name));
    list_command->callback([join, &shell] { shell.action = [join, &shell] { return list_tokens(shell, join); }; });
    auto* revoke_command = parent->add_subcommand("revoke", "End one at once");
    revoke_command->footer(fmt::format("Example:\n  muster {0} revoke ID    # from muster {0} list", name));
    revoke_command->add_option("token", options->id, "id")->required();
    revoke_command->callback([options, join, &shell] {
      shell.action = [options, join, &shell] { return revoke(shell, join, options->id); };
    });
  }
}

}  // namespace muster::cli
