// The sparse column product with AVX2: the codes of two columns interleaved, times their two activations in pairs
// (maddubs). 64 rows at a time keep four 16-bit sums in registers while the columns pass.
#include <immintrin.h>

#include "engine/kernels/column_format.h"

namespace embergate::engine {
namespace {

inline __m256i Load(const uint8_t* p) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(p)); }

// 16 rows from `sum`, rows `row` onwards.
inline void Finish(const ColumnTask& task, __m256i sum, int row, __m256 x_scale) {
  const uint8_t* scales = task.group + kTileScalesOffset + 2 * row;
  const __m256i parts[2] = {_mm256_cvtepi16_epi32(_mm256_castsi256_si128(sum)),
                            _mm256_cvtepi16_epi32(_mm256_extracti128_si256(sum, 1))};
  for (int i = 0; i < 2; ++i) {
    float* acc = task.acc + row + 8 * i;
    const __m256 scale = _mm256_cvtph_ps(_mm_load_si128(reinterpret_cast<const __m128i*>(scales + 16 * i)));
    const __m256 value = _mm256_mul_ps(_mm256_cvtepi32_ps(parts[i]), scale);
    _mm256_store_ps(acc, _mm256_fmadd_ps(value, x_scale, _mm256_load_ps(acc)));
  }
}

void Columns(const ColumnTask& task) {
  const __m256i nibble = _mm256_set1_epi8(15);
  const __m256 x_scale = _mm256_set1_ps(task.x->scale);
  // 32 bytes of each column at a time: rows 16 (quarter % 2) + {0..15, 32..47, 64..79, 96..111} of a half.
  for (int quarter = 0; quarter < 4; ++quarter) {
    const uint8_t* bytes = task.group + 32 * quarter;
    __m256i sum[4];
    for (int i = 0; i < 4; ++i) {
      sum[i] = _mm256_set1_epi16(task.init);
    }
    for (int i = 0; i < task.count; i += 2) {
      const int c0 = task.columns[i];
      const bool pair = i + 1 < task.count;
      const int c1 = pair ? task.columns[i + 1] : c0;
      const unsigned q0 = static_cast<uint8_t>(task.x->q[c0]);
      const unsigned q1 = pair ? static_cast<uint8_t>(task.x->q[c1]) : 0;
      const __m256i q = _mm256_set1_epi16(static_cast<int16_t>(q0 | q1 << 8));
      const __m256i a = Load(bytes + c0 * kColumnBytes);
      const __m256i b = Load(bytes + c1 * kColumnBytes);
      const __m256i a_low = _mm256_and_si256(a, nibble);
      const __m256i b_low = _mm256_and_si256(b, nibble);
      const __m256i a_high = _mm256_and_si256(_mm256_srli_epi16(a, 4), nibble);
      const __m256i b_high = _mm256_and_si256(_mm256_srli_epi16(b, 4), nibble);
      sum[0] = _mm256_add_epi16(sum[0], _mm256_maddubs_epi16(_mm256_unpacklo_epi8(a_low, b_low), q));
      sum[1] = _mm256_add_epi16(sum[1], _mm256_maddubs_epi16(_mm256_unpackhi_epi8(a_low, b_low), q));
      sum[2] = _mm256_add_epi16(sum[2], _mm256_maddubs_epi16(_mm256_unpacklo_epi8(a_high, b_high), q));
      sum[3] = _mm256_add_epi16(sum[3], _mm256_maddubs_epi16(_mm256_unpackhi_epi8(a_high, b_high), q));
    }
    const int row = quarter / 2 * kHalfRows + quarter % 2 * 16;
    for (int i = 0; i < 4; ++i) {
      Finish(task, sum[i], row + 32 * i, x_scale);
    }
  }
}

}  // namespace

const SparseTable kAvx2Sparse = {Columns};

}  // namespace embergate::engine
