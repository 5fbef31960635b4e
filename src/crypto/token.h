#pragma once
// Bearer secrets as text. API token: "mst_" + base64url(32 random bytes). Join token: "mj1.SECRET.CA[.HOST]" where CA
// is the SHA-256 of the control plane's CA certificate (DER), so that a joining machine knows whom to trust, and HOST
// its host[:port]. Only the SHA-256 of the 32 secret bytes is ever stored.
#include <string>

#include "base/result.h"
#include "crypto/hash.h"

namespace muster::crypto {

struct NewToken {
  std::string text;  // shown once
  Bytes hash;        // stored
};
NewToken make_api_token();
Result<Bytes> api_token_hash(std::string_view text);

struct JoinTokenParts {
  Bytes hash;        // SHA-256 of the secret, as stored
  Bytes ca_sha256;   // 32 bytes
  std::string host;  // may be empty
};
NewToken make_join_token(ByteView ca_sha256, std::string_view host);
Result<JoinTokenParts> parse_join_token(std::string_view text);

}  // namespace muster::crypto
