#include "host/limits.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <functional>
#include <limits>
#include <optional>

#include "host/owner_network.h"

namespace muster::host {
namespace {

constexpr double kBytesMax = 1e15;

Error written(const std::string& key, const std::string& how) {
  return error(Code::InvalidArgument, fmt::format("'{}' is written {}", key, how), key);
}

std::vector<std::string> words_of(const std::string& text) {
  std::vector<std::string> out;
  std::size_t at = 0;
  while (at <= text.size()) {
    const auto end = std::min(text.find(',', at), text.size());
    if (end > at) out.push_back(text.substr(at, end - at));
    at = end + 1;
  }
  return out;
}

// A number and the unit that follows it.
std::optional<std::pair<double, std::string>> split_number(const std::string& text) {
  double value = 0;
  const auto [end, fault] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (fault != std::errc() || !std::isfinite(value) || value < 0) return {};
  std::string unit(end, text.data() + text.size());
  std::transform(unit.begin(), unit.end(), unit.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return std::pair(value, unit);
}

Result<std::int64_t> plain(const std::string& key, const std::string& value, std::int64_t high,
                           const std::string& how) {
  const auto number = split_number(value);
  if (!number || !number->second.empty() || number->first > static_cast<double>(high) ||
      number->first != std::floor(number->first))
    return written(key, how);
  return static_cast<std::int64_t>(number->first);
}

Result<std::int64_t> bytes(const std::string& key, const std::string& value) {
  const auto number = split_number(value);
  const std::vector<std::pair<std::string, double>> units{
      {"", 1},     {"b", 1},    {"kib", 1 << 10}, {"mib", 1 << 20}, {"gib", 1 << 30}, {"tib", 1099511627776.0},
      {"kb", 1e3}, {"mb", 1e6}, {"gb", 1e9},      {"g", 1 << 30},   {"m", 1 << 20},   {"tb", 1e12}};
  for (const auto& [unit, factor] : units) {
    if (number && number->second == unit && number->first * factor <= kBytesMax)
      return static_cast<std::int64_t>(number->first * factor);
  }
  return written(key, "as a size: 32GiB, 500MB");
}

Result<std::int64_t> rate(const std::string& key, const std::string& value) {
  if (value == "unlimited" || value == "off") return std::int64_t{0};
  const auto number = split_number(value);
  const std::vector<std::pair<std::string, double>> units{{"kbit", 1e3 / 8}, {"mbit", 1e6 / 8}, {"gbit", 1e9 / 8},
                                                          {"kb/s", 1e3},     {"mb/s", 1e6},     {"gb/s", 1e9}};
  for (const auto& [unit, factor] : units) {
    if (!number || number->second != unit) continue;
    const double wanted = number->first * factor;
    if (wanted < 10'000 || wanted > kBytesMax) return written(key, "as at least 80kbit, or unlimited");
    return static_cast<std::int64_t>(wanted);
  }
  return written(key, "as a rate: 20mbit, 5MB/s, unlimited");
}

Result<bool> yes(const std::string& key, const std::string& value) {
  if (value == "on" || value == "yes") return true;
  if (value == "off" || value == "no") return false;
  return written(key, "on or off");
}

std::string size_text(std::int64_t value) {
  if (value >= 1LL << 30) return fmt::format("{:.4g} GiB", static_cast<double>(value) / (1LL << 30));
  return fmt::format("{:.4g} MiB", static_cast<double>(value) / (1 << 20));
}
std::string rate_text(std::int64_t value) {
  return value == 0 ? "unlimited" : fmt::format("{:.4g} Mbit/s", static_cast<double>(value) * 8 / 1e6);
}
std::string on(bool value) {
  return value ? "on" : "off";
}
std::string joined(const std::vector<std::string>& words, const std::string& none) {
  return words.empty() ? none : fmt::format("{}", fmt::join(words, ","));
}

struct Limit {
  std::string key, how;
  std::function<std::string(const Policy&)> show;
  std::function<Status(Policy&, const std::string& key, const std::string& value)> set;
  std::function<void(Policy&, const Policy& usual)> reset;
};

Status set_hours(Policy& p, const std::string& key, const std::string& value) {
  std::vector<HourRange> ranges;
  if (value != "always") {
    for (const auto& word : words_of(value)) {
      const auto range = parse_hours(word);
      if (!range.ok() || ranges.size() >= 48)
        return written(key, "like 20:00-08:00 or 12:00-13:00,20:00-08:00, or always");
      ranges.push_back(*range);
    }
    if (ranges.empty()) return written(key, "like 20:00-08:00, or always");
  }
  p.allowed_hours = ranges;
  return {};
}

Status set_idle(Policy& p, const std::string& key, const std::string& value) {
  if (value == "off") return p.idle.minutes = 0, Status{};
  if (value == "on") return p.idle.minutes = 10, Status{};
  auto number = split_number(value);
  if (number && number->second == "h") number = std::pair(number->first * 60, std::string("m"));
  const bool minutes = number && (number->second == "m" || number->second == "min");
  if (!minutes || number->first < 1 || number->first > 24 * 60)
    return written(key, "as off, on (10 minutes) or a time: 15m, 1h");
  p.idle.minutes = static_cast<std::int64_t>(number->first);
  return {};
}

Status set_signs(Policy& p, const std::string& key, const std::string& value) {
  IdleRule rule = p.idle;
  rule.input = rule.terminals = rule.gpu = rule.load = false;
  for (const auto& word : words_of(value)) {
    if (word == "input")
      rule.input = true;
    else if (word == "terminals")
      rule.terminals = true;
    else if (word == "gpu")
      rule.gpu = true;
    else if (word == "load")
      rule.load = true;
    else
      return written(key, "as a list of input, terminals, gpu, load");
  }
  p.idle = rule;
  return {};
}

Status set_gpus(Policy& p, const std::string& key, const std::string& value) {
  if (value == "all") {
    p.max_gpus = -1;
    p.gpu_uuids.clear();
    return {};
  }
  if (value.starts_with("GPU-") || value.starts_with("MIG-")) {
    const auto uuids = words_of(value);
    if (uuids.size() > 64) return written(key, "as all, a number, or a list of GPU-... ids");
    p.gpu_uuids = uuids;
    p.max_gpus = -1;
    return {};
  }
  p.max_gpus = TRY(plain(key, value, 1024, "as all, a number, or a list of GPU-... ids"));
  p.gpu_uuids.clear();
  return {};
}

template <typename T>
auto putter(T Policy::*member) {
  return [member](Policy& p, const Policy& usual) { p.*member = usual.*member; };
}
template <typename Read>
auto reader(std::int64_t Policy::*member, Read read) {
  return [member, read](Policy& p, const std::string& key, const std::string& value) -> Status {
    p.*member = TRY(read(key, value));
    return {};
  };
}
auto milli_reader(std::int64_t Policy::*member) {
  return [member](Policy& p, const std::string& key, const std::string& value) -> Status {
    if (value == "all") return p.*member = 0, Status{};
    const auto number = split_number(value);
    if (!number || !number->second.empty() || number->first > 10'000) return written(key, "as a number: 4, 0.5");
    p.*member = static_cast<std::int64_t>(std::llround(number->first * 1000));
    return {};
  };
}
auto flag_reader(bool Policy::*member) {
  return [member](Policy& p, const std::string& key, const std::string& value) -> Status {
    p.*member = TRY(yes(key, value));
    return {};
  };
}
auto counter(std::int64_t high, const std::string& how) {
  return [high, how](const std::string& key, const std::string& value) -> Result<std::int64_t> {
    if (value == "off") return std::int64_t{0};
    return plain(key, value, high, how);
  };
}
std::string cpus_text(std::int64_t milli) {
  return fmt::format("{:.4g}", static_cast<double>(milli) / 1000);
}

std::vector<Limit> time_limits() {
  return {
      {"hours", "20:00-08:00[,...] | always",
       [](const Policy& p) { return p.allowed_hours.empty() ? "always" : hours_text(p.allowed_hours); }, set_hours,
       putter(&Policy::allowed_hours)},
      {"stop-after", "minutes that running work may go on after the hours ended",
       [](const Policy& p) { return fmt::format("{} min after the hours", p.stop_after_minutes); },
       reader(&Policy::stop_after_minutes, counter(24 * 60, "as minutes: 10")), putter(&Policy::stop_after_minutes)},
      {"idle-only", "off | on | 15m: work only while nobody used the machine for so long",
       [](const Policy& p) { return p.idle.minutes == 0 ? "off" : fmt::format("after {} min", p.idle.minutes); },
       set_idle, [](Policy& p, const Policy& usual) { p.idle.minutes = usual.idle.minutes; }},
      {"idle-signs", "input,terminals,gpu,load: what counts as use",
       [](const Policy& p) {
         std::vector<std::string> words;
         if (p.idle.input) words.emplace_back("input");
         if (p.idle.terminals) words.emplace_back("terminals");
         if (p.idle.gpu) words.emplace_back("gpu");
         if (p.idle.load) words.emplace_back("load");
         return joined(words, "none");
       },
       set_signs,
       [](Policy& p, const Policy& usual) {
         const std::int64_t minutes = p.idle.minutes, load = p.idle.load_percent;
         p.idle = usual.idle;
         p.idle.minutes = minutes;
         p.idle.load_percent = load;
       }},
      {"idle-load", "percent of all CPUs that your own programs may use while the machine counts as idle",
       [](const Policy& p) { return fmt::format("{} %", p.idle.load_percent); },
       [](Policy& p, const std::string& key, const std::string& value) -> Status {
         const std::int64_t percent = TRY(plain(key, value, 100, "as a percentage from 1 to 100"));
         if (percent < 1) return written(key, "as a percentage from 1 to 100");
         p.idle.load_percent = percent;
         return {};
       },
       [](Policy& p, const Policy& usual) { p.idle.load_percent = usual.idle.load_percent; }}};
}

std::vector<Limit> share_limits() {
  const auto all = [](std::int64_t value, const std::string& text) {
    return value == 0 ? "all but the reserve" : text;
  };
  return {
      {"cpus", "N | all", [all](const Policy& p) { return all(p.max_cpu_milli, cpus_text(p.max_cpu_milli)); },
       milli_reader(&Policy::max_cpu_milli), putter(&Policy::max_cpu_milli)},
      {"memory", "32GiB | all",
       [all](const Policy& p) { return all(p.max_memory_bytes, size_text(p.max_memory_bytes)); },
       reader(&Policy::max_memory_bytes,
              [](const std::string& key, const std::string& value) -> Result<std::int64_t> {
                if (value == "all") return std::int64_t{0};
                return bytes(key, value);
              }),
       putter(&Policy::max_memory_bytes)},
      {"gpus", "all | N | GPU-...[,GPU-...]",
       [](const Policy& p) {
         if (!p.gpu_uuids.empty()) return joined(p.gpu_uuids, "all");
         return p.max_gpus < 0 ? std::string("all") : std::to_string(p.max_gpus);
       },
       set_gpus,
       [](Policy& p, const Policy& usual) {
         p.max_gpus = usual.max_gpus;
         p.gpu_uuids = usual.gpu_uuids;
       }},
      {"gpu-sharing",
       "on | off: a GPU may serve several leases of one organisation at a time; their memory is not apart",
       [](const Policy& p) { return on(p.gpu_sharing); }, flag_reader(&Policy::gpu_sharing),
       putter(&Policy::gpu_sharing)},
      {"gpu-power", "watts a hired GPU may draw | off",
       [](const Policy& p) {
         return p.max_gpu_power_w == 0 ? "as the driver has it" : fmt::format("{} W", p.max_gpu_power_w);
       },
       reader(&Policy::max_gpu_power_w,
              [](const std::string& key, const std::string& value) -> Result<std::int64_t> {
                if (value == "off") return std::int64_t{0};
                const bool unit = value.ends_with("W") || value.ends_with("w");
                return plain(key, unit ? value.substr(0, value.size() - 1) : value, 10'000, "in watts: 250, or off");
              }),
       putter(&Policy::max_gpu_power_w)},
      {"upload", "20mbit | unlimited", [](const Policy& p) { return rate_text(p.max_upload_bytes_s); },
       reader(&Policy::max_upload_bytes_s, rate), putter(&Policy::max_upload_bytes_s)},
      {"download", "100mbit | unlimited", [](const Policy& p) { return rate_text(p.max_download_bytes_s); },
       reader(&Policy::max_download_bytes_s, rate), putter(&Policy::max_download_bytes_s)},
      {"leases", "how many pieces of work at a time",
       [](const Policy& p) { return fmt::format("{} at a time", p.max_leases); },
       reader(&Policy::max_leases, counter(256, "as a number up to 256")), putter(&Policy::max_leases)},
      {"keep-cpus", "CPUs that are never lent", [](const Policy& p) { return cpus_text(p.reserve_cpu_milli); },
       milli_reader(&Policy::reserve_cpu_milli), putter(&Policy::reserve_cpu_milli)},
      {"keep-memory", "memory that is never lent", [](const Policy& p) { return size_text(p.reserve_memory_bytes); },
       reader(&Policy::reserve_memory_bytes, bytes), putter(&Policy::reserve_memory_bytes)},
      {"keep-disk", "free disk below which nothing new starts",
       [](const Policy& p) { return size_text(p.reserve_disk_bytes); }, reader(&Policy::reserve_disk_bytes, bytes),
       putter(&Policy::reserve_disk_bytes)}};
}

// Below 1024 only root listens, and netd is not root.
constexpr std::int64_t kPortMin = 1024;

Status set_endpoints(Policy& p, const std::string& key, const std::string& value) {
  const auto words = value == "none" ? std::vector<std::string>{} : words_of(value);
  if (words.empty() && value != "none") return written(key, "as ADDRESS:PORT[,ADDRESS:PORT] or none");
  const auto endpoints = TRY(parse_own_endpoints(words));
  if (!endpoints.empty() && endpoints.front().port < kPortMin && p.udp_port == 0)
    return error(Code::InvalidArgument,
                 fmt::format("'{}': no program but root's can listen on port {}; forward it to a higher one and name "
                             "that first: limits set udp-port 41641 {} {}",
                             words.front(), endpoints.front().port, key, value),
                 key);
  p.endpoints = words;
  return {};
}

Status set_udp_port(Policy& p, const std::string& key, const std::string& value) {
  if (value == "any") return p.udp_port = 0, Status{};
  const std::int64_t port = TRY(plain(key, value, 65'535, "as a port from 1024 to 65535, or any"));
  if (port < kPortMin) return written(key, "as a port from 1024 to 65535, or any");
  p.udp_port = port;
  return {};
}

std::vector<Limit> network_limits() {
  return {
      {"relay-only",
       "on | off: other members never learn this machine's address; everything goes by relays, and slower",
       [](const Policy& p) { return on(p.relay_only); }, flag_reader(&Policy::relay_only), putter(&Policy::relay_only)},
      {"port-mapping",
       "on | off: while there is a lease your router is asked to let its members in (PCP, NAT-PMP, UPnP)",
       [](const Policy& p) { return on(p.port_mapping); }, flag_reader(&Policy::port_mapping),
       putter(&Policy::port_mapping)},
      {"endpoint", "ADDRESS:PORT[,...] | none: where members reach this machine, by a UDP port that you forward",
       [](const Policy& p) { return joined(p.endpoints, "none"); }, set_endpoints, putter(&Policy::endpoints)},
      {"udp-port", "N | any: the UDP port that members send to; any: that of the first endpoint where you say one",
       [](const Policy& p) { return p.udp_port == 0 ? "any" : std::to_string(p.udp_port); }, set_udp_port,
       putter(&Policy::udp_port)}};
}

std::vector<Limit> permission_limits() {
  return {
      {"egress", "on | off: clusters may reach the internet, filtered",
       [](const Policy& p) { return on(p.egress_allowed); }, flag_reader(&Policy::egress_allowed),
       putter(&Policy::egress_allowed)},
      {"carry", "on | off: other members of its clusters may send to each other through this machine",
       [](const Policy& p) { return on(p.carry_allowed); }, flag_reader(&Policy::carry_allowed),
       putter(&Policy::carry_allowed)},
      {"carry-rate", "20mbit | unlimited: of what is carried",
       [](const Policy& p) { return rate_text(p.max_carry_bytes_s); }, reader(&Policy::max_carry_bytes_s, rate),
       putter(&Policy::max_carry_bytes_s)},
      {"carry-month", "100GiB | unlimited: of what is carried in a month",
       [](const Policy& p) {
         return p.max_carry_bytes_per_month == 0 ? "unlimited" : size_text(p.max_carry_bytes_per_month);
       },
       reader(&Policy::max_carry_bytes_per_month,
              [](const std::string& key, const std::string& value) -> Result<std::int64_t> {
                if (value == "unlimited") return std::int64_t{0};
                return bytes(key, value);
              }),
       putter(&Policy::max_carry_bytes_per_month)},
      {"test", "on | off: short tests of how much direct ways to other members carry, while nothing else goes there",
       [](const Policy& p) { return on(p.tests_allowed); }, flag_reader(&Policy::tests_allowed),
       putter(&Policy::tests_allowed)},
      {"test-rate", "20mbit | unlimited: of a test", [](const Policy& p) { return rate_text(p.max_test_bytes_s); },
       reader(&Policy::max_test_bytes_s, rate), putter(&Policy::max_test_bytes_s)},
      {"test-month", "1GiB | unlimited: of all tests in a month, sent and received",
       [](const Policy& p) {
         return p.max_test_bytes_per_month == 0 ? "unlimited" : size_text(p.max_test_bytes_per_month);
       },
       reader(&Policy::max_test_bytes_per_month,
              [](const std::string& key, const std::string& value) -> Result<std::int64_t> {
                if (value == "unlimited") return std::int64_t{0};
                return bytes(key, value);
              }),
       putter(&Policy::max_test_bytes_per_month)},
      {"exec", "on | off: people may open a shell in containers of their own",
       [](const Policy& p) { return on(p.exec_allowed); }, flag_reader(&Policy::exec_allowed),
       putter(&Policy::exec_allowed)},
      {"images", "any | prefix[,prefix][,!pattern]", [](const Policy& p) { return joined(p.images, "any"); },
       [](Policy& p, const std::string& key, const std::string& value) -> Status {
         const auto words = value == "any" ? std::vector<std::string>{} : words_of(value);
         if (words.size() > 256 || (words.empty() && value != "any"))
           return written(key, "as any or prefixes: muster/,rayproject/, and what is denied: !evil/*");
         p.images = words;
         return {};
       },
       putter(&Policy::images)},
      {"root", "what one container may write beside its workspace: 20GiB",
       [](const Policy& p) { return size_text(p.max_root_bytes); }, reader(&Policy::max_root_bytes, bytes),
       putter(&Policy::max_root_bytes)},
      {"workspace", "100GiB | all",
       [](const Policy& p) {
         return p.max_workspace_bytes == 0 ? "what is free but the reserve" : size_text(p.max_workspace_bytes);
       },
       reader(&Policy::max_workspace_bytes,
              [](const std::string& key, const std::string& value) -> Result<std::int64_t> {
                if (value == "all") return std::int64_t{0};
                return bytes(key, value);
              }),
       putter(&Policy::max_workspace_bytes)},
      {"runtimes", "docker,venv: what may be used",
       [](const Policy& p) { return joined(p.runtimes, "the engine, else venv"); },
       [](Policy& p, const std::string& key, const std::string& value) -> Status {
         const auto words = words_of(value);
         for (const auto& word : words) {
           if (word != "docker" && word != "venv") return written(key, "as a list of docker, venv");
         }
         if (words.empty()) return written(key, "as a list of docker, venv");
         p.runtimes = words;
         return {};
       },
       putter(&Policy::runtimes)},
      {"python-index", "URL of the package index for virtual environments",
       [](const Policy& p) { return p.python_index.empty() ? "PyPI" : p.python_index; },
       [](Policy& p, const std::string& key, const std::string& value) -> Status {
         if (!value.starts_with("https://") || value.size() > 300) return written(key, "as https://HOST/simple");
         p.python_index = value;
         return {};
       },
       putter(&Policy::python_index)},
      {"uv", "PATH of uv, for virtual environments",
       [](const Policy& p) { return p.uv.empty() ? "where it usually is" : p.uv; },
       [](Policy& p, const std::string& key, const std::string& value) -> Status {
         if (!value.starts_with('/') || value.size() > 200) return written(key, "as an absolute path");
         p.uv = value;
         return {};
       },
       putter(&Policy::uv)},
      {"engine-socket", "PATH | default",
       [](const Policy& p) { return p.engine_socket.empty() ? "the engine's usual place" : p.engine_socket; },
       [](Policy& p, const std::string& key, const std::string& value) -> Status {
         if (!value.starts_with('/') || value.size() > 100) return written(key, "as an absolute path");
         p.engine_socket = value;
         return {};
       },
       putter(&Policy::engine_socket)},
      {"metrics-port", "off | N: Prometheus metrics on 127.0.0.1:N",
       [](const Policy& p) {
         return p.metrics_port == 0 ? "off" : fmt::format("http://127.0.0.1:{}/metrics", p.metrics_port);
       },
       reader(&Policy::metrics_port, counter(65'535, "as a port number, or off")), putter(&Policy::metrics_port)}};
}

const std::vector<Limit>& limits() {
  static const std::vector<Limit> all = [] {
    std::vector<Limit> out = time_limits();
    for (auto& limit : share_limits()) out.push_back(std::move(limit));
    for (auto& limit : network_limits()) out.push_back(std::move(limit));
    for (auto& limit : permission_limits()) out.push_back(std::move(limit));
    return out;
  }();
  return all;
}

}  // namespace

std::vector<std::pair<std::string, std::string>> describe_limits(const Policy& policy) {
  std::vector<std::pair<std::string, std::string>> out;
  for (const auto& limit : limits()) out.emplace_back(limit.key, limit.show(policy));
  return out;
}

Status set_limit(Policy& policy, const std::string& key, const std::string& value) {
  for (const auto& limit : limits()) {
    if (limit.key != key) continue;
    if (value == "default") return limit.reset(policy, Policy{}), Status{};
    return limit.set(policy, key, value);
  }
  return error(Code::NotFound, fmt::format("there is no limit '{}'; `muster-agent limits --help` lists them", key),
               "key");
}

std::string limits_help() {
  std::string out =
      "muster-agent limits: what you lend, and when. privd obeys a change within a second; nobody else can widen "
      "it.\n\n"
      "  muster-agent limits                      show all\n"
      "  muster-agent limits set KEY VALUE [KEY VALUE]...\n"
      "  muster-agent limits set KEY default      put one back\n"
      "  muster-agent limits reset                put all back\n\n";
  for (const auto& limit : limits()) out += fmt::format("  {:<14} {}\n", limit.key, limit.how);
  out +=
      "\nExamples:\n  sudo muster-agent limits set hours 20:00-08:00 idle-only 15m\n"
      "  sudo muster-agent limits set gpu-power 250 upload 20mbit memory 32GiB\n";
  return out;
}

}  // namespace muster::host
