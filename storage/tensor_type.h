// The element types that a GGUF tensor may have: ids, names and block sizes. What the bytes of a block
// mean is the engine's business (engine/kernels/); here they are only counted.
#ifndef EMBERGATE_STORAGE_TENSOR_TYPE_H_
#define EMBERGATE_STORAGE_TENSOR_TYPE_H_

#include <cstdint>
#include <optional>

#include "absl/strings/string_view.h"

namespace embergate::storage {

// Ids as stored in the file.
enum class TensorType : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ8_1 = 9,
  kQ2_K = 10,
  kQ3_K = 11,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kQ8_K = 15,
  kIQ2_XXS = 16,
  kIQ2_XS = 17,
  kIQ3_XXS = 18,
  kIQ1_S = 19,
  kIQ4_NL = 20,
  kIQ3_S = 21,
  kIQ2_S = 22,
  kIQ4_XS = 23,
  kI8 = 24,
  kI16 = 25,
  kI32 = 26,
  kI64 = 27,
  kF64 = 28,
  kIQ1_M = 29,
  kBF16 = 30,
  kTQ1_0 = 34,
  kTQ2_0 = 35,
  kMXFP4 = 39,
};

// A row of n elements takes n / block_elements * block_bytes bytes; n must be a multiple of block_elements.
struct TensorTypeTraits {
  TensorType type;
  absl::string_view name;  // upper case, as published file names spell it: "Q4_0"
  uint32_t block_elements;
  uint32_t block_bytes;
};

// Null if `id` is not a type we know the size of.
const TensorTypeTraits* FindTensorType(uint32_t id);
// Case-insensitive; null if unknown.
const TensorTypeTraits* FindTensorTypeByName(absl::string_view name);
// Every enumerator of TensorType has traits.
const TensorTypeTraits& TraitsOf(TensorType type);

// Bytes of `elements` elements; nullopt if they are no whole number of blocks or the product overflows.
std::optional<uint64_t> BytesOf(TensorType type, uint64_t elements);

}  // namespace embergate::storage

#endif  // EMBERGATE_STORAGE_TENSOR_TYPE_H_
