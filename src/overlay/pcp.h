#pragma once
// The part of PCP (RFC 6887) with which a machine asks its router to lead an outside UDP port to one of its own: MAP
// requests, ANNOUNCE (is it the router that knew us?) and their answers, IPv4. Sans-I/O and strict: an answer counts
// only with the nonce, protocol and port that were asked, whole, and with options that end where the message does. It
// comes from whoever sits at the gateway's address and is not authenticated: what it says is a guess that a probe has
// to confirm.
#include <array>
#include <cstdint>
#include <optional>

#include "base/bytes.h"

namespace muster::overlay {

inline constexpr std::uint16_t kPcpPort = 5351;
inline constexpr std::size_t kPcpBytesMax = 1100, kPcpMapBytes = 60, kPcpHeader = 24;
using PcpNonce = std::array<std::uint8_t, 12>;

struct PcpMap {
  std::uint32_t client = 0;  // our address as the router sees it, host order
  PcpNonce nonce{};          // the same for each renewal: who knows it not cannot end the mapping
  std::uint16_t port = 0;
  std::uint32_t lifetime_s = 0;  // 0 ends the mapping
  std::uint32_t wish_ip = 0;     // what we had before; 0 = any
  std::uint16_t wish_port = 0;
  bool operator==(const PcpMap&) const = default;
};
enum class PcpCode : std::uint8_t {
  Success = 0,
  UnsupportedVersion = 1,
  NotAuthorized = 2,
  MalformedRequest = 3,
  UnsupportedOpcode = 4,
  UnsupportedOption = 5,
  MalformedOption = 6,
  NetworkFailure = 7,
  NoResources = 8,
  UnsupportedProtocol = 9,
  UserExceededQuota = 10,
  CannotProvideExternal = 11,
  AddressMismatch = 12,
  ExcessiveRemotePeers = 13,
};
struct PcpAnswer {
  PcpCode code = PcpCode::Success;
  std::uint32_t lifetime_s = 0;  // of the mapping, or of the fault
  std::uint32_t epoch_s = 0;     // how long the router remembers
  std::uint32_t ip = 0;          // outside, host order; 0 where there is no mapping
  std::uint16_t port = 0;
  bool operator==(const PcpAnswer&) const = default;
};

Bytes pcp_map_request(const PcpMap& map);
Bytes pcp_announce_request(std::uint32_t client);
// nullopt: not the answer to that. A router that knows only NAT-PMP says UnsupportedVersion.
std::optional<PcpAnswer> read_pcp_map(ByteView datagram, const PcpMap& asked);
std::optional<PcpAnswer> read_pcp_announce(ByteView datagram);
// The router forgot what it knew, as its clock shows beside ours (8.5); NAT-PMP's epoch is told the same way.
bool pcp_lost_state(std::uint32_t epoch_before_s, std::uint32_t epoch_s, std::uint32_t passed_s);
const char* pcp_code_text(PcpCode code);

}  // namespace muster::overlay
