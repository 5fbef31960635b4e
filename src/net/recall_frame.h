#pragma once
// What musterd tells a relay on its machine over the unix socket beside the handoff socket, in one direction: frames of
// a kind (one byte), a count (four bytes, big endian) and so many entries of a cluster (eight bytes, big endian) and an
// overlay key (32 bytes): a token for such a pair is worth nothing any more. Of the kind Keys the count is one of
// bytes, of a statement that follows; relays of before cut the connection there. Values; hostile input is an error.
#include <optional>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"
#include "crypto/secret.h"

namespace muster::net {

inline std::string recall_path(const std::string& handoff_path) {
  return handoff_path + ".recall";
}

struct RecallFrame {
  enum class Kind : std::uint8_t {
    All = 1 /* instead of what was said before */,
    More = 2,
    Keys = 3
  } kind = Kind::More;
  std::vector<std::pair<std::uint64_t, crypto::Key32>> entries;
  Bytes keys = {};  // of Keys: a statement of signing keys (crypto/signing_keys.h)
  bool operator==(const RecallFrame&) const = default;
};
inline constexpr std::size_t kRecallEntriesMax = 200'000, kRecallKeysMax = 32 << 10;

Bytes encode(const RecallFrame& frame);  // entries beyond the bound are left out
// Takes one whole frame from the front of `bytes`; nullopt: more bytes are needed.
Result<std::optional<RecallFrame>> take_recall(Bytes& bytes);

}  // namespace muster::net
