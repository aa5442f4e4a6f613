#include "storage/crc32c_folding.h"

#if defined(__x86_64__)

#include <immintrin.h>

// Functions of this file alone are compiled for these instructions, and run only where HasFolding.
#define EMBERGATE_FOLDING __attribute__((target("avx2,pclmul,vpclmulqdq")))

namespace embergate::storage {
namespace {

// x^n modulo the polynomial, reflected: bit 31 is the coefficient of x^0.
constexpr uint32_t PowerOfX(size_t n) {
  uint32_t value = uint32_t{1} << 31;
  for (size_t i = 0; i < n; ++i) {
    value = (value >> 1) ^ ((value & 1) != 0 ? kCrc32cPolynomial : 0);
  }
  return value;
}

// A block of 16 bytes is a polynomial whose first bit is the highest power. To stand for a block `bytes` further on it
// is multiplied by x^d, d = 8 * bytes, modulo the polynomial: its halves by x^(d + 64) and x^d, as 64-bit operands. The
// product of two reflected operands lies one bit low, which is a factor x too many.
template <size_t kBytes>
EMBERGATE_FOLDING inline __m256i Distance() {
  constexpr int64_t kFirst = static_cast<int64_t>(uint64_t{PowerOfX(8 * kBytes + 63)} << 32);
  constexpr int64_t kSecond = static_cast<int64_t>(uint64_t{PowerOfX(8 * kBytes - 1)} << 32);
  return _mm256_set_epi64x(kSecond, kFirst, kSecond, kFirst);
}

// Both blocks of `x` moved by `distance` onto those of `onto`.
EMBERGATE_FOLDING inline __m256i Move(__m256i x, __m256i distance, __m256i onto) {
  const __m256i first = _mm256_clmulepi64_epi128(x, distance, 0x00);
  const __m256i second = _mm256_clmulepi64_epi128(x, distance, 0x11);
  return _mm256_xor_si256(_mm256_xor_si256(first, second), onto);
}

template <bool kCopy>
EMBERGATE_FOLDING inline __m256i Take(const uint8_t* from, uint8_t* to, size_t offset) {
  const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + offset));
  if constexpr (kCopy) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + offset), bytes);
  }
  return bytes;
}

// Asks for the lines that the round at `offset` would want kCrc32cPrefetchBytes later.
template <bool kCopy>
inline void Ask(const uint8_t* from, uint8_t* to, size_t bytes, size_t offset) {
  for (size_t ahead = offset + kCrc32cPrefetchBytes; ahead < offset + kCrc32cPrefetchBytes + kFoldBytesMin;
       ahead += 64) {
    if (ahead < bytes) {
      __builtin_prefetch(from + ahead);
      if constexpr (kCopy) {
        __builtin_prefetch(to + ahead, 1);
      }
    }
  }
}

// Eight sums, so that a multiplication need not wait for the one before.
template <bool kCopy>
EMBERGATE_FOLDING Folded FoldAll(uint32_t crc, const uint8_t* from, size_t bytes, uint8_t* to) {
  constexpr size_t kSums = 8;
  constexpr size_t kStep = 32 * kSums;
  static_assert(kStep == kFoldBytesMin, "what the first round takes");
  __m256i sums[kSums];
  Ask<kCopy>(from, to, bytes, 0);
  for (size_t i = 0; i < kSums; ++i) {
    sums[i] = Take<kCopy>(from, to, 32 * i);
  }
  sums[0] = _mm256_xor_si256(sums[0], _mm256_set_epi32(0, 0, 0, 0, 0, 0, 0, static_cast<int>(crc)));
  size_t done = kStep;
  const __m256i far = Distance<kStep>();
  for (; bytes - done >= kStep; done += kStep) {
    Ask<kCopy>(from, to, bytes, done);
    for (size_t i = 0; i < kSums; ++i) {
      sums[i] = Move(sums[i], far, Take<kCopy>(from, to, done + 32 * i));
    }
  }
  const __m256i near = Distance<32>();
  __m256i sum = sums[0];
  for (size_t i = 1; i < kSums; ++i) {
    sum = Move(sum, near, sums[i]);
  }
  for (; bytes - done >= 32; done += 32) {
    sum = Move(sum, near, Take<kCopy>(from, to, done));
  }
  // The first block onto the second.
  const __m256i second = _mm256_permute2x128_si256(sum, sum, 0x81);
  const __m256i last = Move(sum, Distance<16>(), second);
  Folded folded;
  folded.first = static_cast<uint64_t>(_mm256_extract_epi64(last, 0));
  folded.second = static_cast<uint64_t>(_mm256_extract_epi64(last, 1));
  folded.bytes = done;
  return folded;
}

}  // namespace

bool HasFolding() {
  return __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("pclmul") != 0 &&
         __builtin_cpu_supports("vpclmulqdq") != 0;
}

Folded Fold(uint32_t crc, const uint8_t* from, size_t bytes, uint8_t* to) {
  return to != nullptr ? FoldAll<true>(crc, from, bytes, to) : FoldAll<false>(crc, from, bytes, nullptr);
}

}  // namespace embergate::storage

#endif  // __x86_64__
