#include "egress/rules.h"

#include <algorithm>
#include <charconv>

namespace muster::egress {
namespace {

constexpr std::size_t kHomePrefix = 56;

bool any(const std::vector<Prefix>& prefixes, const Ip& ip) {
  return std::any_of(prefixes.begin(), prefixes.end(), [&](const Prefix& each) { return contains(each, ip); });
}
bool any(const std::vector<PortRange>& ranges, std::uint16_t port) {
  return std::any_of(ranges.begin(), ranges.end(),
                     [&](const PortRange& each) { return port >= each.from && port <= each.to; });
}

std::optional<std::uint16_t> parse_port(std::string_view text) {
  std::uint16_t port = 0;
  const auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), port);
  if (failure != std::errc() || end != text.data() + text.size() || port == 0) return {};
  return port;
}

}  // namespace

std::optional<PortRange> parse_ports(std::string_view text) {
  const auto dash = text.find('-');
  const auto from = parse_port(text.substr(0, dash));
  const auto to = dash == std::string_view::npos ? from : parse_port(text.substr(dash + 1));
  if (!from || !to || *from > *to) return {};
  return PortRange{*from, *to};
}

std::string to_text(const PortRange& range) {
  return range.from == range.to ? std::to_string(range.from)
                                : std::to_string(range.from) + "-" + std::to_string(range.to);
}

const std::vector<PortRange>& default_deny_ports() {
  // chargen, telnet, SMTP, RPC, NetBIOS, SNMP, SMB, submission, SSDP, RDP, SIP, adb, IRC, memcached
  static const std::vector<PortRange> ports = {{19, 19},     {23, 23},      {25, 25},     {111, 111},   {135, 139},
                                               {161, 162},   {445, 445},    {465, 465},   {587, 587},   {1900, 1900},
                                               {2323, 2323}, {2525, 2525},  {3389, 3389}, {5060, 5061}, {5555, 5555},
                                               {6660, 6669}, {11211, 11211}};
  return ports;
}

std::string_view address_refusal(const Rules& rules, const Ip& ip) {
  if (const Place place = place_of(ip); place != Place::Public) return place_name(place);
  if (any(rules.local, ip)) return "local_network";
  if (any(rules.deny, ip)) return "owner";
  return {};
}

std::string_view refusal(const Rules& rules, const Ip& ip, std::uint16_t port) {
  if (const auto code = address_refusal(rules, ip); !code.empty()) return code;
  if (port == 0 || any(rules.deny_ports, port)) return "port";
  if (!rules.allow_ports.empty() && !any(rules.allow_ports, port)) return "port";
  return {};
}

Prefix local_network(const Ip& address, std::size_t bits) {
  if (address.six && place_of(address) == Place::Public) bits = std::min(bits, kHomePrefix);
  return make_prefix(address, bits);
}

}  // namespace muster::egress
