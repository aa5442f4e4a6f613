// Random blocks decode to values of mean 0 and the deviation asked for, in every type, and repeat for a seed.
#include "engine/convert/random_blocks.h"

#include <cmath>
#include <set>
#include <string>
#include <vector>

#include "engine/kernels/kernels.h"
#include "gtest/gtest.h"

namespace embergate::engine {
namespace {

using storage::TensorType;

class RandomBlocksTest : public ::testing::TestWithParam<TensorType> {
 protected:
  static constexpr int64_t kCount = 256 * 512;

  std::vector<uint8_t> Bytes(float deviation, uint64_t seed) {
    std::vector<uint8_t> bytes(*storage::BytesOf(GetParam(), kCount));
    RandomBlocks(GetParam(), deviation, seed).Fill(absl::MakeSpan(bytes));
    return bytes;
  }
  std::vector<float> Values(const std::vector<uint8_t>& bytes) {
    std::vector<float> values(kCount);
    DequantizeRow(GetParam(), bytes.data(), kCount, values.data());
    return values;
  }
};

TEST_P(RandomBlocksTest, MeanIsZeroAndDeviationIsAsAsked) {
  for (const float deviation : {1.0f / 16, 0.0255f, 0.009f}) {  // a PLE row, hidden 1536, feed-forward 12288
    const std::vector<float> values = Values(Bytes(deviation, 7));
    double sum = 0;
    double squares = 0;
    for (const float value : values) {
      ASSERT_TRUE(std::isfinite(value));
      sum += value;
      squares += double{value} * value;
    }
    const double mean = sum / kCount;
    const double rms = std::sqrt(squares / kCount);
    // The mean of n values strays by deviation / sqrt(n), more where blocks share a sign: 1/sqrt(n / 32) at most.
    EXPECT_NEAR(mean, 0, 4 * deviation / std::sqrt(kCount / 32.0)) << deviation;
    EXPECT_NEAR(rms / deviation, 1, 0.02) << deviation;
  }
}

TEST_P(RandomBlocksTest, BlocksDifferAndScalesVary) {
  const std::vector<uint8_t> bytes = Bytes(0.02f, 7);
  const size_t block = storage::TraitsOf(GetParam()).block_bytes;
  if (block <= 4) {
    return;  // F32, F16, BF16
  }
  std::set<std::string> blocks;
  for (size_t at = 0; at < bytes.size(); at += block) {
    blocks.insert(
        std::string(bytes.begin() + static_cast<ptrdiff_t>(at), bytes.begin() + static_cast<ptrdiff_t>(at + block)));
  }
  EXPECT_EQ(blocks.size(), bytes.size() / block);
  // Magnitudes of blocks spread: the largest of a block's values is not the same everywhere.
  const std::vector<float> values = Values(bytes);
  const size_t elements = storage::TraitsOf(GetParam()).block_elements;
  double low = 1e9;
  double high = 0;
  for (size_t at = 0; at < values.size(); at += elements) {
    double largest = 0;
    for (size_t i = at; i < at + elements; ++i) {
      largest = std::max(largest, std::abs(double{values[i]}));
    }
    low = std::min(low, largest);
    high = std::max(high, largest);
  }
  EXPECT_GT(high / low, 1.3);
}

TEST_P(RandomBlocksTest, NeighbouringRowsAreIndependent) {
  const std::vector<float> values = Values(Bytes(1.0f, 3));
  double product = 0;
  for (int64_t i = 0; i + 256 < kCount; ++i) {
    product += double{values[static_cast<size_t>(i)]} * values[static_cast<size_t>(i) + 256];
  }
  EXPECT_NEAR(product / kCount, 0, 5 / std::sqrt(kCount));
}

TEST_P(RandomBlocksTest, SameSeedSameBytesWhateverThePieces) {
  const std::vector<uint8_t> whole = Bytes(0.02f, 42);
  EXPECT_EQ(whole, Bytes(0.02f, 42));
  EXPECT_NE(whole, Bytes(0.02f, 43));
  RandomBlocks random(GetParam(), 0.02f, 42);
  std::vector<uint8_t> pieces(whole.size());
  const size_t step = 3 * random.PieceBytes();
  for (size_t at = 0; at < pieces.size(); at += step) {
    random.Fill(absl::MakeSpan(pieces).subspan(at, step));
  }
  EXPECT_EQ(pieces, whole);
}

INSTANTIATE_TEST_SUITE_P(AllTypes, RandomBlocksTest,
                         ::testing::Values(TensorType::kF32, TensorType::kF16, TensorType::kBF16, TensorType::kQ8_0,
                                           TensorType::kQ4_0, TensorType::kQ4_1, TensorType::kQ5_0, TensorType::kQ5_1,
                                           TensorType::kQ2_K, TensorType::kQ3_K, TensorType::kQ4_K, TensorType::kQ5_K,
                                           TensorType::kQ6_K, TensorType::kIQ4_NL, TensorType::kIQ4_XS),
                         [](const auto& test) { return std::string(storage::TraitsOf(test.param).name); });

TEST(RandomBlocksSupportTest, EveryServedTypeCanBeMadeAndNoOther) {
  for (uint32_t id = 0; id < 64; ++id) {
    if (const storage::TensorTypeTraits* const traits = storage::FindTensorType(id); traits != nullptr) {
      EXPECT_EQ(RandomBlocks::Supports(traits->type), IsSupportedWeightType(traits->type)) << traits->name;
    }
  }
}

TEST(RandomWordsTest, AnswersAreFixed) {
  // A change would make another file of the same seed.
  RandomWords words(1);
  std::vector<uint64_t> out(16);
  words.Fill(absl::MakeSpan(out));
  std::vector<uint64_t> again(16);
  RandomWords other(1);
  other.Fill(absl::MakeSpan(again).first(8));
  other.Fill(absl::MakeSpan(again).last(8));
  EXPECT_EQ(out, again);
  EXPECT_EQ(out[0], 0x4ff5bb8dee914928u);
  EXPECT_EQ(out[7], 0x9a5e3bc614c5a1e3u);
  EXPECT_EQ(out[8], 0x9b3df27e919f6a0cu);
}

}  // namespace
}  // namespace embergate::engine
