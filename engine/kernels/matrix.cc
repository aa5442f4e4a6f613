#include <cstring>
#include <new>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/kernels/kernels.h"

namespace embergate::engine {

struct Matrix::Impl {
  storage::TensorType type = storage::TensorType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t appended = 0;
  int64_t row_bytes = 0;
  std::vector<uint8_t> bytes;
};

struct MatMulInput::Impl {
  const float* x = nullptr;
  int n = 0;
  int64_t cols = 0;
  int64_t stride = 0;
};

Matrix::Matrix() : impl_(std::make_unique<Impl>()) {}
Matrix::~Matrix() = default;
Matrix::Matrix(Matrix&&) noexcept = default;
Matrix& Matrix::operator=(Matrix&&) noexcept = default;

absl::StatusOr<Matrix> Matrix::Create(storage::TensorType type, int64_t rows, int64_t cols) {
  const storage::TensorTypeTraits& traits = storage::TraitsOf(type);
  if (!IsSupportedWeightType(type) || rows <= 0 || cols <= 0 || cols % traits.block_elements != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("no kernel takes a ", std::string(traits.name), " matrix of ", rows, " x ", cols));
  }
  Matrix matrix;
  Impl& impl = *matrix.impl_;
  impl.type = type;
  impl.rows = rows;
  impl.cols = cols;
  impl.row_bytes = cols / traits.block_elements * traits.block_bytes;
  impl.bytes.resize(static_cast<size_t>(rows * impl.row_bytes));
  return matrix;
}

absl::Status Matrix::AppendRows(absl::Span<const uint8_t> file_bytes) {
  Impl& impl = *impl_;
  const int64_t size = static_cast<int64_t>(file_bytes.size());
  if (impl.row_bytes == 0 || size % impl.row_bytes != 0 || size / impl.row_bytes > impl.rows - impl.appended) {
    return absl::InvalidArgumentError(absl::StrCat(size, " bytes are not whole rows of the ", impl.rows - impl.appended,
                                                   " missing, each of ", impl.row_bytes));
  }
  std::memcpy(impl.bytes.data() + impl.appended * impl.row_bytes, file_bytes.data(), file_bytes.size());
  impl.appended += size / impl.row_bytes;
  return absl::OkStatus();
}

bool Matrix::complete() const { return impl_->rows > 0 && impl_->appended == impl_->rows; }
storage::TensorType Matrix::type() const { return impl_->type; }
int64_t Matrix::rows() const { return impl_->rows; }
int64_t Matrix::cols() const { return impl_->cols; }
size_t Matrix::resident_bytes() const { return impl_->bytes.size(); }

void Matrix::DequantizeRowTo(int64_t row, float* out) const {
  DequantizeRow(impl_->type, impl_->bytes.data() + row * impl_->row_bytes, impl_->cols, out);
}

MatMulInput::MatMulInput(int, int64_t) : impl_(std::make_unique<Impl>()) {}
MatMulInput::~MatMulInput() = default;

void MatMulInput::Set(const float* x, int n, int64_t cols, int64_t stride) { *impl_ = {x, n, cols, stride}; }
size_t MatMulInput::resident_bytes() const { return sizeof(Impl); }

void MatMul(const Matrix& w, MatMulInput& x, float* y, int64_t y_stride, ThreadPool& pool) {
  const MatMulInput::Impl& in = x.impl();
  pool.ParallelFor(w.rows(), 16, [&](int64_t begin, int64_t end, int) {
    std::vector<float> row(static_cast<size_t>(w.cols()));
    for (int64_t r = begin; r < end; ++r) {
      w.DequantizeRowTo(r, row.data());
      for (int t = 0; t < in.n; ++t) {
        const float* xt = in.x + t * in.stride;
        float sum = 0;
        for (int64_t c = 0; c < w.cols(); ++c) {
          sum += row[static_cast<size_t>(c)] * xt[c];
        }
        y[t * y_stride + r] = sum;
      }
    }
  });
}

}  // namespace embergate::engine
