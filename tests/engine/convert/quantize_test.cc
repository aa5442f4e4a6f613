#include "engine/convert/quantize.h"

#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "engine/kernels/float16.h"
#include "engine/kernels/kernels.h"
#include "gtest/gtest.h"
#include "tests/engine/convert/test_weights.h"

namespace embergate::engine {
namespace {

using storage::TensorType;

constexpr TensorType kBlockTypes[] = {TensorType::kQ8_0, TensorType::kQ4_0, TensorType::kQ4_K, TensorType::kQ6_K};

std::vector<float> RoundTrip(TensorType type, const std::vector<float>& x) {
  std::vector<uint8_t> blocks(*storage::BytesOf(type, x.size()));
  EXPECT_TRUE(QuantizeRow(type, x.data(), static_cast<int64_t>(x.size()), blocks.data()).ok());
  std::vector<float> y(x.size());
  DequantizeRow(type, blocks.data(), static_cast<int64_t>(y.size()), y.data());
  return y;
}

// The RMS error of ggml's own quantiser (v0.5.0's ggml_quantize_chunk, no importance matrix) on a million such
// weights, measured with block_formats_test. Ours may be at most 2 % above.
TEST(QuantizeTest, RmsErrorIsWithinTwoPercentOfTheStockQuantiser) {
  const double stock[4][4] = {{0.005351, 0.086014, 0.071369, 0.017767},
                              {0.003765, 0.065006, 0.054611, 0.013286},
                              {0.007325, 0.116015, 0.086823, 0.022949},
                              {0.005043, 0.080260, 0.058981, 0.016900}};
  for (int kind = 0; kind < kTestWeightKinds; ++kind) {
    const std::vector<float> x = TestWeights(kind, 256 * 1024);
    for (int t = 0; t < 4; ++t) {
      const double rms = RelativeRms(RoundTrip(kBlockTypes[t], x), x);
      EXPECT_LT(rms, 1.02 * stock[kind][t]) << storage::TraitsOf(kBlockTypes[t]).name << ", weights " << kind;
      EXPECT_GT(rms, 0.85 * stock[kind][t]) << "too good to be true: " << storage::TraitsOf(kBlockTypes[t]).name;
    }
  }
}

TEST(QuantizeTest, ValuesThatAFormatHoldsComeBackExactly) {
  std::mt19937 random(3);
  for (int round = 0; round < 50; ++round) {
    const float d = HalfToFloat(FloatToHalf(std::exp2(static_cast<float>(random() % 12) - 10.0f) * 1.37f));
    std::vector<float> x(32);
    for (float& value : x) {
      value = d * (static_cast<float>(random() % 16) - 8.0f);
    }
    x[random() % 32] = -8.0f * d;
    EXPECT_EQ(RoundTrip(TensorType::kQ4_0, x), x);
    for (float& value : x) {
      value = d * (static_cast<float>(random() % 255) - 127.0f);
    }
    x[random() % 32] = 127.0f * d;
    EXPECT_EQ(RoundTrip(TensorType::kQ8_0, x), x);
    // Q6_K: group scales 1..128 times d, codes -32..31.
    std::vector<float> wide(256);
    for (int i = 0; i < 256; ++i) {
      const float scale = i / 16 == 3 ? -128.0f : static_cast<float>(1 + i / 16 * 7);
      wide[i] = d * scale * (i % 16 == 5 ? -32.0f : static_cast<float>(random() % 64) - 32.0f);
    }
    EXPECT_LT(RelativeRms(RoundTrip(TensorType::kQ6_K, wide), wide), 1e-6);
    // Q4_K: one of the groups uses the whole range of scales and mins.
    for (int i = 0; i < 256; ++i) {
      const float scale = i / 32 == 2 ? 63.0f : static_cast<float>(20 + i / 32);
      const float min = i / 32 == 2 ? 63.0f : static_cast<float>(8 * (i / 32));
      const int code = i % 32 == 7 ? 15 : i % 32 == 9 ? 0 : static_cast<int>(random() % 16);
      wide[i] = d * scale * static_cast<float>(code) - 4 * d * min;
    }
    EXPECT_LT(RelativeRms(RoundTrip(TensorType::kQ4_K, wide), wide), 2e-3);
  }
}

TEST(QuantizeTest, ZerosStayZeros) {
  for (const TensorType type : kBlockTypes) {
    EXPECT_EQ(RoundTrip(type, std::vector<float>(512, 0.0f)), std::vector<float>(512, 0.0f));
    EXPECT_EQ(RoundTrip(type, std::vector<float>(512, 1e-25f)), std::vector<float>(512, 0.0f));
  }
}

// Odd blocks: one outlier, all equal, all positive, all negative, tiny, alternating. The error of every element stays
// within one step of its block's range, and no code wraps around.
TEST(QuantizeTest, OddBlocksStayWithinOneStep) {
  std::vector<std::vector<float>> blocks(8, std::vector<float>(256));
  for (int i = 0; i < 256; ++i) {
    blocks[0][i] = i == 100 ? 50.0f : 0.001f * static_cast<float>(i % 7);
    blocks[1][i] = 0.73f;
    blocks[2][i] = 0.5f + 0.001f * static_cast<float>(i);
    blocks[3][i] = -0.5f - 0.001f * static_cast<float>(i);
    blocks[4][i] = 3e-3f * static_cast<float>(i % 5 - 2);
    blocks[5][i] = i % 2 == 0 ? 1.0f : -1.0f;
    blocks[6][i] = i == 255 ? -3.0f : 0.0f;
    blocks[7][i] = 1000.0f * static_cast<float>(i - 128);
  }
  for (const TensorType type : kBlockTypes) {
    const bool eight = type == TensorType::kQ8_0;
    const bool six = type == TensorType::kQ6_K;
    const int group = six ? 16 : 32;
    for (size_t b = 0; b < blocks.size(); ++b) {
      const std::vector<float>& x = blocks[b];
      const std::vector<float> y = RoundTrip(type, x);
      float block_max = 0;
      for (float value : x) {
        block_max = std::max(block_max, std::abs(value));
      }
      for (int i = 0; i < 256; ++i) {
        float largest = 0;
        for (int j = i / group * group; j < i / group * group + group; ++j) {
          largest = std::max(largest, std::abs(x[j]));
        }
        // A step of the group, and for the two-level formats a step of the sub-scale (1/63 or 1/128 of the block's).
        const float levels = eight ? 127.0f : six ? 32.0f : 8.0f;
        const float coarse = type == TensorType::kQ4_K ? block_max / 63.0f : six ? block_max / 127.0f : 0.0f;
        ASSERT_NEAR(y[i], x[i], largest / levels * 1.1f + coarse + 6e-8f * levels)
            << storage::TraitsOf(type).name << " block " << b << " element " << i;
      }
    }
  }
}

TEST(QuantizeTest, WidthsThatFitNoBlockAreRefusedOrRefitted) {
  std::vector<float> x(64);
  std::vector<uint8_t> out(1024);
  EXPECT_EQ(QuantizeRow(TensorType::kQ4_0, x.data(), 33, out.data()).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(QuantizeRow(TensorType::kQ6_K, x.data(), 64, out.data()).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(QuantizeRow(TensorType::kIQ4_XS, x.data(), 64, out.data()).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(FittingType(TensorType::kQ4_K, 512), TensorType::kQ4_K);
  EXPECT_EQ(FittingType(TensorType::kQ4_K, 96), TensorType::kQ4_0);
  EXPECT_EQ(FittingType(TensorType::kQ6_K, 96), TensorType::kQ8_0);
  EXPECT_EQ(FittingType(TensorType::kQ4_K, 4), TensorType::kF16);
  EXPECT_EQ(FittingType(TensorType::kQ8_0, 40), TensorType::kF16);
  EXPECT_EQ(FittingType(TensorType::kF32, 3), TensorType::kF32);
}

}  // namespace
}  // namespace embergate::engine
