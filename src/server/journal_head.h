#pragma once
// A signed head: "at this time the journal of this control plane ended with entry SEQ, whose chain hash is HASH". Since
// each entry holds the hash of the one before, whoever keeps a head elsewhere can prove later that nothing up to that
// entry was changed or cut off. The key (Ed25519) serves nothing else: DIR/keys/audit.pem, its public half and those
// before it in DIR/keys/audit-KEYID.pub. Whoever holds the data folder can sign anew, so heads count for what they are
// kept away from it. Blocking; any thread.
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "journal/store.h"
#include "server/identity.h"
#include "wire/audit_views.h"

namespace muster::server {

std::string audit_key_id(ByteView public_key);  // first 16 hex digits of its SHA-256
Status ensure_audit_key(const DataDir& dir);    // made where there is none
// A new key signs from now on, the old one is destroyed, its public half stays. The id of the new one.
Result<std::string> rotate_audit_key(const DataDir& dir);
// The public keys that this folder knows; empty = none.
std::vector<Bytes> known_audit_keys(const DataDir& dir);
Result<Bytes> read_audit_key(const std::string& path);  // of a .pub file: base64

Result<wire::HeadView> sign_head(const DataDir& dir, const std::string& server_id, std::uint64_t incarnation,
                                 const journal::Tail& tail, WallTime now);
Result<wire::HeadView> parse_head(const std::string& json);
// PermissionDenied when none of the keys signed it.
Status check_signature(const wire::HeadView& head, const std::vector<Bytes>& keys);

struct Context;
Result<wire::HeadView> new_head(const Context& context);  // of the newest durable entry

std::string heads_dir(const DataDir& dir);
Result<std::string> keep_head(const DataDir& dir, const wire::HeadView& head);  // its path in heads_dir()
bool head_due(const DataDir& dir, WallTime now);                                // none of this day (UTC) is kept
// The intact ones that are signed by one of the keys, by seq.
std::vector<wire::HeadView> kept_heads(const DataDir& dir, const std::vector<Bytes>& keys);

struct HeadReport {
  enum class Verdict : std::uint8_t {
    Holds,      // the journal contains exactly that entry, and so everything before it as it was
    Restored,   // a backup from before that entry was restored: what came after the backup was given up
    Truncated,  // the journal ends before that entry
    Rewritten   // another entry stands there although the chain is whole
  } verdict = Verdict::Holds;
  std::uint64_t entries = 0;      // in the journal
  std::uint64_t proven = 0;       // up to here an intact head proves the entries; 0 = no head does
  std::uint64_t restored_at = 0;  // the entry that raised the incarnation, before or after the head; 0 = none
  std::uint64_t incarnation = 0;  // of the journal now
  std::string text;               // for people: what it means
};
// Walks the whole chain. `others` narrow down where a rewritten journal begins to differ. DataLoss when the chain
// itself is broken, naming the entry.
Result<HeadReport> verify_head(const journal::Store& store, const wire::HeadView& head,
                               const std::vector<wire::HeadView>& others);

}  // namespace muster::server
