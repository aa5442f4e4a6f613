#include "engine/kernels/kv_rows.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "engine/kernels/float16.h"
#include "engine/kernels/kernels.h"
#include "gtest/gtest.h"

namespace embergate::engine {
namespace {

using storage::TensorType;

class KvRowsTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override { Use(GetParam()); }
  void TearDown() override { Use(AvailableKernelIsas().front()); }
  static void Use(const std::string& isa) { ASSERT_TRUE(ForceKernelIsa(isa).ok()); }
};

std::vector<uint8_t> Stored(TensorType type, const std::vector<float>& x) {
  std::vector<uint8_t> row(*storage::BytesOf(type, x.size()) + 8, 0xAB);
  StoreKvRow(type, x.data(), static_cast<int64_t>(x.size()), row.data());
  for (int i = 0; i < 8; ++i) {
    EXPECT_EQ(row[row.size() - 1 - i], 0xAB) << "written past the row";
  }
  return row;
}

std::vector<float> Loaded(TensorType type, const std::vector<uint8_t>& row, size_t n) {
  std::vector<float> x(n);
  LoadKvRow(type, row.data(), static_cast<int64_t>(n), x.data());
  return x;
}

// Rows of the sizes in use, of many magnitudes, with ties, zeros, denormals and what no model should give.
std::vector<std::vector<float>> Rows() {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  std::vector<std::vector<float>> rows;
  for (const size_t n : {32, 64, 256, 512}) {
    for (int exponent = -30; exponent <= 12; exponent += 3) {
      std::vector<float> row(n);
      for (float& value : row) {
        value = std::ldexp(normal(random), exponent);
      }
      rows.push_back(row);
      for (float& value : row) {
        value = std::ldexp(std::round(2 * value / std::ldexp(1.0f, exponent)) / 2, exponent);  // many ties
      }
      rows.push_back(row);
    }
  }
  rows.push_back(std::vector<float>(64, 0.0f));
  rows.push_back(std::vector<float>(64, -1.0f));
  for (const float odd : {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
                          std::numeric_limits<float>::quiet_NaN(), 1e30f, 1e-40f}) {
    std::vector<float> row(64, 0.25f);
    row[7] = odd;
    rows.push_back(row);
  }
  return rows;
}

TEST_P(KvRowsTest, EqualsTheReferenceBitForBit) {
  for (const TensorType type : {TensorType::kF16, TensorType::kQ8_0, TensorType::kQ4_0}) {
    for (const std::vector<float>& x : Rows()) {
      Use("reference");
      std::vector<uint8_t> expected = Stored(type, x);
      Use(GetParam());
      std::vector<uint8_t> got = Stored(type, x);
      if (type == TensorType::kF16) {  // NaN has many bit patterns
        for (size_t i = 0; i < x.size(); ++i) {
          if (std::isnan(x[i])) {
            EXPECT_TRUE(std::isnan(LoadHalf(got.data() + 2 * i)));
            got[2 * i] = expected[2 * i];
            got[2 * i + 1] = expected[2 * i + 1];
          }
        }
      }
      ASSERT_EQ(got, expected) << "type " << static_cast<int>(type) << ", " << x.size() << " values from " << x[0];
      if (type == TensorType::kF16) {
        continue;
      }
      const std::vector<float> back = Loaded(type, got, x.size());
      std::vector<float> dequantized(x.size());
      DequantizeRow(type, got.data(), static_cast<int64_t>(x.size()), dequantized.data());
      for (size_t i = 0; i < x.size(); ++i) {
        EXPECT_TRUE(back[i] == dequantized[i] || (std::isnan(back[i]) && std::isnan(dequantized[i])));
      }
    }
  }
}

TEST_P(KvRowsTest, BlocksAreThoseComputedByHand) {
  std::vector<float> x(32, 0.0f);
  x[0] = 127.0f;
  x[1] = -63.0f;
  x[2] = 2.5f;  // a tie: to even
  x[31] = 1.0f;
  std::vector<uint8_t> row = Stored(TensorType::kQ8_0, x);
  EXPECT_EQ(LoadHalf(row.data()), 1.0f);
  EXPECT_EQ(static_cast<int8_t>(row[2]), 127);
  EXPECT_EQ(static_cast<int8_t>(row[3]), -63);
  EXPECT_EQ(row[4], 2);
  EXPECT_EQ(row[33], 1);
  x[0] = 8.0f;  // the extreme is positive: scale -1, code -8
  x[1] = -7.0f;
  x[2] = 3.0f;
  x[16] = -5.0f;
  row = Stored(TensorType::kQ4_0, x);
  EXPECT_EQ(LoadHalf(row.data()), -1.0f);
  EXPECT_EQ(row[2], 0 | (5 + 8) << 4);  // values 0 and 16
  EXPECT_EQ(row[3], (7 + 8) | 8 << 4);
  EXPECT_EQ(row[4], (-3 + 8) | 8 << 4);
  const std::vector<float> back = Loaded(TensorType::kQ4_0, row, 32);
  EXPECT_EQ(back, x);
}

TEST_P(KvRowsTest, ErrorIsHalfAStep) {
  std::mt19937 random(4);
  std::normal_distribution<float> normal;
  std::vector<float> x(512);
  for (float& value : x) {
    value = normal(random);
  }
  for (const TensorType type : {TensorType::kQ8_0, TensorType::kQ4_0}) {
    const std::vector<float> back = Loaded(type, Stored(type, x), x.size());
    for (size_t b = 0; b < x.size(); b += 32) {
      float largest = 0;
      for (size_t i = b; i < b + 32; ++i) {
        largest = std::max(largest, std::fabs(x[i]));
      }
      // Of 4 bits, the end opposite to the extreme lacks half a step; the scale is rounded to 11 bits.
      const float step = type == TensorType::kQ8_0 ? 0.5f * largest / 127 : largest / 8;
      for (size_t i = b; i < b + 32; ++i) {
        EXPECT_LE(std::fabs(back[i] - x[i]), step + largest / 2048) << "value " << i;
      }
    }
  }
}

std::string IsaName(const testing::TestParamInfo<std::string>& info) { return info.param; }

INSTANTIATE_TEST_SUITE_P(Isas, KvRowsTest, testing::ValuesIn(AvailableKernelIsas()), IsaName);

}  // namespace
}  // namespace embergate::engine
