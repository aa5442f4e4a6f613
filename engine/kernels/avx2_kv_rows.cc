// KV rows for AVX2 and F16C.
#include <immintrin.h>

#include "engine/kernels/kernel_table.h"

namespace embergate::engine {
namespace {

constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

float HalfAt(const uint8_t* p) {
  const int bits = p[0] | p[1] << 8;
  return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits)));
}

// Stores the scale and returns what values are multiplied by.
float PutScale(float d, uint8_t* out) {
  const int bits = _mm_cvtsi128_si32(_mm_cvtps_ph(_mm_set_ss(d), kNearest));
  out[0] = static_cast<uint8_t>(bits);
  out[1] = static_cast<uint8_t>(bits >> 8);
  const float stored = HalfAt(out);
  return stored == 0.0f ? 0.0f : 1.0f / stored;
}

float Highest(__m256 v) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

// Rounded and clamped codes of 32 values, as bytes in order.
__m256i Codes(const float* x, float inverse, float low, float high) {
  __m256i code[4];
  for (int i = 0; i < 4; ++i) {
    const __m256 scaled = _mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), _mm256_set1_ps(inverse));
    // max and min give their second operand for NaN.
    const __m256 clamped = _mm256_min_ps(_mm256_max_ps(scaled, _mm256_set1_ps(low)), _mm256_set1_ps(high));
    code[i] = _mm256_cvtps_epi32(_mm256_round_ps(clamped, kNearest));
  }
  const __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(code[0], code[1]), _mm256_packs_epi32(code[2], code[3]));
  return _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

void StoreF16(const float* x, int64_t n, uint8_t* out) {
  for (int64_t i = 0; i < n; i += 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 2 * i), _mm256_cvtps_ph(_mm256_loadu_ps(x + i), kNearest));
  }
}

void StoreQ8_0(const float* x, int64_t n, uint8_t* out) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  for (int64_t b = 0; b < n; b += 32, out += 34) {
    __m256 most = _mm256_setzero_ps();
    for (int i = 0; i < 32; i += 8) {
      most = _mm256_max_ps(_mm256_andnot_ps(sign, _mm256_loadu_ps(x + b + i)), most);
    }
    const float inverse = PutScale(Highest(most) / 127.0f, out);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 2), Codes(x + b, inverse, -127, 127));
  }
}

void StoreQ4_0(const float* x, int64_t n, uint8_t* out) {
  for (int64_t b = 0; b < n; b += 32, out += 18) {
    __m256 most = _mm256_setzero_ps();
    __m256 least = _mm256_setzero_ps();
    for (int i = 0; i < 32; i += 8) {
      const __m256 v = _mm256_loadu_ps(x + b + i);
      most = _mm256_max_ps(v, most);
      least = _mm256_min_ps(v, least);
    }
    const float highest = Highest(most);
    const float lowest = -Highest(_mm256_sub_ps(_mm256_setzero_ps(), least));
    const float inverse = PutScale((highest >= -lowest ? highest : lowest) / -8.0f, out);
    const __m256i codes = _mm256_add_epi8(Codes(x + b, inverse, -8, 7), _mm256_set1_epi8(8));
    const __m128i low = _mm256_castsi256_si128(codes);
    const __m128i high = _mm_slli_epi16(_mm256_extracti128_si256(codes, 1), 4);  // codes < 16: no bit crosses a byte
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 2), _mm_or_si128(low, high));
  }
}

void Spread(__m128i codes, __m256 d, float* out) {
  _mm256_storeu_ps(out, _mm256_mul_ps(d, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes))));
  _mm256_storeu_ps(out + 8, _mm256_mul_ps(d, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(codes, 8)))));
}

void LoadQ8_0(const uint8_t* row, int64_t n, float* out) {
  for (int64_t b = 0; b < n; b += 32, row += 34) {
    const __m256 d = _mm256_set1_ps(HalfAt(row));
    Spread(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row + 2)), d, out + b);
    Spread(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row + 18)), d, out + b + 16);
  }
}

void LoadQ4_0(const uint8_t* row, int64_t n, float* out) {
  const __m128i nibble = _mm_set1_epi8(15);
  const __m128i eight = _mm_set1_epi8(8);
  for (int64_t b = 0; b < n; b += 32, row += 18) {
    const __m256 d = _mm256_set1_ps(HalfAt(row));
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + 2));
    Spread(_mm_sub_epi8(_mm_and_si128(bytes, nibble), eight), d, out + b);
    Spread(_mm_sub_epi8(_mm_and_si128(_mm_srli_epi16(bytes, 4), nibble), eight), d, out + b + 16);
  }
}

}  // namespace

const KvRowTable kAvx2KvRows = {StoreF16, StoreQ8_0, StoreQ4_0, LoadQ8_0, LoadQ4_0};

}  // namespace embergate::engine
