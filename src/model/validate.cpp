#include "model/validate.h"

#include <algorithm>
#include <set>

#include "base/bytes.h"
#include "model/node_labels.h"
#include "model/offer.h"
#include "model/venv_image.h"
#include "model/workload_identity.h"

namespace muster {
namespace {

constexpr const char* kAudienceForm =
    " names whom identity tokens are for: one to eight, separated by commas, such as sts.amazonaws.com";

constexpr std::int64_t kBytesMax = std::int64_t{1} << 50;  // 1 PiB
constexpr std::int64_t kCpuMilliMax = 100'000'000;
constexpr std::int64_t kLinkMax = 1'000'000'000;  // kbit/s
constexpr std::int64_t kMonthMs = std::int64_t{366} * 24 * 3600 * 1000;

Error wrong(const std::string& field, const std::string& what) {
  return error(Code::InvalidArgument, field + " " + what, field);
}

Status in_range(std::int64_t value, std::int64_t low, std::int64_t high, const std::string& field) {
  if (value >= low && value <= high) return {};
  return wrong(field, "is " + std::to_string(value) + "; it must lie between " + std::to_string(low) + " and " +
                          std::to_string(high));
}
Status text(std::string_view value, std::size_t max, const std::string& field) {
  if (value.size() > max)
    return wrong(field,
                 "has " + std::to_string(value.size()) + " bytes; at most " + std::to_string(max) + " are allowed");
  if (!valid_utf8(value)) return wrong(field, "is not valid UTF-8");
  if (value.find('\0') != std::string_view::npos) return wrong(field, "holds a NUL byte");
  return {};
}
Status strings(const std::map<std::string, std::string>& map, std::size_t max, std::size_t value_max,
               const std::string& field) {
  if (map.size() > max)
    return wrong(field,
                 "has " + std::to_string(map.size()) + " entries; at most " + std::to_string(max) + " are allowed");
  for (const auto& [key, value] : map) {
    if (key.empty()) return wrong(field, "has an empty key");
    TRY_VOID(text(key, 256, field));
    TRY_VOID(text(value, value_max, field + "." + key));
  }
  return {};
}
Status environment(const std::map<std::string, std::string>& env, const std::string& field) {
  TRY_VOID(strings(env, 128, 4096, field));
  for (const auto& [key, value] : env)
    if (key.find('=') != std::string::npos) return wrong(field, "has a name with '=' in it: " + key);
  return {};
}
Status commands(const std::vector<std::string>& list, const std::string& field) {
  if (list.size() > 64) return wrong(field, "has " + std::to_string(list.size()) + " commands; at most 64 are allowed");
  for (std::size_t i = 0; i < list.size(); ++i) TRY_VOID(text(list[i], 8192, field + "." + std::to_string(i)));
  return {};
}
Status resources(const Resources& r, const std::string& field) {
  TRY_VOID(in_range(r.cpu_milli, 0, kCpuMilliMax, field + ".cpu_milli"));
  TRY_VOID(in_range(r.memory_bytes, 0, kBytesMax, field + ".memory_bytes"));
  TRY_VOID(in_range(r.gpus, 0, 64, field + ".gpus"));
  TRY_VOID(in_range(r.disk_bytes, 0, kBytesMax, field + ".disk_bytes"));
  TRY_VOID(in_range(r.object_store_bytes, 0, kBytesMax, field + ".object_store_bytes"));
  TRY_VOID(in_range(r.traffic.up_kbps, 0, kLinkMax, field + ".up_kbps"));
  TRY_VOID(in_range(r.traffic.down_kbps, 0, kLinkMax, field + ".down_kbps"));
  TRY_VOID(in_range(r.traffic.volume_bytes, 0, kBytesMax, field + ".transfer_bytes"));
  if (r.custom_milli.size() > 32) return wrong(field + ".custom", "has more than 32 entries");
  for (const auto& [name, amount] : r.custom_milli) {
    TRY_VOID(text(name, 128, field + ".custom"));
    TRY_VOID(in_range(amount, 0, std::int64_t{1} << 40, field + ".custom." + name));
  }
  return {};
}
Status request(const NodeRequest& r, const std::string& field) {
  TRY_VOID(resources(r.resources, field + ".resources"));
  TRY_VOID(text(r.gpu_model, 128, field + ".gpu_model"));
  TRY_VOID(strings(r.labels, 32, 256, field + ".labels"));
  TRY_VOID(strings(r.constraints, 32, 256, field + ".constraints"));
  if (r.pinned.size() > kWorkersMax) return wrong(field + ".pinned", "names more than 1000 machines");
  if (r.gpu_share_milli == 0) return {};
  if (r.gpu_share_milli < kGpuShareLeast || r.gpu_share_milli >= kGpuMilli)
    return wrong(field + ".gpu_share", "must be at least 0.01 and less than 1; leave it out for whole GPUs");
  if (r.whole_machine)
    return wrong(field + ".gpu_share",
                 "asks for a share of a GPU, but the request is for a whole machine; state its resources");
  if (r.resources.gpus != 1)
    return wrong(field + ".gpu_share", "is of one GPU, but " + std::to_string(r.resources.gpus) +
                                           " are asked for; ask for 1, or leave the share out");
  return {};
}
Status blob(const std::string& digest, const std::string& field) {
  const auto hexadecimal = [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); };
  if (digest.size() != 64 || !std::all_of(digest.begin(), digest.end(), hexadecimal))
    return wrong(field,
                 "is not a SHA-256 in lower-case hexadecimal; upload the file first and use the digest it returns");
  return {};
}

// What the spec takes in the journal, roughly: text dominates.
std::size_t weight(const std::map<std::string, std::string>& map) {
  std::size_t sum = 0;
  for (const auto& [key, value] : map) sum += key.size() + value.size() + 4;
  return sum;
}
std::size_t weight(const std::vector<std::string>& list) {
  std::size_t sum = 0;
  for (const auto& item : list) sum += item.size() + 2;
  return sum;
}
std::size_t weight(const NodeRequest& r) {
  return 64 + weight(r.labels) + weight(r.constraints) + r.pinned.size() * 5 + r.resources.custom_milli.size() * 64;
}
std::size_t weight(const ClusterSpec& spec) {
  std::size_t sum = 256 + spec.image.size() + weight(spec.head) + weight(spec.head_setup_commands) +
                    weight(spec.setup_commands) + weight(spec.env);
  for (const WorkerGroup& group : spec.groups)
    sum += 64 + weight(group.request) + weight(group.setup_commands) + weight(group.env);
  for (const FileMount& file : spec.files) sum += file.path.size() + 68;
  return sum;
}
Status fits(std::size_t bytes, const std::string& field) {
  if (bytes <= kSpecBytesMax) return {};
  return wrong(field, "is too large (" + std::to_string(bytes) + " bytes; at most " + std::to_string(kSpecBytesMax) +
                          "); put long scripts into files and mount them");
}

Status groups(const ClusterSpec& spec, const std::string& field) {
  if (spec.groups.size() > 32) return wrong(field, "has more than 32 worker groups");
  std::set<std::string> names;
  std::uint64_t max_sum = 0, min_sum = 0;
  for (std::size_t i = 0; i < spec.groups.size(); ++i) {
    const WorkerGroup& group = spec.groups[i];
    const std::string at = field + "." + std::to_string(i);
    TRY_VOID(text(group.name, 63, at + ".name"));
    if (group.name.empty()) return wrong(at + ".name", "is empty");
    if (!names.insert(group.name).second) return wrong(at + ".name", "is used by two groups: " + group.name);
    TRY_VOID(in_range(group.max, 0, kWorkersMax, at + ".max"));
    if (group.min > group.max)
      return wrong(at + ".min", "is " + std::to_string(group.min) + ", above max " + std::to_string(group.max));
    TRY_VOID(request(group.request, at + ".request"));
    TRY_VOID(commands(group.setup_commands, at + ".setup_commands"));
    TRY_VOID(environment(group.env, at + ".env"));
    max_sum += group.max, min_sum += group.min;
  }
  if (max_sum > kWorkersMax)
    return wrong(field, "ask for up to " + std::to_string(max_sum) + " workers; at most 1000 are allowed");
  if (spec.max_workers != 0 && min_sum > spec.max_workers)
    return wrong(field, "have a minimum of " + std::to_string(min_sum) + " workers together, above max_workers " +
                            std::to_string(spec.max_workers));
  return {};
}

}  // namespace

bool valid_name(std::string_view name) {
  const auto plain = [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'); };
  if (name.empty() || name.size() > 63 || !plain(name[0])) return false;
  return std::all_of(name.begin(), name.end(), [&](char c) { return plain(c) || c == '-' || c == '_'; });
}

Status validate_name(std::string_view name, const std::string& field) {
  if (valid_name(name)) return {};
  return wrong(field, "is not a valid name; use 1 to 63 of a-z, 0-9, '-' and '_', beginning with a letter or digit");
}

Status validate_title(std::string_view value, const std::string& field) {
  if (value.empty()) return wrong(field, "is empty");
  TRY_VOID(text(value, 200, field));
  if (std::any_of(value.begin(), value.end(), [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; }))
    return wrong(field, "holds control characters");
  return {};
}

Status validate_labels(const std::map<std::string, std::string>& labels, const std::string& field) {
  return strings(labels, 64, 256, field);
}

Status validate(const ClusterSpec& spec, const std::string& field) {
  TRY_VOID(validate_name(spec.name, field + ".name"));
  TRY_VOID(text(spec.image, 512, field + ".image"));
  if (spec.image.empty()) return wrong(field + ".image", "is empty; name an image");
  if ((spec.runtime == RuntimeKind::Venv) != is_venv_image(spec.image))
    return wrong(field + ".image", spec.runtime == RuntimeKind::Venv
                                       ? "must be a virtual environment such as venv:ray==2.60.0 for the runtime venv"
                                       : "is a virtual environment, which wants the runtime venv");
  if (spec.runtime == RuntimeKind::Venv) {
    const auto image = parse_venv_image(spec.image);
    if (!image.ok()) return wrong(field + ".image", "is refused: " + image.error().message);
  }
  if (spec.runtime != RuntimeKind::Docker && spec.runtime != RuntimeKind::Venv)
    return wrong(field + ".runtime", "must be docker or venv");
  if (spec.arch != "x86_64" && spec.arch != "aarch64") return wrong(field + ".arch", "must be x86_64 or aarch64");
  if (spec.pool != "own" && spec.pool != "market" && !parse_pool(spec.pool))
    return wrong(field + ".pool", "must be own, market, pool:NAME (of the platform) or pool:ORGANISATION/NAME");
  TRY_VOID(request(spec.head, field + ".head"));
  TRY_VOID(groups(spec, field + ".groups"));
  TRY_VOID(commands(spec.head_setup_commands, field + ".head_setup_commands"));
  TRY_VOID(commands(spec.setup_commands, field + ".setup_commands"));
  TRY_VOID(environment(spec.env, field + ".env"));
  if (const auto audience = spec.env.find(std::string(kIdentityAudienceEnv));
      audience != spec.env.end() && !parse_audiences(audience->second))
    return wrong(field + ".env", std::string(kIdentityAudienceEnv) + kAudienceForm);
  if (spec.files.size() > 64) return wrong(field + ".files", "has more than 64 entries");
  for (std::size_t i = 0; i < spec.files.size(); ++i) {
    const std::string at = field + ".files." + std::to_string(i);
    TRY_VOID(text(spec.files[i].path, 1024, at + ".path"));
    if (spec.files[i].path.empty()) return wrong(at + ".path", "is empty");
    TRY_VOID(blob(spec.files[i].blob, at + ".blob"));
  }
  const auto transfers = [](const NodeRequest& r) { return r.resources.traffic.volume_bytes > 0; };
  if (!spec.egress && (transfers(spec.head) || std::any_of(spec.groups.begin(), spec.groups.end(),
                                                           [&](const WorkerGroup& g) { return transfers(g.request); })))
    return wrong(field + ".egress",
                 "is off, but a transfer is stated: its volume is of the way out, so ask for egress "
                 "or leave the transfer out");
  TRY_VOID(in_range(spec.spares, 0, 100, field + ".spares"));
  if (spec.spares > 0 && spec.groups.empty())
    return wrong(field + ".spares", "asks for spares, but there is no worker group they could serve");
  TRY_VOID(in_range(spec.shm_bytes, 0, kBytesMax, field + ".shm_bytes"));
  TRY_VOID(in_range(spec.nofile, 0, 10'000'000, field + ".nofile"));
  TRY_VOID(in_range(spec.tier, 0, 9, field + ".tier"));
  TRY_VOID(in_range(spec.priority, -100, 100, field + ".priority"));
  TRY_VOID(in_range(spec.idle_timeout.count(), 0, kMonthMs, field + ".idle_timeout"));
  TRY_VOID(in_range(spec.max_lifetime.count(), 0, kMonthMs, field + ".max_lifetime"));
  TRY_VOID(in_range(spec.max_price, 0, kPriceMax, field + ".max_price"));
  TRY_VOID(in_range(spec.budget, 0, kBudgetMax, field + ".budget"));
  if (spec.currency.empty() && (spec.max_price > 0 || spec.budget > 0))
    return wrong(field + ".currency", "is empty; name the currency of max_price and budget, such as EUR");
  if (!spec.currency.empty()) TRY_VOID(validate_currency(spec.currency, field + ".currency"));
  TRY_VOID(in_range(spec.pair_kbps, 0, kPairKbpsMax, field + ".pair_kbps"));
  if (spec.replace_slow && spec.pair_kbps == 0)
    return wrong(field + ".replace_slow",
                 "asks to replace members with slow ways, but not what is slow; say what each pair should carry "
                 "(pair_mbps in the file, pairKbps in the API)");
  return fits(weight(spec), field);
}

Status validate(const JobSpec& spec, const std::string& field) {
  TRY_VOID(text(spec.name, 200, field + ".name"));
  TRY_VOID(text(spec.entrypoint, 16 << 10, field + ".entrypoint"));
  if (spec.entrypoint.empty()) return wrong(field + ".entrypoint", "is empty; say what to run");
  TRY_VOID(text(spec.runtime_env_json, 16 << 10, field + ".runtime_env_json"));
  TRY_VOID(text(spec.driver_json, 4 << 10, field + ".driver_json"));
  TRY_VOID(strings(spec.metadata, 64, 1024, field + ".metadata"));
  if (const auto audience = spec.metadata.find(std::string(kIdentityAudienceMetadata));
      audience != spec.metadata.end() && !parse_audiences(audience->second))
    return wrong(field + ".metadata", std::string(kIdentityAudienceMetadata) + kAudienceForm);
  if (!spec.working_dir_blob.empty()) TRY_VOID(blob(spec.working_dir_blob, field + ".working_dir_blob"));
  TRY_VOID(in_range(spec.retries, 0, 100, field + ".retries"));
  TRY_VOID(in_range(spec.timeout.count(), 0, kMonthMs, field + ".timeout"));
  if (spec.ephemeral) {
    if (!spec.cluster.empty())
      return wrong(field + ".cluster", "is set, but the job asks for a cluster of its own; give one of the two");
    TRY_VOID(validate(spec.cluster_spec, field + ".cluster_spec"));
  } else if (!valid_name(spec.cluster)) {
    return wrong(field + ".cluster", "names no cluster; give the name of a cluster or a cluster_spec");
  }
  const std::size_t own =
      spec.entrypoint.size() + spec.runtime_env_json.size() + spec.driver_json.size() + weight(spec.metadata);
  return fits(own + (spec.ephemeral ? weight(spec.cluster_spec) : 0), field);
}

Status validate(const NodeFacts& facts, const std::string& field) {
  for (const std::string* item :
       {&facts.hostname, &facts.os, &facts.kernel, &facts.agent_version, &facts.boot_id, &facts.region})
    TRY_VOID(text(*item, 256, field));
  if (facts.arch != "x86_64" && facts.arch != "aarch64") return wrong(field + ".arch", "must be x86_64 or aarch64");
  TRY_VOID(resources(facts.capacity, field + ".capacity"));
  if (facts.devices.size() > 64) return wrong(field + ".devices", "lists more than 64 devices");
  std::set<std::string> uuids;
  for (const Device& device : facts.devices) {
    TRY_VOID(text(device.uuid, 128, field + ".devices.uuid"));
    TRY_VOID(text(device.model, 128, field + ".devices.model"));
    TRY_VOID(in_range(device.memory_bytes, 0, kBytesMax, field + ".devices.memory_bytes"));
    if (!uuids.insert(device.uuid).second) return wrong(field + ".devices.uuid", "appears twice: " + device.uuid);
    TRY_VOID(text(device.profile, 64, field + ".devices.profile"));
    TRY_VOID(in_range(device.part_milli, 1, kGpuMilli, field + ".devices.part_milli"));
  }
  if (facts.runtimes.size() > 4) return wrong(field + ".runtimes", "lists more than 4 runtimes");
  for (const RuntimeKind runtime : facts.runtimes)
    if (runtime != RuntimeKind::Docker && runtime != RuntimeKind::Venv)
      return wrong(field + ".runtimes", "holds an unknown runtime");
  if (facts.images.size() > 64) return wrong(field + ".images", "lists more than 64 images");
  for (const std::string& image : facts.images) TRY_VOID(text(image, 512, field + ".images"));
  if (facts.image_bytes.size() > 64) return wrong(field + ".image_bytes", "lists more than 64 images");
  for (const auto& [image, bytes] : facts.image_bytes) {
    TRY_VOID(text(image, 512, field + ".image_bytes"));
    TRY_VOID(in_range(bytes, 0, kBytesMax, field + ".image_bytes"));
  }
  if (facts.lan.size() > 8) return wrong(field + ".lan", "lists more than 8 endpoints");
  for (const std::string& endpoint : facts.lan) TRY_VOID(text(endpoint, 64, field + ".lan"));
  return validate_labels(facts.labels, field + ".labels");
}

}  // namespace muster
