#include "egress/address.h"

#include <arpa/inet.h>

#include <algorithm>
#include <charconv>

#include "base/check.h"

namespace muster::egress {
namespace {

struct Row {
  std::string_view prefix;
  Place place;
};
constexpr Row kSpecial[] = {
    // Where clouds and engines keep credentials: named on their own, although most lie in ranges below.
    {"169.254.169.254/32", Place::Metadata},
    {"169.254.170.2/32", Place::Metadata},
    {"100.100.100.200/32", Place::Metadata},
    {"168.63.129.16/32", Place::Metadata},
    {"192.0.0.192/32", Place::Metadata},
    {"fd00:ec2::254/128", Place::Metadata},
    {"fd20:ce::254/128", Place::Metadata},
    {"0.0.0.0/8", Place::Unspecified},
    {"10.0.0.0/8", Place::Private},
    {"100.64.0.0/10", Place::Cgnat},
    {"127.0.0.0/8", Place::Loopback},
    {"169.254.0.0/16", Place::LinkLocal},
    {"172.16.0.0/12", Place::Private},
    {"192.0.0.0/24", Place::Reserved},
    {"192.0.2.0/24", Place::Documentation},
    {"192.88.99.0/24", Place::SixToFour},
    {"192.168.0.0/16", Place::Private},
    {"198.18.0.0/15", Place::Benchmark},
    {"198.51.100.0/24", Place::Documentation},
    {"203.0.113.0/24", Place::Documentation},
    {"224.0.0.0/4", Place::Multicast},
    {"240.0.0.0/4", Place::Reserved},
    {"::/128", Place::Unspecified},
    {"::1/128", Place::Loopback},
    {"::ffff:0:0/96", Place::Mapped},
    {"::ffff:0:0:0/96", Place::Translated},
    {"::/96", Place::Mapped},
    {"64:ff9b::/96", Place::Translated},
    {"64:ff9b:1::/48", Place::Translated},
    {"2001::/32", Place::Teredo},
    {"2001::/23", Place::Reserved},
    {"2001:db8::/32", Place::Documentation},
    {"2002::/16", Place::SixToFour},
    {"3fff::/20", Place::Documentation},
    {"fc00::/7", Place::Private},
    {"fe80::/10", Place::LinkLocal},
    {"fec0::/10", Place::Private},
    {"ff00::/8", Place::Multicast},
};

// RFC 5214: an interface identifier that carries an IPv4 address, whatever the prefix.
bool isatap(const Ip& ip) {
  return (ip.bytes[8] & 0xfd) == 0 && ip.bytes[9] == 0 && ip.bytes[10] == 0x5e && ip.bytes[11] == 0xfe;
}

}  // namespace

Ip Ip::four(std::uint32_t v) {
  Ip ip;
  for (std::size_t i = 0; i < 4; ++i) ip.bytes[i] = static_cast<std::uint8_t>(v >> (24 - 8 * i));
  return ip;
}

Ip Ip::from_bytes(ByteView from) {
  MUSTER_CHECK(from.size() == 4 || from.size() == 16);
  Ip ip;
  ip.six = from.size() == 16;
  std::copy(from.begin(), from.end(), ip.bytes.begin());
  return ip;
}

std::uint32_t Ip::v4() const {
  return static_cast<std::uint32_t>(bytes[0]) << 24 | static_cast<std::uint32_t>(bytes[1]) << 16 |
         static_cast<std::uint32_t>(bytes[2]) << 8 | bytes[3];
}

std::optional<Ip> parse_ip(std::string_view text) {
  const std::string whole(text);
  Ip ip;
  if (whole.find('\0') != std::string::npos) return {};
  if (inet_pton(AF_INET, whole.c_str(), ip.bytes.data()) == 1) return ip;
  ip.six = true;
  if (inet_pton(AF_INET6, whole.c_str(), ip.bytes.data()) == 1) return ip;
  return {};
}

std::string to_text(const Ip& ip) {
  char text[INET6_ADDRSTRLEN] = {};
  inet_ntop(ip.six ? AF_INET6 : AF_INET, ip.bytes.data(), text, sizeof text);
  return text;
}

Prefix make_prefix(const Ip& ip, std::size_t bits) {
  Prefix out{ip, static_cast<std::uint8_t>(std::min(bits, ip.bits()))};
  for (std::size_t i = 0; i < 16; ++i) {
    const std::size_t kept = out.bits > 8 * i ? std::min<std::size_t>(8, out.bits - 8 * i) : 0;
    out.base.bytes[i] &= static_cast<std::uint8_t>(0xff00U >> kept);
  }
  return out;
}

std::optional<Prefix> parse_prefix(std::string_view text) {
  const auto slash = text.find('/');
  const auto ip = parse_ip(text.substr(0, slash));
  if (!ip) return {};
  if (slash == std::string_view::npos) return make_prefix(*ip, ip->bits());
  const std::string_view digits = text.substr(slash + 1);
  std::size_t bits = 0;
  const auto [end, failure] = std::from_chars(digits.data(), digits.data() + digits.size(), bits);
  if (failure != std::errc() || end != digits.data() + digits.size() || bits > ip->bits()) return {};
  return make_prefix(*ip, bits);
}

std::string to_text(const Prefix& prefix) {
  return to_text(prefix.base) + "/" + std::to_string(prefix.bits);
}

bool contains(const Prefix& prefix, const Ip& ip) {
  return prefix.base.six == ip.six && make_prefix(ip, prefix.bits).base == prefix.base;
}

const std::vector<Special>& special_places() {
  static const std::vector<Special> parsed = [] {
    std::vector<Special> out;
    for (const Row& row : kSpecial) out.push_back({parse_prefix(row.prefix).value(), row.place});
    return out;
  }();
  return parsed;
}

Prefix global_unicast() {
  Ip base;
  base.six = true;
  base.bytes[0] = 0x20;
  return {base, 3};
}

Place place_of(const Ip& ip) {
  for (const Special& special : special_places()) {
    if (contains(special.prefix, ip)) return special.place;
  }
  if (!ip.six) return Place::Public;
  if (!contains(global_unicast(), ip)) return Place::Reserved;
  return isatap(ip) ? Place::Isatap : Place::Public;
}

std::string_view place_name(Place place) {
  switch (place) {
    case Place::Public:
      return "public";
    case Place::Unspecified:
      return "unspecified";
    case Place::Private:
      return "private";
    case Place::Loopback:
      return "loopback";
    case Place::LinkLocal:
      return "link_local";
    case Place::Metadata:
      return "metadata";
    case Place::Cgnat:
      return "cgnat";
    case Place::Multicast:
      return "multicast";
    case Place::Reserved:
      return "reserved";
    case Place::Documentation:
      return "documentation";
    case Place::Benchmark:
      return "benchmark";
    case Place::Mapped:
      return "mapped";
    case Place::Translated:
      return "nat64";
    case Place::SixToFour:
      return "6to4";
    case Place::Teredo:
      return "teredo";
    case Place::Isatap:
      return "isatap";
  }
  return "reserved";
}

}  // namespace muster::egress
