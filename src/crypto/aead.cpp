#include "crypto/aead.h"

#include <openssl/evp.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <utility>

#include "base/check.h"

namespace muster::crypto {
namespace {

EVP_CIPHER_CTX* ctx(void* context) {
  return static_cast<EVP_CIPHER_CTX*>(context);
}

const EVP_CIPHER* fetched_aead() {
  static EVP_CIPHER* const cipher = EVP_CIPHER_fetch(nullptr, "ChaCha20-Poly1305", nullptr);
  MUSTER_CHECK(cipher != nullptr);
  return cipher;
}

void* new_context(const Secret32& key, int encrypt) {
  EVP_CIPHER_CTX* context = EVP_CIPHER_CTX_new();
  MUSTER_CHECK(context != nullptr);
  MUSTER_CHECK(EVP_CipherInit_ex(context, fetched_aead(), nullptr, key.bytes.data(), nullptr, encrypt) == 1);
  return context;
}

bool fast() {
  static const bool wanted = [] {
    const char* told = std::getenv("MUSTER_AEAD");
    return chacha_poly_fast() && (told == nullptr || std::string_view(told) != "openssl");
  }();
  return wanted;
}

std::array<std::uint8_t, 12> counter_nonce(std::uint64_t counter) {
  std::array<std::uint8_t, 12> nonce{};
  for (std::size_t i = 0; i < 8; ++i) nonce[4 + i] = static_cast<std::uint8_t>(counter >> (8 * i));
  return nonce;
}

std::uint32_t load32(const std::uint8_t* p) {
  return p[0] | static_cast<std::uint32_t>(p[1]) << 8 | static_cast<std::uint32_t>(p[2]) << 16 |
         static_cast<std::uint32_t>(p[3]) << 24;
}
void store32(std::uint8_t* p, std::uint32_t v) {
  for (int i = 0; i < 4; ++i) p[i] = static_cast<std::uint8_t>(v >> (8 * i));
}

}  // namespace

bool packets_on_many_threads() {
  return fast();
}

void seal_row(std::span<AeadPacket> row) {
  chacha_poly_seal(row);
}
void open_row(std::span<AeadPacket> row) {
  chacha_poly_open(row);
}

AeadPacket SealKey::packet(std::uint64_t counter, ByteView plain, std::uint8_t* out) const {
  return {.key = key_.bytes.data(), .nonce = counter_nonce(counter), .in = plain, .out = out};
}
AeadPacket OpenKey::packet(std::uint64_t counter, ByteView sealed, std::uint8_t* out) const {
  return {.key = key_.bytes.data(), .nonce = counter_nonce(counter), .in = sealed, .out = out};
}

SealKey::SealKey(const Secret32& key) : key_(key) {}
SealKey::~SealKey() {
  EVP_CIPHER_CTX_free(ctx(context_));
}
SealKey::SealKey(SealKey&& other) noexcept : key_(other.key_), context_(std::exchange(other.context_, nullptr)) {}
SealKey& SealKey::operator=(SealKey&& other) noexcept {
  std::swap(key_, other.key_);
  std::swap(context_, other.context_);
  return *this;
}
void SealKey::seal(std::uint64_t counter, ByteView ad, ByteView plain, std::uint8_t* out) {
  seal_nonce(counter_nonce(counter), ad, plain, out);
}
void SealKey::seal_nonce(std::span<const std::uint8_t, 12> nonce, ByteView ad, ByteView plain, std::uint8_t* out) {
  if (ad.empty() && fast()) {
    AeadNonce fixed;
    std::copy(nonce.begin(), nonce.end(), fixed.begin());
    return chacha_poly_seal(key_.bytes, fixed, plain, out);
  }
  if (context_ == nullptr) context_ = new_context(key_, 1);
  EVP_CIPHER_CTX* c = ctx(context_);
  int size = 0;
  MUSTER_CHECK(EVP_EncryptInit_ex(c, nullptr, nullptr, nullptr, nonce.data()) == 1);
  if (!ad.empty()) MUSTER_CHECK(EVP_EncryptUpdate(c, nullptr, &size, ad.data(), static_cast<int>(ad.size())) == 1);
  if (!plain.empty()) MUSTER_CHECK(EVP_EncryptUpdate(c, out, &size, plain.data(), static_cast<int>(plain.size())) == 1);
  MUSTER_CHECK(EVP_EncryptFinal_ex(c, out + plain.size(), &size) == 1);
  MUSTER_CHECK(EVP_CIPHER_CTX_ctrl(c, EVP_CTRL_AEAD_GET_TAG, kAeadTag, out + plain.size()) == 1);
}

OpenKey::OpenKey(const Secret32& key) : key_(key) {}
OpenKey::~OpenKey() {
  EVP_CIPHER_CTX_free(ctx(context_));
}
OpenKey::OpenKey(OpenKey&& other) noexcept : key_(other.key_), context_(std::exchange(other.context_, nullptr)) {}
OpenKey& OpenKey::operator=(OpenKey&& other) noexcept {
  std::swap(key_, other.key_);
  std::swap(context_, other.context_);
  return *this;
}
bool OpenKey::open(std::uint64_t counter, ByteView ad, ByteView sealed, std::uint8_t* out) {
  return open_nonce(counter_nonce(counter), ad, sealed, out);
}
bool OpenKey::open_nonce(std::span<const std::uint8_t, 12> nonce, ByteView ad, ByteView sealed, std::uint8_t* out) {
  if (sealed.size() < kAeadTag) return false;
  if (ad.empty() && fast()) {
    AeadNonce fixed;
    std::copy(nonce.begin(), nonce.end(), fixed.begin());
    return chacha_poly_open(key_.bytes, fixed, sealed, out);
  }
  if (context_ == nullptr) context_ = new_context(key_, 0);
  EVP_CIPHER_CTX* c = ctx(context_);
  const std::size_t body = sealed.size() - kAeadTag;
  std::array<std::uint8_t, kAeadTag> tag;
  std::memcpy(tag.data(), sealed.data() + body, kAeadTag);
  int size = 0;
  std::uint8_t nothing = 0;
  if (EVP_DecryptInit_ex(c, nullptr, nullptr, nullptr, nonce.data()) != 1) return false;
  if (EVP_CIPHER_CTX_ctrl(c, EVP_CTRL_AEAD_SET_TAG, kAeadTag, tag.data()) != 1) return false;
  if (!ad.empty() && EVP_DecryptUpdate(c, nullptr, &size, ad.data(), static_cast<int>(ad.size())) != 1) return false;
  if (body != 0 && EVP_DecryptUpdate(c, out, &size, sealed.data(), static_cast<int>(body)) != 1) return false;
  return EVP_DecryptFinal_ex(c, body == 0 ? &nothing : out + body, &size) == 1;
}

// The ChaCha20 block function ends by adding its input to the permuted state; HChaCha20 is the permuted state itself,
// so subtracting the input from one key-stream block gives it (words 0-3 and 12-15).
Secret32 hchacha20(const Secret32& key, std::span<const std::uint8_t, 16> input) {
  static EVP_CIPHER* const cipher = EVP_CIPHER_fetch(nullptr, "ChaCha20", nullptr);
  EVP_CIPHER_CTX* c = EVP_CIPHER_CTX_new();
  MUSTER_CHECK(cipher != nullptr && c != nullptr);
  MUSTER_CHECK(EVP_EncryptInit_ex(c, cipher, nullptr, key.bytes.data(), input.data()) == 1);
  std::array<std::uint8_t, 64> block{};
  int size = 0;
  MUSTER_CHECK(EVP_EncryptUpdate(c, block.data(), &size, block.data(), static_cast<int>(block.size())) == 1);
  EVP_CIPHER_CTX_free(c);
  constexpr std::array<std::uint32_t, 4> constants = {0x61707865, 0x3320646e, 0x79622d32,
                                                      0x6b206574};  // "expand 32-byte k"
  Secret32 out;
  for (std::size_t i = 0; i < 4; ++i) {
    store32(out.bytes.data() + 4 * i, load32(block.data() + 4 * i) - constants[i]);
    store32(out.bytes.data() + 16 + 4 * i, load32(block.data() + 48 + 4 * i) - load32(input.data() + 4 * i));
  }
  zeroise(block.data(), block.size());
  return out;
}

Bytes xchacha_seal(const Secret32& key, std::span<const std::uint8_t, 24> nonce, ByteView ad, ByteView plain) {
  std::array<std::uint8_t, 12> inner{};
  std::copy(nonce.begin() + 16, nonce.end(), inner.begin() + 4);
  Bytes out(plain.size() + kAeadTag);
  SealKey(hchacha20(key, nonce.first<16>())).seal_nonce(inner, ad, plain, out.data());
  return out;
}

std::optional<Bytes> xchacha_open(const Secret32& key, std::span<const std::uint8_t, 24> nonce, ByteView ad,
                                  ByteView sealed) {
  if (sealed.size() < kAeadTag) return {};
  std::array<std::uint8_t, 12> inner{};
  std::copy(nonce.begin() + 16, nonce.end(), inner.begin() + 4);
  Bytes out(sealed.size() - kAeadTag);
  if (!OpenKey(hchacha20(key, nonce.first<16>())).open_nonce(inner, ad, sealed, out.data())) return {};
  return out;
}

}  // namespace muster::crypto
