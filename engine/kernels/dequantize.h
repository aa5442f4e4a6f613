// What the bytes of a quantised block mean: one decoder per GGUF type takes a block apart into its small integers,
// from which both DequantizeRow (declared in kernels.h) and the repacking of weights are made.
// Source of the layouts: the GGUF format as ggml defines it (block structs and reference dequantisers).
#ifndef EMBERGATE_ENGINE_KERNELS_DEQUANTIZE_H_
#define EMBERGATE_ENGINE_KERNELS_DEQUANTIZE_H_

#include <cstdint>

#include "storage/tensor_type.h"

namespace embergate::engine {

// Value of element i of a block, with g = i / QuantFormat::group:
//   (level(code[i])) * (d * scale[g]) + min_sign * (m * min[g])
// where level(c) = c - bias, or kIq4Levels[c] for code-book types, or the signed byte for 8-bit types.
// Types with one f16 scale per 32 have scale[g] = min[g] = 1 (and a min that is added, not subtracted).
struct BlockCodes {
  uint16_t d = 0;     // f16 bits
  uint16_t m = 0;     // f16 bits: min of the group, or factor of the mins
  uint8_t code[256];  // 0..15, 0..31, 0..63 or a two's complement byte
  int8_t scale[16];   // per group of 16 or 32
  uint8_t min[16];
};

inline constexpr int kQuantFormatCount = 12;

// The constants of a quantised type.
struct QuantFormat {
  int index;  // in tables of kernels: 0..kQuantFormatCount-1
  storage::TensorType type;
  int block;        // elements per block
  int low_bits;     // 2, 4 or 8: bits of a code in the low plane
  int high_bits;    // 0, 1 or 2: bits above those
  bool code_book;   // codes index kIq4Levels
  int group;        // elements sharing a scale: 32 or 16
  int bias;         // subtracted from a code in the integer product (see packed_format.h)
  bool sub_scales;  // scale = d * small integer, one d per 256; otherwise one f16 per group
  bool has_min;
};

// Null for F32, F16, BF16 and for types that are not served.
const QuantFormat* FindQuantFormat(storage::TensorType type);

extern const int8_t kIq4Levels[16];

// Takes apart one block of `format.type`.
void DecodeBlock(const QuantFormat& format, const uint8_t* block, BlockCodes* codes);

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_KERNELS_DEQUANTIZE_H_
