// The sparse column product with NEON, any Armv8: the codes less 8 of a column times its activation, widened to 16 bits
// as they are added up. 32 rows at a time keep four 16-bit sums in registers while the columns pass.
#include <arm_neon.h>

#include "engine/kernels/column_format.h"

namespace embergate::engine {
namespace {

// 8 rows from `sum`, rows `row` onwards.
inline void Finish(const ColumnTask& task, int16x8_t sum, int row) {
  const uint8_t* scales = task.group + kTileScalesOffset + 2 * row;
  const float16x8_t halves = vreinterpretq_f16_u8(vld1q_u8(scales));
  const float32x4_t scale[2] = {vcvt_f32_f16(vget_low_f16(halves)), vcvt_high_f32_f16(halves)};
  const int32x4_t part[2] = {vmovl_s16(vget_low_s16(sum)), vmovl_high_s16(sum)};
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    float* acc = task.acc + row + 4 * i;
    vst1q_f32(acc, vfmaq_n_f32(vld1q_f32(acc), vmulq_f32(vcvtq_f32_s32(part[i]), scale[i]), task.x->scale));
  }
}

void Columns(const ColumnTask& task) {
  const int8x16_t eight = vdupq_n_s8(8);
  const uint8x16_t nibble = vdupq_n_u8(15);
  // 16 bytes of each column at a time: rows 8 (part % 4) + {0..7, 32..39, 64..71, 96..103} of a half.
  for (int part = 0; part < 8; ++part) {
    const uint8_t* bytes = task.group + 16 * part;
    int16x8_t sum[4] = {vdupq_n_s16(0), vdupq_n_s16(0), vdupq_n_s16(0), vdupq_n_s16(0)};
    for (int i = 0; i < task.count; ++i) {
      const int c = task.columns[i];
      const int8x16_t q = vdupq_n_s8(task.x->q[c]);
      const uint8x16_t codes = vld1q_u8(bytes + c * kColumnBytes);
      const int8x16_t low = vsubq_s8(vreinterpretq_s8_u8(vandq_u8(codes, nibble)), eight);
      const int8x16_t high = vsubq_s8(vreinterpretq_s8_u8(vshrq_n_u8(codes, 4)), eight);
      sum[0] = vmlal_s8(sum[0], vget_low_s8(low), vget_low_s8(q));
      sum[1] = vmlal_high_s8(sum[1], low, q);
      sum[2] = vmlal_s8(sum[2], vget_low_s8(high), vget_low_s8(q));
      sum[3] = vmlal_high_s8(sum[3], high, q);
    }
    const int row = part / 4 * kHalfRows + part % 4 * 8;
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      Finish(task, sum[i], row + 32 * i);
    }
  }
}

}  // namespace

const SparseTable kNeonSparse = {Columns};

}  // namespace embergate::engine
