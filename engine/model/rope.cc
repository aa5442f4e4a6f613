#include "engine/model/rope.h"

#include <cmath>

namespace embergate::engine {

std::vector<float> InverseFrequencies(float base, int dim, absl::Span<const float> factors) {
  std::vector<float> frequencies(dim / 2);
  for (int i = 0; i < dim / 2; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(dim);
    frequencies[i] = 1.0f / static_cast<float>(std::pow(static_cast<double>(base), static_cast<double>(exponent)));
    if (!factors.empty()) {
      // Beyond this no position that can be served turns the pair by as much as a float32 can see.
      constexpr float kNoRotation = 1e29f;
      frequencies[i] = factors[i] < kNoRotation ? frequencies[i] / factors[i] : 0.0f;
    }
  }
  return frequencies;
}

void RopeAngles(absl::Span<const float> inverse_frequencies, int position, float* cos, float* sin) {
  for (size_t i = 0; i < inverse_frequencies.size(); ++i) {
    const float angle = static_cast<float>(position) * inverse_frequencies[i];
    cos[i] = std::cos(angle);
    sin[i] = std::sin(angle);
  }
}

}  // namespace embergate::engine
