#include "storage/tensor_type.h"

#include "gtest/gtest.h"

namespace embergate::storage {
namespace {

TEST(TensorTypeTest, BytesOfCountsWholeBlocksOnly) {
  EXPECT_EQ(BytesOf(TensorType::kQ4_0, 64), 36u);
  EXPECT_EQ(BytesOf(TensorType::kQ6_K, 256), 210u);
  EXPECT_EQ(BytesOf(TensorType::kQ4_0, 33), std::nullopt);
  EXPECT_EQ(BytesOf(TensorType::kF32, ~uint64_t{0}), std::nullopt);
}

TEST(TensorTypeTest, NamesAndIdsFindTheSameTraits) {
  EXPECT_EQ(FindTensorTypeByName("q4_k"), FindTensorType(12));
  EXPECT_EQ(FindTensorType(4), nullptr);  // a retired type
  EXPECT_EQ(FindTensorTypeByName("Q9_9"), nullptr);
}

}  // namespace
}  // namespace embergate::storage
