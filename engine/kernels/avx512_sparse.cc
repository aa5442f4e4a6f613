// The sparse column product with AVX-512: as with AVX2, 128 rows at a time.
#include <immintrin.h>

#include "engine/kernels/column_format.h"

namespace embergate::engine {
namespace {

inline __m512i Load(const uint8_t* p) { return _mm512_load_si512(p); }

// 32 rows from `sum`, rows `row` onwards.
inline void Finish(const ColumnTask& task, __m512i sum, int row, __m512 x_scale) {
  const uint8_t* scales = task.group + kTileScalesOffset + 2 * row;
  const __m512i parts[2] = {_mm512_cvtepi16_epi32(_mm512_castsi512_si256(sum)),
                            _mm512_cvtepi16_epi32(_mm512_extracti64x4_epi64(sum, 1))};
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    float* acc = task.acc + row + 16 * i;
    const __m512 scale = _mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(scales + 32 * i)));
    const __m512 value = _mm512_mul_ps(_mm512_cvtepi32_ps(parts[i]), scale);
    _mm512_store_ps(acc, _mm512_fmadd_ps(value, x_scale, _mm512_load_ps(acc)));
  }
}

void Columns(const ColumnTask& task) {
  const __m512i nibble = _mm512_set1_epi8(15);
  const __m512 x_scale = _mm512_set1_ps(task.x->scale);
  __m512i sum[2][4];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    sum[i / 4][i % 4] = _mm512_set1_epi16(task.init);
  }
  for (int i = 0; i < task.count; i += 2) {
    const int c0 = task.columns[i];
    const bool pair = i + 1 < task.count;
    const int c1 = pair ? task.columns[i + 1] : c0;
    const unsigned q0 = static_cast<uint8_t>(task.x->q[c0]);
    const unsigned q1 = pair ? static_cast<uint8_t>(task.x->q[c1]) : 0;
    const __m512i q = _mm512_set1_epi16(static_cast<int16_t>(q0 | q1 << 8));
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const __m512i a = Load(task.group + c0 * kColumnBytes + 64 * half);
      const __m512i b = Load(task.group + c1 * kColumnBytes + 64 * half);
      const __m512i a_low = _mm512_and_si512(a, nibble);
      const __m512i b_low = _mm512_and_si512(b, nibble);
      const __m512i a_high = _mm512_and_si512(_mm512_srli_epi16(a, 4), nibble);
      const __m512i b_high = _mm512_and_si512(_mm512_srli_epi16(b, 4), nibble);
      __m512i* s = sum[half];
      s[0] = _mm512_add_epi16(s[0], _mm512_maddubs_epi16(_mm512_unpacklo_epi8(a_low, b_low), q));
      s[1] = _mm512_add_epi16(s[1], _mm512_maddubs_epi16(_mm512_unpackhi_epi8(a_low, b_low), q));
      s[2] = _mm512_add_epi16(s[2], _mm512_maddubs_epi16(_mm512_unpacklo_epi8(a_high, b_high), q));
      s[3] = _mm512_add_epi16(s[3], _mm512_maddubs_epi16(_mm512_unpackhi_epi8(a_high, b_high), q));
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    Finish(task, sum[i / 4][i % 4], i * 32, x_scale);
  }
}

}  // namespace

const SparseTable kAvx512Sparse = {Columns};

}  // namespace embergate::engine
