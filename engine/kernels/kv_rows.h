// One row of the KV cache (a key or value of one position and head) to and from its storage type.
//
// Q8_0 and Q4_0 are GGUF's block formats, 32 values and an f16 scale, filled without the search that files of weights
// get: a row is written once per token and read many times, and the scale is the one at which the block's extreme value
// is hit exactly (but for the scale's own rounding). All instruction sets give the same bits.
#ifndef EMBERGATE_ENGINE_KERNELS_KV_ROWS_H_
#define EMBERGATE_ENGINE_KERNELS_KV_ROWS_H_

#include <cstdint>

#include "storage/tensor_type.h"

namespace embergate::engine {

// x [n] to out; type F32, F16, Q8_0 or Q4_0, n a multiple of 8, or of 32 for the last two.
void StoreKvRow(storage::TensorType type, const float* x, int64_t n, uint8_t* out);

// The way back, from Q8_0 and Q4_0; attention reads the others as they are.
void LoadKvRow(storage::TensorType type, const uint8_t* row, int64_t n, float* out);

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_KERNELS_KV_ROWS_H_
