#pragma once
// Answers to IPv4 packets that cannot be carried, as a router would give them: TCP gets a reset, so that a program
// notices a removed member at once; others get ICMP "administratively prohibited" (RFC 1812); too large ones
// "fragmentation needed" (RFC 1191). nullopt: nothing may be answered (ICMP errors, fragments, resets, multicast). Pure
// functions.
#include <optional>
#include <vector>

#include "base/bytes.h"

namespace muster::overlay {

std::optional<Bytes> refuse_packet(ByteView packet);
std::optional<Bytes> refuse_too_large(ByteView packet, std::uint16_t mtu);
// The parts in which a router sends on what is too large for a way and may be cut (RFC 791); empty: it may not, or has
// options.
std::vector<Bytes> fragments(ByteView packet, std::size_t mtu);
std::uint32_t packet_source(ByteView packet);  // packet: at least 20 bytes
std::uint32_t packet_destination(ByteView packet);
// One's complement sum (RFC 1071) of the data, on top of `start`.
std::uint16_t internet_checksum(ByteView data, std::uint32_t start = 0);

}  // namespace muster::overlay
