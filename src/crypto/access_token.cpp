#include "crypto/access_token.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "crypto/hash.h"
#include "crypto/random.h"
#include "crypto/signing_keys.h"

namespace muster::crypto {
namespace {

constexpr std::string_view kAccessAudience = "muster-api", kRefreshMark = "mrf_";
constexpr Millis kAhead{60'000};

std::string header_of(const Key32& key) {
  return fmt::format(R"({{"alg":"EdDSA","kid":"{}","typ":"at+jwt"}})", key_id_text(key));
}
std::string payload_of(const AccessClaims& claims) {
  return fmt::format(R"({{"aud":"{}","exp":{},"iat":{},"iss":"{}","sid":"{}","sub":"{}"}})", kAccessAudience,
                     claims.expires.ms / 1000, claims.issued.ms / 1000, claims.server, claims.session, claims.account);
}
std::string part_of(const std::string& json) {
  return base64url(as_bytes(json));
}

bool plain_word(std::string_view text) {
  return !text.empty() && text.size() <= 128 && std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '.';
  });
}

// The member of a JSON of our own form, up to its comma or brace.
std::string_view member(std::string_view json, std::string_view name) {
  const auto at = json.find(fmt::format("\"{}\":", name));
  if (at == std::string_view::npos) return {};
  std::string_view out = json.substr(at + name.size() + 3);
  out = out.substr(0, std::min(out.find(','), out.find('}')));
  if (out.size() >= 2 && out.front() == '"' && out.back() == '"') out = out.substr(1, out.size() - 2);
  return out;
}
WallTime seconds_of(std::string_view text) {
  std::int64_t value = 0;
  const auto [end, fault] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool good = fault == std::errc() && end == text.data() + text.size() && value > 0 && value < 1'000'000'000'000;
  return WallTime{good ? value * 1000 : 0};
}

Error no_access() {
  return error(Code::Unauthenticated,
               "this access token is damaged, ended or not of this control plane; renew it, or log in again");
}
Bytes hash_bytes(ByteView secret) {
  const Digest digest = sha256(secret);
  return {digest.begin(), digest.end()};
}
NewRefreshToken refresh_of(ByteView session, ByteView rotating) {
  return {std::string(kRefreshMark) + base64url(session) + "." + base64url(rotating),
          {hash_bytes(session), hash_bytes(rotating)}};
}
// Both secrets, or nothing.
std::optional<std::pair<Bytes, Bytes>> refresh_parts(std::string_view text) {
  const auto dot = text.find('.');
  if (text.size() > 256 || !text.starts_with(kRefreshMark) || dot == std::string_view::npos) return {};
  auto session = unbase64url(text.substr(kRefreshMark.size(), dot - kRefreshMark.size()));
  auto rotating = unbase64url(text.substr(dot + 1));
  if (!session || !rotating || session->size() != 32 || rotating->size() != 32) return {};
  return std::pair{std::move(*session), std::move(*rotating)};
}

}  // namespace

bool looks_like_access_token(std::string_view text) {
  return text.starts_with("eyJ") && std::count(text.begin(), text.end(), '.') == 2;
}

std::string make_access_token(const SigningKey& key, const AccessClaims& claims) {
  MUSTER_CHECK(plain_word(claims.server) && plain_word(claims.account) && plain_word(claims.session));
  std::string out = part_of(header_of(key.public_key())) + "." + part_of(payload_of(claims));
  const Bytes signature = key.sign(as_bytes(out));
  return out + "." + base64url(signature);
}

Result<AccessClaims> read_access_token(std::string_view text, const std::vector<AccessKey>& keys,
                                       std::string_view server, WallTime now) {
  if (text.size() > kAccessTokenBytesMax || !looks_like_access_token(text)) return no_access();
  const auto last = text.rfind('.'), first = text.find('.');
  const auto signature = unbase64url(text.substr(last + 1));
  if (!signature || signature->size() != kSignatureBytes) return no_access();
  const std::string_view said = text.substr(0, last);
  for (const AccessKey& each : keys) {
    if (text.substr(0, first) != part_of(header_of(each.key)) || (each.until.ms != 0 && each.until <= now)) continue;
    if (!verify(each.key, as_bytes(said), *signature)) return no_access();
    const auto payload = unbase64url(said.substr(first + 1));
    if (!payload) return no_access();
    const std::string json = as_string(*payload);
    AccessClaims out{std::string(member(json, "iss")), std::string(member(json, "sub")),
                     std::string(member(json, "sid")), seconds_of(member(json, "iat")),
                     seconds_of(member(json, "exp"))};
    const bool form = plain_word(out.server) && plain_word(out.account) && plain_word(out.session);
    if (!form || payload_of(out) != json || out.server != server) return no_access();
    if (out.expires <= now || out.issued > now + kAhead || out.expires - out.issued > kAccessLifetimeMax)
      return no_access();
    return out;
  }
  return no_access();
}

NewRefreshToken make_refresh_token() {
  const Secret32 session(random_key32()), rotating(random_key32());
  return refresh_of(session.bytes, rotating.bytes);
}

Result<RefreshToken> parse_refresh_token(std::string_view text) {
  auto parts = refresh_parts(text);
  if (!parts)
    return error(Code::InvalidArgument, "this is no refresh token of a Muster login (they start with mrf_)",
                 "refreshToken");
  RefreshToken out{hash_bytes(parts->first), hash_bytes(parts->second)};
  zeroise(parts->first);
  zeroise(parts->second);
  return out;
}

NewRefreshToken next_refresh_token(std::string_view text) {
  const auto parts = refresh_parts(text);
  const Secret32 rotating(random_key32());
  return parts ? refresh_of(parts->first, rotating.bytes) : NewRefreshToken{};
}

}  // namespace muster::crypto
