// The second half of DockerRuntime: looking at what runs and getting into it.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <thread>

#include "base/bytes.h"
#include "host/docker_runtime.h"
#include "host/json.h"
#include "host/tcp_inside.h"

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

}  // namespace

Status DockerRuntime::put_identity(const std::string& lease, const std::string& file, ByteView token) {
  return dirs_.put_identity(lease, file, token);
}
Status DockerRuntime::put_secret(const std::string& lease, ByteView ray_token) {
  return dirs_.put_secret(lease, ray_token);
}

Status DockerRuntime::put_blob(const std::string& lease, const std::string& blob, int source) {
  return dirs_.put_blob(lease, blob, source);
}

std::uint64_t DockerRuntime::engine_life() {
  const std::lock_guard lock(life_mutex_);
  return life_;
}

// An engine that goes away closes its connections before it stops any container, so a line that it holds open tells a
// container that ended by itself from one that the engine took along; also where systemd keeps the engine's socket, and
// a question asked meanwhile just waits for the next engine.
void DockerRuntime::watch_life() {
  const std::lock_guard lock(life_mutex_);
  std::array<char, 4096> ignored;
  while (life_line_) {
    const ssize_t n = recv(life_line_.get(), ignored.data(), ignored.size(), MSG_DONTWAIT);
    if (n > 0 || (n < 0 && errno == EINTR)) continue;
    if (n < 0 && errno == EAGAIN) return;
    life_line_.reset();
    ++life_;
  }
  const auto target = api("/events?filters=" + encode_path(R"({"label":["io.muster.never"]})"));
  if (!target.ok()) return;
  auto line = http_.open_ended({.target = *target, .timeout = Millis(5'000)});
  if (line.ok()) life_line_ = std::move(*line);
}

Result<std::vector<LeaseState>> DockerRuntime::list() {
  watch_life();
  const std::string filter =
      encode_path(to_text(json::object{{"label", json::array{"io.muster.machine=" + options_.machine}}}));
  const EngineReply reply = TRY(ask("GET", "/containers/json?all=1&filters=" + filter));
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
    if (!about.ok() && about.error().field == "engine.gone") return about.error();
    if (!about.ok()) continue;  // removed meanwhile
    LeaseState& state = leases[lease];
    state.lease = lease;
    const bool running = bool_at(*about, {"State", "Running"});
    if (part == "net") {
      state.namespace_up = running;
      state.namespace_pid = static_cast<pid_t>(int_at(*about, {"State", "Pid"}));
      if (running) state.network = fmt::format("/proc/{}/ns/net", state.namespace_pid);
    } else {
      state.exists = true;
      state.running = running;
      state.main_pid = running ? static_cast<pid_t>(int_at(*about, {"State", "Pid"})) : 0;
      state.exit_code = int_at(*about, {"State", "ExitCode"});
      state.out_of_memory = bool_at(*about, {"State", "OOMKilled"});
      if (!running) state.reason = dirs_.halted(lease);
    }
  }
  watch_life();
  std::vector<LeaseState> out;
  for (auto& [id, state] : leases) {
    dirs_.recall_egress(state);
    out.push_back(std::move(state));
  }
  return out;
}

Result<Fd> DockerRuntime::connect_helper(const std::string& lease, Place place) {
  return dirs_.connect_helper(lease, place);
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
  return tcp_inside(fmt::format("/proc/{}/ns/net", pid), address, port);
}

Result<Fd> DockerRuntime::open_tun(const std::string& lease) {
  const json::value pause = TRY(inspect(name(lease, "net")));
  const auto pid = static_cast<pid_t>(int_at(pause, {"State", "Pid"}));
  if (pid <= 0 || !options_.open_tun)
    return error(Code::FailedPrecondition, "the lease's network is not up", "container.missing");
  return options_.open_tun(fmt::format("/proc/{}/ns/net", pid));
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

Result<DiskUse> DockerRuntime::disk(const std::string& lease, const DiskUse& enough) {
  DiskUse use;
  const json::value about = TRY(inspect(name(lease, "ray")));
  const std::string upper = text_at(about, {"GraphDriver", "Data", "UpperDir"});
  struct stat info {};
  if (!upper.empty() && lstat(upper.c_str(), &info) == 0) {
    use.root_bytes = tree_bytes(upper, enough.root_bytes);
  } else {  // a storage driver that keeps no directory of changes: the engine counts
    const EngineReply reply = TRY(ask("GET", "/containers/" + name(lease, "ray") + "/json?size=true", {}, 300));
    const auto counted = parse_object(reply.body);
    use.root_bytes =
        counted.ok() ? static_cast<std::uint64_t>(std::max<std::int64_t>(0, int_at(*counted, {"SizeRw"}))) : 0;
  }
  use.root_bytes += tree_bytes(dirs_.dir(lease) + "/run", enough.root_bytes);
  if (const auto* mounts = find_path(about, {"Mounts"}); mounts != nullptr && mounts->is_array()) {
    for (const auto& mount : mounts->get_array()) {  // what the image declares as volumes is written beside its root
      if (text_at(mount, {"Type"}) == "volume")
        use.root_bytes += tree_bytes(text_at(mount, {"Source"}), enough.root_bytes);
    }
  }
  use.workspace_bytes = tree_bytes(dirs_.dir(lease) + "/workspace", enough.workspace_bytes);
  return use;
}

Status DockerRuntime::halt(const std::string& lease, const std::string& reason) {
  TRY(inspect(name(lease, "ray")));
  TRY_VOID(dirs_.mark_halted(lease, reason));
  const EngineReply reply = TRY(ask("POST", "/containers/" + name(lease, "ray") + "/kill"));
  if (reply.status / 100 == 2 || reply.status == 409 || reply.status == 404) return {};  // it ended meanwhile
  return engine_said(reply, "kill the container", "container.stop");
}

Result<std::string> DockerRuntime::logs(const std::string& lease, std::size_t bytes_max) {
  TRY(inspect(name(lease, "ray")));
  const EngineReply reply = TRY(ask("GET", "/containers/" + name(lease, "ray") + "/logs?stdout=1&stderr=1&tail=400"));
  if (reply.status != 200) return engine_said(reply, "read the container's output", "logs");
  std::string out;
  for (std::size_t at = 0; at + 8 <= reply.body.size();) {  // frames: channel, 3 zero bytes, u32 length
    const auto byte = [&](std::size_t i) {
      return static_cast<std::size_t>(static_cast<unsigned char>(reply.body[i]));
    };
    const std::size_t length = byte(at + 4) << 24 | byte(at + 5) << 16 | byte(at + 6) << 8 | byte(at + 7);
    out += reply.body.substr(at + 8, length);
    at += 8 + length;
  }
  return out.size() > bytes_max ? out.substr(out.size() - bytes_max) : out;
}

Status DockerRuntime::remove_everything() {
  for (const auto& state : TRY(list())) TRY_VOID(remove(state.lease));
  std::error_code ignored;
  fs::remove_all(dirs_.secrets_root(), ignored);
  remove_pulled();
  return {};
}

}  // namespace muster::host
