#include "host/grants.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "base/log.h"
#include "crypto/file.h"
#include "host/facts.h"
#include "host/json.h"
#include "host/nvml.h"
#include "host/privd_verbs.h"

namespace muster::host {
namespace fs = std::filesystem;
namespace {

constexpr std::size_t kImagesMax = 256, kNamesPerImage = 8;
constexpr std::int64_t kCpuLeast = 100;

std::string images_file(const Layout& layout) {
  return layout.root + "/allowed_images.json";
}

std::string read_file(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

std::int64_t lent(std::int64_t all, std::int64_t reserve, std::int64_t cap) {
  const std::int64_t rest = std::max<std::int64_t>(0, all - reserve);
  return cap > 0 ? std::min(cap, rest) : rest;
}

}  // namespace

Machine read_machine() {
  Machine out;
  out.cpu_milli = static_cast<std::int64_t>(std::max(1L, sysconf(_SC_NPROCESSORS_ONLN))) * 1000;
  out.memory_bytes = static_cast<std::int64_t>(memory_info("MemTotal:"));
  for (auto& each : Nvml::instance().lendable()) {
    const std::string uuid = each.device.uuid;
    out.gpus.emplace(uuid, std::move(each));
  }
  return out;
}

Grants::Grants(Layout layout) : layout_(std::move(layout)) {
  std::error_code failure;
  for (const auto& entry : fs::directory_iterator(layout_.leases(), failure)) {
    const std::string lease = entry.path().filename();
    if (!valid_lease(lease) || grants_.size() >= 256) continue;
    const auto text = parse_object(read_file(file(lease)));
    if (!text.ok()) continue;
    Fields f(*text);
    Grant grant;
    grant.cpu_milli = f.integer("cpu_milli", 0, 10'000'000);
    grant.memory_bytes = f.integer("memory_bytes", 0, 1LL << 50);
    grant.devices = f.texts("devices", 64, 96);
    grant.gpu_share_milli = f.integer_or("gpu_share_milli", 0, kGpuMilli - 1, 0);
    if (f.finish_lenient("grant").ok()) grants_[lease] = std::move(grant);
  }
  load_images();
}

Status Grants::book(LaunchSpec& spec, const Policy& policy, const Machine& machine) {
  const std::lock_guard lock(mutex_);
  Grant others;
  std::map<std::string, std::int64_t> taken;  // thousandths of a GPU
  std::size_t leases = 0;
  for (const auto& [lease, grant] : grants_) {
    if (lease == spec.lease) continue;
    ++leases;
    others.cpu_milli += grant.cpu_milli;
    others.memory_bytes += grant.memory_bytes;
    for (const auto& uuid : grant.devices)
      taken[uuid] += grant.gpu_share_milli > 0 ? grant.gpu_share_milli : std::int64_t{kGpuMilli};
  }
  if (static_cast<std::int64_t>(leases) >= policy.max_leases)
    return error(Code::PermissionDenied,
                 fmt::format("the owner's policy allows {} leases at a time", policy.max_leases), "owner.max_leases");
  const std::set<std::string> wanted(spec.devices.begin(), spec.devices.end());
  if (wanted.size() != spec.devices.size()) return error(Code::InvalidArgument, "a GPU is named twice", "gpu.twice");
  std::set<std::string> used = wanted;
  for (const auto& [uuid, milli] : taken) used.insert(uuid);
  if (policy.max_gpus >= 0 && static_cast<std::int64_t>(used.size()) > policy.max_gpus)
    return error(Code::PermissionDenied, fmt::format("the owner's policy allows {} GPUs", policy.max_gpus),
                 "owner.max_gpus");
  for (const auto& uuid : wanted) {
    const auto here = machine.gpus.find(uuid);
    const bool instance = here != machine.gpus.end() && here->second.device.sharing == GpuSharing::Mig;
    if (!gpu_allowed(policy, uuid) && !(instance && gpu_allowed(policy, here->second.gpu)))
      return error(Code::PermissionDenied, "the owner's policy does not lend GPU " + uuid, "owner.gpu");
    const bool share = spec.gpu_share_milli > 0 && !instance;
    if (share && !policy.gpu_sharing)
      return error(Code::PermissionDenied, "the owner's policy lends GPU " + uuid + " whole only", "owner.gpu_sharing");
    const auto others_have = taken.find(uuid);
    if (others_have != taken.end() && (!share || others_have->second + spec.gpu_share_milli > kGpuMilli))
      return error(Code::FailedPrecondition,
                   share ? fmt::format("of GPU {} {} of {} thousandths are in use by other leases, {} are asked for",
                                       uuid, others_have->second, kGpuMilli, spec.gpu_share_milli)
                         : "GPU " + uuid + " is in use by another lease",
                   "gpu.taken");
    if (here == machine.gpus.end())
      return error(Code::FailedPrecondition, "GPU " + uuid + " is not on this machine now", "gpu.missing");
    if (spec.gpu_share_milli == 0) continue;
    const std::int64_t memory = here->second.device.memory_bytes;
    spec.gpu_memory_bytes = instance ? memory : memory * spec.gpu_share_milli / kGpuMilli;
  }
  const std::int64_t cpu = lent(machine.cpu_milli, policy.reserve_cpu_milli, policy.max_cpu_milli) - others.cpu_milli;
  if (cpu < kCpuLeast)
    return error(Code::PermissionDenied, "all CPUs that the owner lends are in use by other leases", "owner.max_cpu");
  const std::int64_t memory =
      lent(machine.memory_bytes, policy.reserve_memory_bytes, policy.max_memory_bytes) - others.memory_bytes;
  if (memory <= 0 || spec.memory_bytes > memory)
    return error(Code::PermissionDenied,
                 fmt::format("the lease asks for {} MiB of memory, {} MiB are left of what the owner lends",
                             spec.memory_bytes >> 20, std::max<std::int64_t>(0, memory) >> 20),
                 "owner.max_memory");
  spec.cpu_milli = spec.cpu_milli == 0 ? cpu : std::min(spec.cpu_milli, cpu);
  if (spec.memory_bytes == 0) spec.memory_bytes = memory;
  const Grant grant{spec.cpu_milli, spec.memory_bytes, spec.devices, spec.gpu_share_milli, read_clocks().lease};
  grants_[spec.lease] = grant;
  store(spec.lease, grant);
  return {};
}

void Grants::store(const std::string& lease, const Grant& grant) {
  json::array devices;
  for (const auto& device : grant.devices) devices.emplace_back(device);
  mkdir(layout_.leases().c_str(), 0711);
  mkdir(layout_.lease(lease).c_str(), 0711);
  json::object out{{"cpu_milli", grant.cpu_milli}, {"memory_bytes", grant.memory_bytes}, {"devices", devices}};
  if (grant.gpu_share_milli > 0) out["gpu_share_milli"] = grant.gpu_share_milli;
  const Status written = crypto::write_secret_file(file(lease), as_bytes(to_text(out)));
  if (!written.ok()) log_warn("privd", "{}", written.error().message);
}

void Grants::release(const std::string& lease) {
  const std::lock_guard lock(mutex_);
  grants_.erase(lease);
  unlink(file(lease).c_str());
}

void Grants::release_if_older(const std::string& lease, Millis age) {
  const std::lock_guard lock(mutex_);
  const auto found = grants_.find(lease);
  if (found == grants_.end() || read_clocks().lease - found->second.booked <= age) return;
  grants_.erase(found);
  unlink(file(lease).c_str());
}

std::set<std::string> Grants::gpus() const {
  const std::lock_guard lock(mutex_);
  std::set<std::string> out;
  for (const auto& [lease, grant] : grants_) out.insert(grant.devices.begin(), grant.devices.end());
  return out;
}

std::map<std::string, Grant> Grants::all() const {
  const std::lock_guard lock(mutex_);
  return grants_;
}

void Grants::load_images() {
  const auto text = parse_object(read_file(images_file(layout_)));
  if (!text.ok()) return;
  for (const auto& member : *text) {
    const auto* names = member.value().if_array();
    if (names == nullptr || images_.size() >= kImagesMax) continue;
    auto& known = images_[std::string(member.key())];
    for (const auto& name : *names) {
      if (name.is_string() && known.size() < kNamesPerImage) known.emplace_back(name.get_string());
    }
  }
}

void Grants::allow_image(const std::string& digest, const std::string& reference) {
  const std::lock_guard lock(mutex_);
  if (images_.size() >= kImagesMax && !images_.contains(digest)) images_.erase(images_.begin());
  auto& names = images_[digest];
  if (std::find(names.begin(), names.end(), reference) != names.end()) return;
  if (names.size() >= kNamesPerImage) names.erase(names.begin());
  names.push_back(reference);
  json::object out;
  for (const auto& [known, references] : images_) {
    json::array list;
    for (const auto& each : references) list.emplace_back(each);
    out[known] = list;
  }
  const Status written = crypto::write_secret_file(images_file(layout_), as_bytes(to_text(out)));
  if (!written.ok()) log_warn("privd", "{}", written.error().message);
}

bool Grants::pulled(const std::string& digest) const {
  const std::lock_guard lock(mutex_);
  return images_.contains(digest);
}

Status Grants::image_allowed(const std::string& digest, const Policy& policy) const {
  const std::lock_guard lock(mutex_);
  const auto found = images_.find(digest);
  if (found != images_.end() && !image_denied(policy, digest) &&
      std::any_of(found->second.begin(), found->second.end(),
                  [&](const std::string& name) { return host::image_allowed(policy, name); })) {
    return {};
  }
  return error(Code::PermissionDenied,
               found == images_.end() ? "this image was not pulled for a lease; only images that were are started"
                                      : "the owner's policy does not allow this image",
               "owner.image");
}

}  // namespace muster::host
