#include "overlay/cookie.h"

#include <algorithm>
#include <cstring>

#include "base/endian.h"
#include "crypto/hash.h"
#include "crypto/random.h"

namespace muster::overlay {
namespace {
constexpr Millis kSecretLife{120'000};
constexpr std::uint32_t kPerSourcePerSecond = 20;
constexpr std::size_t kSourcesMax = 4096;

Bytes source_bytes(const Endpoint& from) {
  Bytes out(7);
  out[0] = static_cast<std::uint8_t>(from.kind);
  store_be32(out.data() + 1, from.ip);
  store_be16(out.data() + 5, from.port);
  out.insert(out.end(), from.key.begin(), from.key.end());
  if (from.kind == Endpoint::Kind::Udp6) out.insert(out.end(), from.six.begin(), from.six.end());
  return out;
}
}  // namespace

Key32 mac1_key_of(const Key32& public_key) {
  return crypto::blake2s(as_bytes("mac1----"), public_key);
}
Secret32 cookie_key_of(const Key32& public_key) {
  return Secret32(crypto::blake2s(as_bytes("cookie--"), public_key));
}

CookieDoor::CookieDoor(const Key32& own, std::uint32_t handshakes_per_s)
    : mac1_key_(mac1_key_of(own)), cookie_key_(cookie_key_of(own)), limit_(handshakes_per_s) {}

CookieDoor::Verdict CookieDoor::check(ByteView message, const Endpoint& from, LeaseTime now) {
  const std::size_t macs = message.size() - 32;
  if (!crypto::equal(crypto::blake2s_mac16(mac1_key_, message.first(macs)), message.subspan(macs, 16)))
    return Verdict::Drop;
  if (now - window_start_ >= 1s) {
    window_start_ = now;
    in_window_ = 0;
    per_source_.clear();
  }
  if (++in_window_ > limit_) loaded_until_ = now + 1s;
  if (now >= loaded_until_) return Verdict::Accept;
  const crypto::Tag16 cookie = cookie_for(from, now);
  if (!crypto::equal(crypto::blake2s_mac16(cookie, message.first(macs + 16)), message.subspan(macs + 16, 16)))
    return Verdict::SendCookie;
  const std::uint64_t source = load_le64(cookie.data());
  if (per_source_.size() >= kSourcesMax && !per_source_.contains(source)) return Verdict::Drop;
  return ++per_source_[source] <= kPerSourcePerSecond ? Verdict::Accept : Verdict::Drop;
}

crypto::Tag16 CookieDoor::cookie_for(const Endpoint& from, LeaseTime now) {
  if (!have_secret_ || now - secret_made_ >= kSecretLife) {
    crypto::random_fill(secret_.bytes);
    secret_made_ = now;
    have_secret_ = true;
  }
  return crypto::blake2s_mac16(secret_.bytes, source_bytes(from));
}

std::array<std::uint8_t, kCookieBytes> CookieDoor::reply(ByteView message, const Endpoint& from, LeaseTime now) {
  std::array<std::uint8_t, kCookieBytes> out{};
  out[0] = kTypeCookie;
  std::memcpy(out.data() + 4, message.data() + 4, 4);  // the sender's index
  crypto::random_fill(std::span(out).subspan(8, 24));
  const Bytes sealed = crypto::xchacha_seal(cookie_key_, std::span<const std::uint8_t, 24>(out.data() + 8, 24),
                                            message.subspan(message.size() - 32, 16), cookie_for(from, now));
  std::copy(sealed.begin(), sealed.end(), out.begin() + 32);
  return out;
}

}  // namespace muster::overlay
