#include "host/supervisor.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/prctl.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <thread>

#include "base/log.h"
#include "crypto/random.h"
#include "host/agent_process.h"
#include "host/egress_control.h"
#include "host/egress_process.h"
#include "host/identity.h"
#include "host/netd.h"
#include "host/owner_guard.h"
#include "host/policy.h"
#include "host/privd.h"
#include "host/sandbox.h"
#include "host/tun.h"
#include "overlay/packet.h"

namespace muster::host {
namespace {

constexpr int kInheritedFd = 3;  // the listener that a process gets from here
constexpr const char* kEgressRole = "egress-process";
struct Role {
  const char* role;
  int listener = -1;
  pid_t pid = -1;
  std::int64_t started = 0;
};

Status make_tun(const std::string& network, const LaunchSpec& spec) {
  TunSpec tun;
  tun.address = spec.address;
  tun.prefix_bits = static_cast<std::uint8_t>(spec.prefix_bits);
  tun.address6 = overlay::inner6(spec.address);
  const auto made = create_tun(network, tun);
  // In use: netd holds it since before; it keeps its address.
  if (!made.ok() && made.error().code != Code::FailedPrecondition)
    return error(made.error().code, made.error().message, "tun.create");
  return {};
}

Result<Fd> fetch_tun(const std::string& network) {
  auto fd = open_tun(network, TunSpec{}.name);
  if (!fd.ok())
    return error(fd.error().code, fd.error().message,
                 fd.error().code == Code::FailedPrecondition ? "tun.held" : "tun.open");
  return fd;
}

pid_t spawn(const Layout& layout, const std::string& program, const Role& child) {
  const std::string state = "--state-dir=" + layout.root;
  const std::array<const char*, 4> argv{program.c_str(), child.role, state.c_str(), nullptr};
  const pid_t pid = fork();
  if (pid != 0) return pid;
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  if (child.listener == kInheritedFd)
    fcntl(child.listener, F_SETFD, 0);
  else if (child.listener >= 0)
    dup2(child.listener, kInheritedFd);
  execv(program.c_str(), const_cast<char**>(argv.data()));
  _exit(127);
}

bool egress_wanted(const Layout& layout) {
  const auto policy = load_policy(layout.policy());
  return policy.ok() && policy->egress_allowed;
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

VenvOptions venv_options(const Layout& layout, const std::string& machine) {
  VenvOptions options;
  options.layout = layout;
  options.machine = machine;
  options.make_tun = make_tun;
  options.open_tun = fetch_tun;
  const auto policy = load_policy(layout.policy());
  if (policy.ok()) options.uv = policy->uv;
  options.index = [path = layout.policy()] {
    const auto now = load_policy(path);
    return now.ok() ? now->python_index : std::string();
  };
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
  PrivdOptions options{layout, accounts.agent_uid, accounts.agent_gid};
  if (!config.tpm_key.empty()) {
    auto key = load_tpm_key(layout, config);
    if (key.ok()) {
      options.tpm = std::make_shared<const crypto::TpmKey>(std::move(*key));
    } else {
      options.tpm_fault = key.error().message;
      log_error("privd", "{}", key.error().message);
    }
  }
  Runtimes runtime(docker_options(layout, config.node_id, config.machine), venv_options(layout, config.machine));
  EgressControl egress({layout, accounts.egress_uid});
  TRY_VOID(egress.start());
  Privd privd(std::move(options), runtime, &egress);
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
  NetdOptions options;
  options.udp_fd = open_udp_socket().release();
  options.udp6_fd = open_udp_socket(UdpFamily::Six).release();
  for (int i = 0; i < 4; ++i) options.spare_udp_fds.push_back(open_udp_socket().release());
  TRY_VOID(become(accounts.netd_uid, accounts.netd_gid));
  die_with_parent();
  std::signal(SIGPIPE, SIG_IGN);
  options.state_dir = layout.netd();
  options.socket_fd = socket_fd;
  options.agent_uid = accounts.agent_uid;
  options.bandwidth_file = layout.bandwidth();
  options.network_file = layout.network();
  const char* pacing = std::getenv("MUSTER_PACING");
  if (pacing != nullptr && std::string_view(pacing) == "off") options.pacing = Pacing::Off;
  const char* udp_relay = std::getenv("MUSTER_UDP_RELAY");
  if (udp_relay != nullptr && std::string_view(udp_relay) == "off") options.udp_relay = UdpRelay::Off;
  options.helpers = netd_helpers(std::getenv("MUSTER_NETD_HELPERS"), std::thread::hardware_concurrency());
  options.udp_large = large_mode(std::getenv("MUSTER_UDP_LARGE"));
  options.tun_large = large_mode(std::getenv("MUSTER_TUN_LARGE"));
  if (utsname kernel{}; ::uname(&kernel) == 0) options.kernel = kernel.release;
  TRY_VOID(confine_netd());
  return run_netd(options);
}

Status run_egress_role(int socket_fd) {
  const Accounts accounts = find_accounts();
  const uid_t privd_uid = geteuid();
  TRY_VOID(become(accounts.egress_uid, accounts.egress_gid));
  die_with_parent();
  std::signal(SIGPIPE, SIG_IGN);
  crypto::random_u32();  // seeded before there are no more files
  return run_egress_process(socket_fd, privd_uid, confine_egress);
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
  if (const auto policy = load_policy(layout.policy()); policy.ok()) write_for_netd(layout, *policy);
  // privd waits the same way for the egress process.
  Fd egress_socket = TRY(listen_unix(layout.egress_socket(), SocketKind::Seqpacket, 0, 0, 0600));
  std::ofstream(layout.sockets() + "/supervisor.pid") << getpid() << "\n";
  std::array<Role, 4> children{
      {{"privd-process"}, {"netd-process", netd_socket.get()}, {"agent-process"}, {kEgressRole, egress_socket.get()}}};
  bool ending = false;
  while (true) {
    bool running = false;
    const std::int64_t now = std::time(nullptr);
    for (auto& child : children) {
      if (child.pid > 0 && waitpid(child.pid, nullptr, WNOHANG) == child.pid) {
        if (!ending) log_warn("run", "{} ended; it is started again", child.role);
        child.pid = -1;
      }
      const bool wanted = child.role != kEgressRole || egress_wanted(layout);
      if (child.pid < 0 && !ending && wanted && now > child.started) {
        child.pid = spawn(layout, program, child);
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
