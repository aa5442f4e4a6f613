// The element-wise operations over a vector type V, included by the file of each instruction set (V in an anonymous
// namespace there, so that no two sets share an instantiation).
//
// V has: Reg; kLanes; Load, LoadPart(p, n) with zeros behind, Store, StorePart, Set, Add, Sub, Mul, Div, Fma(a, b, c) =
// a * b + c in one rounding, Min, Max, Abs, CopySign(magnitude, sign), Round (to nearest even), ShiftExponent(v, n) =
// v * 2^n for whole n, Less(a, b) as a mask, Select(mask, a, b), Total(reg) = sum of the lanes in one fixed order.
//
// Every element goes through the same operations whatever its lane and whether it is in a tail: a tail is a vector
// whose other lanes are ignored.
#ifndef EMBERGATE_ENGINE_KERNELS_ELEMENTWISE_INL_H_
#define EMBERGATE_ENGINE_KERNELS_ELEMENTWISE_INL_H_

#include <cstdint>

#include "engine/kernels/kernel_table.h"

namespace embergate::engine {

template <class V>
struct Elementwise {
  using Reg = typename V::Reg;
  static constexpr int64_t kLanes = V::kLanes;

  // Cody and Waite: x = n ln 2 + r, |r| <= ln 2 / 2, ln 2 in two parts; a polynomial of degree 6 for e^r (coefficients
  // of Cephes' expf). Relative error below 2e-7; arguments are clamped to where the result is a normal number.
  static Reg Exp(Reg x) {
    x = V::Min(V::Max(x, V::Set(-87.0f)), V::Set(88.0f));
    const Reg n = V::Round(V::Mul(x, V::Set(1.44269504f)));
    Reg r = V::Fma(n, V::Set(-0.693359375f), x);
    r = V::Fma(n, V::Set(2.12194440e-4f), r);
    Reg p = V::Set(1.9875691500e-4f);
    p = V::Fma(p, r, V::Set(1.3981999507e-3f));
    p = V::Fma(p, r, V::Set(8.3334519073e-3f));
    p = V::Fma(p, r, V::Set(4.1665795894e-2f));
    p = V::Fma(p, r, V::Set(1.6666665459e-1f));
    p = V::Fma(p, r, V::Set(5.0000001201e-1f));
    const Reg e = V::Add(V::Fma(p, V::Mul(r, r), r), V::Set(1.0f));
    return V::ShiftExponent(e, n);
  }

  // An odd polynomial (Cephes' tanhf) near zero, where 1 - 2 / (e^2x + 1) would lose its relative accuracy.
  static Reg Tanh(Reg x) {
    const Reg magnitude = V::Abs(x);
    const Reg e = Exp(V::Add(magnitude, magnitude));
    const Reg far = V::Sub(V::Set(1.0f), V::Div(V::Set(2.0f), V::Add(e, V::Set(1.0f))));
    const Reg z = V::Mul(x, x);
    Reg p = V::Set(-5.70498872745e-3f);
    p = V::Fma(p, z, V::Set(2.06390887954e-2f));
    p = V::Fma(p, z, V::Set(-5.37397155531e-2f));
    p = V::Fma(p, z, V::Set(1.33314422036e-1f));
    p = V::Fma(p, z, V::Set(-3.33332819422e-1f));
    const Reg near = V::Fma(V::Mul(p, z), magnitude, magnitude);
    return V::CopySign(V::Select(V::Less(magnitude, V::Set(0.625f)), near, far), x);
  }

  // gelu_tanh(x) = x (1 + tanh(u)) / 2 = x / (1 + e^(-2u)), u = sqrt(2 / pi) (x + 0.044715 x^3): the second form keeps
  // its relative accuracy where 1 + tanh(u) cancels.
  static Reg GeluTanh(Reg x) {
    const Reg inner = V::Fma(V::Mul(V::Set(0.044715f), V::Mul(x, x)), x, x);
    const Reg e = Exp(V::Mul(V::Set(-2.0f * 0.7978845608028654f), inner));
    return V::Div(x, V::Add(V::Set(1.0f), e));
  }

  // out[i] = f(i, load) for all i; `load` reads a vector at i from a pointer.
  template <class F>
  static void Map(int64_t n, float* out, F f) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      V::Store(out + i, f([i](const float* p) { return V::Load(p + i); }));
    }
    if (i < n) {
      const int left = static_cast<int>(n - i);
      V::StorePart(out + i, left, f([i, left](const float* p) { return V::LoadPart(p + i, left); }));
    }
  }

  // Four chains of additions; element i always goes to chain i / kLanes % 4.
  static float Dot(const float* a, const float* b, int64_t n) {
    Reg sum[4] = {V::Set(0), V::Set(0), V::Set(0), V::Set(0)};
    int64_t i = 0;
    for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) {
        sum[k] = V::Fma(V::Load(a + i + k * kLanes), V::Load(b + i + k * kLanes), sum[k]);
      }
    }
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {  // each sum by its constant index: it then stays in a register
      if (i < n) {
        const int left = static_cast<int>(n - i < kLanes ? n - i : kLanes);
        sum[k] = V::Fma(V::LoadPart(a + i, left), V::LoadPart(b + i, left), sum[k]);
        i += kLanes;
      }
    }
    return V::Total(V::Add(V::Add(sum[0], sum[1]), V::Add(sum[2], sum[3])));
  }

  static void RmsNorm(const float* x, const float* w, int64_t n, float eps, float* y) {
    const float mean = Dot(x, x, n) / static_cast<float>(n);
    const Reg scale = V::Set(1.0f / __builtin_sqrtf(mean + eps));
    if (w == nullptr) {
      Map(n, y, [&](auto load) { return V::Mul(load(x), scale); });
    } else {
      Map(n, y, [&](auto load) { return V::Mul(V::Mul(load(x), scale), load(w)); });
    }
  }

  static void GeluTanhMul(const float* gate, const float* up, int64_t n, float* out) {
    Map(n, out, [&](auto load) { return V::Mul(GeluTanh(load(gate)), load(up)); });
  }

  static void AddScaled(const float* a, const float* b, float s, int64_t n, float* out) {
    const Reg factor = V::Set(s);
    Map(n, out, [&](auto load) { return V::Fma(load(b), factor, load(a)); });
  }

  static void Scale(const float* a, float s, int64_t n, float* out) {
    const Reg factor = V::Set(s);
    Map(n, out, [&](auto load) { return V::Mul(load(a), factor); });
  }

  static void Softcap(float* x, float cap, int64_t n) {
    const Reg limit = V::Set(cap);
    Map(n, x, [&](auto load) { return V::Mul(limit, Tanh(V::Div(load(x), limit))); });
  }

  static void RotateHalf(float* x, const float* cos, const float* sin, int64_t d) {
    float* y = x + d / 2;
    for (int64_t i = 0; i < d / 2; i += kLanes) {
      const int left = static_cast<int>(d / 2 - i < kLanes ? d / 2 - i : kLanes);
      const Reg a = V::LoadPart(x + i, left);
      const Reg b = V::LoadPart(y + i, left);
      const Reg c = V::LoadPart(cos + i, left);
      const Reg s = V::LoadPart(sin + i, left);
      V::StorePart(x + i, left, V::Sub(V::Mul(a, c), V::Mul(b, s)));
      V::StorePart(y + i, left, V::Fma(a, s, V::Mul(b, c)));
    }
  }

  static constexpr ElementwiseTable kTable = {Dot, RmsNorm, GeluTanhMul, AddScaled, Scale, Softcap, RotateHalf};
};

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_KERNELS_ELEMENTWISE_INL_H_
