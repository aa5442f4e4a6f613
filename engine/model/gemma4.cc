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

// What follows attention: its residual, the feed-forward and the per-layer input; and what the next layer starts from,
// act.normed.
void RestOfLayer(const ForwardContext& ctx, int index, const StepBatch& batch, absl::Span<Chunk> chunks, int n) {
  const LayerWeights& w = ctx.weights.layers[index];
  const int64_t d = ctx.config.hidden;
  float* x = ctx.act.x.data();
  AddBranch(ctx, w.post_attention_norm, &w.ffn_norm, n);
  FeedForward(ctx, index, n);
  AddBranch(ctx, w.post_ffn_norm, nullptr, n);
  const bool has_ple = ctx.config.ple_width > 0;
  if (has_ple) {
    ctx.ple.Join(batch, chunks, ctx.weights, ctx.profile);
    PleUpdate(ctx, index, x, n);
  }
  const bool last = index + 1 == ctx.config.layer_count();  // OutputHead has its own norm
  const float eps = ctx.config.rms_eps;
  ctx.ForTokens(n, [&](int t, int) {
    float* row = x + t * d;
    if (has_ple) {
      float* update = ctx.act.ple_update.data() + t * d;
      RmsNorm(update, w.ple_post_norm.data(), d, eps, update);
      Add(row, update, d, row);
    }
    Scale(row, w.output_scale[0], d, row);
    if (!last) {
      RmsNorm(row, ctx.weights.layers[index + 1].attn_norm.data(), d, eps, ctx.act.normed.data() + t * d);
    }
  });
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

  NormTokens(ctx, x, ctx.weights.layers[0].attn_norm, batch.size(), ctx.act.normed.data());
  for (int index = 0; index < config.layer_count(); ++index) {
    int n = static_cast<int>(tokens.size());
    ctx.See("attn_in", index, ctx.act.normed.data(), n, d);
    const bool narrows = index == config.common_layers() && batch.wanted_size() < batch.size();
    OpenAttention(ctx, index, tokens, narrows ? AttentionParts::kKeys : AttentionParts::kBoth);
    if (narrows) {
      // From here on nothing of the other tokens is ever read.
      if (batch.wanted_size() == 0) {
        return;
      }
      tokens = batch.wanted_tokens;
      n = batch.wanted_size();
      KeepWanted(batch, x, d);
      KeepWanted(batch, ctx.act.normed.data(), d);
      ComputeAngles(ctx, tokens);
      OpenAttention(ctx, index, tokens, AttentionParts::kQueries);
    }
    AttendTokens(ctx, index, tokens);
    RestOfLayer(ctx, index, batch, chunks, n);
  }
  OutputHead(ctx, x, batch.wanted_size(), logits);
}

}  // namespace embergate::engine
