// head_start_ray_commands and worker_start_ray_commands: Muster starts Ray itself, so they are read for what they mean.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "launcher/parts.h"

namespace muster::launcher {
namespace {

// Splits at && ; || and newlines outside quotes.
std::vector<std::string> split_commands(std::string_view text) {
  std::vector<std::string> out;
  std::string current;
  char quote = 0;
  const auto flush = [&] {
    const auto from = current.find_first_not_of(" \t\r\n");
    if (from != std::string::npos) out.push_back(current.substr(from, current.find_last_not_of(" \t\r\n") - from + 1));
    current.clear();
  };
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (quote != 0) {
      if (c == quote) quote = 0;
    } else if (c == '\'' || c == '"') {
      quote = c;
    } else if (c == ';' || c == '\n' || ((c == '&' || c == '|') && i + 1 < text.size() && text[i + 1] == c)) {
      if (c == '&' || c == '|') ++i;
      flush();
      continue;
    }
    current += c;
  }
  flush();
  return out;
}

Result<std::int64_t> flag_number(const std::string& value, const std::string& flag, const std::string& key, int line) {
  Tree scalar;
  scalar.kind = Tree::Kind::Scalar;
  scalar.line = line;
  scalar.text = value;
  const double number = TRY(read_number(scalar, key + " " + flag));
  if (number > 9e15) return fault(scalar, key + " " + flag, "is too large");
  return static_cast<std::int64_t>(std::llround(number * 1000));
}

constexpr std::array<std::string_view, 6> kSwitches = {
    "--head", "--block", "--no-monitor", "--disable-usage-stats", "--no-redirect-output", "--include-log-monitor"};

Status set_json_map(Draft& draft, const std::string& json, const std::string& flag, const std::string& key, int line,
                    StartFlags& role) {
  auto parsed = parse_tree(json);
  if (!parsed.ok() || parsed->root->kind != Tree::Kind::Map)
    return error(
        Code::InvalidArgument,
        fmt::format("line {}: {}: {} must be a JSON object like '{{\"name\": 1}}', but is {}", line, key, flag, json),
        key);
  auto map = *parsed->root;
  map.line = line;
  if (flag == "--labels") {
    for (const auto& [name, value] : TRY(read_text_map(map, key))) role.labels[name] = value;
    return {};
  }
  const Resources more = TRY(read_resources(draft, map, key));
  if (!role.resources) role.resources = Resources{};
  for (const auto& [name, milli] : more.custom_milli) role.resources->custom_milli[name] = milli;
  return {};
}

Status read_ray_start(Draft& draft, const std::vector<std::string>& words, const std::string& key, int line,
                      StartFlags& role) {
  std::vector<std::string> mapped, replaced;
  for (std::size_t at = 2; at < words.size(); ++at) {
    std::string flag = words[at];
    std::string value;
    const auto equals = flag.find('=');
    if (equals != std::string::npos) {
      value = flag.substr(equals + 1);
      flag.resize(equals);
    } else if (std::find(kSwitches.begin(), kSwitches.end(), flag) == kSwitches.end() && at + 1 < words.size() &&
               words[at + 1].rfind("--", 0) != 0) {
      value = words[++at];
    }
    const auto resources = [&]() -> Resources& {
      if (!role.resources) role.resources = Resources{};
      return *role.resources;
    };
    const bool variable = value.find('$') != std::string::npos;
    if (variable && flag != "--address" && flag != "--redis-address" && flag != "--node-ip-address") {
      draft.report.warning(key, line, flag + "=" + value + " holds a shell variable: ignored; write the number");
    } else if (flag == "--num-cpus") {
      resources().cpu_milli = TRY(flag_number(value, flag, key, line));
      mapped.push_back(flag);
    } else if (flag == "--num-gpus") {
      resources().gpus = (TRY(flag_number(value, flag, key, line)) + 999) / 1000;
      mapped.push_back(flag);
    } else if (flag == "--memory") {
      resources().memory_bytes = TRY(flag_number(value, flag, key, line)) / 1000;
      mapped.push_back(flag);
    } else if (flag == "--object-store-memory") {
      resources().object_store_bytes = TRY(flag_number(value, flag, key, line)) / 1000;
      mapped.push_back(flag);
    } else if (flag == "--resources" || (flag == "--labels" && value.rfind('{', 0) == 0)) {
      TRY_VOID(set_json_map(draft, value, flag, key, line, role));
      mapped.push_back(flag);
    } else if (flag == "--labels") {
      std::string rest = value;
      while (!rest.empty()) {
        const std::string pair = rest.substr(0, rest.find(','));
        rest = pair.size() < rest.size() ? rest.substr(pair.size() + 1) : "";
        if (pair.find('=') != std::string::npos)
          role.labels[pair.substr(0, pair.find('='))] = pair.substr(pair.find('=') + 1);
      }
      mapped.push_back(flag);
    } else {
      replaced.push_back(flag);
    }
  }
  std::string text = "Muster starts Ray itself, with pinned ports on the cluster's own network";
  if (!mapped.empty()) text += fmt::format("; taken over: {}", fmt::join(mapped, " "));
  if (!replaced.empty()) text += fmt::format("; replaced: {}", fmt::join(replaced, " "));
  if (std::find(replaced.begin(), replaced.end(), "--autoscaling-config") != replaced.end())
    text += " (Muster is the autoscaler)";
  draft.report.replaced(key, line, "ray start: " + text);
  return {};
}

Status read_one(Draft& draft, const std::string& command, const std::string& key, int line, StartFlags& role) {
  const auto words = split_words(command);
  if (words.empty()) return {};
  if (words[0] == "ray" && words.size() > 1 && words[1] == "start")
    return read_ray_start(draft, words, key, line, role);
  if (words[0] == "ray" && words.size() > 1 && words[1] == "stop") {
    draft.report.replaced(key, line, "ray stop: every start is in a fresh container");
    return {};
  }
  if (words[0] == "ray") {
    draft.report.ignored(key, line, command + ": Ray is not up yet when this would run");
    return {};
  }
  if (words[0] == "ulimit") {
    const auto n = std::find(words.begin(), words.end(), "-n");
    const auto number = n != words.end() && n + 1 != words.end() ? parse_bytes(*(n + 1)) : std::nullopt;
    if (number && *number >= 1'024 && *number <= (1 << 30)) {
      draft.launch.spec.nofile = *number;
      draft.report.mapped(
          key, line,
          fmt::format("open files: {}; a machine that allows fewer gives what it has, and says so", *number));
    } else {
      draft.report.replaced(key, line, command + ": Muster sets the limits that Ray needs");
    }
    return {};
  }
  if (words[0] == "export" && words.size() == 2 && words[1].find('=') != std::string::npos &&
      words[1].find('$') == std::string::npos) {
    const std::string name = words[1].substr(0, words[1].find('='));
    if (name.rfind("RAY_AUTH", 0) == 0 || name == "RAY_ADDRESS") {
      draft.report.replaced(key, line, name + " is set by the lease");
      return {};
    }
    draft.launch.spec.env[name] = words[1].substr(name.size() + 1);
    draft.report.mapped(key, line, "environment variable " + name + ", for head and workers");
    return {};
  }
  role.setup.push_back(command);
  draft.report.mapped(key, line, "\"" + command + "\" runs as a setup command, before Ray starts");
  return {};
}

}  // namespace

Status read_start_commands(Draft& draft, const Tree& commands, const std::string& key, StartFlags& role) {
  const auto texts = TRY(read_texts(commands, key));
  for (std::size_t i = 0; i < texts.size(); ++i) {
    const int line = i < commands.items.size() ? commands.items[i]->line : commands.line;
    for (const auto& command : split_commands(texts[i])) TRY_VOID(read_one(draft, command, key, line, role));
  }
  return {};
}

}  // namespace muster::launcher
