// The parts that both families' layers are made of. Each is a step of the reference, over all the tokens at hand.
#ifndef EMBERGATE_ENGINE_MODEL_LAYERS_H_
#define EMBERGATE_ENGINE_MODEL_LAYERS_H_

#include <cstdint>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/types/span.h"
#include "engine/kernels/sparse_matmul.h"
#include "engine/model/activations.h"
#include "engine/model/config.h"
#include "engine/model/decoder_model.h"
#include "engine/model/kv_cache.h"
#include "engine/model/per_layer_inputs.h"
#include "engine/model/step_batch.h"
#include "engine/model/step_profile.h"
#include "engine/model/weights.h"
#include "engine/thread_pool.h"

namespace embergate::engine {

// What a forward pass works with. All borrowed.
struct ForwardContext {
  const ModelConfig& config;
  const Weights& weights;
  KvCache& kv;
  Activations& act;
  SparseScratch& sparse;
  PerLayerInputs& ple;
  ThreadPool& pool;
  StepProfile& profile;
  const std::vector<float>& frequencies_full;     // [D/2]
  const std::vector<float>& frequencies_sliding;  // [D/2]
  const DecoderModel::Probe* probe = nullptr;

  void See(const char* name, int layer, const float* values, int tokens, int64_t width) const {
    if (probe != nullptr) {
      (*probe)(name, layer, values, tokens, width);
    }
  }
  // fn(token index, worker) for each token.
  void ForTokens(int tokens, absl::FunctionRef<void(int token, int worker)> fn) const;
  // y [n, w.rows()] = act.input times w, counted in the profile. Each product first lets the row reads proceed: those
  // of a whole chunk exceed the device's queue, and the first layer consumes them.
  void Product(const Matrix& w, int n, float* y) const;
  // Several of the same input in one pass of the workers; the rows of each y are w->rows() floats apart.
  void Products(absl::Span<const MatMulOutput> products, int n) const;
  // y [n, gate.rows()] = gelu_tanh(gate x) * (up x), x = act.input; `scratch` holds as much as y.
  void GatedProduct(const Matrix& gate, const Matrix& up, int n, float* y, float* scratch) const;
  // Counts a whole product of n tokens.
  void Count(const Matrix& w, int n) const {
    profile.multiply_adds += static_cast<uint64_t>(w.rows() * w.cols() * n);
    profile.weight_bytes += w.resident_bytes();
  }
  // Counts what a sparse product did.
  void Count(const SparseWork& work) const {
    profile.multiply_adds += work.multiply_adds;
    profile.weight_bytes += work.weight_bytes;
  }
};

// x [n, d] = E[id] * sqrt(d).
void EmbedTokens(const ForwardContext& ctx, absl::Span<const StepToken> tokens, float* x);
// Cosines and sines of the tokens' positions for both layer types, into act.rope_*.
void ComputeAngles(const ForwardContext& ctx, absl::Span<const StepToken> tokens);
// out[t] = norm(x[t]; w).
void NormTokens(const ForwardContext& ctx, const float* x, const Vector& w, int n, float* out);
// The products of act.normed that open a layer, in one pass, and what follows from them. kKeys: k and v, normed,
// rotated and stored; nothing in a layer that owns none. kQueries: act.q, normed and rotated, and where there is a
// LAuReL branch its first half, act.laurel_low.
enum class AttentionParts { kKeys, kQueries, kBoth };
void OpenAttention(const ForwardContext& ctx, int layer, absl::Span<const StepToken> tokens, AttentionParts parts);
// act.branch = o_proj of the attention of act.q; keys and values are stored already.
void AttendTokens(const ForwardContext& ctx, int layer, absl::Span<const StepToken> tokens);
// act.branch = down(gelu_tanh(gate n) * (up n)), n = act.normed; with the layer's sparsity cut on the gate.
// feed_forward.cc
void FeedForward(const ForwardContext& ctx, int layer, int n);
// act.ple_update = per_layer_projection(gelu_tanh(per_layer_input_gate x) * q[layer]), not yet normed with the layer's
// ple_post_norm: the caller does that where it adds it.
void PleUpdate(const ForwardContext& ctx, int layer, const float* x, int n);
// Moves the rows of the wanted tokens to the front of x [n, width].
void KeepWanted(const StepBatch& batch, float* x, int64_t width);
// logits [n, V] = cap * tanh((E h) / cap), h = norm(x; output_norm).
void OutputHead(const ForwardContext& ctx, const float* x, int n, float* logits);

// The families' forward passes: the step's tokens in, logits [batch.wanted_size(), V] out. A chunk whose rows failed
// gets its status.
void ForwardGemma4(const ForwardContext& ctx, const StepBatch& batch, absl::Span<Chunk> chunks, float* logits);
void ForwardGemma3n(const ForwardContext& ctx, const StepBatch& batch, absl::Span<Chunk> chunks, float* logits);

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_MODEL_LAYERS_H_
