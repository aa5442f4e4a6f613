#include "engine/kernels/kernels.h"

#include "absl/strings/str_cat.h"
#include "engine/kernels/kernel_table.h"

namespace embergate::engine {
namespace {

const KernelTable kReference = {"reference", kRefElementwise};

}  // namespace

const KernelTable& Kernels() { return kReference; }

const char* KernelIsa() { return Kernels().name; }

std::vector<std::string> AvailableKernelIsas() { return {"reference"}; }

absl::Status ForceKernelIsa(const std::string& name) {
  for (const std::string& isa : AvailableKernelIsas()) {
    if (isa == name) {
      return absl::OkStatus();
    }
  }
  return absl::UnimplementedError(absl::StrCat("kernels for '", name, "' cannot run on this CPU"));
}

void RmsNorm(const float* x, const float* w, int64_t n, float eps, float* y) {
  Kernels().elementwise.rms_norm(x, w, n, eps, y);
}
void GeluTanhMul(const float* gate, const float* up, int64_t n, float* out) {
  Kernels().elementwise.gelu_tanh_mul(gate, up, n, out);
}
void Add(const float* a, const float* b, int64_t n, float* out) {
  Kernels().elementwise.add_scaled(a, b, 1.0f, n, out);
}
void AddScaled(const float* a, const float* b, float s, int64_t n, float* out) {
  Kernels().elementwise.add_scaled(a, b, s, n, out);
}
void Scale(const float* a, float s, int64_t n, float* out) { Kernels().elementwise.scale(a, s, n, out); }
void Softcap(float* x, float cap, int64_t n) { Kernels().elementwise.softcap(x, cap, n); }
float Dot(const float* a, const float* b, int64_t n) { return Kernels().elementwise.dot(a, b, n); }
float SumOfSquares(const float* x, int64_t n) { return Kernels().elementwise.dot(x, x, n); }
void RotateHalf(float* x, const float* cos, const float* sin, int64_t d) {
  Kernels().elementwise.rotate_half(x, cos, sin, d);
}

}  // namespace embergate::engine
