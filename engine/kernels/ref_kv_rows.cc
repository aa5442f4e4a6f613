// KV rows in plain C++: the truth that the vector versions equal bit for bit.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "engine/kernels/float16.h"
#include "engine/kernels/kernel_table.h"

namespace embergate::engine {
namespace {

void PutU16(uint16_t value, uint8_t* out) {
  out[0] = static_cast<uint8_t>(value);
  out[1] = static_cast<uint8_t>(value >> 8);
}

void StoreF16(const float* x, int64_t n, uint8_t* out) {
  for (int64_t i = 0; i < n; ++i) {
    PutU16(FloatToHalf(x[i]), out + 2 * i);
  }
}

float Inverse(uint16_t scale) {
  const float d = HalfToFloat(scale);
  return d == 0.0f ? 0.0f : 1.0f / d;
}

// To the nearest code, ties to even; NaN becomes the lowest.
int Code(float x, float low, float high) {
  const float above = x > low ? x : low;
  return static_cast<int>(std::nearbyint(above < high ? above : high));
}

void StoreQ8_0(const float* x, int64_t n, uint8_t* out) {
  for (int64_t b = 0; b < n; b += 32, out += 34) {
    float largest = 0;
    for (int i = 0; i < 32; ++i) {
      const float a = std::fabs(x[b + i]);
      largest = a > largest ? a : largest;
    }
    const uint16_t scale = FloatToHalf(largest / 127.0f);
    const float inverse = Inverse(scale);
    PutU16(scale, out);
    for (int i = 0; i < 32; ++i) {
      out[2 + i] = static_cast<uint8_t>(Code(x[b + i] * inverse, -127, 127));
    }
  }
}

// Codes are -8 .. 7: the extreme value becomes -8, whatever its sign.
void StoreQ4_0(const float* x, int64_t n, uint8_t* out) {
  for (int64_t b = 0; b < n; b += 32, out += 18) {
    float most = 0;
    float least = 0;
    for (int i = 0; i < 32; ++i) {
      most = x[b + i] > most ? x[b + i] : most;
      least = x[b + i] < least ? x[b + i] : least;
    }
    const uint16_t scale = FloatToHalf((most >= -least ? most : least) / -8.0f);
    const float inverse = Inverse(scale);
    PutU16(scale, out);
    for (int i = 0; i < 16; ++i) {
      const int low = Code(x[b + i] * inverse, -8, 7) + 8;
      const int high = Code(x[b + i + 16] * inverse, -8, 7) + 8;
      out[2 + i] = static_cast<uint8_t>(low | high << 4);
    }
  }
}

void LoadQ8_0(const uint8_t* row, int64_t n, float* out) {
  for (int64_t b = 0; b < n; b += 32, row += 34) {
    const float d = LoadHalf(row);
    for (int i = 0; i < 32; ++i) {
      out[b + i] = d * static_cast<float>(static_cast<int8_t>(row[2 + i]));
    }
  }
}

void LoadQ4_0(const uint8_t* row, int64_t n, float* out) {
  for (int64_t b = 0; b < n; b += 32, row += 18) {
    const float d = LoadHalf(row);
    for (int i = 0; i < 16; ++i) {
      out[b + i] = d * static_cast<float>((row[2 + i] & 15) - 8);
      out[b + i + 16] = d * static_cast<float>((row[2 + i] >> 4) - 8);
    }
  }
}

}  // namespace

const KvRowTable kRefKvRows = {StoreF16, StoreQ8_0, StoreQ4_0, LoadQ8_0, LoadQ4_0};

}  // namespace embergate::engine
