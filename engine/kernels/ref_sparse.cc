// The sparse column product as column_format.h defines it, one number at a time.
#include <cmath>

#include "engine/kernels/column_format.h"
#include "engine/kernels/float16.h"

namespace embergate::engine {
namespace {

int CodeOf(const uint8_t* column, int row) {
  const uint8_t* half = column + row / kHalfRows * 64;
  const int r = row % 64;
  const int byte = r % 32 / 8 * 16 + r / 32 * 8 + r % 8;
  return half[byte] >> (row % kHalfRows / 64 * 4) & 15;
}

void RefColumns(const ColumnTask& task) {
  for (int row = 0; row < kTileRows; ++row) {
    int32_t sum = task.init;
    for (int i = 0; i < task.count; ++i) {
      const int c = task.columns[i];
      sum += CodeOf(task.group + c * kColumnBytes, row) * task.x->q[c];
    }
    const float scale = LoadHalf(task.group + kTileScalesOffset + 2 * row);
    task.acc[row] = std::fma(static_cast<float>(sum) * scale, task.x->scale, task.acc[row]);
  }
}

}  // namespace

const SparseTable kRefSparse = {RefColumns};

}  // namespace embergate::engine
