#pragma once
// Inside relay: which keys of the control plane sign tokens, by the newest statement that this relay believed
// (crypto/signing_keys.h), or the one key that it was started with. A statement comes from musterd or out of the file
// where the last one is kept; the roots that it is checked against come with the relay's certificate. Any thread.
#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/time.h"
#include "crypto/signing_keys.h"

namespace muster::relay {

class TokenKeys {
 public:
  // first: counts until there is a statement; trust: text of crypto/trust.h, empty: no statement can be checked; file:
  // where the newest is kept, empty: in memory only. Again when a file changed: what is believed never goes back.
  void start(const crypto::Key32& first, const std::string& trust, const std::string& file);
  // Errors: crypto::believe; FailedPrecondition without roots. One that is known already is Ok.
  Status take(ByteView statement);
  std::vector<crypto::Key32> believed(WallTime now) const;
  bool believes(const crypto::Key32& key, WallTime now) const;
  std::uint64_t revision() const { return revision_; }  // 0: no statement yet

 private:
  Status take_text(const std::string& text, bool keep);
  mutable std::mutex mutex_;
  crypto::SigningKeys keys_;  // revision 0: only what it was started with
  crypto::Trust trust_;
  std::string text_, file_;
  std::atomic<std::uint64_t> revision_ = 0;
};

}  // namespace muster::relay
