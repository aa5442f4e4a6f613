// Every scratch buffer of the forward pass, allocated once from the limits.
#ifndef EMBERGATE_ENGINE_MODEL_ACTIVATIONS_H_
#define EMBERGATE_ENGINE_MODEL_ACTIVATIONS_H_

#include <algorithm>
#include <cstdint>

#include "engine/kernels/kernels.h"
#include "engine/model/aligned_buffer.h"
#include "engine/model/attention.h"
#include "engine/model/config.h"

namespace embergate::engine {

// T step tokens, W positions with logits (W <= T), d hidden, H*D query width, K*D key width, I feed-forward width,
// p PLE width, N AltUp inputs, R LAuReL rank; the largest over the layers.
struct Activations {
  // What each buffer holds, in floats; the one place that both the plan and the allocation read.
  struct Sizes {
    int64_t x, embedding, normed, branch, q, attention, k, v, gate, up, ple_gate, ple_update, rope_full, rope_sliding;
    int64_t streams, predicted, laurel_low, laurel, worker;
    int64_t cols_max;

    Sizes(const ModelConfig& c, int64_t tokens, int workers) {
      const bool is_3n = c.family == ModelFamily::kGemma3n;
      const int64_t d = c.hidden;
      x = tokens * d;
      embedding = is_3n ? tokens * d : 0;
      normed = tokens * d;
      branch = tokens * d;
      q = tokens * c.q_width_max();
      attention = tokens * c.q_width_max();
      k = tokens * c.kv_width_max();
      v = tokens * c.kv_width_max();
      gate = tokens * c.feed_forward_max();
      up = tokens * c.feed_forward_max();
      ple_gate = tokens * c.ple_width;
      ple_update = tokens * d;
      rope_full = tokens * c.head_dim_max();
      rope_sliding = tokens * c.head_dim_max();
      streams = is_3n ? c.altup_inputs * tokens * d : 0;
      predicted = is_3n ? c.altup_inputs * tokens * d : 0;
      laurel_low = is_3n ? tokens * c.laurel_rank : 0;
      laurel = is_3n ? tokens * d : 0;
      worker = d * workers;
      cols_max = std::max<int64_t>({d, c.q_width_max(), c.feed_forward_max(), c.ple_width, c.laurel_rank});
    }
    int64_t Total() const {
      return x + embedding + normed + branch + q + attention + k + v + gate + up + ple_gate + ple_update + rope_full +
             rope_sliding + streams + predicted + laurel_low + laurel + worker;
    }
  };

  Activations(const ModelConfig& config, int tokens, int context_max, int workers)
      : Activations(config, tokens, context_max, workers, {config, tokens, workers}) {}
  // Less the products' inputs: see InputBytesFor.
  static uint64_t BytesFor(const ModelConfig& config, int tokens, int context_max, int workers) {
    return Sizes(config, tokens, workers).Total() * sizeof(float) + ChannelsFor(config) * (sizeof(int32_t) + 1) +
           AttentionScratch::BytesFor(config, tokens, context_max, workers);
  }
  uint64_t bytes() const {
    return floats_bytes + channels.bytes() + channel_marks.bytes() + attention_scratch.bytes() + input.resident_bytes();
  }
  bool refused() const { return any_refused; }
  // Of the products' inputs.
  static uint64_t InputBytesFor(const ModelConfig& config, int tokens, int workers) {
    return MatMulInput(tokens, Sizes(config, tokens, workers).cols_max).resident_bytes();
  }

  uint64_t floats_bytes;
  AlignedBuffer<float> x;             // [T, d] residual stream; 3n: the active prediction's path
  AlignedBuffer<float> embedding;     // 3n: [T, d] scaled embedding
  AlignedBuffer<float> normed;        // [T, d] input of the products
  AlignedBuffer<float> branch;        // [T, d] output of attention or feed-forward; first the wanted embeddings [W, d]
  AlignedBuffer<float> q;             // [T, H*D]
  AlignedBuffer<float> attention;     // [T, H*D]
  AlignedBuffer<float> k;             // [T, K*D]
  AlignedBuffer<float> v;             // [T, K*D]
  AlignedBuffer<float> gate;          // [T, I]
  AlignedBuffer<float> up;            // [T, I]
  AlignedBuffer<float> ple_gate;      // [T, p]
  AlignedBuffer<float> ple_update;    // [T, d]
  AlignedBuffer<float> rope_full;     // [T, D] cosines [D/2], then sines [D/2], of the positions, full layers
  AlignedBuffer<float> rope_sliding;  // [T, D] the same, sliding layers
  AlignedBuffer<float> streams;       // 3n: [N, T, d] s_i, then C_i
  AlignedBuffer<float> predicted;     // 3n: [N, T, d] P_i
  AlignedBuffer<float> laurel_low;    // 3n: [T, R]
  AlignedBuffer<float> laurel;        // 3n: [T, d]
  AlignedBuffer<float> worker;        // [workers, d]
  AlignedBuffer<int32_t> channels;    // [I] where a layer's gate is cut: the feed-forward channels in use
  AlignedBuffer<uint8_t> channel_marks;  // [I]
  AttentionScratch attention_scratch;
  MatMulInput input;  // of the products being computed
  bool any_refused;

 private:
  static size_t ChannelsFor(const ModelConfig& config) {
    return config.has_sparse_layers() ? static_cast<size_t>(config.feed_forward_max()) : 0;
  }
  Activations(const ModelConfig& config, int tokens, int context_max, int workers, const Sizes& s)
      : floats_bytes(s.Total() * sizeof(float)),
        x(s.x),
        embedding(s.embedding),
        normed(s.normed),
        branch(s.branch),
        q(s.q),
        attention(s.attention),
        k(s.k),
        v(s.v),
        gate(s.gate),
        up(s.up),
        ple_gate(s.ple_gate),
        ple_update(s.ple_update),
        rope_full(s.rope_full),
        rope_sliding(s.rope_sliding),
        streams(s.streams),
        predicted(s.predicted),
        laurel_low(s.laurel_low),
        laurel(s.laurel),
        worker(s.worker),
        channels(ChannelsFor(config)),
        channel_marks(ChannelsFor(config)),
        attention_scratch(config, tokens, context_max, workers),
        input(tokens, s.cols_max),
        any_refused(attention_scratch.refused() || channels.refused() || channel_marks.refused()) {
    for (const AlignedBuffer<float>* buffer :
         {&x, &embedding, &normed, &branch, &q, &attention, &k, &v, &gate, &up, &ple_gate, &ple_update, &rope_full,
          &rope_sliding, &streams, &predicted, &laurel_low, &laurel, &worker}) {
      any_refused = any_refused || buffer->refused();
    }
  }
};

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_MODEL_ACTIVATIONS_H_
