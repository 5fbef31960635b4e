#include "host/container_use.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <sstream>

namespace muster::host {
namespace {

std::string slurp(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

std::uint64_t number(std::string_view text) {
  std::uint64_t value = 0;
  std::from_chars(text.data(), text.data() + text.size(), value);
  return value;
}

// "key 123" lines.
std::uint64_t keyed(const std::string& text, std::string_view key) {
  std::size_t at = 0;
  while (at < text.size()) {
    const auto end = std::min(text.find('\n', at), text.size());
    const std::string_view line(text.data() + at, end - at);
    if (line.starts_with(key) && line.size() > key.size() && line[key.size()] == ' ')
      return number(line.substr(key.size() + 1));
    at = end + 1;
  }
  return 0;
}

// The path after the controller in /proc/PID/cgroup: "5:cpu,cpuacct:/docker/ab" for version 1, "0::/docker/ab" for 2.
std::string path_in(const std::string& table, std::string_view controller) {
  std::istringstream lines(table);
  std::string line;
  while (std::getline(lines, line)) {
    const auto first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string names = "," + line.substr(first + 1, second - first - 1) + ",";
    const bool wanted =
        controller.empty() ? names == ",," : names.find(fmt::format(",{},", controller)) != std::string::npos;
    if (wanted) return line.substr(second + 1);
  }
  return {};
}

}  // namespace

std::string cgroup_of(pid_t pid) {
  const std::string table = slurp(fmt::format("/proc/{}/cgroup", pid));
  const std::string memory = path_in(table, "memory");
  return memory.empty() ? path_in(table, {}) : memory;
}

Result<ContainerUse> container_use(pid_t pid) {
  const std::string table = slurp(fmt::format("/proc/{}/cgroup", pid));
  if (table.empty()) return error(Code::NotFound, fmt::format("process {} is gone", pid), "container.missing");
  ContainerUse out;
  if (const std::string memory = path_in(table, "memory"); !memory.empty()) {
    const std::string root = "/sys/fs/cgroup/";
    const std::string group = root + "memory" + memory;
    const std::uint64_t used = number(slurp(group + "/memory.usage_in_bytes"));
    const std::uint64_t cache = keyed(slurp(group + "/memory.stat"), "total_inactive_file");
    out.memory_bytes = used - std::min(used, cache);
    out.cpu_ns = number(slurp(root + "cpuacct" + path_in(table, "cpuacct") + "/cpuacct.usage"));
    out.pids = number(slurp(root + "pids" + path_in(table, "pids") + "/pids.current"));
    return out;
  }
  const std::string group = "/sys/fs/cgroup" + path_in(table, {});
  const std::uint64_t used = number(slurp(group + "/memory.current"));
  const std::uint64_t cache = keyed(slurp(group + "/memory.stat"), "inactive_file");
  out.memory_bytes = used - std::min(used, cache);
  out.cpu_ns = keyed(slurp(group + "/cpu.stat"), "usage_usec") * 1000;
  out.pids = number(slurp(group + "/pids.current"));
  return out;
}

NetCount parse_net_dev(std::string_view text) {
  NetCount out;
  std::istringstream lines{std::string(text)};
  std::string line;
  while (std::getline(lines, line)) {
    const auto colon = line.find(':');
    if (colon == std::string::npos) continue;
    const auto start = line.find_first_not_of(' ');
    if (line.substr(start, colon - start) == "lo") continue;
    std::istringstream words(line.substr(colon + 1));
    std::uint64_t in = 0, skip = 0, sent = 0;
    words >> in;
    for (int i = 0; i < 7; ++i) words >> skip;
    words >> sent;
    out.rx_bytes += in;
    out.tx_bytes += sent;
  }
  return out;
}

NetCount net_count(pid_t pid) {
  return parse_net_dev(slurp(fmt::format("/proc/{}/net/dev", pid)));
}

}  // namespace muster::host
