#include "crypto/x25519.h"

#include "base/check.h"
#include "crypto/openssl_ptr.h"
#include "crypto/random.h"

namespace muster::crypto {
namespace {
KeyPtr x25519_key(const Secret32& secret) {
  KeyPtr key(EVP_PKEY_new_raw_private_key(EVP_PKEY_X25519, nullptr, secret.bytes.data(), secret.bytes.size()));
  MUSTER_CHECK(key != nullptr);
  return key;
}
}  // namespace

X25519Pair x25519_generate() {
  X25519Pair out;
  random_fill(out.secret.bytes);
  out.secret.bytes[0] &= 248;
  out.secret.bytes[31] = static_cast<std::uint8_t>((out.secret.bytes[31] & 127) | 64);
  out.public_key = x25519_public(out.secret);
  return out;
}

Key32 x25519_public(const Secret32& secret) {
  const KeyPtr key = x25519_key(secret);
  Key32 out;
  std::size_t size = out.size();
  MUSTER_CHECK(EVP_PKEY_get_raw_public_key(key.get(), out.data(), &size) == 1 && size == 32);
  return out;
}

std::optional<Secret32> x25519_agree(const Secret32& secret, const Key32& peer) {
  const KeyPtr key = x25519_key(secret);
  const KeyPtr other(EVP_PKEY_new_raw_public_key(EVP_PKEY_X25519, nullptr, peer.data(), peer.size()));
  if (other == nullptr) return {};
  const KeyCtxPtr context(EVP_PKEY_CTX_new(key.get(), nullptr));
  MUSTER_CHECK(context != nullptr && EVP_PKEY_derive_init(context.get()) == 1);
  if (EVP_PKEY_derive_set_peer(context.get(), other.get()) != 1) return {};
  Secret32 out;
  std::size_t size = out.bytes.size();
  // OpenSSL fails here by itself for an all-zero result; check again, the protocol depends on it.
  if (EVP_PKEY_derive(context.get(), out.bytes.data(), &size) != 1 || size != 32 || out.zero()) return {};
  return out;
}

}  // namespace muster::crypto
