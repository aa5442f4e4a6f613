// 16-bit floats to and from f32, in portable code: exact one way, round to nearest even the other.
// For files, not for inner loops of the forward pass (engine/kernels has those).
#ifndef EMBERGATE_ENGINE_CONVERT_HALF_H_
#define EMBERGATE_ENGINE_CONVERT_HALF_H_

#include <bit>
#include <cstdint>

namespace embergate::engine {

inline float Bf16ToF32(uint16_t h) { return std::bit_cast<float>(static_cast<uint32_t>(h) << 16); }

inline uint16_t F32ToBf16(float f) {
  const uint32_t bits = std::bit_cast<uint32_t>(f);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    return static_cast<uint16_t>((bits >> 16) | 0x40u);  // NaN stays a (quiet) NaN
  }
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline float F16ToF32(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t rest = h & 0x7fffu;
  if (rest >= 0x7c00u) {  // infinity, NaN
    return std::bit_cast<float>(sign | 0x7f800000u | ((rest & 0x3ffu) << 13));
  }
  if (rest >= 0x0400u) {  // normal: the exponent's bias goes from 15 to 127
    return std::bit_cast<float>(sign | ((rest << 13) + (112u << 23)));
  }
  // Zero and subnormals are rest * 2^-24, exact in f32.
  const float magnitude = static_cast<float>(rest) * 0x1p-24f;
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(magnitude));
}

inline uint16_t F32ToF16(float f) {
  const uint32_t bits = std::bit_cast<uint32_t>(f);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t rest = bits & 0x7fffffffu;
  if (rest > 0x7f800000u) {
    return static_cast<uint16_t>(sign | 0x7e00u);  // NaN
  }
  if (rest >= 0x477ff000u) {  // from 65520 on everything rounds to infinity
    return static_cast<uint16_t>(sign | 0x7c00u);
  }
  if (rest >= 0x38800000u) {  // normal in f16: >= 2^-14
    const uint32_t rounded = rest + 0x0fffu + ((rest >> 13) & 1u);
    return static_cast<uint16_t>(sign | ((rounded - (112u << 23)) >> 13));
  }
  // Subnormal: adding 0.5 leaves the magnitude in units of 2^-24 in the low bits of the sum, rounded to even.
  const float shifted = std::bit_cast<float>(rest) + 0.5f;
  return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(0.5f)));
}

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_CONVERT_HALF_H_
