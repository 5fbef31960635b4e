#include "cli/shell.h"

#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "cli/config.h"
#include "cli/terminal.h"
#include "launcher/launcher.h"

namespace muster::cli {

Result<Api*> Shell::api() {
  if (api_) return api_.get();
  const Config config = TRY(load_config(config_path()));
  Account account = TRY(choose_account(config, context));
  if (project.empty()) project = account.project;
  net::Endpoint endpoint = TRY(endpoint_of(account));
  api_ = std::make_unique<Api>(net_transport(std::move(endpoint)), std::move(account));
  return api_.get();
}

bool Shell::colour() const {
  return stdout_is_terminal() && std::getenv("NO_COLOR") == nullptr;
}

void Shell::show(const wire::Json& value, const std::function<std::string()>& text) const {
  const std::string out = output == "json" ? value.dump(2) + "\n" : output == "yaml" ? yaml_text(value) : text();
  std::fwrite(out.data(), 1, out.size(), stdout);
  std::fflush(stdout);
}

void Shell::show_list(std::vector<wire::Json> items,
                      const std::function<std::string(const std::vector<wire::Json>&)>& text) const {
  if (table()) return show({}, [&] { return text(items); });
  auto list = wire::Json::array();
  for (auto& item : items) list.push(std::move(item));
  show(wire::Json::object().set("items", std::move(list)), [] { return std::string(); });
}

int exit_code(const Error& error) {
  switch (error.code) {
    case Code::InvalidArgument:
      return 2;
    case Code::NotFound:
      return 3;
    case Code::Unauthenticated:
    case Code::PermissionDenied:
      return 4;
    case Code::Unavailable:
    case Code::DeadlineExceeded:
      return 5;
    default:
      return 1;
  }
}

std::string error_text(const Error& error) {
  std::string text = "muster: " + error.message;
  if (!error.field.empty() && error.message.find(error.field) == std::string::npos) text += " (" + error.field + ")";
  if (error.code == Code::Unauthenticated && error.message.find("muster login") == std::string::npos)
    text += "; run `muster login`";
  return text;
}

Result<std::string> cluster_name(const std::string& name_or_file) {
  const bool yaml = name_or_file.ends_with(".yaml") || name_or_file.ends_with(".yml");
  std::error_code ignored;
  if (!yaml && !(name_or_file.find('/') != std::string::npos && std::filesystem::exists(name_or_file, ignored)))
    return name_or_file;
  const std::string text = TRY(read_file(name_or_file, 1 << 20));
  auto launch = launcher::from_yaml(text, {});
  if (!launch.ok())
    return error(launch.error().code, name_or_file + ": " + launch.error().message, launch.error().field);
  return launch->spec.name;
}

std::string short_time(const wire::Json& value) {
  const std::string& text = value.text();
  return text.size() < 19 ? text : text.substr(0, 10) + " " + text.substr(11, 8);
}

std::string resources_text(const wire::Json& resources) {
  std::string out = fmt::format("{:g} CPU", resources["cpus"].real());
  if (const auto gpus = resources["gpus"].integer(); gpus > 0) out += fmt::format(", {} GPU", gpus);
  if (const auto memory = resources["memoryBytes"].integer(); memory > 0) out += ", " + size_text(memory);
  return out;
}

}  // namespace muster::cli
