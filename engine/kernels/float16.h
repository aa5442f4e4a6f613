// Conversions between f32 and the two 16-bit float formats, in plain C++ (IEEE 754 half, and bfloat16 = the upper
// half of an f32). Exact on the way up, round-to-nearest-even on the way down; NaN stays NaN.
#ifndef EMBERGATE_ENGINE_KERNELS_FLOAT16_H_
#define EMBERGATE_ENGINE_KERNELS_FLOAT16_H_

#include <cstdint>
#include <cstring>

namespace embergate::engine {

inline float FloatFromBits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline uint32_t BitsOfFloat(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline float HalfToFloat(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t magnitude = half & 0x7fffu;
  if (magnitude >= 0x7c00u) {  // infinity, NaN
    return FloatFromBits(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  }
  if (magnitude >= 0x0400u) {
    return FloatFromBits(sign | ((magnitude << 13) + (112u << 23)));
  }
  const float subnormal = static_cast<float>(magnitude) * 0x1p-24f;  // exact
  return FloatFromBits(sign | BitsOfFloat(subnormal));
}

inline uint16_t FloatToHalf(float value) {
  const uint32_t bits = BitsOfFloat(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    return static_cast<uint16_t>(sign | 0x7e00u);
  }
  if (magnitude >= 0x477ff000u) {  // 65520 and above round to infinity
    return static_cast<uint16_t>(sign | 0x7c00u);
  }
  if (magnitude < 0x38800000u) {  // below 2^-14: adding 0.5 leaves the result, rounded, in the low bits
    const float shifted = FloatFromBits(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (BitsOfFloat(shifted) - 0x3f000000u));
  }
  const uint32_t odd = (magnitude >> 13) & 1u;
  return static_cast<uint16_t>(sign | ((magnitude - (112u << 23) + 0xfffu + odd) >> 13));
}

inline float Bfloat16ToFloat(uint16_t value) { return FloatFromBits(static_cast<uint32_t>(value) << 16); }

inline uint16_t FloatToBfloat16(float value) {
  const uint32_t bits = BitsOfFloat(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    return static_cast<uint16_t>((bits >> 16) | 0x40u);
  }
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// Little endian, any alignment: how files store them.
inline uint16_t LoadU16(const uint8_t* p) { return static_cast<uint16_t>(p[0] | p[1] << 8); }
inline float LoadHalf(const uint8_t* p) { return HalfToFloat(LoadU16(p)); }

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_KERNELS_FLOAT16_H_
