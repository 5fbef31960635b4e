#pragma once
// The inner loops over scoring states, in three forms that give bit-identical results: plain C++, AVX2, AVX-512. Which
// one runs is the caller's choice (best_kernels() = the fastest this processor has). Pure. Private.
#include <cstdint>
#include <limits>

namespace muster::scheduler {

inline constexpr std::int32_t kNever = std::numeric_limits<std::int32_t>::min();  // cannot be placed there
inline constexpr std::uint32_t kCpuShift = 8, kCpuSteps = 1024;  // tables go by 256 milli-CPU, up to 262 CPUs
inline constexpr std::uint32_t kRowBlock = 64;                   // rows are padded to whole blocks

enum class Simd : std::uint8_t { Scalar = 0, Avx2 = 1, Avx512 = 2 };

struct RowInput {  // of n states, padded to kRowBlock
  const std::int32_t* base = nullptr;
  const std::int32_t* cpu = nullptr;   // milli, quantised
  const std::int32_t* gpus = nullptr;  // wholly free ones
  const std::int32_t* table = nullptr; /* value of what stays, [gpus][CPU steps] */
  std::uint32_t n = 0;
  std::int32_t need_cpu = 0, need_level = 0, need_gpus = 0; /* level: the least quantised CPU that may be enough */
};

struct Kernels {
  Simd simd = Simd::Scalar;
  // out[i] = base[i] - table[gpus[i] - need_gpus][steps of max(0, cpu[i] - need_cpu)], or kNever.
  void (*fill_row)(const RowInput& in, std::int32_t* out) = nullptr;
  // out[i] = row[i] where bit i of live is set, else kNever; block_max[b] = the largest of block b.
  void (*mask_row)(const std::int32_t* row, const std::uint64_t* live, std::uint32_t n, std::int32_t* out,
                   std::int32_t* block_max) = nullptr;
  // The largest of n values (kNever when n = 0) and the first index that holds it.
  std::int32_t (*largest)(const std::int32_t* values, std::uint32_t n, std::uint32_t& index) = nullptr;
};

const Kernels& kernels(Simd simd);  // what this processor cannot do falls back to the next lower
const Kernels& best_kernels();

}  // namespace muster::scheduler
