// Products: the reference against arithmetic in double precision, every instruction set against the reference, and the
// promise that a token's result does not depend on its company.
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "engine/kernels/float16.h"
#include "engine/kernels/kernels.h"
#include "gtest/gtest.h"

namespace embergate::engine {
namespace {

using storage::TensorType;

constexpr TensorType kTypes[] = {TensorType::kF32,  TensorType::kF16,    TensorType::kBF16,  TensorType::kQ8_0,
                                 TensorType::kQ4_0, TensorType::kQ4_1,   TensorType::kQ5_0,  TensorType::kQ5_1,
                                 TensorType::kQ4_K, TensorType::kQ5_K,   TensorType::kQ6_K,  TensorType::kQ2_K,
                                 TensorType::kQ3_K, TensorType::kIQ4_NL, TensorType::kIQ4_XS};

bool IsFloat(TensorType type) {
  return type == TensorType::kF32 || type == TensorType::kF16 || type == TensorType::kBF16;
}

void PutHalf(uint8_t* p, float value) {
  const uint16_t half = FloatToHalf(value);
  std::memcpy(p, &half, 2);
}

// Rows as a file stores them: random bytes, with every f16 scale replaced by a sane random one.
std::vector<uint8_t> RandomRows(TensorType type, int64_t rows, int64_t cols, uint32_t seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> scale(0.002f, 0.02f);
  std::normal_distribution<float> normal(0.0f, 0.05f);
  const storage::TensorTypeTraits& traits = storage::TraitsOf(type);
  const int64_t blocks = rows * cols / traits.block_elements;
  std::vector<uint8_t> bytes(static_cast<size_t>(blocks) * traits.block_bytes);
  for (uint8_t& byte : bytes) {
    byte = static_cast<uint8_t>(random());
  }
  for (int64_t b = 0; b < blocks; ++b) {
    uint8_t* p = bytes.data() + b * traits.block_bytes;
    switch (type) {
      case TensorType::kF32: {
        const float value = normal(random);
        std::memcpy(p, &value, 4);
        break;
      }
      case TensorType::kF16:
        PutHalf(p, normal(random));
        break;
      case TensorType::kBF16: {
        const uint16_t value = FloatToBfloat16(normal(random));
        std::memcpy(p, &value, 2);
        break;
      }
      case TensorType::kQ2_K:
        PutHalf(p + 80, scale(random));
        PutHalf(p + 82, scale(random));
        break;
      case TensorType::kQ3_K:
        PutHalf(p + 108, scale(random));
        break;
      case TensorType::kQ6_K:
        PutHalf(p + 208, scale(random));
        break;
      case TensorType::kQ4_1:
      case TensorType::kQ5_1:
      case TensorType::kQ4_K:
      case TensorType::kQ5_K:
        PutHalf(p, scale(random));
        PutHalf(p + 2, -scale(random));
        break;
      default:
        PutHalf(p, scale(random));
    }
  }
  return bytes;
}

Matrix MakeMatrix(TensorType type, int64_t rows, int64_t cols, const std::vector<uint8_t>& bytes) {
  absl::StatusOr<Matrix> matrix = Matrix::Create(type, rows, cols);
  EXPECT_TRUE(matrix.ok()) << matrix.status();
  // In two parts that cut a panel, as a loader may.
  const size_t row_bytes = bytes.size() / static_cast<size_t>(rows);
  const size_t first = static_cast<size_t>(rows) / 3 * row_bytes;
  EXPECT_TRUE(matrix->AppendRows(absl::MakeConstSpan(bytes).subspan(0, first)).ok());
  EXPECT_EQ(matrix->complete(), first == bytes.size());
  EXPECT_TRUE(matrix->AppendRows(absl::MakeConstSpan(bytes).subspan(first)).ok());
  EXPECT_TRUE(matrix->complete());
  return std::move(matrix).value();
}

std::vector<float> RandomFloats(size_t n, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, 1.0f);
  std::vector<float> x(n);
  for (float& value : x) {
    value = normal(random);
  }
  if (n > 40) {
    x[7] = 30.0f;  // an outlier, as activations have
    x[33] = 0.0f;
  }
  return x;
}

std::vector<float> Product(const Matrix& w, const std::vector<float>& x, int n, int threads = 1) {
  ThreadPool pool(threads);
  MatMulInput input(n, w.cols());
  input.Set(x.data(), n, w.cols(), w.cols());
  std::vector<float> y(static_cast<size_t>(n * w.rows()), NAN);
  MatMul(w, input, y.data(), w.rows(), pool);
  return y;
}

class ProductTest : public testing::TestWithParam<TensorType> {
 protected:
  ~ProductTest() override { EXPECT_TRUE(ForceKernelIsa(AvailableKernelIsas().front()).ok()); }
  // Columns that leave a partial column block, and whole blocks of the type.
  int64_t Cols() const {
    const int64_t block = storage::TraitsOf(GetParam()).block_elements;
    return block == 1 ? 300 : block == 32 ? 32 * 37 : 256 * 5;
  }
  // The same, and widths of a few groups: less than a column block.
  std::vector<int64_t> ManyCols() const {
    const int64_t block = storage::TraitsOf(GetParam()).block_elements;
    return block == 1 ? std::vector<int64_t>{1, 7, 33, Cols()} : std::vector<int64_t>{block, 3 * block, Cols()};
  }
};

std::string TypeName(const testing::TestParamInfo<TensorType>& info) {
  return std::string(storage::TraitsOf(info.param).name);
}

// The repacked weights give back the values that the file's blocks stand for.
TEST_P(ProductTest, RepackedRowsKeepTheirValues) {
  const int64_t rows = 21;
  const std::vector<uint8_t> bytes = RandomRows(GetParam(), rows, Cols(), 1);
  const Matrix w = MakeMatrix(GetParam(), rows, Cols(), bytes);
  std::vector<float> expected(static_cast<size_t>(Cols()));
  std::vector<float> actual(static_cast<size_t>(Cols()));
  for (int64_t row = 0; row < rows; ++row) {
    DequantizeRow(GetParam(), bytes.data() + row * static_cast<int64_t>(bytes.size()) / rows, Cols(), expected.data());
    w.DequantizeRowTo(row, actual.data());
    ASSERT_EQ(expected, actual) << row;
  }
}

// Against double precision. An activation is off by at most half a step of its group, and rounds at random, so the
// error of a row of quantised weights stays below six standard deviations: 6 / sqrt(12) * |w (step)|_2. The f32 sums
// add at most cols * 2^-24 * |w|_2 |x|_2, far less.
TEST_P(ProductTest, ReferenceAgreesWithDoublePrecision) {
  ASSERT_TRUE(ForceKernelIsa("reference").ok());
  const int64_t rows = 21;
  const int n = 3;
  const int64_t cols = Cols();
  const std::vector<uint8_t> bytes = RandomRows(GetParam(), rows, cols, 2);
  const Matrix w = MakeMatrix(GetParam(), rows, cols, bytes);
  const std::vector<float> x = RandomFloats(static_cast<size_t>(n * cols), 3);
  const std::vector<float> y = Product(w, x, n);
  std::vector<float> row(static_cast<size_t>(cols));
  for (int64_t r = 0; r < rows; ++r) {
    w.DequantizeRowTo(r, row.data());
    for (int t = 0; t < n; ++t) {
      double sum = 0;
      double variance = 0;
      double norm_w = 0;
      double norm_x = 0;
      for (int64_t group = 0; group < cols; group += 32) {
        double largest = 0;
        double squares = 0;
        for (int64_t c = group; c < std::min(group + 32, cols); ++c) {
          const double xc = x[static_cast<size_t>(t * cols + c)];
          const double wc = row[static_cast<size_t>(c)];
          sum += wc * xc;
          squares += wc * wc;
          norm_x += xc * xc;
          largest = std::max(largest, std::fabs(xc));
        }
        norm_w += squares;
        variance += squares * (largest / 127) * (largest / 127) / 12;
      }
      const double quantised = IsFloat(GetParam()) ? 0 : 6 * std::sqrt(variance);
      const double rounding = static_cast<double>(cols) * 0x1p-24 * std::sqrt(norm_w * norm_x);
      EXPECT_NEAR(y[static_cast<size_t>(t * rows + r)], sum, quantised + rounding) << "row " << r << " token " << t;
    }
  }
}

// Bit for bit: integers are exact and the f32 operations are the same, in the same order.
TEST_P(ProductTest, EveryInstructionSetGivesTheReferencesBits) {
  for (const int64_t cols : ManyCols()) {
    for (const int64_t rows : {1, 16, 37}) {
      const std::vector<uint8_t> bytes = RandomRows(GetParam(), rows, cols, 4);
      const Matrix w = MakeMatrix(GetParam(), rows, cols, bytes);
      for (const int n : {1, 2, 3, 5, 8, 13}) {
        const std::vector<float> x = RandomFloats(static_cast<size_t>(n * cols), 5);
        ASSERT_TRUE(ForceKernelIsa("reference").ok());
        const std::vector<float> expected = Product(w, x, n);
        for (const std::string& isa : AvailableKernelIsas()) {
          ASSERT_TRUE(ForceKernelIsa(isa).ok());
          ASSERT_EQ(Product(w, x, n), expected) << isa << " rows " << rows << " cols " << cols << " tokens " << n;
        }
      }
    }
  }
}

// A token alone, at any place of any batch, on one thread or two.
TEST_P(ProductTest, ATokensResultDoesNotDependOnItsCompany) {
  const int64_t rows = 53;
  const int n = 140;  // more than one block of tokens
  const int64_t cols = storage::TraitsOf(GetParam()).block_elements == 256 ? 1280 : 1056;
  const std::vector<uint8_t> bytes = RandomRows(GetParam(), rows, cols, 6);
  const Matrix w = MakeMatrix(GetParam(), rows, cols, bytes);
  const std::vector<float> x = RandomFloats(static_cast<size_t>(n * cols), 7);
  for (const std::string& isa : AvailableKernelIsas()) {
    if (isa == "reference") {
      continue;
    }
    ASSERT_TRUE(ForceKernelIsa(isa).ok());
    const std::vector<float> all = Product(w, x, n, 2);
    for (int count = 1; count <= 64; count += count < 20 ? 1 : 11) {
      const int from = (count * 7) % (n - count + 1);
      const std::vector<float> part(x.begin() + from * cols, x.begin() + (from + count) * cols);
      const std::vector<float> expected(all.begin() + from * rows, all.begin() + (from + count) * rows);
      ASSERT_EQ(Product(w, part, count, count % 2 + 1), expected) << isa << " tokens " << count;
    }
  }
}

// The largest codes, scales and activations of one sign: no integer sum may wrap or saturate.
TEST_P(ProductTest, ExtremeCodesDoNotOverflow) {
  if (IsFloat(GetParam())) {
    GTEST_SKIP() << "no integers";
  }
  const int64_t rows = 32;
  const int64_t cols = 512;
  for (const uint8_t fill : {uint8_t{0x00}, uint8_t{0xff}, uint8_t{0x80}, uint8_t{0x7f}}) {
    std::vector<uint8_t> bytes = RandomRows(GetParam(), rows, cols, 8);
    const storage::TensorTypeTraits& traits = storage::TraitsOf(GetParam());
    for (size_t b = 0; b < bytes.size(); b += traits.block_bytes) {
      const std::vector<uint8_t> scales = RandomRows(GetParam(), 1, traits.block_elements, 9);
      for (size_t i = 0; i < traits.block_bytes; ++i) {
        bytes[b + i] = fill;
      }
      // Put the f16 factors back: they are the bytes that RandomRows sets, first or last in the block.
      std::memcpy(bytes.data() + b, scales.data(), 4);
      std::memcpy(bytes.data() + b + traits.block_bytes - 4, scales.data() + traits.block_bytes - 4, 4);
    }
    const Matrix w = MakeMatrix(GetParam(), rows, cols, bytes);
    for (const int n : {1, 9}) {
      for (const float sign : {1.0f, -1.0f}) {
        const std::vector<float> x(static_cast<size_t>(n * cols), sign);
        ASSERT_TRUE(ForceKernelIsa("reference").ok());
        const std::vector<float> expected = Product(w, x, n);
        for (const std::string& isa : AvailableKernelIsas()) {
          ASSERT_TRUE(ForceKernelIsa(isa).ok());
          ASSERT_EQ(Product(w, x, n), expected) << isa << " fill " << int{fill} << " tokens " << n;
        }
      }
    }
  }
}

// What the kernels read takes what the file takes; Q4_K's and the like's sub-scales are stored unpacked.
TEST_P(ProductTest, MemoryStaysCloseToTheFiles) {
  const int64_t rows = 1024;
  const int64_t cols = 2048;
  absl::StatusOr<Matrix> w = Matrix::Create(GetParam(), rows, cols);
  ASSERT_TRUE(w.ok());
  const double file = static_cast<double>(*storage::BytesOf(GetParam(), static_cast<uint64_t>(rows * cols)));
  const double growth = GetParam() == TensorType::kQ2_K ? 1.2 : 1.04;  // Q2_K: its scales are half nibbles
  EXPECT_LE(static_cast<double>(w->resident_bytes()), growth * file + 4096);
}

// Several products in one pass, and the gated pair, give what the single products give, bit for bit.
TEST_P(ProductTest, FusedProductsEqualSingleOnes) {
  const int64_t rows = 150;  // a partial panel at the end
  const std::vector<uint8_t> a_bytes = RandomRows(GetParam(), rows, Cols(), 11);
  const std::vector<uint8_t> b_bytes = RandomRows(GetParam(), rows, Cols(), 12);
  const std::vector<uint8_t> c_bytes = RandomRows(TensorType::kF32, 21, Cols(), 13);
  const Matrix a = MakeMatrix(GetParam(), rows, Cols(), a_bytes);
  const Matrix b = MakeMatrix(GetParam(), rows, Cols(), b_bytes);
  const Matrix c = MakeMatrix(TensorType::kF32, 21, Cols(), c_bytes);
  const Matrix d = MakeMatrix(TensorType::kF16, rows, Cols(), RandomRows(TensorType::kF16, rows, Cols(), 15));
  for (const std::string& isa : AvailableKernelIsas()) {
    ASSERT_TRUE(ForceKernelIsa(isa).ok());
    for (const int n : {1, 3, 100}) {
      const std::vector<float> x = RandomFloats(static_cast<size_t>(n * Cols()), 14);
      std::vector<float> expected_a = Product(a, x, n);
      const std::vector<float> expected_b = Product(b, x, n);
      const std::vector<float> expected_c = Product(c, x, n);
      const std::vector<float> expected_d = Product(d, x, n);
      for (const int threads : {1, 3}) {
        ThreadPool pool(threads);
        MatMulInput input(n, Cols());
        input.Set(x.data(), n, Cols(), Cols());
        std::vector<float> y_a(expected_a.size(), NAN);
        std::vector<float> y_b(expected_b.size(), NAN);
        std::vector<float> y_c(expected_c.size(), NAN);
        MatMulAll({{&a, y_a.data(), rows}, {&c, y_c.data(), 21}, {&b, y_b.data(), rows}}, input, pool);
        EXPECT_EQ(y_a, expected_a) << isa << " n " << n;
        EXPECT_EQ(y_b, expected_b) << isa << " n " << n;
        EXPECT_EQ(y_c, expected_c) << isa << " n " << n;
        std::vector<float> gated(expected_a.size(), NAN);
        MatMulGated(a, b, input, gated.data(), y_b.data(), rows, pool);
        std::vector<float> expected(expected_a.size());
        GeluTanhMul(expected_a.data(), expected_b.data(), static_cast<int64_t>(expected.size()), expected.data());
        EXPECT_EQ(gated, expected) << isa << " n " << n;
        // A file may give the pair two types.
        MatMulGated(a, d, input, gated.data(), y_b.data(), rows, pool);
        GeluTanhMul(expected_a.data(), expected_d.data(), static_cast<int64_t>(expected.size()), expected.data());
        EXPECT_EQ(gated, expected) << isa << " n " << n << ", two types";
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Types, ProductTest, testing::ValuesIn(kTypes), TypeName);

TEST(MatrixTest, RefusesShapesAndBytesThatDoNotFit) {
  EXPECT_EQ(Matrix::Create(TensorType::kQ4_0, 4, 33).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Matrix::Create(TensorType::kQ6_K, 4, 128).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Matrix::Create(TensorType::kI32, 4, 32).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Matrix::Create(TensorType::kF32, int64_t{1} << 50, int64_t{1} << 50).status().code(),
            absl::StatusCode::kInvalidArgument);
  absl::StatusOr<Matrix> w = Matrix::Create(TensorType::kQ4_0, 2, 32);
  ASSERT_TRUE(w.ok());
  const std::vector<uint8_t> bytes(3 * 18);
  EXPECT_EQ(w->AppendRows(absl::MakeConstSpan(bytes).subspan(0, 17)).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(w->AppendRows(absl::MakeConstSpan(bytes)).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(w->complete());
}

TEST(MatMulInputTest, ANotANumberShowsInTheResult) {
  const Matrix w = MakeMatrix(TensorType::kQ4_0, 16, 64, RandomRows(TensorType::kQ4_0, 16, 64, 1));
  for (const std::string& isa : AvailableKernelIsas()) {
    ASSERT_TRUE(ForceKernelIsa(isa).ok());
    std::vector<float> x(64, 1.0f);
    x[40] = NAN;
    EXPECT_TRUE(std::isnan(Product(w, x, 1)[3])) << isa;
    std::fill(x.begin(), x.end(), 1e-38f);  // its inverse would be infinite
    EXPECT_EQ(Product(w, x, 1)[3], 0.0f) << isa;
  }
  ASSERT_TRUE(ForceKernelIsa(AvailableKernelIsas().front()).ok());
}

// oneDNN adds in its own order: within cols * 2^-24 * |w| |x| of ours. Few tokens stay ours, bit for bit.
TEST(MatMulBackendTest, OneDnnAgreesForManyTokens) {
  if (!SetMatMulBackend(MatMulBackend::kOneDnn).ok()) {
    GTEST_SKIP() << "built without oneDNN";
  }
  const int64_t rows = 37;
  const int64_t cols = 200;
  const int n = 40;
  for (const TensorType type : {TensorType::kF32, TensorType::kF16, TensorType::kBF16}) {
    const std::vector<float> x = RandomFloats(static_cast<size_t>(n * cols), 3);
    ASSERT_TRUE(SetMatMulBackend(MatMulBackend::kOwn).ok());
    const Matrix w = MakeMatrix(type, rows, cols, RandomRows(type, rows, cols, 2));
    const std::vector<float> expected = Product(w, x, n);
    const size_t own_bytes = w.resident_bytes();
    ASSERT_TRUE(SetMatMulBackend(MatMulBackend::kOneDnn).ok());
    for (int round = 0; round < 2; ++round) {
      const std::vector<float> actual = Product(w, x, n);
      for (size_t i = 0; i < actual.size(); ++i) {
        // |w| is about 0.05 sqrt(cols), |x| about 35 with its outlier.
        ASSERT_NEAR(actual[i], expected[i], 200 * 0x1p-24 * 0.05 * std::sqrt(200.0) * 35) << i;
      }
    }
    EXPECT_GT(w.resident_bytes(), own_bytes);  // it really was oneDNN
    const std::vector<float> few(x.begin(), x.begin() + 2 * cols);
    const std::vector<float> alone(expected.begin(), expected.begin() + 2 * rows);
    EXPECT_EQ(Product(w, few, 2), alone);
  }
  ASSERT_TRUE(SetMatMulBackend(MatMulBackend::kOwn).ok());
}

TEST(KernelIsaTest, UnknownNamesAreRefusedAndTheBestIsChosen) {
  EXPECT_EQ(ForceKernelIsa("abacus").code(), absl::StatusCode::kUnimplemented);
  EXPECT_EQ(AvailableKernelIsas().back(), "reference");
  EXPECT_EQ(KernelIsa(), AvailableKernelIsas().front());
}

}  // namespace
}  // namespace embergate::engine
