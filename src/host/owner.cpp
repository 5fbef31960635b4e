#include "host/owner.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/input-event-codes.h>
#include <linux/input.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <ctime>
#include <fstream>

#include "host/container_use.h"
#include "host/nvml.h"

namespace muster::host {
namespace {

constexpr Millis kScanInputs{30'000};
constexpr double kLoadWindow = 10.0;  // seconds
constexpr std::size_t kInputsMax = 128;

std::vector<std::string> names_in(const std::string& folder) {
  std::vector<std::string> out;
  DIR* open = opendir(folder.c_str());
  if (open == nullptr) return out;
  while (const dirent* entry = readdir(open)) {
    if (out.size() < 4096) out.emplace_back(entry->d_name);
  }
  closedir(open);
  return out;
}

bool numbered(std::string_view name, std::string_view prefix) {
  if (!name.starts_with(prefix) || name.size() == prefix.size()) return false;
  name.remove_prefix(prefix.size());
  return std::all_of(name.begin(), name.end(), [](char c) { return c >= '0' && c <= '9'; });
}

std::string minutes_text(Millis ago) {
  const auto minutes = ago.count() / 60'000;
  return minutes < 1 ? "just now" : fmt::format("{} min ago", minutes);
}

}  // namespace

PauseFile read_pause(const std::string& path) {
  struct stat info {};
  const bool now = stat((path + ".now").c_str(), &info) == 0;
  return {now || stat(path.c_str(), &info) == 0, now};
}

int minute_of_day() {
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  return local.tm_hour * 60 + local.tm_min;
}

Gate OwnerGate::decide(const Result<Policy>& policy, const PauseFile& pause, int minute, const Signs& signs,
                       LeaseTime now) {
  if (pause.present)
    return {false, pause.now, "owner.paused", "the owner has paused this machine; `muster-agent resume` ends that"};
  // Nothing new is started under a policy that cannot be read; what runs was allowed when it was started.
  if (!policy.ok()) return {false, false, "owner.policy", policy.error().message};
  if (!hour_allowed(*policy, minute)) {
    return {false, minutes_since_allowed(*policy, minute) > policy->stop_after_minutes, "owner.hours",
            fmt::format("outside the owner's hours ({})", hours_text(policy->allowed_hours))};
  }
  if (policy->idle.minutes > 0) {
    const Gate idle = by_idle(policy->idle, signs, now);
    if (!idle.open) return idle;
  } else {
    busy_at_.reset();
  }
  return by_disk(*policy, signs);
}

// Closes below what the owner keeps, opens again a little above it: a disk at the edge must not flap.
Gate OwnerGate::by_disk(const Policy& policy, const Signs& signs) {
  if (signs.disk_free < 0) return {};
  const std::int64_t keep = policy.reserve_disk_bytes;
  disk_low_ =
      signs.disk_free < keep || (disk_low_ && signs.disk_free < keep + std::min<std::int64_t>(keep / 10, 1 << 30));
  if (!disk_low_) return {};
  return {
      false, false, "owner.disk",
      fmt::format("the disk is nearly full: {} MiB free, the owner keeps {} MiB", signs.disk_free >> 20, keep >> 20)};
}

Gate OwnerGate::by_idle(const IdleRule& rule, const Signs& signs, LeaseTime now) {
  const Millis wait(rule.minutes * 60'000);
  const auto busy = [&](std::string with) { return Gate{false, true, "owner.busy", std::move(with)}; };
  if ((rule.input || rule.terminals) && signs.input_ago && *signs.input_ago < wait)
    return busy(
        fmt::format("the owner uses this machine (keyboard, mouse or terminal {})", minutes_text(*signs.input_ago)));
  if (rule.gpu && signs.gpu) {
    busy_at_ = now;
    busy_with_ = "a program of the owner's uses the GPU";
  } else if (rule.load && signs.load_percent > rule.load_percent) {
    busy_at_ = now;
    busy_with_ = fmt::format("programs of the owner's use {} % of the CPUs", signs.load_percent);
  }
  if (busy_at_ && now - *busy_at_ < wait) return busy(busy_with_);
  busy_at_.reset();
  return {};
}

void OwnerSigns::open_inputs(LeaseTime now) {
  if (scanned_ && now - *scanned_ < kScanInputs) return;
  scanned_ = now;
  std::map<std::string, Fd> found;
  for (const auto& name : names_in(places_.dev + "/input")) {
    if (!numbered(name, "event") || found.size() >= kInputsMax) continue;
    if (const auto known = inputs_.find(name); known != inputs_.end()) {
      found.emplace(name, std::move(known->second));
      continue;
    }
    Fd fd(open((places_.dev + "/input/" + name).c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
    if (fd) found.emplace(name, std::move(fd));
  }
  inputs_ = std::move(found);
}

bool OwnerSigns::input_happened() {
  bool happened = false;
  for (auto it = inputs_.begin(); it != inputs_.end();) {
    std::array<input_event, 64> events;
    ssize_t n = 0;
    while ((n = ::read(it->second.get(), events.data(), sizeof events)) > 0) {
      for (std::size_t i = 0; i < static_cast<std::size_t>(n) / sizeof(input_event); ++i)
        happened = happened || events[i].type == EV_KEY || events[i].type == EV_REL;
    }
    const bool gone = n < 0 && errno == ENODEV;
    it = gone ? inputs_.erase(it) : std::next(it);
  }
  return happened;
}

std::optional<Millis> OwnerSigns::terminal_ago(WallTime now) const {
  std::optional<Millis> out;
  const auto look = [&](const std::string& path) {
    struct stat info {};
    if (stat(path.c_str(), &info) != 0) return;
    const Millis ago = std::max(Millis(0), now - WallTime{static_cast<std::int64_t>(info.st_atime) * 1000});
    if (!out || ago < *out) out = ago;
  };
  for (const auto& name : names_in(places_.dev)) {
    if (numbered(name, "tty")) look(places_.dev + "/" + name);
  }
  for (const auto& name : names_in(places_.dev + "/pts")) {
    if (numbered(name, "")) look(places_.dev + "/pts/" + name);
  }
  return out;
}

std::int64_t OwnerSigns::load(std::uint64_t our_cpu_ns, LeaseTime now) {
  std::ifstream stat(places_.proc + "/stat");
  std::string cpu;
  std::uint64_t user = 0, nice = 0, system = 0, idle = 0, iowait = 0, irq = 0, softirq = 0;
  stat >> cpu >> user >> nice >> system >> idle >> iowait >> irq >> softirq;
  const std::uint64_t busy = user + nice + system + irq + softirq;
  const double seconds = load_at_ ? static_cast<double>((now - *load_at_).count()) / 1000 : 0;
  if (seconds > 0 && seconds < 60 && busy >= busy_ticks_ && our_cpu_ns >= ours_ns_) {
    const double all = static_cast<double>(busy - busy_ticks_) / static_cast<double>(sysconf(_SC_CLK_TCK));
    const double ours = static_cast<double>(our_cpu_ns - ours_ns_) / 1e9;
    const double cpus = static_cast<double>(std::max(1L, sysconf(_SC_NPROCESSORS_ONLN)));
    const double percent = std::clamp((all - ours) / seconds / cpus * 100, 0.0, 100.0);
    const double weight = std::min(1.0, seconds / kLoadWindow);
    load_percent_ += (percent - load_percent_) * weight;
  }
  busy_ticks_ = busy;
  ours_ns_ = our_cpu_ns;
  load_at_ = now;
  return static_cast<std::int64_t>(load_percent_);
}

Signs OwnerSigns::read(const IdleRule& rule, Nvml& nvml, const std::set<std::string>& groups, std::uint64_t our_cpu_ns,
                       Now now) {
  Signs out;
  if (!remembered_ && !places_.last_input.empty()) {
    struct stat info {};
    const bool known = stat(places_.last_input.c_str(), &info) == 0;
    const Millis ago = now.wall - WallTime{static_cast<std::int64_t>(info.st_mtime) * 1000};
    if (known && ago > Millis(0)) input_at_ = now.lease - ago;
  }
  remembered_ = true;
  if (rule.input) {
    open_inputs(now.lease);
    if (input_happened()) {
      input_at_ = now.lease;
      if (!places_.last_input.empty()) std::ofstream(places_.last_input, std::ios::trunc) << "\n";
    }
    if (input_at_) out.input_ago = now.lease - *input_at_;
  }
  if (rule.terminals) {
    const auto ago = terminal_ago(now.wall);
    if (ago && (!out.input_ago || *ago < *out.input_ago)) out.input_ago = ago;
  }
  if (rule.load) out.load_percent = load(our_cpu_ns, now.lease);
  if (rule.gpu) out.gpu = owner_on_gpu(nvml, groups);
  return out;
}

bool owner_on_gpu(Nvml& nvml, const std::set<std::string>& groups) {
  const auto processes = nvml.processes();
  return std::any_of(processes.begin(), processes.end(), [&](const GpuProcess& process) {
    const std::string group = cgroup_of(static_cast<pid_t>(process.pid));
    if (groups.contains(group)) return false;
    // The driver still names a program that has just ended; whose it was cannot be told any more.
    return access(fmt::format("/proc/{}", process.pid).c_str(), F_OK) == 0;
  });
}

}  // namespace muster::host
