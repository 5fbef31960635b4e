#pragma once
// Many sorted sets of small values in common arenas: a set is a few words, an empty one owns nothing, copying all of
// them is a memcpy. Up to kBlock values lie in one block; more in blocks with a directory, so that inserting, erasing
// and counting stay cheap in sets of millions. Values are trivially copyable and ordered by <. Private.
#include <algorithm>
#include <cstdint>
#include <vector>

namespace muster::scheduler {

template <class T>
class Arena {  // runs of 2^log values; kept runs are reused by size
 public:
  std::uint32_t take(std::uint8_t log) {
    auto& free = free_[log];
    if (!free.empty()) {
      const std::uint32_t at = free.back();
      free.pop_back();
      return at;
    }
    const auto at = static_cast<std::uint32_t>(items_.size());
    items_.resize(items_.size() + (std::size_t{1} << log));
    return at;
  }
  void give(std::uint32_t at, std::uint8_t log) { free_[log].push_back(at); }
  T* at(std::uint32_t offset) { return items_.data() + offset; }
  const T* at(std::uint32_t offset) const { return items_.data() + offset; }
  std::size_t bytes() const { return items_.capacity() * sizeof(T); }

 private:
  std::vector<T> items_;
  std::vector<std::uint32_t> free_[32];
};

template <class T>
class SortedSets {
 public:
  struct Set {
    std::uint32_t at = 0, size = 0, blocks = 0; /* blocks: 0 = one block at `at`, else `at` is the directory */
    std::uint8_t log = 0;                       /* capacity of the block or the directory */
  };

  void insert(Set& set, const T& value) {
    if (set.blocks == 0) {
      if (set.size < kBlock) return insert_flat(set, value);
      split_flat(set);
    }
    std::uint32_t b = block_for(set, value);
    if (directory(set)[b].size == kBlock) {
      split(set, b);
      if (b + 1 < set.blocks && !(value < *values_.at(directory(set)[b + 1].at))) ++b;
    }
    Block& block = directory(set)[b];
    T* values = values_.at(block.at);
    T* to = std::upper_bound(values, values + block.size, value);
    std::move_backward(to, values + block.size, values + block.size + 1);
    *to = value;
    ++block.size, ++set.size;
  }
  bool erase(Set& set, const T& value) {
    if (set.size == 0) return false;
    if (set.blocks == 0) {
      if (!erase_from(values_.at(set.at), set.size, value)) return false;
      if (--set.size == 0) clear(set);
      return true;
    }
    const std::uint32_t b = block_for(set, value);
    Block& block = directory(set)[b];
    if (!erase_from(values_.at(block.at), block.size, value)) return false;
    --set.size;
    if (--block.size == 0) drop(set, b);
    return true;
  }
  void clear(Set& set) {
    if (set.blocks == 0) {
      if (set.log != 0) values_.give(set.at, set.log);
    } else {
      for (std::uint32_t b = 0; b < set.blocks; ++b) values_.give(directory(set)[b].at, kBlockLog);
      blocks_.give(set.at, set.log);
    }
    set = {};
  }
  // f(value) in order until it returns false.
  template <class F>
  void each(const Set& set, F f) const {
    if (set.blocks == 0) {
      each_in(values_.at(set.at), set.size, f);
      return;
    }
    for (std::uint32_t b = 0; b < set.blocks; ++b)
      if (const Block block = blocks_.at(set.at)[b]; !each_in(values_.at(block.at), block.size, f)) return;
  }
  const T* first(const Set& set) const {
    if (set.size == 0) return nullptr;
    return values_.at(set.blocks == 0 ? set.at : blocks_.at(set.at)->at);
  }
  // The first value that is not below `value`, nullptr: none.
  const T* not_below(const Set& set, const T& value) const {
    if (set.size == 0) return nullptr;
    std::uint32_t b = 0;
    Block block{set.at, set.size};
    if (set.blocks != 0) block = blocks_.at(set.at)[b = block_for(set, value)];
    const T* values = values_.at(block.at);
    const T* found = std::lower_bound(values, values + block.size, value);
    if (found != values + block.size) return found;
    return b + 1 < set.blocks ? values_.at(blocks_.at(set.at)[b + 1].at) : nullptr;
  }
  // How many values are below `value`.
  std::uint32_t rank(const Set& set, const T& value) const {
    std::uint32_t before = 0;
    Block block{set.at, set.size};
    if (set.blocks != 0) {
      const std::uint32_t b = block_for(set, value);
      for (std::uint32_t i = 0; i < b; ++i) before += blocks_.at(set.at)[i].size;
      block = blocks_.at(set.at)[b];
    }
    const T* values = values_.at(block.at);
    return before + static_cast<std::uint32_t>(std::lower_bound(values, values + block.size, value) - values);
  }
  std::size_t bytes() const { return values_.bytes() + blocks_.bytes(); }

 private:
  static constexpr std::uint8_t kBlockLog = 6;
  static constexpr std::uint32_t kBlock = 1U << kBlockLog;
  struct Block {
    std::uint32_t at = 0, size = 0;
  };
  Block* directory(const Set& set) { return blocks_.at(set.at); }
  template <class F>
  static bool each_in(const T* values, std::uint32_t size, F& f) {
    for (std::uint32_t i = 0; i < size; ++i)
      if (!f(values[i])) return false;
    return true;
  }
  static bool erase_from(T* values, std::uint32_t size, const T& value) {
    T* found = std::lower_bound(values, values + size, value);
    if (found == values + size || value < *found) return false;
    std::move(found + 1, values + size, found);
    return true;
  }
  void insert_flat(Set& set, const T& value) {
    const std::uint32_t capacity = set.log == 0 ? 0 : 1U << set.log;
    if (set.size == capacity) {
      const std::uint8_t log = set.log == 0 ? 1 : static_cast<std::uint8_t>(set.log + 1);
      const std::uint32_t at = values_.take(log);
      std::copy_n(values_.at(set.at), set.size, values_.at(at));
      if (set.log != 0) values_.give(set.at, set.log);
      set.at = at, set.log = log;
    }
    T* values = values_.at(set.at);
    T* to = std::upper_bound(values, values + set.size, value);
    std::move_backward(to, values + set.size, values + set.size + 1);
    *to = value;
    ++set.size;
  }
  void split_flat(Set& set) {
    constexpr std::uint8_t kFirstLog = 2;
    const std::uint32_t directory_at = blocks_.take(kFirstLog);
    blocks_.at(directory_at)[0] = {set.at, set.size};
    set.at = directory_at, set.blocks = 1, set.log = kFirstLog;
  }
  // The block that holds `value` or would: the last whose first value is not above it.
  std::uint32_t block_for(const Set& set, const T& value) const {
    const Block* blocks = blocks_.at(set.at);
    std::uint32_t low = 0, high = set.blocks;
    while (high - low > 1) {
      const std::uint32_t middle = (low + high) / 2;
      if (value < *values_.at(blocks[middle].at))
        high = middle;
      else
        low = middle;
    }
    return low;
  }
  void split(Set& set, std::uint32_t b) {
    if (set.blocks == 1U << set.log) {
      const std::uint32_t at = blocks_.take(static_cast<std::uint8_t>(set.log + 1));
      std::copy_n(blocks_.at(set.at), set.blocks, blocks_.at(at));
      blocks_.give(set.at, set.log);
      set.at = at, ++set.log;
    }
    const std::uint32_t fresh = values_.take(kBlockLog);
    Block* blocks = directory(set);
    std::move_backward(blocks + b + 1, blocks + set.blocks, blocks + set.blocks + 1);
    ++set.blocks;
    // Values mostly come in rising order: the last block is split near its end.
    const std::uint32_t keep = b + 2 == set.blocks ? kBlock - 4 : kBlock / 2;
    blocks[b + 1] = {fresh, kBlock - keep};
    blocks[b].size = keep;
    std::copy_n(values_.at(blocks[b].at) + keep, kBlock - keep, values_.at(fresh));
  }
  void drop(Set& set, std::uint32_t b) {
    Block* blocks = directory(set);
    values_.give(blocks[b].at, kBlockLog);
    std::move(blocks + b + 1, blocks + set.blocks, blocks + b);
    if (--set.blocks != 0) return;
    blocks_.give(set.at, set.log);
    set = {};
  }
  Arena<T> values_;
  Arena<Block> blocks_;
};

}  // namespace muster::scheduler
