#include "engine/model/attention.h"

#include <algorithm>

namespace embergate::engine {
namespace {

static_assert(KvCache::kBlock == kAttentionBlock);

int SegmentsFor(int context_max) { return (context_max + kAttentionSegment - 1) / kAttentionSegment; }

int64_t WorkerFloats(const ModelConfig& config) {
  return (AttentionScratchFloats(config.head_dim_max()) + 15) / 16 * 16;
}

}  // namespace

AttentionScratch::AttentionScratch(const ModelConfig& config, int step_tokens_max, int context_max, int workers)
    : floats_per_worker_(WorkerFloats(config)),
      workers_(static_cast<size_t>(floats_per_worker_) * workers),
      partial_(workers > 1 ? size_t{kAttentionQueriesMax} * SegmentsFor(context_max) * config.head_dim_max() : 0),
      states_(workers > 1 ? size_t{kAttentionQueriesMax} * SegmentsFor(context_max) : 0) {
  groups_.reserve(step_tokens_max);
}

uint64_t AttentionScratch::BytesFor(const ModelConfig& config, int step_tokens_max, int context_max, int workers) {
  const uint64_t rows = workers > 1 ? uint64_t{kAttentionQueriesMax} * SegmentsFor(context_max) : 0;
  return WorkerFloats(config) * workers * sizeof(float) +
         rows * (config.head_dim_max() * sizeof(float) + sizeof(AttentionState)) +
         uint64_t{1} * step_tokens_max * sizeof(Group);
}

// One call of Attention. An item is a group of tokens, a KV head and some of the query heads that share it.
class AttentionStep {
 public:
  AttentionStep(const ModelConfig& config, const LayerConfig& layer, const KvCache& kv,
                absl::Span<const StepToken> tokens, const float* q, float* out, int64_t stride,
                AttentionScratch& scratch, ThreadPool& pool)
      : config_(config),
        layer_(layer),
        kv_(kv),
        tokens_(tokens),
        q_(q),
        out_(out),
        stride_(stride),
        scratch_(scratch),
        pool_(pool),
        shape_{kv.type(), layer.head_dim, static_cast<int64_t>(kv.row_bytes(layer.kv_source))},
        heads_per_kv_(config.heads / layer.kv_heads) {}

  void Run() {
    heads_per_item_ = std::min(heads_per_kv_, kAttentionQueriesMax);
    MakeGroups();
    const int64_t groups = static_cast<int64_t>(scratch_.groups_.size()) * layer_.kv_heads;
    if (groups < pool_.threads() && longest_ > kAttentionSegment) {
      // Few sequences with much to read: the workers share each one's context, so that it is read once.
      ForItems(
          groups, [&](int64_t item, int) { RunSegments(item); }, /*parallel=*/false);
      return;
    }
    if (groups < pool_.threads()) {
      // Few short ones: the workers share the heads.
      const int parts = static_cast<int>((pool_.threads() + groups - 1) / groups);
      heads_per_item_ = std::max(1, std::min(heads_per_item_, (heads_per_kv_ + parts - 1) / parts));
    }
    ForItems(
        groups, [&](int64_t item, int worker) { RunItem(item, worker); }, /*parallel=*/true);
  }

 private:
  // Queries of an item; at most kAttentionQueriesMax.
  struct Item {
    int slot = 0;
    int kv_head = 0;
    int count = 0;
    AttentionQuery queries[kAttentionQueriesMax];
  };

  int parts() const { return (heads_per_kv_ + heads_per_item_ - 1) / heads_per_item_; }

  // Cuts the tokens where the slot changes and where an item is full.
  void MakeGroups() {
    const int tokens_per_group = std::max(1, kAttentionQueriesMax / heads_per_item_);
    scratch_.groups_.clear();
    longest_ = 0;
    for (int t = 0; t < static_cast<int>(tokens_.size()); ++t) {
      longest_ = std::max(longest_, tokens_[t].position + 1 - FirstVisible(tokens_[t]));
      if (t == 0 || tokens_[t].slot != tokens_[t - 1].slot || scratch_.groups_.back().count == tokens_per_group) {
        scratch_.groups_.push_back({t, 0});
      }
      ++scratch_.groups_.back().count;
    }
  }

  void ForItems(int64_t groups, absl::FunctionRef<void(int64_t item, int worker)> fn, bool parallel) {
    const int64_t items = groups * parts();
    if (!parallel) {
      for (int64_t item = 0; item < items; ++item) {
        fn(item, 0);
      }
      return;
    }
    pool_.ParallelFor(items, 1, [&](int64_t begin, int64_t end, int worker) {
      for (int64_t item = begin; item < end; ++item) {
        fn(item, worker);
      }
    });
  }

  int FirstVisible(const StepToken& token) const {
    return layer_.sliding ? std::max(token.position - config_.window + 1, 0) : 0;
  }

  Item MakeItem(int64_t index) const {
    Item item;
    const int part = static_cast<int>(index % parts());
    const int64_t pair = index / parts();
    const AttentionScratch::Group& group = scratch_.groups_[pair / layer_.kv_heads];
    item.slot = tokens_[group.first].slot;
    item.kv_head = static_cast<int>(pair % layer_.kv_heads);
    const int first_head = part * heads_per_item_;
    const int heads = std::min(heads_per_item_, heads_per_kv_ - first_head);
    for (int t = group.first; t < group.first + group.count; ++t) {
      for (int head = 0; head < heads; ++head) {
        const int64_t offset =
            t * stride_ + (int64_t{item.kv_head} * heads_per_kv_ + first_head + head) * layer_.head_dim;
        item.queries[item.count++] = {q_ + offset, FirstVisible(tokens_[t]), tokens_[t].position + 1, out_ + offset};
      }
    }
    return item;
  }

  AttentionBlock BlockOf(const Item& item, int block) const {
    return {kv_.KeyBlock(layer_.kv_source, item.slot, item.kv_head, block),
            kv_.ValueBlock(layer_.kv_source, item.slot, item.kv_head, block)};
  }

  float* WorkerScratch(int worker) { return scratch_.workers_.data() + worker * scratch_.floats_per_worker_; }

  void RunItem(int64_t index, int worker) {
    const Item item = MakeItem(index);
    Attend(
        shape_, absl::MakeConstSpan(item.queries, item.count), [&](int block) { return BlockOf(item, block); },
        WorkerScratch(worker));
  }

  void RunSegments(int64_t index) {
    const Item item = MakeItem(index);
    const int64_t dim = layer_.head_dim;
    int begin = item.queries[0].begin;
    int end = item.queries[0].end;
    for (int i = 1; i < item.count; ++i) {
      begin = std::min(begin, item.queries[i].begin);
      end = std::max(end, item.queries[i].end);
    }
    const int first = begin / kAttentionSegment;
    const int segments = (end - 1) / kAttentionSegment - first + 1;
    const auto part_out = [&](int segment, int query) {
      return scratch_.partial_.data() + (int64_t{segment} * kAttentionQueriesMax + query) * dim;
    };
    pool_.ParallelFor(segments, 1, [&](int64_t from, int64_t to, int worker) {
      for (int segment = static_cast<int>(from); segment < to; ++segment) {
        AttentionQuery queries[kAttentionQueriesMax];
        for (int i = 0; i < item.count; ++i) {
          queries[i] = item.queries[i];
          queries[i].out = part_out(segment, i);
        }
        AttendSegment(
            shape_, absl::MakeConstSpan(queries, item.count), [&](int block) { return BlockOf(item, block); },
            first + segment, &scratch_.states_[size_t{kAttentionQueriesMax} * segment], WorkerScratch(worker));
      }
    });
    pool_.ParallelFor(item.count, 1, [&](int64_t from, int64_t to, int) {
      for (int i = static_cast<int>(from); i < to; ++i) {
        float* const total = item.queries[i].out;
        AttentionState state = scratch_.states_[i];
        std::copy_n(part_out(0, i), dim, total);
        for (int segment = 1; segment < segments; ++segment) {
          MergeAttention(layer_.head_dim, part_out(segment, i),
                         scratch_.states_[size_t{kAttentionQueriesMax} * segment + i], total, &state);
        }
        FinishAttention(layer_.head_dim, state, total);
      }
    });
  }

  const ModelConfig& config_;
  const LayerConfig& layer_;
  const KvCache& kv_;
  const absl::Span<const StepToken> tokens_;
  const float* const q_;
  float* const out_;
  const int64_t stride_;
  AttentionScratch& scratch_;
  ThreadPool& pool_;
  const AttentionShape shape_;
  const int heads_per_kv_;
  int heads_per_item_ = 1;
  int longest_ = 0;
};

void Attention(const ModelConfig& config, const LayerConfig& layer, const KvCache& kv,
               absl::Span<const StepToken> tokens, const float* q, float* out, int64_t stride,
               AttentionScratch& scratch, ThreadPool& pool) {
  AttentionStep(config, layer, kv, tokens, q, out, stride, scratch, pool).Run();
}

}  // namespace embergate::engine
