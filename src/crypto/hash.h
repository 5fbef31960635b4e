#pragma once
// Digests and key derivation: SHA-256 (FIPS 180-4), HMAC (RFC 2104), HKDF (RFC 5869), BLAKE2s (RFC 7693) as WireGuard
// uses it. Pure functions; Sha256 is the incremental form, for one thread at a time.
#include <memory>
#include <string>

#include "base/bytes.h"
#include "crypto/secret.h"

namespace muster::crypto {

using Digest = std::array<std::uint8_t, 32>;
using Tag16 = std::array<std::uint8_t, 16>;

Digest sha256(ByteView data);
std::string sha256_hex(ByteView data);
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(Sha256&&) noexcept;
  Sha256& operator=(Sha256&&) noexcept;
  void update(ByteView data);
  Digest finish();  // once

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

Digest hmac_sha256(ByteView key, ByteView data);
Bytes hkdf_sha256(ByteView secret, ByteView salt, ByteView info, std::size_t size);  // size <= 255 * 32

Digest blake2s(ByteView a, ByteView b = {});        // over a || b
Digest blake2s_keyed(ByteView key, ByteView data);  // MAC of 32 bytes, key <= 32 bytes
Tag16 blake2s_mac16(ByteView key, ByteView data);   // MAC of 16 bytes, key <= 32 bytes
Digest hmac_blake2s(ByteView key, ByteView a, ByteView b = {});

}  // namespace muster::crypto
