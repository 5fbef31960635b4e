#include "crypto/totp.h"

#include <fmt/format.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>

#include <array>

#include "base/check.h"
#include "crypto/secret.h"

namespace muster::crypto {
namespace {
std::string uri_escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
                       c == '.' || c == '_' || c == '~';
    if (plain)
      out += c;
    else
      out += fmt::format("%{:02X}", static_cast<unsigned char>(c));
  }
  return out;
}
}  // namespace

std::string hotp(ByteView secret, std::uint64_t counter, int digits) {
  MUSTER_CHECK(digits >= 6 && digits <= 8);
  std::array<std::uint8_t, 8> message{};
  for (std::size_t i = 0; i < message.size(); ++i) message[i] = static_cast<std::uint8_t>(counter >> (56 - 8 * i));
  std::array<std::uint8_t, 20> mac{};
  unsigned size = 0;
  MUSTER_CHECK(HMAC(EVP_sha1(), secret.data(), static_cast<int>(secret.size()), message.data(), message.size(),
                    mac.data(), &size) != nullptr &&
               size == mac.size());
  const std::size_t at = mac[19] & 0xf;
  const std::uint32_t value = (mac[at] & 0x7fU) << 24 | static_cast<std::uint32_t>(mac[at + 1]) << 16 |
                              static_cast<std::uint32_t>(mac[at + 2]) << 8 | mac[at + 3];
  const std::uint32_t modulus = digits == 6 ? 1'000'000 : digits == 7 ? 10'000'000 : 100'000'000;
  return fmt::format("{:0{}}", value % modulus, digits);
}

std::uint64_t totp_step(WallTime now) {
  return now.ms <= 0 ? 0 : static_cast<std::uint64_t>(now.ms / kTotpStep.count());
}

std::optional<std::uint64_t> match_totp(ByteView secret, std::string_view code, WallTime now, std::uint64_t used) {
  const std::uint64_t step = totp_step(now);
  std::optional<std::uint64_t> out;
  for (std::uint64_t each = step == 0 ? 0 : step - 1; each <= step + 1; ++each) {
    const bool same = equal(as_bytes(hotp(secret, each)), as_bytes(code));
    if (same && each > used && !out) out = each;
  }
  return out;
}

std::string base32(ByteView bytes) {
  constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
  std::string out;
  std::uint32_t held = 0;
  int bits = 0;
  for (const std::uint8_t byte : bytes) {
    held = (held << 8 | byte) & 0xfffU;
    for (bits += 8; bits >= 5; bits -= 5) out += kDigits[held >> (bits - 5) & 31U];
  }
  if (bits > 0) out += kDigits[held << (5 - bits) & 31U];
  return out;
}

std::string otpauth_uri(std::string_view issuer, std::string_view account, ByteView secret) {
  return fmt::format("otpauth://totp/{}:{}?secret={}&issuer={}", uri_escaped(issuer), uri_escaped(account),
                     base32(secret), uri_escaped(issuer));
}

}  // namespace muster::crypto
