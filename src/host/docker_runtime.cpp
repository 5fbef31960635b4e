#include "host/docker_runtime.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/magic.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <thread>

#include "base/log.h"
#include "host/embedded.h"
#include "host/json.h"

namespace muster::host {
namespace fs = std::filesystem;
namespace {

constexpr std::string_view kNodeLabel = "io.muster.node", kMachineLabel = "io.muster.machine",
                           kLeaseLabel = "io.muster.lease", kPartLabel = "io.muster.part";
// The image's own Python, wherever stock images keep it.
constexpr std::string_view kStartHelper =
    "for p in python python3 /home/ray/anaconda3/bin/python /opt/ray/bin/python; do "
    "command -v \"$p\" >/dev/null 2>&1 && exec \"$p\" -u /muster/helper/ray_helper.py; done; "
    "echo 'no python found in this image' >&2; exit 127";

Error refused(const EngineReply& reply, std::string_view what, std::string reason) {
  const auto parsed = parse_object(reply.body);
  const std::string message = parsed.ok() ? text_at(*parsed, {"message"}) : reply.body.substr(0, 300);
  const Code code = reply.status == 404   ? Code::NotFound
                    : reply.status == 409 ? Code::FailedPrecondition
                                          : Code::Unavailable;
  return error(code, fmt::format("the container engine could not {}: {} (status {})", what, message, reply.status),
               std::move(reason));
}

std::string encode_query(std::string_view text) {
  std::string out;
  for (const unsigned char c : text) {
    if (std::isalnum(c) != 0 || c == '-' || c == '_' || c == '.' || c == '~')
      out.push_back(static_cast<char>(c));
    else
      out += fmt::format("%{:02X}", c);
  }
  return out;
}

json::array strings(const std::vector<std::string>& items) {
  json::array out;
  for (const auto& item : items) out.emplace_back(item);
  return out;
}

Status make_dir(const std::string& path, mode_t mode) {
  if (mkdir(path.c_str(), mode) != 0 && errno != EEXIST) {
    return error(Code::Unavailable, fmt::format("cannot make {}: {}", path, errno_text(errno)), "disk");
  }
  chmod(path.c_str(), mode);
  return {};
}

bool on_tmpfs(const std::string& path) {
  struct statfs info {};
  return statfs(path.c_str(), &info) == 0 && static_cast<long>(info.f_type) == static_cast<long>(TMPFS_MAGIC);
}

}  // namespace

std::string choose_secrets_root(const Layout& layout) {
  const std::string leaf = "muster-" + std::to_string(std::hash<std::string>{}(layout.root));
  for (const std::string base : {"/run", "/dev/shm"}) {
    if (on_tmpfs(base)) return base + "/" + leaf;
  }
  log_warn("privd",
           "this machine has no tmpfs at /run or /dev/shm: cluster secrets are kept on its disk while a lease runs");
  return layout.root + "/secrets";
}

DockerRuntime::DockerRuntime(DockerOptions options) : options_(std::move(options)), http_(options_.socket) {
  if (options_.secrets_root.empty()) options_.secrets_root = choose_secrets_root(options_.layout);
}

std::string DockerRuntime::name(const std::string& lease, std::string_view part) const {
  return fmt::format("muster-{}-{}-{}", options_.machine, lease, part);
}

Result<std::string> DockerRuntime::api(const std::string& path) {
  {
    const std::lock_guard lock(mutex_);
    if (!api_version_.empty()) return "/v" + api_version_ + path;
  }
  const EngineReply reply = TRY(http_.call({.target = "/version", .timeout = Millis(10'000)}));
  const json::object version = TRY(parse_object(reply.body));
  const std::string newest = text_at(version, {"ApiVersion"});
  int minor = 0;
  if (!newest.starts_with("1.") || (minor = std::atoi(newest.c_str() + 2)) < 40) {
    return error(Code::Unsupported,
                 fmt::format("the container engine speaks API {}; 1.40 or newer is needed: update it", newest),
                 "engine_too_old");
  }
  const std::lock_guard lock(mutex_);
  api_version_ = fmt::format("1.{}", std::min(minor, 47));
  return "/v" + api_version_ + path;
}

Result<EngineReply> DockerRuntime::ask(const std::string& method, const std::string& path, const std::string& body,
                                       int timeout_s) {
  const std::string target = TRY(api(path));
  return http_.call({.method = method, .target = target, .body = body, .timeout = Millis(timeout_s * 1000)});
}

Result<EngineInfo> DockerRuntime::info() {
  EngineInfo out;
  const EngineReply version = TRY(ask("GET", "/version"));
  const json::object about = TRY(parse_object(version.body));
  out.kind = text_at(about, {"Platform", "Name"}).find("odman") != std::string::npos ? "podman" : "docker";
  out.version = text_at(about, {"Version"});
  out.api = text_at(about, {"ApiVersion"});
  const EngineReply reply = TRY(ask("GET", "/info"));
  const json::object info = TRY(parse_object(reply.body));
  out.arch = text_at(info, {"Architecture"});
  out.cgroup = text_at(info, {"CgroupVersion"});
  out.gpu_mode = "none";
  if (find_path(info, {"Runtimes", "nvidia"}) != nullptr) out.gpu_mode = "nvidia";
  if (find_path(info, {"CDISpecDirs"}) != nullptr &&
      (fs::exists("/etc/cdi/nvidia.yaml") || fs::exists("/var/run/cdi/nvidia.yaml")))
    out.gpu_mode = "cdi";
  const EngineReply images = TRY(ask("GET", "/images/json"));
  const json::value list = TRY(parse_value(images.body));
  if (const auto* items = list.if_array()) {
    for (const auto& item : *items) {
      if (out.images.size() < 256) out.images.push_back(text_at(item, {"Id"}));
    }
  }
  return out;
}

Result<std::string> DockerRuntime::pull(const std::string& image, const RegistryAuth& auth, const Progress& progress) {
  const auto local = [&]() -> Result<std::string> {
    const EngineReply reply = TRY(ask("GET", "/images/" + image + "/json"));
    if (reply.status != 200) return refused(reply, "find image " + image, "image_pull.not_found");
    const json::object object = TRY(parse_object(reply.body));
    return text_at(object, {"Id"});
  };
  auto present = local();
  if (present.ok() || present.error().code != Code::NotFound || image.starts_with("sha256:")) return present;
  std::string query = "fromImage=" + encode_query(image);
  const auto slash = image.rfind('/'), colon = image.rfind(':');
  const bool tagged = colon != std::string::npos && (slash == std::string::npos || colon > slash);
  if (image.find('@') == std::string::npos) {
    query = "fromImage=" + encode_query(image.substr(0, tagged ? colon : image.size())) +
            "&tag=" + encode_query(tagged ? image.substr(colon + 1) : "latest");
  }
  EngineCall call{.method = "POST", .target = TRY(api("/images/create?" + query)), .timeout = Millis(600'000)};
  if (!auth.username.empty()) {
    const json::object credentials{{"username", auth.username}, {"password", auth.password}};
    call.headers["X-Registry-Auth"] = base64url(as_bytes(to_text(credentials)));
  }
  std::string line, failure;
  std::map<std::string, std::pair<std::uint64_t, std::uint64_t>> layers;
  const auto reply = http_.stream(call, [&](std::string_view part) -> Status {
    line.append(part);
    if (line.size() > (1 << 20))
      return error(Code::TooLarge, "the engine's progress line is too long", "image_pull.failed");
    for (auto end = line.find('\n'); end != std::string::npos; end = line.find('\n')) {
      const auto said = parse_object(line.substr(0, end));
      line.erase(0, end + 1);
      if (!said.ok()) continue;
      if (said->contains("error")) failure = text_at(*said, {"error"});
      if (layers.size() < 512) {
        auto& layer = layers[text_at(*said, {"id"})];
        layer = {static_cast<std::uint64_t>(
                     int_at(*said, {"progressDetail", "current"}, static_cast<std::int64_t>(layer.first))),
                 static_cast<std::uint64_t>(
                     int_at(*said, {"progressDetail", "total"}, static_cast<std::int64_t>(layer.second)))};
      }
      std::uint64_t done = 0, total = 0;
      for (const auto& [id, layer] : layers) {
        done += layer.first;
        total += layer.second;
      }
      if (!progress(done, total)) return error(Code::Cancelled, "the pull was cancelled", "cancelled");
    }
    return {};
  });
  if (!reply.ok()) return reply.error();
  if (reply->status != 200) {
    const bool missing = reply->status == 404;
    return refused(*reply, "pull " + image, missing ? "image_pull.not_found" : "image_pull.unreachable");
  }
  if (!failure.empty()) {
    const bool denied =
        failure.find("denied") != std::string::npos || failure.find("unauthorized") != std::string::npos;
    return error(Code::Unavailable, fmt::format("pulling {} failed: {}", image, failure.substr(0, 300)),
                 denied ? "image_pull.denied" : "image_pull.failed");
  }
  return local();
}

json::object DockerRuntime::labels(const std::string& lease, std::string_view part) const {
  json::object out;
  out[kNodeLabel] = options_.node_id;
  out[kMachineLabel] = options_.machine;
  out[kLeaseLabel] = lease;
  out[kPartLabel] = json::string_view(part.data(), part.size());
  return out;
}

json::object DockerRuntime::common_host_config(std::int64_t pids) const {
  json::object config;
  config["CapDrop"] = json::array{"ALL"};
  config["SecurityOpt"] = strings({"no-new-privileges", "seccomp=" + std::string(seccomp_profile())});
  config["PidsLimit"] = pids;
  config["Init"] = true;
  config["Privileged"] = false;
  config["IpcMode"] = "private";
  config["RestartPolicy"] = json::object{{"Name", "no"}};
  config["LogConfig"] =
      json::object{{"Type", "json-file"}, {"Config", json::object{{"max-size", "5m"}, {"max-file", "2"}}}};
  return config;
}

Result<json::value> DockerRuntime::inspect(const std::string& container) {
  const EngineReply reply = TRY(ask("GET", "/containers/" + container + "/json"));
  if (reply.status == 404) return error(Code::NotFound, "no such container", "container.missing");
  if (reply.status != 200) return refused(reply, "inspect " + container, "engine");
  const json::object object = TRY(parse_object(reply.body));
  if (text_at(object, {"Config", "Labels", kMachineLabel}) != options_.machine) {
    return error(Code::PermissionDenied, "container " + container + " is not ours; it is left alone",
                 "container.foreign");
  }
  return json::value(object);
}

Status DockerRuntime::create(const std::string& container, const json::value& body) {
  const EngineReply reply = TRY(ask("POST", "/containers/create?name=" + container, to_text(body)));
  if (reply.status == 201) return {};
  const bool image_missing = reply.status == 404;
  return refused(reply, "create " + container, image_missing ? "image_pull.not_found" : "container.create");
}

Status DockerRuntime::start(const std::string& container) {
  const EngineReply reply = TRY(ask("POST", "/containers/" + container + "/start"));
  if (reply.status == 204 || reply.status == 304) return {};
  return refused(reply, "start " + container, "container.start");
}

Status DockerRuntime::drop(const std::string& container, int grace_s) {
  const auto found = inspect(container);
  if (!found.ok()) return found.error().code == Code::NotFound ? Status{} : Status(found.error());
  if (grace_s > 0 && bool_at(*found, {"State", "Running"})) {
    const auto stopped = ask("POST", fmt::format("/containers/{}/stop?t={}", container, grace_s), {}, grace_s + 30);
    if (!stopped.ok()) return stopped.error();
  }
  const EngineReply reply = TRY(ask("DELETE", "/containers/" + container + "?force=true&v=true", {}, 120));
  if (reply.status == 204 || reply.status == 404 || reply.status == 409) {
    if (reply.status != 409) return {};
    for (int i = 0; i < 50; ++i) {  // a removal is already under way
      std::this_thread::sleep_for(Millis(100));
      const auto still = inspect(container);
      if (!still.ok() && still.error().code == Code::NotFound) return {};
    }
  }
  return refused(reply, "remove " + container, "container.remove");
}

Status DockerRuntime::prepare_dirs(const std::string& lease) {
  const auto& layout = options_.layout;
  TRY_VOID(make_dir(layout.root, 0755));
  TRY_VOID(make_dir(layout.leases(), 0711));
  TRY_VOID(make_dir(layout.lease(lease), 0711));
  for (const auto* part : {"/run", "/probe", "/blobs", "/workspace"}) {
    const std::string path = layout.lease(lease) + part;
    if (!fs::exists(path)) TRY_VOID(make_dir(path, 0755));
  }
  if (!fs::exists(layout.lease(lease) + "/run/blobs")) TRY_VOID(make_dir(layout.lease(lease) + "/run/blobs", 0755));
  TRY_VOID(make_dir(options_.secrets_root, 0711));
  TRY_VOID(make_dir(secrets(lease), 0755));
  TRY_VOID(make_dir(layout.helper(), 0755));
  std::ofstream file(layout.helper() + "/.ray_helper.py.part", std::ios::trunc | std::ios::binary);
  file << ray_helper_source();
  file.close();
  chmod((layout.helper() + "/.ray_helper.py.part").c_str(), 0644);
  std::error_code failure;
  fs::rename(layout.helper() + "/.ray_helper.py.part", layout.helper() + "/ray_helper.py", failure);
  if (failure) return error(Code::Unavailable, "cannot write the Ray helper: " + failure.message(), "disk");
  return {};
}

Status DockerRuntime::hand_over_dirs(const std::string& lease, const User& user) {
  for (const auto* part : {"/run", "/probe", "/workspace"}) {
    // The container could have replaced what is inside; the directory itself sits in ours.
    const std::string path = options_.layout.lease(lease) + part;
    if (lchown(path.c_str(), user.uid, user.gid) != 0)
      return error(Code::Unavailable, "cannot hand over " + path + ": " + errno_text(errno), "disk");
  }
  return {};
}

// Who the image runs as. A name is looked up in the image's own /etc/passwd.
Result<DockerRuntime::User> DockerRuntime::user_of(const std::string& image, const std::string& container) {
  {
    const std::lock_guard lock(mutex_);
    const auto known = users_.find(image);
    if (known != users_.end()) return known->second;
  }
  const json::value about = TRY(inspect(container));
  const std::string text = text_at(about, {"Config", "User"});
  const std::string who = text.substr(0, text.find(':'));
  User user;
  if (!who.empty() && std::all_of(who.begin(), who.end(), [](unsigned char c) { return std::isdigit(c) != 0; }) &&
      who.size() < 10) {
    user = {static_cast<uid_t>(std::stoul(who)), static_cast<gid_t>(std::stoul(who))};
  } else if (!who.empty() && who != "root") {
    const EngineReply passwd = TRY(ask("GET", "/containers/" + container + "/archive?path=/etc/passwd"));
    const auto at = passwd.status == 200 ? passwd.body.find(fmt::format("\n{}:", who)) : std::string::npos;
    if (at == std::string::npos)
      return error(Code::InvalidArgument, fmt::format("the image runs as '{}', which its /etc/passwd lacks", who),
                   "image.user");
    const auto first = passwd.body.find(':', passwd.body.find(':', at) + 1);
    if (first != std::string::npos) {
      user.uid = static_cast<uid_t>(std::strtoul(passwd.body.c_str() + first + 1, nullptr, 10));
      const auto second = passwd.body.find(':', first + 1);
      if (second != std::string::npos)
        user.gid = static_cast<gid_t>(std::strtoul(passwd.body.c_str() + second + 1, nullptr, 10));
    }
  }
  const std::lock_guard lock(mutex_);
  if (users_.size() < 256) users_[image] = user;
  return user;
}

Result<pid_t> DockerRuntime::ensure_namespace(const LaunchSpec& spec, bool* made) {
  const std::string pause = name(spec.lease, "net");
  auto found = inspect(pause);
  *made = false;
  if (found.ok() && bool_at(*found, {"State", "Running"})) return static_cast<pid_t>(int_at(*found, {"State", "Pid"}));
  if (!found.ok() && found.error().code != Code::NotFound) return found.error();
  // A namespace whose holder is gone took the workload's network with it: both are made anew.
  TRY_VOID(drop(name(spec.lease, "ray"), 0));
  TRY_VOID(drop(pause, 0));
  json::object config = common_host_config(32);
  config["NetworkMode"] = "none";
  config["ReadonlyRootfs"] = true;
  config["Memory"] = 64 << 20;
  const json::object body{{"Image", spec.image},
                          {"Entrypoint", json::array{"/bin/sleep"}},
                          {"Cmd", json::array{"infinity"}},
                          {"User", "65534:65534"},
                          {"Env", json::array{"NVIDIA_VISIBLE_DEVICES=void"}},
                          {"Labels", labels(spec.lease, "net")},
                          {"HostConfig", config}};
  TRY_VOID(create(pause, body));
  TRY_VOID(start(pause));
  const json::value about = TRY(inspect(pause));
  const auto pid = static_cast<pid_t>(int_at(about, {"State", "Pid"}));
  if (pid <= 0)
    return error(Code::Unavailable, "the container that holds the namespace ended at once", "container.start");
  *made = true;
  return pid;
}

json::object DockerRuntime::workload(const LaunchSpec& spec, const EngineInfo& engine, Launched& told) const {
  const std::string dir = options_.layout.lease(spec.lease);
  json::object config = common_host_config(spec.pids);
  config["NetworkMode"] = "container:" + name(spec.lease, "net");
  if (spec.memory_bytes > 0) {
    config["Memory"] = spec.memory_bytes;
    config["MemorySwap"] = spec.memory_bytes;
  }
  const auto host_cpus = static_cast<std::int64_t>(std::thread::hardware_concurrency()) * 1000;
  if (spec.cpu_milli > 0) config["NanoCpus"] = std::min(spec.cpu_milli, host_cpus) * 1'000'000;
  config["ShmSize"] = spec.shm_bytes > 0 ? spec.shm_bytes : std::int64_t{512} << 20;
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  std::int64_t nofile = spec.nofile > 0 ? spec.nofile : 65536;
  if (limit.rlim_max != RLIM_INFINITY && nofile > static_cast<std::int64_t>(limit.rlim_max)) {
    told.warnings.push_back(
        fmt::format("nofile {} was lowered to {}, the most this machine allows", nofile, limit.rlim_max));
    nofile = static_cast<std::int64_t>(limit.rlim_max);
  }
  config["Ulimits"] = json::array{json::object{{"Name", "nofile"}, {"Soft", nofile}, {"Hard", nofile}}};
  config["Binds"] =
      strings({dir + "/run:/muster/run", dir + "/blobs:/muster/run/blobs:ro", dir + "/workspace:/tmp/ray",
               secrets(spec.lease) + ":/muster/secrets:ro", options_.layout.helper() + ":/muster/helper:ro"});
  std::string visible = "void";
  if (!spec.devices.empty()) {
    visible = fmt::format("{}", fmt::join(spec.devices, ","));
    json::array ids;
    for (const auto& device : spec.devices)
      ids.emplace_back(engine.gpu_mode == "cdi" ? "nvidia.com/gpu=" + device : device);
    json::object request{{"Driver", engine.gpu_mode == "cdi" ? "cdi" : "nvidia"}, {"DeviceIDs", ids}};
    if (engine.gpu_mode != "cdi") request["Capabilities"] = json::array{json::array{"gpu", "compute", "utility"}};
    config["DeviceRequests"] = json::array{request};
  }
  std::map<std::string, std::string> env = spec.env;
  const std::map<std::string, std::string> ours{
      {"NVIDIA_VISIBLE_DEVICES", visible},
      {"RAY_AUTH_MODE", "token"},
      {"RAY_AUTH_TOKEN_PATH", "/muster/secrets/ray_token"},
      {"RAY_USAGE_STATS_ENABLED", "0"},
      {"RAY_gcs_rpc_server_reconnect_timeout_s", "600"},
      {"RAY_health_check_period_ms", "1000"},
      {"RAY_health_check_timeout_ms", "2000"},
      {"RAY_health_check_failure_threshold", "5"},
      {"RAY_grpc_client_keepalive_time_ms", "5000"},
      {"RAY_grpc_client_keepalive_timeout_ms", "10000"},
      {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "2"},
      {"RAY_CLOUD_INSTANCE_ID", spec.lease},
      {"RAY_NODE_TYPE_NAME", spec.group.empty() ? (spec.head ? "head" : "worker") : spec.group},
      {"NCCL_SOCKET_IFNAME", "muster0"},
      {"GLOO_SOCKET_IFNAME", "muster0"},
      {"MUSTER_HELPER_SOCKET", "/muster/run/helper.sock"}};
  for (const auto& [key, value] : ours) env[key] = value;
  env.erase("RAY_AUTH_TOKEN");
  if (spec.head) {
    env["RAY_gcs_storage"] = "rocksdb";
    env["RAY_gcs_storage_path"] = "/tmp/ray/muster_gcs";
  }
  json::array env_list;
  for (const auto& [key, value] : env) env_list.emplace_back(key + "=" + value);
  json::object labelled = labels(spec.lease, "ray");
  return json::object{{"Image", spec.image},
                      {"Entrypoint", json::array{"/bin/sh"}},
                      {"Cmd", strings({"-c", std::string(kStartHelper)})},
                      {"Env", env_list},
                      {"Labels", labelled},
                      {"HostConfig", config},
                      {"StopTimeout", 15}};
}

Result<Launched> DockerRuntime::launch(const LaunchSpec& spec) {
  Launched told;
  TRY_VOID(prepare_dirs(spec.lease));
  const EngineInfo engine = TRY(info());
  if (!spec.devices.empty() && engine.gpu_mode == "none") {
    return error(Code::FailedPrecondition,
                 "the lease has GPUs but the container engine knows neither CDI nor the NVIDIA runtime; "
                 "install nvidia-container-toolkit and run: nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml",
                 "gpu.toolkit");
  }
  bool made = false;
  const pid_t pid = TRY(ensure_namespace(spec, &made));
  if (options_.make_tun) TRY_VOID(options_.make_tun(pid, spec));
  const std::string main = name(spec.lease, "ray");
  const json::object body = workload(spec, engine, told);
  const auto found = inspect(main);
  if (found.ok() && bool_at(*found, {"State", "Running"})) return told;
  if (found.ok()) TRY_VOID(drop(main, 0));  // a fresh root each time; the workspace is what lasts
  if (!found.ok() && found.error().code != Code::NotFound) return found.error();
  TRY_VOID(create(main, body));
  const User user = TRY(user_of(spec.image, main));
  TRY_VOID(hand_over_dirs(spec.lease, user));
  std::error_code ignored;
  fs::remove(options_.layout.lease(spec.lease) + "/run/helper.sock", ignored);
  TRY_VOID(start(main));
  return told;
}

Status DockerRuntime::start_probe(const std::string& lease, const std::string& image) {
  const std::string probe = name(lease, "probe");
  TRY_VOID(prepare_dirs(lease));
  TRY_VOID(drop(probe, 0));
  json::object config = common_host_config(512);
  config["NetworkMode"] = "none";
  config["Memory"] = std::int64_t{2} << 30;
  config["Binds"] =
      strings({options_.layout.lease(lease) + "/probe:/muster/run", options_.layout.helper() + ":/muster/helper:ro"});
  const json::object body{
      {"Image", image},
      {"Entrypoint", json::array{"/bin/sh"}},
      {"Cmd", strings({"-c", std::string(kStartHelper)})},
      {"Env", strings({"NVIDIA_VISIBLE_DEVICES=void", "MUSTER_HELPER_STATE=/tmp/muster_probe.json"})},
      {"Labels", labels(lease, "probe")},
      {"HostConfig", config}};
  TRY_VOID(create(probe, body));
  const User user = TRY(user_of(image, probe));
  TRY_VOID(hand_over_dirs(lease, user));
  return start(probe);
}

Status DockerRuntime::stop_probe(const std::string& lease) {
  return drop(name(lease, "probe"), 0);
}

Status DockerRuntime::stop(const std::string& lease, int grace_s) {
  TRY_VOID(drop(name(lease, "probe"), 0));
  TRY_VOID(drop(name(lease, "ray"), grace_s));
  TRY_VOID(drop(name(lease, "net"), 0));
  std::error_code ignored;
  fs::remove_all(secrets(lease), ignored);
  rmdir(options_.secrets_root.c_str());  // stays while another lease has secrets there; made again when needed
  return {};
}

Status DockerRuntime::remove(const std::string& lease) {
  TRY_VOID(stop(lease, 0));
  std::error_code failure;
  fs::remove_all(options_.layout.lease(lease), failure);
  if (failure) return error(Code::Unavailable, "cannot remove the workspace: " + failure.message(), "disk");
  return {};
}

}  // namespace muster::host
