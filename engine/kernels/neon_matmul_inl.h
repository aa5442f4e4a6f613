// Products for NEON, included by the file of each variant after it defined, in an anonymous namespace of
// embergate::engine:
//   template <Kind kKind, int kTokens, int kFrom, int kCount> void Sums(...)  as declared below
// Eight rows (half a panel: two registers a chunk) times up to four tokens at a time; all three variants give the same
// integers, so the same results.
//
// Arithmetic of a unit for 8 rows and one token: 16 sdot (A76: two a cycle, so 8 cycles) + 2 conversions, 2
// multiplications, 2 fused multiply-adds + 4 loads shared by the tokens; plain NEON: 32 smlal instead of the sdot.
#ifndef EMBERGATE_ENGINE_KERNELS_NEON_MATMUL_INL_H_
#define EMBERGATE_ENGINE_KERNELS_NEON_MATMUL_INL_H_

#include <arm_neon.h>

#include "engine/kernels/kernel_table.h"

namespace embergate::engine {
namespace {

constexpr int kTokensMax = 4;

struct Kind {
  int low_bits;
  int high_bits;
  bool code_book;
  bool is_signed;  // levels take all of a signed byte
  int group;
  bool bias;
  bool min;
};

template <int kBits>
inline uint8x16_t ShiftRight(uint8x16_t v) {
  if constexpr (kBits > 0) {
    return vshrq_n_u8(v, kBits);
  } else if constexpr (kBits < 0) {
    return vshlq_n_u8(v, -kBits);
  } else {
    return v;
  }
}

// Four rows (16 bytes at low, high) of chunk c as signed bytes.
template <Kind kKind, int c>
inline int8x16_t Chunk(const uint8_t* low, const uint8_t* high) {
  if constexpr (kKind.low_bits == 8) {
    return vreinterpretq_s8_u8(vld1q_u8(low + c * kChunkBytes));
  } else {
    constexpr int kLow = kKind.low_bits;
    constexpr int kLowShift = kLow * (c / kLow);
    uint8x16_t code = ShiftRight<kLowShift>(vld1q_u8(low + c % kLow * kChunkBytes));
    if constexpr (kLowShift + kLow < 8) {
      code = vandq_u8(code, vdupq_n_u8((1 << kLow) - 1));
    }
    if constexpr (kKind.high_bits > 0) {
      constexpr int kHigh = kKind.high_bits;
      const uint8x16_t bits = ShiftRight<kHigh*(c / kHigh) - kLow>(vld1q_u8(high + c % kHigh * kChunkBytes));
      code = vorrq_u8(code, vandq_u8(bits, vdupq_n_u8(((1 << kHigh) - 1) << kLow)));
    }
    if constexpr (kKind.code_book) {
      return vqtbl1q_s8(vld1q_s8(kIq4Levels), code);
    }
    return vreinterpretq_s8_u8(code);
  }
}

// sum[t][r] = init + sums over chunks [kFrom, kFrom + kCount) of rows 4r..4r+3 (of the eight at low, high).
template <Kind kKind, int kTokens, int kFrom, int kCount>
[[gnu::always_inline]] inline void Sums(const uint8_t* low, const uint8_t* high, const ActivationUnit* x,
                                        int64_t x_stride, int init, int32x4_t (*sum)[2]);

// init of every token, for both registers.
template <Kind kKind, int kTokens>
[[gnu::always_inline]] inline void Start(const ActivationUnit* x, int64_t x_stride, int init, int32x4_t (*sum)[2]) {
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) {
    sum[t][0] = vdupq_n_s32(kKind.bias ? x[t * x_stride].init[init] : 0);
    sum[t][1] = sum[t][0];
  }
}

template <Kind kKind, int kTokens>
[[gnu::always_inline]] inline void ScaleSums(const float* scale, const float* min, const ActivationUnit* x,
                                             int64_t x_stride, int half, const int32x4_t (*sum)[2],
                                             float32x4_t (*acc)[2]) {
#pragma GCC unroll 2
  for (int r = 0; r < 2; ++r) {
    const float32x4_t s = vld1q_f32(scale + 4 * r);
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
      const ActivationUnit& unit = x[t * x_stride];
      acc[t][r] = vfmaq_n_f32(acc[t][r], vmulq_f32(vcvtq_f32_s32(sum[t][r]), s), unit.scale);
      if constexpr (kKind.min) {
        acc[t][r] = vfmaq_n_f32(acc[t][r], vld1q_f32(min + 4 * r), kKind.group == 32 ? unit.sum : unit.half_sum[half]);
      }
    }
  }
}

// Units of eight rows: half 0 or 1 of the panel.
template <Kind kKind, int kTokens>
inline void HalfTile(const QuantTile& tile, int half, int unit_begin, int unit_end) {
  constexpr int kScales = 32 / kKind.group * kPanelRows;
  float32x4_t acc[kTokens][2];
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) {
    const float* from = tile.acc + t * tile.acc_stride + half * 8;
    const bool zero = tile.first && unit_begin == 0;
    acc[t][0] = zero ? vdupq_n_f32(0) : vld1q_f32(from);
    acc[t][1] = zero ? vdupq_n_f32(0) : vld1q_f32(from + 4);
  }
  const uint8_t* low = tile.low + unit_begin * kChunkBytes * kKind.low_bits + half * 32;
  const uint8_t* high = tile.high + unit_begin * kChunkBytes * kKind.high_bits + half * 32;
  const float* scale = tile.scale + unit_begin * kScales + half * 8;
  const float* min = kKind.min ? tile.min + unit_begin * kScales + half * 8 : nullptr;
  const ActivationUnit* x = tile.x + unit_begin;
  for (int u = unit_begin; u < unit_end; ++u) {
    int32x4_t sum[kTokens][2];
    if constexpr (kKind.group == 32) {
      Sums<kKind, kTokens, 0, 8>(low, high, x, tile.x_stride, 0, sum);
      ScaleSums<kKind, kTokens>(scale, min, x, tile.x_stride, 0, sum, acc);
    } else {
      Sums<kKind, kTokens, 0, 4>(low, high, x, tile.x_stride, 0, sum);
      ScaleSums<kKind, kTokens>(scale, min, x, tile.x_stride, 0, sum, acc);
      Sums<kKind, kTokens, 4, 4>(low, high, x, tile.x_stride, 1, sum);
      ScaleSums<kKind, kTokens>(scale + kPanelRows, kKind.min ? min + kPanelRows : nullptr, x, tile.x_stride, 1, sum,
                                acc);
    }
    low += kChunkBytes * kKind.low_bits;
    high += kChunkBytes * kKind.high_bits;
    scale += kScales;
    min += kKind.min ? kScales : 0;
    ++x;
  }
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) {
    float* to = tile.acc + t * tile.acc_stride + half * 8;
    vst1q_f32(to, acc[t][0]);
    vst1q_f32(to + 4, acc[t][1]);
  }
}

// The codes come from memory: the halves take turns every four units, so that the stream is read once and in order.
template <Kind kKind, int kTokens>
void PackedTile(const QuantTile& tile) {
  constexpr int kTurn = 4;
  for (int u = 0; u < tile.units; u += kTurn) {
    const int end = u + kTurn < tile.units ? u + kTurn : tile.units;
    for (int64_t i = u * tile.ahead_step; i < end * tile.ahead_step; i += kChunkBytes) {
      __builtin_prefetch(tile.ahead + i);
    }
    HalfTile<kKind, kTokens>(tile, 0, u, end);
    HalfTile<kKind, kTokens>(tile, 1, u, end);
  }
}

template <Kind kKind, int kTokens>
void UnpackedTile(const QuantTile& tile) {
  HalfTile<kKind, kTokens>(tile, 0, 0, tile.units);
  HalfTile<kKind, kTokens>(tile, 1, 0, tile.units);
}

template <Kind kKind>
void Packed(const QuantTile& tile) {
  switch (tile.tokens) {
    case 1:
      return PackedTile<kKind, 1>(tile);
    case 2:
      return PackedTile<kKind, 2>(tile);
    case 3:
      return PackedTile<kKind, 3>(tile);
    default:
      return PackedTile<kKind, 4>(tile);
  }
}

template <Kind kKind>
void Unpacked(const QuantTile& tile) {
  switch (tile.tokens) {
    case 1:
      return UnpackedTile<kKind, 1>(tile);
    case 2:
      return UnpackedTile<kKind, 2>(tile);
    case 3:
      return UnpackedTile<kKind, 3>(tile);
    default:
      return UnpackedTile<kKind, 4>(tile);
  }
}

template <Kind kKind, int c>
inline void StoreChunk(const uint8_t* low, const uint8_t* high, uint8_t* out) {
  for (int quarter = 0; quarter < 4; ++quarter) {
    vst1q_s8(reinterpret_cast<int8_t*>(out) + c * kChunkBytes + quarter * 16,
             Chunk<kKind, c>(low + quarter * 16, high + quarter * 16));
  }
}

template <Kind kKind>
inline void UnpackUnit(const uint8_t* low, const uint8_t* high, uint8_t* out) {
  StoreChunk<kKind, 0>(low, high, out);
  StoreChunk<kKind, 1>(low, high, out);
  StoreChunk<kKind, 2>(low, high, out);
  StoreChunk<kKind, 3>(low, high, out);
  StoreChunk<kKind, 4>(low, high, out);
  StoreChunk<kKind, 5>(low, high, out);
  StoreChunk<kKind, 6>(low, high, out);
  StoreChunk<kKind, 7>(low, high, out);
}

template <Kind kKind>
void Unpack(const uint8_t* low, const uint8_t* high, int units, uint8_t* out) {
  for (int u = 0; u < units; ++u) {
    UnpackUnit<kKind>(low, high, out);
    low += kChunkBytes * kKind.low_bits;
    high += kChunkBytes * kKind.high_bits;
    out += kUnpackedUnitBytes;
  }
}

inline float32x4_t LoadHalf4(const uint8_t* p) {
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p))));
}

// Four small integers as f32.
inline float32x4_t FromSigned(const uint8_t* p) {
  uint32_t word;
  __builtin_memcpy(&word, p, 4);
  const int16x8_t wide = vmovl_s8(vreinterpret_s8_u32(vdup_n_u32(word)));
  return vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
}
inline float32x4_t FromUnsigned(const uint8_t* p) {
  uint32_t word;
  __builtin_memcpy(&word, p, 4);
  const uint16x8_t wide = vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(word)));
  return vcvtq_f32_u32(vmovl_u16(vget_low_u16(wide)));
}

inline void ExpandScales(const QuantFormat& format, const uint8_t* scales, int units, float* scale, float* min) {
  const float32x4_t bias = vdupq_n_f32(static_cast<float>(format.bias));
  if (!format.sub_scales) {
    const uint8_t* d = scales;
    const uint8_t* m = d + units * 32;
    for (int i = 0; i < 4 * units; ++i) {
      const float32x4_t s = LoadHalf4(d + i * 8);
      vst1q_f32(scale + i * 4, s);
      if (format.has_min) {
        vst1q_f32(min + i * 4, vfmaq_f32(LoadHalf4(m + i * 8), bias, s));
      }
    }
    return;
  }
  const int groups = 256 / format.group;
  const int per_unit = 32 / format.group;
  const int64_t block_bytes = (format.has_min ? 2 : 1) * (groups * kPanelRows + 2 * kPanelRows);
  for (int64_t first = 0; first < units; first += 8) {
    const uint8_t* block = scales + first / 8 * block_bytes;
    const uint8_t* mins = block + groups * kPanelRows;
    const uint8_t* factors = format.has_min ? mins + groups * kPanelRows : mins;
    for (int quarter = 0; quarter < 4; ++quarter) {
      const float32x4_t d = LoadHalf4(factors + quarter * 8);
      const float32x4_t m = format.has_min ? LoadHalf4(factors + 32 + quarter * 8) : vdupq_n_f32(0);
      for (int g = 0; g < groups; ++g) {
        const int at = g * kPanelRows + quarter * 4;
        const int64_t to = first * per_unit * kPanelRows + at;
        const float32x4_t s = vmulq_f32(d, FromSigned(block + at));
        vst1q_f32(scale + to, s);
        if (format.has_min) {
          vst1q_f32(min + to, vfmaq_f32(vmulq_f32(vnegq_f32(m), FromUnsigned(mins + at)), bias, s));
        }
      }
    }
  }
}

inline void Quantize(const float* x, int64_t cols, ActivationUnit* out) {
  for (int64_t u = 0; u < cols / kUnitCols; ++u, x += kUnitCols, ++out) {
    float32x4_t v[8];
    uint32x4_t bits = vdupq_n_u32(0);
    for (int i = 0; i < 8; ++i) {
      v[i] = vld1q_f32(x + 4 * i);
      bits = vmaxq_u32(bits, vreinterpretq_u32_f32(vabsq_f32(v[i])));
    }
    const float largest = vgetq_lane_f32(vreinterpretq_f32_u32(vdupq_n_u32(vmaxvq_u32(bits))), 0);
    const float inverse = largest < 1e-30f ? 0.0f : 127.0f / largest;
    const float scale = largest < 1e-30f ? 0.0f : largest / 127.0f;
    for (int h = 0; h < 2; ++h) {
      int16x8_t words[2];
      for (int i = 0; i < 2; ++i) {
        int32x4_t q[2];
        for (int k = 0; k < 2; ++k) {
          const float32x4_t scaled = vmulq_n_f32(v[4 * h + 2 * i + k], inverse);
          q[k] = vcvtnq_s32_f32(vminq_f32(vmaxq_f32(scaled, vdupq_n_f32(-127.0f)), vdupq_n_f32(127.0f)));
        }
        words[i] = vcombine_s16(vqmovn_s32(q[0]), vqmovn_s32(q[1]));
      }
      const int8x16_t bytes = vcombine_s8(vqmovn_s16(words[0]), vqmovn_s16(words[1]));
      vst1q_s8(out->q + 16 * h, bytes);
      // Sums of neighbours: lanes 0, 2, 4, 6 are columns 0 and 1 of each four, the others columns 2 and 3.
      const int16x8_t neighbours = vpaddlq_s8(bytes);
      const int32x4_t total = vpaddlq_s16(neighbours);
      const int sum = vaddvq_s32(total);
      const int first = vaddvq_s16(vuzp1q_s16(neighbours, vdupq_n_s16(0)));
      out->pairs[h][0] = static_cast<int16_t>(first);
      out->pairs[h][1] = static_cast<int16_t>(sum - first);
      out->half_sum[h] = scale * static_cast<float>(sum);
    }
    const int all = out->pairs[0][0] + out->pairs[0][1] + out->pairs[1][0] + out->pairs[1][1];
    out->scale = scale;
    out->sum = scale * static_cast<float>(all);
  }
}

enum class Element { kF32, kF16, kBf16 };

template <Element kElement>
inline float32x4_t LoadElements(const uint8_t* w) {
  if constexpr (kElement == Element::kF32) {
    return vld1q_f32(reinterpret_cast<const float*>(w));
  } else if constexpr (kElement == Element::kF16) {
    return LoadHalf4(w);
  } else {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(reinterpret_cast<const uint16_t*>(w)), 16));
  }
}

template <Element kElement, int kTokens>
void FloatTokens(const FloatTile& tile) {
  constexpr int kBytes = kElement == Element::kF32 ? 4 : 2;
  for (int64_t begin = 0; begin < tile.cols; begin += kFloatRun) {
    const int64_t end = tile.cols < begin + kFloatRun ? tile.cols : begin + kFloatRun;
    float32x4_t run[kTokens][4];
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) {
        run[t][r] = vdupq_n_f32(0);
      }
    }
    for (int64_t c = begin; c < end; ++c) {
      const uint8_t* w = tile.w + c * kPanelRows * kBytes;
      float32x4_t row[4];
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) {
        row[r] = LoadElements<kElement>(w + r * 4 * kBytes);
      }
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; ++t) {
        const float x = tile.x[t * tile.x_stride + c];
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r) {
          run[t][r] = vfmaq_n_f32(run[t][r], row[r], x);
        }
      }
    }
    const bool first = tile.first && begin == 0;
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) {
        float* acc = tile.acc + t * tile.acc_stride + r * 4;
        vst1q_f32(acc, vaddq_f32(first ? vdupq_n_f32(0) : vld1q_f32(acc), run[t][r]));
      }
    }
  }
}

template <Element kElement>
void Float(const FloatTile& tile) {
  switch (tile.tokens) {
    case 1:
      return FloatTokens<kElement, 1>(tile);
    case 2:
      return FloatTokens<kElement, 2>(tile);
    case 3:
      return FloatTokens<kElement, 3>(tile);
    default:
      return FloatTokens<kElement, 4>(tile);
  }
}

inline uint64_t ReadBytes(const uint8_t* p, size_t bytes) {
  uint8x16_t sum[4] = {vdupq_n_u8(0), vdupq_n_u8(0), vdupq_n_u8(0), vdupq_n_u8(0)};
  for (size_t i = 0; i + 64 <= bytes; i += 64) {
    for (int k = 0; k < 4; ++k) {
      sum[k] = veorq_u8(sum[k], vld1q_u8(p + i + 16 * k));
    }
  }
  return vaddvq_u8(veorq_u8(veorq_u8(sum[0], sum[1]), veorq_u8(sum[2], sum[3])));
}

// low_bits, high_bits, code_book, is_signed, group, bias, min.
constexpr Kind kQ4 = {4, 0, false, false, 32, true, false};
constexpr Kind kQ4Min = {4, 0, false, false, 32, false, true};
constexpr Kind kQ5 = {4, 1, false, false, 32, true, false};
constexpr Kind kQ5Min = {4, 1, false, false, 32, true, true};
constexpr Kind kQ8 = {8, 0, false, true, 32, false, false};
constexpr Kind kQ2Min = {2, 0, false, false, 16, false, true};
constexpr Kind kQ3 = {2, 1, false, false, 16, true, false};
constexpr Kind kQ6 = {4, 2, false, false, 16, true, false};
constexpr Kind kIq4 = {4, 0, true, true, 32, false, false};

constexpr Kind AsBytes(Kind kind) { return {8, 0, false, kind.is_signed, kind.group, kind.bias, kind.min}; }

// In the order of QuantFormat::index: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS.
#define EMBERGATE_NEON_TABLE(make)                                                                          \
  {                                                                                                         \
    kTokensMax, kTokensMax, 1, kTokensMax, InitForm::kTotals,                                               \
        {make<kQ4>(8), make<kQ4Min>(0), make<kQ5>(16),    make<kQ5Min>(16), make<kQ8>(0),  make<kQ2Min>(0), \
         make<kQ3>(4), make<kQ4Min>(0), make<kQ5Min>(16), make<kQ6>(32),    make<kIq4>(0), make<kIq4>(0)},  \
        Float<Element::kF32>, Float<Element::kF16>, Float<Element::kBf16>, ExpandScales, Quantize,          \
  }

template <Kind kKind>
constexpr QuantKernels MakeKernels(int bias) {
  return {Packed<kKind>, Unpack<kKind>, Unpacked<AsBytes(kKind)>, bias};
}

}  // namespace
}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_KERNELS_NEON_MATMUL_INL_H_
