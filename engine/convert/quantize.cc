#include "engine/convert/quantize.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/kernels/float16.h"
#include "engine/kernels/kernels.h"

namespace embergate::engine {

using storage::TensorType;

namespace {

// A block whose largest element is below this is stored as zeros: its f16 scale would be 0 (the smallest is 6e-8).
constexpr float kTiny = 1e-20f;

void StoreU16(uint16_t value, uint8_t* to) { std::memcpy(to, &value, sizeof(value)); }

// Adding and subtracting it rounds |x| < 2^22 to the nearest integer, ties to even: 1.5 * 2^23, whose last bit is
// worth 1. (std::nearbyint is a function call without SSE4.1.)
constexpr float kRoundMagic = 12582912.0f;

inline float Round(float x) { return (x + kRoundMagic) - kRoundMagic; }

// Codes clamp(round(x / scale), low, high); a scale of 0 gives code 0.
template <int kN>
void Encode(const float* x, float scale, float low, float high, int8_t* codes) {
  const float inverse = scale != 0.0f ? 1.0f / scale : 0.0f;
  for (int i = 0; i < kN; ++i) {
    codes[i] = static_cast<int8_t>(std::min(high, std::max(low, Round(x[i] * inverse))));
  }
}

// Four floats in one register on every target (a language extension that GCC and Clang share).
typedef float Float4 __attribute__((vector_size(16)));

// For each of kCount candidate inverse scales, the codes q = clamp(round((x - base) * inverse)) of kN elements are
// summed up. The lanes are candidates, not elements: no sum has to be reordered, and a pair of registers per sum
// stays in the register file.
template <int kCount>
struct CandidateSums {
  static_assert(kCount % 8 == 0);
  float inverse[kCount];
  float q[kCount];   // sum of q
  float qq[kCount];  // sum of q^2
  float xq[kCount];  // sum of x q
};

template <int kN, int kCount>
void SumCandidates(const float* x, float base, float low, float high, CandidateSums<kCount>* sums) {
  const Float4 lows = Float4{} + low;
  const Float4 highs = Float4{} + high;
  const Float4 magic = Float4{} + kRoundMagic;
  for (int first = 0; first < kCount; first += 8) {
    Float4 inverse[2];
    Float4 q[2] = {};
    Float4 qq[2] = {};
    Float4 xq[2] = {};
    std::memcpy(inverse, sums->inverse + first, sizeof(inverse));
    for (int i = 0; i < kN; ++i) {
      for (int v = 0; v < 2; ++v) {
        Float4 code = (x[i] - base) * inverse[v];
        code = (code + magic) - magic;
        code = code > lows ? code : lows;
        code = code < highs ? code : highs;
        q[v] += code;
        qq[v] += code * code;
        xq[v] += x[i] * code;
      }
    }
    std::memcpy(sums->q + first, q, sizeof(q));
    std::memcpy(sums->qq + first, qq, sizeof(qq));
    std::memcpy(sums->xq + first, xq, sizeof(xq));
  }
}

// Scale s that minimises sum (x - s q)^2 over the candidates; q = clamp(round(x / s), -kLevels, kLevels - 1).
// For given q the best s is sum(x q) / sum(q^2), which lowers the squared error by sum(x q)^2 / sum(q^2).
// The candidates put the largest element at -(kLevels + t) or kLevels + t for small t of both signs: a little beyond
// the range clips it and makes the steps finer, a little inside lets rounding meet the block's other elements better.
template <int kN, int kLevels>
float SearchScale(const float* x) {
  float extreme = 0.0f;
  for (int i = 0; i < kN; ++i) {
    extreme = std::fabs(x[i]) > std::fabs(extreme) ? x[i] : extreme;
  }
  if (std::fabs(extreme) < kTiny) {
    return 0.0f;
  }
  constexpr int kSide = 20;
  CandidateSums<2 * kSide> sums;
  for (int k = 0; k < kSide; ++k) {
    // 7.1 to 9.0 for 4 bits, 31.1 to 33.0 for 6.
    const float levels = static_cast<float>(kLevels) + 0.1f * static_cast<float>(k - 9);
    sums.inverse[k] = -levels / extreme;
    sums.inverse[k + kSide] = levels / extreme;
  }
  SumCandidates<kN>(x, 0.0f, -1.0f * kLevels, kLevels - 1.0f, &sums);
  float best_scale = -extreme / kLevels;
  float best_gain = -1.0f;
  for (int k = 0; k < 2 * kSide; ++k) {
    if (sums.qq[k] > 0.0f && sums.xq[k] * sums.xq[k] > best_gain * sums.qq[k]) {
      best_gain = sums.xq[k] * sums.xq[k] / sums.qq[k];
      best_scale = sums.xq[k] / sums.qq[k];
    }
  }
  return best_scale;
}

void QuantizeQ8_0(const float* x, uint8_t* block) {
  float largest = 0.0f;
  for (int i = 0; i < 32; ++i) {
    largest = std::max(largest, std::fabs(x[i]));
  }
  // 8 bits leave nothing to search for: the error is that of rounding at +-127 steps.
  const uint16_t scale = FloatToHalf(largest / 127.0f);
  StoreU16(scale, block);
  Encode<32>(x, largest / 127.0f, -127.0f, 127.0f, reinterpret_cast<int8_t*>(block + 2));
}

void QuantizeQ4_0(const float* x, uint8_t* block) {
  const uint16_t scale = FloatToHalf(SearchScale<32, 8>(x));
  StoreU16(scale, block);
  int8_t codes[32];
  Encode<32>(x, HalfToFloat(scale), -8.0f, 7.0f, codes);
  for (int i = 0; i < 16; ++i) {
    block[2 + i] = static_cast<uint8_t>((codes[i] + 8) | (codes[i + 16] + 8) << 4);
  }
}

// Q6_K, 256 elements: 16 groups of 16; value = d * scale[g] * (code - 32), scale a signed byte.
// Bytes: low nibbles (128), high pairs (64), scales (16), d (2).
void QuantizeQ6K(const float* x, uint8_t* block) {
  float scales[16];
  float extreme = 0.0f;
  for (int g = 0; g < 16; ++g) {
    scales[g] = SearchScale<16, 32>(x + 16 * g);
    extreme = std::fabs(scales[g]) > std::fabs(extreme) ? scales[g] : extreme;
  }
  // The largest scale becomes -128, the longer side of the byte.
  const uint16_t d_half = FloatToHalf(-extreme / 128.0f);
  const float d = HalfToFloat(d_half);
  const float inverse = d != 0.0f ? 1.0f / d : 0.0f;
  int8_t codes[256];
  for (int g = 0; g < 16; ++g) {
    const float scale = std::min(127.0f, std::max(-128.0f, Round(scales[g] * inverse)));
    block[192 + g] = static_cast<uint8_t>(static_cast<int8_t>(scale));
    Encode<16>(x + 16 * g, d * scale, -32.0f, 31.0f, codes + 16 * g);
  }
  StoreU16(d_half, block + 208);
  // Each half of the block: 128 codes, whose low nibbles fill 64 bytes and whose high pairs fill 32.
  for (int half = 0; half < 2; ++half) {
    const int8_t* c = codes + 128 * half;
    uint8_t* low = block + 64 * half;
    uint8_t* high = block + 128 + 32 * half;
    for (int i = 0; i < 32; ++i) {
      const int q0 = c[i] + 32;
      const int q1 = c[i + 32] + 32;
      const int q2 = c[i + 64] + 32;
      const int q3 = c[i + 96] + 32;
      low[i] = static_cast<uint8_t>((q0 & 15) | (q2 & 15) << 4);
      low[i + 32] = static_cast<uint8_t>((q1 & 15) | (q3 & 15) << 4);
      high[i] = static_cast<uint8_t>(q0 >> 4 | (q1 >> 4) << 2 | (q2 >> 4) << 4 | (q3 >> 4) << 6);
    }
  }
}

// value = scale * q - min, q = 0..15, scale >= 0, min >= 0.
struct AffineScale {
  float scale = 0.0f;
  float min = 0.0f;
};

// Scale and min that minimise sum (x - (s q - m))^2 over 32 elements. For given q both follow from the normal
// equations of a line fit; where the fitted min would be negative it is 0 (the format stores it unsigned).
AffineScale SearchAffine(const float* x) {
  float low = 0.0f;
  float high = 0.0f;
  float sum_x = 0.0f;
  float sum_xx = 0.0f;
  for (int i = 0; i < 32; ++i) {
    low = std::min(low, x[i]);
    high = std::max(high, x[i]);
    sum_x += x[i];
    sum_xx += x[i] * x[i];
  }
  const float range = high - low;
  if (range < kTiny) {
    return {};
  }
  CandidateSums<24> sums;
  for (int k = 0; k < 24; ++k) {
    sums.inverse[k] = (13.6f + 0.1f * static_cast<float>(k)) / range;  // 15 is the plain choice
  }
  SumCandidates<32>(x, low, 0.0f, 15.0f, &sums);
  AffineScale best = {range / 15.0f, -low};
  float best_error = INFINITY;
  for (int k = 0; k < 24; ++k) {
    const float q = sums.q[k];
    const float qq = sums.qq[k];
    const float xq = sums.xq[k];
    const float determinant = 32.0f * qq - q * q;
    if (determinant <= 0.0f) {
      continue;
    }
    float scale = (32.0f * xq - sum_x * q) / determinant;
    float min = (q * xq - qq * sum_x) / determinant;
    if (min < 0.0f) {
      min = 0.0f;
      scale = xq / qq;
    }
    if (scale <= 0.0f) {
      continue;
    }
    // sum (x - s q + m)^2, expanded.
    const float error = sum_xx + scale * scale * qq + 32.0f * min * min - 2.0f * scale * xq + 2.0f * min * sum_x -
                        2.0f * scale * min * q;
    if (error < best_error) {
      best_error = error;
      best = {scale, min};
    }
  }
  return best;
}

// Q4_K, 256 elements: 8 groups of 32; value = d * scale[g] * code - m * min[g], scale and min of six bits.
// Bytes: d (2), m (2), scales and mins (12), nibbles (128: element i of an even group low, of the next one high).
void QuantizeQ4K(const float* x, uint8_t* block) {
  AffineScale groups[8];
  float scale_max = 0.0f;
  float min_max = 0.0f;
  for (int g = 0; g < 8; ++g) {
    groups[g] = SearchAffine(x + 32 * g);
    scale_max = std::max(scale_max, groups[g].scale);
    min_max = std::max(min_max, groups[g].min);
  }
  const uint16_t d_half = FloatToHalf(scale_max / 63.0f);
  const uint16_t m_half = FloatToHalf(min_max / 63.0f);
  const float d = HalfToFloat(d_half);
  const float m = HalfToFloat(m_half);
  StoreU16(d_half, block);
  StoreU16(m_half, block + 2);
  uint8_t scale_codes[8];
  uint8_t min_codes[8];
  int8_t codes[256];
  for (int g = 0; g < 8; ++g) {
    const float scale = d > 0.0f ? std::min(63.0f, Round(groups[g].scale / d)) : 0.0f;
    const float min = m > 0.0f ? std::min(63.0f, Round(groups[g].min / m)) : 0.0f;
    scale_codes[g] = static_cast<uint8_t>(scale);
    min_codes[g] = static_cast<uint8_t>(min);
    float shifted[32];
    for (int i = 0; i < 32; ++i) {
      shifted[i] = x[32 * g + i] + m * min;
    }
    Encode<32>(shifted, d * scale, 0.0f, 15.0f, codes + 32 * g);
  }
  // Groups 0..3: six bits in bytes 4..7 (scales) and 8..11 (mins). Groups 4..7: low nibbles in bytes 12..15, the upper
  // two bits above those of groups 0..3.
  for (int g = 0; g < 4; ++g) {
    block[4 + g] = static_cast<uint8_t>(scale_codes[g] | (scale_codes[g + 4] >> 4) << 6);
    block[8 + g] = static_cast<uint8_t>(min_codes[g] | (min_codes[g + 4] >> 4) << 6);
    block[12 + g] = static_cast<uint8_t>((scale_codes[g + 4] & 15) | (min_codes[g + 4] & 15) << 4);
  }
  for (int pair = 0; pair < 4; ++pair) {
    for (int i = 0; i < 32; ++i) {
      block[16 + 32 * pair + i] = static_cast<uint8_t>(codes[64 * pair + i] | codes[64 * pair + 32 + i] << 4);
    }
  }
}

void QuantizeF16(const float* x, uint8_t* block) { StoreU16(FloatToHalf(*x), block); }
void QuantizeBf16(const float* x, uint8_t* block) { StoreU16(FloatToBfloat16(*x), block); }
void QuantizeF32(const float* x, uint8_t* block) { std::memcpy(block, x, sizeof(*x)); }

using BlockQuantizer = void (*)(const float* x, uint8_t* block);

BlockQuantizer FindQuantizer(TensorType type) {
  switch (type) {
    case TensorType::kF32:
      return QuantizeF32;
    case TensorType::kF16:
      return QuantizeF16;
    case TensorType::kBF16:
      return QuantizeBf16;
    case TensorType::kQ8_0:
      return QuantizeQ8_0;
    case TensorType::kQ4_0:
      return QuantizeQ4_0;
    case TensorType::kQ4_K:
      return QuantizeQ4K;
    case TensorType::kQ6_K:
      return QuantizeQ6K;
    default:
      return nullptr;
  }
}

}  // namespace

bool IsWritableType(TensorType type) { return FindQuantizer(type) != nullptr; }

TensorType FittingType(TensorType wanted, uint64_t cols) {
  if (cols % storage::TraitsOf(wanted).block_elements == 0) {
    return wanted;
  }
  const TensorType next = wanted == TensorType::kQ4_K ? TensorType::kQ4_0 : TensorType::kQ8_0;
  return cols % storage::TraitsOf(next).block_elements == 0 ? next : TensorType::kF16;
}

absl::Status QuantizeRow(TensorType type, const float* x, int64_t n, uint8_t* blocks) {
  const BlockQuantizer quantize = FindQuantizer(type);
  const storage::TensorTypeTraits& traits = storage::TraitsOf(type);
  if (quantize == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("no quantiser for ", traits.name));
  }
  if (n < 0 || n % traits.block_elements != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("a row of ", n, " elements is no whole number of ", traits.name, " blocks"));
  }
  if (type == TensorType::kF32) {
    std::memcpy(blocks, x, static_cast<size_t>(n) * sizeof(float));
    return absl::OkStatus();
  }
  for (int64_t i = 0; i < n; i += traits.block_elements, blocks += traits.block_bytes) {
    quantize(x + i, blocks);
  }
  return absl::OkStatus();
}

}  // namespace embergate::engine
