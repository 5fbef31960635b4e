#include "host/docker_runtime.h"

#include <fmt/format.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>
#include <thread>

#include "crypto/random.h"
#include "host/embedded.h"
#include "host/gpu.h"
#include "host/json.h"

namespace muster::host {
namespace fs = std::filesystem;
namespace {

constexpr std::uint32_t kIdsOfLease = 65'536;
constexpr Millis kPodmanSaysFor{600'000};
constexpr std::int64_t kNofileSmall = 4096, kScratchBytes = 16 << 20;
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

// The id of a container's image; Podman leaves out the algorithm.
std::string image_id(const json::value& container) {
  const std::string id = text_at(container, {"Image"});
  return id.starts_with("sha256:") ? id : "sha256:" + id;
}

// Ids of a user namespace outside: not root's, and all of them ids.
bool is_range(std::uint64_t first, std::uint64_t count) {
  return first > 0 && count > 0 && count < UINT32_MAX && first < UINT32_MAX - count;
}

std::int64_t hard_limit(int what) {
  rlimit limit{};
  if (getrlimit(static_cast<__rlimit_resource>(what), &limit) != 0 || limit.rlim_max == RLIM_INFINITY)
    return std::int64_t{1} << 20;
  return static_cast<std::int64_t>(std::min<rlim_t>(limit.rlim_max, 1 << 20));
}

std::int64_t most_processes() {
  std::int64_t pid_max = 32768;
  std::ifstream("/proc/sys/kernel/pid_max") >> pid_max;
  return std::min(hard_limit(RLIMIT_NPROC), pid_max);
}

json::array strings(const std::vector<std::string>& items) {
  json::array out;
  for (const auto& item : items) out.emplace_back(item);
  return out;
}

}  // namespace

DockerRuntime::DockerRuntime(DockerOptions options)
    : options_(std::move(options)),
      http_(options_.socket),
      dirs_(options_.layout, options_.secrets_root),
      life_(std::uint64_t{1} << 32 | crypto::random_u32()) {}

bool DockerRuntime::podman() const {
  const std::lock_guard lock(mutex_);
  return podman_;
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
  bool podman = false;
  if (const auto* parts = version.if_contains("Components"); parts != nullptr && parts->is_array()) {
    for (const auto& part : parts->get_array()) podman = podman || text_at(part, {"Name"}) == "Podman Engine";
  }
  const std::lock_guard lock(mutex_);
  podman_ = podman;
  api_version_ = fmt::format("1.{}", std::min(minor, 47));
  return "/v" + api_version_ + path;
}

Result<EngineReply> DockerRuntime::ask(const std::string& method, const std::string& path, const std::string& body,
                                       int timeout_s) {
  const std::string target = TRY(api(path));
  return http_.call({.method = method, .target = target, .body = body, .timeout = Millis(timeout_s * 1000)});
}

// Of itself: /version and /info. For both Podman has the machine's package manager search all its files, which takes
// a processor most of a second: asked every ten seconds that would be more than all the rest of us.
Result<DockerRuntime::EngineSays> DockerRuntime::engine_says() {
  const std::uint64_t life = engine_life();
  const LeaseTime now = read_clocks().lease;
  {
    const std::lock_guard lock(mutex_);
    if (podman_ && says_ && says_life_ == life && now - says_at_ < kPodmanSaysFor) return *says_;
  }
  EngineSays out;
  out.version = TRY(parse_object(TRY(ask("GET", "/version")).body));
  out.info = TRY(parse_object(TRY(ask("GET", "/info")).body));
  const std::lock_guard lock(mutex_);
  says_ = out, says_life_ = life, says_at_ = now;
  return out;
}

Result<EngineInfo> DockerRuntime::info() {
  EngineInfo out;
  out.runtimes = {RuntimeKind::Docker};
  const auto [about, info] = TRY(engine_says());
  out.kind = podman() ? "podman" : "docker";
  out.version = text_at(about, {"Version"});
  out.api = text_at(about, {"ApiVersion"});
  if (const auto* parts = about.if_contains("Components"); parts != nullptr && parts->is_array())
    for (const auto& part : parts->get_array())
      if (out.parts.size() < 16) out.parts[text_at(part, {"Name"})] = text_at(part, {"Version"}).substr(0, 256);
  out.arch = text_at(info, {"Architecture"});
  out.cgroup = text_at(info, {"CgroupVersion"});
  find_gpus(info, out);
  find_users(info);
  out.own_users = users() != Users::Shared;
  const EngineReply images = TRY(ask("GET", "/images/json"));
  const json::value list = TRY(parse_value(images.body));
  if (const auto* items = list.if_array()) {
    for (const auto& item : *items) {
      if (out.images.size() >= 4'096) break;
      std::string id = text_at(item, {"Id"});
      if (!id.starts_with("sha256:")) id = "sha256:" + id;
      if (const std::int64_t bytes = int_at(item, {"Size"}); bytes > 0) out.image_bytes[id] = bytes;
      out.images.push_back(std::move(id));
    }
  }
  return out;
}

Status DockerRuntime::know_users() {
  {
    const std::lock_guard lock(mutex_);
    if (users_known_) return {};
  }
  const auto known = info();
  return known.ok() ? Status() : Status(known.error());
}

DockerRuntime::Users DockerRuntime::users() const {
  const std::lock_guard lock(mutex_);
  return users_;
}

// A daemon with userns-remap keeps all it has in a folder that is called by the first ids. Podman gives each container
// ids of its own if there are some for "containers" (containers-storage.conf(5)): enough for one lease at least.
void DockerRuntime::find_users(const json::object& info) {
  Users found = Users::Shared;
  IdMap map;
  if (podman()) {
    const auto enough = [](const char* file) {
      std::ifstream lines(file);
      std::uint64_t sum = 0;
      for (std::string line; std::getline(lines, line);) {
        if (!line.starts_with("containers:")) continue;
        const auto last = line.rfind(':');
        if (last > 10) sum += std::strtoull(line.c_str() + last + 1, nullptr, 10);
      }
      return sum >= kIdsOfLease;
    };
    if (enough("/etc/subuid") && enough("/etc/subgid")) found = Users::OfLease;
  } else if (const auto* options = info.if_contains("SecurityOptions"); options != nullptr && options->is_array()) {
    for (const auto& option : options->get_array()) {
      if (!option.is_string() || !std::string_view(option.get_string()).starts_with("name=userns")) continue;
      const std::string name = fs::path(text_at(info, {"DockerRootDir"})).filename().string();
      std::uint64_t uids = 0, gids = 0;
      int end = 0;
      if (std::sscanf(name.c_str(), "%10lu.%10lu%n", &uids, &gids, &end) == 2 && end == static_cast<int>(name.size()) &&
          is_range(uids, kIdsOfLease) && is_range(gids, kIdsOfLease))
        map = {static_cast<std::uint32_t>(uids), static_cast<std::uint32_t>(gids), kIdsOfLease}, found = Users::Engine;
    }
  }
  const std::lock_guard lock(mutex_);
  users_known_ = true, users_ = found, engine_map_ = found == Users::Engine ? map : IdMap{};
}

// Of one that exists; it need not run.
Result<IdMap> DockerRuntime::id_map(const std::string& container) {
  {
    const std::lock_guard lock(mutex_);
    if (users_ != Users::OfLease) return engine_map_;
  }
  const EngineReply reply =
      TRY(http_.call({.target = "/v4.0.0/libpod/containers/" + container + "/json", .timeout = Millis(60'000)}));
  if (reply.status != 200) return refused(reply, "inspect " + container, "engine");
  const json::object about = TRY(parse_object(reply.body));
  const auto* config = about.if_contains("HostConfig");
  std::uint32_t sizes[2] = {};
  const auto read = [&](const char* kind, std::uint32_t& first, std::uint32_t& size) {
    std::uint64_t from = 0, count = 0;
    const auto* maps =
        config != nullptr && config->is_object() ? config->get_object().if_contains("IDMappings") : nullptr;
    const auto* list = maps != nullptr && maps->is_object() ? maps->get_object().if_contains(kind) : nullptr;
    // One range that begins with root: "0:400000:65536".
    if (list == nullptr || !list->is_array() || list->get_array().size() != 1 || !list->get_array()[0].is_string() ||
        std::sscanf(std::string(list->get_array()[0].get_string()).c_str(), "0:%10lu:%10lu", &from, &count) != 2 ||
        !is_range(from, count))
      return false;
    first = static_cast<std::uint32_t>(from), size = static_cast<std::uint32_t>(count);
    return true;
  };
  IdMap map;
  if (config != nullptr && config->is_object() && !config->get_object().contains("IDMappings"))
    return map;  // of before
  if (!read("UidMap", map.uids, sizes[0]) || !read("GidMap", map.gids, sizes[1]))
    return error(Code::Unavailable, "Podman does not say which user ids container " + container + " got", "engine");
  map.size = std::min(sizes[0], sizes[1]);
  return map;
}

json::object DockerRuntime::labels(const std::string& lease, std::string_view part) const {
  json::object out;
  out[kNodeLabel] = options_.node_id;
  out[kMachineLabel] = options_.machine;
  out[kLeaseLabel] = lease;
  out[kPartLabel] = json::string_view(part.data(), part.size());
  return out;
}

json::object DockerRuntime::common_host_config(std::int64_t pids, std::int64_t nofile) const {
  json::object config;
  config["CapDrop"] = json::array{"ALL"};
  // Docker takes the profile itself, Podman (on the same machine) the name of a file.
  const std::string profile = podman() ? options_.layout.helper() + "/seccomp.json" : std::string(seccomp_profile());
  config["SecurityOpt"] = strings({"no-new-privileges", "seccomp=" + profile});
  json::array ulimits{json::object{{"Name", "nofile"}, {"Soft", nofile}, {"Hard", nofile}}};
  // Of 1, not 0: that keeps a handler in the machine's core_pattern away as well, which would run outside, as root.
  const std::int64_t core = std::min<std::int64_t>(hard_limit(RLIMIT_CORE), 1);
  ulimits.push_back(json::object{{"Name", "core"}, {"Soft", core}, {"Hard", core}});
  if (podman()) {  // its own default is a million, which a machine that lowered its limits refuses
    const std::int64_t most = most_processes();
    ulimits.push_back(json::object{{"Name", "nproc"}, {"Soft", most}, {"Hard", most}});
  }
  config["Ulimits"] = ulimits;
  config["PidsLimit"] = pids;
  config["Init"] = true;
  config["Privileged"] = false;
  config["IpcMode"] = "private";
  if (users() == Users::OfLease) config["UsernsMode"] = fmt::format("auto:size={}", kIdsOfLease);
  config["RestartPolicy"] = json::object{{"Name", "no"}};
  config["LogConfig"] =
      json::object{{"Type", "json-file"}, {"Config", json::object{{"max-size", "5m"}, {"max-file", "2"}}}};
  return config;
}

json::object DockerRuntime::side_host_config(const ImageSays& image, std::int64_t pids, std::int64_t memory_bytes,
                                             bool scratch) const {
  json::object config = common_host_config(pids, kNofileSmall);
  config["NetworkMode"] = "none";
  config["ReadonlyRootfs"] = true;
  config["Memory"] = memory_bytes;
  config["MemorySwap"] = memory_bytes;
  std::set<std::string> places;  // a volume that the image declares would be a disk of its own
  if (scratch) places.insert("/tmp");
  for (const auto& volume : image.volumes) {
    const std::string place = fs::path(volume).lexically_normal().string();
    if (place.starts_with('/') && place.size() > 1)
      places.insert(place.ends_with('/') ? place.substr(0, place.size() - 1) : place);
  }
  json::array mounts;
  for (const auto& place : places) {
    mounts.push_back(json::object{
        {"Type", "tmpfs"}, {"Target", place}, {"TmpfsOptions", json::object{{"SizeBytes", kScratchBytes}}}});
  }
  config["Mounts"] = mounts;
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
  if (reply.body.find("not find enough available IDs") != std::string::npos)
    return error(
        Code::FailedPrecondition,
        "Podman has no user ids left for another lease: give `containers` more in /etc/subuid and /etc/subgid, "
        "65536 for each",
        "container.users");
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
  for (int again = 0;; ++again) {
    const EngineReply reply = TRY(ask("DELETE", "/containers/" + container + "?force=true&v=true", {}, 120));
    if (reply.status == 204 || reply.status == 404) return {};
    // Under way already; or, with a user namespace, Podman came to its mounts a moment before the kernel let go of
    // them.
    if (reply.status != 409 && (reply.status != 500 || again >= 10))
      return refused(reply, "remove " + container, "container.remove");
    for (int i = 0; i < (reply.status == 409 ? 50 : 3); ++i) {
      std::this_thread::sleep_for(Millis(100));
      const auto still = inspect(container);
      if (!still.ok() && still.error().code == Code::NotFound) return {};
    }
    if (reply.status == 409) return refused(reply, "remove " + container, "container.remove");
  }
}

// Who the image runs as. A name is looked up in the image's own /etc/passwd.
Result<DockerRuntime::User> DockerRuntime::user_of(const std::string& image, const std::string& container) {
  {
    const std::lock_guard lock(mutex_);
    const auto known = image_users_.find(image);
    if (known != image_users_.end()) return known->second;
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
  if (image_users_.size() < 256) image_users_[image] = user;
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
  const ImageSays image = TRY(image_says(spec.image));
  json::object config = side_host_config(image, 32, std::int64_t{64} << 20, false);
  config["NanoCpus"] = 500'000'000;  // to get it started
  config["CpuShares"] = 2;
  const json::object body{{"Image", spec.image},
                          {"Entrypoint", json::array{"/bin/sleep"}},
                          {"Cmd", json::array{"infinity"}},
                          {"User", "65534:65534"},
                          {"Env", quiet_env(image.env)},
                          {"Labels", labels(spec.lease, "net")},
                          {"HostConfig", config}};
  TRY_VOID(create(pause, body));
  TRY_VOID(start(pause));
  // Nobody knows what the image's /bin/sleep is: a fiftieth of a processor does for sleeping. An engine that cannot
  // change it afterwards leaves it with half a one at the lowest weight.
  static_cast<void>(ask("POST", "/containers/" + pause + "/update", R"({"NanoCpus":20000000})"));
  const json::value about = TRY(inspect(pause));
  const auto pid = static_cast<pid_t>(int_at(about, {"State", "Pid"}));
  if (pid <= 0)
    return error(Code::Unavailable, "the container that holds the namespace ended at once", "container.start");
  *made = true;
  return pid;
}

json::object DockerRuntime::workload(const LaunchSpec& spec, const std::vector<std::string>& image_env,
                                     Launched& told) const {
  const std::string dir = dirs_.dir(spec.lease);
  std::int64_t nofile = spec.nofile > 0 ? spec.nofile : 65536;
  if (const std::int64_t most = hard_limit(RLIMIT_NOFILE); nofile > most) {
    told.warnings.push_back(fmt::format("nofile {} was lowered to {}, the most this machine allows", nofile, most));
    nofile = most;
  }
  json::object config = common_host_config(spec.pids, nofile);
  config["NetworkMode"] = "container:" + name(spec.lease, "net");
  // A network namespace belongs to a user namespace: who joins the one joins the other.
  if (users() == Users::OfLease) config["UsernsMode"] = "container:" + name(spec.lease, "net");
  if (spec.memory_bytes > 0) {
    config["Memory"] = spec.memory_bytes;
    config["MemorySwap"] = spec.memory_bytes;
  }
  const auto host_cpus = static_cast<std::int64_t>(std::thread::hardware_concurrency()) * 1000;
  if (spec.cpu_milli > 0) config["NanoCpus"] = std::min(spec.cpu_milli, host_cpus) * 1'000'000;
  config["ShmSize"] = spec.shm_bytes > 0 ? spec.shm_bytes : std::int64_t{512} << 20;
  config["Binds"] =
      strings({dir + "/run:/muster/run", dir + "/blobs:/muster/run/blobs:ro", dir + "/workspace:/tmp/ray",
               dirs_.secrets(spec.lease) + ":/muster/secrets:ro", options_.layout.helper() + ":/muster/helper:ro",
               dir + "/resolv.conf:/etc/resolv.conf:ro"});
  const std::string visible = spec.devices.empty() ? "void" : fmt::format("{}", fmt::join(spec.devices, ","));
  std::vector<std::string> dropped;
  const auto env_list = container_env(image_env, lease_environment(spec, visible), &dropped);
  if (!dropped.empty())
    told.warnings.push_back(fmt::format("{} of the cluster's environment is not passed on: GPUs come from the lease",
                                        fmt::join(dropped, ", ")));
  json::object labelled = labels(spec.lease, "ray");
  return json::object{{"Image", spec.image},
                      {"Entrypoint", json::array{"/bin/sh"}},
                      {"Cmd", strings({"-c", std::string(kRestoreLoader) + std::string(kStartHelper)})},
                      {"Env", strings(env_list)},
                      {"Labels", labelled},
                      {"HostConfig", config},
                      {"StopTimeout", 15}};
}

Result<Launched> DockerRuntime::launch(const LaunchSpec& spec) {
  Launched told;
  TRY_VOID(dirs_.prepare(spec.lease));
  TRY_VOID(dirs_.remember_limits(spec));
  TRY_VOID(dirs_.remember_egress(spec));
  TRY_VOID(
      write_whole(dirs_.dir(spec.lease) + "/resolv.conf", as_bytes(lease_resolver(spec)), 0644, geteuid(), getegid()));
  dirs_.clear_halted(spec.lease);
  const EngineInfo engine = TRY(info());
  if (!spec.devices.empty() && engine.gpu_mode == "none") {
    return error(Code::FailedPrecondition,
                 "the lease has GPUs but the container engine knows neither CDI nor the NVIDIA runtime; "
                 "install nvidia-container-toolkit and run: nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml",
                 "gpu.toolkit");
  }
  bool made = false;
  const pid_t pid = TRY(ensure_namespace(spec, &made));
  told.network = fmt::format("/proc/{}/ns/net", pid);
  if (options_.make_tun) TRY_VOID(options_.make_tun(told.network, spec));
  const std::string main = name(spec.lease, "ray");
  const json::object body = workload(spec, TRY(image_says(spec.image)).env, told);
  const auto found = inspect(main);
  if (found.ok() && bool_at(*found, {"State", "Running"}) && image_id(*found) == spec.image) return told;
  if (found.ok()) TRY_VOID(drop(main, 0));  // a fresh root each time; the workspace is what lasts
  if (!found.ok() && found.error().code != Code::NotFound) return found.error();
  TRY_VOID(create_with_gpus(main, body, spec.devices, engine));
  const User user = TRY(user_of(spec.image, main));
  TRY_VOID(dirs_.hand_over(spec.lease, user.uid, user.gid, TRY(id_map(main))));
  std::error_code ignored;
  fs::remove(options_.layout.lease(spec.lease) + "/run/helper.sock", ignored);
  TRY_VOID(start(main));
  return told;
}

Status DockerRuntime::start_probe(const std::string& lease, const std::string& image) {
  const std::string probe = name(lease, "probe");
  TRY_VOID(dirs_.prepare(lease));
  TRY_VOID(know_users());
  TRY_VOID(drop(probe, 0));
  const ImageSays says = TRY(image_says(image));
  json::object config = side_host_config(says, 512, std::int64_t{2} << 30, true);
  config["NanoCpus"] = 1'000'000'000;
  config["Binds"] =
      strings({options_.layout.lease(lease) + "/probe:/muster/run", options_.layout.helper() + ":/muster/helper:ro"});
  const json::object body{{"Image", image},
                          {"Entrypoint", json::array{"/bin/sh"}},
                          {"Cmd", strings({"-c", std::string(kRestoreLoader) + std::string(kStartHelper)})},
                          {"Env", quiet_env(says.env, {{"MUSTER_HELPER_STATE", "/tmp/muster_probe.json"}})},
                          {"Labels", labels(lease, "probe")},
                          {"HostConfig", config}};
  TRY_VOID(create(probe, body));
  const User user = TRY(user_of(image, probe));
  TRY_VOID(dirs_.hand_over(lease, user.uid, user.gid, TRY(id_map(probe)), Place::Probe));
  return start(probe);
}

Status DockerRuntime::stop_probe(const std::string& lease) {
  return drop(name(lease, "probe"), 0);
}

Status DockerRuntime::stop(const std::string& lease, int grace_s) {
  TRY_VOID(drop(name(lease, "probe"), 0));
  TRY_VOID(drop(name(lease, "ray"), grace_s));
  TRY_VOID(drop(name(lease, "net"), 0));
  dirs_.forget_secrets(lease);
  dirs_.clear_halted(lease);
  return {};
}

Status DockerRuntime::remove(const std::string& lease) {
  TRY_VOID(stop(lease, 0));
  return dirs_.remove(lease);
}

}  // namespace muster::host
