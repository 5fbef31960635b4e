#include "host/facts.h"

#include <sys/statvfs.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <sstream>
#include <thread>

#include "base/log.h"
#include "host/nvml.h"
#include "host/policy.h"

namespace muster::host {
namespace {

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

std::uint64_t meminfo(std::string_view key) {
  std::ifstream file("/proc/meminfo");
  std::string line;
  while (std::getline(file, line)) {
    if (line.starts_with(key)) return std::strtoull(line.c_str() + key.size(), nullptr, 10) * 1024;
  }
  return 0;
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

}  // namespace

std::string host_name() {
  char name[256] = {};
  gethostname(name, sizeof name - 1);
  return name;
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
  facts.agent_version = kAgentVersion;
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
  const auto whole_memory = static_cast<std::int64_t>(meminfo("MemTotal:"));
  capacity.cpu_milli = std::max<std::int64_t>(0, whole_cpu - policy->reserve_cpu_milli);
  if (policy->max_cpu_milli > 0) capacity.cpu_milli = std::min(capacity.cpu_milli, policy->max_cpu_milli);
  capacity.memory_bytes = std::max<std::int64_t>(0, whole_memory - policy->reserve_memory_bytes);
  if (policy->max_memory_bytes > 0) capacity.memory_bytes = std::min(capacity.memory_bytes, policy->max_memory_bytes);
  capacity.disk_bytes =
      std::max<std::int64_t>(0, static_cast<std::int64_t>(disk_free(layout.root)) - policy->reserve_disk_bytes);
  capacity.object_store_bytes = capacity.memory_bytes * 3 / 10;
  facts.egress_allowed = policy->egress_allowed;
  facts.runtimes = {RuntimeKind::Docker};
  for (const auto& gpu : Nvml::instance().devices()) {
    if (policy->max_gpus >= 0 && static_cast<std::int64_t>(facts.devices.size()) >= policy->max_gpus) break;
    facts.devices.push_back(gpu);
  }
  capacity.gpus = static_cast<std::int64_t>(facts.devices.size());
  return facts;
}

session::Telemetry Sampler::sample(WallTime now) {
  session::Telemetry out;
  out.at = now;
  std::ifstream stat("/proc/stat");
  std::string cpu;
  std::uint64_t user = 0, nice = 0, system = 0, idle = 0, iowait = 0, irq = 0, softirq = 0;
  stat >> cpu >> user >> nice >> system >> idle >> iowait >> irq >> softirq;
  const std::uint64_t busy = user + nice + system + irq + softirq;
  const double seconds = static_cast<double>((now - last_).count()) / 1000.0;
  const bool first = last_ == WallTime{} || seconds <= 0 || seconds > 3600;
  if (!first && busy >= busy_ticks_) {
    out.cpu_milli = static_cast<std::uint64_t>(static_cast<double>(busy - busy_ticks_) * 1000.0 /
                                               static_cast<double>(sysconf(_SC_CLK_TCK)) / seconds);
  }
  out.memory_total_bytes = meminfo("MemTotal:");
  out.memory_used_bytes = out.memory_total_bytes - std::min(out.memory_total_bytes, meminfo("MemAvailable:"));
  out.disk_free_bytes = disk_free(disk_path_);
  std::ifstream net("/proc/net/dev");
  std::string line;
  std::uint64_t rx = 0, tx = 0;
  while (std::getline(net, line)) {
    const auto colon = line.find(':');
    if (colon == std::string::npos || line.find("lo:") != std::string::npos) continue;
    std::istringstream words(line.substr(colon + 1));
    std::uint64_t in = 0, skip = 0, sent = 0;
    words >> in;
    for (int i = 0; i < 7; ++i) words >> skip;
    words >> sent;
    rx += in;
    tx += sent;
  }
  if (!first && rx >= rx_ && tx >= tx_) {
    out.net_rx_bytes_s = static_cast<std::uint64_t>(static_cast<double>(rx - rx_) / seconds);
    out.net_tx_bytes_s = static_cast<std::uint64_t>(static_cast<double>(tx - tx_) / seconds);
  }
  busy_ticks_ = busy;
  rx_ = rx;
  tx_ = tx;
  last_ = now;
  out.gpus = Nvml::instance().samples();
  return out;
}

}  // namespace muster::host
