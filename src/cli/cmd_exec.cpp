// exec, attach, submit, monitor, get-head-ip: commands in the containers of a cluster, as `ray` has them.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <thread>

#include "cli/config.h"
#include "cli/forward.h"
#include "cli/lifecycle.h"
#include "cli/remote.h"
#include "cli/request.h"
#include "cli/terminal.h"

namespace muster::cli {
namespace {

struct ExecOptions {
  ClusterChoice cluster;
  std::string slot, node_ip, script, run_env, args;
  bool tty = false, start = false, stop = false, tmux = false, screen = false, fresh = false;
  std::uint32_t lines = 100;
  std::vector<std::string> words, ports;
};

// One word is a shell line, as in `ray exec`; several are an argument list.
std::vector<std::string> argv_of(const std::vector<std::string>& words) {
  if (words.size() == 1) return {"sh", "-c", words[0]};
  return words;
}

// Ports of the cluster on this machine while it lives.
class Forwards {
 public:
  static Result<std::unique_ptr<Forwards>> open(const Account& account, const std::string& cluster,
                                                const std::vector<std::string>& ports) {
    auto forwards = std::make_unique<Forwards>();
    if (ports.empty()) return forwards;
    forwards->forwarder_ = TRY(Forwarder::create(account, cluster));
    for (const auto& text : ports) {
      const Tunnel tunnel = TRY(parse_tunnel(text));
      const auto port = TRY(forwards->forwarder_->listen(tunnel));
      say(fmt::format("127.0.0.1:{} -> {}:{}", port, cluster, tunnel.remote));
    }
    forwards->thread_ = std::thread([forwarder = forwards->forwarder_.get()] { forwarder->run(); });
    return forwards;
  }
  Forwards() = default;
  Forwards(const Forwards&) = delete;
  Forwards& operator=(const Forwards&) = delete;
  ~Forwards() {
    if (forwarder_) forwarder_->stop();
    if (thread_.joinable()) thread_.join();
  }

 private:
  std::unique_ptr<Forwarder> forwarder_;
  std::thread thread_;
};

// --start, then what is to be done with the cluster's name, then --stop.
Result<int> with_cluster(Shell& shell, const ExecOptions& options,
                         const std::function<Result<int>(Api&, const std::string&)>& work) {
  Api* api = TRY(shell.api());
  const std::string cluster = TRY(options.cluster.name());
  if (options.start) {
    if (!options.cluster.is_file())
      return error(Code::InvalidArgument, "--start needs the YAML file that says what to start");
    UpOptions start;
    start.cluster = options.cluster;
    start.yes = true;
    const int code = TRY(up(shell, start));
    if (code != 0) return code;
  }
  Result<int> done = error(Code::Internal, "");
  {
    const auto forwards = TRY(Forwards::open(api->account(), cluster, options.ports));
    done = work(*api, cluster);
  }
  if (!options.stop) return done;
  if (!done.ok()) say(error_text(done.error()));
  DownOptions stop;
  stop.cluster.override = cluster;
  stop.yes = true;
  (void)TRY(down(shell, stop));
  return done;
}

Result<int> exec(Shell& shell, const ExecOptions& options) {
  return with_cluster(shell, options, [&](Api& api, const std::string& cluster) {
    return exec_here(api.account(),
                     {.cluster = cluster, .slot = options.slot, .argv = argv_of(options.words), .tty = options.tty});
  });
}

// The member with that address on the cluster's network.
Result<std::string> slot_at(Api& api, const std::string& cluster, const std::string& address) {
  const auto view = TRY(api.get(path_of("clusters", cluster)));
  for (const auto& slot : view["slots"].items())
    if (slot["address"].text() == address) return slot["id"].text();
  return error(Code::NotFound, fmt::format("no member of {} has the address {}; muster status {} lists them", cluster,
                                           address, cluster));
}

Result<int> attach(Shell& shell, const ExecOptions& options) {
  if (!stdin_is_terminal())
    return error(Code::InvalidArgument, "attach needs a terminal; use `muster exec` in scripts");
  std::string line = "command -v bash >/dev/null && exec bash -l || exec sh -l";
  for (const auto& [wanted, program, command] :
       {std::tuple(options.tmux, "tmux", options.fresh ? "tmux new-session" : "tmux new-session -A -s muster"),
        std::tuple(options.screen, "screen", options.fresh ? "screen" : "screen -xRR muster")})
    if (wanted)
      line = fmt::format("command -v {0} >/dev/null || {{ echo 'this image has no {0}' >&2; exit 127; }}; exec {1}",
                         program, command);
  return with_cluster(shell, options, [&](Api& api, const std::string& cluster) -> Result<int> {
    const std::string slot = options.node_ip.empty() ? options.slot : TRY(slot_at(api, cluster, options.node_ip));
    return exec_here(api.account(), {.cluster = cluster, .slot = slot, .argv = {"sh", "-c", line}, .tty = true});
  });
}

Result<int> submit(Shell& shell, const ExecOptions& options) {
  const std::string text = TRY(read_file(options.script, 64 << 20));
  const std::string name = "muster-submit-" + std::filesystem::path(options.script).filename().string();
  return with_cluster(shell, options, [&](Api& api, const std::string& cluster) -> Result<int> {
    bool sent = false;
    Feed feed;
    feed.input = [&]() -> Result<std::string> { return std::exchange(sent, true) ? std::string() : text; };
    // Empty scripts still need the end of input only.
    (void)TRY(exec_fed(api.account(),
                       {.cluster = cluster, .slot = {}, .argv = {"sh", "-c", "cat > \"/tmp/$1\"", "sh", name}}, feed));
    std::vector<std::string> argv = {"python", "/tmp/" + name};
    argv.insert(argv.end(), options.words.begin(), options.words.end());
    if (!options.args.empty()) argv = {"sh", "-c", fmt::format("exec python \"$0\" {} \"$@\"", options.args), argv[1]};
    if (!options.args.empty()) argv.insert(argv.end(), options.words.begin(), options.words.end());
    return exec_here(
        api.account(),
        {.cluster = cluster, .slot = {}, .argv = std::move(argv), .tty = stdin_is_terminal() && stdout_is_terminal()});
  });
}

// What Ray's own autoscaler monitor writes on the head; decisions are in `muster events`.
Result<int> monitor(Shell& shell, const ExecOptions& options) {
  const std::string line = fmt::format(
      "cd /tmp/ray/session_latest/logs && exec tail -n {} -F monitor.log monitor.out monitor.err 2>/dev/null",
      options.lines);
  return with_cluster(shell, options, [&](Api& api, const std::string& cluster) {
    return exec_here(api.account(), {.cluster = cluster, .slot = {}, .argv = {"sh", "-c", line}});
  });
}

Result<int> addresses(Shell& shell, const ExecOptions& options, const std::string& role) {
  Api* api = TRY(shell.api());
  const auto cluster = TRY(api->get(path_of("clusters", TRY(options.cluster.name()))));
  std::vector<wire::Json> found;
  for (const auto& slot : cluster["slots"].items())
    if (slot["role"].text() == role && slot["inRoster"].truth())
      found.push_back(wire::Json::string(slot["address"].text()));
  if (found.empty() && role == "head") return error(Code::FailedPrecondition, "the cluster has no head yet");
  shell.show_list(std::move(found), [](const auto& items) {
    std::string out;
    for (const auto& item : items) out += clean(item.text()) + "\n";
    return out;
  });
  return 0;
}

void add_lifecycle(CLI::App& command, ExecOptions& options, bool stop) {
  command.add_flag("--start", options.start, "start the cluster first if it is not there (needs its YAML file)");
  if (stop) command.add_flag("--stop", options.stop, "stop the cluster afterwards");
  command.add_option("--port-forward,-p", options.ports, "[LOCAL:]REMOTE on 127.0.0.1 meanwhile; may repeat")
      ->allow_extra_args(false);
}

void add_run(CLI::App& app, Shell& shell) {
  auto options = std::make_shared<ExecOptions>();
  auto* command = app.add_subcommand("exec", "Run a command in the head's container (or another member's)");
  add_cluster(*command, options->cluster);
  command->add_option("command", options->words, "one word is a shell line, several are arguments")->required();
  command->add_option("--slot", options->slot, "another member: a slot id from `muster status`");
  command->add_flag("--tty,-t", options->tty, "give the command a terminal");
  command->add_option("--run-env", options->run_env, "docker or auto: commands always run in the container")
      ->check(CLI::IsMember({"auto", "docker"}));
  add_lifecycle(*command, *options, true);
  add_ray_flags(*command, {"screen", "cache", "usage", "verbose", "log"});
  command->footer(
      "The exit code is the command's.\nExamples:\n  muster exec default 'ray status'\n  muster exec default -- "
      "nvidia-smi -L\n  muster exec default.yaml --start --stop -p 8265 'python train.py'");
  command->callback([options, &shell] { shell.action = [options, &shell] { return exec(shell, *options); }; });
}

void add_attach(CLI::App& app, Shell& shell) {
  auto options = std::make_shared<ExecOptions>();
  auto* command = app.add_subcommand("attach", "Open a terminal in the head's container");
  add_cluster(*command, options->cluster);
  command->add_option("--slot", options->slot, "another member: a slot id from `muster status`");
  command->add_option("--node-ip", options->node_ip, "another member: its address on the cluster's network");
  command->add_flag("--tmux", options->tmux, "in a tmux session that outlives this terminal, if the image has tmux");
  command->add_flag("--screen", options->screen, "the same with screen");
  command->add_flag("--new,-N", options->fresh, "a new session, not the one from before");
  add_lifecycle(*command, *options, false);
  add_ray_flags(*command, {"cache", "verbose", "log"});
  command->footer(
      "Examples:\n  muster attach default\n  muster attach default --slot slot-3\n  muster attach default -p 8000");
  command->callback([options, &shell] { shell.action = [options, &shell] { return attach(shell, *options); }; });
}

void add_submit(CLI::App& app, Shell& shell) {
  auto options = std::make_shared<ExecOptions>();
  auto* command = app.add_subcommand("submit", "Run a script of this machine on the head, as `ray submit` does");
  add_cluster(*command, options->cluster);
  command->add_option("script", options->script, "a Python file here")->required();
  command->add_option("script_args", options->words, "arguments of the script, after --");
  command->add_option("--args", options->args, "arguments of the script as one shell text");
  add_lifecycle(*command, *options, true);
  add_ray_flags(*command, {"screen", "cache", "usage", "verbose", "log"});
  command->footer(
      "It ends with this terminal; `muster job submit` makes a durable job.\nExamples:\n  muster submit "
      "default.yaml train.py -- --epochs 3\n  muster submit default.yaml --start train.py");
  command->callback([options, &shell] { shell.action = [options, &shell] { return submit(shell, *options); }; });
}

}  // namespace

void add_exec(CLI::App& app, Shell& shell) {
  add_run(app, shell);
  add_attach(app, shell);
  add_submit(app, shell);
  auto options = std::make_shared<ExecOptions>();
  auto* monitor_command = app.add_subcommand("monitor", "Follow what Ray's autoscaler monitor writes on the head");
  add_cluster(*monitor_command, options->cluster);
  monitor_command->add_option("--lines", options->lines, "how many to begin with")->check(CLI::Range(0, 100'000));
  monitor_command->footer("Example:\n  muster monitor default\nWhat Muster decided: muster events -f");
  monitor_command->callback(
      [options, &shell] { shell.action = [options, &shell] { return monitor(shell, *options); }; });
  for (const auto& [name, role, text] :
       {std::tuple("get-head-ip", "head", "Print the head's address on the cluster's network"),
        std::tuple("get-worker-ips", "worker", "Print the workers' addresses on the cluster's network")}) {
    auto* command = app.add_subcommand(name, text);
    add_cluster(*command, options->cluster);
    command->footer(
        fmt::format("Example:\n  muster {} default\nOnly members reach it; from here: muster port-forward.", name));
    command->callback([options, role = std::string(role), &shell] {
      shell.action = [options, role, &shell] { return addresses(shell, *options, role); };
    });
  }
}

}  // namespace muster::cli
