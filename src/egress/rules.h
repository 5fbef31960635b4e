#pragma once
// What may leave a lease: public addresses that are none of the machine's own networks, on ports that the owner does
// not refuse. The same rules are checked in the egress process and written into the kernel's table (ruleset.h). Pure.
#include <string_view>

#include "egress/address.h"

namespace muster::egress {

struct PortRange {
  std::uint16_t from = 0, to = 0;
  auto operator<=>(const PortRange&) const = default;
};
std::optional<PortRange> parse_ports(std::string_view text);  // "443" or "6660-6669"
std::string to_text(const PortRange& range);

struct Rules {
  std::vector<Prefix> local;           // the machine's own addresses and networks, its router's public address
  std::vector<Prefix> deny;            // the owner's wish
  std::vector<PortRange> deny_ports;   // mail, file shares, remote desktops: see default_deny_ports()
  std::vector<PortRange> allow_ports;  // empty: every port that is not refused
  bool operator==(const Rules&) const = default;
};

// Ports whose abuse is what gets a home connection cut off.
const std::vector<PortRange>& default_deny_ports();

// A stable code ("private", "metadata", ..., "local_network", "owner", "port") or empty: may pass.
std::string_view address_refusal(const Rules& rules, const Ip& ip);
std::string_view refusal(const Rules& rules, const Ip& ip, std::uint16_t port);

// The networks that an interface address makes local: its subnet; for a public IPv6 address the /56 around it, since
// the other subnets of a home's delegated prefix are the same home.
Prefix local_network(const Ip& address, std::size_t bits);

}  // namespace muster::egress
