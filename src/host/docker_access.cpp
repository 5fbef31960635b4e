// The second half of DockerRuntime: looking at what runs and getting into it.
#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <future>
#include <thread>

#include "base/bytes.h"
#include "host/docker_runtime.h"
#include "host/json.h"

namespace muster::host {
namespace fs = std::filesystem;
namespace {

std::string encode_path(std::string_view text) {
  std::string out;
  for (const unsigned char c : text) {
    if (std::isalnum(c) != 0 || c == '/' || c == '-' || c == '_' || c == '.')
      out.push_back(static_cast<char>(c));
    else
      out += fmt::format("%{:02X}", c);
  }
  return out;
}

Error engine_said(const EngineReply& reply, std::string_view what, std::string reason) {
  const auto parsed = parse_object(reply.body);
  return error(reply.status == 404 ? Code::NotFound : Code::Unavailable,
               fmt::format("could not {}: {} (status {})", what,
                           parsed.ok() ? text_at(*parsed, {"message"}) : std::string("no reason given"), reply.status),
               std::move(reason));
}

Result<Fd> dial(std::uint32_t address, std::uint16_t port) {
  Fd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return error(Code::Unavailable, "cannot make a socket: " + errno_text(errno), "tcp");
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(port);
  to.sin_addr.s_addr = htonl(address);
  if (connect(fd.get(), reinterpret_cast<const sockaddr*>(&to), sizeof to) != 0) {
    if (errno != EINPROGRESS)
      return error(Code::Unavailable, fmt::format("port {}: {}", port, errno_text(errno)), "tcp.refused");
    pollfd wait{fd.get(), POLLOUT, 0};
    if (poll(&wait, 1, 5000) <= 0)
      return error(Code::DeadlineExceeded, fmt::format("port {} did not answer within 5 s", port), "tcp.timeout");
    int failure = 0;
    socklen_t size = sizeof failure;
    getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &failure, &size);
    if (failure != 0)
      return error(Code::Unavailable, fmt::format("port {}: {}", port, errno_text(failure)), "tcp.refused");
  }
  const int one = 1;
  setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  return fd;
}

// A file of ours below a directory, made anew and complete before it gets its name.
Status write_file(const std::string& path, ByteView data, mode_t mode, uid_t uid, gid_t gid) {
  const std::string part = path + ".part";
  unlink(part.c_str());
  Fd file(open(part.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode));
  if (!file) return error(Code::Unavailable, "cannot write " + path + ": " + errno_text(errno), "disk");
  if (write(file.get(), data.data(), data.size()) != static_cast<ssize_t>(data.size()) ||
      fchown(file.get(), uid, gid) != 0 || fchmod(file.get(), mode) != 0 || rename(part.c_str(), path.c_str()) != 0) {
    return error(Code::Unavailable, "cannot write " + path + ": " + errno_text(errno), "disk");
  }
  return {};
}

}  // namespace

Status DockerRuntime::put_secret(const std::string& lease, ByteView ray_token) {
  const std::string run = options_.layout.lease(lease) + "/run";
  struct stat owner {};
  if (lstat(run.c_str(), &owner) != 0)
    return error(Code::FailedPrecondition, "the lease has no container", "container.missing");
  return write_file(secrets(lease) + "/ray_token", ray_token, 0400, owner.st_uid, owner.st_gid);
}

Status DockerRuntime::put_blob(const std::string& lease, const std::string& blob, int source) {
  const std::string dir = options_.layout.lease(lease) + "/blobs";
  if (!fs::is_directory(dir)) return error(Code::FailedPrecondition, "the lease has no container", "container.missing");
  const std::string path = dir + "/" + blob, part = path + ".part";
  unlink(part.c_str());
  Fd file(open(part.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644));
  if (!file) return error(Code::Unavailable, "cannot write a blob: " + errno_text(errno), "disk");
  char buffer[65536];
  while (true) {
    const ssize_t n = read(source, buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n == 0) break;
    if (n < 0 || write(file.get(), buffer, static_cast<std::size_t>(n)) != n) {
      unlink(part.c_str());
      return error(Code::Unavailable, "cannot write a blob: " + errno_text(errno), "disk");
    }
  }
  fchmod(file.get(), 0644);
  if (rename(part.c_str(), path.c_str()) != 0)
    return error(Code::Unavailable, "cannot write a blob: " + errno_text(errno), "disk");
  return {};
}

Result<std::vector<LeaseState>> DockerRuntime::list() {
  const json::object filter{{"label", json::array{"io.muster.machine=" + options_.machine}}};
  std::string encoded;
  for (const unsigned char c : to_text(filter)) encoded += fmt::format("%{:02X}", c);
  const EngineReply reply = TRY(ask("GET", "/containers/json?all=1&filters=" + encoded));
  if (reply.status != 200) return engine_said(reply, "list containers", "engine");
  const json::value listed = TRY(parse_value(reply.body));
  std::map<std::string, LeaseState> leases;
  const auto* items = listed.if_array();
  if (items == nullptr) return error(Code::Unavailable, "the container engine's list is not JSON", "engine");
  for (const auto& item : *items) {
    const std::string lease = text_at(item, {"Labels", "io.muster.lease"}),
                      part = text_at(item, {"Labels", "io.muster.part"});
    if (lease.empty() || part == "probe" || leases.size() > 256) continue;
    const auto about = inspect(text_at(item, {"Id"}));
    if (!about.ok()) continue;  // removed meanwhile
    LeaseState& state = leases[lease];
    state.lease = lease;
    const bool running = bool_at(*about, {"State", "Running"});
    if (part == "net") {
      state.namespace_up = running;
      state.namespace_pid = static_cast<pid_t>(int_at(*about, {"State", "Pid"}));
    } else {
      state.exists = true;
      state.running = running;
      state.exit_code = int_at(*about, {"State", "ExitCode"});
      state.out_of_memory = bool_at(*about, {"State", "OOMKilled"});
    }
  }
  std::vector<LeaseState> out;
  for (auto& [id, state] : leases) out.push_back(std::move(state));
  return out;
}

Result<Fd> DockerRuntime::connect_helper(const std::string& lease, Place place) {
  return connect_beneath(options_.layout.lease(lease) + (place == Place::Main ? "/run" : "/probe"), "helper.sock");
}

Result<ExecOpen> DockerRuntime::exec(const std::string& lease, const std::vector<std::string>& argv, bool tty) {
  json::array command;
  for (const auto& word : argv) command.emplace_back(word);
  json::array env;
  if (tty) env.emplace_back("TERM=xterm-256color");
  const json::object body{{"AttachStdin", true}, {"AttachStdout", true}, {"AttachStderr", true},
                          {"Tty", tty},          {"Cmd", command},       {"Env", env}};
  TRY(inspect(name(lease, "ray")));
  const EngineReply made = TRY(ask("POST", "/containers/" + name(lease, "ray") + "/exec", to_text(body)));
  if (made.status != 201) return engine_said(made, "prepare the command", "exec");
  const json::object id_object = TRY(parse_object(made.body));
  ExecOpen out;
  out.exec = text_at(id_object, {"Id"});
  const std::string target = TRY(api("/exec/" + out.exec + "/start"));
  out.stream = TRY(http_.hijack(
      {.method = "POST", .target = target, .body = to_text(json::object{{"Detach", false}, {"Tty", tty}})}));
  return out;
}

Status DockerRuntime::resize(const std::string& lease, const std::string& exec, int rows, int cols) {
  TRY(exec_code(lease, exec));
  const EngineReply reply = TRY(ask("POST", fmt::format("/exec/{}/resize?h={}&w={}", exec, rows, cols)));
  if (reply.status / 100 != 2) return engine_said(reply, "resize the terminal", "exec");
  return {};
}

Result<std::int64_t> DockerRuntime::exec_code(const std::string& lease, const std::string& exec) {
  const EngineReply reply = TRY(ask("GET", "/exec/" + exec + "/json"));
  if (reply.status != 200) return engine_said(reply, "look at the command", "exec");
  const json::object about = TRY(parse_object(reply.body));
  const json::value container = TRY(inspect(name(lease, "ray")));
  if (text_at(about, {"ContainerID"}) != text_at(container, {"Id"}))
    return error(Code::NotFound, "no such command in this lease", "exec");
  if (bool_at(about, {"Running"})) return std::int64_t{-1};
  return int_at(about, {"ExitCode"}, 255);
}

Result<Fd> DockerRuntime::connect_tcp(const std::string& lease, std::uint32_t address, std::uint16_t port) {
  const json::value pause = TRY(inspect(name(lease, "net")));
  const auto pid = int_at(pause, {"State", "Pid"});
  if (pid <= 0) return error(Code::FailedPrecondition, "the lease's network is not up", "container.missing");
  Fd ns(open(fmt::format("/proc/{}/ns/net", pid).c_str(), O_RDONLY | O_CLOEXEC));
  if (!ns) return error(Code::Unavailable, "cannot open the lease's network: " + errno_text(errno), "tcp");
  // A thread of its own enters the namespace and ends there; the socket it made stays in it.
  auto dialled = std::async(std::launch::async, [&]() -> Result<Fd> {
    if (setns(ns.get(), CLONE_NEWNET) != 0)
      return error(Code::Unavailable, "cannot enter the lease's network: " + errno_text(errno), "tcp");
    return dial(address, port);
  });
  return dialled.get();
}

Result<Fd> DockerRuntime::open_tun(const std::string& lease) {
  const json::value pause = TRY(inspect(name(lease, "net")));
  const auto pid = static_cast<pid_t>(int_at(pause, {"State", "Pid"}));
  if (pid <= 0 || !options_.open_tun)
    return error(Code::FailedPrecondition, "the lease's network is not up", "container.missing");
  return options_.open_tun(pid);
}

Status DockerRuntime::read_archive(const std::string& lease, const std::string& path, int sink) {
  TRY(inspect(name(lease, "ray")));
  const EngineCall call{.target = TRY(api("/containers/" + name(lease, "ray") + "/archive?path=" + encode_path(path))),
                        .timeout = Millis(300'000)};
  const EngineReply reply = TRY(http_.stream(call, [sink](std::string_view part) -> Status {
    while (!part.empty()) {
      const ssize_t n = write(sink, part.data(), part.size());
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return error(Code::Cancelled, "the reader went away", "cancelled");
      part.remove_prefix(static_cast<std::size_t>(n));
    }
    return {};
  }));
  if (reply.status != 200) return engine_said(reply, "read " + path, "archive");
  return {};
}

Status DockerRuntime::write_archive(const std::string& lease, const std::string& path, int source) {
  TRY(inspect(name(lease, "ray")));
  const std::string target =
      "/containers/" + name(lease, "ray") + "/archive?noOverwriteDirNonDir=true&path=" + encode_path(path);
  const EngineReply reply = TRY(http_.upload(
      {.method = "PUT", .target = TRY(api(target)), .content_type = "application/x-tar", .timeout = Millis(300'000)},
      source));
  if (reply.status != 200) return engine_said(reply, "write " + path, "archive");
  return {};
}

Result<std::vector<Usage>> DockerRuntime::usage() {
  std::vector<Usage> out;
  for (const auto& state : TRY(list())) {
    if (!state.running) continue;
    const auto reply = ask("GET", "/containers/" + name(state.lease, "ray") + "/stats?stream=false&one-shot=true");
    if (!reply.ok() || reply->status != 200) continue;
    const auto stats = parse_object(reply->body);
    if (!stats.ok()) continue;
    const auto number = [&](std::initializer_list<std::string_view> at) {
      return static_cast<std::uint64_t>(std::max<std::int64_t>(0, int_at(*stats, at)));
    };
    out.push_back({state.lease, number({"cpu_stats", "cpu_usage", "total_usage"}), number({"memory_stats", "usage"}),
                   number({"pids_stats", "current"})});
  }
  return out;
}

Status DockerRuntime::remove_everything() {
  for (const auto& state : TRY(list())) TRY_VOID(remove(state.lease));
  std::error_code ignored;
  fs::remove_all(options_.secrets_root, ignored);
  return {};
}

}  // namespace muster::host
