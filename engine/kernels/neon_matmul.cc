// Products for NEON without the dot product instructions (Cortex-A72, as on a Raspberry Pi 4).
//
// A register of codes is 4 rows x 4 columns; smlal adds each product to a 16-bit lane. A lane collects one product a
// chunk: codes of up to 5 bits fit over all eight chunks (8 * 31 * 127 = 31496), of 6 bits over the four of their
// group, signed bytes over two (2 * 128 * 127 = 32512), after which the lanes are widened.
#include "engine/kernels/neon_matmul_inl.h"

namespace embergate::engine {
namespace {

// One chunk onto the 16-bit lanes of one token: lanes [rows 0, 1], [2, 3], [4, 5], [6, 7].
template <bool kFirst>
inline void AddProducts(int8x16_t w0, int8x16_t w1, int8x8_t q, int16x8_t* lanes) {
  if constexpr (kFirst) {
    lanes[0] = vmull_s8(vget_low_s8(w0), q);
    lanes[1] = vmull_s8(vget_high_s8(w0), q);
    lanes[2] = vmull_s8(vget_low_s8(w1), q);
    lanes[3] = vmull_s8(vget_high_s8(w1), q);
  } else {
    lanes[0] = vmlal_s8(lanes[0], vget_low_s8(w0), q);
    lanes[1] = vmlal_s8(lanes[1], vget_high_s8(w0), q);
    lanes[2] = vmlal_s8(lanes[2], vget_low_s8(w1), q);
    lanes[3] = vmlal_s8(lanes[3], vget_high_s8(w1), q);
  }
}

template <Kind kKind, int kTokens, bool kFirst, int c>
inline void MultiplyChunk(const uint8_t* low, const uint8_t* high, const ActivationUnit* x, int64_t x_stride,
                          int16x8_t (*lanes)[4]) {
  const int8x16_t w0 = Chunk<kKind, c>(low, high);
  const int8x16_t w1 = Chunk<kKind, c>(low + 16, high + 16);
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) {
    int32_t word;
    __builtin_memcpy(&word, x[t * x_stride].q + 4 * c, 4);
    AddProducts<kFirst>(w0, w1, vreinterpret_s8_s32(vdup_n_s32(word)), lanes[t]);
  }
}

template <int kTokens>
inline void Widen(const int16x8_t (*lanes)[4], int32x4_t (*sum)[2]) {
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 2
    for (int r = 0; r < 2; ++r) {
      const int32x4_t rows01 = vpaddlq_s16(lanes[t][2 * r]);
      const int32x4_t rows23 = vpaddlq_s16(lanes[t][2 * r + 1]);
      sum[t][r] = vaddq_s32(sum[t][r], vpaddq_s32(rows01, rows23));
    }
  }
}

template <Kind kKind, int kTokens, int kFrom, int kCount>
[[gnu::always_inline]] inline void Sums(const uint8_t* low, const uint8_t* high, const ActivationUnit* x,
                                        int64_t x_stride, int init, int32x4_t (*sum)[2]) {
  Start<kKind, kTokens>(x, x_stride, init, sum);
  int16x8_t lanes[kTokens][4];
  constexpr bool kSigned = kKind.is_signed;
  MultiplyChunk<kKind, kTokens, true, kFrom + 0>(low, high, x, x_stride, lanes);
  MultiplyChunk<kKind, kTokens, false, kFrom + 1>(low, high, x, x_stride, lanes);
  if constexpr (kSigned) {
    Widen<kTokens>(lanes, sum);
  }
  MultiplyChunk<kKind, kTokens, kSigned, kFrom + 2>(low, high, x, x_stride, lanes);
  MultiplyChunk<kKind, kTokens, false, kFrom + 3>(low, high, x, x_stride, lanes);
  if constexpr (kCount == 8) {
    if constexpr (kSigned) {
      Widen<kTokens>(lanes, sum);
    }
    MultiplyChunk<kKind, kTokens, kSigned, 4>(low, high, x, x_stride, lanes);
    MultiplyChunk<kKind, kTokens, false, 5>(low, high, x, x_stride, lanes);
    if constexpr (kSigned) {
      Widen<kTokens>(lanes, sum);
    }
    MultiplyChunk<kKind, kTokens, kSigned, 6>(low, high, x, x_stride, lanes);
    MultiplyChunk<kKind, kTokens, false, 7>(low, high, x, x_stride, lanes);
  }
  Widen<kTokens>(lanes, sum);
}

int64_t IntegerLoop(int64_t rounds, int32_t* result) {
  constexpr int kSums = 12;
  int16x8_t sum[kSums];
#pragma GCC unroll 12
  for (int k = 0; k < kSums; ++k) {
    sum[k] = vdupq_n_s16(0);
  }
  int8x8_t x = vdup_n_s8(3);
  const int8x8_t w = vdup_n_s8(static_cast<int8_t>(*result & 1));
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
    for (int k = 0; k < kSums; ++k) {
      asm volatile("" : "+w"(x));  // "may have changed": each product is computed anew
      sum[k] = vmlal_s8(sum[k], w, x);
    }
  }
#pragma GCC unroll 12
  for (int k = 1; k < kSums; ++k) {
    sum[0] = vaddq_s16(sum[0], sum[k]);
  }
  *result = vaddvq_s16(sum[0]);
  return rounds * kSums * 16;
}

}  // namespace

const MatMulTable kNeonMatMul = EMBERGATE_NEON_TABLE(MakeKernels);
const MachineTable kNeonMachine = {ReadBytes, IntegerLoop, "smlal"};

}  // namespace embergate::engine
