#include "crypto/random.h"

#include <openssl/crypto.h>
#include <openssl/rand.h>

#include <algorithm>

#include "base/check.h"

namespace muster::crypto {

void zeroise(void* data, std::size_t size) {
  if (size != 0) OPENSSL_cleanse(data, size);
}

bool equal(ByteView a, ByteView b) {
  return a.size() == b.size() && (a.empty() || CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0);
}

std::optional<Key32> key32(ByteView bytes) {
  Key32 key;
  if (bytes.size() != key.size()) return {};
  std::copy(bytes.begin(), bytes.end(), key.begin());
  return key;
}

void random_fill(std::span<std::uint8_t> out) {
  MUSTER_CHECK(RAND_bytes(out.data(), static_cast<int>(out.size())) == 1);
}

Bytes random_bytes(std::size_t size) {
  Bytes out(size);
  random_fill(out);
  return out;
}

Key32 random_key32() {
  Key32 key;
  random_fill(key);
  return key;
}

std::uint32_t random_u32() {
  std::array<std::uint8_t, 4> raw;
  random_fill(raw);
  return static_cast<std::uint32_t>(raw[0]) << 24 | static_cast<std::uint32_t>(raw[1]) << 16 |
         static_cast<std::uint32_t>(raw[2]) << 8 | raw[3];
}

}  // namespace muster::crypto
