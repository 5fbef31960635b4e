#include "host/telemetry.h"

#include <fmt/format.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <sstream>

#include "host/container_use.h"
#include "host/facts.h"
#include "host/nvml.h"

namespace muster::host {
namespace {

constexpr double kGapMax = 3600;  // seconds: after a sleep a rate means nothing
constexpr std::uint64_t kSector = 512;

struct DiskCount {
  std::uint64_t read = 0, written = 0;
};
// Whole disks only: partitions, loops and RAM disks would count twice.
DiskCount disk_count() {
  DiskCount out;
  std::ifstream file("/proc/diskstats");
  std::string line;
  while (std::getline(file, line)) {
    std::istringstream words(line);
    std::uint64_t major = 0, minor = 0, reads = 0, merged = 0, read_sectors = 0, ms = 0, writes = 0, wmerged = 0,
                  written = 0;
    std::string name;
    words >> major >> minor >> name >> reads >> merged >> read_sectors >> ms >> writes >> wmerged >> written;
    const bool digit = !name.empty() && name.back() >= '0' && name.back() <= '9';
    const bool whole =
        name.starts_with("nvme") || name.starts_with("mmcblk") ? name.find('p') == std::string::npos : !digit;
    if (!whole || name.starts_with("loop") || name.starts_with("ram") || name.starts_with("dm-")) continue;
    out.read += read_sectors * kSector;
    out.written += written * kSector;
  }
  return out;
}

}  // namespace

session::Telemetry Sampler::sample(WallTime now) {
  session::Telemetry out;
  out.at = now;
  std::ifstream stat("/proc/stat");
  std::string cpu;
  std::uint64_t user = 0, nice = 0, system = 0, idle = 0, iowait = 0, irq = 0, softirq = 0;
  stat >> cpu >> user >> nice >> system >> idle >> iowait >> irq >> softirq;
  const std::uint64_t busy = user + nice + system + irq + softirq;
  const double seconds = static_cast<double>((now - last_).count()) / 1000.0;
  const bool first = last_ == WallTime{} || seconds <= 0 || seconds > kGapMax;
  const auto rate = [&](std::uint64_t value, std::uint64_t before) {
    return first || value < before ? 0 : static_cast<std::uint64_t>(static_cast<double>(value - before) / seconds);
  };
  const auto per_second = static_cast<std::uint64_t>(sysconf(_SC_CLK_TCK));
  out.cpu_milli = rate(busy * 1000 / per_second, busy_ticks_ * 1000 / per_second);
  out.cpu_peak_milli = out.cpu_milli;
  out.cpu_total_milli = static_cast<std::uint64_t>(std::max(1L, sysconf(_SC_NPROCESSORS_ONLN))) * 1000;
  out.memory_total_bytes = memory_info("MemTotal:");
  out.memory_used_bytes = out.memory_total_bytes - std::min(out.memory_total_bytes, memory_info("MemAvailable:"));
  struct statvfs disk {};
  if (statvfs(disk_path_.c_str(), &disk) == 0) {
    out.disk_free_bytes = static_cast<std::uint64_t>(disk.f_bavail) * disk.f_frsize;
    out.disk_total_bytes = static_cast<std::uint64_t>(disk.f_blocks) * disk.f_frsize;
  }
  const NetCount net = net_count(getpid());
  const DiskCount disks = disk_count();
  out.net_rx_bytes_s = rate(net.rx_bytes, rx_);
  out.net_tx_bytes_s = rate(net.tx_bytes, tx_);
  out.disk_read_bytes_s = rate(disks.read, read_);
  out.disk_write_bytes_s = rate(disks.written, written_);
  busy_ticks_ = busy;
  rx_ = net.rx_bytes;
  tx_ = net.tx_bytes;
  read_ = disks.read;
  written_ = disks.written;
  out.window = first ? Millis(0) : now - last_;
  last_ = now;
  out.gpus = Nvml::instance().samples();
  return out;
}

void RollUp::add(const session::Telemetry& second) {
  if (seconds_ == 0) began_ = second.at - second.window;
  ++seconds_;
  cpu_ += second.cpu_milli;
  peak_ = std::max(peak_, second.cpu_peak_milli);
  rx_ += second.net_rx_bytes_s;
  tx_ += second.net_tx_bytes_s;
  read_ += second.disk_read_bytes_s;
  written_ += second.disk_write_bytes_s;
  for (const auto& gpu : second.gpus) {
    GpuSums& sums = gpus_[gpu.uuid];
    ++sums.n;
    sums.use += gpu.use_percent;
    sums.power += gpu.power_w;
    sums.sm += gpu.sm_mhz;
  }
  for (const auto& container : second.containers) {
    ContainerSums& sums = containers_[container.lease];
    ++sums.n;
    sums.cpu += container.cpu_milli;
    sums.rx += container.net_rx_bytes_s;
    sums.tx += container.net_tx_bytes_s;
  }
  last_ = second;
}

session::Telemetry RollUp::take() {
  session::Telemetry out = std::move(last_);
  if (seconds_ > 0) {
    out.window = std::clamp(out.at - began_, Millis(0), Millis(3600'000));
    out.cpu_milli = cpu_ / seconds_;
    out.cpu_peak_milli = peak_;
    out.net_rx_bytes_s = rx_ / seconds_;
    out.net_tx_bytes_s = tx_ / seconds_;
    out.disk_read_bytes_s = read_ / seconds_;
    out.disk_write_bytes_s = written_ / seconds_;
    for (auto& gpu : out.gpus) {
      const GpuSums& sums = gpus_[gpu.uuid];
      gpu.use_percent = static_cast<std::uint32_t>(sums.use / sums.n);
      gpu.power_w = static_cast<std::uint32_t>(sums.power / sums.n);
      gpu.sm_mhz = static_cast<std::uint32_t>(sums.sm / sums.n);
    }
    for (auto& container : out.containers) {
      const ContainerSums& sums = containers_[container.lease];
      container.cpu_milli = sums.cpu / sums.n;
      container.net_rx_bytes_s = sums.rx / sums.n;
      container.net_tx_bytes_s = sums.tx / sums.n;
    }
  }
  *this = RollUp{};
  return out;
}

std::string metrics_text(const session::Telemetry& t, bool online) {
  std::string out;
  const auto line = [&](std::string_view name, std::string_view help, double value) {
    out += fmt::format("# HELP muster_agent_{} {}\n# TYPE muster_agent_{} gauge\nmuster_agent_{} {}\n", name, help,
                       name, name, value);
  };
  line("online", "1 while the control plane has this machine online", online ? 1 : 0);
  line("owner_holds_back", "1 while the owner's limits keep it from being hired", t.owner.empty() ? 0 : 1);
  line("cpus_used", "CPUs in use", static_cast<double>(t.cpu_milli) / 1000);
  line("memory_used_bytes", "memory in use", static_cast<double>(t.memory_used_bytes));
  line("memory_total_bytes", "memory", static_cast<double>(t.memory_total_bytes));
  line("disk_free_bytes", "room below the state directory", static_cast<double>(t.disk_free_bytes));
  line("disk_read_bytes_per_second", "read from disks", static_cast<double>(t.disk_read_bytes_s));
  line("disk_write_bytes_per_second", "written to disks", static_cast<double>(t.disk_write_bytes_s));
  line("net_rx_bytes_per_second", "received", static_cast<double>(t.net_rx_bytes_s));
  line("net_tx_bytes_per_second", "sent", static_cast<double>(t.net_tx_bytes_s));
  const auto gpu = [&](std::string_view name, std::string_view help, auto value) {
    if (t.gpus.empty()) return;
    out += fmt::format("# HELP muster_agent_gpu_{} {}\n# TYPE muster_agent_gpu_{} gauge\n", name, help, name);
    for (const auto& g : t.gpus) out += fmt::format("muster_agent_gpu_{}{{gpu=\"{}\"}} {}\n", name, g.uuid, value(g));
  };
  gpu("use_percent", "use", [](const auto& g) { return g.use_percent; });
  gpu("memory_used_bytes", "memory in use", [](const auto& g) { return g.memory_used_bytes; });
  gpu("memory_total_bytes", "memory", [](const auto& g) { return g.memory_total_bytes; });
  gpu("temperature_celsius", "temperature", [](const auto& g) { return g.temperature_c; });
  gpu("power_watts", "power drawn", [](const auto& g) { return g.power_w; });
  gpu("power_limit_watts", "power allowed", [](const auto& g) { return g.power_limit_w; });
  gpu("sm_mhz", "clock of the processors", [](const auto& g) { return g.sm_mhz; });
  gpu("memory_mhz", "clock of the memory", [](const auto& g) { return g.memory_mhz; });
  gpu("ecc_corrected", "memory errors corrected", [](const auto& g) { return g.ecc_corrected; });
  gpu("ecc_uncorrected", "memory errors not corrected", [](const auto& g) { return g.ecc_uncorrected; });
  gpu("xid_events", "Xid faults since the agent started", [](const auto& g) { return g.xid_count; });
  const auto container = [&](std::string_view name, std::string_view help, auto value) {
    if (t.containers.empty()) return;
    out +=
        fmt::format("# HELP muster_agent_container_{} {}\n# TYPE muster_agent_container_{} gauge\n", name, help, name);
    for (const auto& c : t.containers)
      out += fmt::format("muster_agent_container_{}{{lease=\"{}\"}} {}\n", name, c.lease.str(), value(c));
  };
  container("cpus_used", "CPUs in use", [](const auto& c) { return static_cast<double>(c.cpu_milli) / 1000; });
  container("memory_bytes", "memory in use", [](const auto& c) { return c.memory_bytes; });
  container("pids", "processes", [](const auto& c) { return c.pids; });
  container("net_rx_bytes_per_second", "received", [](const auto& c) { return c.net_rx_bytes_s; });
  container("net_tx_bytes_per_second", "sent", [](const auto& c) { return c.net_tx_bytes_s; });
  return out;
}

}  // namespace muster::host
