#pragma once
// Public keys of other people's signatures, as JSON Web Keys give them (RFC 7517, 7518, 8037): RSA, P-256, Ed25519. A
// key verifies only the algorithms of its own kind, so whoever writes "alg" into a token chooses nothing. Immutable
// values that share the key inside; any thread.
#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>

#include "base/bytes.h"
#include "base/result.h"

namespace muster::crypto {

enum class WebAlg : std::uint8_t { Rs256, Ps256, Es256, EdDsa };
std::optional<WebAlg> web_alg(std::string_view name);  // "RS256"; nullopt: any other, "none" and HMAC among them
Bytes web_digest(WebAlg alg, ByteView data);           // by the hash of the algorithm; of Ed25519 that is SHA-512

class WebKey {
 public:
  static Result<WebKey> rsa(ByteView modulus, ByteView exponent);  // 2048 to 8192 bits
  static Result<WebKey> p256(ByteView x, ByteView y);              // 32 bytes each, a point of the curve
  static Result<WebKey> ed25519(ByteView x);                       // 32 bytes
  bool fits(WebAlg alg) const;
  bool verify(WebAlg alg, ByteView message, ByteView signature) const;

 private:
  struct Impl;
  explicit WebKey(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}
  std::shared_ptr<const Impl> impl_;
};

}  // namespace muster::crypto
