// What a Matrix and a MatMulInput hold. Internal to engine/kernels.
#ifndef EMBERGATE_ENGINE_KERNELS_MATRIX_IMPL_H_
#define EMBERGATE_ENGINE_KERNELS_MATRIX_IMPL_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "engine/kernels/kernels.h"
#include "engine/kernels/onednn_matmul.h"
#include "engine/kernels/packed_format.h"

namespace embergate::engine {

// Zeroed anonymous memory, aligned to 64 bytes at least, in huge pages where the system gives them. What is smaller
// than a huge page shares some with others of its kind: read in pages of 4 KiB, a matrix of 1.8 MB reached 60 % of the
// memory's bandwidth, in huge pages 90 %. Threads: any.
class HugeMemory {
 public:
  HugeMemory() = default;
  ~HugeMemory();
  HugeMemory(const HugeMemory&) = delete;
  HugeMemory& operator=(const HugeMemory&) = delete;
  // False when memory is refused.
  bool Allocate(size_t bytes);
  uint8_t* data() const { return data_; }
  size_t bytes() const { return bytes_; }  // that are this one's own

 private:
  std::shared_ptr<void> shared_;  // the pages, if they are shared
  uint8_t* data_ = nullptr;
  size_t bytes_ = 0;
};

struct Matrix::Impl {
  storage::TensorType type = storage::TensorType::kF32;
  const QuantFormat* format = nullptr;  // null for F32, F16, BF16
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t appended = 0;
  int64_t row_bytes = 0;      // in the file
  int64_t element_bytes = 0;  // float types
  PanelLayout layout;         // quantised types; panel_bytes for all
  HugeMemory memory;
  // Made by the first product that wants it, on the engine thread; null and refused when oneDNN could not.
  mutable std::unique_ptr<OneDnnWeights> onednn;
  mutable bool onednn_refused = false;

  int64_t panels() const { return (rows + kPanelRows - 1) / kPanelRows; }
  const uint8_t* panel(int64_t p) const { return memory.data() + p * layout.panel_bytes; }
};

struct MatMulInput::Impl {
  int tokens_max = 0;
  int64_t cols_max = 0;
  const float* x = nullptr;
  int n = 0;
  int64_t cols = 0;
  int64_t stride = 0;

  bool quantized = false;
  int init_bias = 0;  // what the units' init was made for
  int init_group = 0;
  HugeMemory units;  // ActivationUnit [n][units_per_token()]

  const ActivationUnit* unit_data() const { return reinterpret_cast<const ActivationUnit*>(units.data()); }
  // Distance from one token's units to the next's. Padded so that the tokens of a tile do not fall on the same sets of
  // a first-level cache (64 sets): 2048 or 12288 columns are whole multiples of 4 KiB.
  static int64_t PaddedUnits(int64_t units) { return (units + 15) / 32 * 32 + 16; }
  int64_t units_per_token() const { return PaddedUnits(cols / kUnitCols); }
  // Makes the units and their init for `bias`, once each until the next Set.
  void Prepare(int bias, int group, ThreadPool& pool);
};

// y = W x for panels [panel_begin, panel_end) of quantised weights, on the calling thread; y is that of row 0 of `w`,
// of which type, format, cols, layout, rows and the panels' bytes are read. x is prepared for the format.
void MultiplyPanels(const Matrix::Impl& w, const MatMulInput::Impl& x, float* y, int64_t y_stride, int64_t panel_begin,
                    int64_t panel_end);

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_KERNELS_MATRIX_IMPL_H_
