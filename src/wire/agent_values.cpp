#include "wire/agent_values.h"

#include "model/image_policy.h"

namespace muster::wire {

void Check::fail(const char* field, const std::string& why) {
  if (!error_) error_ = error(Code::InvalidArgument, "the frame is refused: " + std::string(field) + " " + why, field);
}

std::string Check::text(const std::string& value, std::size_t max, const char* field) {
  if (value.size() > max) {
    fail(field, "is longer than " + std::to_string(max) + " bytes");
    return {};
  }
  return value;  // UTF-8: checked by the protobuf parser for every `string`
}

Bytes Check::bytes(const std::string& value, std::size_t max, const char* field) {
  if (value.size() > max) {
    fail(field, "is longer than " + std::to_string(max) + " bytes");
    return {};
  }
  return to_bytes(value);
}

std::uint64_t Check::below(std::uint64_t value, std::uint64_t max, const char* field) {
  if (value <= max) return value;
  fail(field, "is above " + std::to_string(max));
  return 0;
}

std::int64_t Check::between(std::int64_t value, std::int64_t low, std::int64_t high, const char* field) {
  if (value >= low && value <= high) return value;
  fail(field, "is outside " + std::to_string(low) + ".." + std::to_string(high));
  return low;
}

std::string utf8(const std::string& text) {
  if (valid_utf8(text)) return text;
  std::string out;
  out.reserve(text.size());
  for (std::size_t i = 0; i < text.size();) {
    const auto lead = static_cast<unsigned char>(text[i]);
    const std::size_t length = lead < 0x80 ? 1 : lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
    if (i + length <= text.size() && valid_utf8(std::string_view(text).substr(i, length))) {
      out.append(text, i, length);
      i += length;
    } else {
      out.push_back('?');
      ++i;
    }
  }
  return out;
}

namespace {

template <typename Map>
void put_map(const std::map<std::string, std::string>& values, Map& out) {
  for (const auto& [key, value] : values) out[utf8(key)] = utf8(value);
}
template <typename List>
void put_texts(const std::vector<std::string>& values, List& out) {
  for (const auto& value : values) *out.Add() = utf8(value);
}

}  // namespace

void put(const Device& value, pb::Device& out) {
  out.set_uuid(utf8(value.uuid));
  out.set_model(utf8(value.model));
  out.set_memory_bytes(value.memory_bytes);
  out.set_sharing(static_cast<std::uint32_t>(value.sharing));
  out.set_part_milli(value.part_milli);
  out.set_profile(utf8(value.profile));
}
void get(const pb::Device& in, Device& value, Check& check) {
  value.uuid = check.text(in.uuid(), kNameMax, "devices.uuid");
  value.model = check.text(in.model(), kNameMax, "devices.model");
  value.memory_bytes = check.amount(in.memory_bytes(), "devices.memory_bytes");
  value.sharing = check.choice(in.sharing(), GpuSharing::Exclusive, GpuSharing::Mig, "devices.sharing");
  const std::int64_t part = check.between(in.part_milli(), 0, kGpuMilli, "devices.part_milli");
  value.part_milli = part == 0 ? kGpuMilli : static_cast<std::int32_t>(part);  // older agents do not say
  value.profile = check.text(in.profile(), kNameMax, "devices.profile");
}

void put(const ImageProbe& value, pb::ImageProbe& out) {
  out.set_digest(utf8(value.digest));
  out.set_ray_version(utf8(value.ray_version));
  out.set_python_version(utf8(value.python_version));
  out.set_token_auth(value.token_auth);
  out.set_rocksdb(value.rocksdb);
}
void get(const pb::ImageProbe& in, ImageProbe& value, Check& check) {
  value.digest = check.text(in.digest(), kNameMax, "probe.digest");
  value.ray_version = check.text(in.ray_version(), kNameMax, "probe.ray_version");
  value.python_version = check.text(in.python_version(), kNameMax, "probe.python_version");
  value.token_auth = in.token_auth();
  value.rocksdb = in.rocksdb();
}

void put(const FileMount& value, pb::FileMount& out) {
  out.set_path(utf8(value.path));
  out.set_blob(utf8(value.blob));
}
void get(const pb::FileMount& in, FileMount& value, Check& check) {
  value.path = check.text(in.path(), kReasonMax, "files.path");
  value.blob = check.text(in.blob(), kNameMax, "files.blob");
}

void put(const RosterEntry& value, pb::RosterEntry& out) {
  out.set_slot(value.slot.value);
  out.set_role(static_cast<std::uint32_t>(value.role));
  out.set_address(value.address);
  out.set_node(value.node.value);
  out.set_overlay_key(raw(value.overlay_key));
  out.set_overlay_signature(raw(value.overlay_signature));
  out.set_device_key(raw(value.device_key));
  put(value.epoch, *out.mutable_epoch());
  put_texts(value.lan, *out.mutable_lan());
}
void get(const pb::RosterEntry& in, RosterEntry& value, Check& check) {
  value.slot = {in.slot()};
  value.role = check.choice(in.role(), SlotRole::Head, SlotRole::Spare, "roster.role");
  value.address = in.address();
  value.node = {in.node()};
  value.overlay_key = check.bytes(in.overlay_key(), 64, "roster.overlay_key");
  value.overlay_signature = check.bytes(in.overlay_signature(), 128, "roster.overlay_signature");
  value.device_key = check.bytes(in.device_key(), 64, "roster.device_key");
  get(in.epoch(), value.epoch, check);
  value.lan = check.texts(in.lan(), 64, kNameMax, "roster.lan");
}

void put(const JobOrder& value, pb::JobOrder& out) {
  out.set_job(value.job.value);
  out.set_attempt(value.attempt);
  out.set_entrypoint(utf8(value.entrypoint));
  out.set_runtime_env_json(utf8(value.runtime_env_json));
  out.set_working_dir_blob(utf8(value.working_dir_blob));
  out.set_stop(value.stop);
  put_map(value.metadata, *out.mutable_metadata());
  out.set_driver_json(utf8(value.driver_json));
}
void get(const pb::JobOrder& in, JobOrder& value, Check& check) {
  value.job = {in.job()};
  value.attempt = in.attempt();
  value.entrypoint = check.text(in.entrypoint(), kTextMax, "jobs.entrypoint");
  value.runtime_env_json = check.text(in.runtime_env_json(), 4 * kTextMax, "jobs.runtime_env_json");
  value.working_dir_blob = check.text(in.working_dir_blob(), kNameMax, "jobs.working_dir_blob");
  value.stop = in.stop();
  value.metadata = check.text_map(in.metadata(), kTextMax, "jobs.metadata");
  value.driver_json = check.text(in.driver_json(), kTextMax, "jobs.driver_json");
}

void put(const RayNodeReport& value, pb::RayNodeReport& out) {
  out.set_ray_node_id(utf8(value.ray_node_id));
  out.set_address(value.address);
  out.set_alive(value.alive);
  out.set_idle_ms(value.idle.count());
  put(value.total, *out.mutable_total());
  put(value.free, *out.mutable_free());
}
void get(const pb::RayNodeReport& in, RayNodeReport& value, Check& check) {
  value.ray_node_id = check.text(in.ray_node_id(), kNameMax, "nodes.ray_node_id");
  value.address = in.address();
  value.alive = in.alive();
  value.idle = check.millis(in.idle_ms(), "nodes.idle_ms");
  get(in.total(), value.total, check);
  get(in.free(), value.free, check);
}

void put(const RayDemand& value, pb::RayDemand& out) {
  put(value.bundle, *out.mutable_bundle());
  out.set_count(value.count);
  out.set_strict_spread(value.strict_spread);
  out.set_group(value.group);
  out.set_standing(value.standing);
}
void get(const pb::RayDemand& in, RayDemand& value, Check& check) {
  get(in.bundle(), value.bundle, check);
  value.count = in.count();
  value.strict_spread = in.strict_spread();
  value.group = in.group();
  value.standing = in.standing();
}

void put(const Epoch& value, pb::Epoch& out) {
  out.set_incarnation(value.incarnation);
  out.set_leader(value.leader);
  out.set_counter(value.counter);
}
void get(const pb::Epoch& in, Epoch& value, Check&) {
  value = {in.incarnation(), in.leader(), in.counter()};
}

void put(const Resources& value, pb::Resources& out) {
  out.set_cpu_milli(value.cpu_milli);
  out.set_memory_bytes(value.memory_bytes);
  out.set_gpus(value.gpus);
  out.set_disk_bytes(value.disk_bytes);
  out.set_object_store_bytes(value.object_store_bytes);
  for (const auto& [name, amount] : value.custom_milli) (*out.mutable_custom_milli())[utf8(name)] = amount;
}
void get(const pb::Resources& in, Resources& value, Check& check) {
  value.cpu_milli = check.amount(in.cpu_milli(), "resources.cpu_milli");
  value.memory_bytes = check.amount(in.memory_bytes(), "resources.memory_bytes");
  value.gpus = check.amount(in.gpus(), "resources.gpus");
  value.disk_bytes = check.amount(in.disk_bytes(), "resources.disk_bytes");
  value.object_store_bytes = check.amount(in.object_store_bytes(), "resources.object_store_bytes");
  if (!check.count(in.custom_milli(), 256, "resources.custom_milli")) return;
  for (const auto& [name, amount] : in.custom_milli()) {
    value.custom_milli.emplace(check.text(name, kNameMax, "resources.custom_milli"),
                               check.amount(amount, "resources.custom_milli"));
  }
}

void put(const NodeFacts& value, pb::NodeFacts& out) {
  out.set_hostname(utf8(value.hostname));
  out.set_arch(utf8(value.arch));
  out.set_os(utf8(value.os));
  out.set_kernel(utf8(value.kernel));
  out.set_agent_version(utf8(value.agent_version));
  out.set_boot_id(utf8(value.boot_id));
  out.set_region(utf8(value.region));
  put(value.capacity, *out.mutable_capacity());
  put_list(value.devices, *out.mutable_devices());
  for (RuntimeKind kind : value.runtimes) out.add_runtimes(static_cast<std::uint32_t>(kind));
  put_texts(value.images, *out.mutable_images());
  put_texts(value.lan, *out.mutable_lan());
  out.set_egress_allowed(value.egress_allowed);
  put_map(value.labels, *out.mutable_labels());
  for (const auto& [image, bytes] : value.image_bytes) (*out.mutable_image_bytes())[utf8(image)] = bytes;
}
void get(const pb::NodeFacts& in, NodeFacts& value, Check& check) {
  value.hostname = check.text(in.hostname(), kNameMax, "facts.hostname");
  value.arch = check.text(in.arch(), kNameMax, "facts.arch");
  value.os = check.text(in.os(), kNameMax, "facts.os");
  value.kernel = check.text(in.kernel(), kNameMax, "facts.kernel");
  value.agent_version = check.text(in.agent_version(), kNameMax, "facts.agent_version");
  value.boot_id = check.text(in.boot_id(), kNameMax, "facts.boot_id");
  value.region = check.text(in.region(), kNameMax, "facts.region");
  get(in.capacity(), value.capacity, check);
  get_list(in.devices(), value.devices, 256, "facts.devices", check);
  if (!check.count(in.runtimes(), 16, "facts.runtimes")) return;
  for (std::uint32_t kind : in.runtimes()) {
    value.runtimes.push_back(check.choice(kind, RuntimeKind::Docker, RuntimeKind::Venv, "facts.runtimes"));
  }
  value.images = check.texts(in.images(), kListMax, kNameMax, "facts.images");
  value.lan = check.texts(in.lan(), 64, kNameMax, "facts.lan");
  value.egress_allowed = in.egress_allowed();
  value.labels = check.text_map(in.labels(), kNameMax, "facts.labels");
  for (const auto& [image, bytes] : in.image_bytes())
    value.image_bytes.emplace(check.text(image, kNameMax, "facts.image_bytes"),
                              check.amount(bytes, "facts.image_bytes"));
}

void put(const ImagePolicy& value, pb::ImagePolicy& out) {
  put_texts(value.allow, *out.mutable_allow());
  put_texts(value.deny, *out.mutable_deny());
  out.set_require_digest(value.require_digest);
  put_texts(value.keys, *out.mutable_keys());
}
void get(const pb::ImagePolicy& in, ImagePolicy& value, Check& check) {
  const int patterns = static_cast<int>(kImagePatternsMax), keys = static_cast<int>(kImageKeysMax);
  value.allow = check.texts(in.allow(), patterns, kImagePatternBytesMax, "image_policies.allow");
  value.deny = check.texts(in.deny(), patterns, kImagePatternBytesMax, "image_policies.deny");
  value.require_digest = in.require_digest();
  value.keys = check.texts(in.keys(), keys, kImageKeyBytesMax, "image_policies.keys");
}

void put(const Assignment& value, pb::Assignment& out) {
  out.set_lease(value.lease.value);
  put(value.epoch, *out.mutable_epoch());
  out.set_cluster(value.cluster.value);
  out.set_slot(value.slot.value);
  out.set_role(static_cast<std::uint32_t>(value.role));
  out.set_want(static_cast<std::uint32_t>(value.want));
  out.set_cluster_name(utf8(value.cluster_name));
  out.set_group(utf8(value.group));
  out.set_image(utf8(value.image));
  out.set_runtime(static_cast<std::uint32_t>(value.runtime));
  put(value.resources, *out.mutable_resources());
  put_texts(value.devices, *out.mutable_devices());
  out.set_address(value.address);
  out.set_head_address(value.head_address);
  out.set_prefix_bits(value.prefix_bits);
  out.set_roster_epoch(value.roster_epoch);
  put_list(value.roster, *out.mutable_roster());
  put_texts(value.setup_commands, *out.mutable_setup_commands());
  put_map(value.env, *out.mutable_env());
  put_map(value.ray_labels, *out.mutable_ray_labels());
  put_list(value.files, *out.mutable_files());
  out.set_egress(value.egress);
  out.set_shm_bytes(value.shm_bytes);
  out.set_nofile(value.nofile);
  put_list(value.jobs, *out.mutable_jobs());
  put_texts(value.must_understand, *out.mutable_must_understand());
  put_list(value.image_policies, *out.mutable_image_policies());
  out.set_image_asked(utf8(value.image_asked));
  out.set_gpu_share_milli(value.gpu_share_milli);
}
void get(const pb::Assignment& in, Assignment& value, Check& check) {
  value.lease = {in.lease()};
  get(in.epoch(), value.epoch, check);
  value.cluster = {in.cluster()};
  value.slot = {in.slot()};
  value.role = check.choice(in.role(), SlotRole::Head, SlotRole::Spare, "assignment.role");
  value.want = check.choice(in.want(), LeaseWant::Run, LeaseWant::Stop, "assignment.want");
  value.cluster_name = check.text(in.cluster_name(), kNameMax, "assignment.cluster_name");
  value.group = check.text(in.group(), kNameMax, "assignment.group");
  value.image = check.text(in.image(), kReasonMax, "assignment.image");
  value.runtime = check.choice(in.runtime(), RuntimeKind::Docker, RuntimeKind::Venv, "assignment.runtime");
  get(in.resources(), value.resources, check);
  value.devices = check.texts(in.devices(), 256, kNameMax, "assignment.devices");
  value.gpu_share_milli =
      static_cast<std::int32_t>(check.between(in.gpu_share_milli(), 0, kGpuMilli, "assignment.gpu_share_milli"));
  value.address = in.address();
  value.head_address = in.head_address();
  value.prefix_bits = static_cast<std::uint8_t>(check.below(in.prefix_bits(), 32, "assignment.prefix_bits"));
  value.roster_epoch = in.roster_epoch();
  get_list(in.roster(), value.roster, kRosterMax, "assignment.roster", check);
  value.setup_commands = check.texts(in.setup_commands(), kListMax, kTextMax, "assignment.setup_commands");
  value.env = check.text_map(in.env(), kTextMax, "assignment.env");
  value.ray_labels = check.text_map(in.ray_labels(), kNameMax, "assignment.ray_labels");
  get_list(in.files(), value.files, kListMax, "assignment.files", check);
  value.egress = in.egress();
  value.shm_bytes = check.amount(in.shm_bytes(), "assignment.shm_bytes");
  value.nofile = check.amount(in.nofile(), "assignment.nofile");
  get_list(in.jobs(), value.jobs, kListMax, "assignment.jobs", check);
  value.must_understand = check.texts(in.must_understand(), 256, kNameMax, "assignment.must_understand");
  get_list(in.image_policies(), value.image_policies, 16, "assignment.image_policies", check);
  value.image_asked = check.text(in.image_asked(), kReasonMax, "assignment.image_asked");
}

void put(const ObservedLease& value, pb::ObservedLease& out) {
  out.set_lease(value.lease.value);
  put(value.epoch, *out.mutable_epoch());
  out.set_phase(static_cast<std::uint32_t>(value.phase));
  out.set_reason(utf8(value.reason));
  out.set_overlay_key(raw(value.overlay_key));
  out.set_overlay_signature(raw(value.overlay_signature));
  out.set_roster_epoch(value.roster_epoch);
  put(value.probe, *out.mutable_probe());
  out.set_restarts(value.restarts);
  out.set_ray_node_id(utf8(value.ray_node_id));
  out.set_output(utf8(value.output));
}
void get(const pb::ObservedLease& in, ObservedLease& value, Check& check) {
  value.lease = {in.lease()};
  get(in.epoch(), value.epoch, check);
  value.phase = check.choice(in.phase(), LeasePhase::Pending, LeasePhase::Failed, "leases.phase");
  value.reason = check.text(in.reason(), kReasonMax, "leases.reason");
  value.overlay_key = check.bytes(in.overlay_key(), 64, "leases.overlay_key");
  value.overlay_signature = check.bytes(in.overlay_signature(), 128, "leases.overlay_signature");
  value.roster_epoch = in.roster_epoch();
  get(in.probe(), value.probe, check);
  value.restarts = in.restarts();
  value.ray_node_id = check.text(in.ray_node_id(), kNameMax, "leases.ray_node_id");
  value.output = check.text(in.output(), kOutputMax, "leases.output");
}

void put(const ObservedJob& value, pb::ObservedJob& out) {
  out.set_job(value.job.value);
  out.set_attempt(value.attempt);
  out.set_state(static_cast<std::uint32_t>(value.state));
  out.set_exit_code(value.exit_code);
  out.set_reason(utf8(value.reason));
  out.set_log_bytes(value.log_bytes);
}
void get(const pb::ObservedJob& in, ObservedJob& value, Check& check) {
  value.job = {in.job()};
  value.attempt = in.attempt();
  value.state = check.choice(in.state(), JobState::Queued, JobState::Stopped, "jobs.state");
  value.exit_code = in.exit_code();
  value.reason = check.text(in.reason(), kReasonMax, "jobs.reason");
  value.log_bytes = in.log_bytes();
}

void put(const RayReport& value, pb::RayReport& out) {
  out.set_cluster(value.cluster.value);
  out.set_lease(value.lease.value);
  put_list(value.nodes, *out.mutable_nodes());
  put_list(value.demands, *out.mutable_demands());
}
void get(const pb::RayReport& in, RayReport& value, Check& check) {
  value.cluster = {in.cluster()};
  value.lease = {in.lease()};
  get_list(in.nodes(), value.nodes, kRosterMax, "nodes", check);
  get_list(in.demands(), value.demands, kListMax, "demands", check);
}

}  // namespace muster::wire
