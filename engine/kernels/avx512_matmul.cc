// Products for CPUs with AVX-512 (F, BW, VL, DQ) and VNNI: a chunk is one register, vpdpbusd adds four products to each
// row's 32-bit sum.
//
// The sum starts from the bits of the float 1.5 * 2^23 plus the bias correction: read as a float it then is
// 12582912 + i exactly (|i| < 2^22), and one fused multiply-subtract gives i * scale, rounded once as the plain product
// of the converted integer would be (12582912 * scale is exact: a scale has at most 19 significant bits). That saves a
// conversion per unit and token: 8 integer and 2 float operations are left.
#include <immintrin.h>

#include "engine/kernels/kernel_table.h"

namespace embergate::engine {
namespace {

constexpr int kTokensMax = 8;
constexpr int kPairTokensMax = 6;
constexpr int kSignedBias = 128;

struct Kind {
  int low_bits;
  int high_bits;
  bool code_book;
  bool flip_sign;  // codes are signed bytes: 128 is added to make them unsigned
  int group;
  bool bias;
  bool min;
};

inline __m512i Load(const void* p) { return _mm512_loadu_si512(p); }

template <int kBits>
inline __m512i ShiftRight(__m512i v) {
  if constexpr (kBits > 0) {
    return _mm512_srli_epi16(v, kBits);
  } else if constexpr (kBits < 0) {
    return _mm512_slli_epi16(v, -kBits);
  } else {
    return v;
  }
}

template <Kind kKind, int c>
inline __m512i Chunk(const uint8_t* low, const uint8_t* high) {
  if constexpr (kKind.low_bits == 8) {
    const __m512i code = Load(low + c * kChunkBytes);
    return kKind.flip_sign ? _mm512_xor_si512(code, _mm512_set1_epi8(-128)) : code;
  } else {
    constexpr int kLow = kKind.low_bits;
    __m512i code = _mm512_and_si512(ShiftRight<kLow*(c / kLow)>(Load(low + c % kLow * kChunkBytes)),
                                    _mm512_set1_epi8((1 << kLow) - 1));
    if constexpr (kKind.high_bits > 0) {
      constexpr int kHigh = kKind.high_bits;
      const __m512i bits = ShiftRight<kHigh*(c / kHigh) - kLow>(Load(high + c % kHigh * kChunkBytes));
      // code | (bits & mask)
      code = _mm512_ternarylogic_epi32(code, bits, _mm512_set1_epi8(((1 << kHigh) - 1) << kLow), 0xf8);
    }
    if constexpr (kKind.code_book) {
      const __m128i levels = _mm_loadu_si128(reinterpret_cast<const __m128i*>(kIq4Levels));
      const __m128i unsigned_levels = _mm_xor_si128(levels, _mm_set1_epi8(-128));
      code = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(unsigned_levels), code);
    }
    return code;
  }
}

constexpr int32_t kMagicBits = 0x4b400000;  // 1.5 * 2^23

inline int32_t Load32(const int8_t* p) {
  int32_t value;
  __builtin_memcpy(&value, p, 4);
  return value;
}

// 12582912 + the sums of chunks [from, from + count), as floats.
template <bool kBias, int from, int count>
inline __m512 Sum(const __m512i* w, const int8_t* q, int32_t init) {
  __m512i sum = kBias ? _mm512_set1_epi32(init) : _mm512_set1_epi32(kMagicBits);
#pragma GCC unroll 8
  for (int c = from; c < from + count; ++c) {
    sum = _mm512_dpbusd_epi32(sum, w[c], _mm512_set1_epi32(Load32(q + 4 * c)));
  }
  return _mm512_castsi512_ps(sum);
}

template <Kind kKind, int kTokens>
inline void Unit(const uint8_t* low, const uint8_t* high, const float* scale, const float* min, const ActivationUnit* x,
                 int64_t x_stride, __m512* acc) {
  const __m512i w[8] = {Chunk<kKind, 0>(low, high), Chunk<kKind, 1>(low, high), Chunk<kKind, 2>(low, high),
                        Chunk<kKind, 3>(low, high), Chunk<kKind, 4>(low, high), Chunk<kKind, 5>(low, high),
                        Chunk<kKind, 6>(low, high), Chunk<kKind, 7>(low, high)};
  const __m512 magic = _mm512_set1_ps(12582912.0f);
  const __m512 scale0 = _mm512_loadu_ps(scale);
  const __m512 shift0 = _mm512_mul_ps(scale0, magic);
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) {
    const ActivationUnit& unit = x[t * x_stride];
    const __m512 x_scale = _mm512_set1_ps(unit.scale);
    if constexpr (kKind.group == 32) {
      const __m512 sum = Sum<kKind.bias, 0, 8>(w, unit.q, unit.init[0]);
      acc[t] = _mm512_fmadd_ps(_mm512_fmsub_ps(sum, scale0, shift0), x_scale, acc[t]);
      if constexpr (kKind.min) {
        acc[t] = _mm512_fmadd_ps(_mm512_loadu_ps(min), _mm512_set1_ps(unit.sum), acc[t]);
      }
    } else {
      const __m512 scale1 = _mm512_loadu_ps(scale + kPanelRows);
      const __m512 shift1 = _mm512_mul_ps(scale1, magic);
      const __m512 sum0 = Sum<kKind.bias, 0, 4>(w, unit.q, unit.init[0]);
      acc[t] = _mm512_fmadd_ps(_mm512_fmsub_ps(sum0, scale0, shift0), x_scale, acc[t]);
      if constexpr (kKind.min) {
        acc[t] = _mm512_fmadd_ps(_mm512_loadu_ps(min), _mm512_set1_ps(unit.half_sum[0]), acc[t]);
      }
      const __m512 sum1 = Sum<kKind.bias, 4, 4>(w, unit.q, unit.init[1]);
      acc[t] = _mm512_fmadd_ps(_mm512_fmsub_ps(sum1, scale1, shift1), x_scale, acc[t]);
      if constexpr (kKind.min) {
        acc[t] = _mm512_fmadd_ps(_mm512_loadu_ps(min + kPanelRows), _mm512_set1_ps(unit.half_sum[1]), acc[t]);
      }
    }
  }
}

// Into the second-level cache. Not __builtin_prefetch: GCC 12 takes a branch that does nothing else for an empty one.
inline void FetchLine(const uint8_t* line) { asm volatile("prefetcht1 %0" : : "m"(*line)); }

// The lines of one unit's weights: planes and scales; or the first of them. The first-level cache's line fill buffers
// are too few to keep a core's share of the memory bandwidth busy.
template <Kind kKind>
inline void Prefetch(const uint8_t* ahead, bool every_line) {
  constexpr int kLines = kKind.low_bits + kKind.high_bits + (kKind.group == 16 && kKind.min ? 2 : 1);
  FetchLine(ahead);
  if (every_line) {
#pragma GCC unroll 10
    for (int i = 1; i < kLines; ++i) {
      FetchLine(ahead + i * kChunkBytes);
    }
  }
}

template <Kind kKind, int kTokens>
void Tile(const QuantTile& tile) {
  constexpr int kScales = 32 / kKind.group * kPanelRows;
  __m512 acc[kTokens];
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) {
    acc[t] = tile.first ? _mm512_setzero_ps() : _mm512_loadu_ps(tile.acc + t * tile.acc_stride);
  }
  const uint8_t* low = tile.low;
  const uint8_t* high = tile.high;
  const float* scale = tile.scale;
  const float* min = tile.min;
  const ActivationUnit* x = tile.x;
  const uint8_t* ahead = tile.ahead;
  for (int u = 0; u < tile.units; ++u) {
    Prefetch<kKind>(ahead, tile.ahead_every_line);
    ahead += tile.ahead_step;
    Unit<kKind, kTokens>(low, high, scale, min, x, tile.x_stride, acc);
    low += kChunkBytes * kKind.low_bits;
    high += kChunkBytes * kKind.high_bits;
    scale += kScales;
    min += kKind.min ? kScales : 0;
    ++x;
  }
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) {
    _mm512_storeu_ps(tile.acc + t * tile.acc_stride, acc[t]);
  }
}

template <Kind kKind>
void Tokens(const QuantTile& tile) {
  switch (tile.tokens) {
    case 1:
      return Tile<kKind, 1>(tile);
    case 2:
      return Tile<kKind, 2>(tile);
    case 3:
      return Tile<kKind, 3>(tile);
    case 4:
      return Tile<kKind, 4>(tile);
    case 5:
      return Tile<kKind, 5>(tile);
    case 6:
      return Tile<kKind, 6>(tile);
    case 7:
      return Tile<kKind, 7>(tile);
    default:
      return Tile<kKind, 8>(tile);
  }
}

// Two panels of unpacked codes: every broadcast of 4 activations serves both, which keeps the loads (two a cycle) below
// the multiplications. 2 * kTokens integer sums are in flight, enough to hide vpdpbusd's latency of 5.
template <Kind kKind, int kTokens, int kFrom, int kCount>
inline void PairChunks(const uint8_t* low, const ActivationUnit* x, int64_t x_stride, int init,
                       __m512i (*sum)[kTokens]) {
#pragma GCC unroll 6
  for (int t = 0; t < kTokens; ++t) {
    sum[0][t] = _mm512_set1_epi32(kKind.bias ? x[t * x_stride].init[init] : kMagicBits);
    sum[1][t] = sum[0][t];
  }
#pragma GCC unroll 8
  for (int c = kFrom; c < kFrom + kCount; ++c) {
    const __m512i w0 = Load(low + c * kChunkBytes);
    const __m512i w1 = Load(low + QuantTile::kPanelBytes + c * kChunkBytes);
#pragma GCC unroll 6
    for (int t = 0; t < kTokens; ++t) {
      const __m512i q = _mm512_set1_epi32(Load32(x[t * x_stride].q + 4 * c));
      sum[0][t] = _mm512_dpbusd_epi32(sum[0][t], w0, q);
      sum[1][t] = _mm512_dpbusd_epi32(sum[1][t], w1, q);
    }
  }
}

template <Kind kKind, int kTokens>
inline void PairScale(const float* scale, const float* min, const ActivationUnit* x, int64_t x_stride, int half,
                      const __m512i (*sum)[kTokens], __m512 (*acc)[kTokens]) {
  const __m512 magic = _mm512_set1_ps(12582912.0f);
#pragma GCC unroll 2
  for (int p = 0; p < 2; ++p) {
    const __m512 s = _mm512_loadu_ps(scale + p * QuantTile::kPanelScales);
    const __m512 shift = _mm512_mul_ps(s, magic);
#pragma GCC unroll 6
    for (int t = 0; t < kTokens; ++t) {
      const ActivationUnit& unit = x[t * x_stride];
      const __m512 value = _mm512_fmsub_ps(_mm512_castsi512_ps(sum[p][t]), s, shift);
      acc[p][t] = _mm512_fmadd_ps(value, _mm512_set1_ps(unit.scale), acc[p][t]);
      if constexpr (kKind.min) {
        const float x_sum = kKind.group == 32 ? unit.sum : unit.half_sum[half];
        acc[p][t] =
            _mm512_fmadd_ps(_mm512_loadu_ps(min + p * QuantTile::kPanelScales), _mm512_set1_ps(x_sum), acc[p][t]);
      }
    }
  }
}

template <Kind kKind, int kTokens>
void PairTile(const QuantTile& tile) {
  constexpr int kScales = 32 / kKind.group * kPanelRows;
  __m512 acc[2][kTokens];
#pragma GCC unroll 6
  for (int t = 0; t < kTokens; ++t) {
    const float* from = tile.acc + t * tile.acc_stride;
    acc[0][t] = tile.first ? _mm512_setzero_ps() : _mm512_loadu_ps(from);
    acc[1][t] = tile.first ? _mm512_setzero_ps() : _mm512_loadu_ps(from + kPanelRows);
  }
  const uint8_t* low = tile.low;
  const float* scale = tile.scale;
  const float* min = tile.min;
  const ActivationUnit* x = tile.x;
  const int64_t x_stride = tile.x_stride;
  for (int u = 0; u < tile.units; ++u) {
    __m512i sum[2][kTokens];
    if constexpr (kKind.group == 32) {
      PairChunks<kKind, kTokens, 0, 8>(low, x, x_stride, 0, sum);
      PairScale<kKind, kTokens>(scale, min, x, x_stride, 0, sum, acc);
    } else {
      PairChunks<kKind, kTokens, 0, 4>(low, x, x_stride, 0, sum);
      PairScale<kKind, kTokens>(scale, min, x, x_stride, 0, sum, acc);
      PairChunks<kKind, kTokens, 4, 4>(low, x, x_stride, 1, sum);
      PairScale<kKind, kTokens>(scale + kPanelRows, kKind.min ? min + kPanelRows : nullptr, x, x_stride, 1, sum, acc);
    }
    low += kUnpackedUnitBytes;
    scale += kScales;
    min += kKind.min ? kScales : 0;
    ++x;
  }
#pragma GCC unroll 6
  for (int t = 0; t < kTokens; ++t) {
    float* to = tile.acc + t * tile.acc_stride;
    _mm512_storeu_ps(to, acc[0][t]);
    _mm512_storeu_ps(to + kPanelRows, acc[1][t]);
  }
}

template <Kind kKind>
void Unpacked(const QuantTile& tile) {
  if (tile.panels == 1) {
    return Tokens<kKind>(tile);
  }
  switch (tile.tokens) {
    case 1:
      return PairTile<kKind, 1>(tile);
    case 2:
      return PairTile<kKind, 2>(tile);
    case 3:
      return PairTile<kKind, 3>(tile);
    case 4:
      return PairTile<kKind, 4>(tile);
    case 5:
      return PairTile<kKind, 5>(tile);
    default:
      return PairTile<kKind, 6>(tile);
  }
}

template <Kind kKind, int c>
inline void StoreChunk(const uint8_t* low, const uint8_t* high, uint8_t* out) {
  _mm512_storeu_si512(out + c * kChunkBytes, Chunk<kKind, c>(low, high));
}

template <Kind kKind>
void Unpack(const uint8_t* low, const uint8_t* high, int units, uint8_t* out) {
  for (int u = 0; u < units; ++u) {
    StoreChunk<kKind, 0>(low, high, out);
    StoreChunk<kKind, 1>(low, high, out);
    StoreChunk<kKind, 2>(low, high, out);
    StoreChunk<kKind, 3>(low, high, out);
    StoreChunk<kKind, 4>(low, high, out);
    StoreChunk<kKind, 5>(low, high, out);
    StoreChunk<kKind, 6>(low, high, out);
    StoreChunk<kKind, 7>(low, high, out);
    low += kChunkBytes * kKind.low_bits;
    high += kChunkBytes * kKind.high_bits;
    out += kUnpackedUnitBytes;
  }
}

template <Kind kKind>
constexpr QuantKernels Make(int bias) {
  constexpr Kind kBytes = {8, 0, false, false, kKind.group, kKind.bias, kKind.min};
  return {Tokens<kKind>, Unpack<kKind>, Unpacked<kBytes>, bias};
}

inline __m512 LoadHalf16(const uint8_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline __m128i Load16(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }

void ExpandScales(const QuantFormat& format, const uint8_t* scales, int units, float* scale, float* min) {
  const __m512 bias = _mm512_set1_ps(static_cast<float>(format.bias));
  if (!format.sub_scales) {
    const uint8_t* d = scales;
    const uint8_t* m = d + units * 32;
    for (int i = 0; i < units; ++i) {
      const __m512 s = LoadHalf16(d + i * 32);
      _mm512_storeu_ps(scale + i * 16, s);
      if (format.has_min) {
        _mm512_storeu_ps(min + i * 16, _mm512_fmadd_ps(bias, s, LoadHalf16(m + i * 32)));
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
    const __m512 d = LoadHalf16(factors);
    const __m512 m = format.has_min ? LoadHalf16(factors + 32) : _mm512_setzero_ps();
    const __m512 negative_m = _mm512_xor_ps(m, _mm512_set1_ps(-0.0f));
    for (int g = 0; g < groups; ++g) {
      const int64_t to = (first * per_unit + g) * kPanelRows;
      const __m512 s = _mm512_mul_ps(d, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(Load16(block + g * kPanelRows))));
      _mm512_storeu_ps(scale + to, s);
      if (format.has_min) {
        const __m512 code = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(Load16(mins + g * kPanelRows)));
        _mm512_storeu_ps(min + to, _mm512_fmadd_ps(bias, s, _mm512_mul_ps(negative_m, code)));
      }
    }
  }
}

enum class Element { kF32, kF16, kBf16 };

template <Element kElement>
inline __m512 LoadElements(const uint8_t* w) {
  if constexpr (kElement == Element::kF32) {
    return _mm512_loadu_ps(w);
  } else if constexpr (kElement == Element::kF16) {
    return LoadHalf16(w);
  } else {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
}

// kRuns runs of columns side by side, so that one token has kRuns independent chains of additions; their totals are
// added in the order of the columns, so the result is that of one run after the other.
template <Element kElement, int kTokens, int kRuns>
inline void FloatRuns(const FloatTile& tile, int64_t begin, int64_t length, bool first) {
  constexpr int kBytes = kElement == Element::kF32 ? 4 : 2;
  __m512 run[kRuns][kTokens];
#pragma GCC unroll 4
  for (int r = 0; r < kRuns; ++r) {
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) {
      run[r][t] = _mm512_setzero_ps();
    }
  }
  for (int64_t c = begin; c < begin + length; ++c) {
#pragma GCC unroll 4
    for (int r = 0; r < kRuns; ++r) {
      const int64_t col = c + r * kFloatRun;
      const __m512 w = LoadElements<kElement>(tile.w + col * kPanelRows * kBytes);
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) {
        run[r][t] = _mm512_fmadd_ps(w, _mm512_set1_ps(tile.x[t * tile.x_stride + col]), run[r][t]);
      }
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) {
    float* acc = tile.acc + t * tile.acc_stride;
    __m512 sum = first ? _mm512_setzero_ps() : _mm512_loadu_ps(acc);
#pragma GCC unroll 4
    for (int r = 0; r < kRuns; ++r) {
      sum = _mm512_add_ps(sum, run[r][t]);
    }
    _mm512_storeu_ps(acc, sum);
  }
}

template <Element kElement, int kTokens>
void FloatTokens(const FloatTile& tile) {
  constexpr int kRuns = kTokens == 1 ? 4 : kTokens == 2 ? 2 : 1;
  int64_t begin = 0;
  for (; begin + kRuns * kFloatRun <= tile.cols; begin += kRuns * kFloatRun) {
    FloatRuns<kElement, kTokens, kRuns>(tile, begin, kFloatRun, tile.first && begin == 0);
  }
  for (; begin < tile.cols; begin += kFloatRun) {
    const int64_t length = tile.cols - begin < kFloatRun ? tile.cols - begin : kFloatRun;
    FloatRuns<kElement, kTokens, 1>(tile, begin, length, tile.first && begin == 0);
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
    case 4:
      return FloatTokens<kElement, 4>(tile);
    case 5:
      return FloatTokens<kElement, 5>(tile);
    case 6:
      return FloatTokens<kElement, 6>(tile);
    case 7:
      return FloatTokens<kElement, 7>(tile);
    default:
      return FloatTokens<kElement, 8>(tile);
  }
}

void Quantize(const float* x, int64_t cols, ActivationUnit* out) { kAvx2MatMul.quantize(x, cols, out); }

// low_bits, high_bits, code_book, flip_sign, group, bias, min.
constexpr Kind kQ4 = {4, 0, false, false, 32, true, false};
constexpr Kind kQ4Min = {4, 0, false, false, 32, false, true};
constexpr Kind kQ5 = {4, 1, false, false, 32, true, false};
constexpr Kind kQ5Min = {4, 1, false, false, 32, true, true};
constexpr Kind kQ8 = {8, 0, false, true, 32, true, false};
constexpr Kind kQ2Min = {2, 0, false, false, 16, false, true};
constexpr Kind kQ3 = {2, 1, false, false, 16, true, false};
constexpr Kind kQ6 = {4, 2, false, false, 16, true, false};
constexpr Kind kIq4 = {4, 0, true, false, 32, true, false};

}  // namespace

const MatMulTable kAvx512MatMul = {
    kTokensMax,
    kPairTokensMax,
    2,
    8,
    InitForm::kMagicTotals,
    // In the order of QuantFormat::index: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS.
    {Make<kQ4>(8), Make<kQ4Min>(0), Make<kQ5>(16), Make<kQ5Min>(16), Make<kQ8>(kSignedBias), Make<kQ2Min>(0),
     Make<kQ3>(4), Make<kQ4Min>(0), Make<kQ5Min>(16), Make<kQ6>(32), Make<kIq4>(kSignedBias), Make<kIq4>(kSignedBias)},
    Float<Element::kF32>,
    Float<Element::kF16>,
    Float<Element::kBf16>,
    ExpandScales,
    Quantize,
};

}  // namespace embergate::engine
