#pragma once
// The addresses from which this machine would send to places far away, as its routes say now. Nothing is sent: a
// socket that is only connected has its source address chosen.
#include <cstdint>
#include <optional>

#include "base/ipv6.h"

namespace muster::host {

// Of one that is not asked: a root server's network. Any global address shows the default route.
inline constexpr Ip6 kFar6 = {0x20, 0x01, 0x05, 0x00, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x0c};

// Towards that address, host order; nullopt: no way leads there.
std::optional<std::uint32_t> own_address(std::uint32_t towards);
// The IPv6 address that this machine has on the internet, or in its own site where it has none there.
std::optional<Ip6> own_address6();

}  // namespace muster::host
