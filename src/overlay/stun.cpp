#include "overlay/stun.h"

#include <algorithm>
#include <cstring>

#include "base/endian.h"

namespace muster::overlay {
namespace {

constexpr std::uint32_t kCookie = 0x2112a442;
constexpr std::uint16_t kRequest = 0x0001, kSuccess = 0x0101, kXorMapped = 0x0020;
constexpr std::uint8_t kIpv4 = 1;

// Type, length of what follows, cookie, transaction.
bool framed(ByteView d, std::uint16_t type) {
  return d.size() >= kStunHeader && load_be16(d.data()) == type && load_be32(d.data() + 4) == kCookie &&
         load_be16(d.data() + 2) % 4 == 0 && kStunHeader + load_be16(d.data() + 2) == d.size();
}
Bytes frame(std::uint16_t type, const StunTransaction& transaction, std::size_t length) {
  Bytes out(kStunHeader + length);
  store_be16(out.data(), type);
  store_be16(out.data() + 2, static_cast<std::uint16_t>(length));
  store_be32(out.data() + 4, kCookie);
  std::copy(transaction.begin(), transaction.end(), out.begin() + 8);
  return out;
}

}  // namespace

Bytes stun_request(const StunTransaction& transaction) {
  return frame(kRequest, transaction, 0);
}

std::optional<StunTransaction> read_stun_request(ByteView datagram) {
  if (!framed(datagram, kRequest)) return {};
  StunTransaction out;
  std::copy_n(datagram.begin() + 8, out.size(), out.begin());
  return out;
}

Bytes stun_answer(const StunTransaction& transaction, std::uint32_t ip, std::uint16_t port) {
  Bytes out = frame(kSuccess, transaction, 12);
  std::uint8_t* attribute = out.data() + kStunHeader;
  store_be16(attribute, kXorMapped);
  store_be16(attribute + 2, 8);
  attribute[5] = kIpv4;
  store_be16(attribute + 6, static_cast<std::uint16_t>(port ^ kCookie >> 16));
  store_be32(attribute + 8, ip ^ kCookie);
  return out;
}

bool is_stun_answer(ByteView datagram) {
  return datagram.size() >= kStunHeader && load_be16(datagram.data()) == kSuccess &&
         load_be32(datagram.data() + 4) == kCookie;
}

std::optional<Endpoint> read_stun_answer(ByteView datagram, const StunTransaction& asked) {
  if (!framed(datagram, kSuccess) || !std::equal(asked.begin(), asked.end(), datagram.begin() + 8)) return {};
  ByteView rest = datagram.subspan(kStunHeader);
  while (rest.size() >= 4) {
    const std::uint16_t type = load_be16(rest.data()), length = load_be16(rest.data() + 2);
    const std::size_t padded = (std::size_t{length} + 3) / 4 * 4;
    if (rest.size() < 4 + padded) return {};
    if (type == kXorMapped && length == 8 && rest[5] == kIpv4) {
      return Endpoint::udp(load_be32(rest.data() + 8) ^ kCookie,
                           static_cast<std::uint16_t>(load_be16(rest.data() + 6) ^ kCookie >> 16));
    }
    rest = rest.subspan(4 + padded);
  }
  return {};
}

}  // namespace muster::overlay
