#pragma once
// The short-lived token that a login sends with each request: a JWT (RFC 9068) signed with Ed25519, in one form only.
// Whoever reads it compares it with the form that its own fields give, so that no other header, order of members or
// algorithm passes, and nothing of it is believed before its signature. It names the account and the session; whether
// that session still holds is for the reader to look up. Values; any thread.
#include <string>
#include <vector>

#include "base/result.h"
#include "base/time.h"
#include "crypto/sign.h"

namespace muster::crypto {

inline constexpr Millis kAccessLifetimeMax{10 * 60'000};
inline constexpr std::size_t kAccessTokenBytesMax = 1024;

struct AccessClaims {
  std::string server;   // whose control plane
  std::string account;  // "usr-5"
  std::string session;  // "tok-9"
  WallTime issued, expires;
  bool operator==(const AccessClaims&) const = default;
};

struct AccessKey {
  Key32 key{};
  WallTime until{0};  // believed until then; 0: it signs
  bool operator==(const AccessKey&) const = default;
};

bool looks_like_access_token(std::string_view text);  // not whether it is good
// Texts may hold letters, digits, '-' and '.' only.
std::string make_access_token(const SigningKey& key, const AccessClaims& claims);
// Unauthenticated unless one of `keys` signed it for this server and it has not ended. A minute of the future is
// forgiven, as two control planes may have clocks of their own.
Result<AccessClaims> read_access_token(std::string_view text, const std::vector<AccessKey>& keys,
                                       std::string_view server, WallTime now);

// What a login renews it with: "mrf_" + base64url(32 bytes of the session) + "." + base64url(32 bytes that change).
struct RefreshToken {
  Bytes session;   // SHA-256 of the first, for good
  Bytes rotating;  // SHA-256 of the second, until the next renewal
};
struct NewRefreshToken {
  std::string text;  // shown once
  RefreshToken hashes;
};
NewRefreshToken make_refresh_token();
Result<RefreshToken> parse_refresh_token(std::string_view text);
// The same session with another second part; both as the client makes them.
NewRefreshToken next_refresh_token(std::string_view text);

}  // namespace muster::crypto
