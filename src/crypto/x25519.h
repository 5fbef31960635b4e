#pragma once
// X25519 key agreement (RFC 7748). agree() refuses the all-zero result (a peer's low-order point). Any thread.
#include <optional>

#include "crypto/secret.h"

namespace muster::crypto {

struct X25519Pair {
  Secret32 secret;
  Key32 public_key{};
};
X25519Pair x25519_generate();
Key32 x25519_public(const Secret32& secret);
std::optional<Secret32> x25519_agree(const Secret32& secret, const Key32& peer);

}  // namespace muster::crypto
