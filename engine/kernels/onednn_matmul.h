// Products of many tokens with F32, F16 or BF16 weights through oneDNN, where SetMatMulBackend (kernels.h) asks for it.
//
// Not the default, because its sums are not ours: a token's result depends on how many tokens share the call. Weights
// are held a second time, as f32 in the order that oneDNN prefers (made at a matrix's first such product). oneDNN runs
// on its own OpenMP threads. Its exceptions stop here.
#ifndef EMBERGATE_ENGINE_KERNELS_ONEDNN_MATMUL_H_
#define EMBERGATE_ENGINE_KERNELS_ONEDNN_MATMUL_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "engine/kernels/kernels.h"

namespace embergate::engine {

// Below this our own kernels are bound by memory and oneDNN is slower (tests/bench/README.md).
inline constexpr int kOneDnnTokensMin = 32;

// A matrix's weights in oneDNN's order, and the primitives for the token counts met so far.
class OneDnnWeights {
 public:
  // False in a build without oneDNN.
  static bool Available();
  // Null if oneDNN refuses (no memory, or an error of its own): the caller goes on with its own kernels.
  static std::unique_ptr<OneDnnWeights> Create(const Matrix& w);
  ~OneDnnWeights();

  // y = x W^T; rows `x_stride` and `y_stride` floats apart. False if oneDNN failed; y is then unspecified.
  bool Multiply(const float* x, int n, int64_t x_stride, float* y, int64_t y_stride);
  size_t bytes() const;

 private:
  struct State;
  explicit OneDnnWeights(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_KERNELS_ONEDNN_MATMUL_H_
