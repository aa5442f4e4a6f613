#include "engine/kernels/attention.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <limits>

#include "engine/kernels/kernel_table.h"
#include "engine/kernels/kernels.h"
#include "engine/kernels/kv_rows.h"

namespace embergate::engine {
namespace {

using storage::TensorType;

static_assert(kAttentionRow == kAttentionBlock);
constexpr int kBlocksPerSegment = kAttentionSegment / kAttentionBlock;

// Scratch: [queries][32] scores, a segment's out [queries][head_dim], a block of rows as f32.
int64_t ScoreFloats() { return int64_t{kAttentionQueriesMax} * kAttentionBlock; }
int64_t OutFloats(int head_dim) { return int64_t{kAttentionQueriesMax} * head_dim; }

// A block's rows from `first` on, in a type that the kernels read.
struct Rows {
  const uint8_t* data;
  int64_t row_bytes;
  bool half;
};

Rows ReadableRows(const AttentionShape& shape, const uint8_t* block, int first, int count, float* scratch) {
  const uint8_t* begin = block + first * shape.row_bytes;
  if (shape.type == TensorType::kF32 || shape.type == TensorType::kF16) {
    return {begin, shape.row_bytes, shape.type == TensorType::kF16};
  }
  for (int i = 0; i < count; ++i) {
    LoadKvRow(shape.type, begin + i * shape.row_bytes, shape.head_dim, scratch + int64_t{i} * shape.head_dim);
  }
  return {reinterpret_cast<const uint8_t*>(scratch), shape.head_dim * int64_t{sizeof(float)}, false};
}

// The queries that see something of a block, in the block's own positions.
struct Visible {
  int count = 0;
  int first = kAttentionBlock;
  int last = 0;
  int index[kAttentionQueriesMax];
  const float* q[kAttentionQueriesMax];
  float* out[kAttentionQueriesMax];
  int begin[kAttentionQueriesMax];
  int end[kAttentionQueriesMax];
};

Visible FindVisible(absl::Span<const AttentionQuery> queries, int block) {
  Visible visible;
  const int start = block * kAttentionBlock;
  for (size_t i = 0; i < queries.size(); ++i) {
    const int begin = std::max(queries[i].begin - start, 0);
    const int end = std::min(queries[i].end - start, kAttentionBlock);
    if (begin < end) {
      const int n = visible.count++;
      visible.index[n] = static_cast<int>(i);
      visible.q[n] = queries[i].q;
      visible.out[n] = queries[i].out;
      visible.begin[n] = begin;
      visible.end[n] = end;
      visible.first = std::min(visible.first, begin);
      visible.last = std::max(visible.last, end);
    }
  }
  return visible;
}

}  // namespace

int64_t AttentionScratchFloats(int head_dim) {
  return ScoreFloats() + OutFloats(head_dim) + int64_t{kAttentionBlock} * head_dim;
}

void AttendSegment(const AttentionShape& shape, absl::Span<const AttentionQuery> queries, AttentionBlocks blocks,
                   int segment, AttentionState* states, float* scratch) {
  const AttentionTable& table = *Kernels().attention;
  const int dim = shape.head_dim;
  if (queries.size() > kAttentionQueriesMax || dim % 8 != 0) {
    std::fprintf(stderr, "embergate: attention: %zu queries of %d channels\n", queries.size(), dim);
    std::abort();  // the model's own shapes: a bug
  }
  float* scores = scratch;
  float* rows_scratch = scratch + ScoreFloats() + OutFloats(dim);
  int first_block = std::numeric_limits<int>::max();
  int last_block = -1;
  for (size_t i = 0; i < queries.size(); ++i) {
    states[i] = {-std::numeric_limits<float>::infinity(), 0.0f};
    std::fill_n(queries[i].out, dim, 0.0f);
    first_block = std::min(first_block, queries[i].begin / kAttentionBlock);
    last_block = std::max(last_block, (queries[i].end - 1) / kAttentionBlock);
  }
  first_block = std::max(first_block, segment * kBlocksPerSegment);
  last_block = std::min(last_block, (segment + 1) * kBlocksPerSegment - 1);
  for (int block = first_block; block <= last_block; ++block) {
    const Visible visible = FindVisible(queries, block);
    if (visible.count == 0) {
      continue;
    }
    const AttentionBlock memory = blocks(block);
    const int count = visible.last - visible.first;
    const Rows keys = ReadableRows(shape, memory.keys, visible.first, count, rows_scratch);
    const FetchAhead own_values = {memory.values + visible.first * shape.row_bytes, count * shape.row_bytes};
    (keys.half ? table.scores_f16 : table.scores_f32)(visible.q, visible.count, dim, keys.data, keys.row_bytes, count,
                                                      own_values, scores + visible.first);
    float rescale[kAttentionQueriesMax];
    for (int i = 0; i < visible.count; ++i) {
      AttentionState& state = states[visible.index[i]];
      rescale[i] =
          table.softmax(scores + i * kAttentionBlock, visible.begin[i], visible.end[i], &state.maximum, &state.sum);
    }
    FetchAhead next_keys;
    if (block < last_block) {
      next_keys = {blocks(block + 1).keys, kAttentionBlock * shape.row_bytes};
    }
    const Rows values = ReadableRows(shape, memory.values, visible.first, count, rows_scratch);
    (values.half ? table.values_f16 : table.values_f32)(scores + visible.first, rescale, visible.count, dim,
                                                        values.data, values.row_bytes, count, next_keys, visible.out);
  }
}

void MergeAttention(int head_dim, const float* from_out, const AttentionState& from, float* out,
                    AttentionState* state) {
  const AttentionTable& table = *Kernels().attention;
  if (from.sum == 0.0f) {
    return;
  }
  const float top = std::max(state->maximum, from.maximum);
  const float keep = state->sum == 0.0f ? 0.0f : table.exp(state->maximum - top);
  const float add = table.exp(from.maximum - top);
  Scale(out, keep, head_dim, out);
  AddScaled(out, from_out, add, head_dim, out);
  state->sum = state->sum * keep + from.sum * add;
  state->maximum = top;
}

void FinishAttention(int head_dim, const AttentionState& state, float* out) {
  Scale(out, 1.0f / state.sum, head_dim, out);
}

void Attend(const AttentionShape& shape, absl::Span<const AttentionQuery> queries, AttentionBlocks blocks,
            float* scratch) {
  if (queries.empty()) {
    return;
  }
  int begin = std::numeric_limits<int>::max();
  int end = 0;
  for (const AttentionQuery& query : queries) {
    begin = std::min(begin, query.begin);
    end = std::max(end, query.end);
  }
  AttentionState states[kAttentionQueriesMax];
  const int first = begin / kAttentionSegment;
  const int last = (end - 1) / kAttentionSegment;
  // A query that begins after the first segment starts from that one's empty state, which merging leaves untouched.
  AttendSegment(shape, queries, blocks, first, states, scratch);
  for (int segment = first + 1; segment <= last; ++segment) {
    AttentionQuery parts[kAttentionQueriesMax];
    AttentionState part_states[kAttentionQueriesMax];
    for (size_t i = 0; i < queries.size(); ++i) {
      parts[i] = queries[i];
      parts[i].out = scratch + ScoreFloats() + static_cast<int64_t>(i) * shape.head_dim;
    }
    AttendSegment(shape, absl::MakeConstSpan(parts, queries.size()), blocks, segment, part_states, scratch);
    for (size_t i = 0; i < queries.size(); ++i) {
      MergeAttention(shape.head_dim, parts[i].out, part_states[i], queries[i].out, &states[i]);
    }
  }
  for (size_t i = 0; i < queries.size(); ++i) {
    FinishAttention(shape.head_dim, states[i], queries[i].out);
  }
}

}  // namespace embergate::engine
