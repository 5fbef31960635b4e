#pragma once
// An index from hashes to item numbers: the caller keeps the items and says whether item i is the one that is looked
// for. Open addressing with backward shifting; never iterated, so nothing depends on the order inside. Copying is a
// memcpy. Private.
#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

namespace muster::scheduler {

inline constexpr std::uint32_t kNone = ~std::uint32_t{0};

constexpr std::uint64_t mix(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}
constexpr std::uint64_t hash_with(std::uint64_t seed, std::uint64_t x) {
  return mix(seed * 0x9e3779b97f4a7c15ULL + x + 1);
}
inline std::uint64_t hash_text(std::string_view text) {
  std::uint64_t h = text.size();
  std::size_t i = 0;
  for (; i + 8 <= text.size(); i += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, text.data() + i, 8);
    h = (h ^ word) * 0x9fb21c651e98df25ULL;
    h ^= h >> 32;
  }
  std::uint64_t rest = 0;
  std::memcpy(&rest, text.data() + i, text.size() - i);
  return mix(h ^ rest);
}

class HashIndex {
 public:
  template <class Same>  // Same(item) -> bool
  std::uint32_t find(std::uint64_t hash, Same same) const {
    const std::size_t at = slot_of(hash, same);
    return at == kMissing ? kNone : slots_[at].item;
  }
  void insert(std::uint64_t hash, std::uint32_t item) {
    if ((size_ + 1) * 4 > slots_.size() * 3) grow();
    put({tag_of(hash), item});
    ++size_;
  }
  template <class Same>
  bool erase(std::uint64_t hash, Same same) {
    std::size_t hole = slot_of(hash, same);
    if (hole == kMissing) return false;
    const std::size_t mask = slots_.size() - 1;
    for (std::size_t at = (hole + 1) & mask; slots_[at].item != kNone; at = (at + 1) & mask) {
      const std::size_t home = slots_[at].tag & mask;
      if (((at - home) & mask) < ((at - hole) & mask)) continue;  // its home lies behind the hole
      slots_[hole] = slots_[at];
      hole = at;
    }
    slots_[hole].item = kNone;
    --size_;
    return true;
  }
  void clear() {
    slots_.clear();
    size_ = 0;
  }
  void reserve(std::size_t n) {
    while (slots_.size() * 3 < n * 4) grow();
  }
  std::size_t size() const { return size_; }

 private:
  struct Slot {
    std::uint32_t tag = 0, item = kNone;
  };
  static constexpr std::size_t kMissing = ~std::size_t{0};
  static std::uint32_t tag_of(std::uint64_t hash) { return static_cast<std::uint32_t>(hash ^ (hash >> 32)); }
  template <class Same>
  std::size_t slot_of(std::uint64_t hash, Same same) const {
    if (size_ == 0) return kMissing;
    const std::uint32_t tag = tag_of(hash);
    const std::size_t mask = slots_.size() - 1;
    for (std::size_t at = tag & mask; slots_[at].item != kNone; at = (at + 1) & mask)
      if (slots_[at].tag == tag && same(slots_[at].item)) return at;
    return kMissing;
  }
  void put(Slot slot) {
    const std::size_t mask = slots_.size() - 1;
    std::size_t at = slot.tag & mask;
    while (slots_[at].item != kNone) at = (at + 1) & mask;
    slots_[at] = slot;
  }
  void grow() {
    std::vector<Slot> old(slots_.empty() ? 16 : slots_.size() * 2);
    old.swap(slots_);
    for (const Slot& slot : old)
      if (slot.item != kNone) put(slot);
  }
  std::vector<Slot> slots_;  // a power of two
  std::size_t size_ = 0;
};

}  // namespace muster::scheduler
