#include "host/policy.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <fstream>
#include <optional>
#include <sstream>

#include "host/json.h"
#include "host/owner_network.h"
#include "model/image_policy.h"

namespace muster::host {
namespace {

constexpr std::int64_t kBytesEver = 1LL << 50;

Result<int> parse_minute(std::string_view text) {
  int hours = 0, minutes = 0;
  const auto colon = text.find(':');
  if (colon == std::string_view::npos || text.size() > 5) return error(Code::InvalidArgument, "expected HH:MM");
  const auto a = std::from_chars(text.data(), text.data() + colon, hours);
  const auto b = std::from_chars(text.data() + colon + 1, text.data() + text.size(), minutes);
  const bool whole =
      a.ptr == text.data() + colon && b.ptr == text.data() + text.size() && a.ec == std::errc() && b.ec == std::errc();
  if (!whole || hours < 0 || hours > 24 || minutes < 0 || minutes > 59 || hours * 60 + minutes > 24 * 60) {
    return error(Code::InvalidArgument, "expected HH:MM");
  }
  return hours * 60 + minutes;
}

}  // namespace

Result<HourRange> parse_hours(std::string_view text) {
  const auto dash = text.find('-');
  if (dash == std::string_view::npos) return error(Code::InvalidArgument, "expected FROM-TO");
  const int from = TRY(parse_minute(text.substr(0, dash)));
  const int to = TRY(parse_minute(text.substr(dash + 1)));
  return HourRange{from, to};
}

std::string hours_text(const std::vector<HourRange>& ranges) {
  std::string out;
  for (const auto& range : ranges) {
    out += fmt::format("{}{:02}:{:02}-{:02}:{:02}", out.empty() ? "" : ",", range.from_minute / 60,
                       range.from_minute % 60, range.to_minute / 60, range.to_minute % 60);
  }
  return out;
}

namespace {

template <typename T>
Status read_each(Fields& f, std::string_view key, std::optional<T> (*parse)(std::string_view), std::string_view like,
                 std::vector<T>& out) {
  if (!f.has(key)) return {};
  out.clear();
  for (const auto& text : f.texts(key, 256, 64)) {
    const auto value = parse(text);
    if (!value)
      return error(Code::InvalidArgument,
                   fmt::format("policy: egress: '{}' holds '{}'; write it like {}", key, text, like),
                   "egress." + std::string(key));
    out.push_back(*value);
  }
  return {};
}

Status read_egress(const json::object& object, EgressPolicy& p) {
  Fields f(object);
  p.max_bytes_per_s = f.integer_or("max_bytes_per_s", 0, kBytesEver, p.max_bytes_per_s);
  p.max_bytes_per_month = f.integer_or("max_bytes_per_month", 0, kBytesEver, p.max_bytes_per_month);
  p.max_connections = f.integer_or("max_connections", 1, 4096, p.max_connections);
  TRY_VOID(read_each(f, "deny", egress::parse_prefix, "\"198.18.5.0/24\"", p.deny));
  TRY_VOID(read_each(f, "deny_ports", egress::parse_ports, "\"25\" or \"6660-6669\"", p.deny_ports));
  TRY_VOID(read_each(f, "allow_ports", egress::parse_ports, "\"443\" or \"8000-8100\"", p.allow_ports));
  TRY_VOID(read_each(f, "resolvers", egress::parse_ip, "\"9.9.9.9\"", p.resolvers));
  return f.finish("policy: egress");
}

}  // namespace

Result<Policy> parse_policy(std::string_view text) {
  const json::object object = TRY(parse_object(text));
  Fields fields(object);
  Policy p;
  if (const auto* reserve = fields.object("reserve")) {
    Fields kept(*reserve);
    p.reserve_cpu_milli = static_cast<std::int64_t>(std::clamp(kept.number_or("cpus", 0.0), 0.0, 10'000.0) * 1000.0);
    p.reserve_memory_bytes = kept.integer_or("memory_bytes", 0, kBytesEver, p.reserve_memory_bytes);
    p.reserve_disk_bytes = kept.integer_or("disk_bytes", 0, kBytesEver, p.reserve_disk_bytes);
    TRY_VOID(kept.finish("policy: reserve"));
  }
  if (const auto* idle = fields.object("idle")) {
    Fields rule(*idle);
    p.idle.minutes = rule.integer_or("minutes", 0, 24 * 60, p.idle.minutes);
    p.idle.load_percent = rule.integer_or("load_percent", 1, 100, p.idle.load_percent);
    p.idle.input = rule.boolean_or("input", p.idle.input);
    p.idle.terminals = rule.boolean_or("terminals", p.idle.terminals);
    p.idle.gpu = rule.boolean_or("gpu", p.idle.gpu);
    p.idle.load = rule.boolean_or("load", p.idle.load);
    TRY_VOID(rule.finish("policy: idle"));
  }
  p.gpu_uuids = fields.texts("gpu_uuids", 64, 96);
  p.max_upload_bytes_s = fields.integer_or("max_upload_bytes_s", 0, kBytesEver, p.max_upload_bytes_s);
  p.max_download_bytes_s = fields.integer_or("max_download_bytes_s", 0, kBytesEver, p.max_download_bytes_s);
  p.carry_allowed = fields.boolean_or("carry_allowed", p.carry_allowed);
  p.max_carry_bytes_s = fields.integer_or("max_carry_bytes_s", 0, kBytesEver, p.max_carry_bytes_s);
  p.max_carry_bytes_per_month =
      fields.integer_or("max_carry_bytes_per_month", 0, kBytesEver, p.max_carry_bytes_per_month);
  p.tests_allowed = fields.boolean_or("tests_allowed", p.tests_allowed);
  p.max_test_bytes_s = fields.integer_or("max_test_bytes_s", 0, kBytesEver, p.max_test_bytes_s);
  p.max_test_bytes_per_month = fields.integer_or("max_test_bytes_per_month", 0, kBytesEver, p.max_test_bytes_per_month);
  p.relay_only = fields.boolean_or("relay_only", p.relay_only);
  p.port_mapping = fields.boolean_or("port_mapping", p.port_mapping);
  p.endpoints = fields.texts("endpoints", 2 * kOwnEndpointsMax, 64);
  if (const auto endpoints = parse_own_endpoints(p.endpoints); !endpoints.ok())
    return error(Code::InvalidArgument, "policy: 'endpoints': " + endpoints.error().message, "endpoints");
  p.udp_port = fields.integer_or("udp_port", 0, 65'535, p.udp_port);
  p.stop_after_minutes = fields.integer_or("stop_after_minutes", 0, 24 * 60, p.stop_after_minutes);
  p.metrics_port = fields.integer_or("metrics_port", 0, 65'535, p.metrics_port);
  p.engine_socket = fields.text_or("engine_socket", {}, 100);
  p.max_cpu_milli = fields.integer_or("max_cpu_milli", 0, 10'000'000, p.max_cpu_milli);
  p.max_memory_bytes = fields.integer_or("max_memory_bytes", 0, kBytesEver, p.max_memory_bytes);
  p.max_gpus = fields.integer_or("max_gpus", -1, 1024, p.max_gpus);
  p.gpu_sharing = fields.boolean_or("gpu_sharing", p.gpu_sharing);
  p.max_gpu_power_w = fields.integer_or("max_gpu_power_w", 0, 10'000, p.max_gpu_power_w);
  p.max_leases = fields.integer_or("max_leases", 0, 256, p.max_leases);
  p.max_root_bytes = fields.integer_or("max_root_bytes", 0, kBytesEver, p.max_root_bytes);
  p.max_workspace_bytes = fields.integer_or("max_workspace_bytes", 0, kBytesEver, p.max_workspace_bytes);
  p.egress_allowed = fields.boolean_or("egress_allowed", p.egress_allowed);
  if (const auto* egress = fields.object("egress")) TRY_VOID(read_egress(*egress, p.egress));
  p.exec_allowed = fields.boolean_or("exec_allowed", p.exec_allowed);
  p.images = fields.texts("images", 256, 512);
  p.runtimes = fields.texts("runtimes", 2, 16);
  p.python_index = fields.text_or("python_index", {}, 1024);
  p.uv = fields.text_or("uv", {}, 1024);
  for (const auto& runtime : p.runtimes) {
    if (runtime != "docker" && runtime != "venv")
      return error(Code::InvalidArgument, "policy: 'runtimes' holds '" + runtime + "'; there are docker and venv",
                   "runtimes");
  }
  for (const auto& range : fields.texts("allowed_hours", 48, 16)) {
    const auto parsed = parse_hours(range);
    if (!parsed.ok()) {
      return error(Code::InvalidArgument,
                   fmt::format("policy: 'allowed_hours' holds '{}'; write it like \"20:00-08:00\"", range),
                   "allowed_hours");
    }
    p.allowed_hours.push_back(*parsed);
  }
  TRY_VOID(fields.finish("policy"));
  return p;
}

Result<Policy> load_policy(const std::string& path) {
  std::ifstream file(path);
  if (!file) {
    if (errno == ENOENT) return Policy{};
    return error(Code::FailedPrecondition,
                 fmt::format("{} cannot be read ({}); nothing is started until it can", path, std::strerror(errno)));
  }
  std::stringstream text;
  text << file.rdbuf();
  auto parsed = parse_policy(text.str());
  if (!parsed.ok()) {
    return error(Code::FailedPrecondition, fmt::format("{} is damaged ({}); nothing is started until it is repaired",
                                                       path, parsed.error().message));
  }
  return parsed;
}

bool hour_allowed(const Policy& policy, int minute) {
  if (policy.allowed_hours.empty()) return true;
  return std::any_of(policy.allowed_hours.begin(), policy.allowed_hours.end(), [&](const HourRange& range) {
    if (range.from_minute <= range.to_minute) return minute >= range.from_minute && minute < range.to_minute;
    return minute >= range.from_minute || minute < range.to_minute;
  });
}

int minutes_since_allowed(const Policy& policy, int minute) {
  for (int since = 0; since < 24 * 60; ++since) {
    if (hour_allowed(policy, (minute - since + 24 * 60) % (24 * 60))) return since;
  }
  return 24 * 60;
}

std::string policy_text(const Policy& p) {
  const Policy usual;
  json::object out;
  json::object reserve;
  if (p.reserve_cpu_milli != usual.reserve_cpu_milli) reserve["cpus"] = static_cast<double>(p.reserve_cpu_milli) / 1000;
  if (p.reserve_memory_bytes != usual.reserve_memory_bytes) reserve["memory_bytes"] = p.reserve_memory_bytes;
  if (p.reserve_disk_bytes != usual.reserve_disk_bytes) reserve["disk_bytes"] = p.reserve_disk_bytes;
  if (!reserve.empty()) out["reserve"] = reserve;
  const auto number = [&](const char* key, std::int64_t value, std::int64_t otherwise) {
    if (value != otherwise) out[key] = value;
  };
  const auto texts = [&](const char* key, const std::vector<std::string>& values) {
    if (values.empty()) return;
    json::array list;
    for (const auto& value : values) list.emplace_back(value);
    out[key] = list;
  };
  number("max_cpu_milli", p.max_cpu_milli, usual.max_cpu_milli);
  number("max_memory_bytes", p.max_memory_bytes, usual.max_memory_bytes);
  number("max_gpus", p.max_gpus, usual.max_gpus);
  texts("gpu_uuids", p.gpu_uuids);
  number("max_gpu_power_w", p.max_gpu_power_w, usual.max_gpu_power_w);
  number("max_upload_bytes_s", p.max_upload_bytes_s, usual.max_upload_bytes_s);
  number("max_download_bytes_s", p.max_download_bytes_s, usual.max_download_bytes_s);
  if (p.carry_allowed != usual.carry_allowed) out["carry_allowed"] = p.carry_allowed;
  number("max_carry_bytes_s", p.max_carry_bytes_s, usual.max_carry_bytes_s);
  number("max_carry_bytes_per_month", p.max_carry_bytes_per_month, usual.max_carry_bytes_per_month);
  if (p.tests_allowed != usual.tests_allowed) out["tests_allowed"] = p.tests_allowed;
  number("max_test_bytes_s", p.max_test_bytes_s, usual.max_test_bytes_s);
  number("max_test_bytes_per_month", p.max_test_bytes_per_month, usual.max_test_bytes_per_month);
  if (p.relay_only != usual.relay_only) out["relay_only"] = p.relay_only;
  if (p.port_mapping != usual.port_mapping) out["port_mapping"] = p.port_mapping;
  texts("endpoints", p.endpoints);
  number("udp_port", p.udp_port, usual.udp_port);
  if (p.gpu_sharing != usual.gpu_sharing) out["gpu_sharing"] = p.gpu_sharing;
  number("max_leases", p.max_leases, usual.max_leases);
  if (p.egress_allowed != usual.egress_allowed) out["egress_allowed"] = p.egress_allowed;
  if (p.exec_allowed != usual.exec_allowed) out["exec_allowed"] = p.exec_allowed;
  std::vector<std::string> hours;
  for (const auto& range : p.allowed_hours) hours.push_back(hours_text({range}));
  texts("allowed_hours", hours);
  number("stop_after_minutes", p.stop_after_minutes, usual.stop_after_minutes);
  if (p.idle != usual.idle) {
    out["idle"] = json::object{{"minutes", p.idle.minutes}, {"load_percent", p.idle.load_percent},
                               {"input", p.idle.input},     {"terminals", p.idle.terminals},
                               {"gpu", p.idle.gpu},         {"load", p.idle.load}};
  }
  texts("images", p.images);
  number("max_root_bytes", p.max_root_bytes, usual.max_root_bytes);
  number("max_workspace_bytes", p.max_workspace_bytes, usual.max_workspace_bytes);
  texts("runtimes", p.runtimes);
  if (!p.python_index.empty()) out["python_index"] = p.python_index;
  if (!p.uv.empty()) out["uv"] = p.uv;
  if (!p.engine_socket.empty()) out["engine_socket"] = p.engine_socket;
  number("metrics_port", p.metrics_port, usual.metrics_port);
  return to_text(out);
}

bool gpu_allowed(const Policy& policy, const std::string& uuid) {
  return policy.gpu_uuids.empty() ||
         std::find(policy.gpu_uuids.begin(), policy.gpu_uuids.end(), uuid) != policy.gpu_uuids.end();
}

bool image_allowed(const Policy& policy, const std::string& image) {
  bool all = true, named = false;
  for (const std::string_view pattern : policy.images) {
    if (pattern.starts_with('!')) {
      if (image_matches(pattern.substr(1), image)) return false;
      continue;
    }
    all = false;
    named = named || image.starts_with(pattern);
  }
  return all || named;
}

bool image_denied(const Policy& policy, const std::string& digest) {
  return std::find(policy.images.begin(), policy.images.end(), "!" + digest) != policy.images.end();
}

}  // namespace muster::host
