// Sparse products are MatMul's, bit for bit: for any rows, any activations, any number of tokens, on every instruction
// set, computed sparsely or whole.
#include "engine/kernels/sparse_matmul.h"

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "engine/kernels/float16.h"
#include "gtest/gtest.h"

namespace embergate::engine {
namespace {

using storage::TensorType;

std::vector<uint8_t> RandomRows(TensorType type, int64_t rows, int64_t cols, uint32_t seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> scale(-0.02f, 0.02f);
  const storage::TensorTypeTraits& traits = storage::TraitsOf(type);
  std::vector<uint8_t> bytes(static_cast<size_t>(rows * cols / traits.block_elements) * traits.block_bytes);
  for (uint8_t& byte : bytes) {
    byte = static_cast<uint8_t>(random());
  }
  for (size_t b = 0; b < bytes.size(); b += traits.block_bytes) {
    const uint16_t half = FloatToHalf(scale(random));
    std::memcpy(bytes.data() + b, &half, 2);
  }
  return bytes;
}

// Of [n, cols] activations all but `density` are zero; token 1, where there is one, is all zeros.
std::vector<float> SparseActivations(int n, int64_t cols, double density, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, 1.0f);
  std::bernoulli_distribution active(density);
  std::vector<float> x(static_cast<size_t>(n * cols));
  for (size_t i = 0; i < x.size(); ++i) {
    x[i] = active(random) && static_cast<int64_t>(i) / cols != 1 ? normal(random) : 0.0f;
  }
  return x;
}

template <class M>
M Load(TensorType type, int64_t rows, int64_t cols, const std::vector<uint8_t>& bytes) {
  absl::StatusOr<M> matrix = M::Create(type, rows, cols);
  EXPECT_TRUE(matrix.ok()) << matrix.status();
  // In three parts that cut panels and groups of 8 rows, as a loader may.
  const size_t row_bytes = bytes.size() / static_cast<size_t>(rows);
  const size_t cut[] = {0, static_cast<size_t>(rows) / 3 * row_bytes, static_cast<size_t>(rows) / 2 * row_bytes,
                        bytes.size()};
  for (int i = 0; i < 3; ++i) {
    EXPECT_FALSE(matrix->complete());
    EXPECT_TRUE(matrix->AppendRows(absl::MakeConstSpan(bytes).subspan(cut[i], cut[i + 1] - cut[i])).ok());
  }
  EXPECT_TRUE(matrix->complete());
  return std::move(matrix).value();
}

class SparseMatMulTest : public testing::Test {
 protected:
  ~SparseMatMulTest() override { EXPECT_TRUE(ForceKernelIsa(AvailableKernelIsas().front()).ok()); }

  static std::vector<float> Whole(const Matrix& w, const std::vector<float>& x, int n) {
    ThreadPool pool(1);
    MatMulInput input(n, w.cols());
    input.Set(x.data(), n, w.cols(), w.cols());
    std::vector<float> y(static_cast<size_t>(n * w.rows()));
    MatMul(w, input, y.data(), w.rows(), pool);
    return y;
  }
};

TEST_F(SparseMatMulTest, ColumnsEqualTheWholeProduct) {
  for (const int64_t rows : {int64_t{1}, int64_t{16}, int64_t{83}, int64_t{256}, int64_t{700}}) {
    const int64_t cols = rows == 700 ? 1376 : 256;
    const std::vector<uint8_t> bytes = RandomRows(TensorType::kQ4_0, rows, cols, 1);
    for (const std::string& isa : AvailableKernelIsas()) {
      ASSERT_TRUE(ForceKernelIsa(isa).ok());
      const Matrix whole = Load<Matrix>(TensorType::kQ4_0, rows, cols, bytes);
      const ColumnMatrix w = Load<ColumnMatrix>(TensorType::kQ4_0, rows, cols, bytes);
      for (const int n : {1, 2, 7, 33}) {
        for (const double density : {0.0, 0.05, 0.5, 1.0}) {
          const std::vector<float> x = SparseActivations(n, cols, density, 3);
          const std::vector<float> expected = Whole(whole, x, n);
          for (const int threads : {1, 2}) {
            for (const float dense_above : {-1.0f, 1.0f, kDenseAbove}) {
              ThreadPool pool(threads);
              absl::StatusOr<SparseScratch> scratch = SparseScratch::Create(n, cols, threads);
              ASSERT_TRUE(scratch.ok());
              MatMulInput input(n, cols);
              input.Set(x.data(), n, cols, cols);
              std::vector<float> y(expected.size(), NAN);
              const uint64_t read = MatMulColumns(w, input, y.data(), rows, *scratch, pool, dense_above).weight_bytes;
              ASSERT_EQ(y, expected) << isa << " rows " << rows << " tokens " << n << " density " << density
                                     << " threads " << threads << " dense above " << dense_above;
              EXPECT_LE(read, w.resident_bytes());
              if (dense_above == 1.0f && density < 0.1 && n == 1) {
                EXPECT_LT(read, w.resident_bytes() / 3);
              }
            }
          }
        }
      }
    }
  }
}

TEST_F(SparseMatMulTest, RowsEqualTheWholeProduct) {
  const int64_t rows = 357;
  for (const TensorType type : {TensorType::kQ4_0, TensorType::kIQ4_NL, TensorType::kQ8_0}) {
    const int64_t cols = 672;
    const std::vector<uint8_t> bytes = RandomRows(type, rows, cols, 5);
    std::vector<int32_t> some;
    for (int32_t r = 2; r < rows; r += r % 3 + 1) {
      some.push_back(r);
    }
    for (const std::string& isa : AvailableKernelIsas()) {
      ASSERT_TRUE(ForceKernelIsa(isa).ok());
      const Matrix whole = Load<Matrix>(type, rows, cols, bytes);
      const RowMatrix w = Load<RowMatrix>(type, rows, cols, bytes);
      for (const int n : {1, 2, 5, 40}) {
        const std::vector<float> x = SparseActivations(n, cols, 0.9, 6);
        const std::vector<float> expected = Whole(whole, x, n);
        for (const int threads : {1, 2}) {
          ThreadPool pool(threads);
          absl::StatusOr<SparseScratch> scratch = SparseScratch::Create(n, cols, threads);
          ASSERT_TRUE(scratch.ok());
          MatMulInput input(n, cols);
          input.Set(x.data(), n, cols, cols);
          std::vector<float> y(expected.size(), NAN);
          MatMulRows(w, nullptr, rows, input, y.data(), rows, *scratch, pool);
          ASSERT_EQ(y, expected) << isa << " tokens " << n;
          for (const size_t count : {size_t{1}, size_t{16}, some.size()}) {
            MatMulRows(w, some.data(), static_cast<int64_t>(count), input, y.data(), rows, *scratch, pool);
            for (int t = 0; t < n; ++t) {
              for (size_t i = 0; i < count; ++i) {
                ASSERT_EQ(y[t * rows + i], expected[t * rows + some[i]]) << isa << " token " << t << " row " << some[i];
              }
            }
          }
        }
      }
    }
  }
}

// The largest codes and activations of one sign: sums reach the ends of 16 bits.
TEST_F(SparseMatMulTest, ExtremeCodesDoNotOverflow) {
  const int64_t rows = 256;
  const int64_t cols = 64;
  for (const uint8_t fill : {uint8_t{0x00}, uint8_t{0xff}}) {
    std::vector<uint8_t> bytes = RandomRows(TensorType::kQ4_0, rows, cols, 8);
    for (size_t b = 0; b < bytes.size(); b += 18) {
      std::memset(bytes.data() + b + 2, fill, 16);
    }
    for (const float sign : {1.0f, -1.0f}) {
      const std::vector<float> x(cols, sign);
      for (const std::string& isa : AvailableKernelIsas()) {
        ASSERT_TRUE(ForceKernelIsa(isa).ok());
        const std::vector<float> expected = Whole(Load<Matrix>(TensorType::kQ4_0, rows, cols, bytes), x, 1);
        const ColumnMatrix w = Load<ColumnMatrix>(TensorType::kQ4_0, rows, cols, bytes);
        ThreadPool pool(1);
        absl::StatusOr<SparseScratch> scratch = SparseScratch::Create(1, cols, 1);
        MatMulInput input(1, cols);
        input.Set(x.data(), 1, cols, cols);
        std::vector<float> y(expected.size(), NAN);
        MatMulColumns(w, input, y.data(), rows, *scratch, pool, 1.0f);
        ASSERT_EQ(y, expected) << isa << " fill " << int{fill};
      }
    }
  }
}

TEST_F(SparseMatMulTest, RefusesTypesShapesAndBytesThatDoNotFit) {
  EXPECT_EQ(ColumnMatrix::Create(TensorType::kQ8_0, 4, 32).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ColumnMatrix::Create(TensorType::kQ4_0, 4, 33).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(RowMatrix::Create(TensorType::kQ4_K, 4, 256).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(RowMatrix::Create(TensorType::kQ4_0, int64_t{1} << 50, int64_t{1} << 50).status().code(),
            absl::StatusCode::kInvalidArgument);
  absl::StatusOr<ColumnMatrix> w = ColumnMatrix::Create(TensorType::kQ4_0, 2, 32);
  ASSERT_TRUE(w.ok());
  const std::vector<uint8_t> bytes(3 * 18);
  EXPECT_EQ(w->AppendRows(absl::MakeConstSpan(bytes).subspan(0, 17)).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(w->AppendRows(absl::MakeConstSpan(bytes)).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(w->complete());
}

}  // namespace
}  // namespace embergate::engine
