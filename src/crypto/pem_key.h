#pragma once
// A public key in PEM (SubjectPublicKeyInfo, RFC 5480 and 8410) of somebody who signs images: P-256, whose signatures
// are ECDSA over SHA-256 in DER, or Ed25519. The kind of the key alone says how a signature is read. Immutable; any
// thread.
#include <memory>
#include <string>
#include <string_view>

#include "base/bytes.h"
#include "base/result.h"

namespace muster::crypto {

class PemKey {
 public:
  static Result<PemKey> parse(std::string_view pem);  // exactly one key, and no private one
  bool verify(ByteView message, ByteView signature) const;
  const std::string& fingerprint() const;  // hex of the SHA-256 of its DER
  std::string_view kind() const;           // "p256" | "ed25519"

 private:
  struct Impl;
  explicit PemKey(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}
  std::shared_ptr<const Impl> impl_;
};

}  // namespace muster::crypto
