#include "base/bytes.h"

#include <cstring>

namespace muster {
namespace {
constexpr std::string_view kStandard = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
constexpr std::string_view kUrl = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

std::string encode64(ByteView bytes, std::string_view alphabet, bool pad) {
  std::string out;
  out.reserve((bytes.size() + 2) / 3 * 4);
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    const std::size_t n = bytes.size() - i < 3 ? bytes.size() - i : 3;
    std::uint32_t word = static_cast<std::uint32_t>(bytes[i]) << 16;
    if (n > 1) word |= static_cast<std::uint32_t>(bytes[i + 1]) << 8;
    if (n > 2) word |= bytes[i + 2];
    for (std::size_t j = 0; j <= n; ++j) out += alphabet[(word >> (18 - 6 * j)) & 63];
    if (pad) out.append(3 - n, '=');
  }
  return out;
}

std::optional<Bytes> decode64(std::string_view text, std::string_view alphabet) {
  if (text.size() % 4 == 1) return {};
  Bytes out;
  std::uint32_t word = 0;
  int bits = 0;
  for (char c : text) {
    const std::size_t index = alphabet.find(c);
    if (index == std::string_view::npos) return {};
    word = (word << 6) | static_cast<std::uint32_t>(index);
    bits += 6;
    if (bits >= 8) {
      bits -= 8;
      out.push_back(static_cast<std::uint8_t>(word >> bits));
      word &= (1U << bits) - 1;
    }
  }
  if (word != 0) return {};
  return out;
}

int nibble(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}
}  // namespace

std::string hex(ByteView bytes) {
  constexpr std::string_view digits = "0123456789abcdef";
  std::string out;
  out.reserve(bytes.size() * 2);
  for (std::uint8_t b : bytes) {
    out += digits[b >> 4];
    out += digits[b & 15];
  }
  return out;
}

std::optional<Bytes> unhex(std::string_view text) {
  if (text.size() % 2 != 0) return {};
  Bytes out;
  out.reserve(text.size() / 2);
  for (std::size_t i = 0; i < text.size(); i += 2) {
    const int high = nibble(text[i]);
    const int low = nibble(text[i + 1]);
    if (high < 0 || low < 0) return {};
    out.push_back(static_cast<std::uint8_t>(high << 4 | low));
  }
  return out;
}

std::string base64(ByteView bytes) {
  return encode64(bytes, kStandard, true);
}
std::string base64url(ByteView bytes) {
  return encode64(bytes, kUrl, false);
}
std::optional<Bytes> unbase64url(std::string_view text) {
  return decode64(text, kUrl);
}
std::optional<Bytes> unbase64(std::string_view text) {
  if (text.size() % 4 != 0) return {};
  for (int i = 0; i < 2 && !text.empty() && text.back() == '='; ++i) text.remove_suffix(1);
  return decode64(text, kStandard);
}

bool valid_utf8(std::string_view text) {
  for (std::size_t i = 0; i < text.size();) {
    // Eight letters of ASCII at once.
    for (std::uint64_t eight = 0; text.size() - i >= sizeof eight; i += sizeof eight) {
      std::memcpy(&eight, text.data() + i, sizeof eight);
      if ((eight & 0x8080808080808080u) != 0) break;
    }
    if (i == text.size()) break;
    const auto c = static_cast<unsigned char>(text[i]);
    std::size_t extra = 0;
    std::uint32_t point = 0;
    std::uint32_t least = 0;
    if (c < 0x80) {
      ++i;
      continue;
    }
    if (c >= 0xc2 && c <= 0xdf) {
      extra = 1;
      point = c & 0x1f;
      least = 0x80;
    } else if (c >= 0xe0 && c <= 0xef) {
      extra = 2;
      point = c & 0x0f;
      least = 0x800;
    } else if (c >= 0xf0 && c <= 0xf4) {
      extra = 3;
      point = c & 0x07;
      least = 0x10000;
    } else
      return false;
    if (text.size() - i <= extra) return false;
    for (std::size_t j = 1; j <= extra; ++j) {
      const auto d = static_cast<unsigned char>(text[i + j]);
      if ((d & 0xc0) != 0x80) return false;
      point = point << 6 | (d & 0x3f);
    }
    if (point < least || point > 0x10ffff || (point >= 0xd800 && point <= 0xdfff)) return false;
    i += extra + 1;
  }
  return true;
}
}  // namespace muster
