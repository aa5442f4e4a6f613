// The vector type of elementwise_inl.h for AVX-512 (F, DQ). Only for files compiled for them.
#ifndef EMBERGATE_ENGINE_KERNELS_AVX512_VECTOR_H_
#define EMBERGATE_ENGINE_KERNELS_AVX512_VECTOR_H_

#include <immintrin.h>

#include <cstdint>

namespace embergate::engine {
namespace {

struct Avx512Vector {
  using Reg = __m512;
  static constexpr int kLanes = 16;
  static constexpr int kScoreQueries = 8;
  static constexpr int kScoreSums = 16;

  static __mmask16 Mask(int n) { return static_cast<__mmask16>((1u << n) - 1); }
  static Reg Load(const float* p) { return _mm512_loadu_ps(p); }
  static Reg LoadHalf(const uint8_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static Reg LoadPart(const float* p, int n) { return n >= 16 ? Load(p) : _mm512_maskz_loadu_ps(Mask(n), p); }
  static void Keep(Reg& v) { asm("" : "+v"(v)); }  // in a register, not in its instructions' memory operands
  static void Store(float* p, Reg v) { _mm512_storeu_ps(p, v); }
  static void StorePart(float* p, int n, Reg v) { n >= 16 ? Store(p, v) : _mm512_mask_storeu_ps(p, Mask(n), v); }
  static Reg Set(float x) { return _mm512_set1_ps(x); }
  static Reg Add(Reg a, Reg b) { return _mm512_add_ps(a, b); }
  static Reg Sub(Reg a, Reg b) { return _mm512_sub_ps(a, b); }
  static Reg Mul(Reg a, Reg b) { return _mm512_mul_ps(a, b); }
  static Reg Div(Reg a, Reg b) { return _mm512_div_ps(a, b); }
  static Reg Fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
  static Reg Min(Reg a, Reg b) { return _mm512_min_ps(a, b); }
  static Reg Max(Reg a, Reg b) { return _mm512_max_ps(a, b); }
  static Reg Abs(Reg a) { return _mm512_andnot_ps(Set(-0.0f), a); }
  static Reg CopySign(Reg magnitude, Reg sign) { return _mm512_or_ps(Abs(magnitude), _mm512_and_ps(Set(-0.0f), sign)); }
  static Reg Round(Reg a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static Reg ShiftExponent(Reg v, Reg n) {
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(v), _mm512_slli_epi32(_mm512_cvtps_epi32(n), 23)));
  }
  static __mmask16 Less(Reg a, Reg b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
  static Reg Select(__mmask16 mask, Reg a, Reg b) { return _mm512_mask_blend_ps(mask, b, a); }

  // Lanes 0..7 onto 8..15, then 0..3 onto 4..7, and so on down to one.
  static float Total(Reg v) {
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
  }
  static float Largest(Reg v) {
    const __m256 half = _mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 top = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    top = _mm_max_ps(top, _mm_movehl_ps(top, top));
    return _mm_cvtss_f32(_mm_max_ss(top, _mm_movehdup_ps(top)));
  }

  // out[i] = sum of the lanes of v[i]; the order of additions is the same for every i.
  static void Totals(const Reg* v, float* out) {
    Reg pairs[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      pairs[i] = Add(_mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]), _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]));
    }
    // Each 128-bit part now holds v[2i], v[2i + 1] in turns; below, those of four neighbours side by side.
    Reg quads[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      quads[i] = Add(Unpack(pairs[2 * i], pairs[2 * i + 1], Low()), Unpack(pairs[2 * i], pairs[2 * i + 1], High()));
    }
    const Reg left =
        Add(_mm512_shuffle_f32x4(quads[0], quads[1], 0x88), _mm512_shuffle_f32x4(quads[0], quads[1], 0xdd));
    const Reg right =
        Add(_mm512_shuffle_f32x4(quads[2], quads[3], 0x88), _mm512_shuffle_f32x4(quads[2], quads[3], 0xdd));
    Store(out, Add(_mm512_shuffle_f32x4(left, right, 0x88), _mm512_shuffle_f32x4(left, right, 0xdd)));
  }

 private:
  struct Low {};
  struct High {};
  static Reg Unpack(Reg a, Reg b, Low) {
    return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
  }
  static Reg Unpack(Reg a, Reg b, High) {
    return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
  }
};

}  // namespace
}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_KERNELS_AVX512_VECTOR_H_
