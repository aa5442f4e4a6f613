// The gated feed-forward of a layer, whole or, where Gemma 3n cuts most of the gate to zero, sparse.
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "engine/kernels/kernels.h"
#include "engine/kernels/sparse_matmul.h"
#include "engine/model/layers.h"

namespace embergate::engine {
namespace {

// With 5 % of the channels left to a token, so many together leave out less than 10 %.
constexpr int kUnionTokensMax = 48;

// gate' = max(0, gate - (mean + scale * std)), population std over the n values. Eight partial sums, so that the
// compiler may use vector registers and the order is the same for every token.
void CutGate(float* gate, int64_t n, float scale) {
  constexpr int kLanes = 8;
  double sums[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) {
    sums[i % kLanes] += gate[i];
  }
  double mean = 0;
  for (const double sum : sums) {
    mean += sum;
  }
  mean /= static_cast<double>(n);
  double squares[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) {
    const double difference = gate[i] - mean;
    squares[i % kLanes] += difference * difference;
  }
  double variance = 0;
  for (const double square : squares) {
    variance += square;
  }
  variance /= static_cast<double>(n);
  const float cut = static_cast<float>(mean) + scale * static_cast<float>(std::sqrt(variance));
  for (int64_t i = 0; i < n; ++i) {
    gate[i] = std::max(0.0f, gate[i] - cut);
  }
}

// Lists the channels whose gate is not zero for every token of gate [n, width]; returns their number.
int64_t ListChannels(const float* gate, int n, int64_t width, uint8_t* marks, int32_t* channels) {
  std::fill_n(marks, width, uint8_t{0});
  for (int t = 0; t < n; ++t, gate += width) {
    for (int64_t i = 0; i < width; ++i) {
      marks[i] |= static_cast<uint8_t>(gate[i] > 0);
    }
  }
  int64_t count = 0;
  for (int64_t i = 0; i < width; ++i) {
    channels[count] = static_cast<int32_t>(i);
    count += marks[i];
  }
  return count;
}

// gate[c] = gelu_tanh(gate[c]) * up[i] for the i-th channel c (`channels` null: c = i); zero where the gate is zero,
// whatever `up` holds there: a token does not see that others wanted a channel.
void ActivateChannels(float* gate, const float* up, const int32_t* channels, int64_t count) {
  constexpr int64_t kBlock = 256;
  float values[kBlock];
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t n = std::min(kBlock, count - begin);
    const auto channel = [&](int64_t i) { return channels == nullptr ? begin + i : channels[begin + i]; };
    for (int64_t i = 0; i < n; ++i) {
      values[i] = gate[channel(i)];
    }
    GeluTanhMul(values, up + begin, n, values);
    for (int64_t i = 0; i < n; ++i) {
      float& g = gate[channel(i)];
      g = g > 0 ? values[i] : 0.0f;
    }
  }
}

// As FeedForward. Each product reads what is in use: the rows of `up` that any token's gate leaves, then each token's
// own columns of `down`. Results are those of the whole products (sparse_matmul.h).
void SparseFeedForward(const ForwardContext& ctx, int index, int n) {
  const LayerConfig& layer = ctx.config.layers[index];
  const LayerWeights& w = ctx.weights.layers[index];
  const int64_t width = layer.feed_forward;
  const int64_t d = ctx.config.hidden;
  float* const gate = ctx.act.gate.data();
  float* const up = ctx.act.up.data();
  ctx.act.input.Set(ctx.act.normed.data(), n, d, d);
  ctx.Product(w.gate, n, gate);
  ctx.profile.Mark(StepOp::kGateUp);
  ctx.ForTokens(n, [&](int t, int) { CutGate(gate + t * width, width, layer.sparsity_scale); });
  const int32_t* channels = nullptr;
  int64_t count = width;
  if (w.up_rows.rows() > 0 && n <= kUnionTokensMax) {
    channels = ctx.act.channels.data();
    count = ListChannels(gate, n, width, ctx.act.channel_marks.data(), ctx.act.channels.data());
  }
  ctx.profile.Mark(StepOp::kActivation);
  if (w.up_rows.rows() > 0) {
    ctx.Count(MatMulRows(w.up_rows, channels, count, ctx.act.input, up, count, ctx.sparse, ctx.pool));
  } else {
    ctx.Product(w.up, n, up);
  }
  ctx.profile.Mark(StepOp::kGateUp);
  ctx.ForTokens(n, [&](int t, int) { ActivateChannels(gate + t * width, up + t * count, channels, count); });
  ctx.profile.Mark(StepOp::kActivation);
  ctx.act.input.Set(gate, n, width, width);
  if (w.down_columns.rows() > 0) {
    ctx.Count(MatMulColumns(w.down_columns, ctx.act.input, ctx.act.branch.data(), d, ctx.sparse, ctx.pool));
  } else {
    ctx.Product(w.down, n, ctx.act.branch.data());
  }
  ctx.profile.Mark(StepOp::kDown);
}

}  // namespace

void FeedForward(const ForwardContext& ctx, int index, int n) {
  const LayerConfig& layer = ctx.config.layers[index];
  const LayerWeights& w = ctx.weights.layers[index];
  const int64_t width = layer.feed_forward;
  if (layer.is_sparse()) {
    SparseFeedForward(ctx, index, n);
  } else {
    ctx.act.input.Set(ctx.act.normed.data(), n, ctx.config.hidden, ctx.config.hidden);
    ctx.GatedProduct(w.gate, w.up, n, ctx.act.gate.data(), ctx.act.up.data());
    ctx.profile.Mark(StepOp::kGateUp);
    ctx.act.input.Set(ctx.act.gate.data(), n, width, width);
    ctx.Product(w.down, n, ctx.act.branch.data());
    ctx.profile.Mark(StepOp::kDown);
  }
  ctx.See("mlp_out", index, ctx.act.branch.data(), n, ctx.config.hidden);
}

}  // namespace embergate::engine
