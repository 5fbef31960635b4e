#include "host/owner_network.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <fstream>
#include <optional>
#include <sstream>

#include "base/ipv4.h"
#include "base/log.h"
#include "host/policy.h"

namespace muster::host {
namespace {

constexpr std::size_t kFileMax = 4096;

Error refused(std::string_view text, const std::string& why) {
  return error(Code::InvalidArgument, fmt::format("'{}' {}", text.substr(0, 80), why), "endpoint");
}
std::optional<std::uint16_t> port_in(std::string_view text) {
  unsigned port = 0;
  const auto [end, fault] = std::from_chars(text.data(), text.data() + text.size(), port);
  if (fault != std::errc() || end != text.data() + text.size() || port == 0 || port > 65'535) return {};
  return static_cast<std::uint16_t>(port);
}

Result<overlay::Endpoint> endpoint4(std::string_view text, std::uint32_t ip, std::uint16_t port) {
  if (is_shared(ip)) return refused(text, "is in a carrier's own network (100.64.0.0/10): nobody outside reaches it");
  if (!is_public(ip) && !is_private(ip))
    return refused(text, "is no address of a machine that others could send to; say the one they reach this one at");
  return overlay::Endpoint::udp(ip, port);
}
Result<overlay::Endpoint> endpoint6(std::string_view text, const Ip6& six, std::uint16_t port) {
  if (!is_global(six) && !is_unique_local(six))
    return refused(text,
                   "is no address that others could send to; it must be global (2000::/3) or a site's (fc00::/7)");
  return overlay::Endpoint::udp6(six, port);
}

}  // namespace

bool OwnerNetwork::has_ipv4() const {
  return std::ranges::any_of(endpoints, [](const auto& e) { return e.kind == overlay::Endpoint::Kind::Udp; });
}

Result<overlay::Endpoint> parse_own_endpoint(std::string_view text) {
  const std::string form =
      "is written ADDRESS:PORT, such as 198.51.100.7:41641 or [2001:db8::1]:41641; names are not looked up";
  const auto colon = text.rfind(':');
  const auto port = colon == std::string_view::npos ? std::nullopt : port_in(text.substr(colon + 1));
  if (!port || text.size() > 64) return refused(text, form);
  const std::string host(text.substr(0, colon));
  in_addr four{};
  if (inet_pton(AF_INET, host.c_str(), &four) == 1) return endpoint4(text, ntohl(four.s_addr), *port);
  in6_addr six{};
  if (host.size() < 2 || host.front() != '[' || host.back() != ']' ||
      inet_pton(AF_INET6, host.substr(1, host.size() - 2).c_str(), &six) != 1)
    return refused(text, form);
  Ip6 raw;
  std::memcpy(raw.data(), &six, raw.size());
  return endpoint6(text, raw, *port);
}

Result<std::vector<overlay::Endpoint>> parse_own_endpoints(const std::vector<std::string>& texts) {
  std::vector<overlay::Endpoint> out;
  std::size_t four = 0, six = 0;
  for (const std::string& text : texts) {
    const auto endpoint = TRY(parse_own_endpoint(text));
    if (std::ranges::find(out, endpoint) != out.end()) return refused(text, "is said twice");
    if (++(endpoint.kind == overlay::Endpoint::Kind::Udp6 ? six : four) > kOwnEndpointsMax)
      return refused(text, "is one too many: two of IPv4 and two of IPv6 are told to others");
    out.push_back(endpoint);
  }
  return out;
}

std::string own_endpoint_text(const overlay::Endpoint& e) {
  if (e.kind == overlay::Endpoint::Kind::Udp6) return fmt::format("[{}]:{}", text_of(e.six), e.port);
  return fmt::format("{}.{}.{}.{}:{}", e.ip >> 24, e.ip >> 16 & 255, e.ip >> 8 & 255, e.ip & 255, e.port);
}

// Whoever says an endpoint and no port forwards the same number inwards.
OwnerNetwork owner_network(const Policy& policy) {
  OwnerNetwork out;
  out.relay_only = policy.relay_only;
  out.port_mapping = policy.port_mapping;
  out.udp_port = static_cast<std::uint16_t>(policy.udp_port);
  if (auto endpoints = parse_own_endpoints(policy.endpoints); endpoints.ok()) out.endpoints = std::move(*endpoints);
  if (out.udp_port == 0 && !out.endpoints.empty()) out.udp_port = out.endpoints.front().port;
  return out;
}

std::string owner_network_text(const OwnerNetwork& network) {
  std::string out = fmt::format("relay-only {}\nport-mapping {}\nudp-port {}\n", network.relay_only ? 1 : 0,
                                network.port_mapping ? 1 : 0, network.udp_port);
  for (const auto& endpoint : network.endpoints) out += "endpoint " + own_endpoint_text(endpoint) + "\n";
  return out;
}

Result<OwnerNetwork> parse_owner_network(std::string_view text) {
  OwnerNetwork out;
  std::vector<std::string> endpoints;
  std::istringstream lines{std::string(text)};
  for (std::string line; std::getline(lines, line);) {
    const auto space = line.find(' ');
    const std::string key = line.substr(0, space), value = space == std::string::npos ? "" : line.substr(space + 1);
    const auto flag = [&](bool& into) -> Status {
      if (value != "0" && value != "1")
        return error(Code::InvalidArgument, fmt::format("'{}' is 0 or 1", key.substr(0, 64)), "network");
      into = value == "1";
      return {};
    };
    if (key == "relay-only") TRY_VOID(flag(out.relay_only));
    if (key == "port-mapping") TRY_VOID(flag(out.port_mapping));
    if (key == "udp-port") {
      const auto port = value == "0" ? std::optional<std::uint16_t>(0) : port_in(value);
      if (!port) return error(Code::InvalidArgument, "'udp-port' is a port, or 0", "network");
      out.udp_port = *port;
    }
    if (key == "endpoint" && endpoints.size() <= 2 * kOwnEndpointsMax) endpoints.push_back(value);
  }
  out.endpoints = TRY(parse_own_endpoints(endpoints));
  return out;
}

OwnerNetwork read_owner_network(const std::string& path) {
  std::ifstream file(path);
  if (!file) return {};
  std::string text(kFileMax, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<std::size_t>(file.gcount()));
  const auto read = parse_owner_network(text);
  if (read.ok()) return *read;
  log_warn("network", "{} is damaged ({}): this machine hides its address until it is written again", path,
           read.error().message);
  OwnerNetwork hidden;
  hidden.relay_only = true;
  hidden.port_mapping = false;
  return hidden;
}

bool OwnerNetworkFile::refresh() {
  if (path_.empty()) return false;
  struct stat info {};
  const bool there = stat(path_.c_str(), &info) == 0;
  const std::int64_t changed =
      there ? std::int64_t{info.st_mtim.tv_sec} * 1'000'000'000 + info.st_mtim.tv_nsec : std::int64_t{0};
  if (changed == seen_ns_) return false;
  seen_ns_ = changed;
  OwnerNetwork said = read_owner_network(path_);
  if (said == now_) return false;
  now_ = std::move(said);
  return true;
}

}  // namespace muster::host
