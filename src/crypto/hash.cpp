#include "crypto/hash.h"

#include <openssl/core_names.h>
#include <openssl/evp.h>

#include <algorithm>

#include "base/check.h"

namespace muster::crypto {
namespace {

struct MdContext {
  EVP_MD_CTX* value = EVP_MD_CTX_new();
  MdContext() { MUSTER_CHECK(value != nullptr); }
  ~MdContext() { EVP_MD_CTX_free(value); }
  MdContext(const MdContext&) = delete;
  MdContext& operator=(const MdContext&) = delete;
};

// Fetching an algorithm takes locks in OpenSSL 3: do it once.
const EVP_MD* fetched_sha256() {
  static EVP_MD* const md = EVP_MD_fetch(nullptr, "SHA256", nullptr);
  MUSTER_CHECK(md != nullptr);
  return md;
}
const EVP_MD* fetched_blake2s() {
  static EVP_MD* const md = EVP_MD_fetch(nullptr, "BLAKE2s256", nullptr);
  MUSTER_CHECK(md != nullptr);
  return md;
}
EVP_MAC* fetched_blake2s_mac() {
  static EVP_MAC* const mac = EVP_MAC_fetch(nullptr, "BLAKE2SMAC", nullptr);
  MUSTER_CHECK(mac != nullptr);
  return mac;
}

Digest digest_of(const EVP_MD* md, ByteView a, ByteView b) {
  MdContext context;
  Digest out;
  MUSTER_CHECK(EVP_DigestInit_ex(context.value, md, nullptr) == 1);
  MUSTER_CHECK(EVP_DigestUpdate(context.value, a.data(), a.size()) == 1);
  MUSTER_CHECK(EVP_DigestUpdate(context.value, b.data(), b.size()) == 1);
  MUSTER_CHECK(EVP_DigestFinal_ex(context.value, out.data(), nullptr) == 1);
  return out;
}

// HMAC over a || b; both hashes here have a block of 64 bytes.
Digest hmac_of(const EVP_MD* md, ByteView key, ByteView a, ByteView b) {
  std::array<std::uint8_t, 64> pad{};
  if (key.size() > pad.size()) {
    const Digest shorter = digest_of(md, key, {});
    std::copy(shorter.begin(), shorter.end(), pad.begin());
  } else {
    std::copy(key.begin(), key.end(), pad.begin());
  }
  for (auto& byte : pad) byte ^= 0x36;
  MdContext context;
  Digest inner;
  MUSTER_CHECK(EVP_DigestInit_ex(context.value, md, nullptr) == 1);
  MUSTER_CHECK(EVP_DigestUpdate(context.value, pad.data(), pad.size()) == 1);
  MUSTER_CHECK(EVP_DigestUpdate(context.value, a.data(), a.size()) == 1);
  MUSTER_CHECK(EVP_DigestUpdate(context.value, b.data(), b.size()) == 1);
  MUSTER_CHECK(EVP_DigestFinal_ex(context.value, inner.data(), nullptr) == 1);
  for (auto& byte : pad) byte ^= 0x36 ^ 0x5c;
  const Digest out = digest_of(md, pad, inner);
  zeroise(pad.data(), pad.size());
  zeroise(inner.data(), inner.size());
  return out;
}

void blake2s_mac(ByteView key, ByteView data, std::span<std::uint8_t> out) {
  EVP_MAC_CTX* context = EVP_MAC_CTX_new(fetched_blake2s_mac());
  MUSTER_CHECK(context != nullptr);
  std::size_t size = out.size();
  OSSL_PARAM params[] = {OSSL_PARAM_construct_size_t(OSSL_MAC_PARAM_SIZE, &size), OSSL_PARAM_construct_end()};
  MUSTER_CHECK(EVP_MAC_init(context, key.data(), key.size(), params) == 1);
  MUSTER_CHECK(EVP_MAC_update(context, data.data(), data.size()) == 1);
  std::size_t written = 0;
  MUSTER_CHECK(EVP_MAC_final(context, out.data(), &written, out.size()) == 1 && written == out.size());
  EVP_MAC_CTX_free(context);
}

}  // namespace

Digest sha256(ByteView data) {
  return digest_of(fetched_sha256(), data, {});
}
std::string sha256_hex(ByteView data) {
  return hex(sha256(data));
}

struct Sha256::Impl {
  MdContext context;
};
Sha256::Sha256() : impl_(std::make_unique<Impl>()) {
  MUSTER_CHECK(EVP_DigestInit_ex(impl_->context.value, fetched_sha256(), nullptr) == 1);
}
Sha256::~Sha256() = default;
Sha256::Sha256(Sha256&&) noexcept = default;
Sha256& Sha256::operator=(Sha256&&) noexcept = default;
void Sha256::update(ByteView data) {
  MUSTER_CHECK(EVP_DigestUpdate(impl_->context.value, data.data(), data.size()) == 1);
}
Digest Sha256::finish() {
  Digest out;
  MUSTER_CHECK(EVP_DigestFinal_ex(impl_->context.value, out.data(), nullptr) == 1);
  return out;
}

Digest hmac_sha256(ByteView key, ByteView data) {
  return hmac_of(fetched_sha256(), key, data, {});
}

Bytes hkdf_sha256(ByteView secret, ByteView salt, ByteView info, std::size_t size) {
  MUSTER_CHECK(size <= 255 * 32);
  Digest extracted = hmac_sha256(salt, secret);
  Bytes out;
  Bytes input;
  for (std::uint8_t counter = 1; out.size() < size; ++counter) {
    input.insert(input.end(), info.begin(), info.end());
    input.push_back(counter);
    const Digest block = hmac_sha256(extracted, input);
    out.insert(out.end(), block.begin(), block.begin() + static_cast<long>(std::min(block.size(), size - out.size())));
    input.assign(block.begin(), block.end());
  }
  zeroise(extracted.data(), extracted.size());
  zeroise(input);
  return out;
}

Digest blake2s(ByteView a, ByteView b) {
  return digest_of(fetched_blake2s(), a, b);
}
Digest blake2s_keyed(ByteView key, ByteView data) {
  Digest out;
  blake2s_mac(key, data, out);
  return out;
}
Tag16 blake2s_mac16(ByteView key, ByteView data) {
  Tag16 out;
  blake2s_mac(key, data, out);
  return out;
}
Digest hmac_blake2s(ByteView key, ByteView a, ByteView b) {
  return hmac_of(fetched_blake2s(), key, a, b);
}

}  // namespace muster::crypto
