// The tables of kernels, one per instruction set, and which of them is in use. Internal to engine/kernels.
#ifndef EMBERGATE_ENGINE_KERNELS_KERNEL_TABLE_H_
#define EMBERGATE_ENGINE_KERNELS_KERNEL_TABLE_H_

#include <cstdint>

namespace embergate::engine {

// Contracts as in kernels.h, where the functions have the same names.
struct ElementwiseTable {
  float (*dot)(const float* a, const float* b, int64_t n);
  void (*rms_norm)(const float* x, const float* w, int64_t n, float eps, float* y);
  void (*gelu_tanh_mul)(const float* gate, const float* up, int64_t n, float* out);
  void (*add_scaled)(const float* a, const float* b, float s, int64_t n, float* out);
  void (*scale)(const float* a, float s, int64_t n, float* out);
  void (*softcap)(float* x, float cap, int64_t n);
  void (*rotate_half)(float* x, const float* cos, const float* sin, int64_t d);
};

struct KernelTable {
  const char* name;
  ElementwiseTable elementwise;
};

// The table in use.
const KernelTable& Kernels();

extern const ElementwiseTable kRefElementwise;

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_KERNELS_KERNEL_TABLE_H_
