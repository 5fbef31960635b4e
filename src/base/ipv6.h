#pragma once
// IPv6 addresses as their sixteen bytes.
#include <array>
#include <cstdint>
#include <string>

namespace muster {

using Ip6 = std::array<std::uint8_t, 16>;

// Of a network at home or in a company (RFC 4193).
constexpr bool is_unique_local(const Ip6& ip) {
  return (ip[0] & 0xfe) == 0xfc;
}
// Routed on the internet, and standing for itself: none in which an IPv4 address hides (6to4, Teredo).
constexpr bool is_global(const Ip6& ip) {
  const bool to4 = ip[0] == 0x20 && ip[1] == 0x02, teredo = ip[0] == 0x20 && ip[1] == 1 && ip[2] == 0 && ip[3] == 0;
  return ip[0] >> 5 == 1 && !to4 && !teredo;
}
std::string text_of(const Ip6& ip);  // as RFC 5952 wants it: "2001:db8::1"

}  // namespace muster
