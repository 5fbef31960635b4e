#include "relay/token_keys.h"

#include <algorithm>
#include <fstream>
#include <iterator>

#include "base/log.h"
#include "crypto/file.h"

namespace muster::relay {

void TokenKeys::start(const crypto::Key32& first, const std::string& trust, const std::string& file) {
  std::string kept;
  if (!file.empty()) {
    std::ifstream in(file, std::ios::binary);
    kept.assign(std::istreambuf_iterator<char>(in), {});
  }
  const std::lock_guard lock(mutex_);
  if (keys_.revision == 0) keys_.keys = {{crypto::KeyKind::RelayToken, first, {}, {}}};
  file_ = file;
  trust_ = {};
  if (auto read = crypto::parse_trust(trust); read.ok()) trust_ = std::move(*read);
  if (kept.empty() || kept == text_) return;
  if (const Status taken = take_text(kept, false); !taken.ok())
    log_warn("relay", "{} is not believed: {}", file, taken.error().message);
}

Status TokenKeys::take(ByteView statement) {
  const std::string text = as_string(statement);
  const std::lock_guard lock(mutex_);
  return take_text(text, true);
}

// With the mutex held.
Status TokenKeys::take_text(const std::string& text, bool keep) {
  if (text == text_) return {};
  if (trust_.roots.empty())
    return error(Code::FailedPrecondition,
                 "this relay knows no CA of its control plane and cannot learn another key; give it ca.pem or "
                 "trust.pem beside controller.pub (musterd relay files)");
  auto told = TRY(crypto::parse_signing_keys(text));
  crypto::SigningKeys fresh = TRY(crypto::believe(keys_, told, trust_));
  keys_ = std::move(fresh);
  text_ = text;
  revision_ = keys_.revision;
  log_info("relay", "the keys of tokens are those of revision {} now: {} are believed", keys_.revision,
           crypto::believed_keys(keys_, crypto::KeyKind::RelayToken, read_clocks().wall).size());
  if (!keep || file_.empty()) return {};
  if (const Status kept = crypto::write_public_file(file_, as_bytes(text)); !kept.ok())
    log_warn("relay", "they are not kept over a restart, and musterd tells them again: {}", kept.error().message);
  return {};
}

std::vector<crypto::Key32> TokenKeys::believed(WallTime now) const {
  const std::lock_guard lock(mutex_);
  return crypto::believed_keys(keys_, crypto::KeyKind::RelayToken, now);
}

bool TokenKeys::believes(const crypto::Key32& key, WallTime now) const {
  const auto all = believed(now);
  return std::find(all.begin(), all.end(), key) != all.end();
}

}  // namespace muster::relay
