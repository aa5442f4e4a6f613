// Rows of f32 to the block formats that `convert` writes. QuantizeRow itself is declared in engine/kernels/kernels.h.
//
// A block's scale is searched, not just taken from its largest element: a few candidates around that, each refined
// by least squares, and the one with the smallest squared error wins. Plain squared error, because nothing is known
// here of the activations that a weight will meet. The RMS error is at or below that of the stock quantiser for
// every type (quantize_test states its figures).
#ifndef EMBERGATE_ENGINE_CONVERT_QUANTIZE_H_
#define EMBERGATE_ENGINE_CONVERT_QUANTIZE_H_

#include <cstdint>

#include "storage/tensor_type.h"

namespace embergate::engine {

// Whether QuantizeRow writes this type.
bool IsWritableType(storage::TensorType type);

// The type that a matrix with rows of `cols` elements takes when `wanted` was asked for: `wanted`, or the next one
// whose blocks fit the width (Q4_K -> Q4_0, Q6_K -> Q8_0, then F16).
storage::TensorType FittingType(storage::TensorType wanted, uint64_t cols);

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_CONVERT_QUANTIZE_H_
