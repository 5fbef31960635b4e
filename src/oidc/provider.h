#pragma once
// What an identity provider says of itself: its discovery document (OpenID Connect Discovery 1.0, RFC 8414) and its
// keys (RFC 7517). Read from bytes that somebody fetched; hostile bytes give an error. Pure; values; any thread.
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "crypto/web_key.h"

namespace muster::oidc {

inline constexpr std::size_t kDocumentMax = 256 << 10;  // bytes of either

struct Provider {
  std::string issuer, authorization_endpoint, token_endpoint, jwks_uri;
  std::string userinfo_endpoint, device_endpoint;  // empty: it has none
  bool names_itself = false;                       // in every answer to the browser (RFC 9207)
  bool secret_in_body = false;                     // it does not take the secret as a header
};
// The issuer must be exactly the one that was asked for, or whoever holds a page could speak for another.
Result<Provider> parse_provider(std::string_view body, const std::string& issuer);
std::string discovery_url(const std::string& issuer);

struct Key {
  std::string id;  // may be empty
  std::optional<crypto::WebAlg> alg;
  crypto::WebKey key;
};
// Keys of other kinds and for other uses are passed over; at most 100.
Result<std::vector<Key>> parse_keys(std::string_view body);

}  // namespace muster::oidc
