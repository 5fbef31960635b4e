#pragma once
// Data keys of encryption at rest, by number: one seals, all open. What is sealed names its key, and opens only at the
// place it was sealed for ("entry/17"), so sealed things cannot change places. XChaCha20-Poly1305; a nonce is 16 random
// bytes of this object and a counter, so none repeats. Layout: mark (4), key (u32, little endian), nonce (24),
// ciphertext, tag (16). Thread-safe.
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string_view>

#include "base/bytes.h"
#include "base/result.h"
#include "crypto/aead.h"
#include "crypto/secret.h"

namespace muster::crypto {

class KeyRing {
 public:
  // No journal entry, PEM or text begins so, and random bytes do once in four thousand million times.
  static constexpr std::array<std::uint8_t, 4> kMark{0xe1, 'M', 'S', 'R'};
  static constexpr std::size_t kOverhead = 4 + 4 + 24 + kAeadTag;

  // current must be among the keys.
  KeyRing(std::map<std::uint32_t, Secret32> keys, std::uint32_t current);
  Bytes seal(std::string_view place, ByteView plain);
  // DataLoss, saying `place`: not sealed, by a key that is not here, changed, or moved from elsewhere.
  Result<Bytes> open(std::string_view place, ByteView sealed);
  std::uint32_t current() const { return current_; }
  // The number of the key that sealed it; nullopt = not sealed.
  static std::optional<std::uint32_t> key_of(ByteView bytes);
  // Authenticates small texts with the current key.
  Bytes mac(std::string_view purpose, ByteView text) const;

 private:
  using Prefix = std::array<std::uint8_t, 16>;
  OpenKey& opener(std::uint32_t id, const Secret32& key, const Prefix& prefix);

  const std::map<std::uint32_t, Secret32> keys_;
  const std::uint32_t current_;
  std::mutex mutex_;
  Prefix prefix_;
  std::uint64_t counter_ = 0;
  SealKey sealer_;
  std::map<std::pair<std::uint32_t, Prefix>, OpenKey> openers_;  // of the prefixes met last, bounded
};

}  // namespace muster::crypto
