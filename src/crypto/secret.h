#pragma once
// Fixed-size key material. Secret32 wipes itself when it dies and is never printed; Key32 is public. equal() takes time
// that does not depend on the contents. Values, no sharing; any thread.
#include <array>
#include <cstdint>

#include "base/bytes.h"

namespace muster::crypto {

using Key32 = std::array<std::uint8_t, 32>;

void zeroise(void* data, std::size_t size);
inline void zeroise(Bytes& bytes) {
  zeroise(bytes.data(), bytes.size());
  bytes.clear();
}
inline void zeroise(std::string& text) {
  zeroise(text.data(), text.size());
  text.clear();
}
bool equal(ByteView a, ByteView b);  // constant time for equal lengths

struct Secret32 {
  Key32 bytes{};
  Secret32() = default;
  explicit Secret32(const Key32& key) : bytes(key) {}
  Secret32(const Secret32&) = default;
  Secret32& operator=(const Secret32&) = default;
  ~Secret32() { zeroise(bytes.data(), bytes.size()); }
  ByteView view() const { return bytes; }
  bool zero() const { return equal(bytes, Key32{}); }
};

// 32 bytes exactly, else nullopt.
std::optional<Key32> key32(ByteView bytes);

}  // namespace muster::crypto
