#include <cmath>
#include <cstdint>
#include <limits>

#include "engine/kernels/float16.h"
#include "gtest/gtest.h"

namespace embergate::engine {
namespace {

TEST(HalfTest, EveryF16ValueSurvivesTheWayThroughF32) {
  for (uint32_t h = 0; h <= 0xffffu; ++h) {
    const uint16_t half = static_cast<uint16_t>(h);
    const float value = HalfToFloat(half);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(HalfToFloat(FloatToHalf(value))));
    } else {
      ASSERT_EQ(FloatToHalf(value), half) << "value " << value;
    }
  }
}

TEST(HalfTest, F16ValuesAreThoseOfTheDefinition) {
  for (uint32_t h = 0; h < 0x7c00u; ++h) {
    const int exponent = static_cast<int>(h >> 10);
    const double mantissa = h & 0x3ffu;
    const double expected = exponent == 0 ? mantissa * 0x1p-24 : std::ldexp(1.0 + mantissa / 1024.0, exponent - 15);
    ASSERT_EQ(static_cast<double>(HalfToFloat(static_cast<uint16_t>(h))), expected);
  }
}

// Between any two neighbours: below, at and above the middle. The middle goes to the even neighbour.
TEST(HalfTest, F16RoundsToNearestEven) {
  for (uint32_t h = 0; h < 0x7bffu; ++h) {
    const float low = HalfToFloat(static_cast<uint16_t>(h));
    const float high = HalfToFloat(static_cast<uint16_t>(h + 1));
    const float middle = (low + high) / 2;
    const uint32_t even = (h & 1u) == 0 ? h : h + 1;
    ASSERT_EQ(FloatToHalf(middle), even);
    ASSERT_EQ(FloatToHalf(std::nextafter(middle, low)), h);
    ASSERT_EQ(FloatToHalf(std::nextafter(middle, high)), h + 1);
    ASSERT_EQ(FloatToHalf(-middle), even | 0x8000u);
  }
}

TEST(HalfTest, F16BeyondTheRange) {
  EXPECT_EQ(FloatToHalf(65504.0f), 0x7bff);
  EXPECT_EQ(FloatToHalf(std::nextafter(65520.0f, 0.0f)), 0x7bff);
  EXPECT_EQ(FloatToHalf(65520.0f), 0x7c00);
  EXPECT_EQ(FloatToHalf(-1e30f), 0xfc00);
  EXPECT_EQ(FloatToHalf(1e-30f), 0);
  EXPECT_EQ(FloatToHalf(std::numeric_limits<float>::infinity()), 0x7c00);
}

TEST(HalfTest, Bf16RoundsToNearestEven) {
  for (uint32_t h = 0; h <= 0xffffu; ++h) {
    const uint16_t half = static_cast<uint16_t>(h);
    const float value = Bfloat16ToFloat(half);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(Bfloat16ToFloat(FloatToBfloat16(value))));
    } else {
      ASSERT_EQ(FloatToBfloat16(value), half);
    }
  }
  EXPECT_EQ(FloatToBfloat16(std::bit_cast<float>(0x3f808000u)), 0x3f80);  // a tie: to the even one below
  EXPECT_EQ(FloatToBfloat16(std::bit_cast<float>(0x3f818000u)), 0x3f82);  // a tie: to the even one above
  EXPECT_EQ(FloatToBfloat16(std::bit_cast<float>(0x3f808001u)), 0x3f81);
}

}  // namespace
}  // namespace embergate::engine
