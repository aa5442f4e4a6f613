// The products as packed_format.h defines them, one number at a time.
#include <algorithm>
#include <cmath>

#include "engine/kernels/float16.h"
#include "engine/kernels/kernel_table.h"

namespace embergate::engine {
namespace {

constexpr int kTokensMax = 4;

void RefExpandScales(const QuantFormat& format, const uint8_t* scales, int units, float* scale, float* min) {
  const int per_unit = kUnitCols / format.group;
  for (int64_t g = 0; g < units * per_unit; ++g) {
    for (int row = 0; row < kPanelRows; ++row, ++scale, ++min) {
      float m = 0;
      if (format.sub_scales) {
        const int groups = 256 / format.group;
        const uint8_t* block = scales + g / groups * SubScaleBlockBytes(format);
        const uint8_t* factors = block + groups * kPanelRows * (format.has_min ? 2 : 1);
        const int64_t at = g % groups * kPanelRows + row;
        *scale = LoadHalf(factors + 2 * row) * static_cast<float>(static_cast<int8_t>(block[at]));
        if (format.has_min) {
          m = -LoadHalf(factors + 2 * (kPanelRows + row)) * static_cast<float>(block[groups * kPanelRows + at]);
        }
      } else {
        *scale = LoadHalf(scales + 2 * (g * kPanelRows + row));
        if (format.has_min) {
          m = LoadHalf(scales + 2 * ((units + g) * kPanelRows + row));
        }
      }
      if (format.has_min) {
        *min = std::fma(static_cast<float>(format.bias), *scale, m);
      }
    }
  }
}

int CodeAt(const uint8_t* plane, int bits, int row, int col) {
  const int c = col / 4;
  return plane[c % bits * kChunkBytes + row * 4 + col % 4] >> (bits * (c / bits)) & ((1 << bits) - 1);
}

struct Kind {
  int low_bits;
  int high_bits;
  bool code_book;
  int group;
};

// The code, or for types with signed levels the level.
template <Kind kKind>
int Level(const uint8_t* low, const uint8_t* high, int row, int col) {
  int code = CodeAt(low, kKind.low_bits, row, col);
  if constexpr (kKind.high_bits > 0) {
    code |= CodeAt(high, kKind.high_bits, row, col) << kKind.low_bits;
  }
  if constexpr (kKind.code_book) {
    return kIq4Levels[code];
  }
  return kKind.low_bits == 8 ? static_cast<int8_t>(code) : code;
}

template <Kind kKind>
void RefPacked(const QuantTile& tile) {
  constexpr int kGroups = kUnitCols / kKind.group;
  for (int t = 0; t < tile.tokens; ++t) {
    for (int row = 0; row < kPanelRows; ++row) {
      float* out = tile.acc + t * tile.acc_stride + row;
      float acc = tile.first ? 0.0f : *out;
      for (int u = 0; u < tile.units; ++u) {
        const ActivationUnit& x = tile.x[t * tile.x_stride + u];
        const uint8_t* low = tile.low + u * kChunkBytes * kKind.low_bits;
        const uint8_t* high = tile.high + u * kChunkBytes * kKind.high_bits;
        for (int g = 0; g < kGroups; ++g) {
          int32_t sum = x.init[g];
          for (int col = g * kKind.group; col < (g + 1) * kKind.group; ++col) {
            sum += Level<kKind>(low, high, row, col) * x.q[col];
          }
          const int at = (u * kGroups + g) * kPanelRows + row;
          acc = std::fma(static_cast<float>(sum) * tile.scale[at], x.scale, acc);
          if (tile.min != nullptr) {
            acc = std::fma(tile.min[at], kGroups == 1 ? x.sum : x.half_sum[g], acc);
          }
        }
      }
      *out = acc;
    }
  }
}

template <Kind kKind>
void RefUnpack(const uint8_t* low, const uint8_t* high, int units, uint8_t* out) {
  for (int u = 0; u < units; ++u) {
    for (int i = 0; i < kUnpackedUnitBytes; ++i) {
      const int row = i % kChunkBytes / 4;
      const int col = i / kChunkBytes * 4 + i % 4;
      *out++ = static_cast<uint8_t>(
          Level<kKind>(low + u * kChunkBytes * kKind.low_bits, high + u * kChunkBytes * kKind.high_bits, row, col));
    }
  }
}

template <Kind kKind>
constexpr QuantKernels Make(int bias) {
  return {RefPacked<kKind>, RefUnpack<kKind>, RefPacked<Kind{8, 0, false, kKind.group}>, bias};
}

float FromF32(const uint8_t* p) { return FloatFromBits(static_cast<uint32_t>(LoadU16(p) | LoadU16(p + 2) << 16)); }
float FromBf16(const uint8_t* p) { return Bfloat16ToFloat(LoadU16(p)); }

template <float (*kLoad)(const uint8_t*), int kBytes>
void RefFloat(const FloatTile& tile) {
  for (int t = 0; t < tile.tokens; ++t) {
    for (int row = 0; row < kPanelRows; ++row) {
      float* out = tile.acc + t * tile.acc_stride + row;
      float acc = tile.first ? 0.0f : *out;
      for (int64_t begin = 0; begin < tile.cols; begin += kFloatRun) {
        float run = 0;
        for (int64_t c = begin; c < std::min<int64_t>(begin + kFloatRun, tile.cols); ++c) {
          run = std::fma(kLoad(tile.w + (c * kPanelRows + row) * kBytes), tile.x[t * tile.x_stride + c], run);
        }
        acc += run;
      }
      *out = acc;
    }
  }
}

void RefQuantize(const float* x, int64_t cols, ActivationUnit* out) {
  for (int64_t u = 0; u < cols / kUnitCols; ++u, x += kUnitCols, ++out) {
    // By bit pattern, so that a NaN counts as largest and shows in the result.
    uint32_t bits = 0;
    for (int i = 0; i < kUnitCols; ++i) {
      bits = std::max(bits, BitsOfFloat(x[i]) & 0x7fffffffu);
    }
    const float largest = FloatFromBits(bits);
    // Below this the inverse overflows; such activations are zero for every purpose.
    const float inverse = largest < 1e-30f ? 0.0f : 127.0f / largest;
    out->scale = largest < 1e-30f ? 0.0f : largest / 127.0f;
    for (int h = 0; h < 2; ++h) {
      int pairs[2] = {0, 0};
      for (int i = 16 * h; i < 16 * h + 16; ++i) {
        const float scaled = x[i] * inverse;
        const float bounded = scaled > 127.0f ? 127.0f : scaled >= -127.0f ? scaled : -127.0f;
        out->q[i] = static_cast<int8_t>(std::nearbyint(bounded));
        pairs[i % 4 / 2] += out->q[i];
      }
      out->pairs[h][0] = static_cast<int16_t>(pairs[0]);
      out->pairs[h][1] = static_cast<int16_t>(pairs[1]);
      out->half_sum[h] = out->scale * static_cast<float>(pairs[0] + pairs[1]);
    }
    const int sum = out->pairs[0][0] + out->pairs[0][1] + out->pairs[1][0] + out->pairs[1][1];
    out->sum = out->scale * static_cast<float>(sum);
  }
}

}  // namespace

const MatMulTable kRefMatMul = {
    kTokensMax,
    kTokensMax,
    1,
    kTokensMax,
    InitForm::kTotals,
    {Make<Kind{4, 0, false, 32}>(8), Make<Kind{4, 0, false, 32}>(0), Make<Kind{4, 1, false, 32}>(16),
     Make<Kind{4, 1, false, 32}>(16), Make<Kind{8, 0, false, 32}>(0), Make<Kind{2, 0, false, 16}>(0),
     Make<Kind{2, 1, false, 16}>(4), Make<Kind{4, 0, false, 32}>(0), Make<Kind{4, 1, false, 32}>(16),
     Make<Kind{4, 2, false, 16}>(32), Make<Kind{4, 0, true, 32}>(0), Make<Kind{4, 0, true, 32}>(0)},
    RefFloat<FromF32, 4>,
    RefFloat<LoadHalf, 2>,
    RefFloat<FromBf16, 2>,
    RefExpandScales,
    RefQuantize,
};

}  // namespace embergate::engine
