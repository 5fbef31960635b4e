#pragma once
// The conditions that machines are in, as far as scores go: GPU model, free whole GPUs, free shares, free CPU to within
// a sixty-fourth. Machines in one condition score alike, so a decision scores conditions, not machines: a hundred
// thousand machines are in a few thousand of them. Conditions are kept while they may come back; what is known of them
// depends on nothing but themselves and the learned workload. Private.
#include <array>
#include <cstdint>
#include <vector>

#include "scheduler/hash_index.h"
#include "scheduler/packing.h"

namespace muster::scheduler {

inline constexpr std::uint32_t kNoGpu = 0;  // the model number of machines without GPUs

struct Condition {
  std::uint32_t model = kNoGpu;
  std::int32_t gpus = 0, cpu = 0; /* whole GPUs free, at most kDevicesScored; milli-CPU, rounded down by level_of */
  Shares shares;
  bool whole = false; /* nothing runs on it */
  bool operator==(const Condition&) const = default;
  std::uint64_t hash() const;
};
std::int32_t level_of(std::int64_t cpu_milli);  // down to within 1/64

// What a request takes from a machine, as far as scores go.
struct Load {
  std::int32_t cpu = 0, gpus = 0, share = 0; /* share: of one GPU, 0 = none */
  bool whole_machine = false;
};

class States {
 public:
  // The number of a condition among those of its model; a new one is valued at once.
  std::uint32_t acquire(const Condition& condition, const Packing& packing);
  std::uint32_t size(std::uint32_t model) const { return static_cast<std::uint32_t>(books_[model].items.size()); }
  const Condition& at(std::uint32_t model, std::uint32_t state) const { return books_[model].items[state]; }
  std::uint32_t models_used() const { return used_; }
  bool use(std::uint32_t model);           // true: the model is new, its tables are missing
  void value_all(const Packing& packing);  // the workload was learned anew

  // Points gained by placing the load on a machine in that condition; kNever: it does not fit.
  std::int32_t score(std::uint32_t model, std::uint32_t state, const Load& load, const Packing& packing) const;
  // Of a share on a device with `free` milli-GPU left, in whatever condition.
  static std::int32_t score_share(const Condition& now, std::int32_t free, const Load& load, const Packing& packing);
  // The same for all conditions of a model whose bit in `live` is set; out and block_max hold whole blocks.
  void scores(std::uint32_t model, const Load& load, const Packing& packing, const std::vector<std::uint64_t>& live,
              const Kernels& kernels, std::vector<std::int32_t>& out, std::vector<std::int32_t>& block_max) const;

 private:
  struct Book {
    std::vector<Condition> items;
    std::vector<std::int32_t> cpu, gpus, with_gpu, without; /* columns, padded: cpu -1 never fits */
    std::vector<std::uint32_t> odd;                         // those that the table does not cover: with shares
    HashIndex index;
  };
  void value(Book& book, std::uint32_t state, const Packing& packing);
  std::array<Book, kModels> books_;
  std::uint32_t used_ = 0;
};

}  // namespace muster::scheduler
