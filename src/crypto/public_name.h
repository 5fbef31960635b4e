#pragma once
// What a name of the public web needs from a certificate authority that speaks ACME: the key of an account, which signs
// requests (ES256, RFC 7518), a request for a certificate (PKCS#10), and the certificate that proves a name inside TLS
// (RFC 8737). Keys are P-256. Values; immutable; any thread.
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"
#include "base/time.h"
#include "crypto/cert.h"

namespace muster::crypto {

class AccountKey {
 public:
  static AccountKey make();
  static Result<AccountKey> from_pem(std::string_view pem);
  std::string pem() const;          // PKCS#8, secret
  std::string jwk() const;          // public; its members in the order of RFC 7638
  std::string thumbprint() const;   // of that, base64url
  Bytes sign(ByteView data) const;  // ES256: r and s, 64 bytes

 private:
  struct Impl;
  explicit AccountKey(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}
  std::shared_ptr<const Impl> impl_;
};

inline constexpr std::size_t kPublicNamesMax = 16;
// "muster.example.org": two labels or more of letters, digits and hyphens, at most 253 characters, lower case.
bool valid_public_name(std::string_view name);

// DER. Every name must be valid_public_name(), one to kPublicNamesMax of them.
Result<Bytes> make_name_request(std::string_view key_pem, const std::vector<std::string>& names);
// Self-signed, for a few minutes: it holds the digest of the key authorization, and only who asks with ALPN
// "acme-tls/1" is shown it.
Result<KeyAndCert> make_name_proof(const std::string& name, std::string_view key_authorization, WallTime now);
// The DNS names of the (first) certificate, lower case.
Result<std::vector<std::string>> dns_names(std::string_view cert_pem);

}  // namespace muster::crypto
