// The docker: section. Nothing in it reaches a container engine: images are names, options are understood or explained.
#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "launcher/parts.h"

namespace muster::launcher {
namespace {

struct Explained {
  std::string_view option;
  bool takes_value;
  std::string_view text;
};
constexpr auto kGpu = "GPUs are given by the lease: ask with GPU in resources";
constexpr auto kNetwork = "a member sees its cluster's private network only; use `muster port-forward` to reach ports";
constexpr auto kPrivilege = "refused: containers run without privilege on other people's machines";
constexpr auto kHostPath =
    "refused: no path of the host is mounted; use file_mounts for files, the workspace for results";
constexpr auto kLimit = "the lease sets it: ask with CPU and memory in resources";
constexpr auto kLife = "Muster starts, names and removes the container itself";
constexpr std::array<Explained, 42> kExplained = {
    {{"--gpus", true, kGpu},
     {"--runtime", true, kGpu},
     {"--device", true, kPrivilege},
     {"--network", true, kNetwork},
     {"--net", true, kNetwork},
     {"--network-alias", true, kNetwork},
     {"-p", true, kNetwork},
     {"--publish", true, kNetwork},
     {"-P", false, kNetwork},
     {"--publish-all", false, kNetwork},
     {"--expose", true, kNetwork},
     {"--dns", true, kNetwork},
     {"--add-host", true, kNetwork},
     {"-h", true, kNetwork},
     {"--hostname", true, kNetwork},
     {"--privileged", false, kPrivilege},
     {"--cap-add", true, kPrivilege},
     {"--security-opt", true, kPrivilege},
     {"--pid", true, kPrivilege},
     {"--ipc", true, kPrivilege},
     {"--uts", true, kPrivilege},
     {"--userns", true, kPrivilege},
     {"--cgroupns", true, kPrivilege},
     {"--group-add", true, kPrivilege},
     {"-u", true, kPrivilege},
     {"--user", true, kPrivilege},
     {"--sysctl", true, kPrivilege},
     {"-v", true, kHostPath},
     {"--volume", true, kHostPath},
     {"--mount", true, kHostPath},
     {"--volumes-from", true, kHostPath},
     {"--env-file", true, "the file would have to be on the host; use -e NAME=VALUE"},
     {"-m", true, kLimit},
     {"--memory", true, kLimit},
     {"--cpus", true, kLimit},
     {"--cpuset-cpus", true, kLimit},
     {"--name", true, kLife},
     {"--rm", false, kLife},
     {"-d", false, kLife},
     {"-it", false, kLife},
     {"--restart", true, kLife},
     {"--entrypoint", true, kLife}}};
constexpr std::array<std::string_view, 6> kDropped = {"--cap-drop", "--log-driver", "--log-opt",
                                                      "--label",    "-w",           "--workdir"};

Status set_ulimit(Draft& draft, const std::string& value, const std::string& key, int line) {
  const auto equals = value.find('=');
  const std::string name = value.substr(0, equals);
  if (name != "nofile") {
    draft.report.ignored(key, line, fmt::format("--ulimit {}: Muster sets the limits that Ray needs", value));
    return {};
  }
  const std::string soft =
      equals == std::string::npos ? "" : value.substr(equals + 1, value.find(':', equals) - equals - 1);
  const auto number = soft == "-1" ? std::optional<std::int64_t>(1 << 20) : parse_bytes(soft);
  if (!number || *number < 1'024 || *number > (1 << 30))
    return error(
        Code::InvalidArgument,
        fmt::format("line {}: {}: --ulimit {} is not understood; write --ulimit nofile=65536:65536", line, key, value),
        key);
  draft.launch.spec.nofile = *number;
  draft.report.mapped(
      key, line, fmt::format("open files: {}; a machine that allows fewer gives what it has, and says so", *number));
  return {};
}

void set_env(Draft& draft, const std::string& value, const std::string& key, int line) {
  const auto equals = value.find('=');
  const std::string name = value.substr(0, equals);
  if (equals == std::string::npos)
    return draft.report.warning(
        key, line,
        "-e " + name + " has no value, and the shell it would be copied from is not here; write -e " + name + "=VALUE");
  if (name.rfind("NVIDIA_", 0) == 0 || name.rfind("RAY_AUTH", 0) == 0 || name == "RAY_ADDRESS" ||
      name == "CUDA_VISIBLE_DEVICES")
    return draft.report.replaced(key, line, name + " is set by the lease");
  draft.launch.spec.env[name] = value.substr(equals + 1);
  draft.report.mapped(key, line,
                      "environment variable " + name + " (its value can be seen by whoever owns the machine)");
}

// One option and, where it takes one, its value; `at` moves past both.
Status read_option(Draft& draft, const std::vector<std::string>& words, std::size_t& at, const std::string& key,
                   int line) {
  std::string option = words[at++];
  std::optional<std::string> value;
  if (const auto equals = option.find('='); option.rfind("--", 0) == 0 && equals != std::string::npos) {
    value = option.substr(equals + 1);
    option.resize(equals);
  }
  const auto need_value = [&] {
    if (!value) value = at < words.size() ? words[at++] : "";
    return *value;
  };
  if (option == "--ulimit") return set_ulimit(draft, need_value(), key, line);
  if (option == "--shm-size") {
    const auto bytes = parse_bytes(need_value());
    if (!bytes || *bytes <= 0)
      return error(Code::InvalidArgument,
                   fmt::format("line {}: {}: --shm-size {} is not a size; write --shm-size=8gb", line, key, *value),
                   key);
    draft.launch.spec.shm_bytes = *bytes;
    draft.report.mapped(key, line, fmt::format("shared memory: {} MiB", *bytes >> 20));
    return {};
  }
  if (option == "-e" || option == "--env") {
    set_env(draft, need_value(), key, line);
    return {};
  }
  for (const auto& known : kExplained) {
    if (known.option != option) continue;
    const std::string shown = known.takes_value ? option + " " + need_value() : option;
    if (known.text.rfind("refused", 0) == 0)
      draft.report.warning(key, line, shown + ": " + std::string(known.text));
    else
      draft.report.replaced(key, line, shown + ": " + std::string(known.text));
    return {};
  }
  if (std::find(kDropped.begin(), kDropped.end(), option) != kDropped.end()) {
    draft.report.ignored(key, line, option + " " + need_value() + ": not needed here");
    return {};
  }
  if (!value && option.rfind('-', 0) == 0 && at < words.size() && words[at].rfind('-', 0) != 0) value = words[at++];
  draft.report.ignored(key, line,
                       fmt::format("{}{}: not an option that Muster passes on", option, value ? " " + *value : ""));
  return {};
}

bool has_prefix_tag(std::string_view image, std::string_view prefix) {
  return image == prefix || (image.size() > prefix.size() && image.substr(0, prefix.size()) == prefix &&
                             (image[prefix.size()] == ':' || image[prefix.size()] == '@'));
}

// rayproject/ray:X.Y...: older than 2.52 has no token authentication.
bool too_old(std::string_view image) {
  constexpr std::string_view repo = "rayproject/ray:";
  const auto at = image.find(repo);
  if (at == std::string_view::npos) return false;
  int part[2] = {0, 0};
  int index = 0;
  bool digits = false;
  for (char c : image.substr(at + repo.size())) {
    if (c >= '0' && c <= '9') {
      if (part[index] < 10'000) part[index] = part[index] * 10 + (c - '0');
      digits = true;
    } else if (c == '.' && digits && index == 0) {
      index = 1;
      digits = false;
    } else {
      break;
    }
  }
  return index == 1 && digits && (part[0] < 2 || (part[0] == 2 && part[1] < 52));
}

}  // namespace

std::vector<Alias> Context::default_aliases() {
  return {{"rayproject/ray-ml", "rayproject/ray", "is no longer published"},
          {"rayproject/ray-llm", "rayproject/ray", "is no longer published for current Ray"},
          {"rayproject/autoscaler", "rayproject/ray", "was renamed long ago"},
          {"rayproject/ray-worker-container", "rayproject/ray", "is no longer published"}};
}

Status read_run_options(Draft& draft, const Tree& options, const std::string& key) {
  const auto texts = TRY(read_texts(options, key));
  const int line = options.items.empty() ? options.line : options.items.front()->line;
  for (std::size_t i = 0; i < texts.size(); ++i) {
    const int at_line = i < options.items.size() ? options.items[i]->line : line;
    if (texts[i].find("$(") != std::string::npos || texts[i].find('`') != std::string::npos) {
      draft.report.warning(key, at_line, "\"" + texts[i] + "\" would run a command on the host: ignored");
      continue;
    }
    const auto words = split_words(texts[i]);
    for (std::size_t at = 0; at < words.size();) TRY_VOID(read_option(draft, words, at, key, at_line));
  }
  return {};
}

Status read_docker(Draft& draft, const Tree& docker, const std::string& key) {
  TRY_VOID(expect_map(docker, key));
  for (const auto& entry : docker.entries) {
    const std::string at = key + "." + entry.key;
    const Tree& value = *entry.value;
    if (entry.key == "image" || entry.key == "head_image" || entry.key == "worker_image") {
      const std::string image = TRY(read_text(value, at));
      if (!image.empty())
        draft.images.push_back(image);
      else
        draft.report.warning(at, entry.line, "empty: the default image is used");
    } else if (entry.key == "run_options" || entry.key == "head_run_options" || entry.key == "worker_run_options") {
      TRY_VOID(read_run_options(draft, value, at));
    } else if (entry.key == "pull_before_run" || entry.key == "pull") {
      (void)TRY(read_flag(value, at));
      draft.report.mapped(at, entry.line, "images are pinned by digest and pulled where they are missing");
    } else if (entry.key == "container_name") {
      draft.report.ignored(at, entry.line,
                           "containers are named after their lease; use `muster attach` and `muster exec`");
    } else if (entry.key == "disable_automatic_runtime_detection" || entry.key == "disable_shm_size_detection" ||
               entry.key == "use_podman") {
      draft.report.ignored(at, entry.line, "the machine's agent chooses engine, GPU runtime and shared memory");
    } else {
      return fault(value, at, "is not a key that Ray or Muster knows; remove it or correct the spelling");
    }
  }
  return {};
}

void choose_image(Draft& draft) {
  std::string& image = draft.launch.spec.image;
  if (!image.empty()) {  // muster.image wins
    for (const auto& other : draft.images)
      if (other != image) draft.report.replaced("docker.image", 0, other + " -> " + image + " (muster.image)");
    return;
  }
  if (draft.images.empty()) {
    image = draft.context.default_image;
    draft.report.mapped("docker.image", 0, "none given: " + image);
    return;
  }
  image = draft.images.back();
  for (const auto& other : draft.images)
    if (other != image)
      draft.report.warning(
          "docker.image", 0,
          "head and workers run the same image: " + image + " is used, " + other + " is not (muster.image chooses)");
  for (const auto& alias : draft.context.aliases) {
    if (!has_prefix_tag(image, alias.prefix) && !has_prefix_tag(image, "docker.io/" + alias.prefix)) continue;
    const std::string tag = image.find(':') == std::string::npos ? "" : image.substr(image.find(':'));
    draft.report.replaced("docker.image", 0,
                          fmt::format("{} {}; its equivalent is {}{}, here {}", image, alias.why, alias.equivalent, tag,
                                      draft.context.default_image));
    image = draft.context.default_image;
    return;
  }
  if (too_old(image))
    draft.report.warning(
        "docker.image", 0,
        image + " is older than Ray 2.52 and has no token authentication: machines will refuse it; take 2.54 or newer");
  draft.report.mapped("docker.image", 0, image);
}

}  // namespace muster::launcher
