// How a ColumnMatrix of Q4_0 lies in memory, and the kernel that multiplies it. Internal to engine/kernels.
//
// 256 rows make a tile, 32 columns a group; tiles follow one another, a tile's groups too:
//
//   group:  32 columns of 128 bytes | 256 scales, f16, one a row
//   column: rows 0..127 in 64 bytes | rows 128..255 in 64 bytes
//   64 bytes: a low and a high nibble each. Byte 16 i + j, i < 4, j < 16, holds
//             row 8 i + j        (j < 8) or 32 + 8 i + j - 8  (j >= 8)  in its low nibble,
//             that row + 64                                             in its high nibble.
//
// A column of a tile is two cache lines, aligned together: what a processor that fetches lines in pairs brings anyway.
// The order of rows is undone by interleaving the bytes of two columns in lanes of 16 bytes (or of one column with
// zeros): the lower halves become rows in order, the upper halves the 32 rows after them.
#ifndef EMBERGATE_ENGINE_KERNELS_COLUMN_FORMAT_H_
#define EMBERGATE_ENGINE_KERNELS_COLUMN_FORMAT_H_

#include <cstdint>

#include "engine/kernels/packed_format.h"

namespace embergate::engine {

inline constexpr int kTileRows = 256;
inline constexpr int kHalfRows = 128;  // of a tile: 64 bytes of a column
inline constexpr int kColumnBytes = kTileRows / 2;
inline constexpr int kTileScalesOffset = kUnitCols * kColumnBytes;
inline constexpr int kTileGroupBytes = kTileScalesOffset + 2 * kTileRows;

// One token's part of one group of a tile: acc[r] = fma(f32(sum_c (code - 8) q[c]) * scale[r], x->scale, acc[r]).
struct ColumnTask {
  const uint8_t* group;     // of the tile
  const ActivationUnit* x;  // its q and scale
  const uint8_t* columns;   // those with q != 0
  int count;                // 1 to 32
  int16_t init;             // -8 * sum of q; the exact total fits 16 bits (32 * 8 * 127), so sums may wrap
  float* acc;               // [256], aligned to 64 bytes
};

struct SparseTable {
  void (*columns)(const ColumnTask& task);
};

extern const SparseTable kRefSparse;
#if defined(__x86_64__)
extern const SparseTable kAvx2Sparse;
extern const SparseTable kAvx512Sparse;
#elif defined(__aarch64__)
extern const SparseTable kNeonSparse;
#endif

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_KERNELS_COLUMN_FORMAT_H_
