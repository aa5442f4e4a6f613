// Block formats beside llama.cpp's own library: what it dequantises from the same bytes, and how well it quantises.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "engine/convert/quantize.h"
#include "engine/convert/random_blocks.h"
#include "engine/kernels/kernels.h"
#include "gtest/gtest.h"
#include "tests/engine/convert/llama_cpp.h"
#include "tests/engine/convert/test_weights.h"

namespace embergate::engine {
namespace {

using storage::TensorType;

class BlockFormatsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!HaveLlamaCpp()) {
      GTEST_SKIP() << NoLlamaCpp();
    }
    if (LlamaCppSymbol("ggml_quantize_chunk") == nullptr) {
      GTEST_SKIP() << "no libggml-base for this machine in the package";
    }
  }
};

TEST_F(BlockFormatsTest, EveryTypeIsDequantisedToTheSameBits) {
  struct Row {
    TensorType type;
    const char* function;
  };
  const Row rows[] = {{TensorType::kF16, "ggml_fp16_to_fp32_row"},    {TensorType::kBF16, "ggml_bf16_to_fp32_row"},
                      {TensorType::kQ8_0, "dequantize_row_q8_0"},     {TensorType::kQ4_0, "dequantize_row_q4_0"},
                      {TensorType::kQ4_1, "dequantize_row_q4_1"},     {TensorType::kQ5_0, "dequantize_row_q5_0"},
                      {TensorType::kQ5_1, "dequantize_row_q5_1"},     {TensorType::kQ2_K, "dequantize_row_q2_K"},
                      {TensorType::kQ3_K, "dequantize_row_q3_K"},     {TensorType::kQ4_K, "dequantize_row_q4_K"},
                      {TensorType::kQ5_K, "dequantize_row_q5_K"},     {TensorType::kQ6_K, "dequantize_row_q6_K"},
                      {TensorType::kIQ4_NL, "dequantize_row_iq4_nl"}, {TensorType::kIQ4_XS, "dequantize_row_iq4_xs"}};
  constexpr int64_t kValues = 256 * 400;
  for (const Row& row : rows) {
    using Dequantize = void (*)(const void*, float*, int64_t);
    const auto theirs = reinterpret_cast<Dequantize>(LlamaCppSymbol(row.function));
    ASSERT_NE(theirs, nullptr) << row.function;
    std::vector<uint8_t> blocks(*storage::BytesOf(row.type, kValues));
    RandomBlocks(row.type, 0.02f, 5).Fill(absl::MakeSpan(blocks));
    std::vector<float> expected(kValues);
    std::vector<float> ours(kValues);
    theirs(blocks.data(), expected.data(), kValues);
    DequantizeRow(row.type, blocks.data(), kValues, ours.data());
    int different = 0;
    for (int64_t i = 0; i < kValues; ++i) {
      // Where a product of scales is rounded once more or less, the last bit may differ.
      const float tolerance = std::abs(expected[i]) * 2.5e-7f;
      different += std::abs(ours[i] - expected[i]) <= tolerance ? 0 : 1;
    }
    EXPECT_EQ(different, 0) << row.function;
  }
}

TEST_F(BlockFormatsTest, OurQuantisersAreAsGoodAsTheStockOnes) {
  using QuantizeChunk = size_t (*)(int, const float*, void*, int64_t, int64_t, int64_t, const float*);
  const auto quantize = reinterpret_cast<QuantizeChunk>(LlamaCppSymbol("ggml_quantize_chunk"));
  for (int kind = 0; kind < kTestWeightKinds; ++kind) {
    const std::vector<float> x = TestWeights(kind, 1 << 18);
    for (const TensorType type : {TensorType::kQ8_0, TensorType::kQ4_0, TensorType::kQ4_K, TensorType::kQ6_K}) {
      std::vector<uint8_t> blocks(*storage::BytesOf(type, x.size()));
      quantize(static_cast<int>(type), x.data(), blocks.data(), 0, static_cast<int64_t>(x.size()) / 1024, 1024,
               nullptr);
      std::vector<float> y(x.size());
      DequantizeRow(type, blocks.data(), static_cast<int64_t>(y.size()), y.data());
      const double stock = RelativeRms(y, x);
      ASSERT_TRUE(QuantizeRow(type, x.data(), static_cast<int64_t>(x.size()), blocks.data()).ok());
      DequantizeRow(type, blocks.data(), static_cast<int64_t>(y.size()), y.data());
      const double ours = RelativeRms(y, x);
      std::printf("weights %d %-5s ours %.6f stock %.6f ratio %.4f\n", kind,
                  std::string(storage::TraitsOf(type).name).c_str(), ours, stock, ours / stock);
      EXPECT_LT(ours, 1.02 * stock);
    }
  }
}

}  // namespace
}  // namespace embergate::engine
