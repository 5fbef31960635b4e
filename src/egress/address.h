#pragma once
// IP addresses as values, prefixes, and the kind of place an address names, by the special-purpose registries of IANA
// (RFC 6890 and its updates) and the addresses where clouds keep their metadata. Public is only what the registries
// call globally reachable: everything else never leaves a lease. Pure functions.
#include <array>
#include <compare>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"

namespace muster::egress {

struct Ip {
  std::array<std::uint8_t, 16> bytes{};  // network order; an IPv4 address fills the first four, the rest is 0
  bool six = false;
  static Ip four(std::uint32_t host_order);
  static Ip from_bytes(ByteView bytes);  // 4 or 16 of them
  std::uint32_t v4() const;              // host order; of an IPv4 address
  std::size_t bits() const { return six ? 128 : 32; }
  auto operator<=>(const Ip&) const = default;
};
std::optional<Ip> parse_ip(std::string_view text);  // without zone, port or brackets
std::string to_text(const Ip& ip);

struct Prefix {
  Ip base;
  std::uint8_t bits = 0;
  auto operator<=>(const Prefix&) const = default;
};
Prefix make_prefix(const Ip& ip, std::size_t bits);         // bits beyond are cleared
std::optional<Prefix> parse_prefix(std::string_view text);  // "10.0.0.0/8"; an address alone is itself
std::string to_text(const Prefix& prefix);
bool contains(const Prefix& prefix, const Ip& ip);

enum class Place : std::uint8_t {
  Public,
  Unspecified,
  Private,
  Loopback,
  LinkLocal,
  Metadata,
  Cgnat,
  Multicast,
  Reserved,
  Documentation,
  Benchmark,
  Mapped,      // an IPv4 address in IPv6 clothes
  Translated,  // NAT64 and other translators
  SixToFour,
  Teredo,
  Isatap
};
Place place_of(const Ip& ip);
std::string_view place_name(Place place);  // stable: "private", "loopback", ...

struct Special {
  Prefix prefix;
  Place place;
};
const std::vector<Special>& special_places();  // both families, the more specific first
Prefix global_unicast();                       // 2000::/3: all of IPv6 that is handed out

}  // namespace muster::egress
