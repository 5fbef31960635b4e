#include "host/cgroup.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include "host/unix_socket.h"

namespace muster::host {
namespace fs = std::filesystem;
namespace {

constexpr std::int64_t kPeriodUs = 100'000;
constexpr std::array kControllers{"memory", "cpu", "cpuacct", "pids", "freezer"};

std::string read_text(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}
std::uint64_t read_number(const std::string& path) {
  return std::strtoull(read_text(path).c_str(), nullptr, 10);
}
// "name value" lines.
std::uint64_t read_field(const std::string& path, const std::string& name) {
  std::istringstream lines(read_text(path));
  std::string key;
  std::uint64_t value = 0;
  while (lines >> key >> value) {
    if (key == name) return value;
  }
  return 0;
}

Status write_file(const std::string& path, const std::string& text) {
  Fd file(open(path.c_str(), O_WRONLY | O_CLOEXEC));
  if (!file || write(file.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()))
    return error(Code::Unavailable, fmt::format("cannot write {} to {}: {}", text, path, errno_text(errno)), "cgroup");
  return {};
}

Status make(const std::string& path) {
  if (mkdir(path.c_str(), 0755) != 0 && errno != EEXIST)
    return error(Code::Unavailable, fmt::format("cannot make {}: {}", path, errno_text(errno)), "cgroup");
  return {};
}

bool has_word(const std::string& text, const std::string& word) {
  std::istringstream words(text);
  std::string each;
  while (words >> each) {
    if (each == word) return true;
  }
  return false;
}

}  // namespace

Cgroups::Cgroups(std::string machine, std::string root) : root_(std::move(root)), parent_("muster-" + machine) {
  unified_ = !fs::exists(root_ + "/memory") && fs::exists(root_ + "/cgroup.controllers");
}

std::string Cgroups::missing() const {
  std::string out;
  const std::string controllers = unified_ ? read_text(root_ + "/cgroup.controllers") : std::string();
  for (const std::string name : {"memory", "cpu", "pids"}) {
    const bool there = unified_ ? has_word(controllers, name) : fs::exists(root_ + "/" + name + "/cgroup.procs");
    if (!there) out += (out.empty() ? "" : ", ") + name;
  }
  return out;
}

std::string Cgroups::dir(const std::string& controller, const std::string& name) const {
  return (unified_ ? root_ : root_ + "/" + controller) + "/" + parent_ + "/" + name;
}
std::string Cgroups::memory_path(const std::string& name) const {
  return dir("memory", name);
}

std::vector<std::string> Cgroups::dirs(const std::string& name) const {
  if (unified_) return {dir("", name)};
  std::vector<std::string> out;
  std::vector<fs::path> seen;  // cpu and cpuacct are often one hierarchy under two names
  for (const std::string controller : kControllers) {
    std::error_code failure;
    const fs::path real = fs::canonical(root_ + "/" + controller, failure);
    if (failure || std::find(seen.begin(), seen.end(), real) != seen.end()) continue;
    seen.push_back(real);
    out.push_back(dir(controller, name));
  }
  return out;
}

Status Cgroups::create(const std::string& name, const CgroupLimits& limits) const {
  for (const auto& path : dirs(name)) {
    TRY_VOID(make(fs::path(path).parent_path().string()));
    if (unified_) {
      for (const auto& above : {root_, root_ + "/" + parent_})
        TRY_VOID(write_file(above + "/cgroup.subtree_control", "+cpu +memory +pids"));
    }
    TRY_VOID(make(path));
  }
  const std::string memory = dir("memory", name), cpu = dir("cpu", name), pids = dir("pids", name);
  const auto quota = limits.cpu_milli * kPeriodUs / 1000;
  if (unified_) {
    TRY_VOID(write_file(memory + "/memory.max",
                        limits.memory_bytes > 0 ? std::to_string(limits.memory_bytes) : std::string("max")));
    if (fs::exists(memory + "/memory.swap.max"))
      TRY_VOID(write_file(memory + "/memory.swap.max", limits.memory_bytes > 0 ? "0" : "max"));
    TRY_VOID(write_file(cpu + "/cpu.max", limits.cpu_milli > 0 ? fmt::format("{} {}", quota, kPeriodUs)
                                                               : fmt::format("max {}", kPeriodUs)));
  } else {
    const std::string bytes = limits.memory_bytes > 0 ? std::to_string(limits.memory_bytes) : std::string("-1");
    const std::string both = memory + "/memory.memsw.limit_in_bytes";
    // Memory and swap together must never be below memory alone: which comes first depends on the way the limit goes.
    if (fs::exists(both)) (void)write_file(both, "-1").ok();
    TRY_VOID(write_file(memory + "/memory.limit_in_bytes", bytes));
    if (fs::exists(both)) TRY_VOID(write_file(both, bytes));
    TRY_VOID(write_file(cpu + "/cpu.cfs_period_us", std::to_string(kPeriodUs)));
    TRY_VOID(write_file(cpu + "/cpu.cfs_quota_us", limits.cpu_milli > 0 ? std::to_string(quota) : "-1"));
  }
  return write_file(pids + "/pids.max", limits.pids > 0 ? std::to_string(limits.pids) : "max");
}

std::vector<std::string> Cgroups::entrances(const std::string& name) const {
  std::vector<std::string> out;
  for (const auto& path : dirs(name)) out.push_back(path + "/cgroup.procs");
  return out;
}

CgroupUse Cgroups::use(const std::string& name) const {
  CgroupUse out;
  const std::string memory = dir("memory", name);
  out.pids = read_number(dir("pids", name) + "/pids.current");
  if (unified_) {
    out.cpu_ns = read_field(memory + "/cpu.stat", "usage_usec") * 1000;
    out.memory_bytes = read_number(memory + "/memory.current");
    out.oom_kills = read_field(memory + "/memory.events", "oom_kill");
  } else {
    out.cpu_ns = read_number(dir("cpuacct", name) + "/cpuacct.usage");
    out.memory_bytes = read_number(memory + "/memory.usage_in_bytes");
    out.oom_kills = read_field(memory + "/memory.oom_control", "oom_kill");
  }
  return out;
}

bool Cgroups::populated(const std::string& name) const {
  const auto entries = entrances(name);
  return std::any_of(entries.begin(), entries.end(), [](const auto& path) { return !read_text(path).empty(); });
}

Status Cgroups::kill_all(const std::string& name, Millis patience) const {
  const auto end = std::chrono::steady_clock::now() + patience;
  while (populated(name)) {
    if (unified_ && fs::exists(dir("", name) + "/cgroup.kill")) {
      (void)write_file(dir("", name) + "/cgroup.kill", "1").ok();
    } else {
      for (const auto& entrance : entrances(name)) {
        std::istringstream pids(read_text(entrance));
        for (pid_t pid = 0; pids >> pid;) {
          if (pid > 1) kill(pid, SIGKILL);
        }
      }
    }
    if (std::chrono::steady_clock::now() > end)
      return error(Code::Unavailable, fmt::format("processes of {} cannot be killed", name), "cgroup.stuck");
    std::this_thread::sleep_for(Millis(10));
  }
  return {};
}

Status Cgroups::remove(const std::string& name) const {
  TRY_VOID(kill_all(name, Millis(20'000)));
  for (const auto& path : dirs(name)) {
    for (int i = 0; rmdir(path.c_str()) != 0 && errno != ENOENT; ++i) {  // the last process may not be reaped yet
      if (i >= 200)
        return error(Code::Unavailable, fmt::format("cannot remove {}: {}", path, errno_text(errno)), "cgroup");
      std::this_thread::sleep_for(Millis(10));
    }
  }
  return {};
}

void Cgroups::remove_all() const {
  for (const auto& path : dirs(".")) rmdir(fs::path(path).parent_path().c_str());
}

}  // namespace muster::host
