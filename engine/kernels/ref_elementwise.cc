// The element-wise operations as their formulas read: the truth that the vector versions are tested against, and what
// runs on a CPU that has none of them.
#include <cmath>

#include "engine/kernels/kernel_table.h"

namespace embergate::engine {
namespace {

float RefDot(const float* a, const float* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  }
  return static_cast<float>(sum);
}

void RefRmsNorm(const float* x, const float* w, int64_t n, float eps, float* y) {
  const float mean = RefDot(x, x, n) / static_cast<float>(n);
  const float scale = 1.0f / std::sqrt(mean + eps);
  for (int64_t i = 0; i < n; ++i) {
    y[i] = w == nullptr ? x[i] * scale : x[i] * scale * w[i];
  }
}

void RefGeluTanhMul(const float* gate, const float* up, int64_t n, float* out) {
  constexpr float kSqrt2OverPi = 0.7978845608028654f;
  for (int64_t i = 0; i < n; ++i) {
    const float g = gate[i];
    const float inner = kSqrt2OverPi * (g + 0.044715f * g * g * g);
    out[i] = 0.5f * g * (1.0f + std::tanh(inner)) * up[i];
  }
}

void RefAddScaled(const float* a, const float* b, float s, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) {
    out[i] = a[i] + s * b[i];
  }
}

void RefScale(const float* a, float s, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) {
    out[i] = a[i] * s;
  }
}

void RefSoftcap(float* x, float cap, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    x[i] = cap * std::tanh(x[i] / cap);
  }
}

void RefRotateHalf(float* x, const float* cos, const float* sin, int64_t d) {
  for (int64_t i = 0; i < d / 2; ++i) {
    const float a = x[i];
    const float b = x[i + d / 2];
    x[i] = a * cos[i] - b * sin[i];
    x[i + d / 2] = b * cos[i] + a * sin[i];
  }
}

}  // namespace

const ElementwiseTable kRefElementwise = {RefDot,   RefRmsNorm, RefGeluTanhMul, RefAddScaled,
                                          RefScale, RefSoftcap, RefRotateHalf};

}  // namespace embergate::engine
