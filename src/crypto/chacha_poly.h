#pragma once
// ChaCha20-Poly1305 (RFC 8439) without additional data for machines with AVX2: what seals and opens each packet of the
// overlay. Eight blocks of key stream are made at a time while the authenticator takes the ciphertext of the eight
// before in between, on the processor's other half, over the ends of packets in a row; there is no set-up for a packet.
// With AVX-512 (VL) it rotates by that. Nothing depends on secret data but arithmetic (no branch, no table). Buffers
// may be the same memory, not partly overlapping. Any thread.
#include <array>
#include <cstdint>
#include <span>

#include "base/bytes.h"

namespace muster::crypto {

inline constexpr std::size_t kAeadTag = 16;

using AeadKeyView = std::span<const std::uint8_t, 32>;
using AeadNonce = std::array<std::uint8_t, 12>;

bool chacha_poly_fast();                        // this machine can; what is below may only be called then
void chacha_poly_without_avx512(bool without);  // for tests: as on a machine that lacks it
// One of a row: they may have different keys. No buffer of one is another's.
struct AeadPacket {
  const std::uint8_t* key = nullptr;  // 32 bytes
  AeadNonce nonce{};
  ByteView in;
  std::uint8_t* out = nullptr;                // room as below
  bool good = false;                          // set: sealed, or opened and authentic; what is not is wiped
  std::array<std::uint8_t, kAeadTag> told{};  // the tag of one that is opened, while it is
};
void chacha_poly_seal(std::span<AeadPacket> packets);
void chacha_poly_open(std::span<AeadPacket> packets);
// out has room for plain.size() + kAeadTag.
void chacha_poly_seal(AeadKeyView key, const AeadNonce& nonce, ByteView plain, std::uint8_t* out);
// out has room for sealed.size() - kAeadTag. false: forged or damaged; out is wiped.
bool chacha_poly_open(AeadKeyView key, const AeadNonce& nonce, ByteView sealed, std::uint8_t* out);

}  // namespace muster::crypto
