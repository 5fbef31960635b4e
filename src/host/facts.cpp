#include "host/facts.h"

#include <sys/statvfs.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <sstream>
#include <thread>

#include "base/log.h"
#include "base/time.h"
#include "base/version.h"
#include "host/json.h"
#include "host/nft.h"
#include "host/nvml.h"
#include "host/policy.h"
#include "model/node_labels.h"

namespace muster::host {
namespace {

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

std::string os_name() {
  std::ifstream file("/etc/os-release");
  std::string line;
  while (std::getline(file, line)) {
    if (!line.starts_with("PRETTY_NAME=")) continue;
    std::string value = line.substr(12);
    std::erase(value, '"');
    return value.substr(0, 128);
  }
  return "Linux";
}

std::uint64_t disk_free(const std::string& path) {
  struct statvfs info {};
  return statvfs(path.c_str(), &info) == 0 ? static_cast<std::uint64_t>(info.f_bavail) * info.f_frsize : 0;
}

// What is left of the month's volume, in twentieths of it, so that not every transfer makes a new inventory.
std::int64_t month_left(const Policy& policy, const Layout& layout) {
  const std::int64_t most = policy.egress.max_bytes_per_month, step = std::max<std::int64_t>(1, most / 20);
  std::ifstream file(layout.egress_volume());
  std::stringstream text;
  text << file.rdbuf();
  std::int64_t used = 0;
  if (const auto said = parse_object(text.str());
      said.ok() && text_at(*said, {"month"}) == format_utc(read_clocks().wall).substr(0, 7))
    used = std::clamp<std::int64_t>(int_at(*said, {"bytes"}), 0, most);
  return (most - used) / step * step;
}

// The owner's limits on traffic, for whoever places work here; privd, netd and the egress process hold to them anyway.
void add_limits(NodeFacts& facts, const Policy& policy, const Layout& layout) {
  const auto kbps = [](std::int64_t bytes_s) { return std::to_string(std::max<std::int64_t>(1, bytes_s / 125)); };
  if (policy.max_upload_bytes_s > 0) facts.labels[std::string(kUploadLimitLabel)] = kbps(policy.max_upload_bytes_s);
  if (policy.max_download_bytes_s > 0)
    facts.labels[std::string(kDownloadLimitLabel)] = kbps(policy.max_download_bytes_s);
  if (policy.egress_allowed && policy.egress.max_bytes_per_month > 0)
    facts.labels[std::string(kVolumeLeftLabel)] = std::to_string(month_left(policy, layout) >> 30);
}

}  // namespace

std::uint64_t memory_info(std::string_view key) {
  std::ifstream file("/proc/meminfo");
  std::string line;
  while (std::getline(file, line)) {
    if (line.starts_with(key)) return std::strtoull(line.c_str() + key.size(), nullptr, 10) * 1024;
  }
  return 0;
}

std::string host_name() {
  char name[256] = {};
  gethostname(name, sizeof name - 1);
  return name;
}

std::string machine_arch() {
  utsname names{};
  uname(&names);
  return names.machine;
}

std::string boot_id() {
  return first_line("/proc/sys/kernel/random/boot_id");
}

NodeFacts gather_facts(const Layout& layout, const std::map<std::string, std::string>& labels) {
  NodeFacts facts;
  utsname names{};
  uname(&names);
  facts.hostname = host_name();
  facts.arch = names.machine;
  facts.kernel = names.release;
  facts.os = os_name();
  facts.agent_version = kVersion;
  facts.boot_id = boot_id();
  facts.labels = labels;
  if (const auto region = labels.find("region"); region != labels.end()) facts.region = region->second;
  auto policy = load_policy(layout.policy());
  if (!policy.ok()) {
    log_error("agent", "{}", policy.error().message);
    Policy nothing;
    nothing.max_leases = 0;
    policy = nothing;
  }
  Resources& capacity = facts.capacity;
  const auto whole_cpu = static_cast<std::int64_t>(std::max(1L, sysconf(_SC_NPROCESSORS_ONLN))) * 1000;
  const auto whole_memory = static_cast<std::int64_t>(memory_info("MemTotal:"));
  capacity.cpu_milli = std::max<std::int64_t>(0, whole_cpu - policy->reserve_cpu_milli);
  if (policy->max_cpu_milli > 0) capacity.cpu_milli = std::min(capacity.cpu_milli, policy->max_cpu_milli);
  capacity.memory_bytes = std::max<std::int64_t>(0, whole_memory - policy->reserve_memory_bytes);
  if (policy->max_memory_bytes > 0) capacity.memory_bytes = std::min(capacity.memory_bytes, policy->max_memory_bytes);
  capacity.disk_bytes =
      std::max<std::int64_t>(0, static_cast<std::int64_t>(disk_free(layout.root)) - policy->reserve_disk_bytes);
  capacity.object_store_bytes = capacity.memory_bytes * 3 / 10;
  add_limits(facts, *policy, layout);
  facts.egress_allowed = policy->egress_allowed && !nft_program().empty();
  facts.runtimes = {RuntimeKind::Docker};
  Nvml& nvml = Nvml::instance();
  nvml.refresh();
  for (auto& [gpu, parent, index, instance] : nvml.lendable()) {
    const bool mig = gpu.sharing == GpuSharing::Mig;
    if (!gpu_allowed(*policy, gpu.uuid) && !(mig && gpu_allowed(*policy, parent))) continue;
    if (policy->max_gpus >= 0 && static_cast<std::int64_t>(facts.devices.size()) >= policy->max_gpus) break;
    if (!mig && policy->gpu_sharing) gpu.sharing = GpuSharing::Shared;
    facts.devices.push_back(std::move(gpu));
  }
  if (const std::string driver = nvml.driver_version(); !driver.empty()) facts.labels["gpu.driver"] = driver;
  if (const std::string cuda = nvml.cuda_version(); !cuda.empty()) facts.labels["gpu.cuda"] = cuda;
  capacity.gpus = std::count_if(facts.devices.begin(), facts.devices.end(),
                                [](const Device& d) { return d.sharing != GpuSharing::Mig; });
  return facts;
}

}  // namespace muster::host
