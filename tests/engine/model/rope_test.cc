#include "engine/model/rope.h"

#include <cmath>
#include <vector>

#include "gtest/gtest.h"

namespace embergate::engine {
namespace {

TEST(RopeTest, FrequenciesFallGeometrically) {
  const std::vector<float> f = InverseFrequencies(10000, 8, {});
  ASSERT_EQ(f.size(), 4u);
  for (int i = 0; i < 4; ++i) {
    EXPECT_NEAR(f[i], std::pow(10000.0, -2.0 * i / 8), 1e-7 * f[i]);
  }
}

// Partial rotation: the first pairs keep the whole head's exponent, the others do not turn at all.
TEST(RopeTest, HugeFactorStopsAPair) {
  const std::vector<float> factors = {1, 2, 1e30f, 1e30f};
  const std::vector<float> f = InverseFrequencies(10000, 8, factors);
  EXPECT_EQ(f[0], 1.0f);
  EXPECT_NEAR(f[1], 0.05f, 1e-8);
  EXPECT_EQ(f[2], 0.0f);
  EXPECT_EQ(f[3], 0.0f);
  std::vector<float> cos(4), sin(4);
  RopeAngles(f, 131071, cos.data(), sin.data());
  EXPECT_EQ(cos[3], 1.0f);
  EXPECT_EQ(sin[3], 0.0f);
  EXPECT_NEAR(cos[1], std::cos(131071.0f * f[1]), 1e-6);
  EXPECT_NEAR(sin[1], std::sin(131071.0f * f[1]), 1e-6);
}

}  // namespace
}  // namespace embergate::engine
