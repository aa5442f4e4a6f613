// Which table of kernels is in use, and the element-wise functions' way into it.
#include "engine/kernels/kernels.h"

#include <atomic>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/kernels/column_format.h"
#include "engine/kernels/kernel_table.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace embergate::engine {
namespace {

#if defined(__x86_64__)

bool HasAvx2() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kF16c = 1u << 29;
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __get_cpuid(1, &a, &b, &c, &d) != 0 &&
         (c & kF16c) != 0;
}

bool HasAvx512Vnni() {
  return HasAvx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
}

#elif defined(__aarch64__)

// From the kernel's hwcap.h; spelt out because older headers lack the second.
constexpr unsigned long kHwcapAsimdDp = 1ul << 20;
constexpr unsigned long kHwcap2I8mm = 1ul << 13;

bool HasDotProduct() { return (getauxval(AT_HWCAP) & kHwcapAsimdDp) != 0; }
bool HasI8mm() { return HasDotProduct() && (getauxval(AT_HWCAP2) & kHwcap2I8mm) != 0; }

#endif

bool Always() { return true; }

struct Candidate {
  KernelTable table;
  bool (*runs_here)();
};

// Best first.
constexpr Candidate kCandidates[] = {
#if defined(__x86_64__)
    {{"avx512vnni", &kAvx512Elementwise, &kAvx512Attention, &kAvx512Machine, &kAvx512MatMul, &kAvx2KvRows,
      &kAvx512Sparse},
     HasAvx512Vnni},
    {{"avx2", &kAvx2Elementwise, &kAvx2Attention, &kAvx2Machine, &kAvx2MatMul, &kAvx2KvRows, &kAvx2Sparse}, HasAvx2},
#elif defined(__aarch64__)
    {{"neon_i8mm", &kNeonElementwise, &kNeonAttention, &kNeonI8mmMachine, &kNeonI8mmMatMul, &kNeonKvRows, &kNeonSparse},
     HasI8mm},
    {{"neon_dotprod", &kNeonElementwise, &kNeonAttention, &kNeonDotMachine, &kNeonDotMatMul, &kNeonKvRows,
      &kNeonSparse},
     HasDotProduct},
    {{"neon", &kNeonElementwise, &kNeonAttention, &kNeonMachine, &kNeonMatMul, &kNeonKvRows, &kNeonSparse}, Always},
#endif
    {{"reference", &kRefElementwise, &kRefAttention, &kRefMachine, &kRefMatMul, &kRefKvRows, &kRefSparse}, Always},
};

const KernelTable* Best() {
  for (const Candidate& candidate : kCandidates) {
    if (candidate.runs_here()) {
      return &candidate.table;
    }
  }
  return nullptr;  // not reached: the reference runs everywhere
}

std::atomic<const KernelTable*>& Current() {
  static std::atomic<const KernelTable*> current{Best()};
  return current;
}

}  // namespace

const KernelTable& Kernels() { return *Current().load(std::memory_order_relaxed); }

const char* KernelIsa() { return Kernels().name; }

std::vector<std::string> AvailableKernelIsas() {
  std::vector<std::string> names;
  for (const Candidate& candidate : kCandidates) {
    if (candidate.runs_here()) {
      names.emplace_back(candidate.table.name);
    }
  }
  return names;
}

absl::Status ForceKernelIsa(const std::string& name) {
  for (const Candidate& candidate : kCandidates) {
    if (candidate.table.name == name && candidate.runs_here()) {
      Current().store(&candidate.table, std::memory_order_relaxed);
      return absl::OkStatus();
    }
  }
  return absl::UnimplementedError(
      absl::StrCat("this CPU has no '", name, "' kernels; it has ", absl::StrJoin(AvailableKernelIsas(), ", ")));
}

void RmsNorm(const float* x, const float* w, int64_t n, float eps, float* y) {
  Kernels().elementwise->rms_norm(x, w, n, eps, y);
}
void GeluTanhMul(const float* gate, const float* up, int64_t n, float* out) {
  Kernels().elementwise->gelu_tanh_mul(gate, up, n, out);
}
void Add(const float* a, const float* b, int64_t n, float* out) {
  Kernels().elementwise->add_scaled(a, b, 1.0f, n, out);
}
void AddScaled(const float* a, const float* b, float s, int64_t n, float* out) {
  Kernels().elementwise->add_scaled(a, b, s, n, out);
}
void Scale(const float* a, float s, int64_t n, float* out) { Kernels().elementwise->scale(a, s, n, out); }
void Softcap(float* x, float cap, int64_t n) { Kernels().elementwise->softcap(x, cap, n); }
float Dot(const float* a, const float* b, int64_t n) { return Kernels().elementwise->dot(a, b, n); }
float SumOfSquares(const float* x, int64_t n) { return Kernels().elementwise->dot(x, x, n); }
void RotateHalf(float* x, const float* cos, const float* sin, int64_t d) {
  Kernels().elementwise->rotate_half(x, cos, sin, d);
}

}  // namespace embergate::engine
