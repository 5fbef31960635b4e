#pragma once
// ChaCha20-Poly1305 (RFC 8439) without additional data for machines with AVX2: what seals and opens each packet of the
// overlay. Eight blocks of key stream are made at a time while the authenticator takes the ciphertext of the eight
// before in between, on the processor's other half; there is no set-up for a packet. Nothing depends on secret data but
// arithmetic (no branch, no table). Buffers may be the same memory, not partly overlapping. Any thread.
#include <array>
#include <cstdint>
#include <span>

#include "base/bytes.h"

namespace muster::crypto {

inline constexpr std::size_t kAeadTag = 16;

using AeadKeyView = std::span<const std::uint8_t, 32>;
using AeadNonce = std::array<std::uint8_t, 12>;

bool chacha_poly_fast();  // this machine can; the two below may only be called then
// out has room for plain.size() + kAeadTag.
void chacha_poly_seal(AeadKeyView key, const AeadNonce& nonce, ByteView plain, std::uint8_t* out);
// out has room for sealed.size() - kAeadTag. false: forged or damaged; out is wiped.
bool chacha_poly_open(AeadKeyView key, const AeadNonce& nonce, ByteView sealed, std::uint8_t* out);

}  // namespace muster::crypto
