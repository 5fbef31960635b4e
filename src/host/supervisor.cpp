#include "host/supervisor.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <thread>

#include "base/log.h"
#include "host/agent_process.h"
#include "host/identity.h"
#include "host/netd.h"
#include "host/policy.h"
#include "host/privd.h"
#include "host/sandbox.h"
#include "host/tun.h"

namespace muster::host {
namespace {

constexpr int kNetdSocketFd = 3;
struct Child {
  const char* role;
  pid_t pid = -1;
  std::int64_t started = 0;
};

std::string namespace_of(pid_t pid) {
  return fmt::format("/proc/{}/ns/net", pid);
}

Status make_tun(pid_t pid, const LaunchSpec& spec) {
  TunSpec tun;
  tun.address = spec.address;
  tun.prefix_bits = static_cast<std::uint8_t>(spec.prefix_bits);
  const auto made = create_tun(namespace_of(pid), tun);
  // In use: netd holds it since before; it keeps its address.
  if (!made.ok() && made.error().code != Code::FailedPrecondition)
    return error(made.error().code, made.error().message, "tun.create");
  return {};
}

Result<Fd> fetch_tun(pid_t pid) {
  auto fd = open_tun(namespace_of(pid), TunSpec{}.name);
  if (!fd.ok())
    return error(fd.error().code, fd.error().message,
                 fd.error().code == Code::FailedPrecondition ? "tun.held" : "tun.open");
  return fd;
}

pid_t spawn(const Layout& layout, const std::string& program, const char* role, int netd_socket) {
  const std::string state = "--state-dir=" + layout.root;
  const std::array<const char*, 4> argv{program.c_str(), role, state.c_str(), nullptr};
  const pid_t pid = fork();
  if (pid != 0) return pid;
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  if (std::string_view(role) == "netd-process") {
    if (netd_socket == kNetdSocketFd)
      fcntl(netd_socket, F_SETFD, 0);
    else
      dup2(netd_socket, kNetdSocketFd);
  }
  execv(program.c_str(), const_cast<char**>(argv.data()));
  _exit(127);
}

void die_with_parent() {
  prctl(PR_SET_PDEATHSIG, SIGTERM);
}

}  // namespace

std::string engine_socket(const Layout& layout) {
  const auto policy = load_policy(layout.policy());
  if (policy.ok() && !policy->engine_socket.empty()) return policy->engine_socket;
  for (const char* path : {"/var/run/docker.sock", "/run/docker.sock", "/run/podman/podman.sock"}) {
    if (std::filesystem::exists(path)) return path;
  }
  return "/var/run/docker.sock";
}

DockerOptions docker_options(const Layout& layout, const std::string& node_id, const std::string& machine) {
  DockerOptions options;
  options.layout = layout;
  options.socket = engine_socket(layout);
  options.node_id = node_id;
  options.machine = machine;
  options.make_tun = make_tun;
  options.open_tun = fetch_tun;
  return options;
}

Status run_privd(const Layout& layout) {
  die_with_parent();
  std::signal(SIGPIPE, SIG_IGN);
  const Config config = TRY(load_config(layout));
  const Accounts accounts = find_accounts();
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  sigprocmask(SIG_BLOCK, &set, nullptr);
  DockerRuntime runtime(docker_options(layout, config.node_id, config.machine));
  Privd privd({layout, accounts.agent_uid, accounts.agent_gid}, runtime);
  TRY_VOID(privd.listen());
  std::thread([&privd, set] {
    int signal = 0;
    sigwait(&set, &signal);
    privd.stop();
  }).detach();
  privd.run();
  _exit(0);  // threads that still wait for the engine end with the process; the leases go on
}

Status run_netd_process(const Layout& layout, int socket_fd) {
  const Accounts accounts = find_accounts();
  TRY_VOID(become(accounts.netd_uid, accounts.netd_gid));
  die_with_parent();
  std::signal(SIGPIPE, SIG_IGN);
  NetdOptions options;
  options.state_dir = layout.netd();
  options.socket_fd = socket_fd;
  options.agent_uid = accounts.agent_uid;
  return run_netd(options);
}

Status run_agent_process(const Layout& layout) {
  const Accounts accounts = find_accounts();
  TRY_VOID(become(accounts.agent_uid, accounts.agent_gid));
  die_with_parent();
  return run_agent(layout);
}

Status supervise(const Layout& layout, const std::string& program) {
  if (geteuid() != 0)
    return error(Code::PermissionDenied,
                 "muster-agent run starts as root (it gives privileges up per process); use sudo");
  TRY(load_config(layout));
  const Accounts accounts = find_accounts();
  TRY_VOID(make_directories(layout, accounts));
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : {SIGTERM, SIGINT, SIGCHLD}) sigaddset(&set, signal);
  sigprocmask(SIG_BLOCK, &set, nullptr);
  // netd inherits the listener, so the agent's connections wait while netd is restarted.
  Fd netd_socket =
      TRY(listen_unix(layout.netd_socket(), SocketKind::Seqpacket, accounts.agent_uid, accounts.agent_gid, 0600));
  std::ofstream(layout.sockets() + "/supervisor.pid") << getpid() << "\n";
  std::array<Child, 3> children{{{"privd-process"}, {"netd-process"}, {"agent-process"}}};
  bool ending = false;
  while (true) {
    bool running = false;
    const std::int64_t now = std::time(nullptr);
    for (auto& child : children) {
      if (child.pid > 0 && waitpid(child.pid, nullptr, WNOHANG) == child.pid) {
        if (!ending) log_warn("run", "{} ended; it is started again", child.role);
        child.pid = -1;
      }
      if (child.pid < 0 && !ending && now > child.started) {
        child.pid = spawn(layout, program, child.role, netd_socket.get());
        child.started = now;
      }
      running = running || child.pid > 0;
    }
    if (ending && !running) break;
    const timespec wait{0, 500'000'000};
    const int signal = sigtimedwait(&set, nullptr, &wait);
    if (signal == SIGTERM || signal == SIGINT) {
      ending = true;
      for (const auto& child : children) {
        if (child.pid > 0) kill(child.pid, SIGTERM);
      }
    }
  }
  std::error_code ignored;
  std::filesystem::remove(layout.sockets() + "/supervisor.pid", ignored);
  return {};
}

}  // namespace muster::host
