// The element-wise operations and attention for AVX-512.
#include "engine/kernels/attention_inl.h"
#include "engine/kernels/avx512_vector.h"
#include "engine/kernels/elementwise_inl.h"

namespace embergate::engine {
namespace {

using Kernels512 = AttentionKernels<Avx512Vector>;

// A head size that is no multiple of 16 (none of the released models has one) is left to AVX2, whose registers divide
// any multiple of 8.
template <bool kHalf>
void Scores(const float* const* q, int queries, int dim, const uint8_t* keys, int64_t row_bytes, int count,
            const FetchAhead& ahead, float* scores) {
  const auto function = dim % 16 == 0 ? Kernels512::Scores<kHalf>
                        : kHalf       ? kAvx2Attention.scores_f16
                                      : kAvx2Attention.scores_f32;
  function(q, queries, dim, keys, row_bytes, count, ahead, scores);
}

template <bool kHalf>
void Values(const float* weights, const float* rescale, int queries, int dim, const uint8_t* values, int64_t row_bytes,
            int count, const FetchAhead& ahead, float* const* out) {
  const auto function = dim % 16 == 0 ? Kernels512::Values<kHalf>
                        : kHalf       ? kAvx2Attention.values_f16
                                      : kAvx2Attention.values_f32;
  function(weights, rescale, queries, dim, values, row_bytes, count, ahead, out);
}

}  // namespace

const ElementwiseTable kAvx512Elementwise = Elementwise<Avx512Vector>::kTable;
const AttentionTable kAvx512Attention = {Scores<false>, Scores<true>, Kernels512::Softmax,
                                         Values<false>, Values<true>, Kernels512::ExpOne};

}  // namespace embergate::engine
