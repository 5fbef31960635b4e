#pragma once
// Access tokens of logins, as the serving musterd gives and reads them: the signer makes them, and the public keys are
// kept here. What was read lately is remembered, so that a busy client costs one verification and not one a request.
// Thread-safe; issue and refresh block for a round trip to the signer, read does not.
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>

#include "crypto/access_token.h"
#include "model/types.h"

namespace muster::server {

class Signer;

class AccessTokens {
 public:
  struct Read {
    PrincipalId account;
    TokenId session;
    WallTime expires;
  };
  AccessTokens(std::shared_ptr<Signer> signer, std::string server)
      : signer_(std::move(signer)), server_(std::move(server)) {}
  Status refresh();  // asks the signer which keys are believed
  // For at most ten minutes.
  Result<std::string> issue(PrincipalId account, TokenId session, Millis lifetime);
  Result<Read> read(std::string_view text, WallTime now) const;

 private:
  static constexpr std::size_t kRememberedMax = 4096;
  const std::shared_ptr<Signer> signer_;
  const std::string server_;
  mutable std::mutex mutex_;
  std::vector<crypto::AccessKey> keys_;
  mutable std::unordered_map<std::string, Read> remembered_;  // by the SHA-256 of the text
};

}  // namespace muster::server
