#pragma once
// The compact codec of control: unsigned integers as LEB128 varints, signed ones zigzagged, enums and bools as one
// varint with a range check, text and bytes length-prefixed, containers as a count and their elements. A Decoder never
// reads past its bytes and never allocates more than they can hold; after an error it stays failed. Both know the
// format (state.h): fields that came later stand in a.since(format, ...) and are absent from older bytes. Private to
// control.
#include <chrono>
#include <limits>
#include <type_traits>

#include "control/fields.h"

namespace muster::control {

// The last enumerator of each stored enum; a larger number in the bytes is damage.
template <class E>
constexpr std::uint64_t enum_last();
template <>
constexpr std::uint64_t enum_last<Role>() {
  return 7;
}
template <>
constexpr std::uint64_t enum_last<RuntimeKind>() {
  return 2;
}
template <>
constexpr std::uint64_t enum_last<GpuSharing>() {
  return 2;
}
template <>
constexpr std::uint64_t enum_last<TrustTier>() {
  return 2;
}
template <>
constexpr std::uint64_t enum_last<Policy>() {
  return 4;
}
template <>
constexpr std::uint64_t enum_last<NodeState>() {
  return 9;
}
template <>
constexpr std::uint64_t enum_last<ClusterState>() {
  return 6;
}
template <>
constexpr std::uint64_t enum_last<SlotRole>() {
  return 3;
}
template <>
constexpr std::uint64_t enum_last<LeaseWant>() {
  return 4;
}
template <>
constexpr std::uint64_t enum_last<LeasePhase>() {
  return 8;
}
template <>
constexpr std::uint64_t enum_last<LeaseEnd>() {
  return 3;
}
template <>
constexpr std::uint64_t enum_last<JobState>() {
  return 7;
}
template <>
constexpr std::uint64_t enum_last<Right>() {
  return 5;
}
template <>
constexpr std::uint64_t enum_last<TimerKind>() {
  return 9;
}

class Encoder {
 public:
  explicit Encoder(std::uint64_t format) : format_(format) {}
  template <class... T>
  void operator()(const T&... values) {
    (put(values), ...);
  }
  template <class... T>
  void since(std::uint64_t format, const T&... values) {
    if (format_ >= format) (put(values), ...);
  }
  Bytes take() { return std::move(out_); }
  void varint(std::uint64_t value) {
    while (value >= 0x80) {
      out_.push_back(static_cast<std::uint8_t>(value) | 0x80);
      value >>= 7;
    }
    out_.push_back(static_cast<std::uint8_t>(value));
  }

 private:
  void raw(const void* data, std::size_t size) {
    const auto* bytes = static_cast<const std::uint8_t*>(data);
    varint(size);
    out_.insert(out_.end(), bytes, bytes + size);
  }
  void put(const std::string& text) { raw(text.data(), text.size()); }
  void put(const Bytes& bytes) { raw(bytes.data(), bytes.size()); }
  void put(const Millis& duration) { put(static_cast<std::int64_t>(duration.count())); }
  template <class T>
  void put(const std::vector<T>& items) {
    varint(items.size());
    for (const auto& item : items) put(item);
  }
  template <class K, class V>
  void put(const std::map<K, V>& items) {
    varint(items.size());
    for (const auto& [key, value] : items) put(key), put(value);
  }
  template <class A, class B>
  void put(const std::pair<A, B>& pair) {
    put(pair.first), put(pair.second);
  }
  template <class... T>
  void put(const std::tuple<T...>& tuple) {
    std::apply([this](const auto&... item) { (this->put(item), ...); }, tuple);
  }
  template <class T>
  void put(const T& value) {
    if constexpr (std::is_enum_v<T> || std::is_same_v<T, bool>) {
      varint(static_cast<std::uint64_t>(value));
    } else if constexpr (std::is_unsigned_v<T>) {
      varint(value);
    } else if constexpr (std::is_integral_v<T>) {
      const auto wide = static_cast<std::int64_t>(value);
      varint((static_cast<std::uint64_t>(wide) << 1) ^ static_cast<std::uint64_t>(wide >> 63));
    } else {
      fields(*this, const_cast<T&>(value));  // fields() only reads here: this archive takes const references
    }
  }
  std::uint64_t format_;
  Bytes out_;
};

class Decoder {
 public:
  explicit Decoder(ByteView bytes) : rest_(bytes) {}
  void set_format(std::uint64_t format) { format_ = format; }
  template <class... T>
  void operator()(T&... values) {
    (get(values), ...);
  }
  template <class... T>
  void since(std::uint64_t format, T&... values) {
    if (format_ >= format) (get(values), ...);
  }
  bool ok() const { return ok_; }
  bool done() const { return ok_ && rest_.empty(); }
  std::uint64_t varint() {
    std::uint64_t value = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
      if (rest_.empty()) return fail();
      const std::uint8_t byte = rest_.front();
      rest_ = rest_.subspan(1);
      if (shift == 63 && byte > 1) return fail();
      value |= static_cast<std::uint64_t>(byte & 0x7f) << shift;
      if (byte < 0x80) return byte == 0 && shift != 0 ? fail() : value;  // one encoding per value
    }
    return fail();
  }

 private:
  std::uint64_t fail() {
    ok_ = false;
    rest_ = {};
    return 0;
  }
  ByteView raw() {
    const std::uint64_t size = varint();
    if (size > rest_.size()) fail();
    if (!ok_) return {};
    const ByteView out = rest_.first(size);
    rest_ = rest_.subspan(size);
    return out;
  }
  std::uint64_t count() {  // every element takes at least one byte
    const std::uint64_t n = varint();
    return n > rest_.size() ? fail() : n;
  }
  void get(std::string& text) {
    const ByteView bytes = raw();
    text.assign(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }
  void get(Bytes& bytes) {
    const ByteView view = raw();
    bytes.assign(view.begin(), view.end());
  }
  void get(Millis& duration) {
    std::int64_t ms = 0;
    get(ms);
    duration = Millis(ms);
  }
  template <class T>
  void get(std::vector<T>& items) {
    items.clear();
    for (std::uint64_t n = count(); n > 0 && ok_; --n) get(items.emplace_back());
  }
  template <class K, class V>
  void get(std::map<K, V>& items) {
    items.clear();
    for (std::uint64_t n = count(); n > 0 && ok_; --n) {
      K key{};
      get(key);
      if (!items.empty() && !(items.rbegin()->first < key)) fail();  // strictly rising, so one encoding per map
      if (ok_) get(items.emplace_hint(items.end(), std::move(key), V{})->second);
    }
  }
  template <class A, class B>
  void get(std::pair<A, B>& pair) {
    get(pair.first), get(pair.second);
  }
  template <class... T>
  void get(std::tuple<T...>& tuple) {
    std::apply([this](auto&... item) { (this->get(item), ...); }, tuple);
  }
  template <class T>
  void get(T& value) {
    if constexpr (std::is_same_v<T, bool>) {
      const std::uint64_t n = varint();
      if (n > 1) fail();
      value = n == 1;
    } else if constexpr (std::is_enum_v<T>) {
      const std::uint64_t n = varint();
      if (n > enum_last<T>()) fail();
      value = static_cast<T>(ok_ ? n : 0);
    } else if constexpr (std::is_unsigned_v<T>) {
      const std::uint64_t n = varint();
      if (n > std::numeric_limits<T>::max()) fail();
      value = static_cast<T>(ok_ ? n : 0);
    } else if constexpr (std::is_integral_v<T>) {
      const std::uint64_t n = varint();
      const auto wide = static_cast<std::int64_t>((n >> 1) ^ (~(n & 1) + 1));
      if (wide < std::numeric_limits<T>::min() || wide > std::numeric_limits<T>::max()) fail();
      value = static_cast<T>(ok_ ? wide : 0);
    } else {
      fields(*this, value);
    }
  }
  ByteView rest_;
  std::uint64_t format_ = 1;
  bool ok_ = true;
};

}  // namespace muster::control
