// Causal attention of a step's tokens over the cached keys and values, grouped heads, full or sliding window.
//
// Deterministic by construction: a query walks its visible keys in blocks that lie at fixed positions of the sequence,
// in ascending order, with one running maximum and sum; so its result depends on nothing but its own position and the
// cache's contents, whoever shares the step and however the prompt was cut.
#ifndef EMBERGATE_ENGINE_MODEL_ATTENTION_H_
#define EMBERGATE_ENGINE_MODEL_ATTENTION_H_

#include <cstdint>

#include "absl/types/span.h"
#include "engine/model/aligned_buffer.h"
#include "engine/model/config.h"
#include "engine/model/kv_cache.h"
#include "engine/model/step_batch.h"
#include "engine/thread_pool.h"

namespace embergate::engine {

// Scratch of each worker, allocated once.
class AttentionScratch {
 public:
  AttentionScratch(const ModelConfig& config, int workers);
  static uint64_t BytesFor(const ModelConfig& config, int workers);
  float* Of(int worker) { return buffer_.data() + worker * floats_per_worker_; }
  uint64_t bytes() const { return buffer_.bytes(); }
  bool refused() const { return buffer_.refused(); }

 private:
  int64_t floats_per_worker_;
  AlignedBuffer<float> buffer_;
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
