// Keys and values of the layers that own them, in a fixed amount of memory.
//
// Positions come in blocks of kBlock, counted from position 0 of the sequence. Full-attention layers keep every
// block: one pool of pages, a page holding one block of all full layers; a slot's page table says which. Sliding
// layers keep a ring of whole blocks per slot, long enough for the window and one step: window - 1 + step tokens.
//
// One block of one layer and KV head is kBlock rows of K, then kBlock rows of V; a row is head_dim values in the
// cache's storage type. Attention therefore walks contiguous memory within a block.
#ifndef EMBERGATE_ENGINE_MODEL_KV_CACHE_H_
#define EMBERGATE_ENGINE_MODEL_KV_CACHE_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/model/aligned_buffer.h"
#include "engine/model/config.h"
#include "storage/tensor_type.h"

namespace embergate::engine {

struct KvLimits {
  int slots = 1;
  int context_max = 0;     // positions per slot
  int64_t tokens_max = 0;  // positions of all slots together; 0 = slots * context_max
  int step_tokens_max = 1;
  storage::TensorType type = storage::TensorType::kF32;  // F32, F16, Q8_0 or Q4_0
};

// Threads: one (the engine thread) for everything that changes it; Store and Block of different positions and layers
// from the pool's workers.
class KvCache {
 public:
  static constexpr int kBlock = 32;  // positions

  // Errors: INVALID_ARGUMENT (a head size that the type cannot store), RESOURCE_EXHAUSTED (memory refused).
  static absl::StatusOr<std::unique_ptr<KvCache>> Create(const ModelConfig& config, const KvLimits& limits);
  // What Create would take.
  static absl::StatusOr<uint64_t> BytesFor(const ModelConfig& config, const KvLimits& limits);

  // Reserves pages for `tokens_max` positions. RESOURCE_EXHAUSTED when the pool has too few free ones now,
  // INVALID_ARGUMENT when it never could, FAILED_PRECONDITION when the slot is open.
  absl::Status OpenSlot(int slot, int tokens_max);
  void CloseSlot(int slot);  // a closed slot stays closed
  bool is_open(int slot) const { return slots_[slot].open; }
  int reserved(int slot) const { return slots_[slot].tokens_max; }
  // Bytes that an open slot holds: its pages and its rings.
  uint64_t SlotBytes(int slot) const {
    return slots_[slot].open ? slots_[slot].pages.size() * page_bytes_ + slot_ring_bytes_ : 0;
  }
  int64_t FreeTokens() const { return static_cast<int64_t>(free_pages_.size()) * kBlock; }

  // Stores k and v [kv_heads, head_dim] of a position; layer must own its cache.
  void Store(int layer, int slot, int position, const float* k, const float* v);
  // The block that holds positions block*kBlock .. +kBlock-1 of a layer and KV head.
  const uint8_t* KeyBlock(int layer, int slot, int kv_head, int block) const {
    const LayerPlace& place = places_[layer];
    return BlockOf(place, slot, block) + kv_head * 2 * place.rows_bytes;
  }
  const uint8_t* ValueBlock(int layer, int slot, int kv_head, int block) const {
    return KeyBlock(layer, slot, kv_head, block) + places_[layer].rows_bytes;
  }
  uint64_t row_bytes(int layer) const { return places_[layer].row_bytes; }
  storage::TensorType type() const { return limits_.type; }
  uint64_t bytes() const { return pages_.bytes() + rings_.bytes(); }

 private:
  struct LayerPlace {
    bool owns = false;
    bool ring = false;
    int kv_heads = 0;
    int head_dim = 0;
    uint64_t row_bytes = 0;    // of one position and KV head
    uint64_t rows_bytes = 0;   // of one block of K or of V of one KV head
    uint64_t block_bytes = 0;  // of one block, all KV heads, K and V
    uint64_t offset = 0;       // within the page, or within the slot's rings
  };
  struct Slot {
    bool open = false;
    int tokens_max = 0;
    std::vector<int32_t> pages;  // capacity for context_max from the start
  };
  struct Layout {
    std::vector<LayerPlace> places;
    uint64_t page_bytes = 0;
    uint64_t slot_ring_bytes = 0;
    int ring_blocks = 0;
    int64_t pages = 0;
    int pages_per_slot = 0;
  };

  static absl::StatusOr<Layout> Plan(const ModelConfig& config, const KvLimits& limits);
  uint8_t* BlockOf(const LayerPlace& place, int slot, int block) const {
    if (place.ring) {
      return rings_data_ + slot * slot_ring_bytes_ + place.offset + (block % ring_blocks_) * place.block_bytes;
    }
    return pages_data_ + slots_[slot].pages[block] * page_bytes_ + place.offset;
  }

  KvLimits limits_;
  std::vector<LayerPlace> places_;
  uint64_t page_bytes_ = 0;
  uint64_t slot_ring_bytes_ = 0;
  int ring_blocks_ = 0;
  int pages_per_slot_ = 0;
  int64_t page_count_ = 0;
  AlignedBuffer<uint8_t> pages_;
  AlignedBuffer<uint8_t> rings_;
  uint8_t* pages_data_ = nullptr;
  uint8_t* rings_data_ = nullptr;
  std::vector<int32_t> free_pages_;
  std::vector<Slot> slots_;
};

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_MODEL_KV_CACHE_H_
