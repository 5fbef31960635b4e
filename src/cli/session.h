#pragma once
// What a login keeps in the config: a token for requests that ends within minutes, and a refresh token that renews it.
// Renewals are made under a lock file beside the config, so that two commands at once never use a refresh token twice,
// and the next refresh token is written down before it is sent, so that an answer that was lost is asked for again.
// Accounts without a refresh token (API tokens, logins of before) send what they have. Any thread; blocks on the net
// when a token nears its end.
#include "cli/api.h"

namespace muster::cli {

enum class Renewal : std::uint8_t { WhenDue, Now };  // Now: the server refused the token

// The token to send; `account` takes what was renewed, by this process or by another.
Result<std::string> bearer_of(Account& account, Renewal renewal = Renewal::WhenDue);
// `call` brings a renewal to the server of the account.
using RenewCall = std::function<Result<net::Response>(const Account& account, const std::string& body)>;
Result<std::string> bearer_of(Account& account, Renewal renewal, const RenewCall& call);

// From an answer to a login or a renewal.
void take_login(Account& account, const wire::Json& answer);

// Held while the config is read, changed and written.
class ConfigLock {
 public:
  static Result<std::unique_ptr<ConfigLock>> hold();
  ~ConfigLock();
  ConfigLock(const ConfigLock&) = delete;
  ConfigLock& operator=(const ConfigLock&) = delete;

 private:
  explicit ConfigLock(int fd) : fd_(fd) {}
  int fd_;
};

}  // namespace muster::cli
