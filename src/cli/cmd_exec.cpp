// exec, attach, submit: commands in the containers of a cluster.
#include <CLI/CLI.hpp>
#include <filesystem>
#include <fstream>

#include "cli/config.h"
#include "cli/remote.h"
#include "cli/shell.h"
#include "cli/terminal.h"

namespace muster::cli {
namespace {

struct ExecOptions {
  std::string cluster, slot, script;
  bool tty = false;
  std::vector<std::string> words;
};

// One word is a shell line, as in `ray exec`; several are an argument list.
std::vector<std::string> argv_of(const std::vector<std::string>& words) {
  if (words.size() == 1) return {"sh", "-c", words[0]};
  return words;
}

Result<int> exec(Shell& shell, const ExecOptions& options) {
  Api* api = TRY(shell.api());
  return exec_here(api->account(), {.cluster = TRY(cluster_name(options.cluster)),
                                    .slot = options.slot,
                                    .argv = argv_of(options.words),
                                    .tty = options.tty});
}

Result<int> attach(Shell& shell, const ExecOptions& options) {
  if (!stdin_is_terminal())
    return error(Code::InvalidArgument, "attach needs a terminal; use `muster exec` in scripts");
  Api* api = TRY(shell.api());
  return exec_here(api->account(), {.cluster = TRY(cluster_name(options.cluster)),
                                    .slot = options.slot,
                                    .argv = {"sh", "-c", "command -v bash >/dev/null && exec bash -l || exec sh -l"},
                                    .tty = true});
}

Result<int> submit(Shell& shell, const ExecOptions& options) {
  Api* api = TRY(shell.api());
  const std::string cluster = TRY(cluster_name(options.cluster));
  const std::string text = TRY(read_file(options.script, 64 << 20));
  const std::string name = "muster-submit-" + std::filesystem::path(options.script).filename().string();
  bool sent = false;
  Feed feed;
  feed.input = [&]() -> Result<std::string> { return std::exchange(sent, true) ? std::string() : text; };
  // Empty scripts still need the end of input only.
  (void)TRY(exec_fed(api->account(),
                     {.cluster = cluster, .slot = {}, .argv = {"sh", "-c", "cat > \"/tmp/$1\"", "sh", name}}, feed));
  std::vector<std::string> argv = {"python", "/tmp/" + name};
  argv.insert(argv.end(), options.words.begin(), options.words.end());
  return exec_here(api->account(), {.cluster = cluster, .slot = {}, .argv = std::move(argv)});
}

}  // namespace

void add_exec(CLI::App& app, Shell& shell) {
  auto options = std::make_shared<ExecOptions>();
  auto* exec_command = app.add_subcommand("exec", "Run a command in the head's container (or another member's)");
  exec_command->add_option("cluster", options->cluster, "name, id or YAML file")->required();
  exec_command->add_option("command", options->words, "one word is a shell line, several are arguments")->required();
  exec_command->add_option("--slot", options->slot, "another member: a slot id from `muster status`");
  exec_command->add_flag("--tty,-t", options->tty, "give the command a terminal");
  exec_command->footer("Examples:\n  muster exec default 'ray status'\n  muster exec default -- nvidia-smi -L");
  exec_command->callback([options, &shell] { shell.action = [options, &shell] { return exec(shell, *options); }; });

  auto* attach_command = app.add_subcommand("attach", "Open a terminal in the head's container");
  attach_command->add_option("cluster", options->cluster, "name, id or YAML file")->required();
  attach_command->add_option("--slot", options->slot, "another member: a slot id from `muster status`");
  attach_command->callback([options, &shell] { shell.action = [options, &shell] { return attach(shell, *options); }; });

  auto* submit_command = app.add_subcommand("submit", "Run a script of this machine on the head, as `ray submit` does");
  submit_command->add_option("cluster", options->cluster, "name, id or YAML file")->required();
  submit_command->add_option("script", options->script, "a Python file here")->required();
  submit_command->add_option("args", options->words, "arguments of the script");
  submit_command->footer(
      "Example:\n  muster submit default.yaml train.py -- --epochs 3\nIt ends with this terminal; `muster job submit` "
      "makes a durable job.");
  submit_command->callback([options, &shell] { shell.action = [options, &shell] { return submit(shell, *options); }; });
}

}  // namespace muster::cli
