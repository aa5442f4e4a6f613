// The vector type of elementwise_inl.h for AVX2 and FMA. Only for files compiled for them.
#ifndef EMBERGATE_ENGINE_KERNELS_AVX2_VECTOR_H_
#define EMBERGATE_ENGINE_KERNELS_AVX2_VECTOR_H_

#include <immintrin.h>

#include <cstdint>

namespace embergate::engine {
namespace {

struct Avx2Vector {
  using Reg = __m256;
  static constexpr int kLanes = 8;
  static constexpr int kScoreQueries = 4;
  static constexpr int kScoreSums = 8;

  static __m256i Mask(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static Reg Load(const float* p) { return _mm256_loadu_ps(p); }
  static Reg LoadHalf(const uint8_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static Reg LoadPart(const float* p, int n) { return n >= 8 ? Load(p) : _mm256_maskload_ps(p, Mask(n)); }
  static void Keep(Reg& v) { asm("" : "+x"(v)); }  // in a register, not in its instructions' memory operands
  static void Store(float* p, Reg v) { _mm256_storeu_ps(p, v); }
  static void StorePart(float* p, int n, Reg v) { n >= 8 ? Store(p, v) : _mm256_maskstore_ps(p, Mask(n), v); }
  static Reg Set(float x) { return _mm256_set1_ps(x); }
  static Reg Add(Reg a, Reg b) { return _mm256_add_ps(a, b); }
  static Reg Sub(Reg a, Reg b) { return _mm256_sub_ps(a, b); }
  static Reg Mul(Reg a, Reg b) { return _mm256_mul_ps(a, b); }
  static Reg Div(Reg a, Reg b) { return _mm256_div_ps(a, b); }
  static Reg Fma(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }
  static Reg Min(Reg a, Reg b) { return _mm256_min_ps(a, b); }
  static Reg Max(Reg a, Reg b) { return _mm256_max_ps(a, b); }
  static Reg Abs(Reg a) { return _mm256_andnot_ps(Set(-0.0f), a); }
  static Reg CopySign(Reg magnitude, Reg sign) { return _mm256_or_ps(Abs(magnitude), _mm256_and_ps(Set(-0.0f), sign)); }
  static Reg Round(Reg a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static Reg ShiftExponent(Reg v, Reg n) {
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(v), _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23)));
  }
  static Reg Less(Reg a, Reg b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
  static Reg Select(Reg mask, Reg a, Reg b) { return _mm256_blendv_ps(b, a, mask); }
  static float Total(Reg v) {
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
  }
  static float Largest(Reg v) {
    __m128 top = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    top = _mm_max_ps(top, _mm_movehl_ps(top, top));
    return _mm_cvtss_f32(_mm_max_ss(top, _mm_movehdup_ps(top)));
  }

  // out[i] = sum of the lanes of v[i]; the order of additions is the same for every i.
  static void Totals(const Reg* v, float* out) {
    const Reg left = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
    const Reg right = _mm256_hadd_ps(_mm256_hadd_ps(v[4], v[5]), _mm256_hadd_ps(v[6], v[7]));
    Store(out, Add(_mm256_permute2f128_ps(left, right, 0x20), _mm256_permute2f128_ps(left, right, 0x31)));
  }
};

}  // namespace
}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_KERNELS_AVX2_VECTOR_H_
