#pragma once
// IPv4 addresses as numbers in host order.
#include <cstdint>

namespace muster {

// Of a network at home or in a company (RFC 1918).
constexpr bool is_private(std::uint32_t ip) {
  return ip >> 24 == 10 || ip >> 20 == 0xac1 || ip >> 16 == 0xc0a8;
}

}  // namespace muster
