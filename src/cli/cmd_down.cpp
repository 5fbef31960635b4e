// down NAME|FILE: stop a cluster and say what was stopped and what was kept.
#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include "cli/lifecycle.h"
#include "cli/request.h"
#include "cli/terminal.h"

namespace muster::cli {
namespace {

// Nothing that we can reach runs any more. A machine that is out of reach keeps the cluster in "stopping" until it
// confirms or its lease ends and it fences itself; nobody need wait for that.
bool settled(const wire::Json& cluster) {
  const auto& state = cluster["state"].text();
  if (state == "stopped" || state == "failed") return true;
  for (const auto& slot : cluster["slots"].items())
    if (slot["phase"].text() != "stopped" && slot["phase"].text() != "failed") return false;
  return true;
}

}  // namespace

Result<int> down(Shell& shell, const DownOptions& options) {
  const std::string name = TRY(options.cluster.name());
  Api* api = TRY(shell.api());
  const auto before = TRY(api->get(path_of("clusters", name)));
  const std::string state = before["state"].text();
  if (state == "stopped" || state == "failed") {
    say(fmt::format("Cluster {} is {} already.", name, state));
    return 0;
  }
  const std::size_t members = before["slots"].items().size();
  if (!options.yes) {
    if (!stdin_is_terminal())
      return error(Code::InvalidArgument, "this stops a cluster; without a terminal to ask on, give --yes");
    if (!confirm(fmt::format("Stop cluster {} ({}, {} members)?", name, state, members)))
      return error(Code::Cancelled, "nothing was stopped");
  }
  const std::string id = before["id"].text();
  wire::Json after = TRY(api->send("DELETE", path_of("clusters", id)));
  if (!options.no_wait)
    after = TRY(wait_cluster(shell, id, settled, [name](const wire::Json& now) {
      return fmt::format("{}. It goes on stopping by itself. Watch it: muster status {}", cluster_progress(now), name);
    }));
  shell.show(after, [&] {
    const bool waits = after["state"].text() == "stopping";
    return fmt::format(
        "Cluster {} ({}) is {}{}.\n  stopped: {} members, their containers, workspaces and the cluster's network\n"
        "  kept: its record, its jobs with logs and exit codes (muster job list), uploaded files\n",
        name, clean(id), clean(after["state"].text()),
        waits ? ": what we reach is stopped; a machine out of reach is cut off and stops itself when its lease ends"
              : "",
        members);
  });
  return 0;
}

void add_down(CLI::App& app, Shell& shell) {
  auto options = std::make_shared<DownOptions>();
  auto* command = app.add_subcommand("down", "Stop a cluster");
  add_cluster(*command, options->cluster);
  command->add_flag("--yes,-y", options->yes, "do not ask");
  command->add_flag("--no-wait", options->no_wait, "return once the stop is accepted");
  add_ray_flags(*command, {"workers", "verbose", "log"});
  command->footer("Example:\n  muster down default.yaml --yes");
  command->callback([options, &shell] { shell.action = [options, &shell] { return down(shell, *options); }; });
}

}  // namespace muster::cli
