#pragma once
// What the agent and netd say to each other on a local SOCK_SEQPACKET socket: one request, one reply, in order; a TUN
// descriptor travels beside AddLease. Own compact encoding (big endian, length-prefixed), strict on reading: netd never
// trusts the agent's bytes more than a peer's. Limits: a message <= kLargeBytesMax (a roster of kRosterMembersMax).
// Values only. Kinds are only ever added at the end: agent and netd of an update live side by side for a while.
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"
#include "net/net.h"
#include "session/frames.h"

namespace muster::host::netd {

struct RelayAddress {
  std::string host;
  std::uint16_t port = 0;
  bool operator==(const RelayAddress&) const = default;
};

// Makes the lease's overlay key, or finds it again; a descriptor beside it (optional) is the lease's TUN from now on.
struct AddLease {
  std::string lease;
  bool operator==(const AddLease&) const = default;
};
// Everything a lease's network needs; may be sent again at any time and replaces what was there. An empty token or psk
// keeps the one known; an empty roster only changes the rest.
struct Configure {
  std::string lease;
  std::uint32_t address = 0;
  std::uint8_t prefix_bits = 16;
  Bytes roster;
  std::vector<Bytes> signatures;
  std::vector<Bytes> signers;  // Ed25519 public keys that must all have signed
  std::vector<RelayAddress> relays;
  std::string relay_ca_pem, relay_server_name{net::kRelayName};
  Bytes relay_token;
  Bytes psk;  // 32 bytes or empty
  // The CA that must vouch for the roster's machines, and its proofs; empty: nobody does (tests).
  std::string machine_ca_pem = {};
  Bytes machines = {};
  bool operator==(const Configure&) const = default;
};
struct RemoveLease {
  std::string lease;
  bool operator==(const RemoveLease&) const = default;
};
struct GetStats {
  std::string lease;
  bool operator==(const GetStats&) const = default;
};
struct GetInfo {
  bool operator==(const GetInfo&) const = default;
};
// How the lease's network stands in detail: a Paths.
struct GetPaths {
  std::string lease;
  bool operator==(const GetPaths&) const = default;
};
// The relays, each with its token; from then on those of Configure, of before there were several, are not looked at. An
// empty list keeps those known.
struct SetRelays {
  std::string lease;
  std::vector<session::RelayGrant> relays;
  bool operator==(const SetRelays&) const = default;
};
// Where the router leads what comes for our UDP port, as the agent got it to (port_mapper.h); no places: nowhere.
struct SetMapped {
  std::vector<session::NetPlace> places;  // kMappedMax at most
  std::string how;                        // "PCP"; session::kNetMappedMax at most
  bool operator==(const SetMapped&) const = default;
};
inline constexpr std::size_t kMappedMax = 2;
using Request = std::variant<AddLease, Configure, RemoveLease, GetStats, GetInfo, GetPaths, SetRelays, SetMapped>;

struct Failed {
  std::uint8_t code = 0;
  std::string message;
  bool operator==(const Failed&) const = default;
};  // muster::Code
struct Done {
  bool operator==(const Done&) const = default;
};
struct LeaseKey {
  Bytes public_key;
  bool operator==(const LeaseKey&) const = default;
};
struct Configured {
  std::uint64_t incarnation = 0, epoch = 0, rejected = 0;
  bool operator==(const Configured&) const = default;
};
struct PeerLine {
  std::uint32_t address = 0;
  std::uint64_t rx_bytes = 0, tx_bytes = 0;
  std::int64_t last_handshake_ms = 0; /* WallTime, 0 = never */
  std::string path;                   /* "relay" or "ip:port" */
  bool operator==(const PeerLine&) const = default;
};
struct Stats {
  bool tun = false, relay_up = false;
  std::string relay_detail;
  std::uint64_t incarnation = 0, epoch = 0;
  std::vector<PeerLine> peers;
  bool operator==(const Stats&) const = default;
};
struct LeaseLine {
  std::string lease;
  Bytes public_key;
  bool tun = false, configured = false;
  bool operator==(const LeaseLine&) const = default;
};
struct Info {
  std::uint16_t udp_port = 0;
  std::vector<LeaseLine> leases;
  bool operator==(const Info&) const = default;
};
struct Paths {
  session::NetReport report;                                 // without the lease's id
  std::uint32_t relayed = 0, lan = 0, direct = 0, peer = 0;  // of all members that it ever talked to
  std::uint32_t relayed_udp = 0;                             // by a relay over UDP; `relayed` are the others
  std::uint32_t limited = 0;                                 // of them, to whom it is known how much the path carries
  bool operator==(const Paths&) const = default;
};
using Reply = std::variant<Failed, Done, LeaseKey, Configured, Stats, Info, Paths>;

std::string encode(const Request& request);
std::string encode(const Reply& reply);
Result<Request> decode_request(std::string_view bytes);
Result<Reply> decode_reply(std::string_view bytes);
std::optional<RelayAddress> parse_relay(std::string_view text);  // "host:port"
bool valid_lease_name(std::string_view lease);                   // [a-z0-9-], 1 to 64: it becomes a file name

}  // namespace muster::host::netd
