#pragma once
// A certificate for public names from a CA that speaks ACME (RFC 8555). The names are proven inside TLS (tls-alpn-01,
// RFC 8737), on the one port that is open anyway. Speaks through its hooks and blocks in them; knows no network, clock
// or file. What the CA answers is believed no further than it is checked: a certificate must be for the names and the
// key that were asked for. One thread at a time.
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/time.h"
#include "crypto/public_name.h"

namespace muster::acme {

inline constexpr std::size_t kAnswerMax = 256 << 10;  // bytes of one answer that are worth reading

struct Reply {
  int status = 0;
  std::map<std::string, std::string> headers;  // lower-case names
  std::string body;
};
struct Hooks {
  // GET and HEAD without a body, POST with one of "application/jose+json".
  std::function<Result<Reply>(const std::string& method, const std::string& url, const std::string& body)> ask;
  // From now on who asks for this name with ALPN "acme-tls/1" is shown this certificate.
  std::function<Status(const std::string& name, const crypto::KeyAndCert& proof)> show;
  std::function<bool(Millis)> wait;  // false: leave it
  std::function<WallTime()> now;
};
struct Wish {
  std::string directory;           // URL of the CA's directory
  std::vector<std::string> names;  // crypto::valid_public_name
  std::string contact;             // an e-mail address, or empty
  std::string binding_id;          // of the account that the operator has with the CA (RFC 8555 7.3.4); empty: none
  Bytes binding_key;               // HMAC, from the CA, secret
};
// The key is new each time. To ask is to agree to the CA's terms of service. Errors: Unavailable (not reached, or to be
// tried again), FailedPrecondition (it refuses, with its own words), InvalidArgument (the wish), DataLoss (nonsense).
Result<crypto::KeyAndCert> obtain(const Wish& wish, const crypto::AccountKey& account, const Hooks& hooks);

}  // namespace muster::acme
