// Attention as its formulas read: the truth that the vector versions are tested against.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "engine/kernels/float16.h"
#include "engine/kernels/kernel_table.h"

namespace embergate::engine {
namespace {

template <bool kHalf>
float At(const uint8_t* row, int i) {
  if (kHalf) {
    return LoadHalf(row + 2 * i);
  }
  float value;
  std::memcpy(&value, row + 4 * i, 4);
  return value;
}

template <bool kHalf>
void Scores(const float* const* q, int queries, int dim, const uint8_t* keys, int64_t row_bytes, int count,
            const FetchAhead& /*ahead*/, float* scores) {
  for (int i = 0; i < queries; ++i) {
    for (int k = 0; k < count; ++k) {
      double sum = 0;
      for (int d = 0; d < dim; ++d) {
        sum += static_cast<double>(q[i][d]) * static_cast<double>(At<kHalf>(keys + k * row_bytes, d));
      }
      scores[i * kAttentionRow + k] = static_cast<float>(sum);
    }
  }
}

float Softmax(float* scores, int begin, int end, float* maximum, float* sum) {
  const float top = std::max(*maximum, *std::max_element(scores + begin, scores + end));
  const float rescale = *sum == 0.0f ? 0.0f : std::exp(*maximum - top);
  float total = 0;
  for (int i = 0; i < kAttentionRow; ++i) {
    scores[i] = i >= begin && i < end ? std::exp(scores[i] - top) : 0.0f;
    total += scores[i];
  }
  *sum = *sum * rescale + total;
  *maximum = top;
  return rescale;
}

template <bool kHalf>
void Values(const float* weights, const float* rescale, int queries, int dim, const uint8_t* values, int64_t row_bytes,
            int count, const FetchAhead& /*ahead*/, float* const* out) {
  for (int i = 0; i < queries; ++i) {
    for (int d = 0; d < dim; ++d) {
      double sum = static_cast<double>(out[i][d]) * static_cast<double>(rescale[i]);
      for (int p = 0; p < count; ++p) {
        sum += static_cast<double>(weights[i * kAttentionRow + p]) *
               static_cast<double>(At<kHalf>(values + p * row_bytes, d));
      }
      out[i][d] = static_cast<float>(sum);
    }
  }
}

float Exp(float x) { return std::exp(x); }

}  // namespace

const AttentionTable kRefAttention = {Scores<false>, Scores<true>, Softmax, Values<false>, Values<true>, Exp};

}  // namespace embergate::engine
