#pragma once
// Reading and writing of the journal's own small encodings: minimal LEB128 numbers, length-prefixed bytes. The reader
// is strict (no over-long numbers, no byte left over) and sticky: after the first fault it returns zeros and ok() is
// false.
#include <cstdint>

#include "base/bytes.h"

namespace muster::journal {

class Writer {
 public:
  explicit Writer(std::size_t reserve = 0) { bytes_.reserve(reserve); }
  void byte(std::uint8_t value) { bytes_.push_back(value); }
  void number(std::uint64_t value) {
    while (value >= 0x80) {
      bytes_.push_back(static_cast<std::uint8_t>(value | 0x80));
      value >>= 7;
    }
    bytes_.push_back(static_cast<std::uint8_t>(value));
  }
  void raw(ByteView view) { bytes_.insert(bytes_.end(), view.begin(), view.end()); }
  void sized(ByteView view) {
    number(view.size());
    raw(view);
  }
  Bytes take() { return std::move(bytes_); }

 private:
  Bytes bytes_;
};

class Reader {
 public:
  explicit Reader(ByteView bytes) : bytes_(bytes) {}
  bool ok() const { return ok_; }
  bool done() const { return ok_ && bytes_.empty(); }
  std::uint8_t byte() { return raw(1).empty() ? std::uint8_t{0} : last_; }
  std::uint64_t number() {
    std::uint64_t value = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
      const std::uint8_t part = byte();
      if (!ok_) return 0;
      const bool overflows = shift == 63 && part > 1;
      const bool over_long = shift > 0 && part == 0;
      if (overflows || over_long) return fail();
      value |= static_cast<std::uint64_t>(part & 0x7f) << shift;
      if ((part & 0x80) == 0) return value;
    }
    return fail();
  }
  ByteView raw(std::size_t size) {
    if (!ok_ || size > bytes_.size()) {
      ok_ = false;
      return {};
    }
    const ByteView view = bytes_.first(size);
    bytes_ = bytes_.subspan(size);
    if (size > 0) last_ = view.back();
    return view;
  }
  ByteView sized() {
    const std::uint64_t size = number();
    if (size > bytes_.size()) {
      ok_ = false;
      return {};
    }
    return raw(static_cast<std::size_t>(size));
  }

 private:
  std::uint64_t fail() {
    ok_ = false;
    return 0;
  }
  ByteView bytes_;
  bool ok_ = true;
  std::uint8_t last_ = 0;
};

}  // namespace muster::journal
