#pragma once
// Ed25519 signatures (RFC 8032). Every signature of Muster names its purpose: framed(domain, parts) writes the domain
// and each part behind its length, so that bytes signed for one purpose never verify for another. Keys wipe themselves.
// Any thread.
#include <initializer_list>
#include <memory>
#include <string>

#include "base/result.h"
#include "crypto/secret.h"

struct evp_pkey_st;

namespace muster::crypto {

inline constexpr std::size_t kSignatureBytes = 64;

// u32 length + bytes of the domain, then of every part (big endian lengths).
Bytes framed(std::string_view domain, std::initializer_list<ByteView> parts);

class SigningKey {
 public:
  static SigningKey generate();
  static Result<SigningKey> from_seed(ByteView seed);        // 32 bytes
  static Result<SigningKey> from_pem(std::string_view pem);  // PKCS#8
  const Key32& public_key() const { return public_; }
  const Secret32& seed() const { return seed_; }
  std::string to_pem() const;          // PKCS#8, secret: only into write_secret_file
  Bytes sign(ByteView message) const;  // raw; prefer the form with a domain
  Bytes sign(std::string_view domain, std::initializer_list<ByteView> parts) const {
    return sign(framed(domain, parts));
  }

 private:
  SigningKey() = default;
  Secret32 seed_;
  Key32 public_{};
  std::shared_ptr<evp_pkey_st> key_;  // OpenSSL's form of it: making one costs as much as a signature
};

bool verify(ByteView public_key, ByteView message, ByteView signature);
inline bool verify(ByteView public_key, std::string_view domain, std::initializer_list<ByteView> parts,
                   ByteView signature) {
  return verify(public_key, framed(domain, parts), signature);
}

}  // namespace muster::crypto
