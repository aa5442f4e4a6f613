// Causal attention of a step's tokens over the cached keys and values: which queries see what, and who computes it.
// The arithmetic is engine/kernels/attention.h's, which makes a query's result depend on nothing but its own position
// and the cache's contents, whoever shares the step and however the prompt was cut.
#ifndef EMBERGATE_ENGINE_MODEL_ATTENTION_H_
#define EMBERGATE_ENGINE_MODEL_ATTENTION_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "engine/kernels/attention.h"
#include "engine/model/aligned_buffer.h"
#include "engine/model/config.h"
#include "engine/model/kv_cache.h"
#include "engine/model/step_batch.h"
#include "engine/thread_pool.h"

namespace embergate::engine {

// Scratch of the workers and of the segments of one long context, allocated once.
class AttentionScratch {
 public:
  AttentionScratch(const ModelConfig& config, int step_tokens_max, int context_max, int workers);
  static uint64_t BytesFor(const ModelConfig& config, int step_tokens_max, int context_max, int workers);
  uint64_t bytes() const {
    return workers_.bytes() + partial_.bytes() + states_.capacity() * sizeof(AttentionState) +
           groups_.capacity() * sizeof(Group);
  }
  bool refused() const { return workers_.refused() || partial_.refused(); }

 private:
  friend class AttentionStep;
  // Consecutive tokens of one slot, computed together.
  struct Group {
    int first;
    int count;
  };
  int64_t floats_per_worker_;
  AlignedBuffer<float> workers_;
  AlignedBuffer<float> partial_;        // [segments, queries, head_dim] of one item
  std::vector<AttentionState> states_;  // [segments, queries]
  std::vector<Group> groups_;           // capacity: a step's tokens
};

// out[t] = softmax(q[t] . k) v for each head, scores unscaled (both families: scale 1).
//   q, out  [tokens, heads, head_dim], rows `stride` floats apart; q normed and rotated
//   layer   the querying layer: keys and values are those of layer.kv_source
//   Visible keys of a token at position i: j <= i, and j > i - config.window when the layer slides.
// The keys of the tokens themselves are stored already. Allocates nothing.
void Attention(const ModelConfig& config, const LayerConfig& layer, const KvCache& kv,
               absl::Span<const StepToken> tokens, const float* q, float* out, int64_t stride,
               AttentionScratch& scratch, ThreadPool& pool);

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_MODEL_ATTENTION_H_
