// Gemma 3n's forward pass, in the reference's order (section 4): N parallel streams of which one is computed (AltUp),
// a low-rank branch beside attention (LAuReL), a sparsity cut in the first feed-forwards.
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "engine/kernels/kernels.h"
#include "engine/model/layers.h"

namespace embergate::engine {
namespace {

// The streams' rows lie `stride` floats apart: one for each token the step may have.
struct Streams {
  float* data;
  int64_t stride;
  int64_t d;
  float* Row(int stream, int token) const { return data + stream * stride + token * d; }
};

Streams StreamsOf(const ForwardContext& ctx, AlignedBuffer<float>& buffer) {
  return {buffer.data(), static_cast<int64_t>(buffer.size()) / ctx.config.altup_inputs, ctx.config.hidden};
}

// r(x) = tanh(modality_router(norm(x; router_norm) / d)), N values.
void Route(const ForwardContext& ctx, const LayerWeights& w, const float* x, float* scratch, float* modalities) {
  const int64_t d = ctx.config.hidden;
  RmsNorm(x, w.altup_router_norm.data(), d, ctx.config.rms_eps, scratch);
  Scale(scratch, 1.0f / static_cast<float>(d), d, scratch);
  for (int i = 0; i < ctx.config.altup_inputs; ++i) {
    modalities[i] = std::tanh(Dot(w.altup_router.data() + i * d, scratch, d));
  }
}

// Scales row z to the root mean square of `like`: z * rms(like) / sqrt(max(mean(z^2), 1e-5)).
void MatchMagnitude(const float* like, float* z, int64_t d) {
  const float target = std::sqrt(SumOfSquares(like, d) / static_cast<float>(d));
  const float own = std::sqrt(std::max(SumOfSquares(z, d) / static_cast<float>(d), 1e-5f));
  Scale(z, target / own, d, z);
}

// s_0 = e; s_k = altup_projections[k-1] e, at e's magnitude.
void EnterStreams(const ForwardContext& ctx, const Streams& s, int n) {
  const int64_t d = s.d;
  const float* e = ctx.act.embedding.data();
  std::copy(e, e + n * d, s.Row(0, 0));
  ctx.act.input.Set(e, n, d, d);
  for (int k = 1; k < ctx.config.altup_inputs; ++k) {
    ctx.Product(ctx.weights.altup_projection[k - 1], n, s.Row(k, 0));
    ctx.ForTokens(n, [&](int t, int) { MatchMagnitude(e + t * d, s.Row(k, t), d); });
  }
  ctx.profile.Mark(StepOp::kEmbed);
}

// P_i = s_i + sum_j c[i, j] s_j with c = prediction_coefs r(s_A), and act.normed = norm(P_A; attn_norm).
void Predict(const ForwardContext& ctx, int index, const Streams& s, const Streams& p, int n) {
  const LayerWeights& w = ctx.weights.layers[index];
  const int inputs = ctx.config.altup_inputs;
  const int64_t d = s.d;
  ctx.ForTokens(n, [&](int t, int worker) {
    float modalities[ConfigBounds::kAltupInputsMax];
    Route(ctx, w, s.Row(ctx.config.altup_active, t), ctx.act.worker.data() + worker * d, modalities);
    for (int i = 0; i < inputs; ++i) {
      float* out = p.Row(i, t);
      for (int j = 0; j < inputs; ++j) {
        const float c = Dot(w.altup_predict.data() + (i * inputs + j) * inputs, modalities, inputs);
        if (j == 0) {
          Scale(s.Row(0, t), c, d, out);
        } else {
          AddScaled(out, s.Row(j, t), c, d, out);
        }
      }
      Add(out, s.Row(i, t), d, out);
    }
    RmsNorm(p.Row(ctx.config.altup_active, t), w.attn_norm.data(), d, ctx.config.rms_eps,
            ctx.act.normed.data() + t * d);
  });
  ctx.profile.Mark(StepOp::kAltup);
}

// act.laurel = n + norm(linear_right(act.laurel_low)), n = act.normed.
void Laurel(const ForwardContext& ctx, int index, int n) {
  const LayerWeights& w = ctx.weights.layers[index];
  const int64_t d = ctx.config.hidden;
  ctx.act.input.Set(ctx.act.laurel_low.data(), n, ctx.config.laurel_rank, ctx.config.laurel_rank);
  ctx.Product(w.laurel_right, n, ctx.act.laurel.data());
  ctx.ForTokens(n, [&](int t, int) {
    float* laurel = ctx.act.laurel.data() + t * d;
    RmsNorm(laurel, w.laurel_norm.data(), d, ctx.config.rms_eps, laurel);
    Add(laurel, ctx.act.normed.data() + t * d, d, laurel);
  });
  ctx.profile.Mark(StepOp::kLaurel);
}

// y = (P_A + norm(attention) + laurel) / sqrt(2), and act.normed = norm(y; ffn_norm). y is act.x.
void JoinBranches(const ForwardContext& ctx, int index, const Streams& p, int n) {
  const LayerWeights& w = ctx.weights.layers[index];
  const int64_t d = p.d;
  const float eps = ctx.config.rms_eps;
  ctx.ForTokens(n, [&](int t, int) {
    float* y = ctx.act.x.data() + t * d;
    float* branch = ctx.act.branch.data() + t * d;
    RmsNorm(branch, w.post_attention_norm.data(), d, eps, branch);
    Add(p.Row(ctx.config.altup_active, t), branch, d, y);
    Add(y, ctx.act.laurel.data() + t * d, d, y);
    Scale(y, std::sqrt(0.5f), d, y);
    RmsNorm(y, w.ffn_norm.data(), d, eps, ctx.act.normed.data() + t * d);
  });
  ctx.profile.Mark(StepOp::kNorm);
}

// y += norm(feed-forward); C_i = P_i + k_i (y - P_A), k = correction_coefs r(y) + 1; act.branch = C_A scaled, the input
// of the per-layer gate.
void Correct(const ForwardContext& ctx, int index, const Streams& p, const Streams& s, int n) {
  const LayerWeights& w = ctx.weights.layers[index];
  const int inputs = ctx.config.altup_inputs;
  const int active = ctx.config.altup_active;
  const int64_t d = p.d;
  ctx.ForTokens(n, [&](int t, int worker) {
    float* y = ctx.act.x.data() + t * d;
    float* branch = ctx.act.branch.data() + t * d;
    float modalities[ConfigBounds::kAltupInputsMax];
    RmsNorm(branch, w.post_ffn_norm.data(), d, ctx.config.rms_eps, branch);
    Add(y, branch, d, y);
    Route(ctx, w, y, ctx.act.worker.data() + worker * d, modalities);
    AddScaled(y, p.Row(active, t), -1.0f, d, branch);  // the innovation
    for (int i = 0; i < inputs; ++i) {
      const float k = Dot(w.altup_correct.data() + i * inputs, modalities, inputs) + 1.0f;
      AddScaled(p.Row(i, t), branch, k, d, s.Row(i, t));
    }
    const float* corrected = s.Row(active, t);
    for (int64_t c = 0; c < d; ++c) {
      branch[c] = corrected[c] * w.altup_correct_scale[c];
    }
  });
  ctx.profile.Mark(StepOp::kAltup);
}

// x = mean over the streams of o_k: o_0 = s_0, o_k = altup_unembed_projections[k-1] s_k at s_0's magnitude.
void LeaveStreams(const ForwardContext& ctx, const Streams& s, const Streams& scratch, int n) {
  const int inputs = ctx.config.altup_inputs;
  const int64_t d = s.d;
  for (int k = 1; k < inputs; ++k) {
    ctx.act.input.Set(s.Row(k, 0), n, d, d);
    ctx.Product(ctx.weights.altup_unprojection[k - 1], n, scratch.Row(k, 0));
  }
  ctx.ForTokens(n, [&](int t, int) {
    float* x = ctx.act.x.data() + t * d;
    std::copy(s.Row(0, t), s.Row(0, t) + d, x);
    for (int k = 1; k < inputs; ++k) {
      MatchMagnitude(s.Row(0, t), scratch.Row(k, t), d);
      Add(x, scratch.Row(k, t), d, x);
    }
    Scale(x, 1.0f / static_cast<float>(inputs), d, x);
  });
  ctx.profile.Mark(StepOp::kAltup);
}

}  // namespace

void ForwardGemma3n(const ForwardContext& ctx, const StepBatch& batch, absl::Span<Chunk> chunks, float* logits) {
  const ModelConfig& config = ctx.config;
  const int64_t d = config.hidden;
  const int inputs = config.altup_inputs;
  const Streams s = StreamsOf(ctx, ctx.act.streams);
  const Streams p = StreamsOf(ctx, ctx.act.predicted);
  absl::Span<const StepToken> tokens = batch.tokens;

  EmbedTokens(ctx, tokens, ctx.act.embedding.data());
  ctx.See("embed", 0, ctx.act.embedding.data(), batch.size(), d);
  ctx.ple.Project(batch, ctx.weights, ctx.act.embedding.data(), ctx.act.branch.data(), ctx.act.input, ctx.profile);
  ComputeAngles(ctx, tokens);
  EnterStreams(ctx, s, batch.size());

  for (int index = 0; index < config.layer_count(); ++index) {
    int n = static_cast<int>(tokens.size());
    Predict(ctx, index, s, p, n);
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
      for (int i = 0; i < inputs; ++i) {
        KeepWanted(batch, p.Row(i, 0), d);
      }
      KeepWanted(batch, ctx.act.normed.data(), d);
      ComputeAngles(ctx, tokens);
      OpenAttention(ctx, index, tokens, AttentionParts::kQueries);
    }
    AttendTokens(ctx, index, tokens);
    Laurel(ctx, index, n);
    JoinBranches(ctx, index, p, n);
    FeedForward(ctx, index, n);
    Correct(ctx, index, p, s, n);
    ctx.ple.Join(batch, chunks, ctx.weights, ctx.profile);
    PleUpdate(ctx, index, ctx.act.branch.data(), n);
    ctx.ForTokens(n, [&](int t, int) {
      float* update = ctx.act.ple_update.data() + t * d;
      RmsNorm(update, ctx.weights.layers[index].ple_post_norm.data(), d, config.rms_eps, update);
      for (int i = 1; i < inputs; ++i) {
        Add(s.Row(i, t), update, d, s.Row(i, t));
      }
    });
    ctx.profile.Mark(StepOp::kAltup);
    for (int i = 0; i < inputs; ++i) {
      ctx.See("layer_out", index * inputs + i, s.Row(i, 0), n, d);
    }
  }
  LeaveStreams(ctx, s, p, batch.wanted_size());
  OutputHead(ctx, ctx.act.x.data(), batch.wanted_size(), logits);
}

}  // namespace embergate::engine
