#pragma once
// Which signing keys the serving musterd names to machines and relays: the signer's newest statement
// (crypto/signing_keys.h), replaced as a whole. Thread-safe; refresh_keys may block for a round trip to the signer.
#include <memory>
#include <mutex>
#include <string>

#include "crypto/signing_keys.h"

namespace muster::server {

struct Context;
struct Identity;

struct KeysNow {
  crypto::SigningKeys statement;  // revision 0: an older signer's, that tells none
  std::string text;
  Bytes sha256;
};

class KeyBook {
 public:
  std::shared_ptr<const KeysNow> get() const {
    const std::lock_guard lock(mutex_);
    return now_;
  }
  Status set(const std::string& text);  // empty: none
  // The public key that signs now; `otherwise` where no statement says.
  crypto::Key32 signing(crypto::KeyKind kind, WallTime now, const crypto::Key32& otherwise) const;
  bool names(crypto::KeyKind kind, ByteView key_id) const;  // true where there is no statement
  // When a key begins to sign or ends next, after `now`; 0: none does.
  WallTime next_change(WallTime now) const;

 private:
  mutable std::mutex mutex_;
  std::shared_ptr<const KeysNow> now_ = std::make_shared<const KeysNow>();
};

// Takes what the signer says, and tells machines, relays and the journal where it is another statement than before.
Status take_keys(Context& context, const std::string& text);
Status refresh_keys(Context& context);  // asks the signer first
// Writes into the journal which keys are believed, where it does not say so yet.
void note_keys(Context& context);

}  // namespace muster::server
