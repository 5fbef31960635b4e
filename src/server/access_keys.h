#pragma once
// The key that signs access tokens of logins, in the folder of the signing keys: DIR/keys/access.pem signs, and
// DIR/keys/access.before names the public half of the one before with the time until which it is believed. It is in no
// statement to machines and relays: only musterd reads these tokens. Blocking; a change is written so that a crash cuts
// nothing: what was believed is first.
#include "crypto/access_token.h"
#include "crypto/sign.h"

namespace muster::server {

struct DataDir;

struct AccessKeySet {
  crypto::SigningKey own;
  std::vector<crypto::AccessKey> believed;  // the one that signs first
};
// Made where there is none.
Result<AccessKeySet> load_access_keys(const DataDir& dir, WallTime now);
// compromised: the one before is believed no longer, so every access token of it ends; logins renew theirs. The new
// id.
Result<std::string> rotate_access_key(const DataDir& dir, bool compromised, WallTime now);

}  // namespace muster::server
