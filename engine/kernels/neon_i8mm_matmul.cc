// Products for NEON with the 8-bit matrix multiplication of Armv8.6 (i8mm): smmla multiplies 2 rows x 8 columns by 8
// columns x 2 tokens, twice the products of an sdot. Many tokens use it, on codes unpacked as pairs of rows with 8
// columns each; few tokens are bound by memory and use sdot.
#include "engine/kernels/neon_dot_inl.h"

namespace embergate::engine {
namespace {

// Per unit: [eight columns j][pair of rows p]: row 2p, columns 8j..8j+7, then row 2p + 1.
template <Kind kKind>
void UnpackPairs(const uint8_t* low, const uint8_t* high, int units, uint8_t* out) {
  alignas(16) uint8_t chunks[kUnpackedUnitBytes];
  for (int u = 0; u < units; ++u) {
    UnpackUnit<kKind>(low, high, chunks);
    for (int j = 0; j < 4; ++j) {
      for (int quarter = 0; quarter < 4; ++quarter) {
        const uint32x4_t first = vreinterpretq_u32_u8(vld1q_u8(chunks + 2 * j * kChunkBytes + quarter * 16));
        const uint32x4_t second = vreinterpretq_u32_u8(vld1q_u8(chunks + (2 * j + 1) * kChunkBytes + quarter * 16));
        uint8_t* to = out + j * 2 * kChunkBytes + quarter * 32;
        vst1q_u8(to, vreinterpretq_u8_u32(vzip1q_u32(first, second)));
        vst1q_u8(to + 16, vreinterpretq_u8_u32(vzip2q_u32(first, second)));
      }
    }
    low += kChunkBytes * kKind.low_bits;
    high += kChunkBytes * kKind.high_bits;
    out += kUnpackedUnitBytes;
  }
}

// Sums over eight-column steps [kFrom, kFrom + kCount) of eight rows and two pairs of tokens.
template <Kind kKind, int kFrom, int kCount>
[[gnu::always_inline]] inline void PairSums(const uint8_t* w, const ActivationUnit* x, int64_t x_stride, int init,
                                            int32x4_t (*sum)[2]) {
  int32x4_t products[4][2];  // [pair of rows][pair of tokens]: row 0 token 0, row 0 token 1, row 1 token 0, ...
#pragma GCC unroll 2
  for (int p = 0; p < 2; ++p) {
    const int32_t a = kKind.bias ? x[2 * p * x_stride].init[init] : 0;
    const int32_t b = kKind.bias ? x[(2 * p + 1) * x_stride].init[init] : 0;
    const int32x2_t both = vset_lane_s32(b, vdup_n_s32(a), 1);
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      products[r][p] = vcombine_s32(both, both);
    }
  }
#pragma GCC unroll 4
  for (int j = kFrom; j < kFrom + kCount; ++j) {
    int8x16_t q[2];
#pragma GCC unroll 2
    for (int p = 0; p < 2; ++p) {
      q[p] = vcombine_s8(vld1_s8(x[2 * p * x_stride].q + 8 * j), vld1_s8(x[(2 * p + 1) * x_stride].q + 8 * j));
    }
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      const int8x16_t rows = vreinterpretq_s8_u8(vld1q_u8(w + j * 2 * kChunkBytes + r * 16));
      products[r][0] = vmmlaq_s32(products[r][0], rows, q[0]);
      products[r][1] = vmmlaq_s32(products[r][1], rows, q[1]);
    }
  }
#pragma GCC unroll 2
  for (int p = 0; p < 2; ++p) {
#pragma GCC unroll 2
    for (int r = 0; r < 2; ++r) {
      sum[2 * p][r] = vuzp1q_s32(products[2 * r][p], products[2 * r + 1][p]);
      sum[2 * p + 1][r] = vuzp2q_s32(products[2 * r][p], products[2 * r + 1][p]);
    }
  }
}

template <Kind kKind>
void FourTokens(const QuantTile& tile, const ActivationUnit* x, int64_t x_stride, float* out, int64_t out_stride) {
  constexpr int kScales = 32 / kKind.group * kPanelRows;
  for (int half = 0; half < 2; ++half) {
    float32x4_t acc[4][2];
#pragma GCC unroll 4
    for (int t = 0; t < 4; ++t) {
      const float* from = out + t * out_stride + half * 8;
      acc[t][0] = tile.first ? vdupq_n_f32(0) : vld1q_f32(from);
      acc[t][1] = tile.first ? vdupq_n_f32(0) : vld1q_f32(from + 4);
    }
    const uint8_t* w = tile.low + half * 64;
    const float* scale = tile.scale + half * 8;
    const float* min = kKind.min ? tile.min + half * 8 : nullptr;
    const ActivationUnit* unit = x;
    for (int u = 0; u < tile.units; ++u) {
      int32x4_t sum[4][2];
      if constexpr (kKind.group == 32) {
        PairSums<kKind, 0, 4>(w, unit, x_stride, 0, sum);
        ScaleSums<kKind, 4>(scale, min, unit, x_stride, 0, sum, acc);
      } else {
        PairSums<kKind, 0, 2>(w, unit, x_stride, 0, sum);
        ScaleSums<kKind, 4>(scale, min, unit, x_stride, 0, sum, acc);
        PairSums<kKind, 2, 2>(w, unit, x_stride, 1, sum);
        ScaleSums<kKind, 4>(scale + kPanelRows, kKind.min ? min + kPanelRows : nullptr, unit, x_stride, 1, sum, acc);
      }
      w += kUnpackedUnitBytes;
      scale += kScales;
      min += kKind.min ? kScales : 0;
      ++unit;
    }
#pragma GCC unroll 4
    for (int t = 0; t < 4; ++t) {
      float* to = out + t * out_stride + half * 8;
      vst1q_f32(to, acc[t][0]);
      vst1q_f32(to + 4, acc[t][1]);
    }
  }
}

// Fewer than four tokens (the rest of a batch) are filled up with copies of the last, whose results go nowhere.
template <Kind kKind>
void UnpackedPairs(const QuantTile& tile) {
  if (tile.tokens == 4) {
    return FourTokens<kKind>(tile, tile.x, tile.x_stride, tile.acc, tile.acc_stride);
  }
  ActivationUnit x[4 * kBlockUnits];
  float out[4 * kPanelRows];
  for (int t = 0; t < 4; ++t) {
    const int from = t < tile.tokens ? t : tile.tokens - 1;
    for (int u = 0; u < tile.units; ++u) {
      x[t * kBlockUnits + u] = tile.x[from * tile.x_stride + u];
    }
    for (int r = 0; r < kPanelRows; ++r) {
      out[t * kPanelRows + r] = tile.first ? 0.0f : tile.acc[from * tile.acc_stride + r];
    }
  }
  FourTokens<kKind>(tile, x, kBlockUnits, out, kPanelRows);
  for (int t = 0; t < tile.tokens; ++t) {
    for (int r = 0; r < kPanelRows; ++r) {
      tile.acc[t * tile.acc_stride + r] = out[t * kPanelRows + r];
    }
  }
}

template <Kind kKind>
constexpr QuantKernels MakeI8mm(int bias) {
  return {Packed<kKind>, UnpackPairs<kKind>, UnpackedPairs<AsBytes(kKind)>, bias};
}

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
      sum[k] = vmmlaq_s32(sum[k], w, x);
    }
  }
#pragma GCC unroll 12
  for (int k = 1; k < kSums; ++k) {
    sum[0] = vaddq_s32(sum[0], sum[k]);
  }
  *result = vaddvq_s32(sum[0]);
  return rounds * kSums * 64;
}

}  // namespace

const MatMulTable kNeonI8mmMatMul = EMBERGATE_NEON_TABLE(MakeI8mm);
const MachineTable kNeonI8mmMachine = {ReadBytes, IntegerLoop, "smmla"};

}  // namespace embergate::engine
