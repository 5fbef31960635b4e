#include "overlay/packet.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/endian.h"

namespace muster::overlay {
namespace {

constexpr std::uint8_t kProtocolOfIcmp = 1, kProtocolOfTcp = 6;
constexpr std::uint8_t kTcpFin = 1, kTcpSyn = 2, kTcpRst = 4, kTcpAck = 16;
constexpr std::size_t kIp4Bytes = 20;
// Linux takes "host unreachable" (1) for a passing trouble that a UDP socket need not hear of; this code it reports at
// once.
constexpr std::uint8_t kProhibited = 13, kFragmentationNeeded = 4;

struct Parsed {
  ByteView whole, payload;
  std::uint8_t protocol;
};

std::optional<Parsed> parse(ByteView packet) {
  if (packet.size() < kIp4Bytes || packet[0] >> 4 != 4) return {};
  const std::size_t header = (packet[0] & 15U) * 4;
  const std::size_t total = load_be16(packet.data() + 2);
  if (header < kIp4Bytes || total < header || total > packet.size()) return {};
  if ((load_be16(packet.data() + 6) & 0x1fff) != 0) return {};  // a later fragment
  const std::uint32_t destination = packet_destination(packet);
  if (destination >> 28 >= 14 || packet_source(packet) == 0) return {};
  return Parsed{packet.first(total), packet.first(total).subspan(header), packet[9]};
}

Bytes ip_answer(ByteView to, std::uint8_t protocol, std::size_t payload) {
  Bytes out(kIp4Bytes + payload);
  out[0] = 0x45;
  store_be16(out.data() + 2, static_cast<std::uint16_t>(out.size()));
  out[6] = 0x40;  // don't fragment
  out[8] = 64;
  out[9] = protocol;
  std::memcpy(out.data() + 12, to.data() + 16, 4);
  std::memcpy(out.data() + 16, to.data() + 12, 4);
  store_be16(out.data() + 10, internet_checksum(ByteView(out).first(kIp4Bytes)));
  return out;
}

std::optional<Bytes> reset_for(const Parsed& p) {
  if (p.payload.size() < 20) return {};
  const std::uint8_t flags = p.payload[13];
  if ((flags & kTcpRst) != 0) return {};
  const std::size_t header = (p.payload[12] >> 4) * std::size_t{4};
  if (header < 20 || header > p.payload.size()) return {};
  Bytes out = ip_answer(p.whole, kProtocolOfTcp, 20);
  std::uint8_t* tcp = out.data() + kIp4Bytes;
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
  // Pseudo header: addresses, protocol and length.
  std::uint32_t sum = kProtocolOfTcp + 20;
  for (std::size_t i = 12; i < 20; i += 2) sum += load_be16(out.data() + i);
  store_be16(tcp + 16, internet_checksum({tcp, 20}, sum));
  return out;
}

std::optional<Bytes> icmp_for(const Parsed& p, std::uint8_t code, std::uint16_t mtu) {
  if (p.protocol == kProtocolOfIcmp && (p.payload.empty() || (p.payload[0] != 8 && p.payload[0] != 0)))
    return {};  // no error about an error
  const std::size_t quoted = std::min<std::size_t>(p.whole.size(), 548);
  Bytes out = ip_answer(p.whole, kProtocolOfIcmp, 8 + quoted);
  std::uint8_t* icmp = out.data() + kIp4Bytes;
  icmp[0] = 3;
  icmp[1] = code;
  store_be16(icmp + 6, mtu);
  std::memcpy(icmp + 8, p.whole.data(), quoted);
  store_be16(icmp + 2, internet_checksum({icmp, 8 + quoted}));
  return out;
}

}  // namespace

std::uint32_t packet_source(ByteView packet) {
  return load_be32(packet.data() + 12);
}
std::uint32_t packet_destination(ByteView packet) {
  return load_be32(packet.data() + 16);
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
  return p->protocol == kProtocolOfTcp ? reset_for(*p) : icmp_for(*p, kProhibited, 0);
}

std::optional<Bytes> refuse_too_large(ByteView packet, std::uint16_t mtu) {
  const auto p = parse(packet);
  if (!p) return {};
  return icmp_for(*p, kFragmentationNeeded, mtu);
}

std::vector<Bytes> fragments(ByteView packet, std::size_t mtu) {
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
