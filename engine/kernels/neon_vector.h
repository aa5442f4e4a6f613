// The vector type of elementwise_inl.h for NEON.
#ifndef EMBERGATE_ENGINE_KERNELS_NEON_VECTOR_H_
#define EMBERGATE_ENGINE_KERNELS_NEON_VECTOR_H_

#include <arm_neon.h>

#include <cstdint>

namespace embergate::engine {
namespace {

struct NeonVector {
  using Reg = float32x4_t;
  static constexpr int kLanes = 4;
  static constexpr int kScoreQueries = 8;
  static constexpr int kScoreSums = 16;

  static Reg Load(const float* p) { return vld1q_f32(p); }
  static Reg LoadHalf(const uint8_t* p) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p))));
  }
  static Reg LoadPart(const float* p, int n) {
    if (n >= 4) {
      return Load(p);
    }
    float part[4] = {0, 0, 0, 0};
    for (int i = 0; i < n; ++i) {
      part[i] = p[i];
    }
    return vld1q_f32(part);
  }
  static void Keep(Reg& v) { asm("" : "+w"(v)); }  // in a register, not in its instructions' memory operands
  static void Store(float* p, Reg v) { vst1q_f32(p, v); }
  static void StorePart(float* p, int n, Reg v) {
    if (n >= 4) {
      return Store(p, v);
    }
    float part[4];
    vst1q_f32(part, v);
    for (int i = 0; i < n; ++i) {
      p[i] = part[i];
    }
  }
  static Reg Set(float x) { return vdupq_n_f32(x); }
  static Reg Add(Reg a, Reg b) { return vaddq_f32(a, b); }
  static Reg Sub(Reg a, Reg b) { return vsubq_f32(a, b); }
  static Reg Mul(Reg a, Reg b) { return vmulq_f32(a, b); }
  static Reg Div(Reg a, Reg b) { return vdivq_f32(a, b); }
  static Reg Fma(Reg a, Reg b, Reg c) { return vfmaq_f32(c, a, b); }
  static Reg Min(Reg a, Reg b) { return vminq_f32(a, b); }
  static Reg Max(Reg a, Reg b) { return vmaxq_f32(a, b); }
  static Reg Abs(Reg a) { return vabsq_f32(a); }
  static Reg CopySign(Reg magnitude, Reg sign) { return vbslq_f32(vdupq_n_u32(0x80000000u), sign, magnitude); }
  static Reg Round(Reg a) { return vrndnq_f32(a); }
  static Reg ShiftExponent(Reg v, Reg n) {
    return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(v), vshlq_n_s32(vcvtnq_s32_f32(n), 23)));
  }
  static uint32x4_t Less(Reg a, Reg b) { return vcltq_f32(a, b); }
  static Reg Select(uint32x4_t mask, Reg a, Reg b) { return vbslq_f32(mask, a, b); }
  static float Total(Reg v) { return vaddvq_f32(v); }
  static float Largest(Reg v) { return vmaxvq_f32(v); }

  // out[i] = sum of the lanes of v[i]; the order of additions is the same for every i.
  static void Totals(const Reg* v, float* out) {
    Store(out, vpaddq_f32(vpaddq_f32(v[0], v[1]), vpaddq_f32(v[2], v[3])));
  }
};

}  // namespace
}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_KERNELS_NEON_VECTOR_H_
