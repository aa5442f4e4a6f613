// Gemma 4's forward pass, in the reference's order (section 3).
#include <cstdint>

#include "engine/kernels/kernels.h"
#include "engine/model/layers.h"

namespace embergate::engine {
namespace {

// x = x + norm(branch; w), and the input of the next part: act.normed = norm(x; next).
void AddBranch(const ForwardContext& ctx, const Vector& w, const Vector* next, int n) {
  const int64_t d = ctx.config.hidden;
  const float eps = ctx.config.rms_eps;
  ctx.ForTokens(n, [&](int t, int) {
    float* x = ctx.act.x.data() + t * d;
    float* branch = ctx.act.branch.data() + t * d;
    RmsNorm(branch, w.data(), d, eps, branch);
    Add(x, branch, d, x);
    if (next != nullptr) {
      RmsNorm(x, next->data(), d, eps, ctx.act.normed.data() + t * d);
    }
  });
  ctx.profile.Mark(StepOp::kNorm);
}

// What follows attention: its residual, the feed-forward and the per-layer input.
void RestOfLayer(const ForwardContext& ctx, int index, const StepBatch& batch, absl::Span<Chunk> chunks, int n) {
  const LayerWeights& w = ctx.weights.layers[index];
  const int64_t d = ctx.config.hidden;
  float* x = ctx.act.x.data();
  AddBranch(ctx, w.post_attention_norm, &w.ffn_norm, n);
  FeedForward(ctx, index, n);
  AddBranch(ctx, w.post_ffn_norm, nullptr, n);
  if (ctx.config.ple_width > 0) {
    ctx.ple.Join(batch, chunks, ctx.weights, ctx.profile);
    PleUpdate(ctx, index, x, n);
    ctx.ForTokens(n, [&](int t, int) { Add(x + t * d, ctx.act.ple_update.data() + t * d, d, x + t * d); });
  }
  ctx.ForTokens(n, [&](int t, int) { Scale(x + t * d, w.output_scale[0], d, x + t * d); });
  ctx.profile.Mark(StepOp::kNorm);
  ctx.See("layer_out", index, x, n, d);
}

}  // namespace

void ForwardGemma4(const ForwardContext& ctx, const StepBatch& batch, absl::Span<Chunk> chunks, float* logits) {
  const ModelConfig& config = ctx.config;
  const int64_t d = config.hidden;
  float* x = ctx.act.x.data();
  absl::Span<const StepToken> tokens = batch.tokens;

  EmbedTokens(ctx, tokens, x);
  ctx.See("embed", 0, x, batch.size(), d);
  ctx.ple.Project(batch, ctx.weights, x, ctx.act.branch.data(), ctx.act.input, ctx.profile);
  ComputeAngles(ctx, tokens);

  for (int index = 0; index < config.layer_count(); ++index) {
    const LayerWeights& w = ctx.weights.layers[index];
    int n = static_cast<int>(tokens.size());
    ctx.ple.Poll();
    NormTokens(ctx, x, w.attn_norm, n, ctx.act.normed.data());
    ctx.See("attn_in", index, ctx.act.normed.data(), n, d);
    bool input_set = false;
    if (config.layers[index].owns_kv) {
      StoreKeysAndValues(ctx, index, tokens);
      input_set = true;
    }
    if (index == config.common_layers() && batch.wanted_size() < batch.size()) {
      // From here on nothing of the other tokens is ever read.
      if (batch.wanted_size() == 0) {
        return;
      }
      tokens = batch.wanted_tokens;
      n = batch.wanted_size();
      KeepWanted(batch, x, d);
      KeepWanted(batch, ctx.act.normed.data(), d);
      ComputeAngles(ctx, tokens);
      input_set = false;
    }
    AttendTokens(ctx, index, tokens, input_set);
    RestOfLayer(ctx, index, batch, chunks, n);
  }
  OutputHead(ctx, x, batch.wanted_size(), logits);
}

}  // namespace embergate::engine
