// Products for NEON with the dot product instructions (Cortex-A76, as on a Raspberry Pi 5, and later).
#include "engine/kernels/neon_dot_inl.h"

namespace embergate::engine {
namespace {

int64_t IntegerLoop(int64_t rounds, int32_t* result) {
  constexpr int kSums = 12;
  int32x4_t sum[kSums];
#pragma GCC unroll 12
  for (int k = 0; k < kSums; ++k) {
    sum[k] = vdupq_n_s32(0);
  }
  int8x16_t x = vdupq_n_s8(3);
  const int8x16_t w = vdupq_n_s8(static_cast<int8_t>(*result & 1));
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
    for (int k = 0; k < kSums; ++k) {
      asm volatile("" : "+w"(x));  // "may have changed": each product is computed anew
      sum[k] = vdotq_s32(sum[k], w, x);
    }
  }
#pragma GCC unroll 12
  for (int k = 1; k < kSums; ++k) {
    sum[0] = vaddq_s32(sum[0], sum[k]);
  }
  *result = vaddvq_s32(sum[0]);
  return rounds * kSums * 32;
}

}  // namespace

const MatMulTable kNeonDotMatMul = EMBERGATE_NEON_TABLE(MakeKernels);
const MachineTable kNeonDotMachine = {ReadBytes, IntegerLoop, "sdot"};

}  // namespace embergate::engine
