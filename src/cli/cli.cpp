#include "cli/cli.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>

#include "base/version.h"
#include "cli/audit.h"
#include "cli/completion.h"
#include "cli/shell.h"
#include "cli/terminal.h"

namespace muster::cli {

namespace {
Result<int> version(Shell& shell) {
  auto out = wire::Json::object();
  out.set("client", wire::Json::string(kVersion));
  std::string server = "not logged in";
  if (auto api = shell.api(); api.ok()) {
    (*api)->set_patience(Millis(0));
    auto info = (*api)->get("/api/v1/server");
    if (info.ok()) out.set("server", *info);
    server =
        info.ok() ? clean((*info)["version"].text()) + ", " + clean((*info)["serverId"].text()) : info.error().message;
  }
  shell.show(out, [&] { return fmt::format("muster {}\nserver {}\n", kVersion, server); });
  return 0;
}

// What may follow each command, read off the parser itself.
void collect(const CLI::App& app, const std::string& path, std::map<std::string, Completable>& out) {
  Completable& here = out[path];
  for (const auto* option : app.get_options()) {
    for (const auto& name : option->get_lnames()) here.words.push_back("--" + name);
    if (!option->get_positional()) continue;
    const std::string name = option->get_name(true);
    const bool names_cluster = name == "cluster" || (name == "name" && path == "logs");
    if (names_cluster) here.names = "clusters";
    if (name == "job") here.names = "jobs";
    if (name == "node") here.names = "nodes";
    here.files = here.files || names_cluster || name == "file" || name == "script" || name == "source";
  }
  for (const auto* sub : app.get_subcommands([](const CLI::App*) { return true; })) {
    here.words.push_back(sub->get_name());
    collect(*sub, path.empty() ? sub->get_name() : path + " " + sub->get_name(), out);
  }
}

// One name a line, for the shells: quick, and silent when the server is not there.
Result<int> print_names(Shell& shell, const std::string& kind) {
  Api* api = TRY(shell.api());
  api->set_patience(Millis(0));
  for (const auto& item : TRY(api->list("/api/v1/" + kind))) {
    const auto& state = item["state"].text();
    if (kind == "clusters" && (state == "stopped" || state == "failed")) continue;
    const std::string text = clean(item[kind == "clusters" ? "name" : "id"].text()) + "\n";
    std::fwrite(text.data(), 1, text.size(), stdout);
  }
  return 0;
}

}  // namespace

void add_version(CLI::App& app, Shell& shell) {
  auto* command = app.add_subcommand("version", "Version of this command and of the server");
  command->footer("Example:\n  muster version -o json");
  command->callback([&shell] { shell.action = [&shell] { return version(shell); }; });
}

void add_completion(CLI::App& app, Shell& shell) {
  auto kind = std::make_shared<std::string>();
  auto names = std::make_shared<std::string>();
  auto* command = app.add_subcommand("completion", "Print completion code for a shell");
  command->add_option("shell", *kind, "bash, zsh or fish")->check(CLI::IsMember({"bash", "zsh", "fish"}));
  command->add_option("--names", *names, "print names instead: what the completion code asks for")
      ->check(CLI::IsMember({"clusters", "jobs", "nodes"}));
  command->footer(
      "Examples:\n  muster completion bash > ~/.local/share/bash-completion/completions/muster\n  source <(muster "
      "completion zsh)\n  muster completion fish > ~/.config/fish/completions/muster.fish");
  command->callback([kind, names, &app, &shell] {
    shell.action = [kind, names, &app, &shell]() -> Result<int> {
      if (!names->empty()) return print_names(shell, *names);
      if (kind->empty()) return error(Code::InvalidArgument, "say for which shell: bash, zsh or fish");
      std::map<std::string, Completable> commands;
      collect(app, "", commands);
      const std::string text = completion_script(*kind, commands);
      std::fwrite(text.data(), 1, text.size(), stdout);
      return 0;
    };
  });
}

int run(int argc, const char* const* argv) {
  start_signals();
  Shell shell;
  CLI::App app("muster: Ray clusters from machines that anyone owns", "muster");
  app.require_subcommand(1);
  app.fallthrough();
  app.add_option("--output,-o", shell.output, "table, json or yaml")->check(CLI::IsMember({"table", "json", "yaml"}));
  app.add_option("--context", shell.context, "which login of the config to use");
  app.add_option("--project", shell.project, "project for new clusters and jobs, and of a quota");
  app.footer(
      "Start here:\n  muster login https://HOST --ca-sha256 HEX --user NAME\n  muster up default.yaml\n  muster job "
      "submit --cluster default --working-dir . -- python script.py\n"
      "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 denied, 5 server not reachable, 130 "
      "interrupted;\nexec, submit and job submit end with the command's own code.");
  for (const auto add : {add_login,   add_passwd, add_totp,   add_up,    add_plan,       add_down,   add_status,
                         add_exec,    add_rsync,  add_logs,   add_job,   add_forward,    add_queue,  add_nodes,
                         add_net,     add_top,    add_events, add_token, add_registry,   add_images, add_accounts,
                         add_service, add_grant,  add_quota,  add_audit, add_completion, add_version})
    add(app, shell);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& fault) {
    return app.exit(fault) == 0 ? 0 : 2;
  }
  if (!shell.action) {
    std::fputs(app.help().c_str(), stdout);
    return 2;
  }
  const Result<int> result = shell.action();
  if (result.ok()) return *result;
  say(error_text(result.error()));
  return exit_code(result.error());
}

}  // namespace muster::cli
