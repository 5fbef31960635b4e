#pragma once
// ChaCha20-Poly1305 (RFC 8439). A packet without additional data goes the fast way (chacha_poly.h) where the machine
// has it; everything else is OpenSSL's, with a context made when it is first needed that keeps its key: a packet then
// costs only its nonce. MUSTER_AEAD=openssl in the environment leaves all to OpenSSL. The caller never repeats a nonce
// under one key. Buffers may be the same memory (in place), not partly overlapping. One thread at a time per object;
// where packets_on_many_threads(), seal() and open() without additional data on as many as one likes.
// XChaCha20-Poly1305 (24-byte nonce) serves rare messages such as cookies.
#include <memory>
#include <optional>

#include "base/bytes.h"
#include "crypto/chacha_poly.h"
#include "crypto/secret.h"

namespace muster::crypto {

// Packets without additional data go the fast way here, so also on many threads at once, and in rows.
bool packets_on_many_threads();
// A row of packets (SealKey::packet, OpenKey::packet), which takes a third less time than one after the other; only
// where packets_on_many_threads().
void seal_row(std::span<AeadPacket> row);
void open_row(std::span<AeadPacket> row);  // `good` says which were authentic

class SealKey {
 public:
  explicit SealKey(const Secret32& key);
  ~SealKey();
  SealKey(SealKey&&) noexcept;
  SealKey& operator=(SealKey&&) noexcept;
  // out has room for plain.size() + kAeadTag. Nonce: 4 zero bytes, then the counter, little endian (WireGuard, Noise).
  void seal(std::uint64_t counter, ByteView ad, ByteView plain, std::uint8_t* out);
  void seal_nonce(std::span<const std::uint8_t, 12> nonce, ByteView ad, ByteView plain, std::uint8_t* out);
  AeadPacket packet(std::uint64_t counter, ByteView plain, std::uint8_t* out) const;  // good while this object is

 private:
  Secret32 key_;
  void* context_ = nullptr;
};

class OpenKey {
 public:
  explicit OpenKey(const Secret32& key);
  ~OpenKey();
  OpenKey(OpenKey&&) noexcept;
  OpenKey& operator=(OpenKey&&) noexcept;
  // out has room for sealed.size() - kAeadTag; false: forged or damaged, out holds nothing to trust.
  bool open(std::uint64_t counter, ByteView ad, ByteView sealed, std::uint8_t* out);
  bool open_nonce(std::span<const std::uint8_t, 12> nonce, ByteView ad, ByteView sealed, std::uint8_t* out);
  AeadPacket packet(std::uint64_t counter, ByteView sealed, std::uint8_t* out) const;  // good while this object is

 private:
  Secret32 key_;
  void* context_ = nullptr;
};

Secret32 hchacha20(const Secret32& key, std::span<const std::uint8_t, 16> input);
Bytes xchacha_seal(const Secret32& key, std::span<const std::uint8_t, 24> nonce, ByteView ad, ByteView plain);
std::optional<Bytes> xchacha_open(const Secret32& key, std::span<const std::uint8_t, 24> nonce, ByteView ad,
                                  ByteView sealed);

}  // namespace muster::crypto
