// Sums of neon_matmul_inl.h with the dot product instructions of Armv8.2 (asimddp): four products added to each row's
// 32-bit sum. Eight sums are in flight with four tokens, enough to hide sdot's latency of 4 at two a cycle.
#ifndef EMBERGATE_ENGINE_KERNELS_NEON_DOT_INL_H_
#define EMBERGATE_ENGINE_KERNELS_NEON_DOT_INL_H_

#include "engine/kernels/neon_matmul_inl.h"

namespace embergate::engine {
namespace {

template <Kind kKind, int kTokens, int c>
inline void DotChunk(const uint8_t* low, const uint8_t* high, const int8x16_t* q, int32x4_t (*sum)[2]) {
  const int8x16_t w0 = Chunk<kKind, c>(low, high);
  const int8x16_t w1 = Chunk<kKind, c>(low + 16, high + 16);
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) {
    sum[t][0] = vdotq_laneq_s32(sum[t][0], w0, q[t], c % 4);
    sum[t][1] = vdotq_laneq_s32(sum[t][1], w1, q[t], c % 4);
  }
}

template <Kind kKind, int kTokens, int kFrom, int kCount>
[[gnu::always_inline]] inline void Sums(const uint8_t* low, const uint8_t* high, const ActivationUnit* x,
                                        int64_t x_stride, int init, int32x4_t (*sum)[2]) {
  Start<kKind, kTokens>(x, x_stride, init, sum);
  int8x16_t q[kTokens];
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) {
    q[t] = vld1q_s8(x[t * x_stride].q + 4 * kFrom);
  }
  DotChunk<kKind, kTokens, kFrom + 0>(low, high, q, sum);
  DotChunk<kKind, kTokens, kFrom + 1>(low, high, q, sum);
  DotChunk<kKind, kTokens, kFrom + 2>(low, high, q, sum);
  DotChunk<kKind, kTokens, kFrom + 3>(low, high, q, sum);
  if constexpr (kCount == 8) {
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
      q[t] = vld1q_s8(x[t * x_stride].q + 16);
    }
    DotChunk<kKind, kTokens, 4>(low, high, q, sum);
    DotChunk<kKind, kTokens, 5>(low, high, q, sum);
    DotChunk<kKind, kTokens, 6>(low, high, q, sum);
    DotChunk<kKind, kTokens, 7>(low, high, q, sum);
  }
}

}  // namespace
}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_KERNELS_NEON_DOT_INL_H_
