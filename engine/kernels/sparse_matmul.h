// Products that use few rows or few columns of their weights, for feed-forwards most of whose channels are zero (Gemma
// 3n's first layers leave 5 %): memory is read for the channels in use only.
//
// Results are MatMul's, bit for bit, for any choice of rows and any activations: a row's product does not depend on the
// others, and a column whose activation is quantised to zero adds exactly nothing to its group's integer sum, a group
// of such columns nothing to the total (fma(0, 0, acc) = acc). So it may be decided call by call, by speed alone,
// whether a product is computed sparsely or whole. Premise: the weights' scales are finite.
#ifndef EMBERGATE_ENGINE_KERNELS_SPARSE_MATMUL_H_
#define EMBERGATE_ENGINE_KERNELS_SPARSE_MATMUL_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/kernels/kernels.h"
#include "engine/thread_pool.h"
#include "storage/tensor_type.h"

namespace embergate::engine {

// A weight matrix [rows, cols] whose rows are contiguous: the file's bytes as they are. Memory as Matrix'.
class RowMatrix {
 public:
  RowMatrix();
  ~RowMatrix();
  RowMatrix(RowMatrix&&) noexcept;
  RowMatrix& operator=(RowMatrix&&) noexcept;

  // Types whose rows are brought into the kernels' order fast enough to pay: Q4_0, IQ4_NL, Q8_0.
  static bool Takes(storage::TensorType type);
  // As Matrix::Create and Matrix::AppendRows.
  static absl::StatusOr<RowMatrix> Create(storage::TensorType type, int64_t rows, int64_t cols);
  absl::Status AppendRows(absl::Span<const uint8_t> file_bytes);

  bool complete() const;
  storage::TensorType type() const;
  int64_t rows() const;  // 0 before Create
  int64_t cols() const;
  size_t resident_bytes() const;

  struct Impl;
  const Impl& impl() const { return *impl_; }

 private:
  std::unique_ptr<Impl> impl_;
};

// A weight matrix [rows, cols] whose columns are contiguous over 256 rows; see column_format.h. Memory as Matrix', its
// rows rounded up to 256.
class ColumnMatrix {
 public:
  ColumnMatrix();
  ~ColumnMatrix();
  ColumnMatrix(ColumnMatrix&&) noexcept;
  ColumnMatrix& operator=(ColumnMatrix&&) noexcept;

  static bool Takes(storage::TensorType type);  // Q4_0
  static absl::StatusOr<ColumnMatrix> Create(storage::TensorType type, int64_t rows, int64_t cols);
  absl::Status AppendRows(absl::Span<const uint8_t> file_bytes);

  bool complete() const;
  storage::TensorType type() const;
  int64_t rows() const;
  int64_t cols() const;
  size_t resident_bytes() const;

  struct Impl;
  const Impl& impl() const { return *impl_; }

 private:
  std::unique_ptr<Impl> impl_;
};

// What the products below work in; allocated once for the largest matrices and the pool's threads. One user at a time.
class SparseScratch {
 public:
  SparseScratch();  // of no use but to be replaced
  ~SparseScratch();
  SparseScratch(SparseScratch&&) noexcept;
  SparseScratch& operator=(SparseScratch&&) noexcept;

  // For inputs of up to `tokens_max` tokens and `cols_max` columns. RESOURCE_EXHAUSTED when memory is refused.
  static absl::StatusOr<SparseScratch> Create(int tokens_max, int64_t cols_max, int workers);
  static uint64_t BytesFor(int tokens_max, int64_t cols_max, int workers);
  uint64_t bytes() const;

  struct Impl;
  Impl& impl() const { return *impl_; }

 private:
  std::unique_ptr<Impl> impl_;
};

// What a product really did.
struct SparseWork {
  uint64_t weight_bytes = 0;
  uint64_t multiply_adds = 0;
};

// y[t, i] = sum_c W[rows[i], c] x[t, c] for all tokens t and all i < count; y's rows are `y_stride` floats apart.
// `rows` null = the matrix' first `count` rows.
SparseWork MatMulRows(const RowMatrix& w, const int32_t* rows, int64_t count, MatMulInput& x, float* y,
                      int64_t y_stride, SparseScratch& scratch, ThreadPool& pool);

// y[t, r] = sum_c W[r, c] x[t, c], skipping the columns whose activation is quantised to zero. Where more than
// `dense_above` of the activations are not zero, computes the whole product as MatMul does; negative = always, 1 =
// never.
inline constexpr float kDenseAbove = 0.25f;
SparseWork MatMulColumns(const ColumnMatrix& w, MatMulInput& x, float* y, int64_t y_stride, SparseScratch& scratch,
                         ThreadPool& pool, float dense_above = kDenseAbove);

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_KERNELS_SPARSE_MATMUL_H_
