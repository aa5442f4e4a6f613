// The element-wise operations for AVX2 and FMA.
#include "engine/kernels/avx2_vector.h"
#include "engine/kernels/elementwise_inl.h"

namespace embergate::engine {

const ElementwiseTable kAvx2Elementwise = Elementwise<Avx2Vector>::kTable;

}  // namespace embergate::engine
