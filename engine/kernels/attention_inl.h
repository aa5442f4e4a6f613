// The parts of attention over a vector type V (see elementwise_inl.h), which here also has LoadHalf(p): kLanes f16
// values as f32; Keep(reg); Largest(reg); Totals(regs, out): the sums of kLanes registers' lanes, all in the same
// order; and how many queries and sums a tile of scores has. Included by the file of each instruction set.
#ifndef EMBERGATE_ENGINE_KERNELS_ATTENTION_INL_H_
#define EMBERGATE_ENGINE_KERNELS_ATTENTION_INL_H_

#include <cstdint>

#include "engine/kernels/elementwise_inl.h"
#include "engine/kernels/kernel_table.h"

namespace embergate::engine {

template <class V>
struct AttentionKernels {
  using Reg = typename V::Reg;
  static constexpr int kLanes = V::kLanes;

  template <bool kHalf>
  static Reg LoadRow(const uint8_t* row, int64_t i) {
    if constexpr (kHalf) {
      return V::LoadHalf(row + 2 * i);
    } else {
      return V::Load(reinterpret_cast<const float*>(row) + i);
    }
  }

  // Part `step` of `steps` of what is to be fetched.
  static void Fetch(const FetchAhead& ahead, int step, int steps) {
    const int64_t lines = ahead.bytes / 64;
    for (int64_t i = lines * step / steps; i < lines * (step + 1) / steps; ++i) {
      __builtin_prefetch(ahead.data + i * 64, /*rw=*/0, /*locality=*/2);
    }
  }

  // kQueries x kKeys dot products, one chain of additions each; a key is converted once for all queries.
  template <bool kHalf, int kQueries, int kKeys>
  static void ScoreTile(const float* const* q, int dim, const uint8_t* keys, int64_t row_bytes, float* scores) {
    constexpr int kSums = kQueries * kKeys;
    constexpr int kPadded = (kSums + kLanes - 1) / kLanes * kLanes;
    Reg sum[kPadded];
#pragma GCC unroll 16
    for (int i = 0; i < kPadded; ++i) {
      sum[i] = V::Set(0);
    }
    for (int d = 0; d < dim; d += kLanes) {
      Reg key[kKeys];
#pragma GCC unroll 16
      for (int k = 0; k < kKeys; ++k) {
        key[k] = LoadRow<kHalf>(keys + k * row_bytes, d);
      }
#pragma GCC unroll 8
      for (int i = 0; i < kQueries; ++i) {
        Reg x = V::Load(q[i] + d);
        V::Keep(x);  // loaded once, not once per key
#pragma GCC unroll 16
        for (int k = 0; k < kKeys; ++k) {
          sum[i * kKeys + k] = V::Fma(x, key[k], sum[i * kKeys + k]);
        }
      }
    }
    float totals[kPadded];
#pragma GCC unroll 4
    for (int i = 0; i < kPadded; i += kLanes) {
      V::Totals(sum + i, totals + i);
    }
#pragma GCC unroll 8
    for (int i = 0; i < kQueries; ++i) {
#pragma GCC unroll 16
      for (int k = 0; k < kKeys; ++k) {
        scores[i * kAttentionRow + k] = totals[i * kKeys + k];
      }
    }
  }

  template <bool kHalf, int kQueries>
  static void ScoreRows(const float* const* q, int dim, const uint8_t* keys, int64_t row_bytes, int count,
                        const FetchAhead& ahead, float* scores) {
    constexpr int kKeys = V::kScoreSums / kQueries;
    int k = 0;
    for (; k + kKeys <= count; k += kKeys) {
      Fetch(ahead, k / kKeys, count / kKeys);
      ScoreTile<kHalf, kQueries, kKeys>(q, dim, keys + k * row_bytes, row_bytes, scores + k);
    }
    for (; k < count; ++k) {
      ScoreTile<kHalf, kQueries, 1>(q, dim, keys + k * row_bytes, row_bytes, scores + k);
    }
  }

  // As many queries at once as there are, in powers of two from kQueries down.
  template <bool kHalf, int kQueries>
  static void ScoresFrom(const float* const* q, int queries, int dim, const uint8_t* keys, int64_t row_bytes, int count,
                         FetchAhead ahead, float* scores) {
    int i = 0;
    for (; i + kQueries <= queries; i += kQueries) {
      ScoreRows<kHalf, kQueries>(q + i, dim, keys, row_bytes, count, ahead, scores + i * kAttentionRow);
      ahead.bytes = 0;
    }
    if constexpr (kQueries > 1) {
      if (i < queries) {
        ScoresFrom<kHalf, kQueries / 2>(q + i, queries - i, dim, keys, row_bytes, count, ahead,
                                        scores + i * kAttentionRow);
      }
    }
  }

  template <bool kHalf>
  static void Scores(const float* const* q, int queries, int dim, const uint8_t* keys, int64_t row_bytes, int count,
                     const FetchAhead& ahead, float* scores) {
    ScoresFrom<kHalf, V::kScoreQueries>(q, queries, dim, keys, row_bytes, count, ahead, scores);
  }

  // kQueries rows of out, kRegs registers of columns: out = out * rescale + sum over positions, ascending.
  template <bool kHalf, int kQueries, int kRegs>
  static void ValueTile(const float* weights, const float* rescale, const uint8_t* values, int64_t row_bytes, int count,
                        int d, float* const* out) {
    Reg sum[kQueries][kRegs];
#pragma GCC unroll 8
    for (int i = 0; i < kQueries; ++i) {
#pragma GCC unroll 4
      for (int r = 0; r < kRegs; ++r) {
        sum[i][r] = V::Mul(V::Load(out[i] + d + r * kLanes), V::Set(rescale[i]));
      }
    }
    for (int p = 0; p < count; ++p) {
      Reg value[kRegs];
#pragma GCC unroll 4
      for (int r = 0; r < kRegs; ++r) {
        value[r] = LoadRow<kHalf>(values + p * row_bytes, d + r * kLanes);
      }
#pragma GCC unroll 8
      for (int i = 0; i < kQueries; ++i) {
        const Reg w = V::Set(weights[i * kAttentionRow + p]);
#pragma GCC unroll 4
        for (int r = 0; r < kRegs; ++r) {
          sum[i][r] = V::Fma(w, value[r], sum[i][r]);
        }
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kQueries; ++i) {
#pragma GCC unroll 4
      for (int r = 0; r < kRegs; ++r) {
        V::Store(out[i] + d + r * kLanes, sum[i][r]);
      }
    }
  }

  template <bool kHalf, int kQueries>
  static void ValueRows(const float* weights, const float* rescale, int dim, const uint8_t* values, int64_t row_bytes,
                        int count, const FetchAhead& ahead, float* const* out) {
    int d = 0;
    for (; d + 2 * kLanes <= dim; d += 2 * kLanes) {
      Fetch(ahead, d / (2 * kLanes), dim / (2 * kLanes));
      ValueTile<kHalf, kQueries, 2>(weights, rescale, values, row_bytes, count, d, out);
    }
    if (d < dim) {
      ValueTile<kHalf, kQueries, 1>(weights, rescale, values, row_bytes, count, d, out);
    }
  }

  template <bool kHalf, int kQueries>
  static void ValuesFrom(const float* weights, const float* rescale, int queries, int dim, const uint8_t* values,
                         int64_t row_bytes, int count, FetchAhead ahead, float* const* out) {
    int i = 0;
    for (; i + kQueries <= queries; i += kQueries) {
      ValueRows<kHalf, kQueries>(weights + i * kAttentionRow, rescale + i, dim, values, row_bytes, count, ahead,
                                 out + i);
      ahead.bytes = 0;
    }
    if constexpr (kQueries > 1) {
      if (i < queries) {
        ValuesFrom<kHalf, kQueries / 2>(weights + i * kAttentionRow, rescale + i, queries - i, dim, values, row_bytes,
                                        count, ahead, out + i);
      }
    }
  }

  template <bool kHalf>
  static void Values(const float* weights, const float* rescale, int queries, int dim, const uint8_t* values,
                     int64_t row_bytes, int count, const FetchAhead& ahead, float* const* out) {
    ValuesFrom<kHalf, V::kScoreQueries>(weights, rescale, queries, dim, values, row_bytes, count, ahead, out);
  }

  static float ExpOne(float x) {
    float out[V::kLanes];
    V::Store(out, Elementwise<V>::Exp(V::Set(x)));
    return out[0];
  }

  // The lanes of `scores` before `begin` and from `end` on are not the query's: they get weight 0. Every sum takes
  // all 32 lanes in the same order, so a weight's place in it is its position's.
  static float Softmax(float* scores, int begin, int end, float* maximum, float* sum) {
    const bool whole = begin == 0 && end == kAttentionRow;
    float top = *maximum;
    if (whole) {
      Reg largest = V::Set(top);
      for (int i = 0; i < kAttentionRow; i += kLanes) {
        largest = V::Max(V::Load(scores + i), largest);
      }
      top = V::Largest(largest);
    } else {
      for (int i = begin; i < end; ++i) {
        top = scores[i] > top ? scores[i] : top;
      }
      for (int i = 0; i < kAttentionRow; ++i) {
        scores[i] = i >= begin && i < end ? scores[i] : top;
      }
    }
    const float rescale = *sum == 0.0f ? 0.0f : *maximum == top ? 1.0f : ExpOne(*maximum - top);
    const Reg shift = V::Set(top);
    for (int i = 0; i < kAttentionRow; i += kLanes) {
      V::Store(scores + i, Elementwise<V>::Exp(V::Sub(V::Load(scores + i), shift)));
    }
    for (int i = 0; !whole && i < kAttentionRow; ++i) {
      scores[i] = i >= begin && i < end ? scores[i] : 0.0f;
    }
    Reg total = V::Load(scores);
    for (int i = kLanes; i < kAttentionRow; i += kLanes) {
      total = V::Add(total, V::Load(scores + i));
    }
    *sum = *sum * rescale + V::Total(total);
    *maximum = top;
    return rescale;
  }

  static constexpr AttentionTable kTable = {Scores<false>, Scores<true>, Softmax, Values<false>, Values<true>, ExpOne};
};

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_KERNELS_ATTENTION_INL_H_
