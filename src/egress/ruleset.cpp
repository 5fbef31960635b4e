#include "egress/ruleset.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <set>

namespace muster::egress {
namespace {

// add + delete + add in one transaction: there before or not, afterwards it is exactly this.
std::string replaced(const std::string& body) {
  return "add table inet muster\ndelete table inet muster\ntable inet muster {\n" + body + "}\n";
}

// Prefixes of one family without those that lie in another, as nft writes sets.
std::string elements(const std::vector<Prefix>& prefixes, bool six) {
  std::set<std::string> out;
  for (const Prefix& each : prefixes) {
    const bool covered = std::any_of(prefixes.begin(), prefixes.end(), [&](const Prefix& other) {
      return other != each && other.bits <= each.bits && contains(other, each.base);
    });
    if (each.base.six == six && !covered) out.insert(to_text(each));
  }
  return fmt::format("{}", fmt::join(out, ", "));
}

std::string ports(const std::vector<PortRange>& ranges) {
  std::vector<std::string> out;
  for (const PortRange& each : ranges) out.push_back(to_text(each));
  return fmt::format("{{ {} }}", fmt::join(out, ", "));
}

std::vector<Prefix> never(const Rules* rules) {
  std::vector<Prefix> out;
  for (const Special& special : special_places()) out.push_back(special.prefix);
  if (rules != nullptr) {
    out.insert(out.end(), rules->local.begin(), rules->local.end());
    out.insert(out.end(), rules->deny.begin(), rules->deny.end());
  }
  return out;
}

std::string set_of(std::string_view name, bool six, const std::vector<Prefix>& prefixes) {
  return fmt::format("  set {} {{\n    type {};\n    flags interval;\n    auto-merge\n    elements = {{ {} }}\n  }}\n",
                     name, six ? "ipv6_addr" : "ipv4_addr", elements(prefixes, six));
}

// Who is turned away hears of it at once: programs do not hang.
constexpr std::string_view kNever =
    "  chain never {\n    counter\n    meta l4proto tcp reject with tcp reset\n"
    "    reject with icmpx admin-prohibited\n  }\n";

}  // namespace

std::string host_ruleset(const HostTable& table) {
  const auto prefixes = never(&table.rules);
  std::string body = set_of("never4", false, prefixes) + set_of("never6", true, prefixes) + std::string(kNever);
  body += "  chain egress {\n";
  std::set<std::string> resolvers;
  for (const Ip& ip : table.resolvers) resolvers.insert(fmt::format("{} daddr {}", ip.six ? "ip6" : "ip", to_text(ip)));
  for (const auto& resolver : resolvers)
    body += fmt::format("    {0} udp dport 53 accept\n    {0} tcp dport 53 accept\n", resolver);
  body += fmt::format(
      "    fib daddr type != unicast goto never\n    ip daddr @never4 goto never\n    ip6 daddr @never6 goto never\n"
      "    meta nfproto ipv6 ip6 daddr != {} goto never\n",
      to_text(global_unicast()));
  if (!table.rules.deny_ports.empty())
    body += fmt::format("    tcp dport {} goto never\n", ports(table.rules.deny_ports));
  if (!table.rules.allow_ports.empty())
    body += fmt::format("    tcp dport != {} goto never\n", ports(table.rules.allow_ports));
  body += "    meta l4proto tcp accept\n    goto never\n  }\n";
  body += fmt::format(
      "  chain output {{\n    type filter hook output priority 10; policy accept;\n    meta skuid {} goto egress\n  "
      "}}\n",
      table.uid);
  return replaced(body);
}

std::string lease_ruleset(const LeaseTable& table) {
  const auto prefixes = never(nullptr);
  const std::string own = to_text(make_prefix(Ip::four(table.address), table.prefix_bits));
  // What stays inside: the overlay's device, the overlay's addresses (also one's own, over lo), loopback.
  const std::string inside = fmt::format(
      "    oifname != \"lo\" accept\n    ip daddr {} accept\n    ip daddr 127.0.0.0/8 accept\n    ip6 daddr ::1 "
      "accept\n"
      "    ip6 daddr {} accept\n",
      own, to_text(lease_ip6(table.address)));
  std::string body = set_of("never4", false, prefixes) + set_of("never6", true, prefixes) + std::string(kNever);
  body += "  chain refuse {\n    type filter hook output priority -150; policy accept;\n" + inside;
  body += fmt::format("    ip daddr {0} udp dport 53 accept\n    ip daddr {0} tcp dport 53 accept\n", kLeaseNameServer);
  body += fmt::format(
      "    ip daddr @never4 goto never\n    ip6 daddr @never6 goto never\n"
      "    meta nfproto ipv6 ip6 daddr != {} goto never\n",
      to_text(global_unicast()));
  for (const auto& [family, port] : {std::pair("ipv4", table.dns4), std::pair("ipv6", table.dns6)}) {
    if (port != 0) body += fmt::format("    meta nfproto {} udp dport 53 accept\n", family);
  }
  for (const auto& [family, port] : {std::pair("ipv4", table.tcp4), std::pair("ipv6", table.tcp6)}) {
    if (port != 0) body += fmt::format("    meta nfproto {} meta l4proto tcp accept\n", family);
  }
  body += "    goto never\n  }\n  chain turn {\n    type nat hook output priority -100; policy accept;\n" + inside;
  for (const auto& [family, port] : {std::pair("ipv4", table.dns4), std::pair("ipv6", table.dns6)}) {
    if (port != 0) body += fmt::format("    meta nfproto {} udp dport 53 redirect to :{}\n", family, port);
  }
  for (const auto& [family, port] : {std::pair("ipv4", table.tcp4), std::pair("ipv6", table.tcp6)}) {
    if (port != 0) body += fmt::format("    meta nfproto {} meta l4proto tcp redirect to :{}\n", family, port);
  }
  return replaced(body + "  }\n");
}

Ip lease_ip6(std::uint32_t overlay_address) {
  Ip ip;
  ip.six = true;
  constexpr std::uint8_t kName[] = {0xfd, 'm', 'u', 's', 't', 'e', 'r', 0};
  std::copy(std::begin(kName), std::end(kName), ip.bytes.begin());
  const Ip four = Ip::four(overlay_address);
  std::copy(four.bytes.begin(), four.bytes.begin() + 4, ip.bytes.begin() + 12);
  return ip;
}

}  // namespace muster::egress
