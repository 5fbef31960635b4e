#pragma once
// Random bytes of the operating system's quality (OpenSSL's DRBG). A failure to gather randomness ends the process:
// nothing may go on with guessable keys. Any thread.
#include "base/bytes.h"
#include "crypto/secret.h"

namespace muster::crypto {

void random_fill(std::span<std::uint8_t> out);
Bytes random_bytes(std::size_t size);
Key32 random_key32();
std::uint32_t random_u32();

}  // namespace muster::crypto
