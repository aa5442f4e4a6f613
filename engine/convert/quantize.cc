#include "engine/convert/quantize.h"

#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/kernels/float16.h"
#include "engine/kernels/kernels.h"

namespace embergate::engine {

using storage::TensorType;

namespace {

void StoreU16(uint16_t value, uint8_t* to) { std::memcpy(to, &value, sizeof(value)); }

}  // namespace

bool IsWritableType(TensorType type) {
  switch (type) {
    case TensorType::kF32:
    case TensorType::kF16:
    case TensorType::kBF16:
      return true;
    default:
      return false;
  }
}

TensorType FittingType(TensorType wanted, uint64_t cols) {
  if (cols % storage::TraitsOf(wanted).block_elements == 0) {
    return wanted;
  }
  const TensorType next = wanted == TensorType::kQ4_K ? TensorType::kQ4_0 : TensorType::kQ8_0;
  return cols % storage::TraitsOf(next).block_elements == 0 ? next : TensorType::kF16;
}

absl::Status QuantizeRow(TensorType type, const float* x, int64_t n, uint8_t* blocks) {
  switch (type) {
    case TensorType::kF32:
      std::memcpy(blocks, x, static_cast<size_t>(n) * sizeof(float));
      return absl::OkStatus();
    case TensorType::kF16:
      for (int64_t i = 0; i < n; ++i) {
        StoreU16(FloatToHalf(x[i]), blocks + 2 * i);
      }
      return absl::OkStatus();
    case TensorType::kBF16:
      for (int64_t i = 0; i < n; ++i) {
        StoreU16(FloatToBfloat16(x[i]), blocks + 2 * i);
      }
      return absl::OkStatus();
    default:
      return absl::InvalidArgumentError(
          absl::StrCat("no quantiser for ", storage::TraitsOf(type).name, "; there is one for F32, F16 and BF16"));
  }
}

}  // namespace embergate::engine
