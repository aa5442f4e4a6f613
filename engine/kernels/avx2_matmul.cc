// Products for CPUs with AVX2, FMA and F16C, without VNNI.
//
// Arithmetic of a unit (32 columns) for 8 rows: an unsigned code of up to 5 bits times a signed byte, summed in pairs
// by maddubs, fits 16 bits for all 8 chunks when the sum starts from -bias times the activations' sum: the true total
// of a 16-bit lane is at most 16 * 16 * 127 = 32512, and what overflows on the way wraps back. 6-bit codes fit the
// same way over half a unit (8 * 32 * 127). So a unit takes one widening and one scale per 8 rows. Signed bytes
// (8-bit weights and the code book) go through |w| and x * sign(w), and widen at every chunk.
#include <immintrin.h>

#include "engine/kernels/kernel_table.h"

namespace embergate::engine {
namespace {

constexpr int kTokensMax = 4;

struct Kind {
  int low_bits;
  int high_bits;
  bool code_book;
  bool is_signed;  // codes are signed bytes
  int group;
  bool bias;
  bool min;
};

inline __m256i Load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline __m256i Broadcast32(const void* p) {
  return _mm256_castps_si256(_mm256_broadcast_ss(static_cast<const float*>(p)));
}

template <int kBits>
inline __m256i ShiftRight(__m256i v) {
  if constexpr (kBits > 0) {
    return _mm256_srli_epi16(v, kBits);
  } else if constexpr (kBits < 0) {
    return _mm256_slli_epi16(v, -kBits);
  } else {
    return v;
  }
}

// 32 bytes (8 rows) of chunk c.
template <Kind kKind, int c>
inline __m256i Chunk(const uint8_t* low, const uint8_t* high) {
  if constexpr (kKind.low_bits == 8) {
    return Load(low + c * kChunkBytes);
  } else {
    constexpr int kLow = kKind.low_bits;
    __m256i code = _mm256_and_si256(ShiftRight<kLow*(c / kLow)>(Load(low + c % kLow * kChunkBytes)),
                                    _mm256_set1_epi8((1 << kLow) - 1));
    if constexpr (kKind.high_bits > 0) {
      constexpr int kHigh = kKind.high_bits;
      const __m256i bits = ShiftRight<kHigh*(c / kHigh) - kLow>(Load(high + c % kHigh * kChunkBytes));
      code = _mm256_or_si256(code, _mm256_and_si256(bits, _mm256_set1_epi8(((1 << kHigh) - 1) << kLow)));
    }
    if constexpr (kKind.code_book) {
      const __m256i levels = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(kIq4Levels)));
      code = _mm256_shuffle_epi8(levels, code);
    }
    return code;
  }
}

// Integer sums of chunks [from, from + count) for 8 rows.
template <bool kSigned, int from, int count>
inline __m256i Sum(const __m256i* w, const int8_t* q, __m256i init) {
  const __m256i ones = _mm256_set1_epi16(1);
  if constexpr (kSigned) {
    __m256i sum = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int c = from; c < from + count; ++c) {
      const __m256i x = _mm256_sign_epi8(Broadcast32(q + 4 * c), w[c]);
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(w[c]), x), ones));
    }
    return sum;
  } else {
    __m256i sum = init;
#pragma GCC unroll 8
    for (int c = from; c < from + count; ++c) {
      sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(w[c], Broadcast32(q + 4 * c)));
    }
    return _mm256_madd_epi16(sum, ones);
  }
}

// One unit of 8 rows onto the accumulators of kTokens tokens.
template <Kind kKind, int kTokens>
inline void Unit(const uint8_t* low, const uint8_t* high, const float* scale, const float* min, const ActivationUnit* x,
                 int64_t x_stride, __m256* acc) {
  const __m256i w[8] = {Chunk<kKind, 0>(low, high), Chunk<kKind, 1>(low, high), Chunk<kKind, 2>(low, high),
                        Chunk<kKind, 3>(low, high), Chunk<kKind, 4>(low, high), Chunk<kKind, 5>(low, high),
                        Chunk<kKind, 6>(low, high), Chunk<kKind, 7>(low, high)};
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) {
    const ActivationUnit& unit = x[t * x_stride];
    const __m256 x_scale = _mm256_broadcast_ss(&unit.scale);
    if constexpr (kKind.group == 32) {
      const __m256i init = kKind.bias ? Broadcast32(&unit.init[0]) : _mm256_setzero_si256();
      const __m256 sum = _mm256_cvtepi32_ps(Sum<kKind.is_signed, 0, 8>(w, unit.q, init));
      acc[t] = _mm256_fmadd_ps(_mm256_mul_ps(sum, _mm256_loadu_ps(scale)), x_scale, acc[t]);
      if constexpr (kKind.min) {
        acc[t] = _mm256_fmadd_ps(_mm256_loadu_ps(min), _mm256_broadcast_ss(&unit.sum), acc[t]);
      }
    } else {
      const __m256i init0 = kKind.bias ? Broadcast32(&unit.init[0]) : _mm256_setzero_si256();
      const __m256 sum0 = _mm256_cvtepi32_ps(Sum<false, 0, 4>(w, unit.q, init0));
      acc[t] = _mm256_fmadd_ps(_mm256_mul_ps(sum0, _mm256_loadu_ps(scale)), x_scale, acc[t]);
      if constexpr (kKind.min) {
        acc[t] = _mm256_fmadd_ps(_mm256_loadu_ps(min), _mm256_broadcast_ss(&unit.half_sum[0]), acc[t]);
      }
      const __m256i init1 = kKind.bias ? Broadcast32(&unit.init[1]) : _mm256_setzero_si256();
      const __m256 sum1 = _mm256_cvtepi32_ps(Sum<false, 4, 4>(w, unit.q, init1));
      acc[t] = _mm256_fmadd_ps(_mm256_mul_ps(sum1, _mm256_loadu_ps(scale + kPanelRows)), x_scale, acc[t]);
      if constexpr (kKind.min) {
        acc[t] = _mm256_fmadd_ps(_mm256_loadu_ps(min + kPanelRows), _mm256_broadcast_ss(&unit.half_sum[1]), acc[t]);
      }
    }
  }
}

template <int kTokens>
inline void LoadAcc(const QuantTile& tile, int half, __m256* acc) {
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) {
    acc[t] = tile.first ? _mm256_setzero_ps() : _mm256_loadu_ps(tile.acc + t * tile.acc_stride + half * 8);
  }
}

template <int kTokens>
inline void StoreAcc(const QuantTile& tile, int half, const __m256* acc) {
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) {
    _mm256_storeu_ps(tile.acc + t * tile.acc_stride + half * 8, acc[t]);
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
void PackedTile(const QuantTile& tile) {
  constexpr int kScales = 32 / kKind.group * kPanelRows;
  __m256 acc0[kTokens];
  __m256 acc1[kTokens];
  LoadAcc<kTokens>(tile, 0, acc0);
  LoadAcc<kTokens>(tile, 1, acc1);
  const uint8_t* low = tile.low;
  const uint8_t* high = tile.high;
  const float* scale = tile.scale;
  const float* min = tile.min;
  const ActivationUnit* x = tile.x;
  const uint8_t* ahead = tile.ahead;
  for (int u = 0; u < tile.units; ++u) {
    Prefetch<kKind>(ahead, tile.ahead_every_line);
    ahead += tile.ahead_step;
    Unit<kKind, kTokens>(low, high, scale, min, x, tile.x_stride, acc0);
    Unit<kKind, kTokens>(low + 32, high + 32, scale + 8, min + 8, x, tile.x_stride, acc1);
    low += kChunkBytes * kKind.low_bits;
    high += kChunkBytes * kKind.high_bits;
    scale += kScales;
    min += kKind.min ? kScales : 0;
    ++x;
  }
  StoreAcc<kTokens>(tile, 0, acc0);
  StoreAcc<kTokens>(tile, 1, acc1);
}

// One half after the other: the codes are in the first-level cache, the accumulators in registers.
template <Kind kKind, int kTokens>
void UnpackedTile(const QuantTile& tile) {
  constexpr int kScales = 32 / kKind.group * kPanelRows;
  for (int half = 0; half < 2; ++half) {
    __m256 acc[kTokens];
    LoadAcc<kTokens>(tile, half, acc);
    const uint8_t* low = tile.low + half * 32;
    const float* scale = tile.scale + half * 8;
    const float* min = kKind.min ? tile.min + half * 8 : nullptr;
    const ActivationUnit* x = tile.x;
    for (int u = 0; u < tile.units; ++u) {
      Unit<kKind, kTokens>(low, nullptr, scale, min, x, tile.x_stride, acc);
      low += kUnpackedUnitBytes;
      scale += kScales;
      min += kKind.min ? kScales : 0;
      ++x;
    }
    StoreAcc<kTokens>(tile, half, acc);
  }
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
  for (int half = 0; half < 2; ++half) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + c * kChunkBytes + half * 32),
                        Chunk<kKind, c>(low + half * 32, high + half * 32));
  }
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
  constexpr Kind kBytes = {8, 0, false, kKind.is_signed, kKind.group, kKind.bias, kKind.min};
  return {Packed<kKind>, Unpack<kKind>, Unpacked<kBytes>, bias};
}

inline __m256 LoadHalf8(const uint8_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

void ExpandScales(const QuantFormat& format, const uint8_t* scales, int units, float* scale, float* min) {
  const __m256 bias = _mm256_set1_ps(static_cast<float>(format.bias));
  if (!format.sub_scales) {
    const uint8_t* d = scales;
    const uint8_t* m = d + units * 32;
    for (int i = 0; i < 2 * units; ++i) {
      const __m256 s = LoadHalf8(d + i * 16);
      _mm256_storeu_ps(scale + i * 8, s);
      if (format.has_min) {
        _mm256_storeu_ps(min + i * 8, _mm256_fmadd_ps(bias, s, LoadHalf8(m + i * 16)));
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
    for (int half = 0; half < 2; ++half) {
      const __m256 d = LoadHalf8(factors + half * 16);
      const __m256 m = format.has_min ? LoadHalf8(factors + 32 + half * 16) : _mm256_setzero_ps();
      const __m256 negative_m = _mm256_xor_ps(m, _mm256_set1_ps(-0.0f));
      for (int g = 0; g < groups; ++g) {
        const int at = g * kPanelRows + half * 8;
        const int64_t to = first * per_unit * kPanelRows + at;
        const __m128i codes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(block + at));
        const __m256 s = _mm256_mul_ps(d, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes)));
        _mm256_storeu_ps(scale + to, s);
        if (format.has_min) {
          const __m128i min_codes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(mins + at));
          const __m256 product = _mm256_mul_ps(negative_m, _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(min_codes)));
          _mm256_storeu_ps(min + to, _mm256_fmadd_ps(bias, s, product));
        }
      }
    }
  }
}

void Quantize(const float* x, int64_t cols, ActivationUnit* out) {
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  for (int64_t u = 0; u < cols / kUnitCols; ++u, x += kUnitCols, ++out) {
    __m256 v[4];
    __m256i bits = _mm256_setzero_si256();
    for (int i = 0; i < 4; ++i) {
      v[i] = _mm256_loadu_ps(x + 8 * i);
      bits = _mm256_max_epi32(bits, _mm256_and_si256(_mm256_castps_si256(v[i]), magnitude));
    }
    __m128i top = _mm_max_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
    top = _mm_max_epi32(top, _mm_shuffle_epi32(top, 0x4e));
    top = _mm_max_epi32(top, _mm_shuffle_epi32(top, 0xb1));
    const float largest = _mm_cvtss_f32(_mm_castsi128_ps(top));
    const float inverse = largest < 1e-30f ? 0.0f : 127.0f / largest;
    const float scale = largest < 1e-30f ? 0.0f : largest / 127.0f;
    const __m256 factor = _mm256_set1_ps(inverse);
    const __m256 high = _mm256_set1_ps(127.0f);
    const __m256 low = _mm256_set1_ps(-127.0f);
    __m256i q[4];
    for (int i = 0; i < 4; ++i) {
      // max(v, low) answers `low` when v is NaN.
      const __m256 bounded = _mm256_min_ps(_mm256_max_ps(_mm256_mul_ps(v[i], factor), low), high);
      q[i] = _mm256_cvtps_epi32(bounded);
    }
    // Packing works within 128-bit lanes; the permutation puts the dwords back in order.
    const __m256i words0 = _mm256_packs_epi32(q[0], q[1]);
    const __m256i words1 = _mm256_packs_epi32(q[2], q[3]);
    const __m256i bytes =
        _mm256_permutevar8x32_epi32(_mm256_packs_epi16(words0, words1), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_store_si256(reinterpret_cast<__m256i*>(out->q), bytes);
    // Each 32-bit lane of 4 columns becomes its two pair sums; the four lanes of a half are then added.
    __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes);
    pairs = _mm256_add_epi16(pairs, _mm256_shuffle_epi32(pairs, 0x4e));
    pairs = _mm256_add_epi16(pairs, _mm256_shuffle_epi32(pairs, 0xb1));
    const int32_t half0 = _mm256_extract_epi32(pairs, 0);
    const int32_t half1 = _mm256_extract_epi32(pairs, 4);
    out->pairs[0][0] = static_cast<int16_t>(half0);
    out->pairs[0][1] = static_cast<int16_t>(half0 >> 16);
    out->pairs[1][0] = static_cast<int16_t>(half1);
    out->pairs[1][1] = static_cast<int16_t>(half1 >> 16);
    const int sum0 = out->pairs[0][0] + out->pairs[0][1];
    const int sum1 = out->pairs[1][0] + out->pairs[1][1];
    out->scale = scale;
    out->sum = scale * static_cast<float>(sum0 + sum1);
    out->half_sum[0] = scale * static_cast<float>(sum0);
    out->half_sum[1] = scale * static_cast<float>(sum1);
  }
}

enum class Element { kF32, kF16, kBf16 };

template <Element kElement>
inline __m256 LoadElements(const uint8_t* w) {
  if constexpr (kElement == Element::kF32) {
    return _mm256_loadu_ps(reinterpret_cast<const float*>(w));
  } else if constexpr (kElement == Element::kF16) {
    return LoadHalf8(w);
  } else {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(w));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
}

template <Element kElement, int kTokens>
void FloatTokens(const FloatTile& tile) {
  constexpr int kBytes = kElement == Element::kF32 ? 4 : 2;
  for (int64_t begin = 0; begin < tile.cols; begin += kFloatRun) {
    const int64_t end = tile.cols < begin + kFloatRun ? tile.cols : begin + kFloatRun;
    __m256 run[kTokens][2];
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) {
      run[t][0] = _mm256_setzero_ps();
      run[t][1] = _mm256_setzero_ps();
    }
    for (int64_t c = begin; c < end; ++c) {
      const uint8_t* w = tile.w + c * kPanelRows * kBytes;
      const __m256 w0 = LoadElements<kElement>(w);
      const __m256 w1 = LoadElements<kElement>(w + 8 * kBytes);
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t) {
        const __m256 x = _mm256_broadcast_ss(tile.x + t * tile.x_stride + c);
        run[t][0] = _mm256_fmadd_ps(w0, x, run[t][0]);
        run[t][1] = _mm256_fmadd_ps(w1, x, run[t][1]);
      }
    }
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t) {
      for (int half = 0; half < 2; ++half) {
        float* acc = tile.acc + t * tile.acc_stride + half * 8;
        const bool first = tile.first && begin == 0;
        const __m256 before = first ? _mm256_setzero_ps() : _mm256_loadu_ps(acc);
        _mm256_storeu_ps(acc, _mm256_add_ps(before, run[t][half]));
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
    case 4:
      return FloatTokens<kElement, 4>(tile);
    case 5:
      return FloatTokens<kElement, 5>(tile);
    default:
      return FloatTokens<kElement, 6>(tile);
  }
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

}  // namespace

const MatMulTable kAvx2MatMul = {
    kTokensMax,
    kTokensMax,
    1,
    6,
    InitForm::kPairs,
    // In the order of QuantFormat::index: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS.
    {Make<kQ4>(8), Make<kQ4Min>(0), Make<kQ5>(16), Make<kQ5Min>(16), Make<kQ8>(0), Make<kQ2Min>(0), Make<kQ3>(4),
     Make<kQ4Min>(0), Make<kQ5Min>(16), Make<kQ6>(32), Make<kIq4>(0), Make<kIq4>(0)},
    Float<Element::kF32>,
    Float<Element::kF16>,
    Float<Element::kBf16>,
    ExpandScales,
    Quantize,
};

}  // namespace embergate::engine
