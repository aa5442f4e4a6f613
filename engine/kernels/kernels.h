// The products and element-wise operations of the forward pass. One table of function pointers is chosen at
// start from the CPU's features; each fast kernel has a readable reference (ref_*.cc) that tests compare it with.
//
// Determinism: a token's result does not depend on how many other tokens share the call, on its place among
// them, or on the thread count. Per output element the order of additions is fixed by (type, cols) and ISA.
#ifndef EMBERGATE_ENGINE_KERNELS_KERNELS_H_
#define EMBERGATE_ENGINE_KERNELS_KERNELS_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/thread_pool.h"
#include "storage/tensor_type.h"

namespace embergate::engine {

// ---- Blocks as files store them ------------------------------------------------------------------
// Whether products and row reads of this type are implemented.
bool IsSupportedWeightType(storage::TensorType type);
// out[i] = value of element i, for n elements (a whole number of blocks) that start at `blocks`.
void DequantizeRow(storage::TensorType type, const uint8_t* blocks, int64_t n, float* out);
// The inverse, for the types that `convert` writes (F32, F16, BF16, Q8_0, Q4_0, ...). INVALID_ARGUMENT otherwise.
absl::Status QuantizeRow(storage::TensorType type, const float* x, int64_t n, uint8_t* blocks);

// ---- Weights -------------------------------------------------------------------------------------
// A weight matrix W [rows, cols] in the order that the kernels read; y = W x. Owns its memory (64-byte aligned
// anonymous memory, in huge pages where the system gives them). Immutable once complete.
class Matrix {
 public:
  Matrix();
  ~Matrix();
  Matrix(Matrix&&) noexcept;
  Matrix& operator=(Matrix&&) noexcept;

  // Allocates for `rows` x `cols` elements that the file stores as `type`. INVALID_ARGUMENT for a type or width
  // that no kernel takes; RESOURCE_EXHAUSTED when memory is refused.
  static absl::StatusOr<Matrix> Create(storage::TensorType type, int64_t rows, int64_t cols);
  // Appends whole rows in the file's format, in order, any number at a time; repacks them as it goes, so loading
  // needs no second copy, with all of `pool` if there is one. The matrix is complete when `rows` rows were appended.
  absl::Status AppendRows(absl::Span<const uint8_t> file_bytes, ThreadPool* pool = nullptr);

  bool complete() const;
  storage::TensorType type() const;  // as stored in the file
  int64_t rows() const;
  int64_t cols() const;
  size_t resident_bytes() const;

  // out[0..cols) = row `row`, as f32 (embedding look-up).
  void DequantizeRowTo(int64_t row, float* out) const;

  struct Impl;
  const Impl& impl() const { return *impl_; }

 private:
  std::unique_ptr<Impl> impl_;
};

// ---- Activations ---------------------------------------------------------------------------------
// The input X [n, cols] of one or several products. Weights in 4 or 8 bits read X as int8 with one scale per
// group of 32 (quantised here once, on first need, shared by all products of the same X); other weights read f32.
// Allocated once for (tokens_max, cols_max). Threads: the engine thread.
class MatMulInput {
 public:
  MatMulInput(int tokens_max, int64_t cols_max);
  ~MatMulInput();
  // Borrows x (row-major, rows `stride` floats apart) until the next Set. x must not change meanwhile.
  void Set(const float* x, int n, int64_t cols, int64_t stride);
  size_t resident_bytes() const;

  struct Impl;
  Impl& impl() { return *impl_; }

 private:
  std::unique_ptr<Impl> impl_;
};

// y[t, r] = sum_c W[r, c] x[t, c] for all tokens t and rows r; y's rows are `y_stride` floats apart.
// Shapes must agree (CHECKed: a mismatch is a bug, files were checked at load). Allocates nothing.
void MatMul(const Matrix& w, MatMulInput& x, float* y, int64_t y_stride, ThreadPool& pool);

// Several products of the same input in one pass of the workers: y_i = W_i x as above, with no wait between them.
struct MatMulOutput {
  const Matrix* w;
  float* y;
  int64_t y_stride;
};
void MatMulAll(absl::Span<const MatMulOutput> products, MatMulInput& x, ThreadPool& pool);

// y = gelu_tanh(gate x) * (up x), the first half of a gated feed-forward; many tokens in one pass where both matrices
// read x in the same form: each part is activated while it is in the cache. Equals the two products and GeluTanhMul bit
// for bit. gate and up have the same shape; `scratch` holds what y holds, with the same stride.
void MatMulGated(const Matrix& gate, const Matrix& up, MatMulInput& x, float* y, float* scratch, int64_t y_stride,
                 ThreadPool& pool);

// Who computes products of many tokens with F32, F16 or BF16 weights. kOneDnn breaks the promise above (a token's
// result then depends on how many tokens share the call) and holds those weights a second time, as f32; see
// onednn_matmul.h. All other products stay ours. Before the first MatMul; UNIMPLEMENTED in a build without oneDNN.
enum class MatMulBackend { kOwn, kOneDnn };
absl::Status SetMatMulBackend(MatMulBackend backend);

// ---- Element-wise, one token's row at a time ------------------------------------------------------
// y = x * (mean(x^2) + eps)^(-1/2) * w; w null = bare. y may be x. (ARCHITECTURE: RMSNorm; w as stored.)
void RmsNorm(const float* x, const float* w, int64_t n, float eps, float* y);
// out = gelu_tanh(gate) * up; out may be gate or up.
void GeluTanhMul(const float* gate, const float* up, int64_t n, float* out);
void Add(const float* a, const float* b, int64_t n, float* out);                 // out = a + b
void AddScaled(const float* a, const float* b, float s, int64_t n, float* out);  // out = a + s * b
void Scale(const float* a, float s, int64_t n, float* out);
void Softcap(float* x, float cap, int64_t n);  // x = cap * tanh(x / cap)
float Dot(const float* a, const float* b, int64_t n);
float SumOfSquares(const float* x, int64_t n);
// Rotates pairs (i, i + d/2) by angle position * inverse_frequency[i]; cos and sin given per pair.
void RotateHalf(float* x, const float* cos, const float* sin, int64_t d);

// ---- CPU ------------------------------------------------------------------------------------------
// Name of the chosen table: "avx512vnni", "avx2", "neon_i8mm", "neon_dotprod", "neon", "reference".
const char* KernelIsa();
// Forces a table by name, for tests and --isa; UNIMPLEMENTED if this CPU lacks it. Call before any Matrix is made.
absl::Status ForceKernelIsa(const std::string& name);
std::vector<std::string> AvailableKernelIsas();

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_KERNELS_KERNELS_H_
