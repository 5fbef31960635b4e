#pragma once
// Is this ID token the provider's word about a person who logs in here and now? (OpenID Connect Core 1.0, 3.1.3.7; RFC
// 7515, 7519, 8725.) Bytes, keys and time in, claims or the first fault out: signature before anything that it says is
// believed, then issuer, audience, authorised party, times with a minute of skew, nonce, hash of the access token.
// Pure; any thread. Errors name the claim at fault in `field` and never hold the token.
#include <string>
#include <string_view>
#include <vector>

#include "base/time.h"
#include "oidc/provider.h"
#include "wire/json.h"

namespace muster::oidc {

inline constexpr std::size_t kTokenMax = 64 << 10;
inline constexpr Millis kSkew{60'000};
inline constexpr Millis kFresh{10 * 60'000};  // a token of a login was made no longer ago

struct TokenHead {
  crypto::WebAlg alg = crypto::WebAlg::Rs256;
  std::string key_id;  // empty: the token names none
};
Result<TokenHead> token_head(std::string_view token);
// Whether a key of this id is there at all: if not, the provider may have new ones.
bool knows_key(const std::vector<Key>& keys, const TokenHead& head);

struct Expected {
  std::string issuer, client_id;
  std::string nonce;         // empty: none was sent (device code)
  std::string access_token;  // that came with it, for at_hash
  WallTime now;
};
Result<wire::Json> verify_id_token(std::string_view token, const std::vector<Key>& keys, const Expected& expected);

// The provider's word that a login there has ended (OpenID Connect Back-Channel Logout 1.0, 2.4): signed as an ID
// token, for this client, with the event of a logout, an id, and a person or a session; never a nonce, so that no ID
// token passes for one.
inline constexpr Millis kLogoutFresh{5 * 60'000};  // made no longer ago: how long its id must be remembered
struct Logout {
  std::string subject, session;  // one of them may be empty
  std::string id;
};
Result<Logout> verify_logout_token(std::string_view token, const std::vector<Key>& keys, const std::string& issuer,
                                   const std::string& client_id, WallTime now);

}  // namespace muster::oidc
