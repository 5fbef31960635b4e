#include "overlay/packet.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/endian.h"

namespace muster::overlay {
namespace {

constexpr std::uint8_t kProtocolOfIcmp = 1, kProtocolOfTcp = 6, kProtocolOfIcmp6 = 58, kFragmentHeader = 44;
constexpr std::uint8_t kTcpFin = 1, kTcpSyn = 2, kTcpRst = 4, kTcpAck = 16;
constexpr std::size_t kIp4Bytes = 20, kIp6Bytes = 40, kLeastMtu6 = 1'280;
// Linux takes "host unreachable" (1) for a passing trouble that a UDP socket need not hear of; this code it reports at
// once.
constexpr std::uint8_t kProhibited = 13, kFragmentationNeeded = 4;
constexpr std::uint8_t kUnreachable = 3, kUnreachable6 = 1, kTooBig6 = 2, kProhibited6 = 1;

struct Parsed {
  ByteView whole, payload;
  std::uint8_t protocol;
  bool six;
};

std::optional<Parsed> parse(ByteView packet) {
  const auto ends = packet_ends(packet);
  if (!ends) return {};
  if (packet[0] >> 4 == 6)
    return Parsed{packet.first(ends->bytes), packet.first(ends->bytes).subspan(kIp6Bytes), packet[6], true};
  const std::size_t header = (packet[0] & 15U) * std::size_t{4};
  if (header < kIp4Bytes || ends->bytes < header) return {};
  if ((load_be16(packet.data() + 6) & 0x1fff) != 0) return {};  // a later fragment
  if (ends->destination >> 28 >= 14 || ends->source == 0) return {};
  return Parsed{packet.first(ends->bytes), packet.first(ends->bytes).subspan(header), packet[9], false};
}

// From whom the packet was for, to whom it came from.
Bytes ip_answer(const Parsed& to, std::uint8_t protocol, std::size_t payload) {
  Bytes out((to.six ? kIp6Bytes : kIp4Bytes) + payload);
  if (to.six) {
    out[0] = 0x60;
    store_be16(out.data() + 4, static_cast<std::uint16_t>(payload));
    out[6] = protocol;
    out[7] = 64;
    std::memcpy(out.data() + 8, to.whole.data() + 24, 16);
    std::memcpy(out.data() + 24, to.whole.data() + 8, 16);
    return out;
  }
  out[0] = 0x45;
  store_be16(out.data() + 2, static_cast<std::uint16_t>(out.size()));
  out[6] = 0x40;  // don't fragment
  out[8] = 64;
  out[9] = protocol;
  std::memcpy(out.data() + 12, to.whole.data() + 16, 4);
  std::memcpy(out.data() + 16, to.whole.data() + 12, 4);
  store_be16(out.data() + 10, internet_checksum(ByteView(out).first(kIp4Bytes)));
  return out;
}

std::optional<Bytes> reset_for(const Parsed& p) {
  if (p.payload.size() < 20) return {};
  const std::uint8_t flags = p.payload[13];
  if ((flags & kTcpRst) != 0) return {};
  const std::size_t header = (p.payload[12] >> 4) * std::size_t{4};
  if (header < 20 || header > p.payload.size()) return {};
  Bytes out = ip_answer(p, kProtocolOfTcp, 20);
  std::uint8_t* tcp = out.data() + out.size() - 20;
  std::memcpy(tcp, p.payload.data() + 2, 2);
  std::memcpy(tcp + 2, p.payload.data(), 2);
  tcp[12] = 5 << 4;
  if ((flags & kTcpAck) != 0) {
    std::memcpy(tcp + 4, p.payload.data() + 8,
                4);  // exactly what the program expects next, else it must ignore the reset
    tcp[13] = kTcpRst;
  } else {
    const std::uint32_t length =
        static_cast<std::uint32_t>(p.payload.size() - header) + ((flags & kTcpSyn) != 0) + ((flags & kTcpFin) != 0);
    store_be32(tcp + 8, load_be32(p.payload.data() + 4) + length);
    tcp[13] = kTcpRst | kTcpAck;
  }
  store_be16(tcp + 16, internet_checksum({tcp, 20}, pseudo_header(out.data(), kProtocolOfTcp, 20)));
  return out;
}

// An error is no answer to an error.
std::optional<Bytes> icmp_for(const Parsed& p, std::uint8_t kind, std::uint8_t code, std::uint16_t mtu) {
  const std::uint8_t icmp_here = p.six ? kProtocolOfIcmp6 : kProtocolOfIcmp;
  if (p.protocol == icmp_here) {
    if (p.payload.empty()) return {};
    const std::uint8_t type = p.payload[0];
    if (p.six ? type < 128 : type != 8 && type != 0) return {};
  }
  const std::size_t quoted = std::min<std::size_t>(p.whole.size(), p.six ? kLeastMtu6 - kIp6Bytes - 8 : 548);
  Bytes out = ip_answer(p, icmp_here, 8 + quoted);
  std::uint8_t* icmp = out.data() + out.size() - 8 - quoted;
  icmp[0] = kind;
  icmp[1] = code;
  store_be16(icmp + 6, mtu);
  std::memcpy(icmp + 8, p.whole.data(), quoted);
  const std::uint32_t start = p.six ? pseudo_header(out.data(), kProtocolOfIcmp6, 8 + quoted) : 0;
  store_be16(icmp + 2, internet_checksum({icmp, 8 + quoted}, start));
  return out;
}

// The Fragment extension header as a sender of its own packets puts it in: we are the first hop of where they come
// from.
std::vector<Bytes> fragments6(ByteView packet, std::size_t mtu, std::uint32_t number) {
  constexpr std::size_t kExtra = 8;
  constexpr std::array<std::uint8_t, 4> kPlain = {kProtocolOfTcp, 17, kProtocolOfIcmp6, 132};  // what has no extension
  const auto ends = packet_ends(packet);
  if (!ends || ends->bytes != packet.size() || mtu >= kLeastMtu6 || mtu < kIp6Bytes + kExtra + 8) return {};
  if (std::ranges::find(kPlain, packet[6]) == kPlain.end()) return {};
  const std::size_t step = (mtu - kIp6Bytes - kExtra) / 8 * 8;
  const ByteView payload = packet.subspan(kIp6Bytes);
  std::vector<Bytes> out;
  for (std::size_t at = 0; at < payload.size(); at += step) {
    const ByteView part = payload.subspan(at, std::min(step, payload.size() - at));
    Bytes& piece = out.emplace_back(packet.begin(), packet.begin() + kIp6Bytes);
    piece[6] = kFragmentHeader;
    store_be16(piece.data() + 4, static_cast<std::uint16_t>(kExtra + part.size()));
    piece.resize(kIp6Bytes + kExtra);
    piece[kIp6Bytes] = packet[6];
    const bool more = at + part.size() != payload.size();
    store_be16(piece.data() + kIp6Bytes + 2, static_cast<std::uint16_t>(at | (more ? 1 : 0)));
    store_be32(piece.data() + kIp6Bytes + 4, number);
    piece.insert(piece.end(), part.begin(), part.end());
  }
  return out;
}

}  // namespace

Ip6 inner6(std::uint32_t address) {
  Ip6 out{};
  std::ranges::copy(kInner6, out.begin());
  store_be32(out.data() + kInner6.size(), address);
  return out;
}

std::optional<Ends> packet_ends(ByteView packet) {
  if (packet.size() < kIp4Bytes) return {};
  if (packet[0] >> 4 == 4) {
    const Ends ends{load_be32(packet.data() + 12), load_be32(packet.data() + 16), load_be16(packet.data() + 2)};
    return ends.bytes >= kIp4Bytes && ends.bytes <= packet.size() ? std::optional(ends) : std::nullopt;
  }
  if (packet[0] >> 4 != 6 || packet.size() < kIp6Bytes) return {};
  for (const std::size_t at : {8U, 24U})
    if (!std::equal(kInner6.begin(), kInner6.end(), packet.begin() + static_cast<std::ptrdiff_t>(at))) return {};
  const Ends ends{load_be32(packet.data() + 20), load_be32(packet.data() + 36),
                  kIp6Bytes + load_be16(packet.data() + 4)};
  return ends.bytes <= packet.size() ? std::optional(ends) : std::nullopt;
}

std::uint32_t pseudo_header(const std::uint8_t* ip, std::uint8_t protocol, std::size_t length) {
  std::uint32_t sum = protocol + static_cast<std::uint32_t>(length);
  const bool six = ip[0] >> 4 == 6;
  for (std::size_t i = six ? 8 : 12; i < (six ? 40U : 20U); i += 2) sum += load_be16(ip + i);
  return sum;
}

// Eight bytes at a time in the order of the machine, end-around; the sum of swapped words is the swapped sum (RFC 1071,
// section 2).
std::uint16_t internet_checksum(ByteView data, std::uint32_t sum) {
  const std::uint8_t* at = data.data();
  std::size_t left = data.size();
  const auto word = [](const std::uint8_t* from, std::size_t size) {
    std::uint64_t out = 0;
    std::memcpy(&out, from, size);
    return out;
  };
  // Halves, so that nothing overflows: 2^32 words fit. Four sums that do not wait for each other.
  std::uint64_t sums[4] = {0, 0, 0, 0};
  for (; left >= 32; at += 32, left -= 32) {
    for (std::size_t i = 0; i < 4; ++i) {
      const std::uint64_t w = word(at + 8 * i, 8);
      sums[i] += (w & 0xffffffff) + (w >> 32);
    }
  }
  for (; left > 0; at += std::min<std::size_t>(left, 8), left -= std::min<std::size_t>(left, 8)) {
    const std::uint64_t w = word(at, std::min<std::size_t>(left, 8));
    sums[0] += (w & 0xffffffff) + (w >> 32);
  }
  const std::uint64_t wide = sums[0] + sums[1] + sums[2] + sums[3];
  std::uint64_t folded = (wide & 0xffffffff) + (wide >> 32);
  while (folded >> 16 != 0) folded = (folded & 0xffff) + (folded >> 16);
  auto native = static_cast<std::uint16_t>(folded);
  if constexpr (std::endian::native == std::endian::little)
    native = static_cast<std::uint16_t>(native << 8 | native >> 8);
  sum = (sum & 0xffff) + (sum >> 16) + native;
  while (sum >> 16 != 0) sum = (sum & 0xffff) + (sum >> 16);
  return static_cast<std::uint16_t>(~sum);
}

std::optional<Bytes> refuse_packet(ByteView packet) {
  const auto p = parse(packet);
  if (!p) return {};
  if (p->protocol == kProtocolOfTcp) return reset_for(*p);
  return p->six ? icmp_for(*p, kUnreachable6, kProhibited6, 0) : icmp_for(*p, kUnreachable, kProhibited, 0);
}

std::optional<Bytes> refuse_too_large(ByteView packet, std::uint16_t mtu) {
  const auto p = parse(packet);
  if (!p) return {};
  if (p->six) return mtu < kLeastMtu6 ? std::nullopt : icmp_for(*p, kTooBig6, 0, mtu);
  return icmp_for(*p, kUnreachable, kFragmentationNeeded, mtu);
}

std::vector<Bytes> fragments(ByteView packet, std::size_t mtu, std::uint32_t number) {
  if (!packet.empty() && packet[0] >> 4 == 6) return fragments6(packet, mtu, number);
  constexpr std::uint16_t kDontCut = 0x4000, kMore = 0x2000, kOffset = 0x1fff;
  if (packet.size() < kIp4Bytes || packet[0] != 0x45 || load_be16(packet.data() + 2) != packet.size()) return {};
  const std::uint16_t flags = load_be16(packet.data() + 6);
  if ((flags & kDontCut) != 0 || mtu < kIp4Bytes + 8) return {};
  const std::size_t step = (mtu - kIp4Bytes) / 8 * 8;
  const ByteView payload = packet.subspan(kIp4Bytes);
  std::vector<Bytes> out;
  for (std::size_t at = 0; at < payload.size(); at += step) {
    const ByteView part = payload.subspan(at, std::min(step, payload.size() - at));
    Bytes& piece = out.emplace_back(packet.begin(), packet.begin() + kIp4Bytes);
    const bool last = at + part.size() == payload.size();
    const std::size_t offset = (flags & kOffset) + at / 8;
    store_be16(piece.data() + 2, static_cast<std::uint16_t>(kIp4Bytes + part.size()));
    store_be16(piece.data() + 6, static_cast<std::uint16_t>(offset | (last ? flags & kMore : kMore)));
    store_be16(piece.data() + 10, 0);
    store_be16(piece.data() + 10, internet_checksum(ByteView(piece).first(kIp4Bytes)));
    piece.insert(piece.end(), part.begin(), part.end());
  }
  return out;
}

}  // namespace muster::overlay
