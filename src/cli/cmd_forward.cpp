// port-forward and dashboard
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdlib>

#include "cli/forward.h"
#include "cli/ray_flags.h"
#include "cli/remote.h"
#include "cli/shell.h"
#include "cli/terminal.h"
#include "crypto/random.h"

namespace muster::cli {
namespace {

struct ForwardOptions {
  ClusterChoice cluster;
  std::string slot, token_file;
  std::vector<std::string> ports;
  bool inject = false, no_open = false;
  std::uint16_t local = 8265, remote = 8265;
};

Result<std::string> ray_token(const Account& account, const std::string& cluster) {
  std::string token =
      TRY(exec_output(account, {.cluster = cluster, .slot = {}, .argv = {"cat", "/muster/secrets/ray_token"}}, 4'096));
  while (!token.empty() && (token.back() == '\n' || token.back() == '\r')) token.pop_back();
  if (token.empty() || token.find_first_of("\r\n ") != std::string::npos)
    return error(Code::Internal, "the cluster's Ray token could not be read");
  return token;
}

std::unique_ptr<HttpGate> make_gate(std::uint16_t port, const std::string& token) {
  return std::make_unique<HttpGate>(port, base64url(crypto::random_bytes(24)), base64url(crypto::random_bytes(32)),
                                    token);
}

Result<int> forward(Shell& shell, const ForwardOptions& options) {
  Api* api = TRY(shell.api());
  const std::string cluster = TRY(options.cluster.name());
  (void)TRY(api->get(path_of("clusters", cluster)));
  auto forwarder = TRY(Forwarder::create(api->account(), cluster));
  std::string token;
  if (options.inject || !options.token_file.empty()) token = TRY(ray_token(api->account(), cluster));
  if (!options.token_file.empty()) {
    TRY_VOID(write_secret_file(options.token_file, token));
    say("For Ray's own tools: export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=" + options.token_file);
  }
  for (const auto& text : options.ports) {
    Tunnel tunnel = TRY(parse_tunnel(text));
    tunnel.slot = options.slot;
    const auto port = TRY(forwarder->listen(tunnel));
    if (options.inject && tunnel.remote == 8265) {
      auto gate = make_gate(port, token);
      say(fmt::format("127.0.0.1:{} -> {}:{}, open {}", port, cluster, tunnel.remote, gate->link()));
      forwarder->set_gate(port, std::move(gate));
    } else {
      say(fmt::format("127.0.0.1:{} -> {}:{}", port, cluster, tunnel.remote));
    }
  }
  const OnInterrupt interrupt([] { return std::string("Forwarding ended; the cluster goes on."); });
  forwarder->run();
  return 0;
}

void open_browser(const std::string& url) {
  if (std::getenv("DISPLAY") == nullptr && std::getenv("WAYLAND_DISPLAY") == nullptr) return;
  const pid_t child = fork();
  if (child != 0) return;
  // The link works once and only on this machine, so it may stand in an argument list.
  setsid();
  execlp("xdg-open", "xdg-open", url.c_str(), static_cast<char*>(nullptr));
  _exit(127);
}

Result<int> dashboard(Shell& shell, const ForwardOptions& options) {
  Api* api = TRY(shell.api());
  const std::string cluster = TRY(options.cluster.name());
  const auto status = TRY(api->get(path_of("clusters", cluster)));
  if (status["state"].text() != "running")
    return error(Code::FailedPrecondition,
                 fmt::format("cluster {} is {}; its dashboard comes with Ray", cluster, clean(status["state"].text())));
  const std::string token = TRY(ray_token(api->account(), cluster));
  auto forwarder = TRY(Forwarder::create(api->account(), cluster));
  auto port = forwarder->listen({options.local, options.remote, {}});
  if (!port.ok()) port = forwarder->listen({0, options.remote, {}});
  if (!port.ok()) return port.error();
  auto gate = make_gate(*port, token);
  const std::string link = gate->link();
  forwarder->set_gate(*port, std::move(gate));
  say("Ray's dashboard of " + cluster + " (the link works once; Ctrl-C ends the forward):");
  shell.show(wire::Json::object().set("url", wire::Json::string(link)), [&] { return link + "\n"; });
  if (!options.no_open && stdout_is_terminal()) open_browser(link);
  const OnInterrupt interrupt([] { return std::string("Forwarding ended; the cluster goes on."); });
  forwarder->run();
  return 0;
}

}  // namespace

void add_forward(CLI::App& app, Shell& shell) {
  auto options = std::make_shared<ForwardOptions>();
  auto* command = app.add_subcommand("port-forward", "Reach ports of a cluster on 127.0.0.1");
  add_cluster(*command, options->cluster);
  command->add_option("ports", options->ports, "[LOCAL:]REMOTE")->required();
  command->add_option("--slot", options->slot, "another member than the head");
  command->add_flag("--inject-token", options->inject, "for 8265: add the Ray token here, behind a one-time link");
  command->add_option("--token-file", options->token_file,
                      "write the cluster's Ray token there (0600), for `ray job` and ray://");
  command->footer(
      "Examples:\n  muster port-forward default 8265 10001 --token-file ~/.default.token\n  export RAY_AUTH_MODE=token "
      "RAY_AUTH_TOKEN_PATH=~/.default.token\n  ray job submit --address http://localhost:8265 -- python script.py");
  command->callback([options, &shell] { shell.action = [options, &shell] { return forward(shell, *options); }; });
  auto* dashboard_command = app.add_subcommand("dashboard", "Open Ray's dashboard in the browser");
  add_cluster(*dashboard_command, options->cluster);
  dashboard_command->add_option("--port,-p", options->local, "local port (another one if taken)");
  dashboard_command->add_option("--remote-port", options->remote, "where Ray's dashboard listens in the head");
  dashboard_command->add_flag("--no-open", options->no_open, "print the link only");
  add_ray_flags(*dashboard_command, {"cache", "verbose", "log"});
  dashboard_command->footer(
      "Examples:\n  muster dashboard default\n  muster dashboard default.yaml --port 9000 --no-open");
  dashboard_command->callback(
      [options, &shell] { shell.action = [options, &shell] { return dashboard(shell, *options); }; });
}

}  // namespace muster::cli
