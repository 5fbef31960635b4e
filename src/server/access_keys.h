#pragma once
// Keys that sign what lives for minutes, in the folder of the signing keys: of access tokens of logins (access) and of
// identity tokens of clusters and jobs (workload). DIR/keys/NAME.pem signs, and DIR/keys/NAME.before names the public
// halves of those before with the time until which each is believed. They are in no statement to machines and relays,
// which read no such tokens. Blocking; a change is written so that a crash cuts nothing: what was believed is first.
#include "crypto/access_token.h"
#include "crypto/sign.h"

namespace muster::server {

struct DataDir;

enum class ShortKey : std::uint8_t { Access, Workload };

struct AccessKeySet {
  crypto::SigningKey own;
  std::vector<crypto::AccessKey> believed;  // the one that signs first
};
// Made where there is none.
Result<AccessKeySet> load_short_keys(const DataDir& dir, ShortKey kind, WallTime now);
// compromised: those before are believed no longer, so every token of them ends. The new id.
Result<std::string> rotate_short_key(const DataDir& dir, ShortKey kind, bool compromised, WallTime now);

}  // namespace muster::server
