// The element-wise operations against double precision, on every instruction set, and the promise that an element's
// value does not depend on its place.
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "engine/kernels/kernels.h"
#include "gtest/gtest.h"

namespace embergate::engine {
namespace {

class ElementwiseTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override { ASSERT_TRUE(ForceKernelIsa(GetParam()).ok()); }
  void TearDown() override { ASSERT_TRUE(ForceKernelIsa(AvailableKernelIsas().front()).ok()); }
};

std::vector<float> Random(size_t n, float spread, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, spread);
  std::vector<float> x(n);
  for (float& value : x) {
    value = normal(random);
  }
  return x;
}

constexpr int64_t kSizes[] = {1, 3, 7, 8, 9, 31, 32, 33, 63, 64, 256, 1000};

double Gelu(double x) { return x / (1 + std::exp(-2 * std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))); }

// Both operands of the reference's 0.5 g (1 + tanh u) are rounded to f32, so it is only absolutely accurate where
// 1 + tanh u cancels; the vector versions keep 2e-6 relative everywhere above the smallest normal numbers.
TEST_P(ElementwiseTest, GeluTanhMul) {
  std::vector<float> gate;
  for (float x = -12.0f; x < 12.0f; x += 0.00731f) {
    gate.push_back(x);
  }
  const std::vector<float> up(gate.size(), 1.5f);
  std::vector<float> out(gate.size());
  GeluTanhMul(gate.data(), up.data(), static_cast<int64_t>(gate.size()), out.data());
  for (size_t i = 0; i < gate.size(); ++i) {
    const double expected = 1.5 * Gelu(gate[i]);
    const double relative = GetParam() == "reference" ? 1e-6 : std::max(2e-6, 4e-6 * std::fabs(expected) / 10);
    const double absolute = GetParam() == "reference" ? 3e-6 : 1e-35;
    // e^x of a rounded argument is off by the argument's rounding: |u| up to 90 far out.
    const double argument = std::fabs(gate[i]) > 3 ? 2e-5 : 0;
    ASSERT_NEAR(out[i], expected, std::fabs(expected) * (relative + argument) + absolute) << gate[i];
  }
  const float extremes[] = {-1e30f, 1e30f, -INFINITY, INFINITY, NAN, 0.0f};
  const float ones[] = {1, 1, 1, 1, 1, 1};
  float result[6];
  GeluTanhMul(extremes, ones, 6, result);
  EXPECT_EQ(std::fabs(result[0]) < 1e-6f, true) << result[0];
  EXPECT_EQ(result[1], 1e30f);
  EXPECT_TRUE(std::isnan(result[4]));
  EXPECT_EQ(result[5], 0.0f);
}

TEST_P(ElementwiseTest, Softcap) {
  std::vector<float> x;
  for (float v = -200.0f; v < 200.0f; v += 0.0873f) {
    x.push_back(v);
  }
  for (float v = 1e-6f; v < 1.0f; v *= 1.7f) {
    x.push_back(-v);
  }
  std::vector<float> y = x;
  Softcap(y.data(), 30.0f, static_cast<int64_t>(y.size()));
  for (size_t i = 0; i < x.size(); ++i) {
    const double expected = 30 * std::tanh(static_cast<double>(x[i]) / 30);
    ASSERT_NEAR(y[i], expected, std::fabs(expected) * 1e-6) << x[i];
  }
}

TEST_P(ElementwiseTest, SumsAgreeWithDoublePrecision) {
  for (const int64_t n : kSizes) {
    const std::vector<float> a = Random(static_cast<size_t>(n), 1, 1);
    const std::vector<float> b = Random(static_cast<size_t>(n), 1, 2);
    double dot = 0;
    double squares = 0;
    double magnitude = 0;
    for (size_t i = 0; i < a.size(); ++i) {
      dot += static_cast<double>(a[i]) * b[i];
      squares += static_cast<double>(a[i]) * a[i];
      magnitude += std::fabs(static_cast<double>(a[i]) * b[i]);
    }
    // Each chain adds n / 32 terms, then five sums of chains and lanes.
    const double epsilon = (static_cast<double>(n) / 32 + 6) * 0x1p-24;
    EXPECT_NEAR(Dot(a.data(), b.data(), n), dot, epsilon * magnitude) << n;
    EXPECT_NEAR(SumOfSquares(a.data(), n), squares, epsilon * squares) << n;

    std::vector<float> y(a.size());
    const double scale = 1 / std::sqrt(squares / static_cast<double>(n) + 1e-6);
    RmsNorm(a.data(), b.data(), n, 1e-6f, y.data());
    for (size_t i = 0; i < a.size(); ++i) {
      EXPECT_NEAR(y[i], a[i] * scale * b[i], std::fabs(a[i] * scale * b[i]) * (epsilon + 4 * 0x1p-24));
    }
    RmsNorm(a.data(), nullptr, n, 1e-6f, y.data());
    for (size_t i = 0; i < a.size(); ++i) {
      EXPECT_NEAR(y[i], a[i] * scale, std::fabs(a[i] * scale) * (epsilon + 4 * 0x1p-24));
    }
  }
}

TEST_P(ElementwiseTest, SimpleOnesWriteExactlyTheirElements) {
  for (const int64_t n : kSizes) {
    const std::vector<float> a = Random(static_cast<size_t>(n), 1, 1);
    const std::vector<float> b = Random(static_cast<size_t>(n), 1, 2);
    std::vector<float> out(static_cast<size_t>(n) + 1, 77.0f);
    Add(a.data(), b.data(), n, out.data());
    for (size_t i = 0; i < a.size(); ++i) {
      ASSERT_EQ(out[i], a[i] + b[i]);
    }
    AddScaled(a.data(), b.data(), 0.3f, n, out.data());
    for (size_t i = 0; i < a.size(); ++i) {
      ASSERT_NEAR(out[i], a[i] + 0.3f * b[i], 2e-7 * (std::fabs(a[i]) + std::fabs(b[i])));
    }
    Scale(a.data(), 0.3f, n, out.data());
    for (size_t i = 0; i < a.size(); ++i) {
      ASSERT_EQ(out[i], a[i] * 0.3f);
    }
    EXPECT_EQ(out.back(), 77.0f);
  }
}

TEST_P(ElementwiseTest, RotateHalfTurnsPairs) {
  for (const int64_t d : {2, 6, 16, 32, 64, 256, 512}) {
    std::vector<float> x = Random(static_cast<size_t>(d), 1, 3);
    const std::vector<float> before = x;
    std::vector<float> cos;
    std::vector<float> sin;
    for (int64_t i = 0; i < d / 2; ++i) {
      cos.push_back(std::cos(0.1f * static_cast<float>(i)));
      sin.push_back(std::sin(0.1f * static_cast<float>(i)));
    }
    RotateHalf(x.data(), cos.data(), sin.data(), d);
    for (size_t i = 0; i < cos.size(); ++i) {
      const double a = before[i];
      const double b = before[i + cos.size()];
      ASSERT_NEAR(x[i], a * cos[i] - b * sin[i], 1e-6);
      ASSERT_NEAR(x[i + cos.size()], b * cos[i] + a * sin[i], 1e-6);
    }
  }
}

// The same number at every lane and in every tail.
TEST_P(ElementwiseTest, AnElementsValueDoesNotDependOnItsPlace) {
  const float value = 0.73105f;
  for (int64_t n = 1; n < 40; ++n) {
    std::vector<float> x(static_cast<size_t>(n), value);
    std::vector<float> out(x.size());
    GeluTanhMul(x.data(), x.data(), n, out.data());
    Softcap(x.data(), 5.0f, n);
    float one = value;
    float gelu = 0;
    GeluTanhMul(&one, &one, 1, &gelu);
    Softcap(&one, 5.0f, 1);
    for (size_t i = 0; i < x.size(); ++i) {
      ASSERT_EQ(out[i], gelu) << n;
      ASSERT_EQ(x[i], one) << n;
    }
  }
}

std::string IsaName(const testing::TestParamInfo<std::string>& info) { return info.param; }

INSTANTIATE_TEST_SUITE_P(Isas, ElementwiseTest, testing::ValuesIn(AvailableKernelIsas()), IsaName);

}  // namespace
}  // namespace embergate::engine
