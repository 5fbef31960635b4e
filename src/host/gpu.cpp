#include "host/gpu.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "host/json.h"

namespace muster::host {
namespace fs = std::filesystem;
namespace {

constexpr std::size_t kSpecBytesMax = 4 << 20, kNamesMax = 256;

bool valid_name(std::string_view name) {
  return !name.empty() && name.size() <= 96 && std::all_of(name.begin(), name.end(), [](unsigned char c) {
    return std::isalnum(c) != 0 || c == '-' || c == '_' || c == '.' || c == ':';
  });
}

std::vector<std::string> names_of_json(const json::object& spec) {
  std::vector<std::string> out;
  if (text_at(spec, {"kind"}) != kGpuKind) return out;
  const auto* devices = spec.if_contains("devices");
  if (devices == nullptr || !devices->is_array()) return out;
  for (const auto& device : devices->get_array()) {
    const std::string name = text_at(device, {"name"});
    if (valid_name(name) && out.size() < kNamesMax) out.push_back(name);
  }
  return out;
}

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '"' || text.front() == '\'')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '"' || text.back() == '\'' || text.back() == '\r'))
    text.remove_suffix(1);
  return text;
}

// The two keys that matter of a specification in YAML, line by line: `kind` and the `name` of each entry of `devices`.
// In a specification only devices have a `name` one level below them; deeper ones are of edits.
std::vector<std::string> names_of_yaml(std::string_view text) {
  std::vector<std::string> out;
  bool kind = false, devices = false;
  std::size_t entry = std::string_view::npos;  // column of the keys of a device
  std::istringstream lines{std::string(text)};
  std::string line;
  while (std::getline(lines, line)) {
    const auto first = line.find_first_not_of(' ');
    if (first == std::string::npos || line[first] == '#' || line.starts_with("---")) continue;
    std::size_t column = first;
    std::string_view rest = std::string_view(line).substr(first);
    const bool item = rest.starts_with("- ");
    if (item) {
      const auto key = rest.find_first_not_of(' ', 1);
      column += key;
      rest.remove_prefix(key);
    }
    if (first == 0 && !item) {
      devices = rest.starts_with("devices:");
      entry = std::string_view::npos;
      if (rest.starts_with("kind:")) kind = trimmed(rest.substr(5)) == kGpuKind;
      continue;
    }
    if (!devices) continue;
    if (item && (entry == std::string_view::npos || column < entry)) entry = column;
    if (column != entry || !rest.starts_with("name:")) continue;
    const std::string name(trimmed(rest.substr(5)));
    if (valid_name(name) && out.size() < kNamesMax) out.push_back(name);
  }
  return kind ? out : std::vector<std::string>{};
}

bool of_loader_or_driver(std::string_view key) {
  return key.starts_with("LD_") || key.starts_with("NVIDIA_");
}

const json::value* member(const json::object& object, std::string_view key) {
  return object.if_contains(key);
}

json::array mounts_of(const json::object& host) {
  json::array out;
  const auto* binds = member(host, "Binds");
  if (binds == nullptr || !binds->is_array()) return out;
  for (const auto& bind : binds->get_array()) {
    const std::string text(bind.get_string());
    const auto first = text.find(':'), second = text.find(':', first + 1);
    const std::string mode = second == std::string::npos ? "rw" : text.substr(second + 1);
    out.push_back(json::object{{"type", "bind"},
                               {"source", text.substr(0, first)},
                               {"destination", text.substr(first + 1, second - first - 1)},
                               {"options", json::array{json::string(mode), "rbind", "nosuid", "nodev"}}});
  }
  return out;
}

json::object limits_of(const json::object& host) {
  json::object out;
  const auto* memory = member(host, "Memory");
  if (memory != nullptr) {
    json::object limits{{"limit", *memory}};
    if (const auto* swap = member(host, "MemorySwap")) limits["swap"] = *swap;
    out["memory"] = limits;
  }
  if (const auto* cpus = member(host, "NanoCpus")) {
    constexpr std::int64_t kPeriod = 100'000;
    out["cpu"] = json::object{{"period", kPeriod}, {"quota", cpus->get_int64() / (1'000'000'000 / kPeriod)}};
  }
  if (const auto* pids = member(host, "PidsLimit")) out["pids"] = json::object{{"limit", *pids}};
  return out;
}

}  // namespace

std::vector<std::string> cdi_names(std::string_view text) {
  if (text.size() > kSpecBytesMax) return {};
  const auto first = text.find_first_not_of(" \t\r\n");
  if (first == std::string_view::npos) return {};
  if (text[first] != '{') return names_of_yaml(text);
  const auto spec = parse_object(text);
  return spec.ok() ? names_of_json(*spec) : std::vector<std::string>{};
}

std::vector<std::string> cdi_names_in(const std::vector<std::string>& folders) {
  std::vector<std::string> out;
  for (const auto& folder : folders) {
    std::error_code failure;
    for (const auto& entry : fs::directory_iterator(folder, failure)) {
      const std::string type = entry.path().extension();
      if ((type != ".json" && type != ".yaml" && type != ".yml") || out.size() >= kNamesMax) continue;
      std::ifstream file(entry.path());
      std::stringstream text;
      text << file.rdbuf();
      for (auto& name : cdi_names(text.str())) out.push_back(std::move(name));
    }
  }
  return out;
}

std::optional<std::string> cdi_device(const std::vector<std::string>& names, const std::string& uuid, int index) {
  for (const std::string& wanted : {uuid, std::to_string(index), fmt::format("gpu{}", index)}) {
    if (std::find(names.begin(), names.end(), wanted) != names.end()) return fmt::format("{}={}", kGpuKind, wanted);
  }
  return {};
}

std::optional<std::string> cdi_instance(const std::vector<std::string>& names, const std::string& uuid, int gpu_index,
                                        int index) {
  for (const std::string& wanted : {uuid, fmt::format("{}:{}", gpu_index, index)}) {
    if (std::find(names.begin(), names.end(), wanted) != names.end()) return fmt::format("{}={}", kGpuKind, wanted);
  }
  return {};
}

std::vector<std::string> container_env(const std::vector<std::string>& image, std::map<std::string, std::string> env,
                                       std::vector<std::string>* dropped) {
  const auto ours = [](std::string_view key) {
    return key == "NVIDIA_VISIBLE_DEVICES" || key == "NVIDIA_DRIVER_CAPABILITIES";
  };
  std::map<std::string, std::string> blanked, moved;
  const auto keep_inside = [&](const std::string& key, const std::string& value) {
    if (key == "LD_LIBRARY_PATH" || key == "LD_PRELOAD") moved["MUSTER_" + key] = value;
  };
  for (const auto& entry : image) {
    const auto equals = entry.find('=');
    const std::string key = entry.substr(0, equals);
    if (!of_loader_or_driver(key)) continue;
    if (!ours(key)) blanked[key] = {};
    keep_inside(key, equals == std::string::npos ? std::string() : entry.substr(equals + 1));
  }
  for (auto it = env.begin(); it != env.end();) {
    if (!of_loader_or_driver(it->first) || ours(it->first)) {
      ++it;
      continue;
    }
    keep_inside(it->first, it->second);
    if (dropped != nullptr && it->first.starts_with("NVIDIA_")) dropped->push_back(it->first);
    it = env.erase(it);
  }
  env.merge(blanked);
  for (auto& [key, value] : moved) env[key] = value;
  std::vector<std::string> out;
  for (const auto& [key, value] : env) out.push_back(fmt::format("{}={}", key, value));
  return out;
}

json::array device_requests(const std::vector<std::string>& uuids, const std::vector<std::string>& cdi) {
  if (uuids.empty()) return {};
  json::array ids;
  for (const auto& id : cdi.empty() ? uuids : cdi) ids.emplace_back(id);
  json::object request{{"Driver", cdi.empty() ? "nvidia" : "cdi"}, {"DeviceIDs", ids}};
  if (cdi.empty()) {
    json::array sets;  // a list of lists: an initialiser of one would be taken for a copy
    sets.emplace_back(json::array{"gpu", "compute", "utility"});
    request["Capabilities"] = std::move(sets);
  }
  json::array out;
  out.emplace_back(std::move(request));
  return out;
}

json::object libpod_body(const std::string& name, const json::object& docker, const std::vector<std::string>& cdi,
                         const std::string& seccomp_file) {
  static const json::object nothing;
  const auto* host_value = member(docker, "HostConfig");
  const json::object& host = host_value != nullptr && host_value->is_object() ? host_value->get_object() : nothing;
  json::object out{{"name", name},
                   {"image", text_at(docker, {"Image"})},
                   {"privileged", false},
                   {"no_new_privileges", true},
                   {"cap_drop", json::array{"ALL"}},
                   {"init", bool_at(host, {"Init"})},
                   {"seccomp_profile_path", seccomp_file},
                   {"restart_policy", "no"}};
  for (const auto& [ours, theirs] : std::initializer_list<std::pair<const char*, const char*>>{
           {"Entrypoint", "entrypoint"}, {"Cmd", "command"}, {"Labels", "labels"}, {"StopTimeout", "stop_timeout"}}) {
    if (const auto* value = member(docker, ours)) out[theirs] = *value;
  }
  if (const std::string user = text_at(docker, {"User"}); !user.empty()) out["user"] = user;
  json::object env;
  if (const auto* list = member(docker, "Env"); list != nullptr && list->is_array()) {
    for (const auto& entry : list->get_array()) {
      const std::string text(entry.get_string());
      const auto equals = text.find('=');
      env[text.substr(0, equals)] = equals == std::string::npos ? std::string() : text.substr(equals + 1);
    }
  }
  out["env"] = env;
  const std::string network = text_at(host, {"NetworkMode"});
  out["netns"] = network.starts_with("container:")
                     ? json::object{{"nsmode", "container"}, {"value", network.substr(10)}}
                     : json::object{{"nsmode", "none"}};
  out["mounts"] = mounts_of(host);
  if (const auto* shm = member(host, "ShmSize")) out["shm_size"] = *shm;
  out["resource_limits"] = limits_of(host);
  json::array limits;
  if (const auto* list = member(host, "Ulimits"); list != nullptr && list->is_array()) {
    for (const auto& limit : list->get_array()) {
      limits.push_back(json::object{
          {"type", text_at(limit, {"Name"})}, {"soft", int_at(limit, {"Soft"})}, {"hard", int_at(limit, {"Hard"})}});
    }
  }
  out["r_limits"] = limits;
  json::array devices;
  for (const auto& device : cdi) devices.push_back(json::object{{"path", device}});
  out["devices"] = devices;
  return out;
}

}  // namespace muster::host
