// The limits of machine_limits.h for AVX2.
#include <immintrin.h>

#include "engine/kernels/kernel_table.h"

namespace embergate::engine {
namespace {

uint64_t Read(const uint8_t* p, size_t bytes) {
  __m256i sum[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
  for (size_t i = 0; i + 128 <= bytes; i += 128) {
    for (int k = 0; k < 4; ++k) {
      sum[k] = _mm256_xor_si256(sum[k], _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + i + 32 * k)));
    }
  }
  const __m256i all = _mm256_xor_si256(_mm256_xor_si256(sum[0], sum[1]), _mm256_xor_si256(sum[2], sum[3]));
  return static_cast<uint64_t>(_mm256_extract_epi64(all, 0) ^ _mm256_extract_epi64(all, 2));
}

// Ten independent sums hide the latencies; the operand depends on the round so that nothing is hoisted.
int64_t IntegerLoop(int64_t rounds, int32_t* result) {
  constexpr int kSums = 10;
  __m256i sum[kSums];
#pragma GCC unroll 16
  for (int k = 0; k < kSums; ++k) {
    sum[k] = _mm256_setzero_si256();
  }
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i x = _mm256_set1_epi8(3);
  const __m256i w = _mm256_set1_epi8(static_cast<char>(*result & 1));
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 10
    for (int k = 0; k < kSums; ++k) {
      asm volatile("" : "+x"(x));  // "may have changed": each product is computed anew
      sum[k] = _mm256_add_epi32(sum[k], _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), ones));
    }
  }
#pragma GCC unroll 16
  for (int k = 1; k < kSums; ++k) {
    sum[0] = _mm256_add_epi32(sum[0], sum[k]);
  }
  *result = _mm256_extract_epi32(sum[0], 0);
  return rounds * kSums * 64;
}

}  // namespace

const MachineTable kAvx2Machine = {Read, IntegerLoop, "vpmaddubsw+vpmaddwd+vpaddd, 256 bits"};

}  // namespace embergate::engine
