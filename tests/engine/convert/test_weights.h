// Made-up weights of several distributions, and how far a rounded copy is from them.
#ifndef EMBERGATE_TESTS_ENGINE_CONVERT_TEST_WEIGHTS_H_
#define EMBERGATE_TESTS_ENGINE_CONVERT_TEST_WEIGHTS_H_

#include <cmath>
#include <cstddef>
#include <random>
#include <vector>

namespace embergate::engine {

inline double RelativeRms(const std::vector<float>& y, const std::vector<float>& x) {
  double error = 0;
  double sum = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    error += (y[i] - x[i]) * static_cast<double>(y[i] - x[i]);
    sum += x[i] * static_cast<double>(x[i]);
  }
  return std::sqrt(error / sum);
}

// Kinds of weights: normal, uniform, heavy-tailed (Student's t with 4 degrees of freedom), and groups of 64 whose
// spread alternates 1 : 5 around a mean that is not zero.
constexpr int kTestWeightKinds = 4;
inline std::vector<float> TestWeights(int kind, size_t n) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal(0.0f, 0.02f);
  std::uniform_real_distribution<float> uniform(-0.05f, 0.05f);
  std::student_t_distribution<float> student(4.0f);
  std::vector<float> x(n);
  for (size_t i = 0; i < n; ++i) {
    switch (kind) {
      case 0:
        x[i] = normal(random);
        break;
      case 1:
        x[i] = uniform(random);
        break;
      case 2:
        x[i] = 0.01f * student(random);
        break;
      default:
        x[i] = normal(random) * (i / 64 % 2 == 0 ? 0.2f : 1.0f) + 0.01f;
    }
  }
  return x;
}

}  // namespace embergate::engine

#endif  // EMBERGATE_TESTS_ENGINE_CONVERT_TEST_WEIGHTS_H_
