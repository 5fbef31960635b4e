#pragma once
// The first of many that fits, in logarithmic time: a tournament over what each needs (the least of every branch) or
// over what each has (the most). Only bounds are compared: who needs more than bounds say looks at what was found and
// goes on from the next. Private.
#include <algorithm>
#include <bit>
#include <cstdint>
#include <vector>

#include "scheduler/hash_index.h"

namespace muster::scheduler {

struct Bound {
  std::uint32_t cpu = 0, memory = 0, gpus = 0;
  std::uint64_t kinds = 0;  // of needs, or those that it may serve
};

template <bool kNeeds>  // else: what they have
class Tournament {
 public:
  static constexpr Bound nobody() {
    if (kNeeds) return {~std::uint32_t{0}, ~std::uint32_t{0}, ~std::uint32_t{0}, 0};
    return {};
  }
  void assign(const std::vector<Bound>& leaves) {
    size_ = std::bit_ceil(std::max<std::size_t>(leaves.size(), 1));
    nodes_.assign(size_ * 2, nobody());
    std::copy(leaves.begin(), leaves.end(), nodes_.begin() + static_cast<std::ptrdiff_t>(size_));
    for (std::size_t i = size_ - 1; i > 0; --i) nodes_[i] = both(nodes_[2 * i], nodes_[2 * i + 1]);
  }
  void set(std::uint32_t leaf, const Bound& bound) {
    std::size_t i = leaf + size_;
    nodes_[i] = bound;
    for (i /= 2; i > 0; i /= 2) {
      const Bound now = both(nodes_[2 * i], nodes_[2 * i + 1]);
      if (now.cpu == nodes_[i].cpu && now.memory == nodes_[i].memory && now.gpus == nodes_[i].gpus &&
          now.kinds == nodes_[i].kinds)
        return;
      nodes_[i] = now;
    }
  }
  // The first from there on that may fit `other`: what a machine has, or what a request needs. kNone: there is none.
  std::uint32_t first(std::uint32_t from, const Bound& other) const {
    if (from >= size_) return kNone;
    for (std::size_t at = from + size_;;) {
      if (fits(nodes_[at], other)) {
        if (at >= size_) return static_cast<std::uint32_t>(at - size_);
        at *= 2;
        continue;
      }
      while ((at & 1) != 0) at /= 2;
      if (at == 0) return kNone;
      ++at;
    }
  }
  bool there(std::uint32_t leaf) const { return nodes_[leaf + size_].kinds != 0; }

 private:
  static bool fits(const Bound& node, const Bound& other) {
    const Bound &need = kNeeds ? node : other, &has = kNeeds ? other : node;
    return need.cpu <= has.cpu && need.memory <= has.memory && need.gpus <= has.gpus && (need.kinds & has.kinds) != 0;
  }
  static Bound both(const Bound& a, const Bound& b) {
    if (kNeeds)
      return {std::min(a.cpu, b.cpu), std::min(a.memory, b.memory), std::min(a.gpus, b.gpus), a.kinds | b.kinds};
    return {std::max(a.cpu, b.cpu), std::max(a.memory, b.memory), std::max(a.gpus, b.gpus), a.kinds | b.kinds};
  }
  std::size_t size_ = 0;
  std::vector<Bound> nodes_;
};

}  // namespace muster::scheduler
