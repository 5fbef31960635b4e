#pragma once
// The part of STUN (RFC 8489) with which a machine learns what its UDP socket looks like from outside: a Binding
// request without attributes, and the answer's XOR-MAPPED-ADDRESS. Sans-I/O, IPv4. An answer counts only with the
// transaction that was asked; it is not authenticated, so what it says is a guess that a probe has to confirm. The
// first byte of a request is 0 and of an answer 1 with a second byte that is not zero, so neither is taken for a
// WireGuard message.
#include <array>
#include <cstdint>
#include <optional>

#include "base/bytes.h"
#include "overlay/device.h"

namespace muster::overlay {

using StunTransaction = std::array<std::uint8_t, 12>;
inline constexpr std::size_t kStunHeader = 20;

Bytes stun_request(const StunTransaction& transaction);
// nullopt: not a Binding request (attributes are skipped, none is understood or demanded).
std::optional<StunTransaction> read_stun_request(ByteView datagram);
// 32 bytes, for whoever asked from there.
Bytes stun_answer(const StunTransaction& transaction, std::uint32_t ip, std::uint16_t port);
bool is_stun_answer(ByteView datagram);  // at a glance
std::optional<Endpoint> read_stun_answer(ByteView datagram, const StunTransaction& asked);

}  // namespace muster::overlay
