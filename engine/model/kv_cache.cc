#include "engine/model/kv_cache.h"

#include <algorithm>
#include <cstring>
#include <optional>

#include "absl/strings/str_cat.h"
#include "engine/kernels/kernels.h"
#include "storage/base/status_macros.h"

namespace embergate::engine {
namespace {

int64_t BlocksFor(int64_t tokens) { return (tokens + KvCache::kBlock - 1) / KvCache::kBlock; }

}  // namespace

absl::StatusOr<KvCache::Layout> KvCache::Plan(const ModelConfig& config, const KvLimits& limits) {
  Layout layout;
  layout.pages_per_slot = static_cast<int>(BlocksFor(limits.context_max));
  layout.pages = limits.tokens_max > 0 ? BlocksFor(limits.tokens_max) : int64_t{layout.pages_per_slot} * limits.slots;
  layout.pages = std::min(layout.pages, int64_t{layout.pages_per_slot} * limits.slots);
  // A step's first token sees window - 1 positions before it, while its last one is already stored.
  const int64_t ring_tokens =
      std::min<int64_t>(int64_t{config.window} - 1 + limits.step_tokens_max, limits.context_max);
  layout.ring_blocks = static_cast<int>(BlocksFor(ring_tokens));
  layout.places.resize(config.layer_count());
  for (int i = 0; i < config.layer_count(); ++i) {
    const LayerConfig& layer = config.layers[i];
    LayerPlace& place = layout.places[i];
    if (!layer.owns_kv) {
      continue;
    }
    const std::optional<uint64_t> row_bytes = storage::BytesOf(limits.type, layer.head_dim);
    if (!row_bytes.has_value()) {
      return absl::InvalidArgumentError(absl::StrCat("KV cache type ", std::string(storage::TraitsOf(limits.type).name),
                                                     " cannot store heads of ", layer.head_dim,
                                                     " values; use f16 or f32"));
    }
    place.owns = true;
    place.ring = layer.sliding;
    place.kv_heads = layer.kv_heads;
    place.head_dim = layer.head_dim;
    place.row_bytes = *row_bytes;
    place.rows_bytes = place.row_bytes * kBlock;
    place.block_bytes = place.rows_bytes * 2 * layer.kv_heads;
    if (place.ring) {
      place.offset = layout.slot_ring_bytes;
      layout.slot_ring_bytes += place.block_bytes * layout.ring_blocks;
    } else {
      place.offset = layout.page_bytes;
      layout.page_bytes += place.block_bytes;
    }
  }
  return layout;
}

absl::StatusOr<uint64_t> KvCache::BytesFor(const ModelConfig& config, const KvLimits& limits) {
  EMBERGATE_ASSIGN_OR_RETURN(const Layout layout, Plan(config, limits));
  return layout.page_bytes * layout.pages + layout.slot_ring_bytes * limits.slots;
}

absl::StatusOr<std::unique_ptr<KvCache>> KvCache::Create(const ModelConfig& config, const KvLimits& limits) {
  EMBERGATE_ASSIGN_OR_RETURN(Layout layout, Plan(config, limits));
  auto cache = std::make_unique<KvCache>();
  cache->limits_ = limits;
  cache->places_ = std::move(layout.places);
  cache->page_bytes_ = layout.page_bytes;
  cache->slot_ring_bytes_ = layout.slot_ring_bytes;
  cache->ring_blocks_ = layout.ring_blocks;
  cache->pages_per_slot_ = layout.pages_per_slot;
  cache->page_count_ = layout.pages;
  cache->pages_ = AlignedBuffer<uint8_t>(layout.page_bytes * layout.pages);
  cache->rings_ = AlignedBuffer<uint8_t>(layout.slot_ring_bytes * limits.slots);
  if (cache->pages_.refused() || cache->rings_.refused()) {
    return absl::ResourceExhaustedError(absl::StrCat("no memory for a KV cache of ", cache->bytes(),
                                                     " bytes; lower the context, the slots or the pool"));
  }
  cache->pages_data_ = cache->pages_.data();
  cache->rings_data_ = cache->rings_.data();
  cache->slots_.resize(limits.slots);
  for (Slot& slot : cache->slots_) {
    slot.pages.reserve(layout.pages_per_slot);
  }
  cache->free_pages_.reserve(layout.pages);
  for (int64_t page = layout.pages - 1; page >= 0; --page) {
    cache->free_pages_.push_back(static_cast<int32_t>(page));
  }
  return cache;
}

absl::Status KvCache::OpenSlot(int slot, int tokens_max) {
  if (slot < 0 || slot >= static_cast<int>(slots_.size())) {
    return absl::InvalidArgumentError(absl::StrCat("slot ", slot, " of ", slots_.size()));
  }
  if (slots_[slot].open) {
    return absl::FailedPreconditionError(absl::StrCat("slot ", slot, " is open already"));
  }
  const int64_t pages = BlocksFor(tokens_max);
  if (tokens_max < 1 || tokens_max > limits_.context_max || pages > page_count_) {
    return absl::InvalidArgumentError(absl::StrCat(tokens_max, " positions asked for; a sequence may have 1 to ",
                                                   std::min<int64_t>(limits_.context_max, page_count_ * kBlock)));
  }
  if (pages > static_cast<int64_t>(free_pages_.size())) {
    return absl::ResourceExhaustedError(
        absl::StrCat(tokens_max, " positions asked for, but the KV cache has only ", FreeTokens(), " free now"));
  }
  slots_[slot].open = true;
  slots_[slot].tokens_max = tokens_max;
  for (int64_t i = 0; i < pages; ++i) {
    slots_[slot].pages.push_back(free_pages_.back());
    free_pages_.pop_back();
  }
  return absl::OkStatus();
}

void KvCache::CloseSlot(int slot) {
  if (slot < 0 || slot >= static_cast<int>(slots_.size()) || !slots_[slot].open) {
    return;
  }
  Slot& s = slots_[slot];
  free_pages_.insert(free_pages_.end(), s.pages.rbegin(), s.pages.rend());
  s.pages.clear();
  s.open = false;
  s.tokens_max = 0;
}

void KvCache::Store(int layer, int slot, int position, const float* k, const float* v) {
  const LayerPlace& place = places_[layer];
  uint8_t* block = BlockOf(place, slot, position / kBlock);
  const uint64_t row = (position % kBlock) * place.row_bytes;
  for (int head = 0; head < place.kv_heads; ++head) {
    uint8_t* key = block + head * 2 * place.rows_bytes + row;
    uint8_t* value = key + place.rows_bytes;
    const float* k_head = k + int64_t{head} * place.head_dim;
    const float* v_head = v + int64_t{head} * place.head_dim;
    if (limits_.type == storage::TensorType::kF32) {
      std::memcpy(key, k_head, place.row_bytes);
      std::memcpy(value, v_head, place.row_bytes);
    } else {
      // Cannot fail: Plan checked the type and the width.
      (void)QuantizeRow(limits_.type, k_head, place.head_dim, key);
      (void)QuantizeRow(limits_.type, v_head, place.head_dim, value);
    }
  }
}

}  // namespace embergate::engine
