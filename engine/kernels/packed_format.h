// The order in which the kernels read weights and activations. Internal to engine/kernels.
//
// Weights. 16 rows make a panel, 32 columns a unit; a unit of a panel is eight chunks of 4 columns:
//
//   chunk c, as 64 bytes:   row 0: cols 4c..4c+3 | row 1: cols 4c..4c+3 | ... | row 15: cols 4c..4c+3
//
// which is one AVX-512 register, two of AVX2, four of NEON, and what each multiplies by 4 broadcast activations.
// Codes of fewer than 8 bits are stored in planes of B bits (B = 1, 2, 4, 8): a unit of a plane has B vectors of 64
// bytes, and chunk c lies in vector c % B, bits B * (c / B) upwards of each byte. A 5-bit code is a 4-bit plane and a
// 1-bit plane, a 6-bit one 4 + 2, and so on: memory is what the file's type takes.
//
// A panel's bytes: blocks of kBlockUnits units (the last may be shorter), each [scales][low plane][high plane], every
// part 64-byte aligned. So a panel, and a range of panels, is read from its first byte to its last in order: with the
// scales apart from the planes one token reached 84 % of what a core can read here, in one stream 91 %.
// Scales, types with one f16 per 32:   d[unit][16 rows] f16, then m[unit][16] f16 if the type has mins.
// Scales, types with sub-scales, for each 256 columns: scale[256/group][16] i8, min[256/group][16] u8 if it has mins,
//   d[16] f16, m[16] f16 if it has mins.
// F32, F16, BF16: [col][16 rows] elements.
//
// The product of a unit, the same on every instruction set and for any number of tokens, so that all agree bit for bit:
//   i   = sum over the group of (code - bias) * q               exact integer
//   acc = fma(f32(i) * scale, x.scale, acc)                     once per group of 32 or 16, in order
//   acc = fma(min', x.sum, acc)                                 types with mins; min' = min + bias * scale
#ifndef EMBERGATE_ENGINE_KERNELS_PACKED_FORMAT_H_
#define EMBERGATE_ENGINE_KERNELS_PACKED_FORMAT_H_

#include <cstddef>
#include <cstdint>

#include "engine/kernels/dequantize.h"

namespace embergate::engine {

inline constexpr int kPanelRows = 16;
inline constexpr int kUnitCols = 32;
inline constexpr int kChunkBytes = 64;
// Columns are taken in blocks of this many units: their f32 scales, and for many tokens their codes as bytes (8 KiB a
// panel), stay in the first-level cache.
inline constexpr int kBlockUnits = 16;
inline constexpr int kUnpackedUnitBytes = kPanelRows * kUnitCols;
// Products with 16- and 32-bit float weights add up columns in runs of this length, then the runs, in order.
inline constexpr int kFloatRun = 128;

// 32 activations of one token: one cache line.
struct alignas(64) ActivationUnit {
  int8_t q[32];         // round(x / scale), in [-127, 127]
  float scale;          // largest |x| / 127
  float sum;            // scale * (sum of q)
  float half_sum[2];    // the same for columns 0..15 and 16..31
  int32_t init[2];      // what integer accumulators start from: -bias * sum of q; see InitForm
  int16_t pairs[2][2];  // sums of q per half over columns with (column % 4) < 2 and >= 2
};
static_assert(sizeof(ActivationUnit) == 64);

// How ActivationUnit::init is laid out. Groups of 32 use init[0] alone, groups of 16 one each.
enum class InitForm {
  kPairs,        // two i16: -bias * the sums in `pairs`, modulo 2^16 (kernels that add up products in 16 bits)
  kTotals,       // one i32
  kMagicTotals,  // one i32 added to the bits of the float 1.5 * 2^23
};

// Sums that the integer kernels distinguish. Kernels for code-book and 8-bit types take signed levels.
inline bool HasSignedLevels(const QuantFormat& format) { return format.code_book || format.low_bits == 8; }

// Bytes of scales for 256 columns of a panel of a type with sub-scales.
inline int64_t SubScaleBlockBytes(const QuantFormat& format) {
  const int64_t per_kind = 256 / format.group * kPanelRows + 2 * kPanelRows;
  return format.has_min ? 2 * per_kind : per_kind;
}

// Where things lie inside a panel, in bytes.
struct PanelLayout {
  int64_t units = 0;
  int64_t low_unit_bytes = 0;
  int64_t high_unit_bytes = 0;
  int64_t block_bytes = 0;       // from one block to the next
  int64_t last_block_units = 0;  // of the last block
  int64_t low_offset = 0;        // from the start of a block to its low plane: whole blocks, and the last one
  int64_t last_low_offset = 0;
  int64_t panel_bytes = 0;
};

// One block of a panel.
struct PanelBlock {
  int units;
  const uint8_t* scales;
  const uint8_t* low;
  const uint8_t* high;
};

// `unit` is a multiple of kBlockUnits.
inline PanelBlock BlockOf(const PanelLayout& layout, const uint8_t* panel, int64_t unit) {
  const bool last = unit + kBlockUnits >= layout.units;
  const int64_t units = last ? layout.last_block_units : kBlockUnits;
  const uint8_t* scales = panel + unit / kBlockUnits * layout.block_bytes;
  const uint8_t* low = scales + (last ? layout.last_low_offset : layout.low_offset);
  return {static_cast<int>(units), scales, low, low + units * layout.low_unit_bytes};
}

inline PanelLayout MakePanelLayout(const QuantFormat& format, int64_t cols) {
  const auto scale_bytes = [&](int64_t units) {
    const int64_t bytes =
        format.sub_scales ? units / 8 * SubScaleBlockBytes(format) : units * 2 * kPanelRows * (format.has_min ? 2 : 1);
    return (bytes + 63) / 64 * 64;
  };
  PanelLayout layout;
  layout.units = cols / kUnitCols;
  layout.low_unit_bytes = int64_t{kChunkBytes} * format.low_bits;
  layout.high_unit_bytes = int64_t{kChunkBytes} * format.high_bits;
  const int64_t plane_bytes = layout.low_unit_bytes + layout.high_unit_bytes;
  const int64_t whole_blocks = (layout.units - 1) / kBlockUnits;
  layout.last_block_units = layout.units - whole_blocks * kBlockUnits;
  layout.low_offset = scale_bytes(kBlockUnits);
  layout.last_low_offset = scale_bytes(layout.last_block_units);
  layout.block_bytes = layout.low_offset + kBlockUnits * plane_bytes;
  layout.panel_bytes =
      whole_blocks * layout.block_bytes + layout.last_low_offset + layout.last_block_units * plane_bytes;
  return layout;
}

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_KERNELS_PACKED_FORMAT_H_
