#include "scheduler/kernels.h"

#include <algorithm>

#if defined(__x86_64__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // g++ 12 inside its own intrinsics (GCC bug 105593)
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

namespace muster::scheduler {
namespace {

void fill_row_scalar(const RowInput& in, std::int32_t* out) {
  for (std::uint32_t i = 0; i < in.n; ++i) {
    const std::int32_t gpus = in.gpus[i] - in.need_gpus;
    if (in.cpu[i] < in.need_level || gpus < 0) {
      out[i] = kNever;
      continue;
    }
    const std::int32_t cpu = std::max(0, in.cpu[i] - in.need_cpu);
    const std::int32_t step = std::min(cpu >> kCpuShift, static_cast<std::int32_t>(kCpuSteps) - 1);
    out[i] = in.base[i] - in.table[gpus * static_cast<std::int32_t>(kCpuSteps) + step];
  }
}

void mask_row_scalar(const std::int32_t* row, const std::uint64_t* live, std::uint32_t n, std::int32_t* out,
                     std::int32_t* block_max) {
  for (std::uint32_t b = 0; b * kRowBlock < n; ++b) {
    std::int32_t best = kNever;
    for (std::uint32_t i = 0; i < kRowBlock; ++i) {
      const std::uint32_t at = b * kRowBlock + i;
      out[at] = (live[b] >> i & 1U) != 0 ? row[at] : kNever;
      best = std::max(best, out[at]);
    }
    block_max[b] = best;
  }
}

std::int32_t largest_scalar(const std::int32_t* values, std::uint32_t n, std::uint32_t& index) {
  std::int32_t best = kNever;
  index = 0;
  for (std::uint32_t i = 0; i < n; ++i)
    if (values[i] > best) best = values[i], index = i;
  return best;
}

constexpr Kernels kScalar{Simd::Scalar, fill_row_scalar, mask_row_scalar, largest_scalar};

#if defined(__x86_64__)
#define MUSTER_AVX2 __attribute__((target("avx2")))
#define MUSTER_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq")))

std::uint32_t first_equal(const std::int32_t* values, std::uint32_t n, std::int32_t wanted) {
  for (std::uint32_t i = 0; i < n; ++i)
    if (values[i] == wanted) return i;
  return 0;
}

MUSTER_AVX2 void fill_row_avx2(const RowInput& in, std::int32_t* out) {
  const __m256i need_cpu = _mm256_set1_epi32(in.need_cpu), need_gpus = _mm256_set1_epi32(in.need_gpus),
                level = _mm256_set1_epi32(in.need_level), last = _mm256_set1_epi32(static_cast<int>(kCpuSteps) - 1),
                never = _mm256_set1_epi32(kNever), zero = _mm256_setzero_si256();
  for (std::uint32_t i = 0; i < in.n; i += 8) {
    const auto load = [&](const std::int32_t* from)
                          MUSTER_AVX2 { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i)); };
    const __m256i free = load(in.cpu), gpus = _mm256_sub_epi32(load(in.gpus), need_gpus);
    const __m256i cpu = _mm256_max_epi32(_mm256_sub_epi32(free, need_cpu), zero);
    const __m256i fits = _mm256_xor_si256(_mm256_srai_epi32(_mm256_or_si256(_mm256_sub_epi32(free, level), gpus), 31),
                                          _mm256_set1_epi32(-1));
    const __m256i step = _mm256_min_epi32(_mm256_srai_epi32(cpu, kCpuShift), last);
    const __m256i at = _mm256_add_epi32(_mm256_mullo_epi32(gpus, _mm256_set1_epi32(kCpuSteps)), step);
    const __m256i after = _mm256_mask_i32gather_epi32(zero, in.table, at, fits, 4);
    const __m256i value = _mm256_sub_epi32(load(in.base), after);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), _mm256_blendv_epi8(never, value, fits));
  }
}

MUSTER_AVX2 void mask_row_avx2(const std::int32_t* row, const std::uint64_t* live, std::uint32_t n, std::int32_t* out,
                               std::int32_t* block_max) {
  const __m256i never = _mm256_set1_epi32(kNever), bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  for (std::uint32_t b = 0; b * kRowBlock < n; ++b) {
    __m256i best = never;
    for (std::uint32_t part = 0; part < 8; ++part) {
      const std::uint32_t at = b * kRowBlock + part * 8;
      const __m256i byte = _mm256_set1_epi32(static_cast<int>(live[b] >> (part * 8) & 0xff));
      const __m256i on = _mm256_cmpeq_epi32(_mm256_and_si256(byte, bits), bits);
      const __m256i value =
          _mm256_blendv_epi8(never, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + at)), on);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + at), value);
      best = _mm256_max_epi32(best, value);
    }
    alignas(32) std::int32_t lanes[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), best);
    block_max[b] = *std::max_element(lanes, lanes + 8);
  }
}

MUSTER_AVX2 std::int32_t largest_avx2(const std::int32_t* values, std::uint32_t n, std::uint32_t& index) {
  __m256i best = _mm256_set1_epi32(kNever);
  std::uint32_t i = 0;
  for (; i + 8 <= n; i += 8)
    best = _mm256_max_epi32(best, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values + i)));
  alignas(32) std::int32_t lanes[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), best);
  std::int32_t top = *std::max_element(lanes, lanes + 8);
  for (; i < n; ++i) top = std::max(top, values[i]);
  index = top == kNever ? 0 : first_equal(values, n, top);
  return top;
}

MUSTER_AVX512 void fill_row_avx512(const RowInput& in, std::int32_t* out) {
  const __m512i need_cpu = _mm512_set1_epi32(in.need_cpu), need_gpus = _mm512_set1_epi32(in.need_gpus),
                level = _mm512_set1_epi32(in.need_level), zero = _mm512_setzero_si512(),
                last = _mm512_set1_epi32(static_cast<int>(kCpuSteps) - 1), never = _mm512_set1_epi32(kNever);
  for (std::uint32_t i = 0; i < in.n; i += 16) {
    const __m512i free = _mm512_loadu_si512(in.cpu + i),
                  gpus = _mm512_sub_epi32(_mm512_loadu_si512(in.gpus + i), need_gpus);
    const __m512i cpu = _mm512_max_epi32(_mm512_sub_epi32(free, need_cpu), zero);
    const __mmask16 fits =
        static_cast<__mmask16>(~_mm512_movepi32_mask(_mm512_or_si512(_mm512_sub_epi32(free, level), gpus)));
    const __m512i step = _mm512_min_epi32(_mm512_srai_epi32(cpu, kCpuShift), last);
    const __m512i at = _mm512_add_epi32(_mm512_slli_epi32(gpus, 10), step);
    const __m512i after = _mm512_mask_i32gather_epi32(zero, fits, at, in.table, 4);
    _mm512_storeu_si512(out + i, _mm512_mask_sub_epi32(never, fits, _mm512_loadu_si512(in.base + i), after));
  }
}
static_assert(kCpuSteps == 1U << 10);

MUSTER_AVX512 void mask_row_avx512(const std::int32_t* row, const std::uint64_t* live, std::uint32_t n,
                                   std::int32_t* out, std::int32_t* block_max) {
  const __m512i never = _mm512_set1_epi32(kNever);
  for (std::uint32_t b = 0; b * kRowBlock < n; ++b) {
    __m512i best = never;
    for (std::uint32_t part = 0; part < 4; ++part) {
      const std::uint32_t at = b * kRowBlock + part * 16;
      const auto on = static_cast<__mmask16>(live[b] >> (part * 16));
      const __m512i value = _mm512_mask_loadu_epi32(never, on, row + at);
      _mm512_storeu_si512(out + at, value);
      best = _mm512_max_epi32(best, value);
    }
    block_max[b] = _mm512_reduce_max_epi32(best);
  }
}

MUSTER_AVX512 std::int32_t largest_avx512(const std::int32_t* values, std::uint32_t n, std::uint32_t& index) {
  const __m512i never = _mm512_set1_epi32(kNever);
  __m512i best = never;
  for (std::uint32_t i = 0; i < n; i += 16) {
    const auto on = static_cast<__mmask16>(n - i >= 16 ? 0xffffU : (1U << (n - i)) - 1);
    best = _mm512_max_epi32(best, _mm512_mask_loadu_epi32(never, on, values + i));
  }
  const std::int32_t top = _mm512_reduce_max_epi32(best);
  index = 0;
  if (top == kNever) return top;
  const __m512i wanted = _mm512_set1_epi32(top);
  for (std::uint32_t i = 0; i < n; i += 16) {
    const auto on = static_cast<__mmask16>(n - i >= 16 ? 0xffffU : (1U << (n - i)) - 1);
    const __mmask16 hit = _mm512_mask_cmpeq_epi32_mask(on, _mm512_mask_loadu_epi32(never, on, values + i), wanted);
    if (hit == 0) continue;
    index = i + static_cast<std::uint32_t>(__builtin_ctz(hit));
    break;
  }
  return top;
}

constexpr Kernels kAvx2{Simd::Avx2, fill_row_avx2, mask_row_avx2, largest_avx2};
constexpr Kernels kAvx512{Simd::Avx512, fill_row_avx512, mask_row_avx512, largest_avx512};

bool has_avx2() {
  return __builtin_cpu_supports("avx2") != 0;
}
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
         __builtin_cpu_supports("avx512vl") != 0 && __builtin_cpu_supports("avx512dq") != 0;
}
#endif

}  // namespace

const Kernels& kernels(Simd simd) {
#if defined(__x86_64__)
  if (simd == Simd::Avx512 && has_avx512()) return kAvx512;
  if (simd != Simd::Scalar && has_avx2()) return kAvx2;
#else
  (void)simd;
#endif
  return kScalar;
}

const Kernels& best_kernels() {
  return kernels(Simd::Avx512);
}

}  // namespace muster::scheduler
