#pragma once
// The texts for nft: one table `inet muster` in the machine's own namespace, that holds the egress process to what its
// rules say, and one in a lease's namespace, that turns what leaves the overlay to the listeners of the egress process
// and refuses the rest at once. Each text replaces its table as one transaction and names no chain of anybody else. The
// same input gives the same text. Pure.
#include <string>

#include "egress/rules.h"

namespace muster::egress {

struct HostTable {
  std::uint32_t uid = 0;      // of the egress process
  std::vector<Ip> resolvers;  // may be asked on port 53, wherever they are
  Rules rules;
  bool operator==(const HostTable&) const = default;
};
std::string host_ruleset(const HostTable& table);

struct LeaseTable {
  std::uint32_t address = 0;  // overlay, host order
  std::uint8_t prefix_bits = 16;
  std::uint16_t tcp4 = 0, tcp6 = 0, dns4 = 0, dns6 = 0;  // listeners on the namespace's loopback; 0: that family is off
  bool operator==(const LeaseTable&) const = default;
};
std::string lease_ruleset(const LeaseTable& table);

// The name server of a lease: an address that nobody has. Questions to it, and to any public name server, are turned to
// the egress process.
inline constexpr std::string_view kLeaseNameServer = "192.0.2.53";
// The IPv6 address of a lease on its loopback (unique local), so that programs have one to send from.
Ip lease_ip6(std::uint32_t overlay_address);

}  // namespace muster::egress
