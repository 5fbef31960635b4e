#include "net/recall_frame.h"

#include <algorithm>

#include "base/endian.h"

namespace muster::net {
namespace {

constexpr std::size_t kRecallHeadBytes = 5, kRecallEntryBytes = 40;

}  // namespace

Bytes encode(const RecallFrame& frame) {
  Bytes out;
  if (frame.kind == RecallFrame::Kind::Keys) {
    out.push_back(static_cast<std::uint8_t>(frame.kind));
    append_be(out, static_cast<std::uint32_t>(frame.keys.size()));
    out.insert(out.end(), frame.keys.begin(), frame.keys.end());
    return out;
  }
  const std::size_t count = std::min(frame.entries.size(), kRecallEntriesMax);
  out.reserve(kRecallHeadBytes + count * kRecallEntryBytes);
  out.push_back(static_cast<std::uint8_t>(frame.kind));
  append_be(out, static_cast<std::uint32_t>(count));
  for (std::size_t i = 0; i < count; ++i) {
    append_be(out, frame.entries[i].first);
    out.insert(out.end(), frame.entries[i].second.begin(), frame.entries[i].second.end());
  }
  return out;
}

Result<std::optional<RecallFrame>> take_recall(Bytes& bytes) {
  if (bytes.size() < kRecallHeadBytes) return std::optional<RecallFrame>();
  const std::size_t count = load_be32(bytes.data() + 1);
  const bool keys = bytes[0] == static_cast<std::uint8_t>(RecallFrame::Kind::Keys);
  if (bytes[0] < 1 || bytes[0] > 3 || count > (keys ? kRecallKeysMax : kRecallEntriesMax))
    return error(Code::InvalidArgument, "a damaged recall; are musterd and muster-relay from the same version?");
  if (keys) {
    if (bytes.size() < kRecallHeadBytes + count) return std::optional<RecallFrame>();
    const auto start = bytes.begin() + kRecallHeadBytes, end = start + static_cast<std::ptrdiff_t>(count);
    RecallFrame out{RecallFrame::Kind::Keys, {}, Bytes(start, end)};
    bytes.erase(bytes.begin(), end);
    return std::optional(std::move(out));
  }
  if (bytes.size() < kRecallHeadBytes + count * kRecallEntryBytes) return std::optional<RecallFrame>();
  RecallFrame out{static_cast<RecallFrame::Kind>(bytes[0]), {}, {}};
  out.entries.reserve(count);
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint8_t* at = bytes.data() + kRecallHeadBytes + i * kRecallEntryBytes;
    crypto::Key32 key;
    std::copy(at + 8, at + kRecallEntryBytes, key.begin());
    out.entries.emplace_back(load_be64(at), key);
  }
  bytes.erase(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(kRecallHeadBytes + count * kRecallEntryBytes));
  return std::optional(std::move(out));
}

}  // namespace muster::net
