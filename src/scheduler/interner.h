#pragma once
// Equal values share one small number, counted by users; numbers of values that nobody uses are given again. T has
// hash() and ==. Texts have Symbols. Private.
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "scheduler/hash_index.h"

namespace muster::scheduler {

template <class T>
class Interner {
 public:
  // One more user of the value; `fresh` says whether the number is new.
  std::uint32_t acquire(T value, bool* fresh = nullptr) {
    const std::uint64_t hash = value.hash();
    return acquire(
        hash, [&](const T& other) { return other == value; }, [&] { return std::move(value); }, fresh);
  }
  // The same where there is no value yet: `same` knows it, `make` makes it when it is new.
  template <class Same, class Make>
  std::uint32_t acquire(std::uint64_t hash, const Same& same, const Make& make, bool* fresh = nullptr) {
    std::uint32_t id = index_.find(hash, [&](std::uint32_t i) { return same(items_[i].value); });
    if (fresh != nullptr) *fresh = id == kNone;
    if (id == kNone) {
      if (free_.empty()) {
        id = static_cast<std::uint32_t>(items_.size());
        items_.emplace_back();
      } else {
        id = free_.back();
        free_.pop_back();
      }
      items_[id].value = make(), items_[id].hash = hash, items_[id].serial = ++serials_;
      index_.insert(hash, id);
    }
    ++items_[id].users;
    return id;
  }
  void hold(std::uint32_t id) { ++items_[id].users; }
  // True: that was the last user, the number is free; the value still stands for the caller to take apart.
  bool release(std::uint32_t id) {
    if (--items_[id].users > 0) return false;
    index_.erase(items_[id].hash, [&](std::uint32_t i) { return i == id; });
    free_.push_back(id);
    return true;
  }
  const T& operator[](std::uint32_t id) const { return items_[id].value; }
  T& value(std::uint32_t id) { return items_[id].value; }  // what its hash and == do not look at may change
  std::uint64_t serial(std::uint32_t id) const { return items_[id].serial; }  // numbers are given again, these are not
  std::uint32_t limit() const { return static_cast<std::uint32_t>(items_.size()); }  // numbers are below
  bool live(std::uint32_t id) const { return items_[id].users > 0; }

 private:
  struct Item {
    T value;
    std::uint64_t hash = 0, serial = 0;
    std::uint32_t users = 0;
  };
  std::uint64_t serials_ = 0;
  std::vector<Item> items_;
  std::vector<std::uint32_t> free_;
  HashIndex index_;
};

struct Text {
  std::string text;
  std::uint64_t hash() const { return hash_text(text); }
  bool operator==(const Text&) const = default;
};
class Symbols {  // the empty text is 0 and needs no user
 public:
  Symbols() { texts_.acquire({}); }
  std::uint32_t acquire(std::string_view text) {
    if (text.empty()) return 0;
    return texts_.acquire(
        hash_text(text), [&](const Text& other) { return other.text == text; },
        [&] { return Text{std::string(text)}; });
  }
  void hold(std::uint32_t id) {
    if (id != 0) texts_.hold(id);
  }
  void release(std::uint32_t id) {
    if (id != 0) texts_.release(id);
  }
  const std::string& operator[](std::uint32_t id) const { return texts_[id].text; }

 private:
  Interner<Text> texts_;
};

}  // namespace muster::scheduler
