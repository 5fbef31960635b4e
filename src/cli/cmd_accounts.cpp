// user, org, project
#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include "cli/config.h"
#include "cli/quota.h"
#include "cli/shell.h"
#include "cli/terminal.h"
#include "model/names.h"
#include "wire/names.h"
#include "wire/rest.h"

namespace muster::cli {
namespace {

struct AccountOptions {
  std::string name, role = "tenant", org, password_file, sso_subject;
};

Result<int> create_user(Shell& shell, const AccountOptions& options) {
  const auto role = wire::parse_role(options.role);
  if (!role) return error(Code::InvalidArgument, fmt::format("--role is {}", kRolesInWords));
  std::string password;
  if (options.sso_subject.empty())
    password = TRY(options.password_file.empty() ? ask_password("Password for " + options.name + ": ")
                                                 : read_file(options.password_file, 4'096));
  while (!password.empty() && (password.back() == '\n' || password.back() == '\r')) password.pop_back();
  Api* api = TRY(shell.api());
  const auto user = TRY(api->send(
      "POST", "/api/v1/users",
      wire::to_json(wire::CreatePrincipalRequest{options.name, *role, options.org, password, options.sso_subject})));
  shell.show(user, [&] {
    return fmt::format("{} {} ({})\n", clean(user["id"].text()), clean(user["name"].text()),
                       clean(user["role"].text()));
  });
  return 0;
}

Result<int> list(Shell& shell, const std::string& what) {
  Api* api = TRY(shell.api());
  shell.show_list(TRY(api->list("/api/v1/" + what)), [&](const auto& items) {
    const bool users = what == "users";
    Table table(users ? std::vector<std::string>{"ID", "NAME", "ROLE", "ORGANISATION", "STATE", "SECOND FACTOR"}
                : what == "projects"
                    ? std::vector<std::string>{"ID", "NAME", "ORGANISATION", "GPUS", "CPUS", "CLUSTERS"}
                    : std::vector<std::string>{"ID", "NAME", "GPUS", "CPUS", "CLUSTERS"});
    for (const auto& i : items) {
      std::vector<std::string> row{i["id"].text(), i["name"].text()};
      if (users)
        row.insert(row.end(),
                   {i["role"].text(), i["org"].text().empty() ? i["orgId"].text() : i["org"].text(),
                    i["disabled"].truth() ? "disabled" : "enabled", i["secondFactor"].truth() ? "yes" : "no"});
      if (what == "projects") row.push_back(i["orgId"].text());
      for (const char* each : {"gpus", "cpus", "clusters"})
        if (!users) row.push_back(held_text(i["held"], i["quota"], each));
      table.add(std::move(row));
    }
    return table.text(shell.colour());
  });
  return 0;
}

Result<int> create_named(Shell& shell, const std::string& what, const AccountOptions& options) {
  auto body = wire::Json::object();
  body.set("name", wire::Json::string(options.name));
  if (!options.org.empty()) body.set("org", wire::Json::string(options.org));
  Api* api = TRY(shell.api());
  const auto made = TRY(api->send("POST", "/api/v1/" + what, body.dump()));
  shell.show(made, [&] { return clean(made["id"].text()) + " " + clean(made["name"].text()) + "\n"; });
  return 0;
}

Result<int> disable_user(Shell& shell, const std::string& id) {
  Api* api = TRY(shell.api());
  const auto user = TRY(api->send("DELETE", path_of("users", id)));
  shell.show(user, [&] { return id + " is disabled; its tokens end with it\n"; });
  return 0;
}

Result<int> change_role(Shell& shell, const AccountOptions& options) {
  const auto role = wire::parse_role(options.role);
  if (!role) return error(Code::InvalidArgument, fmt::format("the role is {}", kRolesInWords));
  Api* api = TRY(shell.api());
  const auto user = TRY(
      api->send("PUT", path_of("users", options.name) + "/role", wire::to_json(wire::ChangeRoleRequest{{}, *role})));
  shell.show(user, [&] {
    return fmt::format("{} is {} now; its logins are ended, narrower tokens go on as far as that role goes\n",
                       options.name, clean(user["role"].text()));
  });
  return 0;
}

Result<int> reset_user_totp(Shell& shell, const std::string& id) {
  Api* api = TRY(shell.api());
  const auto user = TRY(api->send("DELETE", path_of("users", id) + "/totp"));
  shell.show(user, [&] { return id + " has no second factor any more: its password alone logs in\n"; });
  return 0;
}

}  // namespace

void add_accounts(CLI::App& app, Shell& shell) {
  const std::pair<const char*, const char*> kinds[] = {{"user", "users"}, {"org", "orgs"}, {"project", "projects"}};
  for (const auto& [singular, plural] : kinds) {
    auto options = std::make_shared<AccountOptions>();
    const std::string what = plural;
    auto* parent = app.add_subcommand(singular, what == "users"  ? "Local accounts"
                                                : what == "orgs" ? "Organisations"
                                                                 : "Projects");
    parent->require_subcommand(1);
    auto* create = parent->add_subcommand("create", "Make one");
    create->add_option("name", options->name, "its name")->required();
    create->footer(what == "users"  ? "Example:\n  muster user create bob --role tenant --org lab"
                   : what == "orgs" ? "Example:\n  muster org create lab"
                                    : "Example:\n  muster project create default --org lab");
    if (what != "orgs") create->add_option("--org", options->org, "organisation");
    if (what == "users") {
      create->add_option("--role", options->role, std::string(kRolesInWords));
      create->add_option("--password-file", options->password_file,
                         "read the password from a file, - for standard input");
      create->add_option(
          "--sso-subject", options->sso_subject,
          "instead of a password: the subject of a person of the identity provider (`muster login --sso` "
          "tells it to who has no account)");
      auto* disable = parent->add_subcommand("disable", "Disable an account");
      disable->footer("Example:\n  muster user disable bob");
      disable->add_option("user", options->name, "name or id")->required();
      disable->callback(
          [options, &shell] { shell.action = [options, &shell] { return disable_user(shell, options->name); }; });
      auto* role = parent->add_subcommand("role", "Give an account another role; ends its logins");
      role->footer("Example:\n  muster user role bob tenant-admin");
      role->add_option("user", options->name, "name or id")->required();
      role->add_option("role", options->role, std::string(kRolesInWords))->required();
      role->callback([options, &shell] { shell.action = [options, &shell] { return change_role(shell, *options); }; });
      auto* reset = parent->add_subcommand("reset-totp", "Take away the second factor of an account");
      reset->footer("Example:\n  muster user reset-totp bob");
      reset->add_option("user", options->name, "name or id")->required();
      reset->callback(
          [options, &shell] { shell.action = [options, &shell] { return reset_user_totp(shell, options->name); }; });
    }
    create->callback([options, what, &shell] {
      shell.action = [options, what, &shell] {
        return what == "users" ? create_user(shell, *options) : create_named(shell, what, *options);
      };
    });
    auto* list_command = parent->add_subcommand("list", "List them");
    list_command->footer(fmt::format("Example:\n  muster {} list", singular));
    list_command->callback([what, &shell] { shell.action = [what, &shell] { return list(shell, what); }; });
  }
}

}  // namespace muster::cli
