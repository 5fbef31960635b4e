#include "launcher/launcher.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "launcher/parts.h"

namespace muster::launcher {
namespace {

const std::vector<std::string_view>& known_keys() {
  static const std::vector<std::string_view> keys = {"cluster_name",
                                                     "max_workers",
                                                     "min_workers",
                                                     "initial_workers",
                                                     "upscaling_speed",
                                                     "idle_timeout_minutes",
                                                     "docker",
                                                     "provider",
                                                     "auth",
                                                     "available_node_types",
                                                     "head_node_type",
                                                     "worker_default_node_type",
                                                     "head_node",
                                                     "worker_nodes",
                                                     "file_mounts",
                                                     "cluster_synced_files",
                                                     "file_mounts_sync_continuously",
                                                     "rsync_exclude",
                                                     "rsync_filter",
                                                     "initialization_commands",
                                                     "setup_commands",
                                                     "head_setup_commands",
                                                     "worker_setup_commands",
                                                     "head_start_ray_commands",
                                                     "worker_start_ray_commands",
                                                     "metadata",
                                                     "no_restart",
                                                     "autoscaling_mode",
                                                     "target_utilization_fraction",
                                                     "muster"};
  return keys;
}

Status check_keys(const Tree& root, Draft& draft) {
  if (root.kind != Tree::Kind::Map)
    return fault(root, "the file", "must be a map of keys and values, like cluster_name: demo");
  if (root.find("apiVersion") != nullptr && root.find("kind") != nullptr)
    return fault(
        root, "kind",
        "makes this a Kubernetes object; `muster up` reads Ray's cluster-launcher YAML (cluster_name, provider, ...)");
  for (const auto& entry : root.entries) {
    const auto& known = known_keys();
    if (std::find(known.begin(), known.end(), entry.key) != known.end()) continue;
    if (entry.key.rfind("x-", 0) == 0 || entry.key.rfind('_', 0) == 0) {
      draft.report.ignored(entry.key, entry.line, "private key");
      continue;
    }
    const std::string near = nearest(entry.key, known);
    return error(Code::InvalidArgument,
                 fmt::format("line {}: {} is not a key of Ray's cluster YAML; {}", entry.line, entry.key,
                             near.empty() ? "remove it" : "did you mean " + near + "?"),
                 entry.key);
  }
  return {};
}

Status read_name(Draft& draft, const Tree& root) {
  const Tree* at = root.find("cluster_name");
  std::string& name = draft.launch.spec.name;
  if (at != nullptr) name = TRY(read_text(*at, "cluster_name"));
  if (name.empty()) {
    name = "default";
    draft.report.mapped("cluster_name", 0, "none given: default");
    return {};
  }
  const bool good = name.size() <= 63 &&
                    std::all_of(name.begin(), name.end(),
                                [](char c) {
                                  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                                         c == '-' || c == '_';
                                }) &&
                    name.front() != '-';
  if (!good) return fault(*at, "cluster_name", "may hold letters, digits, - and _ only, at most 63");
  draft.report.mapped("cluster_name", at->line, name);
  return {};
}

// A key that is understood but has nothing to do here.
void explain_rest(Draft& draft, const Tree& root) {
  struct Why {
    std::string_view key;
    std::string_view text;
  };
  static constexpr std::array<Why, 9> kIgnored = {
      {{"cluster_synced_files", "syncs files from the head to later workers; file_mounts reach every member here"},
       {"file_mounts_sync_continuously", "files are packed once, at `up`; use `muster rsync-up` for later changes"},
       {"metadata", "free text for Ray's own tools"},
       {"no_restart", "`up` on a running cluster restarts only what changed"},
       {"autoscaling_mode", "legacy; workers follow what Ray asks for, between min and max"},
       {"target_utilization_fraction", "legacy; workers follow what Ray asks for, between min and max"},
       {"initial_workers", "legacy; the cluster starts with min_workers and grows by demand"},
       {"worker_default_node_type", "legacy; every kind in available_node_types can grow"},
       {"initialization_commands", "would run on the host, outside the container; use setup_commands"}}};
  for (const auto& why : kIgnored) {
    const Tree* at = root.find(why.key);
    if (at == nullptr || at->kind == Tree::Kind::Null || (at->kind == Tree::Kind::List && at->items.empty()) ||
        (at->kind == Tree::Kind::Map && at->entries.empty()))
      continue;
    draft.report.ignored(std::string(why.key), at->line, std::string(why.text));
  }
  if (const Tree* auth = root.find("auth"); auth != nullptr && auth->kind != Tree::Kind::Null) {
    std::vector<std::string> names;
    for (const auto& entry : auth->entries) names.push_back(entry.key);
    draft.report.ignored("auth", auth->line,
                         fmt::format("{}: not needed, there is no SSH; your Muster login decides",
                                     names.empty() ? std::string("keys") : fmt::format("{}", fmt::join(names, ", "))));
  }
}

Status read_scaling(Draft& draft, const Tree& root) {
  if (const Tree* at = root.find("upscaling_speed"); at != nullptr && at->kind != Tree::Kind::Null) {
    (void)TRY(read_number(*at, "upscaling_speed"));
    draft.report.replaced("upscaling_speed", at->line,
                          "Muster starts all workers that Ray asks for at once, up to max_workers");
  }
  double minutes = 5;
  const Tree* at = root.find("idle_timeout_minutes");
  if (at != nullptr && at->kind != Tree::Kind::Null) minutes = TRY(read_number(*at, "idle_timeout_minutes"));
  if (minutes > 525'600) return fault(*at, "idle_timeout_minutes", "is more than a year");
  draft.launch.spec.idle_timeout = Millis(std::llround(minutes * 60'000));
  draft.report.mapped("idle_timeout_minutes", at == nullptr ? 0 : at->line,
                      fmt::format("{}workers above the minimum leave after {:g} idle minutes",
                                  at == nullptr ? "none given: " : "", minutes));
  return {};
}

bool needs_internet(const std::string& command) {
  static constexpr std::array<std::string_view, 11> kTools = {
      "pip install", "pip3 install", "conda install",   "apt-get", "apt install", "wget ",
      "curl ",       "git clone",    "huggingface-cli", "aws s3",  "uv pip"};
  return std::any_of(kTools.begin(), kTools.end(),
                     [&](std::string_view tool) { return command.find(tool) != std::string::npos; });
}

Status read_setup(Draft& draft, const Tree& root) {
  ClusterSpec& spec = draft.launch.spec;
  const auto take = [&](const char* key, std::vector<std::string>& out, std::string_view where) -> Status {
    const Tree* at = root.find(key);
    if (at == nullptr || at->kind == Tree::Kind::Null) return {};
    out = TRY(read_texts(*at, key));
    if (out.size() > 1'000) return fault(*at, key, "has more than 1000 commands");
    if (!out.empty())
      draft.report.mapped(key, at->line, fmt::format("{}, in {}", plural(out.size(), "command"), where));
    return {};
  };
  TRY_VOID(take("setup_commands", spec.setup_commands, "every member's container before Ray starts"));
  TRY_VOID(take("head_setup_commands", spec.head_setup_commands, "the head's container"));
  TRY_VOID(take("worker_setup_commands", draft.worker_setup, "every worker's container"));
  if (const Tree* at = root.find("head_start_ray_commands"); at != nullptr)
    TRY_VOID(read_start_commands(draft, *at, "head_start_ray_commands", draft.head));
  if (const Tree* at = root.find("worker_start_ray_commands"); at != nullptr)
    TRY_VOID(read_start_commands(draft, *at, "worker_start_ray_commands", draft.worker));
  spec.head_setup_commands.insert(spec.head_setup_commands.end(), draft.head.setup.begin(), draft.head.setup.end());
  return {};
}

void check_commands(Draft& draft) {
  const ClusterSpec& spec = draft.launch.spec;
  std::vector<std::string> all = spec.setup_commands;
  all.insert(all.end(), spec.head_setup_commands.begin(), spec.head_setup_commands.end());
  for (const auto& group : spec.groups) all.insert(all.end(), group.setup_commands.begin(), group.setup_commands.end());
  const auto internet = std::find_if(all.begin(), all.end(), needs_internet);
  if (internet != all.end() && !spec.egress)
    draft.report.warning("setup_commands", 0,
                         "\"" + internet->substr(0, 60) +
                             "\" needs the internet, which a cluster has only with muster: {egress: true} or --egress");
  const auto root =
      std::find_if(all.begin(), all.end(), [](const std::string& c) { return c.find("sudo ") != std::string::npos; });
  if (root != all.end())
    draft.report.warning(
        "setup_commands", 0,
        "\"" + root->substr(0, 60) + "\" uses sudo: a container has no privilege, so put the package into the image");
}

Status read_files(Draft& draft, const Tree& root) {
  if (const Tree* at = root.find("file_mounts"); at != nullptr && at->kind != Tree::Kind::Null) {
    TRY_VOID(expect_map(*at, "file_mounts"));
    if (at->entries.size() > 256) return fault(*at, "file_mounts", "has more than 256 entries");
    for (const auto& entry : at->entries) {
      const std::string key = "file_mounts." + entry.key;
      const std::string local = TRY(read_text(*entry.value, key));
      if (entry.key.empty() || local.empty())
        return fault(*entry.value, key, "needs a remote and a local path, like ~/data: ./data");
      if (entry.key.find("..") != std::string::npos) return fault(*entry.value, key, "must not hold ..");
      draft.launch.mounts.push_back({entry.key, local, entry.line});
      draft.report.mapped("file_mounts", entry.line,
                          local + " is packed here and unpacked at " + entry.key + " in every container");
    }
  }
  if (const Tree* at = root.find("rsync_exclude"); at != nullptr) {
    draft.launch.excludes = TRY(read_texts(*at, "rsync_exclude"));
    if (!draft.launch.excludes.empty()) draft.report.mapped("rsync_exclude", at->line, "not packed from file_mounts");
  }
  if (const Tree* at = root.find("rsync_filter"); at != nullptr) {
    const auto files = TRY(read_texts(*at, "rsync_filter"));
    if (!files.empty())
      draft.report.warning(
          "rsync_filter", at->line,
          fmt::format("{}: not read; name what to leave out in rsync_exclude", fmt::join(files, ", ")));
  }
  return {};
}

// The share is of the one GPU that head or workers ask for; Ray counts that as one.
Status apply_gpu_share(Draft& draft) {
  if (draft.gpu_share_milli == 0) return {};
  Tree at;
  at.line = draft.gpu_share_line;
  const std::string key = "muster.gpu_share";
  std::vector<std::string> who;
  const auto apply = [&](NodeRequest& request, const std::string& name) -> Status {
    if (request.whole_machine && name != "the head")
      return fault(at, key, name + " takes a whole machine; give it resources with GPU: 1");
    if (request.whole_machine || request.resources.gpus == 0) return {};
    if (request.resources.gpus > 1)
      return fault(at, key,
                   fmt::format("is of one GPU, but {} asks for {}; write GPU: 1 there, or leave gpu_share out", name,
                               request.resources.gpus));
    request.gpu_share_milli = draft.gpu_share_milli;
    who.push_back(name);
    return {};
  };
  TRY_VOID(apply(draft.launch.spec.head, "the head"));
  for (auto& group : draft.launch.spec.groups) TRY_VOID(apply(group.request, group.name));
  if (who.empty())
    return fault(at, key, "is of a GPU, but nothing asks for one; write GPU: 1 in the resources of the workers");
  draft.report.mapped(key, draft.gpu_share_line,
                      fmt::format("{:g} of a GPU for {}, beside others of your organisation; Ray counts it as one",
                                  static_cast<double>(draft.gpu_share_milli) / kGpuMilli, fmt::join(who, ", ")));
  return {};
}

void apply_constraints(Draft& draft) {
  const auto apply = [&](NodeRequest& request, bool gpu) {
    for (const auto& [name, value] : draft.constraints) request.constraints[name] = value;
    request.resources.traffic = draft.traffic;
    if (gpu && (request.whole_machine || request.resources.gpus > 0)) request.gpu_model = draft.gpu_model;
  };
  ClusterSpec& spec = draft.launch.spec;
  apply(spec.head, spec.head.resources.gpus > 0);
  for (auto& group : spec.groups) apply(group.request, true);
}

}  // namespace

std::string_view what_name(ReportRow::What what) {
  switch (what) {
    case ReportRow::What::Mapped:
      return "mapped";
    case ReportRow::What::Replaced:
      return "replaced";
    case ReportRow::What::Ignored:
      return "ignored";
    case ReportRow::What::Warning:
      return "warning";
  }
  return "";
}

Result<Launch> from_yaml(std::string_view text, const Context& context) {
  auto parsed = parse_tree(text);
  if (!parsed.ok()) return parsed.error();
  const Tree& root = *parsed->root;
  Draft draft{.context = context};
  TRY_VOID(check_keys(root, draft));
  for (const auto& twice : parsed->duplicates)
    draft.report.warning(twice.key, twice.line,
                         fmt::format("given twice (line {} too): the last one counts", twice.first_line));
  TRY_VOID(read_name(draft, root));
  if (const Tree* at = root.find("muster"); at != nullptr) TRY_VOID(read_muster(draft, *at));
  if (context.egress) draft.launch.spec.egress = true;
  if (const Tree* at = root.find("docker"); at != nullptr && at->kind != Tree::Kind::Null)
    TRY_VOID(read_docker(draft, *at, "docker"));
  TRY_VOID(read_setup(draft, root));
  TRY_VOID(read_machines(draft, root));
  choose_image(draft);
  TRY_VOID(choose_runtime(draft));
  TRY_VOID(read_scaling(draft, root));
  TRY_VOID(read_files(draft, root));
  explain_rest(draft, root);
  check_commands(draft);
  apply_constraints(draft);
  TRY_VOID(apply_gpu_share(draft));
  Launch launch = std::move(draft.launch);
  launch.report = draft.report.take();
  return launch;
}

std::string report_text(const std::vector<ReportRow>& report, std::size_t width) {
  std::size_t key_width = 3;
  for (const auto& row : report) key_width = std::max(key_width, std::min<std::size_t>(row.key.size(), 36));
  const std::size_t indent = key_width + 13;
  const std::size_t room = width > indent + 20 ? width - indent : 40;
  std::string out;
  for (const auto& row : report) {
    std::string rest = row.line > 0 ? fmt::format("{} (line {})", row.text, row.line) : row.text;
    for (char& c : rest)
      if (c == '\n' || c == '\r' || c == '\t') c = ' ';
    if (row.key.size() > key_width)
      out += fmt::format("  {}\n  {:<{}}  {:<8} ", row.key, "", key_width, what_name(row.what));
    else
      out += fmt::format("  {:<{}}  {:<8} ", row.key, key_width, what_name(row.what));
    while (rest.size() > room) {
      auto cut = rest.rfind(' ', room);
      if (cut == std::string::npos || cut == 0) cut = std::min(rest.find(' '), rest.size());
      out += rest.substr(0, cut) + "\n" + std::string(indent, ' ');
      rest = cut < rest.size() ? rest.substr(cut + 1) : "";
    }
    out += rest + "\n";
  }
  return out;
}

}  // namespace muster::launcher
