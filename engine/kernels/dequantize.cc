#include "engine/kernels/dequantize.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>

#include "engine/kernels/float16.h"
#include "engine/kernels/kernels.h"

namespace embergate::engine {

using storage::TensorType;

const int8_t kIq4Levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

namespace {

// Columns: index, type, block, low_bits, high_bits, code_book, group, bias, sub_scales, has_min.
constexpr std::array kFormats = {
    QuantFormat{0, TensorType::kQ4_0, 32, 4, 0, false, 32, 8, false, false},
    QuantFormat{1, TensorType::kQ4_1, 32, 4, 0, false, 32, 0, false, true},
    QuantFormat{2, TensorType::kQ5_0, 32, 4, 1, false, 32, 16, false, false},
    QuantFormat{3, TensorType::kQ5_1, 32, 4, 1, false, 32, 16, false, true},
    QuantFormat{4, TensorType::kQ8_0, 32, 8, 0, false, 32, 0, false, false},
    QuantFormat{5, TensorType::kQ2_K, 256, 2, 0, false, 16, 0, true, true},
    QuantFormat{6, TensorType::kQ3_K, 256, 2, 1, false, 16, 4, true, false},
    QuantFormat{7, TensorType::kQ4_K, 256, 4, 0, false, 32, 0, true, true},
    QuantFormat{8, TensorType::kQ5_K, 256, 4, 1, false, 32, 16, true, true},
    QuantFormat{9, TensorType::kQ6_K, 256, 4, 2, false, 16, 32, true, false},
    QuantFormat{10, TensorType::kIQ4_NL, 32, 4, 0, true, 32, 0, false, false},
    QuantFormat{11, TensorType::kIQ4_XS, 256, 4, 0, true, 32, 0, true, false},
};
static_assert(kFormats.size() == kQuantFormatCount);

void SplitNibbles(const uint8_t* bytes, int n, uint8_t* low, uint8_t* high) {
  for (int i = 0; i < n; ++i) {
    low[i] = bytes[i] & 15;
    high[i] = bytes[i] >> 4;
  }
}

// 12 bytes hold 8 six-bit scales and 8 six-bit mins: the first four of each in the low six bits of bytes 0..3 and
// 4..7; the others as nibbles in bytes 8..11, their upper two bits above those of bytes 0..7.
void UnpackSixBitScales(const uint8_t* p, int8_t* scale, uint8_t* min) {
  for (int j = 0; j < 4; ++j) {
    scale[j] = static_cast<int8_t>(p[j] & 63);
    min[j] = p[j + 4] & 63;
    scale[j + 4] = static_cast<int8_t>((p[j + 8] & 15) | (p[j] >> 6) << 4);
    min[j + 4] = static_cast<uint8_t>(p[j + 8] >> 4 | (p[j + 4] >> 6) << 4);
  }
}

// d (2), 16 bytes of nibbles: element i in the low half of byte i, element i + 16 in the high half.
void DecodeNibbles(const uint8_t* p, BlockCodes* out) {
  out->d = LoadU16(p);
  SplitNibbles(p + 2, 16, out->code, out->code + 16);
}

// The same with m (2) after d.
void DecodeNibblesWithMin(const uint8_t* p, BlockCodes* out) {
  out->d = LoadU16(p);
  out->m = LoadU16(p + 2);
  SplitNibbles(p + 4, 16, out->code, out->code + 16);
}

// A fifth bit per element: bit i of a 32-bit word before the nibbles.
void AddFifthBits(const uint8_t* word, BlockCodes* out) {
  for (int i = 0; i < 32; ++i) {
    out->code[i] |= static_cast<uint8_t>((word[i / 8] >> (i % 8) & 1) << 4);
  }
}

// scales (16: nibble scale, nibble min), codes (64: two bits each), d (2), m (2).
void DecodeQ2K(const uint8_t* p, BlockCodes* out) {
  for (int g = 0; g < 16; ++g) {
    out->scale[g] = static_cast<int8_t>(p[g] & 15);
    out->min[g] = p[g] >> 4;
  }
  for (int i = 0; i < 256; ++i) {
    out->code[i] = p[16 + i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
  }
  out->d = LoadU16(p + 80);
  out->m = LoadU16(p + 82);
}

// high bits (32), codes (64), six-bit scales (12), d (2). A set high bit means "do not subtract 4".
void DecodeQ3K(const uint8_t* p, BlockCodes* out) {
  const uint8_t* scales = p + 96;
  for (int g = 0; g < 16; ++g) {
    const int low = g < 8 ? scales[g] & 15 : scales[g - 8] >> 4;
    const int high = scales[8 + g % 4] >> (g / 4 * 2) & 3;
    out->scale[g] = static_cast<int8_t>((low | high << 4) - 32);
  }
  for (int i = 0; i < 256; ++i) {
    const int low = p[32 + i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
    const int high = p[i % 32] >> (i / 32) & 1;
    out->code[i] = static_cast<uint8_t>(low | high << 2);
  }
  out->d = LoadU16(p + 108);
}

// d (2), m (2), scales and mins (12), nibbles (128): 32 bytes hold 32 elements low and the next 32 high.
void DecodeQ4K(const uint8_t* p, BlockCodes* out) {
  out->d = LoadU16(p);
  out->m = LoadU16(p + 2);
  UnpackSixBitScales(p + 4, out->scale, out->min);
  for (int i = 0; i < 4; ++i) {
    SplitNibbles(p + 16 + i * 32, 32, out->code + i * 64, out->code + i * 64 + 32);
  }
}

// As Q4_K with 32 bytes of fifth bits before the nibbles: bit g of byte l belongs to element 32 g + l.
void DecodeQ5K(const uint8_t* p, BlockCodes* out) {
  out->d = LoadU16(p);
  out->m = LoadU16(p + 2);
  UnpackSixBitScales(p + 4, out->scale, out->min);
  for (int i = 0; i < 4; ++i) {
    SplitNibbles(p + 48 + i * 32, 32, out->code + i * 64, out->code + i * 64 + 32);
  }
  for (int i = 0; i < 256; ++i) {
    out->code[i] |= static_cast<uint8_t>((p[16 + i % 32] >> (i / 32) & 1) << 4);
  }
}

// low nibbles (128), upper two bits (64), signed scales (16), d (2). Each half of 128 elements takes 64 bytes of
// nibbles (elements 0..63 low, 64..127 high) and 32 of upper bits (elements l, l+32, l+64, l+96 from bit 0 up).
void DecodeQ6K(const uint8_t* p, BlockCodes* out) {
  for (int half = 0; half < 2; ++half) {
    uint8_t* code = out->code + half * 128;
    SplitNibbles(p + half * 64, 64, code, code + 64);
    const uint8_t* high = p + 128 + half * 32;
    for (int i = 0; i < 128; ++i) {
      code[i] |= static_cast<uint8_t>((high[i % 32] >> (i / 32 * 2) & 3) << 4);
    }
  }
  std::memcpy(out->scale, p + 192, 16);
  out->d = LoadU16(p + 208);
}

// d (2), upper scale bits (2), lower scale nibbles (4), then eight groups of 16 bytes of nibbles.
void DecodeIq4Xs(const uint8_t* p, BlockCodes* out) {
  out->d = LoadU16(p);
  const int high = LoadU16(p + 2);
  for (int g = 0; g < 8; ++g) {
    const int low = p[4 + g / 2] >> (g % 2 * 4) & 15;
    out->scale[g] = static_cast<int8_t>((low | (high >> (2 * g) & 3) << 4) - 32);
    SplitNibbles(p + 8 + g * 16, 16, out->code + g * 32, out->code + g * 32 + 16);
  }
}

void DequantizeBlock(const QuantFormat& format, const uint8_t* block, float* out) {
  BlockCodes codes;
  DecodeBlock(format, block, &codes);
  const float d = HalfToFloat(codes.d);
  const float m = format.has_min ? HalfToFloat(codes.m) : 0.0f;
  for (int g = 0; g < format.block / format.group; ++g) {
    const float scale = format.sub_scales ? d * static_cast<float>(codes.scale[g]) : d;
    const float min = format.sub_scales ? -m * static_cast<float>(codes.min[g]) : m;
    for (int i = g * format.group; i < (g + 1) * format.group; ++i) {
      int level = codes.code[i];
      if (format.code_book) {
        level = kIq4Levels[level];
      } else if (format.low_bits == 8) {
        level = static_cast<int8_t>(codes.code[i]);
      } else if (!format.has_min) {
        level -= format.bias;
      }
      out[i] = format.has_min ? scale * static_cast<float>(level) + min : scale * static_cast<float>(level);
    }
  }
}

// The two types that most tables of per-layer embeddings come in: read for every token, so without the detour.
void DequantizeQ8_0(const uint8_t* p, int64_t n, float* out) {
  for (int64_t b = 0; b < n / 32; ++b, p += 34, out += 32) {
    const float d = LoadHalf(p);
    for (int i = 0; i < 32; ++i) {
      out[i] = d * static_cast<float>(static_cast<int8_t>(p[2 + i]));
    }
  }
}

void DequantizeQ4_0(const uint8_t* p, int64_t n, float* out) {
  for (int64_t b = 0; b < n / 32; ++b, p += 18, out += 32) {
    const float d = LoadHalf(p);
    for (int i = 0; i < 16; ++i) {
      out[i] = d * static_cast<float>((p[2 + i] & 15) - 8);
      out[i + 16] = d * static_cast<float>((p[2 + i] >> 4) - 8);
    }
  }
}

}  // namespace

const QuantFormat* FindQuantFormat(TensorType type) {
  for (const QuantFormat& format : kFormats) {
    if (format.type == type) {
      return &format;
    }
  }
  return nullptr;
}

void DecodeBlock(const QuantFormat& format, const uint8_t* p, BlockCodes* out) {
  switch (format.type) {
    case TensorType::kQ4_0:
    case TensorType::kIQ4_NL:
      return DecodeNibbles(p, out);
    case TensorType::kQ4_1:
      return DecodeNibblesWithMin(p, out);
    case TensorType::kQ5_0:
      out->d = LoadU16(p);
      SplitNibbles(p + 6, 16, out->code, out->code + 16);
      return AddFifthBits(p + 2, out);
    case TensorType::kQ5_1:
      out->d = LoadU16(p);
      out->m = LoadU16(p + 2);
      SplitNibbles(p + 8, 16, out->code, out->code + 16);
      return AddFifthBits(p + 4, out);
    case TensorType::kQ8_0:
      out->d = LoadU16(p);
      std::memcpy(out->code, p + 2, 32);
      return;
    case TensorType::kQ2_K:
      return DecodeQ2K(p, out);
    case TensorType::kQ3_K:
      return DecodeQ3K(p, out);
    case TensorType::kQ4_K:
      return DecodeQ4K(p, out);
    case TensorType::kQ5_K:
      return DecodeQ5K(p, out);
    case TensorType::kQ6_K:
      return DecodeQ6K(p, out);
    case TensorType::kIQ4_XS:
      return DecodeIq4Xs(p, out);
    default:
      std::abort();  // FindQuantFormat knows no such format: a bug, never a file's doing
  }
}

bool IsSupportedWeightType(TensorType type) {
  return type == TensorType::kF32 || type == TensorType::kF16 || type == TensorType::kBF16 ||
         FindQuantFormat(type) != nullptr;
}

void DequantizeRow(TensorType type, const uint8_t* blocks, int64_t n, float* out) {
  switch (type) {
    case TensorType::kF32:
      std::memcpy(out, blocks, static_cast<size_t>(n) * sizeof(float));
      return;
    case TensorType::kF16:
      for (int64_t i = 0; i < n; ++i) {
        out[i] = LoadHalf(blocks + 2 * i);
      }
      return;
    case TensorType::kBF16:
      for (int64_t i = 0; i < n; ++i) {
        out[i] = Bfloat16ToFloat(LoadU16(blocks + 2 * i));
      }
      return;
    case TensorType::kQ8_0:
      return DequantizeQ8_0(blocks, n, out);
    case TensorType::kQ4_0:
      return DequantizeQ4_0(blocks, n, out);
    default:
      break;
  }
  const QuantFormat* format = FindQuantFormat(type);
  if (format == nullptr) {
    std::abort();  // callers ask IsSupportedWeightType when they open the file
  }
  const int64_t block_bytes = storage::TraitsOf(type).block_bytes;
  for (int64_t b = 0; b < n / format->block; ++b) {
    DequantizeBlock(*format, blocks + b * block_bytes, out + b * format->block);
  }
}

}  // namespace embergate::engine
