#pragma once
// The doctor's look at the firewall: does anybody's rule stop our processes, and whose. A packet of ours is marked in a
// table of our own (`inet muster_doctor`, removed at once) and followed through the kernel with nft's trace, so the
// rule that drops it is named as it stands. Rules of iptables-legacy are not seen by nft; their presence is said. Root
// only.
#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "egress/address.h"
#include "host/doctor.h"

namespace muster::host {

struct BlockingRule {
  std::string table, chain, rule;  // "inet ufw", "user-output", "ip daddr 1.2.3.4 drop"
  std::string tool;                // whose it is: "ufw", "firewalld", "Docker", "iptables"; empty: not known
  bool operator==(const BlockingRule&) const = default;
};
// The last word of what `nft monitor trace` said about one packet; nothing when it passed. `ours` is skipped.
std::optional<BlockingRule> read_trace(const std::string& said, const std::string& ours);

enum class Knock : std::uint8_t { Tcp, Udp };
// Sends the first packet of a TCP connection, or a datagram, as this user. NotFound: the kernel traced nothing.
Result<std::optional<BlockingRule>> who_blocks(uid_t uid, const egress::Ip& ip, std::uint16_t port,
                                               Knock knock = Knock::Tcp);
// What its owner does about a rule that stops that user, in the words of the tool that made it.
std::string repair_of(const BlockingRule& rule, uid_t uid, const egress::Ip& ip, std::uint16_t port, Knock knock);

// server: "https://host[:port]", may be empty.
std::vector<Finding> examine_firewall(const Layout& layout, const std::string& server);

}  // namespace muster::host
