#include "crypto/chacha_poly.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>

#include "base/check.h"

#if defined(__x86_64__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // g++ 12 inside its own intrinsics (GCC bug 105593)
#include <immintrin.h>
#pragma GCC diagnostic pop
#define MUSTER_AVX2 __attribute__((target("avx2,bmi2")))
#define MUSTER_AVX2_INLINE __attribute__((target("avx2,bmi2"), always_inline)) inline
#endif

namespace muster::crypto {

#if defined(__x86_64__)

namespace {

__extension__ typedef unsigned __int128 Wide;

constexpr std::size_t kBlock = 64, kBatch = 8 * kBlock;

std::uint64_t load64(const std::uint8_t* at) {
  std::uint64_t value = 0;
  std::memcpy(&value, at, sizeof value);
  return value;
}

struct Eight {
  std::uint8_t bytes[8];
};

// The authenticator: h = (h + block) * r mod 2^130 - 5 for every 16 bytes; h in 64 + 64 + a few bits.
struct Poly {
  std::uint64_t h0 = 0, h1 = 0, h2 = 0, r0, r1, s1, pad0, pad1;

  Poly() : r0(0), r1(0), s1(0), pad0(0), pad1(0) {}
  explicit Poly(const std::uint8_t* key)
      : r0(load64(key) & 0x0ffffffc0fffffffULL),
        r1(load64(key + 8) & 0x0ffffffc0ffffffcULL),
        s1(r1 + (r1 >> 2)),
        pad0(load64(key + 16)),
        pad1(load64(key + 24)) {}

  // By hand: g++ 12 makes twice as many instructions of the same in 128-bit integers.
  MUSTER_AVX2_INLINE void block(const std::uint8_t* at) {
    std::uint64_t d0, d1, d2, c, t;
    __asm__(
        "addq   %[m0], %[h0]\n\t"
        "adcq   %[m1], %[h1]\n\t"
        "adcq   $1, %[h2]\n\t"
        "movq   %[r0], %%rdx\n\t"
        "mulxq  %[h0], %[d0], %[c]\n\t"   // c:d0 = h0 r0
        "mulxq  %[h1], %[d1], %[d2]\n\t"  // d2:d1 = h1 r0
        "imulq  %[h2], %%rdx\n\t"
        "addq   %[c], %[d1]\n\t"
        "adcq   %%rdx, %[d2]\n\t"  // + h2 r0
        "movq   %[s1], %%rdx\n\t"
        "mulxq  %[h1], %[t], %[c]\n\t"  // h1 s1
        "imulq  %[h2], %%rdx\n\t"       // h2 s1
        "addq   %[t], %[d0]\n\t"
        "adcq   %[c], %[d1]\n\t"
        "adcq   $0, %[d2]\n\t"
        "addq   %%rdx, %[d1]\n\t"
        "adcq   $0, %[d2]\n\t"
        "movq   %[r1], %%rdx\n\t"
        "mulxq  %[h0], %[t], %[c]\n\t"  // h0 r1
        "addq   %[t], %[d1]\n\t"
        "adcq   %[c], %[d2]\n\t"
        "movq   %[d2], %[h2]\n\t"  // what is above 2^130 comes back five times
        "movq   %[d2], %[t]\n\t"
        "andq   $3, %[h2]\n\t"
        "andq   $-4, %[t]\n\t"
        "shrq   $2, %[d2]\n\t"
        "addq   %[t], %[d2]\n\t"
        "movq   %[d0], %[h0]\n\t"
        "movq   %[d1], %[h1]\n\t"
        "addq   %[d2], %[h0]\n\t"
        "adcq   $0, %[h1]\n\t"
        "adcq   $0, %[h2]\n\t"
        : [h0] "+&r"(h0), [h1] "+&r"(h1), [h2] "+&r"(h2), [d0] "=&r"(d0), [d1] "=&r"(d1), [d2] "=&r"(d2), [c] "=&r"(c),
          [t] "=&r"(t)
        : [m0] "m"(*reinterpret_cast<const Eight*>(at)), [m1] "m"(*reinterpret_cast<const Eight*>(at + 8)),
          [r0] "rm"(r0), [r1] "rm"(r1), [s1] "rm"(s1)
        : "rdx", "cc");
  }
  MUSTER_AVX2_INLINE void blocks(const std::uint8_t* at, std::size_t count) {
    for (; count > 0; --count, at += 16) block(at);
  }
  std::array<std::uint8_t, kAeadTag> tag() const {
    // h - p where that is not negative, chosen without a branch.
    const Wide g0 = static_cast<Wide>(h0) + 5;
    const Wide g1 = static_cast<Wide>(h1) + static_cast<std::uint64_t>(g0 >> 64);
    const std::uint64_t g2 = h2 + static_cast<std::uint64_t>(g1 >> 64);
    const std::uint64_t take = 0 - (g2 >> 2 & 1);
    const std::uint64_t t0 = (h0 & ~take) | (static_cast<std::uint64_t>(g0) & take);
    const std::uint64_t t1 = (h1 & ~take) | (static_cast<std::uint64_t>(g1) & take);
    const Wide low = static_cast<Wide>(t0) + pad0;
    const std::uint64_t out0 = static_cast<std::uint64_t>(low);
    const std::uint64_t out1 = t1 + pad1 + static_cast<std::uint64_t>(low >> 64);
    std::array<std::uint8_t, kAeadTag> out;
    std::memcpy(out.data(), &out0, 8);
    std::memcpy(out.data() + 8, &out1, 8);
    return out;
  }
};

// kNative: by the instruction of AVX-512 (VL), which is one instead of three and needs no other register.
template <bool kNative, int kBits>
MUSTER_AVX2_INLINE __m256i rotate(__m256i x) {
  if constexpr (kNative) {
    __asm__("vprold %1, %0, %0" : "+x"(x) : "i"(kBits));
    return x;
  } else if constexpr (kBits == 16) {
    const __m256i by = _mm256_set_epi8(13, 12, 15, 14, 9, 8, 11, 10, 5, 4, 7, 6, 1, 0, 3, 2, 13, 12, 15, 14, 9, 8, 11,
                                       10, 5, 4, 7, 6, 1, 0, 3, 2);
    return _mm256_shuffle_epi8(x, by);
  } else if constexpr (kBits == 8) {
    const __m256i by = _mm256_set_epi8(14, 13, 12, 15, 10, 9, 8, 11, 6, 5, 4, 7, 2, 1, 0, 3, 14, 13, 12, 15, 10, 9, 8,
                                       11, 6, 5, 4, 7, 2, 1, 0, 3);
    return _mm256_shuffle_epi8(x, by);
  } else {
    return _mm256_or_si256(_mm256_slli_epi32(x, kBits), _mm256_srli_epi32(x, 32 - kBits));
  }
}

template <bool kNative>
MUSTER_AVX2_INLINE void quarter(__m256i& a, __m256i& b, __m256i& c, __m256i& d) {
  a = _mm256_add_epi32(a, b), d = rotate<kNative, 16>(_mm256_xor_si256(d, a));
  c = _mm256_add_epi32(c, d), b = rotate<kNative, 12>(_mm256_xor_si256(b, c));
  a = _mm256_add_epi32(a, b), d = rotate<kNative, 8>(_mm256_xor_si256(d, a));
  c = _mm256_add_epi32(c, d), b = rotate<kNative, 7>(_mm256_xor_si256(b, c));
}

MUSTER_AVX2_INLINE void put_half(std::uint8_t* out, std::size_t block, __m256i a, __m256i b) {
  _mm256_store_si256(reinterpret_cast<__m256i*>(out + block * kBlock), _mm256_permute2x128_si256(a, b, 0x20));
  _mm256_store_si256(reinterpret_cast<__m256i*>(out + (block + 4) * kBlock), _mm256_permute2x128_si256(a, b, 0x31));
}

// Eight words of eight blocks: from a row a word to a row a block, at out + 64 * block.
MUSTER_AVX2_INLINE void store_rows(const __m256i* v, std::uint8_t* out) {
  const __m256i a0 = _mm256_unpacklo_epi32(v[0], v[1]), a1 = _mm256_unpackhi_epi32(v[0], v[1]);
  const __m256i a2 = _mm256_unpacklo_epi32(v[2], v[3]), a3 = _mm256_unpackhi_epi32(v[2], v[3]);
  const __m256i a4 = _mm256_unpacklo_epi32(v[4], v[5]), a5 = _mm256_unpackhi_epi32(v[4], v[5]);
  const __m256i a6 = _mm256_unpacklo_epi32(v[6], v[7]), a7 = _mm256_unpackhi_epi32(v[6], v[7]);
  put_half(out, 0, _mm256_unpacklo_epi64(a0, a2), _mm256_unpacklo_epi64(a4, a6));
  put_half(out, 1, _mm256_unpackhi_epi64(a0, a2), _mm256_unpackhi_epi64(a4, a6));
  put_half(out, 2, _mm256_unpacklo_epi64(a1, a3), _mm256_unpacklo_epi64(a5, a7));
  put_half(out, 3, _mm256_unpackhi_epi64(a1, a3), _mm256_unpackhi_epi64(a5, a7));
}

MUSTER_AVX2_INLINE __m256i all(std::uint32_t word) {
  return _mm256_set1_epi32(static_cast<int>(word));
}

// Key stream of blocks counter..counter+7, and `count` blocks of the authenticator beside it.
template <bool kNative>
MUSTER_AVX2 void batch(const std::uint32_t* words, std::uint32_t counter, std::uint8_t* stream, Poly& poly,
                       const std::uint8_t* mac, std::size_t count) {
  const __m256i numbers = _mm256_add_epi32(all(counter), _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0));
  __m256i v[16];
  for (int i = 0; i < 16; ++i) v[i] = i == 12 ? numbers : all(words[i]);
  Poly p = poly;  // in registers while the rounds run
  for (int round = 0; round < 10; ++round) {
    quarter<kNative>(v[0], v[4], v[8], v[12]), quarter<kNative>(v[1], v[5], v[9], v[13]);
    quarter<kNative>(v[2], v[6], v[10], v[14]), quarter<kNative>(v[3], v[7], v[11], v[15]);
    for (std::size_t n = std::min<std::size_t>(count, 2); n > 0; --n, --count, mac += 16) p.block(mac);
    quarter<kNative>(v[0], v[5], v[10], v[15]), quarter<kNative>(v[1], v[6], v[11], v[12]);
    quarter<kNative>(v[2], v[7], v[8], v[13]), quarter<kNative>(v[3], v[4], v[9], v[14]);
    for (std::size_t n = std::min<std::size_t>(count, 1); n > 0; --n, --count, mac += 16) p.block(mac);
  }
  p.blocks(mac, count);
  poly = p;
  for (int i = 0; i < 16; ++i) v[i] = _mm256_add_epi32(v[i], i == 12 ? numbers : all(words[i]));
  store_rows(v, stream);
  store_rows(v + 8, stream + 32);
}

MUSTER_AVX2 void mix(const std::uint8_t* in, const std::uint8_t* stream, std::uint8_t* out, std::size_t size) {
  std::size_t i = 0;
  for (; i + 32 <= size; i += 32) {
    const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in + i));
    const __m256i k = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(stream + i));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), _mm256_xor_si256(x, k));
  }
  for (; i < size; ++i) out[i] = in[i] ^ stream[i];
}

// What is left of a chunk, padded with zeros.
MUSTER_AVX2 void last_block(Poly& poly, const std::uint8_t* at, std::size_t size) {
  if (size == 0) return;
  std::array<std::uint8_t, 16> block{};
  std::memcpy(block.data(), at, size);
  poly.block(block.data());
}

// What is left to do for a packet whose last chunk was mixed: its authenticator, beside the first batch of the next.
struct Tail {
  Poly poly;
  const std::uint8_t* at = nullptr;  // ciphertext
  std::size_t size = 0;
  AeadPacket* packet = nullptr;
};

// The blocks of `tail` were taken but for the last piece.
template <bool kSealing>
MUSTER_AVX2 void conclude(Tail& tail) {
  AeadPacket* const packet = std::exchange(tail.packet, nullptr);
  if (packet == nullptr) return;
  const std::size_t size = packet->in.size() - (kSealing ? 0 : kAeadTag);
  last_block(tail.poly, tail.at + tail.size / 16 * 16, tail.size % 16);
  std::array<std::uint8_t, 16> lengths{};  // no additional data; the length of the ciphertext
  const std::uint64_t length = size;
  std::memcpy(lengths.data() + 8, &length, 8);
  tail.poly.block(lengths.data());
  const auto tag = tail.poly.tag();
  if constexpr (kSealing) {
    std::memcpy(packet->out + size, tag.data(), tag.size());
    packet->good = true;
  } else {
    std::uint8_t differs = 0;
    for (std::size_t i = 0; i < kAeadTag; ++i) differs |= static_cast<std::uint8_t>(tag[i] ^ packet->told[i]);
    if (differs != 0 && size > 0) std::memset(packet->out, 0, size);
    packet->good = differs == 0;
  }
}

template <bool kSealing, bool kNative>
MUSTER_AVX2 void run(std::span<AeadPacket> packets) {
  alignas(32) std::uint8_t streams[2][kBatch];
  Tail tail;
  for (AeadPacket& packet : packets) {
    packet.good = false;
    if (!kSealing && packet.in.size() < kAeadTag) continue;
    const ByteView in = packet.in.first(packet.in.size() - (kSealing ? 0 : kAeadTag));
    if constexpr (!kSealing) std::memcpy(packet.told.data(), packet.in.data() + in.size(), kAeadTag);
    std::uint32_t words[16] = {0x61707865, 0x3320646e, 0x79622d32, 0x6b206574};  // "expand 32-byte k"
    std::memcpy(words + 4, packet.key, 32);
    std::memcpy(words + 13, packet.nonce.data(), 12);
    batch<kNative>(words, 0, streams[0], tail.poly, tail.at, tail.size / 16);
    conclude<kSealing>(tail);
    Poly poly(streams[0]);
    const std::uint8_t* stream = streams[0] + kBlock;  // block 0 is the authenticator's key
    std::size_t at = 0, chunk = std::min(in.size(), kBatch - kBlock);
    for (std::uint32_t n = 1;; ++n) {
      const std::size_t next = std::min(in.size() - at - chunk, kBatch);
      if constexpr (kSealing) mix(in.data() + at, stream, packet.out + at, chunk);
      const std::uint8_t* cipher = (kSealing ? packet.out : in.data()) + at;
      if (next == 0) {
        // Where it is opened in place its ciphertext goes before its turn: it is taken now.
        const bool later = kSealing || packet.out != in.data();
        if (!later) poly.blocks(cipher, chunk / 16), last_block(poly, cipher + chunk / 16 * 16, chunk % 16);
        tail = {poly, later ? cipher : nullptr, later ? chunk : 0, &packet};
        if constexpr (!kSealing) mix(in.data() + at, stream, packet.out + at, chunk);
        break;
      }
      std::uint8_t* ahead = streams[n % 2];
      batch<kNative>(words, n * 8, ahead, poly, cipher, chunk / 16);
      if constexpr (!kSealing) mix(in.data() + at, stream, packet.out + at, chunk);
      at += chunk;
      chunk = next;
      stream = ahead;
    }
  }
  tail.poly.blocks(tail.at, tail.size / 16);
  conclude<kSealing>(tail);
}

std::atomic<bool> without_avx512{false};

bool native() {
  static const bool has = __builtin_cpu_supports("avx512vl") != 0;
  return has && !without_avx512.load(std::memory_order_relaxed);
}

}  // namespace

bool chacha_poly_fast() {
  static const bool fast = __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("bmi2") != 0;
  return fast;
}

void chacha_poly_without_avx512(bool without) {
  without_avx512 = without;
}

void chacha_poly_seal(std::span<AeadPacket> packets) {
  native() ? run<true, true>(packets) : run<true, false>(packets);
}

void chacha_poly_open(std::span<AeadPacket> packets) {
  native() ? run<false, true>(packets) : run<false, false>(packets);
}

#else

bool chacha_poly_fast() {
  return false;
}
void chacha_poly_without_avx512(bool) {}
void chacha_poly_seal(std::span<AeadPacket>) {
  MUSTER_CHECK(false);
}
void chacha_poly_open(std::span<AeadPacket>) {
  MUSTER_CHECK(false);
}

#endif

void chacha_poly_seal(AeadKeyView key, const AeadNonce& nonce, ByteView plain, std::uint8_t* out) {
  AeadPacket one{key.data(), nonce, plain, out};
  chacha_poly_seal({&one, 1});
}

bool chacha_poly_open(AeadKeyView key, const AeadNonce& nonce, ByteView sealed, std::uint8_t* out) {
  AeadPacket one{key.data(), nonce, sealed, out};
  chacha_poly_open({&one, 1});
  return one.good;
}

}  // namespace muster::crypto
