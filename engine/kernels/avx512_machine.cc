// The limits of machine_limits.h for AVX-512 with VNNI.
#include <immintrin.h>

#include "engine/kernels/kernel_table.h"

namespace embergate::engine {
namespace {

uint64_t Read(const uint8_t* p, size_t bytes) { return kAvx2Machine.read(p, bytes); }

int64_t IntegerLoop(int64_t rounds, int32_t* result) {
  constexpr int kSums = 16;
  __m512i sum[kSums];
#pragma GCC unroll 16
  for (int k = 0; k < kSums; ++k) {
    sum[k] = _mm512_setzero_si512();
  }
  __m512i x = _mm512_set1_epi8(3);
  const __m512i w = _mm512_set1_epi8(static_cast<char>(*result & 1));
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 16
    for (int k = 0; k < kSums; ++k) {
      asm volatile("" : "+v"(x));  // "may have changed": each product is computed anew
      sum[k] = _mm512_dpbusd_epi32(sum[k], w, x);
    }
  }
#pragma GCC unroll 16
  for (int k = 1; k < kSums; ++k) {
    sum[0] = _mm512_add_epi32(sum[0], sum[k]);
  }
  *result = _mm_cvtsi128_si32(_mm512_castsi512_si128(sum[0]));
  return rounds * kSums * 128;
}

}  // namespace

const MachineTable kAvx512Machine = {Read, IntegerLoop, "vpdpbusd, 512 bits"};

}  // namespace embergate::engine
