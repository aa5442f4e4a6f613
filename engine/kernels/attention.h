// softmax(q k) v over a KV cache whose rows lie in blocks of 32 positions, in one pass (running maximum and sum).
//
// Deterministic: a query walks its visible positions in blocks counted from position 0, blocks are grouped into
// segments of 512 positions, and segments are merged in ascending order. So its result depends on its own range and
// on the cache only: not on the other queries of the call, the cut of the prompt, or who computed which segment.
// Per block, scores and weighted sums of several queries (heads that share a KV head, tokens of a prompt) are small
// matrix products that read each key and value once.
#ifndef EMBERGATE_ENGINE_KERNELS_ATTENTION_H_
#define EMBERGATE_ENGINE_KERNELS_ATTENTION_H_

#include <cstdint>

#include "absl/functional/function_ref.h"
#include "absl/types/span.h"
#include "storage/tensor_type.h"

namespace embergate::engine {

inline constexpr int kAttentionBlock = 32;     // positions per KV block
inline constexpr int kAttentionSegment = 512;  // positions per segment: what one worker takes in a long context
// Queries of one call. Eight heads of four tokens read each KV row from the first-level cache 31 times out of 32.
inline constexpr int kAttentionQueriesMax = 32;

struct AttentionShape {
  storage::TensorType type = storage::TensorType::kF32;  // of keys and values; F32 and F16 are read as they are
  int head_dim = 0;                                      // any multiple of 8
  int64_t row_bytes = 0;                                 // from one position's key (value) to the next
};

// Row 0 of a block's keys and of its values, for the KV head at hand.
struct AttentionBlock {
  const uint8_t* keys;
  const uint8_t* values;
};
using AttentionBlocks = absl::FunctionRef<AttentionBlock(int block)>;

// One query row: q [head_dim], already scaled; sees positions [begin, end), begin < end.
struct AttentionQuery {
  const float* q;
  int begin;
  int end;
  float* out;  // [head_dim]
};

// A query's state over some of its positions: out (unnormalised, in `out` of the query), maximum and sum.
struct AttentionState {
  float maximum;
  float sum;
};

// Floats of scratch that one call needs.
int64_t AttentionScratchFloats(int head_dim);

// out = softmax(q . keys) values for every query, at most kAttentionQueriesMax of them. Any thread.
void Attend(const AttentionShape& shape, absl::Span<const AttentionQuery> queries, AttentionBlocks blocks,
            float* scratch);

// The same in parts, so that workers may share a long context: AttendSegment for the segments of
// [begin / 512, (end - 1) / 512], each into its own out and state; then, in ascending order, the first one as it is and
// MergeAttention for each further one; then FinishAttention. Equals Attend bit for bit.
// A segment in which a query sees nothing leaves zeros and maximum -infinity.
void AttendSegment(const AttentionShape& shape, absl::Span<const AttentionQuery> queries, AttentionBlocks blocks,
                   int segment, AttentionState* states, float* scratch);
void MergeAttention(int head_dim, const float* from_out, const AttentionState& from, float* out, AttentionState* state);
void FinishAttention(int head_dim, const AttentionState& state, float* out);

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_KERNELS_ATTENTION_H_
