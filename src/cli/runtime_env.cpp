#include "cli/runtime_env.h"

#include <fmt/format.h>

#include <filesystem>
#include <sstream>

#include "cli/config.h"
#include "launcher/launcher.h"
#include "wire/json.h"

namespace muster::cli {
namespace {

namespace fs = std::filesystem;
using wire::Json;

bool remote(const std::string& text) {
  return text.find("://") != std::string::npos;
}

Result<Json> parse(const std::string& text) {
  auto json = wire::parse_json(text);
  if (!json.ok()) {
    const auto converted = launcher::json_of_yaml(text);
    if (!converted.ok()) return json.error();
    json = wire::parse_json(*converted);
  }
  if (!json.ok()) return json.error();
  if (!json->is(Json::Kind::Object))
    return error(Code::InvalidArgument, "a runtime environment is an object, like {\"env_vars\": {\"A\": \"1\"}}");
  return json;
}

// "-r" lines and comments of a requirements file as Ray reads them: one requirement a line.
Result<Json> requirements(const std::string& path, const std::string& key) {
  const std::string text = TRY(read_file(path, 1 << 20));
  Json list = Json::array();
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) {
    if (const auto hash = line.find(" #"); hash != std::string::npos) line.resize(hash);
    while (!line.empty() && (line.back() == '\r' || line.back() == ' ')) line.pop_back();
    while (!line.empty() && line.front() == ' ') line.erase(0, 1);
    if (line.empty() || line[0] == '#') continue;
    if (line.starts_with("-r") || line.starts_with("-c") || line.starts_with("-e") || line.starts_with("."))
      return error(
          Code::InvalidArgument,
          fmt::format("{}: \"{}\" in {} names a file of this machine; put it into --working-dir", key, line, path),
          key);
    list.push(Json::string(line));
  }
  return list;
}

Result<Json> packages(const Json& value, const std::string& key, const fs::path& folder) {
  if (value.is(Json::Kind::Object) && value["packages"].is(Json::Kind::String)) {
    Json out = value;
    out.set("packages", TRY(requirements((folder / value["packages"].text()).string(), key)));
    return out;
  }
  if (!value.is(Json::Kind::String)) return value;
  return requirements((folder / value.text()).string(), key);
}

}  // namespace

Result<RuntimeEnv> resolve_runtime_env(const std::string& text, const std::string& folder) {
  RuntimeEnv out;
  const Json given = TRY(parse(text));
  Json kept = Json::object();
  for (const auto& [key, value] : given.members()) {
    if (key == "working_dir" && value.is(Json::Kind::String) && !remote(value.text())) {
      out.working_dir = (fs::path(folder) / value.text()).string();
    } else if (key == "excludes") {
      for (const auto& pattern : value.items()) out.excludes.push_back(pattern.text());
    } else if (key == "pip" || key == "uv") {
      kept.set(key, TRY(packages(value, key, folder)));
    } else if (key == "conda" && value.is(Json::Kind::String) &&
               (value.text().ends_with(".yml") || value.text().ends_with(".yaml"))) {
      kept.set(key, TRY(parse(TRY(read_file((fs::path(folder) / value.text()).string(), 1 << 20)))));
    } else if (key == "py_modules") {
      for (const auto& module : value.items())
        if (!remote(module.text()))
          return error(Code::InvalidArgument,
                       fmt::format("py_modules: {} is on this machine; put it into the working directory, which is on "
                                   "Python's path there",
                                   module.text()),
                       "py_modules");
      kept.set(key, value);
    } else {
      kept.set(key, value);
    }
  }
  if (!kept.members().empty()) out.json = kept.dump();
  return out;
}

}  // namespace muster::cli
