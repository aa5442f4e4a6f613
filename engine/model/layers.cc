#include "engine/model/layers.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "absl/container/inlined_vector.h"
#include "engine/kernels/kernels.h"
#include "engine/model/rope.h"

namespace embergate::engine {
namespace {

const float* AnglesOf(const ForwardContext& ctx, const LayerConfig& layer, int token) {
  const AlignedBuffer<float>& angles = layer.sliding ? ctx.act.rope_sliding : ctx.act.rope_full;
  return angles.data() + int64_t{token} * layer.head_dim;
}

}  // namespace

void ForwardContext::ForTokens(int tokens, absl::FunctionRef<void(int token, int worker)> fn) const {
  pool.ParallelFor(tokens, 1, [&](int64_t begin, int64_t end, int worker) {
    for (int64_t token = begin; token < end; ++token) {
      fn(static_cast<int>(token), worker);
    }
  });
}

void ForwardContext::Product(const Matrix& w, int n, float* y) const {
  ple.Poll();
  MatMul(w, act.input, y, w.rows(), pool);
  Count(w, n);
}

void ForwardContext::Products(absl::Span<const MatMulOutput> products, int n) const {
  ple.Poll();
  MatMulAll(products, act.input, pool);
  for (const MatMulOutput& product : products) {
    Count(*product.w, n);
  }
}

void ForwardContext::GatedProduct(const Matrix& gate, const Matrix& up, int n, float* y, float* scratch) const {
  ple.Poll();
  MatMulGated(gate, up, act.input, y, scratch, gate.rows(), pool);
  Count(gate, n);
  Count(up, n);
}

void EmbedTokens(const ForwardContext& ctx, absl::Span<const StepToken> tokens, float* x) {
  const int64_t d = ctx.config.hidden;
  const float scale = std::sqrt(static_cast<float>(d));
  ctx.ForTokens(static_cast<int>(tokens.size()), [&](int t, int) {
    ctx.weights.embedding.DequantizeRowTo(tokens[t].id, x + t * d);
    Scale(x + t * d, scale, d, x + t * d);
  });
  ctx.profile.Mark(StepOp::kEmbed);
}

void ComputeAngles(const ForwardContext& ctx, absl::Span<const StepToken> tokens) {
  ctx.ForTokens(static_cast<int>(tokens.size()), [&](int t, int) {
    const auto fill = [&](const std::vector<float>& frequencies, float* angles) {
      const size_t half = frequencies.size();
      RopeAngles(frequencies, tokens[t].position, angles + t * 2 * half, angles + t * 2 * half + half);
    };
    fill(ctx.frequencies_full, ctx.act.rope_full.data());
    fill(ctx.frequencies_sliding, ctx.act.rope_sliding.data());
  });
  ctx.profile.Mark(StepOp::kPrepare);
}

void NormTokens(const ForwardContext& ctx, const float* x, const Vector& w, int n, float* out) {
  const int64_t d = ctx.config.hidden;
  ctx.ForTokens(n, [&](int t, int) { RmsNorm(x + t * d, w.data(), d, ctx.config.rms_eps, out + t * d); });
  ctx.profile.Mark(StepOp::kNorm);
}

void OpenAttention(const ForwardContext& ctx, int index, absl::Span<const StepToken> tokens, AttentionParts parts) {
  const LayerConfig& layer = ctx.config.layers[index];
  const LayerWeights& w = ctx.weights.layers[index];
  const int n = static_cast<int>(tokens.size());
  const int64_t dim = layer.head_dim;
  const int64_t q_width = int64_t{ctx.config.heads} * dim;
  const int64_t kv_width = int64_t{layer.kv_heads} * dim;
  const bool queries = parts != AttentionParts::kKeys;
  const bool keys = parts != AttentionParts::kQueries && layer.owns_kv;
  absl::InlinedVector<MatMulOutput, 4> products;
  if (queries) {
    products.push_back({&w.q, ctx.act.q.data(), q_width});
  }
  if (keys) {
    products.push_back({&w.k, ctx.act.k.data(), kv_width});
    if (!w.value_is_key) {
      products.push_back({&w.v, ctx.act.v.data(), kv_width});
    }
  }
  if (queries && w.laurel_left.rows() > 0) {
    products.push_back({&w.laurel_left, ctx.act.laurel_low.data(), w.laurel_left.rows()});
  }
  ctx.act.input.Set(ctx.act.normed.data(), n, ctx.config.hidden, ctx.config.hidden);
  ctx.Products(products, n);
  ctx.profile.Mark(StepOp::kQkv);
  ctx.ForTokens(n, [&](int t, int) {
    const float* angles = AnglesOf(ctx, layer, t);
    const auto norm_and_rotate = [&](float* x, const Vector& norm) {
      RmsNorm(x, norm.data(), dim, ctx.config.rms_eps, x);
      RotateHalf(x, angles, angles + dim / 2, dim);
    };
    for (int head = 0; queries && head < ctx.config.heads; ++head) {
      norm_and_rotate(ctx.act.q.data() + t * q_width + head * dim, w.q_norm);
    }
    if (!keys) {
      return;
    }
    float* k = ctx.act.k.data() + t * kv_width;
    float* v = ctx.act.v.data() + t * kv_width;
    const float* v_from = w.value_is_key ? k : v;  // the raw projection, before k's norm
    for (int head = 0; head < layer.kv_heads; ++head) {
      RmsNorm(v_from + head * dim, nullptr, dim, ctx.config.rms_eps, v + head * dim);
      norm_and_rotate(k + head * dim, w.k_norm);
    }
    ctx.kv.Store(index, tokens[t].slot, tokens[t].position, k, v);
  });
  ctx.profile.Mark(StepOp::kRopeStore);
}

void AttendTokens(const ForwardContext& ctx, int index, absl::Span<const StepToken> tokens) {
  const LayerConfig& layer = ctx.config.layers[index];
  const LayerWeights& w = ctx.weights.layers[index];
  const int n = static_cast<int>(tokens.size());
  const int64_t width = int64_t{ctx.config.heads} * layer.head_dim;
  Attention(ctx.config, layer, ctx.kv, tokens, ctx.act.q.data(), ctx.act.attention.data(), width,
            ctx.act.attention_scratch, ctx.pool);
  for (const StepToken& token : tokens) {
    const int keys = layer.sliding ? std::min(token.position + 1, ctx.config.window) : token.position + 1;
    ctx.profile.multiply_adds += 2 * static_cast<uint64_t>(keys) * static_cast<uint64_t>(width);
    ctx.profile.kv_bytes += 2 * static_cast<uint64_t>(keys) * layer.kv_heads * ctx.kv.row_bytes(layer.kv_source);
  }
  ctx.profile.Mark(StepOp::kAttention);
  ctx.act.input.Set(ctx.act.attention.data(), n, width, width);
  ctx.Product(w.o, n, ctx.act.branch.data());
  ctx.profile.Mark(StepOp::kAttentionOut);
  ctx.See("attn_out", index, ctx.act.branch.data(), n, ctx.config.hidden);
}

void PleUpdate(const ForwardContext& ctx, int index, const float* x, int n) {
  const LayerWeights& w = ctx.weights.layers[index];
  const int64_t width = ctx.config.ple_width;
  const int64_t d = ctx.config.hidden;
  ctx.act.input.Set(x, n, d, d);
  ctx.Product(w.ple_gate, n, ctx.act.ple_gate.data());
  ctx.ForTokens(n, [&](int t, int) {
    float* gate = ctx.act.ple_gate.data() + t * width;
    GeluTanhMul(gate, ctx.ple.At(index, t), width, gate);
  });
  ctx.act.input.Set(ctx.act.ple_gate.data(), n, width, width);
  ctx.Product(w.ple_projection, n, ctx.act.ple_update.data());
  ctx.See("ple_proj", index, ctx.act.ple_update.data(), n, d);
  ctx.profile.Mark(StepOp::kPle);
}

void KeepWanted(const StepBatch& batch, float* x, int64_t width) {
  for (int i = 0; i < batch.wanted_size(); ++i) {
    if (batch.wanted[i] != i) {
      std::memmove(x + i * width, x + batch.wanted[i] * width, static_cast<size_t>(width) * sizeof(float));
    }
  }
}

void OutputHead(const ForwardContext& ctx, const float* x, int n, float* logits) {
  NormTokens(ctx, x, ctx.weights.output_norm, n, ctx.act.normed.data());
  ctx.See("final_norm", 0, ctx.act.normed.data(), n, ctx.config.hidden);
  ctx.act.input.Set(ctx.act.normed.data(), n, ctx.config.hidden, ctx.config.hidden);
  ctx.Product(ctx.weights.head(), n, logits);
  if (ctx.config.softcap > 0) {
    constexpr int64_t kGrain = 8192;
    ctx.pool.ParallelFor(int64_t{n} * ctx.config.vocab, kGrain, [&](int64_t begin, int64_t end, int) {
      Softcap(logits + begin, ctx.config.softcap, end - begin);
    });
  }
  ctx.profile.Mark(StepOp::kHead);
}

}  // namespace embergate::engine
