// The element-wise operations and attention for AVX2 and FMA.
#include "engine/kernels/attention_inl.h"
#include "engine/kernels/avx2_vector.h"
#include "engine/kernels/elementwise_inl.h"

namespace embergate::engine {

const ElementwiseTable kAvx2Elementwise = Elementwise<Avx2Vector>::kTable;
const AttentionTable kAvx2Attention = AttentionKernels<Avx2Vector>::kTable;

}  // namespace embergate::engine
