// Fast ways between the file's rows, panels (packed_format.h) and tiles of columns (column_format.h), for types whose
// codes move as whole words or nibbles. Plain vector code of the compiler's, on every architecture. Internal to
// engine/kernels.
#ifndef EMBERGATE_ENGINE_KERNELS_PANEL_PACK_H_
#define EMBERGATE_ENGINE_KERNELS_PANEL_PACK_H_

#include <cstdint>

#include "engine/kernels/packed_format.h"
#include "storage/tensor_type.h"

namespace embergate::engine {

// Whether PackPanel takes the type: Q4_0, IQ4_NL (nibbles paired as the plane pairs them) and Q8_0 (whole bytes).
bool HasWordCodes(storage::TensorType type);
// Writes a whole panel from 16 rows as the file stores them; null = a row of zeros.
void PackPanel(storage::TensorType type, const PanelLayout& layout, const uint8_t* const* rows, uint8_t* panel);

// Writes 8 rows of a Q4_0 tile that starts as zeros, the first at `row` (a multiple of 8); null = leaves it zero.
void PackTileRows(const uint8_t* const* rows, int64_t groups, int row, uint8_t* tile);
// The panel of rows [row, row + 16) of a tile, `row` a multiple of 16.
void ExpandTileRows(const PanelLayout& layout, const uint8_t* tile, int row, uint8_t* panel);

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_KERNELS_PANEL_PACK_H_
