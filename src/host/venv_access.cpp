// The second half of VenvRuntime: looking at what runs and getting into it.
#include <fcntl.h>
#include <fmt/format.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <thread>

#include "base/id.h"
#include "crypto/random.h"
#include "host/child.h"
#include "host/netns.h"
#include "host/tcp_inside.h"
#include "host/venv_runtime.h"

namespace muster::host {
namespace fs = std::filesystem;
namespace {

constexpr std::size_t kCommandsMax = 1024, kFrameMax = 1 << 20, kErrorMax = 2000;

bool valid_command(const std::string& id) {
  return id.size() == 64 && std::all_of(id.begin(), id.end(), [](unsigned char c) { return std::isxdigit(c) != 0; });
}

Error no_command() {
  return error(Code::NotFound, "no such command in this lease", "exec");
}

bool read_exactly(int fd, void* into, std::size_t size) {
  auto* at = static_cast<char*>(into);
  while (size > 0) {
    const ssize_t n = read(fd, at, size);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    at += n;
    size -= static_cast<std::size_t>(n);
  }
  return true;
}

bool write_all(int fd, const char* data, std::size_t size) {
  while (size > 0) {
    const ssize_t n = write(fd, data, size);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    data += n;
    size -= static_cast<std::size_t>(n);
  }
  return true;
}

}  // namespace

Status VenvRuntime::running(const std::string& lease) const {
  if (read_box_state(box(lease)).running) return {};
  return error(Code::NotFound, "the lease has no running sandbox", "container.missing");
}

Result<std::vector<LeaseState>> VenvRuntime::list() {
  std::vector<LeaseState> out;
  std::error_code failure;
  for (const auto& entry : fs::directory_iterator(options_.layout.leases(), failure)) {
    const std::string lease = entry.path().filename().string();
    if (!LeaseId::parse(lease)) continue;
    const BoxState box_state = read_box_state(box(lease));
    LeaseState state;
    state.lease = lease;
    state.namespace_up = netns_pinned(network(lease));
    if (!box_state.known && !state.namespace_up) continue;
    state.exists = box_state.known;
    state.running = box_state.running;
    state.exit_code = box_state.exit_code;
    state.out_of_memory = box_state.out_of_memory;
    state.namespace_pid = box_state.main;
    state.main_pid = box_state.running ? box_state.main : 0;
    if (state.namespace_up) state.network = network(lease);
    if (!state.running) state.reason = dirs_.halted(lease);
    dirs_.recall_egress(state);
    out.push_back(std::move(state));
  }
  return out;
}

Status VenvRuntime::put_identity(const std::string& lease, const std::string& file, ByteView token) {
  return dirs_.put_identity(lease, file, token);
}
Status VenvRuntime::put_secret(const std::string& lease, ByteView ray_token) {
  return dirs_.put_secret(lease, ray_token);
}
Status VenvRuntime::put_blob(const std::string& lease, const std::string& blob, int source) {
  return dirs_.put_blob(lease, blob, source);
}
Result<Fd> VenvRuntime::connect_helper(const std::string& lease, Place place) {
  return dirs_.connect_helper(lease, place);
}

Result<ExecOpen> VenvRuntime::exec(const std::string& lease, const std::vector<std::string>& argv, bool tty) {
  TRY_VOID(running(lease));
  ExecOpen out;
  out.exec = hex(crypto::random_bytes(32));
  TRY_VOID(write_box_exec(box(lease), out.exec, {argv, tty}));
  int stream[2], control[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, stream) != 0)
    return error(Code::ResourceExhausted, "no descriptors left", "fds");
  out.stream = Fd(stream[0]);
  const Fd stream_inside(stream[1]);
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, control) != 0)
    return error(Code::ResourceExhausted, "no descriptors left", "fds");
  Fd control_ours(control[0]);
  const Fd control_inside(control[1]);
  Child child;
  child.program = "/proc/self/exe";
  child.argv = {"muster-agent", "venv-exec", box(lease), out.exec};
  child.env = {"PATH=/usr/sbin:/usr/bin:/sbin:/bin"};
  child.cgroups = cgroups_.entrances("boxes");
  child.fds = {{stream_inside.get(), 3}, {control_inside.get(), 4}};
  child.detached = true;
  TRY(start_child(child));
  if (tty) {
    const std::lock_guard lock(mutex_);
    if (controls_.size() >= kCommandsMax) controls_.erase(controls_.begin());
    controls_[lease + "/" + out.exec] = std::move(control_ours);
  }
  return out;
}

Status VenvRuntime::resize(const std::string& lease, const std::string& exec, int rows, int cols) {
  const std::lock_guard lock(mutex_);
  const auto found = controls_.find(lease + "/" + exec);
  if (found == controls_.end()) return no_command();
  const std::array<std::uint16_t, 2> size{static_cast<std::uint16_t>(rows), static_cast<std::uint16_t>(cols)};
  if (send(found->second.get(), size.data(), sizeof size, MSG_NOSIGNAL | MSG_DONTWAIT) != sizeof size)
    return no_command();
  return {};
}

Result<std::int64_t> VenvRuntime::exec_code(const std::string& lease, const std::string& exec) {
  if (!valid_command(exec)) return no_command();
  const std::int64_t code = box_exec_code(box(lease), exec);
  if (code == -2) return no_command();
  if (code >= 0) {
    const std::lock_guard lock(mutex_);
    controls_.erase(lease + "/" + exec);
  }
  return code;
}

Result<Fd> VenvRuntime::connect_tcp(const std::string& lease, std::uint32_t address, std::uint16_t port) {
  if (!netns_pinned(network(lease)))
    return error(Code::FailedPrecondition, "the lease's network is not up", "container.missing");
  return tcp_inside(network(lease), address, port);
}

Result<Fd> VenvRuntime::open_tun(const std::string& lease) {
  if (!netns_pinned(network(lease)) || !options_.open_tun)
    return error(Code::FailedPrecondition, "the lease's network is not up", "container.missing");
  return options_.open_tun(network(lease));
}

// Runs a command as the lease's own user; `source` (-1: nothing) goes in, what it prints goes to `sink` (-1: nowhere).
Result<std::string> VenvRuntime::run_inside(const std::string& lease, const std::vector<std::string>& argv, int source,
                                            int sink) {
  ExecOpen open = TRY(exec(lease, argv, false));
  const int stream = open.stream.get();
  std::thread feeder([source, stream] {
    std::array<char, 65536> buffer;
    while (source >= 0) {
      const ssize_t n = read(source, buffer.data(), buffer.size());
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0 || !write_all(stream, buffer.data(), static_cast<std::size_t>(n))) break;
    }
    shutdown(stream, SHUT_WR);
  });
  std::string said, data;
  bool sunk = true;
  std::array<std::uint8_t, 8> head{};
  while (read_exactly(stream, head.data(), head.size())) {
    const std::size_t size =
        std::size_t{head[4]} << 24 | std::size_t{head[5]} << 16 | std::size_t{head[6]} << 8 | head[7];
    data.resize(std::min(size, kFrameMax));
    if (size > kFrameMax || !read_exactly(stream, data.data(), size)) break;
    if (head[0] == 2 && said.size() < kErrorMax) said += data.substr(0, kErrorMax);
    if (head[0] == 1 && sink >= 0 && sunk) sunk = write_all(sink, data.data(), size);
    if (!sunk) break;
  }
  shutdown(stream, SHUT_RDWR);
  feeder.join();
  if (!sunk) return error(Code::Cancelled, "the reader went away", "cancelled");
  for (int i = 0; i < 600; ++i) {
    const std::int64_t code = TRY(exec_code(lease, open.exec));
    if (code == 0) return said;
    if (code > 0) return error(Code::Unavailable, fmt::format("{} ended with {}: {}", argv[0], code, said), "archive");
    std::this_thread::sleep_for(Millis(50));
  }
  return error(Code::DeadlineExceeded, argv[0] + " did not end", "archive");
}

Status VenvRuntime::read_archive(const std::string& lease, const std::string& path, int sink) {
  const fs::path whole = fs::path(path).lexically_normal();
  const fs::path name = whole.filename();
  const std::vector<std::string> argv =
      name.empty()
          ? std::vector<std::string>{"tar", "-C", whole.string(), "-cf", "-", "."}
          : std::vector<std::string>{"tar", "-C", whole.parent_path().string(), "-cf", "-", "--", name.string()};
  const auto done = run_inside(lease, argv, -1, sink);
  if (!done.ok()) return done.error();
  return {};
}

Status VenvRuntime::write_archive(const std::string& lease, const std::string& path, int source) {
  const auto done = run_inside(lease, {"tar", "-C", path, "--no-same-owner", "-xf", "-"}, source, -1);
  if (!done.ok()) return done.error();
  return {};
}

Result<std::vector<Usage>> VenvRuntime::usage() {
  std::vector<Usage> out;
  for (const auto& state : TRY(list())) {
    if (!state.running) continue;
    const CgroupUse use = cgroups_.use(group(state.lease, Place::Main));
    out.push_back({state.lease, use.cpu_ns, use.memory_bytes, use.pids});
  }
  return out;
}

Result<DiskUse> VenvRuntime::disk(const std::string& lease, const DiskUse& enough) {
  return DiskUse{tree_bytes(dirs_.dir(lease) + "/root", enough.root_bytes) +
                     tree_bytes(dirs_.dir(lease) + "/run", enough.root_bytes),
                 tree_bytes(dirs_.dir(lease) + "/workspace", enough.workspace_bytes)};
}

Status VenvRuntime::halt(const std::string& lease, const std::string& reason) {
  TRY_VOID(running(lease));
  TRY_VOID(dirs_.mark_halted(lease, reason));
  TRY_VOID(cgroups_.kill_all(group(lease, Place::Main), Millis(20'000)));
  for (int i = 0; i < 500 && read_box_state(box(lease)).running; ++i) std::this_thread::sleep_for(Millis(20));
  return {};
}

Result<std::string> VenvRuntime::logs(const std::string& lease, std::size_t bytes_max) {
  if (!read_box_state(box(lease)).known) return error(Code::NotFound, "the lease has no sandbox", "container.missing");
  return read_box_output(box(lease), bytes_max);
}

Result<std::vector<std::string>> gpu_device_files(const std::vector<std::string>& uuids,
                                                  const std::string& driver_root) {
  std::vector<std::string> out;
  std::error_code failure;
  for (const auto& entry : fs::directory_iterator(driver_root + "/gpus", failure)) {
    std::ifstream file(entry.path() / "information");
    std::string uuid, minor;
    for (std::string line; std::getline(file, line);) {
      const auto value = line.find_first_not_of(" \t", line.find(':') + 1);
      if (line.find(':') == std::string::npos || value == std::string::npos) continue;
      if (line.starts_with("GPU UUID")) uuid = line.substr(value);
      if (line.starts_with("Device Minor")) minor = line.substr(value);
    }
    const bool number = !minor.empty() && minor.size() < 4 &&
                        std::all_of(minor.begin(), minor.end(), [](unsigned char c) { return std::isdigit(c) != 0; });
    if (number && std::find(uuids.begin(), uuids.end(), uuid) != uuids.end()) out.push_back("/dev/nvidia" + minor);
  }
  if (out.size() != uuids.size())
    return error(Code::FailedPrecondition,
                 fmt::format("{} of {} leased GPUs are known to the driver; see nvidia-smi", out.size(), uuids.size()),
                 "gpu.driver");
  std::sort(out.begin(), out.end());
  for (const char* control : {"/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"}) {
    if (fs::exists(control)) out.emplace_back(control);
  }
  return out;
}

}  // namespace muster::host
