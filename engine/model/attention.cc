#include "engine/model/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/kernels/kernels.h"

namespace embergate::engine {
namespace {

constexpr int kBlock = KvCache::kBlock;

// Of one worker: a block of keys or values as f32, the scores of a group's heads, their maxima and sums.
int64_t ScratchFloats(const ModelConfig& config) {
  const int64_t heads = config.heads;
  return int64_t{kBlock} * config.head_dim_max() + heads * kBlock + heads * 2 + 64;
}

// Rows [0, count) of a block as f32; the block itself where it is stored so.
const float* RowsAsFloat(storage::TensorType type, const uint8_t* rows, uint64_t row_bytes, int first, int count,
                         int dim, float* scratch) {
  const uint8_t* begin = rows + first * row_bytes;
  if (type == storage::TensorType::kF32) {
    return reinterpret_cast<const float*>(begin);
  }
  DequantizeRow(type, begin, int64_t{count} * dim, scratch);
  return scratch;
}

// One token's query heads that share a KV head.
void AttendGroup(const LayerConfig& layer, const KvCache& kv, const StepToken& token, int first_position, int kv_head,
                 int group, const float* q, float* out, float* scratch) {
  const int dim = layer.head_dim;
  float* rows = scratch;                             // [kBlock, dim]
  float* scores = rows + int64_t{kBlock} * dim;      // [group, kBlock]
  float* maxima = scores + int64_t{group} * kBlock;  // [group]
  float* sums = maxima + group;                      // [group]
  std::fill(maxima, maxima + group, -std::numeric_limits<float>::infinity());
  std::fill(sums, sums + group, 0.0f);
  std::fill(out, out + int64_t{group} * dim, 0.0f);
  const int source = layer.kv_source;
  for (int block = first_position / kBlock; block <= token.position / kBlock; ++block) {
    const int begin = std::max(first_position - block * kBlock, 0);
    const int count = std::min(token.position - block * kBlock + 1, kBlock) - begin;
    const float* keys = RowsAsFloat(kv.type(), kv.KeyBlock(source, token.slot, kv_head, block), kv.row_bytes(source),
                                    begin, count, dim, rows);
    for (int head = 0; head < group; ++head) {
      float* head_scores = scores + head * kBlock;
      float maximum = maxima[head];
      for (int i = 0; i < count; ++i) {
        head_scores[i] = Dot(q + int64_t{head} * dim, keys + int64_t{i} * dim, dim);
        maximum = std::max(maximum, head_scores[i]);
      }
      const float rescale = std::exp(maxima[head] - maximum);  // 0 at the first block
      float sum = sums[head] * rescale;
      for (int i = 0; i < count; ++i) {
        head_scores[i] = std::exp(head_scores[i] - maximum);
        sum += head_scores[i];
      }
      maxima[head] = maximum;
      sums[head] = sum;
      if (rescale != 1.0f) {
        Scale(out + int64_t{head} * dim, rescale, dim, out + int64_t{head} * dim);
      }
    }
    const float* values = RowsAsFloat(kv.type(), kv.ValueBlock(source, token.slot, kv_head, block),
                                      kv.row_bytes(source), begin, count, dim, rows);
    for (int head = 0; head < group; ++head) {
      float* head_out = out + int64_t{head} * dim;
      for (int i = 0; i < count; ++i) {
        AddScaled(head_out, values + int64_t{i} * dim, scores[head * kBlock + i], dim, head_out);
      }
    }
  }
  for (int head = 0; head < group; ++head) {
    Scale(out + int64_t{head} * dim, 1.0f / sums[head], dim, out + int64_t{head} * dim);
  }
}

}  // namespace

AttentionScratch::AttentionScratch(const ModelConfig& config, int workers)
    : floats_per_worker_((ScratchFloats(config) + 15) / 16 * 16),
      buffer_(static_cast<size_t>(floats_per_worker_) * workers) {}

uint64_t AttentionScratch::BytesFor(const ModelConfig& config, int workers) {
  return static_cast<uint64_t>((ScratchFloats(config) + 15) / 16 * 16) * workers * sizeof(float);
}

void Attention(const ModelConfig& config, const LayerConfig& layer, const KvCache& kv,
               absl::Span<const StepToken> tokens, const float* q, float* out, int64_t stride,
               AttentionScratch& scratch, ThreadPool& pool) {
  const int group = config.heads / layer.kv_heads;
  const int64_t items = static_cast<int64_t>(tokens.size()) * layer.kv_heads;
  pool.ParallelFor(items, 1, [&](int64_t begin, int64_t end, int worker) {
    for (int64_t item = begin; item < end; ++item) {
      const StepToken& token = tokens[item / layer.kv_heads];
      const int kv_head = static_cast<int>(item % layer.kv_heads);
      const int first = layer.sliding ? std::max(token.position - config.window + 1, 0) : 0;
      const int64_t offset = item / layer.kv_heads * stride + int64_t{kv_head} * group * layer.head_dim;
      AttendGroup(layer, kv, token, first, kv_head, group, q + offset, out + offset, scratch.Of(worker));
    }
  });
}

}  // namespace embergate::engine
