#include "server/access_tokens.h"

#include "crypto/hash.h"
#include "server/signer.h"

namespace muster::server {

Status AccessTokens::refresh() {
  auto keys = TRY(signer_->access_keys());
  const std::lock_guard lock(mutex_);
  keys_ = std::move(keys);
  remembered_.clear();  // what a key signed that is believed no longer
  return {};
}

Result<std::string> AccessTokens::issue(PrincipalId account, TokenId session, Millis lifetime) {
  std::string text = TRY(signer_->access_token(account, session, std::min(lifetime, crypto::kAccessLifetimeMax)));
  if (!read(text, read_clocks().wall).ok()) TRY_VOID(refresh());  // by a key that began to sign just now
  return text;
}

Result<AccessTokens::Read> AccessTokens::read(std::string_view text, WallTime now) const {
  const std::string key = as_string(crypto::sha256(as_bytes(text)));
  std::vector<crypto::AccessKey> keys;
  {
    const std::lock_guard lock(mutex_);
    const auto found = remembered_.find(key);
    if (found != remembered_.end() && found->second.expires > now) return found->second;
    keys = keys_;
  }
  const auto claims = TRY(crypto::read_access_token(text, keys, server_, now));
  const auto account = PrincipalId::parse(claims.account);
  const auto session = TokenId::parse(claims.session);
  if (!account || !session) return error(Code::Unauthenticated, "this access token names no login; log in again");
  const Read out{*account, *session, claims.expires};
  const std::lock_guard lock(mutex_);
  if (keys_ != keys) return out;  // other keys came meanwhile
  if (remembered_.size() >= kRememberedMax) remembered_.clear();
  remembered_.emplace(key, out);
  return out;
}

}  // namespace muster::server
