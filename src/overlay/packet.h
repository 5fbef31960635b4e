#pragma once
// The packets inside: whose they are, IPv4 or IPv6, and answers to those that cannot be carried, as a router would give
// them: TCP gets a reset, so that a program notices a removed member at once; others get ICMP "administratively
// prohibited" (RFC 1812, RFC 4443); too large ones "fragmentation needed" (RFC 1191) or "packet too big" (RFC 8201).
// nullopt: nothing may be answered (ICMP errors, fragments, resets, multicast, extension headers). Pure functions.
#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "base/bytes.h"
#include "base/ipv6.h"

namespace muster::overlay {

// Each member's IPv6 address inside the overlay is this /96 (unique local, the same in every cluster) before its IPv4
// address: who may have the one may have the other, and rosters need not name it.
inline constexpr std::array<std::uint8_t, 12> kInner6 = {0xfd, 0x4d, 0x75, 0x73, 0x74, 0x65, 0x72, 0, 0, 0, 0, 0};
Ip6 inner6(std::uint32_t address);
struct Ends {
  std::uint32_t source = 0, destination = 0;  // members' IPv4 addresses, host order, of an IPv6 packet too
  std::size_t bytes = 0;                      // as its header says
};
// nullopt: neither an IPv4 packet nor an IPv6 one between two of kInner6, or shorter than its header says.
std::optional<Ends> packet_ends(ByteView packet);

std::optional<Bytes> refuse_packet(ByteView packet);
std::optional<Bytes> refuse_too_large(ByteView packet, std::uint16_t mtu);
// The parts in which a router sends on what is too large for a way and may be cut (RFC 791); empty: it may not, or has
// options. IPv6 is cut only below the 1,280 bytes that every link must carry (RFC 8200, section 5), by `number`; where
// there are extension headers it is lost.
std::vector<Bytes> fragments(ByteView packet, std::size_t mtu, std::uint32_t number);
// What checksums of TCP, UDP and ICMPv6 begin with: addresses of the header at `ip`, protocol and length.
std::uint32_t pseudo_header(const std::uint8_t* ip, std::uint8_t protocol, std::size_t length);
// One's complement sum (RFC 1071) of the data, on top of `start`.
std::uint16_t internet_checksum(ByteView data, std::uint32_t start = 0);

}  // namespace muster::overlay
