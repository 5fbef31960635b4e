#pragma once
// Bytes as values and the text forms they travel in.
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace muster {

using Bytes = std::vector<std::uint8_t>;
using ByteView = std::span<const std::uint8_t>;

inline ByteView as_bytes(std::string_view text) {
  return {reinterpret_cast<const std::uint8_t*>(text.data()), text.size()};
}
inline std::string as_string(ByteView bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}
inline Bytes to_bytes(std::string_view text) {
  return Bytes(text.begin(), text.end());
}

std::string hex(ByteView bytes);
std::optional<Bytes> unhex(std::string_view text);
std::string base64(ByteView bytes);                    // standard alphabet, padded
std::optional<Bytes> unbase64(std::string_view text);  // strict
std::string base64url(ByteView bytes);                 // no padding
std::optional<Bytes> unbase64url(std::string_view text);
bool valid_utf8(std::string_view text);

}  // namespace muster
