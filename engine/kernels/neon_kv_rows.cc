// KV rows for NEON.
#include <arm_neon.h>

#include "engine/kernels/kernel_table.h"

namespace embergate::engine {
namespace {

float HalfAt(const uint8_t* p) {
  const uint16_t bits = static_cast<uint16_t>(p[0] | p[1] << 8);
  return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(bits))), 0);
}

// Stores the scale and returns what values are multiplied by.
float PutScale(float d, uint8_t* out) {
  const uint16_t bits = vget_lane_u16(vreinterpret_u16_f16(vcvt_f16_f32(vdupq_n_f32(d))), 0);
  out[0] = static_cast<uint8_t>(bits);
  out[1] = static_cast<uint8_t>(bits >> 8);
  const float stored = HalfAt(out);
  return stored == 0.0f ? 0.0f : 1.0f / stored;
}

// Rounded and clamped codes of 16 values, as bytes in order; NaN becomes the lowest.
int8x16_t Codes(const float* x, float inverse, float low, float high) {
  int32x4_t code[4];
  for (int i = 0; i < 4; ++i) {
    const float32x4_t scaled = vmulq_n_f32(vld1q_f32(x + 4 * i), inverse);
    const float32x4_t above = vmaxnmq_f32(scaled, vdupq_n_f32(low));
    code[i] = vcvtnq_s32_f32(vminnmq_f32(above, vdupq_n_f32(high)));
  }
  const int16x8_t first = vcombine_s16(vqmovn_s32(code[0]), vqmovn_s32(code[1]));
  const int16x8_t second = vcombine_s16(vqmovn_s32(code[2]), vqmovn_s32(code[3]));
  return vcombine_s8(vqmovn_s16(first), vqmovn_s16(second));
}

void StoreF16(const float* x, int64_t n, uint8_t* out) {
  for (int64_t i = 0; i < n; i += 4) {
    vst1_u8(out + 2 * i, vreinterpret_u8_f16(vcvt_f16_f32(vld1q_f32(x + i))));
  }
}

void StoreQ8_0(const float* x, int64_t n, uint8_t* out) {
  for (int64_t b = 0; b < n; b += 32, out += 34) {
    float32x4_t most = vdupq_n_f32(0);
    for (int i = 0; i < 32; i += 4) {
      most = vmaxnmq_f32(most, vabsq_f32(vld1q_f32(x + b + i)));
    }
    const float inverse = PutScale(vmaxvq_f32(most) / 127.0f, out);
    vst1q_s8(reinterpret_cast<int8_t*>(out + 2), Codes(x + b, inverse, -127, 127));
    vst1q_s8(reinterpret_cast<int8_t*>(out + 18), Codes(x + b + 16, inverse, -127, 127));
  }
}

void StoreQ4_0(const float* x, int64_t n, uint8_t* out) {
  for (int64_t b = 0; b < n; b += 32, out += 18) {
    float32x4_t most = vdupq_n_f32(0);
    float32x4_t least = vdupq_n_f32(0);
    for (int i = 0; i < 32; i += 4) {
      const float32x4_t v = vld1q_f32(x + b + i);
      most = vmaxnmq_f32(most, v);
      least = vminnmq_f32(least, v);
    }
    const float highest = vmaxvq_f32(most);
    const float lowest = vminvq_f32(least);
    const float inverse = PutScale((highest >= -lowest ? highest : lowest) / -8.0f, out);
    const int8x16_t eight = vdupq_n_s8(8);
    const uint8x16_t low = vreinterpretq_u8_s8(vaddq_s8(Codes(x + b, inverse, -8, 7), eight));
    const uint8x16_t high = vreinterpretq_u8_s8(vaddq_s8(Codes(x + b + 16, inverse, -8, 7), eight));
    vst1q_u8(out + 2, vorrq_u8(low, vshlq_n_u8(high, 4)));
  }
}

void Spread(int8x16_t codes, float d, float* out) {
  const int16x8_t low = vmovl_s8(vget_low_s8(codes));
  const int16x8_t high = vmovl_s8(vget_high_s8(codes));
  vst1q_f32(out, vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), d));
  vst1q_f32(out + 4, vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(vget_high_s16(low))), d));
  vst1q_f32(out + 8, vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), d));
  vst1q_f32(out + 12, vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(vget_high_s16(high))), d));
}

void LoadQ8_0(const uint8_t* row, int64_t n, float* out) {
  for (int64_t b = 0; b < n; b += 32, row += 34) {
    const float d = HalfAt(row);
    Spread(vreinterpretq_s8_u8(vld1q_u8(row + 2)), d, out + b);
    Spread(vreinterpretq_s8_u8(vld1q_u8(row + 18)), d, out + b + 16);
  }
}

void LoadQ4_0(const uint8_t* row, int64_t n, float* out) {
  const int8x16_t eight = vdupq_n_s8(8);
  for (int64_t b = 0; b < n; b += 32, row += 18) {
    const float d = HalfAt(row);
    const uint8x16_t bytes = vld1q_u8(row + 2);
    Spread(vsubq_s8(vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(15))), eight), d, out + b);
    Spread(vsubq_s8(vreinterpretq_s8_u8(vshrq_n_u8(bytes, 4)), eight), d, out + b + 16);
  }
}

}  // namespace

const KvRowTable kNeonKvRows = {StoreF16, StoreQ8_0, StoreQ4_0, LoadQ8_0, LoadQ4_0};

}  // namespace embergate::engine
