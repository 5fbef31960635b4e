#pragma once
// The keys that sign rosters, orders and relay tokens, in the folder where they lie: DIR/keys/roster.pem, command.pem
// and relay.pem sign now, NAME.next.pem from an announced moment on, and signing-keys.pem is the statement of all that
// are believed (crypto/signing_keys.h), signed by the CA in use. A change is written in an order that a crash may cut
// anywhere: the secret, then the statement, then the secret takes its place. Blocking; one caller at a time (a lock
// file). The signer looks when musterd asks it to, on SIGHUP and every hour.
#include "crypto/sign.h"
#include "crypto/signing_keys.h"
#include "server/ca.h"

namespace muster::server {

struct DataDir;

struct KeySet {
  crypto::SigningKeys statement;
  std::string text;                         // of statement
  crypto::SigningKey roster, order, relay;  // that sign now
  WallTime next{0};                         // when another one begins to sign; 0: none is announced
};

// Made where there is none; signed anew when another CA is in use; what has ended is taken out.
Result<KeySet> load_signing_keys(const DataDir& dir, const CaSet& cas, const std::string& server_id, WallTime now);

struct KeyChange {
  crypto::KeyKind kind = crypto::KeyKind::Roster;
  bool compromised = false;  // the keys before are believed no longer, from this statement on
  Millis keep{86'400'000};   // else: so long after the new one began to sign
  Millis start_in{0};        // it signs from then on; believed at once
  bool now = false;          // although machines have agents that can learn no key
};
inline constexpr Millis kRelaysHear{
    60'000};  // default of start_in for relay tokens: relays hear of a key before members
// The id of the new key.
Result<std::string> rotate_signing_key(const DataDir& dir, const KeyChange& change, WallTime now);

// Is any of them not the one that was made with the folder? Relays and agents of before know no other.
bool ever_changed(const crypto::SigningKeys& keys, crypto::KeyKind kind);

// Which machines have not said that they know the newest revision, as the serving musterd last wrote it; a line that
// ends with kCannotLearn is of a connected machine whose agent is too old.
inline constexpr std::string_view kCannotLearn = " (its agent is too old to learn keys)";
Status write_keys_behind(const DataDir& dir, const Behind& behind);
Result<Behind> read_keys_behind(const DataDir& dir);

}  // namespace muster::server
