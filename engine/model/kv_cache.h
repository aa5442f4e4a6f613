// Keys and values of the layers that own them, in a fixed amount of memory.
//
// Positions come in blocks of kBlock, counted from position 0 of the sequence. There are two pools of pages: a page of
// the first holds one block of all full-attention layers, one of the second a block of all sliding layers. A sequence
// keeps the former for all its blocks and the latter for those that its next token's window reaches, so that a long
// conversation costs full layers only. Opening a slot reserves pages; they are taken when positions are computed.
//
// Sequences share the blocks of a common prefix, and what they leave behind stays as a cache of prefixes until its
// pages are needed (engine/model/prefix_tree.h). A block is shared when it is full; the rows of one that is not are
// copied to whoever goes on from them, so nobody ever writes to a shared page.
//
// Within a page, a block of one layer and KV head is kBlock rows of K, then kBlock rows of V; a row is head_dim values
// in the cache's storage type. Attention therefore walks contiguous memory within a block.
#ifndef EMBERGATE_ENGINE_MODEL_KV_CACHE_H_
#define EMBERGATE_ENGINE_MODEL_KV_CACHE_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "engine/model/aligned_buffer.h"
#include "engine/model/config.h"
#include "engine/model/language_model.h"
#include "engine/model/prefix_tree.h"
#include "storage/tensor_type.h"

namespace embergate::engine {

struct KvLimits {
  int slots = 1;
  int context_max = 0;     // positions per slot
  int64_t tokens_max = 0;  // positions of all open slots together; 0 = slots * context_max
  int step_tokens_max = 1;
  storage::TensorType type = storage::TensorType::kF32;  // F32, F16, Q8_0 or Q4_0
  // Memory for cached prefixes that open slots never take. What they leave unused is a cache as well.
  uint64_t prefix_bytes = 0;
  bool keep_prefixes = false;  // false: a block is shared only as long as a slot holds it
};

// Threads: one (the engine thread) for everything that changes it; Store and the blocks of different positions and
// layers from the pool's workers. After Create it allocates nothing.
class KvCache {
 public:
  static constexpr int kBlock = PrefixTree::kBlock;  // positions
  // Fewer common tokens than this in a block that is not full are computed again rather than copied.
  static constexpr int kCopiedMin = 4;

  // Errors: INVALID_ARGUMENT (a head size that the type cannot store), RESOURCE_EXHAUSTED (memory refused).
  static absl::StatusOr<std::unique_ptr<KvCache>> Create(const ModelConfig& config, const KvLimits& limits);
  // What Create would take: for open slots, and for the prefixes kept besides.
  struct Bytes {
    uint64_t slots = 0;
    uint64_t prefixes = 0;
  };
  static absl::StatusOr<Bytes> BytesFor(const ModelConfig& config, const KvLimits& limits);

  // Reserves pages for `tokens_max` positions. RESOURCE_EXHAUSTED when the pool has too few free ones now,
  // INVALID_ARGUMENT when it never could, FAILED_PRECONDITION when the slot is open. The slot shares nothing.
  absl::Status OpenSlot(int slot, int tokens_max);
  // The same for a sequence that begins with `tokens` and may share blocks with sequences of its scope. Returns how
  // many of the tokens, from the front, it need not compute: perhaps all. What it computes is shared in turn.
  absl::StatusOr<int> OpenSlotWithPrefix(int slot, int tokens_max, absl::Span<const int32_t> tokens, uint64_t scope);
  // What OpenSlotWithPrefix would return now.
  int CachedPrefix(absl::Span<const int32_t> tokens, uint64_t scope) const;
  // Its blocks stay behind as a cached prefix, if they may.
  void CloseSlot(int slot);  // a closed slot stays closed
  bool is_open(int slot) const { return slots_[slot].open; }
  int reserved(int slot) const { return slots_[slot].tokens_max; }
  // Of these slots together, at the most that each has held; what they share counts once. Closed ones hold nothing.
  uint64_t BytesOf(absl::Span<const int> slots) const;
  // Positions that could be reserved now.
  int64_t FreeTokens() const;
  PrefixCacheStats prefix_stats() const;

  // Before positions [start, start + count) of an open slot are stored: takes their pages, and gives back what of the
  // sliding layers lies before the window of position `start`. Within the reservation it cannot fail.
  absl::Status Extend(int slot, int start, int count);
  // After: these tokens' keys and values, next in order, are stored and right. Full blocks become shared, and what the
  // next token's window does not reach is given back.
  void Commit(int slot, absl::Span<const int32_t> tokens);
  // Instead: what was stored since the last Commit is not to be trusted. The slot shares nothing further, and is good
  // for nothing but CloseSlot.
  void Spoil(int slot);
  // For benchmarks: positions [start, start + count) count as stored, with whatever the pages hold. Shares nothing.
  absl::Status Skip(int slot, int start, int count);

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
  Bytes bytes() const { return layout_.bytes(); }

 private:
  struct LayerPlace {
    bool owns = false;
    bool sliding = false;
    int kv_heads = 0;
    int head_dim = 0;
    uint64_t row_bytes = 0;    // of one position and KV head
    uint64_t rows_bytes = 0;   // of one block of K or of V of one KV head
    uint64_t block_bytes = 0;  // of one block, all KV heads, K and V
    uint64_t offset = 0;       // within the page
  };
  struct SlotBlock {
    int32_t node;  // of the tree, which then owns the pages; kPrivate = the slot owns them
    KvPages pages;
  };
  static constexpr int32_t kPrivate = -1;
  struct Slot {
    bool open = false;
    bool sharing = false;
    int tokens_max = 0;
    int blocks_max = 0;
    uint64_t scope = 0;
    std::vector<SlotBlock> blocks;  // capacity for context_max from the start
    int window_begin = 0;           // first block that may have a sliding page
    int windows_most = 0;           // sliding pages held at once
    int to_count = -1;  // tokens reused, until its first Commit has counted them; a slot may be opened twice in vain
    int committed = 0;  // positions
    int32_t tokens[kBlock] = {};  // while sharing: those of the last block, if it is not full
    int tail() const { return committed % kBlock; }
  };
  struct Layout {
    std::vector<LayerPlace> places;
    uint64_t full_bytes = 0;  // of a page
    uint64_t sliding_bytes = 0;
    int pages_per_slot = 0;
    int64_t pages = 0;          // of the full layers, for open slots
    int64_t sliding_pages = 0;  // of the sliding layers, for open slots
    int64_t prefix_pages = 0;   // of each, besides
    uint64_t slot_bookkeeping = 0;
    uint64_t page_bookkeeping = 0;  // per page
    Bytes bytes() const;
  };
  // Where a sequence can go on: `nodes` full blocks of match_ and `copied` rows of one more block.
  struct Cut {
    int nodes = 0;
    int copied = 0;
    int copied_node = PrefixTree::kNone;  // whose block that is: a node's
    int copied_slot = -1;                 // or an open slot's last one
    int length() const { return nodes * kBlock + copied; }
  };

  static absl::StatusOr<Layout> Plan(const ModelConfig& config, const KvLimits& limits);
  Cut FindCut(absl::Span<const int32_t> tokens, uint64_t scope, bool may_copy) const;
  // Blocks that opening with this cut takes from the free ones.
  int64_t BlocksNeeded(const Cut& cut, int blocks_max) const;
  absl::Status CheckOpen(int slot, int tokens_max) const;
  void CopyTail(Slot& slot, const Cut& cut, absl::Span<const int32_t> tokens);
  absl::Status TakeBlocks(Slot& slot, int64_t blocks, int64_t first_with_window);
  void GiveBackWindows(Slot& slot, int begin);
  void CommitBlock(Slot& slot);
  void KeepTail(Slot& slot);
  int32_t TakeFull();
  int32_t TakeSliding();
  void CollectFreed();
  // Blocks that open slots may still take.
  int64_t FreeBlocks() const;
  uint8_t* FullPage(int32_t page) { return full_data_ + page * layout_.full_bytes; }
  uint8_t* SlidingPage(int32_t page) { return sliding_data_ + page * layout_.sliding_bytes; }
  uint8_t* BlockOf(const LayerPlace& place, int slot, int block) const {
    const KvPages& pages = slots_[slot].blocks[block].pages;
    return place.sliding ? sliding_data_ + pages.sliding * layout_.sliding_bytes + place.offset
                         : full_data_ + pages.full * layout_.full_bytes + place.offset;
  }

  KvLimits limits_;
  Layout layout_;
  std::vector<LayerPlace> places_;
  AlignedBuffer<uint8_t> full_;
  AlignedBuffer<uint8_t> sliding_;
  uint8_t* full_data_ = nullptr;
  uint8_t* sliding_data_ = nullptr;
  std::vector<int32_t> free_full_;
  std::vector<int32_t> free_sliding_;
  int64_t promised_ = 0;  // blocks reserved by open slots and not taken yet
  std::unique_ptr<PrefixTree> tree_;
  mutable std::vector<int32_t> match_;  // scratch of FindCut: the path of full blocks
  std::vector<Slot> slots_;
  uint64_t lookups_ = 0;
  uint64_t hits_ = 0;
  uint64_t tokens_reused_ = 0;
};

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_MODEL_KV_CACHE_H_
