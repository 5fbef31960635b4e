#pragma once
// Which keys of a control plane sign rosters, orders and relay tokens, as one text that machines and relays keep. A CA
// that they believe (crypto/trust.h) signs it, never one of the keys themselves: who has one of those can add none. It
// carries a revision, and an older one is never taken again; during a change it names the old key and the new one, each
// with its time. Its lines are read strictly, so that one statement has one text. Revision 0: what a machine or relay
// was given when it was set up, before it heard a statement. Values; any thread.
#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/time.h"
#include "crypto/secret.h"
#include "crypto/trust.h"

namespace muster::crypto {

enum class KeyKind : std::uint8_t { Roster, Order, RelayToken };
inline constexpr std::size_t kKeyKinds = 3;
std::string_view key_kind_name(KeyKind kind);  // "roster", "order", "relay-token"
std::optional<KeyKind> parse_key_kind(std::string_view name);

inline constexpr std::size_t kSigningKeysBytesMax = 32 << 10, kSigningKeysMax = 16, kKeyIdBytes = 8;

struct SigningKeyEntry {
  KeyKind kind = KeyKind::Roster;
  Key32 key{};        // Ed25519, public
  WallTime from{0};   // it signs from then on; believed at once
  WallTime until{0};  // believed until then; 0: no end yet
  bool operator==(const SigningKeyEntry&) const = default;
};

struct SigningKeys {
  std::string server_id;
  std::uint64_t revision = 0;
  std::vector<SigningKeyEntry> keys;
  // Not part of what is signed: the certificates of the CA that signed, one for each root that vouches for it.
  std::vector<std::string> chain;
  Bytes signature;
  bool operator==(const SigningKeys&) const = default;
};

// First bytes of the key's SHA-256: what signatures name their key by. The text is their hex digits.
Bytes short_key_id(ByteView public_key);
std::string key_id_text(ByteView public_key);

Result<SigningKeys> parse_signing_keys(std::string_view text);
std::string signing_keys_text(const SigningKeys& keys);
// By the CA in use; `trust`: where its certificates are looked up.
Status sign_signing_keys(SigningKeys& keys, const KeyAndCert& ca, const Trust& trust);
// Signed by a CA that a root of `trust` vouches for and that was not given up. The CA's dates are not looked at, as
// with proofs of machines: clocks are off, and what counts for nothing any more is given up.
bool vouched_for(const SigningKeys& keys, const Trust& trust);

// What is believed after `told`. Refused, `before` then stays: what no believed CA signed, another server's, an older
// revision, other keys under the same one. What was signed by a CA that was given up since holds back nothing newer:
// a thief of that CA may have made up its revision.
Result<SigningKeys> believe(const SigningKeys& before, const SigningKeys& told, const Trust& trust);

// Those that count now, the newest first.
std::vector<Key32> believed_keys(const SigningKeys& keys, KeyKind kind, WallTime now);
// The one that signs now; nullptr: none.
const SigningKeyEntry* signing_key(const SigningKeys& keys, KeyKind kind, WallTime now);
// Of the believed ones the one that made this Ed25519 signature over `message`. `id`: which it says it is by
// short_key_id, or empty: every one is tried.
std::optional<Key32> signer_of(const std::vector<Key32>& believed, ByteView id, ByteView message, ByteView signature);

}  // namespace muster::crypto
