#pragma once
// Codes of authenticator apps: HOTP (RFC 4226) and TOTP (RFC 6238) with HMAC-SHA-1, six digits and steps of 30 s, which
// is what every app does. Pure; any thread.
#include <cstdint>
#include <optional>
#include <string>

#include "base/bytes.h"
#include "base/time.h"

namespace muster::crypto {

inline constexpr std::size_t kTotpSecretBytes = 20;  // the size of the hash, as RFC 4226 recommends
inline constexpr Millis kTotpStep{30'000};

// The code of a counter, with leading zeros; digits from 6 to 8.
std::string hotp(ByteView secret, std::uint64_t counter, int digits = 6);
std::uint64_t totp_step(WallTime now);
// The step whose code this is: that of now, the one before or the one after, and later than `used`; else nullopt. Takes
// the same time for any code of six characters.
std::optional<std::uint64_t> match_totp(ByteView secret, std::string_view code, WallTime now, std::uint64_t used);
std::string base32(ByteView bytes);  // RFC 4648, upper case, no padding
// What an app reads from a QR code: otpauth://totp/ISSUER:ACCOUNT?secret=..&issuer=ISSUER
std::string otpauth_uri(std::string_view issuer, std::string_view account, ByteView secret);

}  // namespace muster::crypto
