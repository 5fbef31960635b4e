// DockerRuntime and GPUs: which way the engine gives them to containers, and the container that gets them.
#include <fmt/format.h>

#include <algorithm>
#include <thread>

#include "base/log.h"
#include "host/docker_runtime.h"
#include "host/gpu.h"
#include "host/json.h"
#include "host/nvml.h"

namespace muster::host {
namespace {

// Podman has CDI since 4.1 and looks in these places; its API does not say so.
const std::vector<std::string> kPodmanCdi{"/etc/cdi", "/var/run/cdi"};
constexpr std::size_t kSaidMax = 1024;
constexpr std::string_view kLibpod = "/v4.0.0/libpod/containers/create";

std::pair<int, int> version_of(const std::string& text) {
  const auto dot = text.find('.');
  return {std::atoi(text.c_str()), dot == std::string::npos ? 0 : std::atoi(text.c_str() + dot + 1)};
}

// A multiplexed log of the engine: frames of an 8-byte head and its bytes. Text that is none passes as it is.
std::string demultiplexed(const std::string& raw) {
  std::string out;
  std::size_t at = 0;
  while (at + 8 <= raw.size() && static_cast<unsigned char>(raw[at]) <= 2 && raw[at + 1] == 0 && raw[at + 2] == 0) {
    std::size_t size = 0;
    for (std::size_t i = 4; i < 8; ++i) size = size << 8 | static_cast<unsigned char>(raw[at + i]);
    size = std::min(size, raw.size() - at - 8);
    out.append(raw, at + 8, size);
    at += 8 + size;
  }
  return at == 0 ? raw : out;
}

}  // namespace

void DockerRuntime::find_gpus(const json::object& info, EngineInfo& out) const {
  out.gpu_mode = "none";
  if (find_path(info, {"Runtimes", "nvidia"}) != nullptr) out.gpu_mode = "nvidia";
  std::vector<std::string> folders;
  if (const auto* dirs = info.if_contains("CDISpecDirs"); dirs != nullptr && dirs->is_array()) {
    for (const auto& dir : dirs->get_array()) {
      if (dir.is_string() && folders.size() < 16) folders.emplace_back(dir.get_string());
    }
  }
  if (out.kind == "podman" && version_of(out.version) >= std::pair(4, 1)) folders = kPodmanCdi;
  if (folders.empty()) return;
  out.cdi = cdi_names_in(folders);
  if (!out.cdi.empty()) out.gpu_mode = "cdi";
}

Result<DockerRuntime::ImageSays> DockerRuntime::image_says(const std::string& image) {
  const EngineReply reply = TRY(ask("GET", "/images/" + image + "/json"));
  if (reply.status == 404)
    return error(Code::NotFound, "the image " + image + " is not on this machine any more", "image_pull.not_found");
  if (reply.status != 200)
    return error(Code::Unavailable,
                 fmt::format("the container engine does not show the image (status {})", reply.status), "engine");
  const json::value about = TRY(parse_value(reply.body));
  ImageSays out;
  if (const auto* env = find_path(about, {"Config", "Env"}); env != nullptr && env->is_array()) {
    for (const auto& entry : env->get_array()) {
      if (entry.is_string() && out.env.size() < kSaidMax) out.env.emplace_back(entry.get_string());
    }
  }
  if (const auto* volumes = find_path(about, {"Config", "Volumes"}); volumes != nullptr && volumes->is_object()) {
    if (volumes->get_object().size() > kSaidMax)
      return error(Code::InvalidArgument, fmt::format("the image declares more than {} volumes", kSaidMax),
                   "image.volumes");
    for (const auto& volume : volumes->get_object()) out.volumes.emplace_back(volume.key());
  }
  return out;
}

json::array DockerRuntime::quiet_env(const std::vector<std::string>& image, std::map<std::string, std::string> env) {
  env["NVIDIA_VISIBLE_DEVICES"] = "void";
  json::array out;
  for (const auto& entry : container_env(image, std::move(env), nullptr)) out.emplace_back(entry);
  return out;
}

Status DockerRuntime::create_with_gpus(const std::string& container, json::object body,
                                       const std::vector<std::string>& uuids, const EngineInfo& engine) {
  if (uuids.empty()) return create(container, body);
  std::vector<std::string> cdi;
  if (engine.gpu_mode == "cdi") {
    const auto devices = Nvml::instance().lendable();
    for (const auto& uuid : uuids) {
      const auto at =
          std::find_if(devices.begin(), devices.end(), [&](const Lendable& each) { return each.device.uuid == uuid; });
      const bool instance = at != devices.end() && at->index >= 0;
      const auto name = instance ? cdi_instance(engine.cdi, uuid, at->gpu_index, at->index)
                                 : cdi_device(engine.cdi, uuid, at == devices.end() ? -1 : at->gpu_index);
      if (!name)
        return error(Code::FailedPrecondition,
                     "the CDI specification has no device for GPU " + uuid +
                         "; write it anew: nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml",
                     "gpu.toolkit");
      cdi.push_back(*name);
    }
  }
  if (engine.kind != "podman" || version_of(engine.version) >= std::pair(5, 0)) {
    body["HostConfig"].as_object()["DeviceRequests"] = device_requests(uuids, cdi);
    return create(container, body);
  }
  // Its Docker-like API takes device requests and silently drops them.
  const std::string profile = options_.layout.helper() + "/seccomp.json";
  const EngineReply reply = TRY(http_.call({.method = "POST",
                                            .target = std::string(kLibpod),
                                            .body = to_text(libpod_body(container, body, cdi, profile)),
                                            .timeout = Millis(60'000)}));
  if (reply.status == 201) return {};
  const auto said = parse_object(reply.body);
  return error(Code::Unavailable,
               fmt::format("Podman could not create {}: {} (status {})", container,
                           said.ok() ? text_at(*said, {"message"}) : reply.body.substr(0, 300), reply.status),
               reply.status == 404 ? "image_pull.not_found" : "container.create");
}

Result<std::string> DockerRuntime::run_once(const std::string& image, const std::vector<std::string>& uuids,
                                            const std::string& script) {
  const EngineInfo engine = TRY(info());
  const std::string container = name("check", "gpu");
  TRY_VOID(drop(container, 0));
  TRY_VOID(dirs_.prepare_helper());
  json::object config = common_host_config(64, 1024);
  config["NetworkMode"] = "none";
  config["Memory"] = std::int64_t{1} << 30;
  json::object body{{"Image", image},
                    {"Entrypoint", json::array{"/bin/sh"}},
                    {"Cmd", json::array{"-c", script}},
                    {"Labels", labels("check", "gpu")},
                    {"HostConfig", config}};
  std::map<std::string, std::string> env{{"NVIDIA_DRIVER_CAPABILITIES", "compute,utility"},
                                         {"NVIDIA_VISIBLE_DEVICES", fmt::format("{}", fmt::join(uuids, ","))}};
  json::array list;
  for (const auto& entry : container_env(TRY(image_says(image)).env, std::move(env), nullptr)) list.emplace_back(entry);
  body["Env"] = uuids.empty() ? quiet_env(TRY(image_says(image)).env) : list;
  TRY_VOID(create_with_gpus(container, body, uuids, engine));
  const Status started = start(container);
  Result<std::string> out = error(Code::DeadlineExceeded, "the container did not end within 30 s");
  for (int i = 0; started.ok() && i < 150 && !out.ok(); ++i) {
    std::this_thread::sleep_for(Millis(200));
    const auto about = inspect(container);
    if (!about.ok() || bool_at(*about, {"State", "Running"})) continue;
    const EngineReply logs = TRY(ask("GET", "/containers/" + container + "/logs?stdout=1&stderr=1"));
    out = demultiplexed(logs.body.substr(0, 64 << 10));
  }
  static_cast<void>(drop(container, 0));
  return started.ok() ? out : started.error();
}

}  // namespace muster::host
