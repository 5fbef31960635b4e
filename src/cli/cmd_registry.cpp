// registry login, logout, list: accounts of image registries, so that machines may pull private images.
#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include "cli/config.h"
#include "cli/shell.h"
#include "cli/terminal.h"
#include "model/image_name.h"
#include "wire/rest.h"

namespace muster::cli {
namespace {

struct RegistryOptions {
  std::string host, user, password_file, lifetime;
};

Result<std::string> host_of(std::string host) {
  for (const std::string_view scheme : {"https://", "http://"})
    if (host.starts_with(scheme)) host.erase(0, scheme.size());
  while (!host.empty() && host.back() == '/') host.pop_back();
  if (!valid_registry(host))
    return error(Code::InvalidArgument, "name the registry's host, such as ghcr.io or registry.example:5000");
  return host;
}

Result<int> login(Shell& shell, const RegistryOptions& options) {
  const std::string host = TRY(host_of(options.host));
  Millis lifetime{0};
  if (!options.lifetime.empty()) {
    const auto seconds = parse_duration(options.lifetime);
    if (!seconds || *seconds <= 0)
      return error(Code::InvalidArgument, "--lifetime wants a duration such as 30m, 12h or 7d");
    lifetime = Millis(*seconds * 1'000);
  }
  std::string password = TRY(options.password_file.empty()
                                 ? ask_password(fmt::format("Password or token of {} at {}: ", options.user, host))
                                 : read_file(options.password_file, 16'384));
  while (!password.empty() && (password.back() == '\n' || password.back() == '\r')) password.pop_back();
  Api* api = TRY(shell.api());
  const auto made = TRY(api->send("POST", "/api/v1/registries",
                                  wire::to_json(wire::PutRegistryRequest{host, options.user, password, lifetime})));
  shell.show(made, [&] {
    return fmt::format("Machines that run your clusters may pull from {} as {} until {}.\n", clean(made["host"].text()),
                       clean(made["username"].text()), short_time(made["expiresAt"]));
  });
  return 0;
}

Result<int> logout(Shell& shell, const RegistryOptions& options) {
  Api* api = TRY(shell.api());
  const std::string host = TRY(host_of(options.host));
  const auto gone = TRY(api->send("DELETE", path_of("registries", host)));
  shell.show(gone, [&] { return fmt::format("The account at {} is forgotten.\n", host); });
  return 0;
}

Result<int> list(Shell& shell) {
  Api* api = TRY(shell.api());
  shell.show_list(TRY(api->list("/api/v1/registries")), [&](const auto& items) {
    if (items.empty()) return std::string("No registries. Log in: muster registry login HOST --username NAME\n");
    Table table({"REGISTRY", "USER", "UNTIL"});
    for (const auto& each : items)
      table.add({each["host"].text(), each["username"].text(), short_time(each["expiresAt"])});
    return table.text(shell.colour());
  });
  return 0;
}

}  // namespace

void add_registry(CLI::App& app, Shell& shell) {
  auto options = std::make_shared<RegistryOptions>();
  auto* parent = app.add_subcommand("registry", "Accounts of image registries, for private images");
  parent->require_subcommand(1);
  auto* login_command =
      parent->add_subcommand("login", "Let the machines that run your organisation's clusters pull from a registry");
  login_command->add_option("registry", options->host, "host, such as ghcr.io or registry.example:5000")->required();
  login_command->add_option("--username,-u", options->user, "account name")->required();
  login_command->add_option("--password-file", options->password_file,
                            "read the password or token from a file, - for standard input");
  login_command->add_option("--lifetime", options->lifetime, "when it is forgotten again; default 12h, at most 30d");
  login_command->footer(
      "The account is kept sealed on the server, never in its journal, and is given only to machines that must pull\n"
      "for one of your clusters. Use a token that may only read, as short-lived as the registry makes them.\n"
      "Example:\n  aws ecr get-login-password | muster registry login ECR_HOST --username AWS --password-file -");
  login_command->callback([options, &shell] { shell.action = [options, &shell] { return login(shell, *options); }; });
  auto* logout_command = parent->add_subcommand("logout", "Forget the account at once");
  logout_command->add_option("registry", options->host, "host")->required();
  logout_command->footer("Example:\n  muster registry logout ghcr.io");
  logout_command->callback([options, &shell] { shell.action = [options, &shell] { return logout(shell, *options); }; });
  auto* list_command = parent->add_subcommand("list", "List them");
  list_command->footer("Example:\n  muster registry list -o json");
  list_command->callback([&shell] { shell.action = [&shell] { return list(shell); }; });
}

}  // namespace muster::cli
