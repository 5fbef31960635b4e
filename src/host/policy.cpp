#include "host/policy.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <sstream>

#include "host/json.h"

namespace muster::host {
namespace {

constexpr std::int64_t kBytesMax = 1LL << 50;

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

Result<HourRange> parse_range(std::string_view text) {
  const auto dash = text.find('-');
  if (dash == std::string_view::npos) return error(Code::InvalidArgument, "expected FROM-TO");
  const int from = TRY(parse_minute(text.substr(0, dash)));
  const int to = TRY(parse_minute(text.substr(dash + 1)));
  return HourRange{from, to};
}

}  // namespace

Result<Policy> parse_policy(std::string_view text) {
  const json::object object = TRY(parse_object(text));
  Fields fields(object);
  Policy p;
  if (const auto* reserve = fields.object("reserve")) {
    Fields kept(*reserve);
    p.reserve_cpu_milli = static_cast<std::int64_t>(std::clamp(kept.number_or("cpus", 0.0), 0.0, 10'000.0) * 1000.0);
    p.reserve_memory_bytes = kept.integer_or("memory_bytes", 0, kBytesMax, p.reserve_memory_bytes);
    p.reserve_disk_bytes = kept.integer_or("disk_bytes", 0, kBytesMax, p.reserve_disk_bytes);
    TRY_VOID(kept.finish("policy: reserve"));
  }
  p.engine_socket = fields.text_or("engine_socket", {}, 100);
  p.max_cpu_milli = fields.integer_or("max_cpu_milli", 0, 10'000'000, p.max_cpu_milli);
  p.max_memory_bytes = fields.integer_or("max_memory_bytes", 0, kBytesMax, p.max_memory_bytes);
  p.max_gpus = fields.integer_or("max_gpus", -1, 1024, p.max_gpus);
  p.max_gpu_power_w = fields.integer_or("max_gpu_power_w", 0, 10'000, p.max_gpu_power_w);
  p.max_leases = fields.integer_or("max_leases", 0, 256, p.max_leases);
  p.egress_allowed = fields.boolean_or("egress_allowed", p.egress_allowed);
  p.exec_allowed = fields.boolean_or("exec_allowed", p.exec_allowed);
  p.images = fields.texts("images", 256, 512);
  for (const auto& range : fields.texts("allowed_hours", 48, 16)) {
    const auto parsed = parse_range(range);
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
  if (!file) return Policy{};
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

bool image_allowed(const Policy& policy, const std::string& image) {
  if (policy.images.empty()) return true;
  return std::any_of(policy.images.begin(), policy.images.end(),
                     [&](const std::string& prefix) { return image.starts_with(prefix); });
}

}  // namespace muster::host
