// grant, break-glass: rights for a time on what is somebody else's
#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include "cli/shell.h"
#include "cli/terminal.h"
#include "wire/names.h"
#include "wire/rest.h"

namespace muster::cli {
namespace {

struct GrantOptions {
  std::string id, project, cluster, to, right, lifetime, reason;
};

std::string grant_line(const wire::Json& grant) {
  const std::string what = grant["cluster"].text().empty()
                               ? grant["projectId"].text()
                               : grant["cluster"].text() + " (" + grant["clusterId"].text() + ")";
  return fmt::format("{}: {} on {} of {} until {}\n", clean(grant["id"].text()), clean(grant["right"].text()),
                     clean(what), clean(grant["ownerOrg"].text()), short_time(grant["endsAt"]));
}

Result<int> give(Shell& shell, const GrantOptions& options, bool break_glass) {
  const auto right = wire::parse_right(options.right);
  if (!right) return error(Code::InvalidArgument, "--right is look, logs, submit, exec or manage");
  const auto seconds = parse_duration(options.lifetime);
  if (!seconds || *seconds <= 0) return error(Code::InvalidArgument, "--for wants a duration such as 30m, 2h or 7d");
  wire::CreateGrantRequest request;
  request.project = options.cluster.empty() ? options.project : "";
  request.cluster = options.cluster;
  request.to = options.to, request.right = *right, request.reason = options.reason;
  request.lifetime = Millis(*seconds * 1'000);
  Api* api = TRY(shell.api());
  const auto grant =
      TRY(api->send("POST", break_glass ? "/api/v1/break-glass" : "/api/v1/grants", wire::to_json(request)));
  shell.show(grant, [&] {
    return grant_line(grant) + (break_glass ? "The owner sees it, with your reason; it ends by itself.\n"
                                            : "It ends by itself; `muster grant revoke` ends it before.\n");
  });
  return 0;
}

Result<int> list_grants(Shell& shell) {
  Api* api = TRY(shell.api());
  shell.show_list(TRY(api->list("/api/v1/grants")), [&](const auto& items) {
    Table table({"ID", "RIGHT", "ON", "OWNER", "TO", "UNTIL", "WHY"});
    for (const auto& i : items) {
      const bool operators = i["breakGlass"].truth();
      table.add({i["id"].text(), i["right"].text(),
                 i["clusterId"].text().empty() ? i["projectId"].text() : i["clusterId"].text(), i["ownerOrg"].text(),
                 !i["to"].text().empty() ? i["to"].text()
                 : operators             ? "an operator"
                                         : "",
                 short_time(i["endsAt"]), (operators ? "break-glass: " : "") + i["reason"].text()});
    }
    return table.text(shell.colour());
  });
  return 0;
}

Result<int> revoke_grant(Shell& shell, const GrantOptions& options) {
  Api* api = TRY(shell.api());
  const auto grant = TRY(api->send("DELETE", path_of("grants", options.id)));
  shell.show(grant, [&] { return options.id + " has ended, with what was opened by it\n"; });
  return 0;
}

void add_target(CLI::App* command, GrantOptions& options) {
  command->add_option("--cluster", options.cluster, "a cluster, by name or id, or");
  command->add_option("--of-project", options.project, "all clusters and jobs of a project");
  command->add_option("--for", options.lifetime, "such as 30m, 2h or 7d")->required();
}

}  // namespace

void add_grant(CLI::App& app, Shell& shell) {
  auto* parent = app.add_subcommand("grant", "Rights for a time on a project or cluster, for others");
  parent->require_subcommand(1);
  auto options = std::make_shared<GrantOptions>();
  auto* create = parent->add_subcommand("create", "Give somebody a right");
  add_target(create, *options);
  create
      ->add_option("--to", options->to,
                   "who gets it: the id of an account or organisation (`muster whoami` there tells it)")
      ->required();
  create
      ->add_option("--right", options->right,
                   "look; logs; submit: jobs; exec: shells and ports; manage: all of them, change and stop")
      ->required();
  create->add_option("--reason", options->reason, "why");
  create->footer(
      "Example:\n  muster grant create --cluster demo --to usr-5 --right exec --for 2h --reason \"help with NCCL\"");
  create->callback([options, &shell] { shell.action = [options, &shell] { return give(shell, *options, false); }; });
  auto* list = parent->add_subcommand("list", "Those in force: on your organisation's things, and to you");
  list->footer("Example:\n  muster grant list");
  list->callback([&shell] { shell.action = [&shell] { return list_grants(shell); }; });
  auto* revoke = parent->add_subcommand("revoke", "End one at once; who has it may give it back");
  revoke->add_option("grant", options->id, "id")->required();
  revoke->footer("Example:\n  muster grant revoke grant-3    # from muster grant list");
  revoke->callback([options, &shell] { shell.action = [options, &shell] { return revoke_grant(shell, *options); }; });

  auto glass = std::make_shared<GrantOptions>();
  auto* take = app.add_subcommand("break-glass", "Operators: take a right on somebody else's cluster, for a reason");
  add_target(take, *glass);
  take->add_option("--right", glass->right, "logs or exec")->required();
  take->add_option("--reason", glass->reason, "why; the owner reads it")->required();
  take->footer(
      "Example:\n  muster break-glass --cluster cl-7 --right exec --for 30m --reason \"incident 4711: runaway job\"");
  take->callback([glass, &shell] { shell.action = [glass, &shell] { return give(shell, *glass, true); }; });
}

}  // namespace muster::cli
