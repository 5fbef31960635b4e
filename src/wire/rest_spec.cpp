#include "wire/rest_spec.h"

#include <fmt/format.h>

#include <cmath>

#include "model/offer.h"
#include "wire/names.h"
#include "wire/rest.h"

namespace muster::wire {
namespace {

constexpr double kUnitsMax = 1e9;
constexpr std::int64_t kSecondsMax = 10LL * 366 * 86'400;

Result<std::int64_t> milli(double value, const std::string& path) {
  if (value < 0 || value > kUnitsMax)
    return error(Code::InvalidArgument, fmt::format("{} must be between 0 and {:.0f}", path, kUnitsMax), path);
  return static_cast<std::int64_t>(std::llround(value * 1000));
}
Status not_negative(std::int64_t value, const std::string& path) {
  if (value < 0) return error(Code::InvalidArgument, fmt::format("{} must not be negative", path), path);
  return {};
}
std::map<std::string, std::string> texts(const google::protobuf::Map<std::string, std::string>& from) {
  return {from.begin(), from.end()};
}
std::vector<std::string> texts(const google::protobuf::RepeatedPtrField<std::string>& from) {
  return {from.begin(), from.end()};
}
void texts(const std::map<std::string, std::string>& from, google::protobuf::Map<std::string, std::string>& to) {
  to.insert(from.begin(), from.end());
}
void texts(const std::vector<std::string>& from, google::protobuf::RepeatedPtrField<std::string>& to) {
  to.Assign(from.begin(), from.end());
}

void write(const NodeRequest& from, v1::NodeRequest& to) {
  wire::write(from.resources, *to.mutable_resources());
  to.set_whole_machine(from.whole_machine);
  to.set_gpu_model(from.gpu_model);
  texts(from.labels, *to.mutable_labels());
  texts(from.constraints, *to.mutable_constraints());
  for (const NodeId node : from.pinned) to.add_pinned_nodes(node.str());
  to.set_uplink_kbps(from.resources.traffic.up_kbps), to.set_downlink_kbps(from.resources.traffic.down_kbps);
  to.set_transfer_bytes(from.resources.traffic.volume_bytes);
  to.set_gpu_share(static_cast<double>(from.gpu_share_milli) / kGpuMilli);
}
Result<NodeRequest> read(const v1::NodeRequest& from, const std::string& path) {
  NodeRequest to;
  to.resources = TRY(wire::read(from.resources(), path + ".resources"));
  TRY_VOID(not_negative(from.uplink_kbps(), path + ".uplinkKbps"));
  TRY_VOID(not_negative(from.downlink_kbps(), path + ".downlinkKbps"));
  TRY_VOID(not_negative(from.transfer_bytes(), path + ".transferBytes"));
  to.resources.traffic = {from.uplink_kbps(), from.downlink_kbps(), from.transfer_bytes()};
  to.whole_machine = from.whole_machine();
  to.gpu_model = from.gpu_model();
  const std::int64_t share = TRY(milli(from.gpu_share(), path + ".gpuShare"));
  if (share >= kGpuMilli || (share == 0 && from.gpu_share() > 0))
    return error(Code::InvalidArgument,
                 path + ".gpuShare must be at least 0.01 and less than 1; leave it out for whole GPUs",
                 path + ".gpuShare");
  to.gpu_share_milli = static_cast<std::int32_t>(share);
  if (share > 0 && to.resources.gpus == 0) to.resources.gpus = 1;  // the share is of one
  to.labels = texts(from.labels());
  to.constraints = texts(from.constraints());
  for (int i = 0; i < from.pinned_nodes_size(); ++i) {
    const auto id = NodeId::parse(from.pinned_nodes(i));
    const std::string at = fmt::format("{}.pinnedNodes[{}]", path, i);
    if (!id) return error(Code::InvalidArgument, fmt::format("{} must be a node id like node-12", at), at);
    to.pinned.push_back(*id);
  }
  return to;
}
Result<WorkerGroup> read(const v1::WorkerGroup& from, const std::string& path) {
  WorkerGroup to;
  to.name = from.name();
  to.min = from.min();
  to.max = from.max();
  to.request = TRY(read(from.request(), path + ".request"));
  to.setup_commands = texts(from.setup_commands());
  to.env = texts(from.env());
  return to;
}

}  // namespace

std::string time_text(WallTime time) {
  return time.ms == 0 ? std::string() : format_utc(time);
}

Result<Millis> read_seconds(std::int64_t seconds, const std::string& path) {
  if (seconds < 0 || seconds > kSecondsMax) {
    return error(Code::InvalidArgument, fmt::format("{} must be between 0 and {} seconds", path, kSecondsMax), path);
  }
  return Millis(seconds * 1000);
}

void write(const Quota& from, v1::Quota& to) {
  to.set_gpus(from.gpus + (from.gpu_milli + kGpuMilli - 1) / kGpuMilli);
  to.set_cpus(static_cast<double>(from.cpu_milli) / 1000);
  to.set_clusters(from.clusters);
}
void write(const Share& from, v1::Share& to) {
  to.set_weight(from.weight);
  to.set_guarantee_gpus(from.gpus);
  to.set_guarantee_cpus(static_cast<double>(from.cpu_milli) / 1000);
}
void write(const ImagePolicy& from, v1::ImagePolicy& to) {
  texts(from.allow, *to.mutable_allow());
  texts(from.deny, *to.mutable_deny());
  to.set_require_digest(from.require_digest);
  texts(from.keys, *to.mutable_keys());
}
ImagePolicy read(const v1::ImagePolicy& from) {
  return {texts(from.allow()), texts(from.deny()), from.require_digest(), texts(from.keys())};
}
Result<std::int64_t> read_milli(double units, const std::string& path) {
  return milli(units, path);
}
void write(const Resources& from, v1::Resources& to) {
  to.set_cpus(static_cast<double>(from.cpu_milli) / 1000);
  to.set_memory_bytes(from.memory_bytes);
  to.set_gpus(from.gpus);
  to.set_disk_bytes(from.disk_bytes);
  to.set_object_store_bytes(from.object_store_bytes);
  for (const auto& [name, amount] : from.custom_milli)
    (*to.mutable_custom())[name] = static_cast<double>(amount) / 1000;
}

Result<Resources> read(const v1::Resources& from, const std::string& path) {
  Resources to;
  to.cpu_milli = TRY(milli(from.cpus(), path + ".cpus"));
  TRY_VOID(not_negative(from.memory_bytes(), path + ".memoryBytes"));
  TRY_VOID(not_negative(from.gpus(), path + ".gpus"));
  TRY_VOID(not_negative(from.disk_bytes(), path + ".diskBytes"));
  TRY_VOID(not_negative(from.object_store_bytes(), path + ".objectStoreBytes"));
  to.memory_bytes = from.memory_bytes();
  to.gpus = from.gpus();
  to.disk_bytes = from.disk_bytes();
  to.object_store_bytes = from.object_store_bytes();
  for (const auto& [name, amount] : from.custom()) to.custom_milli[name] = TRY(milli(amount, path + ".custom." + name));
  return to;
}

void write(const ClusterSpec& from, v1::ClusterSpec& to) {
  to.set_name(from.name);
  to.set_image(from.image);
  to.set_runtime(std::string(text(from.runtime)));
  to.set_arch(from.arch);
  to.set_pool(from.pool);
  write(from.head, *to.mutable_head());
  for (const auto& group : from.groups) {
    auto& out = *to.add_groups();
    out.set_name(group.name);
    out.set_min(group.min);
    out.set_max(group.max);
    write(group.request, *out.mutable_request());
    texts(group.setup_commands, *out.mutable_setup_commands());
    texts(group.env, *out.mutable_env());
  }
  texts(from.head_setup_commands, *to.mutable_head_setup_commands());
  texts(from.setup_commands, *to.mutable_setup_commands());
  texts(from.env, *to.mutable_env());
  for (const auto& file : from.files) {
    auto& out = *to.add_files();
    out.set_path(file.path);
    out.set_blob(file.blob);
  }
  to.set_spares(from.spares);
  to.set_egress(from.egress);
  to.set_shm_bytes(from.shm_bytes);
  to.set_nofile(from.nofile);
  to.set_tier(from.tier);
  to.set_priority(from.priority);
  to.set_idle_timeout_seconds(from.idle_timeout.count() / 1000);
  to.set_max_lifetime_seconds(from.max_lifetime.count() / 1000);
  to.set_max_workers(from.max_workers);
  to.set_policy(std::string(text(from.policy)));
  to.set_min_trust(std::string(text(from.min_trust)));
  to.set_max_price_micros(from.max_price);
  to.set_budget_micros(from.budget);
  to.set_currency(from.currency);
  to.set_may_end_early(from.may_end_early);
  to.set_pair_kbps(from.pair_kbps);
  to.set_replace_slow(from.replace_slow);
}

Result<ClusterSpec> read(const v1::ClusterSpec& from, const std::string& path) {
  ClusterSpec to;
  const ClusterSpec defaults;
  const std::string at = path.empty() ? "" : path + ".";
  to.name = from.name();
  to.image = from.image();
  if (!from.runtime().empty()) {
    const auto runtime = parse_runtime(from.runtime());
    if (!runtime) return error(Code::InvalidArgument, at + "runtime must be docker or venv", at + "runtime");
    to.runtime = *runtime;
  }
  if (!from.arch().empty()) to.arch = from.arch();
  if (!from.pool().empty()) to.pool = from.pool();
  to.head = TRY(read(from.head(), at + "head"));
  for (int i = 0; i < from.groups_size(); ++i)
    to.groups.push_back(TRY(read(from.groups(i), fmt::format("{}groups[{}]", at, i))));
  to.head_setup_commands = texts(from.head_setup_commands());
  to.setup_commands = texts(from.setup_commands());
  to.env = texts(from.env());
  for (const auto& file : from.files()) to.files.push_back({file.path(), file.blob()});
  to.spares = from.spares();
  to.egress = from.egress();
  TRY_VOID(not_negative(from.shm_bytes(), at + "shmBytes"));
  TRY_VOID(not_negative(from.nofile(), at + "nofile"));
  to.shm_bytes = from.shm_bytes();
  if (from.nofile() != 0) to.nofile = from.nofile();
  if (from.tier() > 255) return error(Code::InvalidArgument, at + "tier must be between 0 and 255", at + "tier");
  to.tier = from.has_tier() ? static_cast<std::uint8_t>(from.tier()) : defaults.tier;
  to.priority = from.priority();
  to.idle_timeout = TRY(read_seconds(from.idle_timeout_seconds(), at + "idleTimeoutSeconds"));
  to.max_lifetime = TRY(read_seconds(from.max_lifetime_seconds(), at + "maxLifetimeSeconds"));
  to.max_workers = from.max_workers();
  if (!from.policy().empty()) {
    const auto policy = parse_policy(from.policy());
    if (!policy)
      return error(Code::InvalidArgument, at + "policy must be balanced, pack, spread, cheap or fast-network",
                   at + "policy");
    to.policy = *policy;
  }
  if (!from.min_trust().empty()) {
    const auto tier = parse_tier(from.min_trust());
    if (!tier)
      return error(Code::InvalidArgument, at + "minTrust must be community, verified or platform", at + "minTrust");
    to.min_trust = *tier;
  }
  TRY_VOID(not_negative(from.max_price_micros(), at + "maxPriceMicros"));
  TRY_VOID(not_negative(from.budget_micros(), at + "budgetMicros"));
  to.max_price = from.max_price_micros();
  to.budget = from.budget_micros();
  to.currency = from.currency();
  if (to.currency.empty() && (to.max_price > 0 || to.budget > 0)) to.currency = kPlainCurrency;
  to.may_end_early = from.may_end_early();
  TRY_VOID(not_negative(from.pair_kbps(), at + "pairKbps"));
  to.pair_kbps = from.pair_kbps();
  to.replace_slow = from.replace_slow();
  return to;
}

void write(const Offer& from, const std::vector<std::string>& tenants, v1::Offer& to) {
  to.set_currency(from.currency);
  to.set_price_micros(from.price);
  to.set_gpu_price_micros(from.gpu_price);
  to.set_floor_micros(from.floor);
  to.set_gpu_floor_micros(from.gpu_floor);
  texts(tenants, *to.mutable_tenants());
  texts(from.images, *to.mutable_images());
  to.set_max_lease_seconds(from.longest.count() / 1000);
  to.set_hours(from.schedule);
  to.set_timezone(from.zone);
  to.set_notice_seconds(from.notice.count() / 1000);
  to.set_version(from.version);
}

Result<OfferText> read(const v1::Offer& from, const std::string& path) {
  OfferText to;
  Offer& offer = to.offer;
  offer.currency = from.currency().empty() ? std::string(kPlainCurrency) : from.currency();
  offer.price = from.price_micros();
  offer.gpu_price = from.gpu_price_micros();
  offer.floor = from.has_floor_micros() ? from.floor_micros() : offer.price;
  offer.gpu_floor = from.has_gpu_floor_micros() ? from.gpu_floor_micros() : offer.gpu_price;
  to.tenants = texts(from.tenants());
  offer.images = texts(from.images());
  offer.longest = TRY(read_seconds(from.max_lease_seconds(), path + ".maxLeaseSeconds"));
  offer.notice = TRY(read_seconds(from.notice_seconds(), path + ".noticeSeconds"));
  offer.schedule = from.hours();
  offer.zone = from.timezone();
  if (!offer.schedule.empty()) offer.hours = TRY(parse_schedule(offer.schedule, path + ".hours"));
  if (offer.schedule.empty() && !offer.zone.empty())
    return error(Code::InvalidArgument, path + ".timezone goes with hours only", path + ".timezone");
  return to;
}

void write(const Device& from, v1::Device& to) {
  to.set_uuid(from.uuid);
  to.set_model(from.model);
  to.set_memory_bytes(from.memory_bytes);
  to.set_sharing(std::string(text(from.sharing)));
  if (from.sharing != GpuSharing::Mig) return;
  to.set_part(static_cast<double>(from.part_milli) / kGpuMilli);
  to.set_profile(from.profile);
}

Result<Device> read(const v1::Device& from, const std::string& path) {
  Device to{from.uuid(), from.model(), from.memory_bytes()};
  if (!from.sharing().empty()) {
    const auto sharing = parse_gpu_sharing(from.sharing());
    if (!sharing)
      return error(Code::InvalidArgument, path + ".sharing must be exclusive, shared or mig", path + ".sharing");
    to.sharing = *sharing;
  }
  if (to.sharing != GpuSharing::Mig) return to;
  const std::int64_t part = TRY(milli(from.part(), path + ".part"));
  to.part_milli = static_cast<std::int32_t>(std::min<std::int64_t>(part, kGpuMilli + 1));  // validation says the rest
  to.profile = from.profile();
  return to;
}

void write(const NodeFacts& from, v1::NodeFacts& to) {
  to.set_hostname(from.hostname);
  to.set_arch(from.arch);
  to.set_os(from.os);
  to.set_kernel(from.kernel);
  to.set_agent_version(from.agent_version);
  to.set_boot_id(from.boot_id);
  to.set_region(from.region);
  write(from.capacity, *to.mutable_capacity());
  for (const auto& device : from.devices) write(device, *to.add_devices());
  for (const RuntimeKind runtime : from.runtimes) to.add_runtimes(std::string(text(runtime)));
  to.set_egress_allowed(from.egress_allowed);
  texts(from.labels, *to.mutable_labels());
}

Result<NodeFacts> read(const v1::NodeFacts& from, const std::string& path) {
  NodeFacts to;
  to.hostname = from.hostname();
  to.arch = from.arch();
  to.os = from.os();
  to.kernel = from.kernel();
  to.agent_version = from.agent_version();
  to.boot_id = from.boot_id();
  to.region = from.region();
  to.capacity = TRY(read(from.capacity(), path + ".capacity"));
  for (int i = 0; i < from.devices_size(); ++i)
    to.devices.push_back(TRY(read(from.devices(i), fmt::format("{}.devices[{}]", path, i))));
  for (int i = 0; i < from.runtimes_size(); ++i) {
    const auto runtime = parse_runtime(from.runtimes(i));
    const std::string at = fmt::format("{}.runtimes[{}]", path, i);
    if (!runtime) return error(Code::InvalidArgument, at + " must be docker or venv", at);
    to.runtimes.push_back(*runtime);
  }
  to.egress_allowed = from.egress_allowed();
  to.labels = texts(from.labels());
  return to;
}

}  // namespace muster::wire
