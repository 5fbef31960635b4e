#include "net/recall_frame.h"

#include <algorithm>

namespace muster::net {
namespace {

constexpr std::size_t kRecallHeadBytes = 5, kRecallEntryBytes = 40;

void put_number(Bytes& out, std::uint64_t value, int bytes) {
  for (int shift = 8 * (bytes - 1); shift >= 0; shift -= 8) out.push_back(static_cast<std::uint8_t>(value >> shift));
}
std::uint64_t get_number(const std::uint8_t* at, int bytes) {
  std::uint64_t value = 0;
  for (int i = 0; i < bytes; ++i) value = value << 8 | at[i];
  return value;
}

}  // namespace

Bytes encode(const RecallFrame& frame) {
  const std::size_t count = std::min(frame.entries.size(), kRecallEntriesMax);
  Bytes out;
  out.reserve(kRecallHeadBytes + count * kRecallEntryBytes);
  put_number(out, static_cast<std::uint8_t>(frame.kind), 1);
  put_number(out, count, 4);
  for (std::size_t i = 0; i < count; ++i) {
    put_number(out, frame.entries[i].first, 8);
    out.insert(out.end(), frame.entries[i].second.begin(), frame.entries[i].second.end());
  }
  return out;
}

Result<std::optional<RecallFrame>> take_recall(Bytes& bytes) {
  if (bytes.size() < kRecallHeadBytes) return std::optional<RecallFrame>();
  const std::size_t count = get_number(bytes.data() + 1, 4);
  if ((bytes[0] != 1 && bytes[0] != 2) || count > kRecallEntriesMax)
    return error(Code::InvalidArgument, "a damaged recall; are musterd and muster-relay from the same version?");
  if (bytes.size() < kRecallHeadBytes + count * kRecallEntryBytes) return std::optional<RecallFrame>();
  RecallFrame out{static_cast<RecallFrame::Kind>(bytes[0]), {}};
  out.entries.reserve(count);
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint8_t* at = bytes.data() + kRecallHeadBytes + i * kRecallEntryBytes;
    crypto::Key32 key;
    std::copy(at + 8, at + kRecallEntryBytes, key.begin());
    out.entries.emplace_back(get_number(at, 8), key);
  }
  bytes.erase(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(kRecallHeadBytes + count * kRecallEntryBytes));
  return std::optional(std::move(out));
}

}  // namespace muster::net
