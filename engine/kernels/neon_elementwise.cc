// The element-wise operations and attention for NEON.
#include "engine/kernels/attention_inl.h"
#include "engine/kernels/elementwise_inl.h"
#include "engine/kernels/neon_vector.h"

namespace embergate::engine {

const ElementwiseTable kNeonElementwise = Elementwise<NeonVector>::kTable;
const AttentionTable kNeonAttention = AttentionKernels<NeonVector>::kTable;

}  // namespace embergate::engine
