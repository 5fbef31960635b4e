#pragma once
// IPv4 addresses as numbers in host order.
#include <cstdint>

namespace muster {

// Of a network at home or in a company (RFC 1918).
constexpr bool is_private(std::uint32_t ip) {
  return ip >> 24 == 10 || ip >> 20 == 0xac1 || ip >> 16 == 0xc0a8;
}
// Of a carrier, behind its NAT (RFC 6598); the overlays of clusters have their addresses there too.
constexpr bool is_shared(std::uint32_t ip) {
  return ip >> 22 == 0x64400000 >> 22;
}
// One that others may reach over the internet, as far as its number shows. Networks of documents count: they are
// nobody's.
constexpr bool is_public(std::uint32_t ip) {
  const bool own = ip >> 24 == 0 || ip >> 24 == 127 || ip >> 16 == 0xa9fe || ip >> 28 >= 14;
  return !own && !is_private(ip) && !is_shared(ip) && ip >> 8 != 0xc00000 && ip >> 17 != 0xc6120000 >> 17;
}

}  // namespace muster
