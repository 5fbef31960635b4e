#include "cli/request.h"

#include <fmt/format.h>

#include <filesystem>
#include <map>
#include <memory>
#include <mutex>

#include "cli/archive.h"
#include "cli/config.h"
#include "cli/money.h"
#include "cli/terminal.h"
#include "wire/rest.h"

namespace muster::cli {
namespace {

// Names under which a machine may stand in worker_ips: its name, its host name, labels "ip" and "address".
Result<std::map<std::string, NodeId>> own_nodes(Api& api) {
  std::map<std::string, NodeId> out;
  const auto me = TRY(api.get("/api/v1/whoami"));
  const auto nodes = TRY(api.list("/api/v1/nodes"));
  for (const auto& node : nodes) {
    const auto id = NodeId::parse(node["id"].text());
    if (!id || node["supplierOrgId"].text() != me["orgId"].text() || node["state"].text() == "revoked") continue;
    for (const auto& name :
         {node["name"].text(), node["hostname"].text(), node["labels"]["ip"].text(), node["labels"]["address"].text()})
      if (!name.empty()) out.emplace(name, *id);
  }
  return out;
}

void flatten(const wire::Json& value, const std::string& path, std::map<std::string, std::string>& out) {
  if (value.is(wire::Json::Kind::Object)) {
    for (const auto& [key, child] : value.members()) flatten(child, path.empty() ? key : path + "." + key, out);
  } else if (value.is(wire::Json::Kind::Array)) {
    std::size_t index = 0;
    for (const auto& item : value.items()) {
      const std::string& name = item["name"].text();
      flatten(item, fmt::format("{}[{}]", path, name.empty() ? std::to_string(index) : name), out);
      ++index;
    }
  } else if (!value.is(wire::Json::Kind::Null) && !value.text().empty() && value.text() != "0") {
    out[path] = value.dump();
  } else if (value.truth()) {
    out[path] = "true";
  }
}

}  // namespace

std::string local_path(const std::string& path, const std::string& file) {
  const char* home = std::getenv("HOME");
  if (home != nullptr && (path == "~" || path.starts_with("~/"))) return home + path.substr(1);
  if (path.starts_with("/") || file == "-") return path;
  return (std::filesystem::path(file).parent_path() / path).string();
}

Result<launcher::Launch> read_launch(Shell& shell, const std::string& file, const std::string& image, bool egress) {
  const std::string text = TRY(read_file(file, launcher::Context{}.default_image.size() + (1 << 20)));
  Api* api = TRY(shell.api());
  auto nodes = own_nodes(*api);
  launcher::Context context;
  if (nodes.ok())
    context.find_node = [&nodes](std::string_view address) -> std::optional<NodeId> {
      const auto found = nodes->find(std::string(address));
      return found == nodes->end() ? std::nullopt : std::optional<NodeId>(found->second);
    };
  else if (worth_retrying(nodes.error()) || nodes.error().code == Code::Unauthenticated)
    return nodes.error();
  if (!image.empty()) context.default_image = image;
  context.egress = egress;
  auto launch = launcher::from_yaml(text, context);
  if (!launch.ok()) return error(launch.error().code, file + ": " + launch.error().message, launch.error().field);
  return launch;
}

Status upload_mounts(Shell& shell, launcher::Launch& launch, const std::string& file) {
  Api* api = TRY(shell.api());
  for (const auto& mount : launch.mounts) {
    // A file is mounted as a file: its folder is where it is unpacked, under its name there.
    const std::string local = local_path(mount.local, file);
    std::string remote = mount.remote, as;
    std::error_code failed;
    const auto slash = remote.rfind('/');
    if (std::filesystem::is_regular_file(local, failed) && slash != std::string::npos) {
      as = remote.substr(slash + 1);
      remote = slash == 0 ? "/" : remote.substr(0, slash);
    }
    auto packed = pack(local, Format::Tar, launch.excludes, as);
    if (!packed.ok())
      return error(packed.error().code, fmt::format("file_mounts (line {}): {}", mount.line, packed.error().message),
                   "file_mounts");
    const TemporaryFile temporary(packed->file);
    Progress progress;
    const std::string digest = TRY(api->upload(packed->file, packed->sha256, [&](std::uint64_t sent) {
      progress.show(fmt::format("uploading {}: {} of {}", mount.local, size_text(static_cast<std::int64_t>(sent)),
                                size_text(static_cast<std::int64_t>(packed->bytes))));
    }));
    if (packed->skipped > 0) say(fmt::format("{}: {} sockets or devices were left out", mount.local, packed->skipped));
    launch.spec.files.push_back({remote, digest});
  }
  return {};
}

wire::Json spec_json(const ClusterSpec& spec) {
  const auto parsed = wire::parse_json(wire::to_json(wire::CreateClusterRequest{spec, ""}));
  return parsed.ok() ? (*parsed)["spec"] : wire::Json::object();
}

std::vector<std::string> difference(const wire::Json& before, const wire::Json& after, std::size_t max) {
  std::map<std::string, std::string> old_leaves, new_leaves;
  flatten(before, "", old_leaves);
  flatten(after, "", new_leaves);
  std::map<std::string, std::pair<std::string, std::string>> changes;
  for (const auto& [path, value] : old_leaves)
    if (const auto found = new_leaves.find(path); found == new_leaves.end() || found->second != value)
      changes[path] = {value, found == new_leaves.end() ? "(nothing)" : found->second};
  for (const auto& [path, value] : new_leaves)
    if (old_leaves.find(path) == old_leaves.end()) changes[path] = {"(nothing)", value};
  std::vector<std::string> out;
  for (const auto& [path, change] : changes) {
    if (out.size() == max) {
      out.push_back(fmt::format("... and {} more", changes.size() - max));
      break;
    }
    out.push_back(clean(fmt::format("{}: {} -> {}", path, change.first, change.second)));
  }
  return out;
}

std::string pull_text(std::int64_t done, std::int64_t total) {
  if (total <= 0) return size_text(done);
  return fmt::format("{} % of {}", std::clamp<std::int64_t>(done * 100 / total, 0, 100), size_text(total));
}

std::string cluster_progress(const wire::Json& cluster) {
  std::string line = clean(cluster["name"].text()) + " " + clean(cluster["state"].text());
  if (cluster["state"].text() == "queued" && cluster["queue"].is(wire::Json::Kind::Object)) {
    const auto& queue = cluster["queue"];
    line += fmt::format(", place {}: {}", queue["position"].integer(), clean(queue["reason"].text()));
    if (!queue["expectedStart"].text().empty()) line += ", expected " + short_time(queue["expectedStart"]);
    return line;
  }
  std::map<std::string, int> phases;
  std::string head;
  int ready = 0, workers = 0;
  for (const auto& slot : cluster["slots"].items()) {
    if (slot["role"].text() == "head")
      head = slot["phase"].text();
    else if (slot["role"].text() == "worker") {
      ++workers;
      if (slot["phase"].text() == "ready")
        ++ready;
      else
        ++phases[slot["phase"].text()];
    }
  }
  if (!head.empty()) line += ": head " + clean(head);
  if (workers > 0) line += fmt::format(", workers {}/{} ready", ready, workers);
  for (const auto& [phase, count] : phases) line += fmt::format(", {} {}", count, clean(phase));
  std::int64_t done = 0, total = 0;
  bool known = true;
  for (const auto& slot : cluster["slots"].items()) {
    if (slot["phase"].text() != "pulling") continue;
    done += slot["pullDoneBytes"].integer();
    total += slot["pullTotalBytes"].integer();
    known = known && slot["pullTotalBytes"].integer() > 0;
  }
  if (done > 0) line += ", image " + pull_text(done, known ? total : 0);
  if (const std::string price = sum_text(cluster["perHour"]); !price.empty()) line += ", " + price + " an hour";
  if (cluster["state"].text() == "starting" && !cluster["reason"].text().empty())
    line += ", " + clean(cluster["reason"].text());
  return line;
}

std::string failures_text(const wire::Json& cluster) {
  std::string out;
  for (const auto& failure : cluster["failures"].items()) {
    out += fmt::format("{} {} on {} at {}: {}\n", clean(failure["role"].text()), clean(failure["slot"].text()),
                       clean(failure["nodeName"].text()), short_time(failure["at"]), clean(failure["reason"].text()));
    std::string_view rest = failure["output"].text();
    while (!rest.empty()) {
      const auto end = rest.find('\n');
      out += "  | " + clean(rest.substr(0, end)) + "\n";
      rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 1);
    }
  }
  return out;
}

Result<wire::Json> wait_cluster(Shell& shell, const std::string& id, const std::function<bool(const wire::Json&)>& done,
                                const std::function<std::string(const wire::Json&)>& left_behind) {
  Api* api = TRY(shell.api());
  api->set_patience(Millis(600'000));
  struct Seen {
    std::mutex mutex;
    wire::Json cluster;
  };
  auto seen = std::make_shared<Seen>();
  seen->cluster = TRY(api->get(path_of("clusters", id)));
  const OnInterrupt interrupt([seen, left_behind] {
    const std::lock_guard lock(seen->mutex);
    return left_behind(seen->cluster);
  });
  Progress progress;
  for (;;) {
    auto cluster = TRY(api->get(path_of("clusters", id)));
    {
      const std::lock_guard lock(seen->mutex);
      seen->cluster = cluster;
    }
    progress.show(cluster_progress(cluster));
    if (done(cluster)) {
      progress.clear();
      return cluster;
    }
    api->sleep(Millis(200));
  }
}

}  // namespace muster::cli
