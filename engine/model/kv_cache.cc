#include "engine/model/kv_cache.h"

#include <algorithm>
#include <cstring>
#include <optional>

#include "absl/strings/str_cat.h"
#include "engine/kernels/kv_rows.h"
#include "storage/base/status_macros.h"

namespace embergate::engine {
namespace {

int64_t BlocksFor(int64_t tokens) { return (tokens + KvCache::kBlock - 1) / KvCache::kBlock; }

// The most blocks that this many consecutive positions lie in.
int64_t BlocksTouched(int64_t positions) { return (positions + KvCache::kBlock - 2) / KvCache::kBlock + 1; }

}  // namespace

KvCache::Bytes KvCache::Layout::bytes() const {
  Bytes bytes;
  bytes.slots = full_bytes * pages + sliding_bytes * sliding_pages + page_bookkeeping * pages + slot_bookkeeping;
  bytes.prefixes = (full_bytes + sliding_bytes + page_bookkeeping) * prefix_pages;
  return bytes;
}

absl::StatusOr<KvCache::Layout> KvCache::Plan(const ModelConfig& config, const KvLimits& limits) {
  Layout layout;
  bool slides = false;
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
    place.sliding = layer.sliding;
    place.kv_heads = layer.kv_heads;
    place.head_dim = layer.head_dim;
    place.row_bytes = *row_bytes;
    place.rows_bytes = place.row_bytes * kBlock;
    place.block_bytes = place.rows_bytes * 2 * layer.kv_heads;
    uint64_t& page_bytes = place.sliding ? layout.sliding_bytes : layout.full_bytes;
    place.offset = page_bytes;
    page_bytes += place.block_bytes;
    slides = slides || layer.sliding;
  }
  layout.pages_per_slot = static_cast<int>(BlocksFor(limits.context_max));
  layout.pages = limits.tokens_max > 0 ? BlocksFor(limits.tokens_max) : int64_t{layout.pages_per_slot} * limits.slots;
  layout.pages = std::min(layout.pages, int64_t{layout.pages_per_slot} * limits.slots);
  if (slides) {
    // A step's token sees window - 1 positions before it. A slot that computes n tokens touches at most
    // 1 + ceil((n - 1) / kBlock) blocks more than one token's window does; all slots of a step together, at most one
    // each and one per kBlock of its tokens.
    layout.sliding_pages = std::min<int64_t>(
        layout.pages, limits.slots * (BlocksTouched(config.window) + 1) + limits.step_tokens_max / kBlock + 1);
  }
  layout.slot_bookkeeping =
      limits.slots * (sizeof(Slot) + (layout.pages_per_slot + 1) * (sizeof(SlotBlock) + sizeof(int32_t)));
  layout.page_bookkeeping = PrefixTree::BytesFor(1) + 2 * sizeof(int32_t);
  if (limits.keep_prefixes) {
    layout.prefix_pages = limits.prefix_bytes / (layout.full_bytes + layout.sliding_bytes + layout.page_bookkeeping);
  }
  return layout;
}

absl::StatusOr<KvCache::Bytes> KvCache::BytesFor(const ModelConfig& config, const KvLimits& limits) {
  EMBERGATE_ASSIGN_OR_RETURN(const Layout layout, Plan(config, limits));
  return layout.bytes();
}

absl::StatusOr<std::unique_ptr<KvCache>> KvCache::Create(const ModelConfig& config, const KvLimits& limits) {
  EMBERGATE_ASSIGN_OR_RETURN(Layout layout, Plan(config, limits));
  auto cache = std::make_unique<KvCache>();
  cache->limits_ = limits;
  cache->places_ = layout.places;
  const int64_t full_pages = layout.pages + layout.prefix_pages;
  const int64_t sliding_pages = layout.sliding_bytes > 0 ? layout.sliding_pages + layout.prefix_pages : 0;
  cache->full_ = AlignedBuffer<uint8_t>(layout.full_bytes * full_pages);
  cache->sliding_ = AlignedBuffer<uint8_t>(layout.sliding_bytes * sliding_pages);
  if (cache->full_.refused() || cache->sliding_.refused()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("no memory for a KV cache of ", layout.bytes().slots + layout.bytes().prefixes,
                     " bytes; lower the context, the slots, the pool or the prefix cache"));
  }
  cache->full_data_ = cache->full_.data();
  cache->sliding_data_ = cache->sliding_.data();
  cache->free_full_.reserve(full_pages);
  for (int64_t page = full_pages - 1; page >= 0; --page) {
    cache->free_full_.push_back(static_cast<int32_t>(page));
  }
  cache->free_sliding_.reserve(sliding_pages);
  for (int64_t page = sliding_pages - 1; page >= 0; --page) {
    cache->free_sliding_.push_back(static_cast<int32_t>(page));
  }
  cache->tree_ = std::make_unique<PrefixTree>(static_cast<int>(full_pages), sliding_pages > 0 ? config.window : 0,
                                              limits.keep_prefixes);
  cache->match_.reserve(layout.pages_per_slot + 1);
  cache->slots_.resize(limits.slots);
  for (Slot& slot : cache->slots_) {
    slot.blocks.reserve(layout.pages_per_slot + 1);
  }
  cache->layout_ = std::move(layout);
  return cache;
}

// ---- Opening and closing -------------------------------------------------------------------------

int64_t KvCache::FreeBlocks() const {
  return static_cast<int64_t>(free_full_.size()) + tree_->cached_nodes() - layout_.prefix_pages - promised_;
}

int64_t KvCache::FreeTokens() const { return std::max<int64_t>(0, FreeBlocks()) * kBlock; }

absl::Status KvCache::CheckOpen(int slot, int tokens_max) const {
  if (slot < 0 || slot >= static_cast<int>(slots_.size())) {
    return absl::InvalidArgumentError(absl::StrCat("slot ", slot, " of ", slots_.size()));
  }
  if (slots_[slot].open) {
    return absl::FailedPreconditionError(absl::StrCat("slot ", slot, " is open already"));
  }
  if (tokens_max < 1 || tokens_max > limits_.context_max || BlocksFor(tokens_max) > layout_.pages) {
    return absl::InvalidArgumentError(absl::StrCat(tokens_max, " positions asked for; a sequence may have 1 to ",
                                                   std::min<int64_t>(limits_.context_max, layout_.pages * kBlock)));
  }
  return absl::OkStatus();
}

absl::Status KvCache::OpenSlot(int slot, int tokens_max) {
  const absl::StatusOr<int> opened = OpenSlotWithPrefix(slot, tokens_max, {}, 0);
  if (opened.ok()) {
    slots_[slot].sharing = false;
  }
  return opened.status();
}

// Pinning a cached block takes it from the free ones like a page of one's own; one that others pin costs nothing. A
// cached block is pinned while it is copied.
int64_t KvCache::BlocksNeeded(const Cut& cut, int blocks_max) const {
  int64_t needed = blocks_max - cut.nodes;
  for (int i = 0; i < cut.nodes; ++i) {
    needed += tree_->pinned(match_[i]) ? 0 : 1;
  }
  return needed + (cut.copied_node != PrefixTree::kNone ? 1 : 0);
}

absl::StatusOr<int> KvCache::OpenSlotWithPrefix(int slot, int tokens_max, absl::Span<const int32_t> tokens,
                                                uint64_t scope) {
  EMBERGATE_RETURN_IF_ERROR(CheckOpen(slot, tokens_max));
  tokens = tokens.first(std::min<size_t>(tokens.size(), tokens_max));
  const int blocks_max = static_cast<int>(BlocksFor(tokens_max));
  Cut cut = FindCut(tokens, scope, /*may_copy=*/true);
  if (cut.copied > 0 && BlocksNeeded(cut, blocks_max) > FreeBlocks()) {
    cut = FindCut(tokens, scope, /*may_copy=*/false);
  }
  if (BlocksNeeded(cut, blocks_max) > FreeBlocks()) {
    return absl::ResourceExhaustedError(
        absl::StrCat(tokens_max, " positions asked for, but the KV cache has only ", FreeTokens(), " free now"));
  }
  Slot& s = slots_[slot];
  s.open = true;
  s.sharing = true;
  s.tokens_max = tokens_max;
  s.blocks_max = blocks_max;
  s.scope = scope;
  s.window_begin = tree_->WindowBegin(cut.length());
  s.committed = cut.length();
  promised_ += blocks_max - cut.nodes;
  for (int i = 0; i < cut.nodes; ++i) {
    const int node = match_[i];
    tree_->Pin(node);
    KvPages pages = tree_->pages(node);
    if (pages.sliding >= 0 && i >= s.window_begin) {
      tree_->PinWindow(node);
    } else {
      pages.sliding = -1;
    }
    s.blocks.push_back({node, pages});
  }
  if (cut.nodes > 0) {
    tree_->Touch(match_[cut.nodes - 1], /*hit=*/true);
  }
  if (cut.copied > 0) {
    CopyTail(s, cut, tokens);
  }
  s.windows_most = static_cast<int>(s.blocks.size()) - s.window_begin;
  s.to_count = tokens.empty() ? -1 : cut.length();
  return cut.length();
}

// Gives the slot rows of its own of a block that somebody else began.
void KvCache::CopyTail(Slot& s, const Cut& cut, absl::Span<const int32_t> tokens) {
  KvPages from;
  if (cut.copied_node != PrefixTree::kNone) {
    tree_->Pin(cut.copied_node);  // taking pages must not evict it
    tree_->PinWindow(cut.copied_node);
    from = tree_->pages(cut.copied_node);
  } else {
    from = slots_[cut.copied_slot].blocks[cut.nodes].pages;
  }
  const KvPages to = {TakeFull(), TakeSliding()};
  --promised_;
  // Whole pages: the rows past the common ones are written before they are read.
  std::memcpy(FullPage(to.full), FullPage(from.full), layout_.full_bytes);
  if (to.sliding >= 0) {
    std::memcpy(SlidingPage(to.sliding), SlidingPage(from.sliding), layout_.sliding_bytes);
  }
  if (cut.copied_node != PrefixTree::kNone) {
    tree_->Touch(cut.copied_node, /*hit=*/true);
    tree_->UnpinWindow(cut.copied_node);
    tree_->Unpin(cut.copied_node);
    CollectFreed();
  }
  s.blocks.push_back({kPrivate, to});
  std::copy_n(tokens.begin() + cut.nodes * kBlock, cut.copied, s.tokens);
}

void KvCache::CloseSlot(int slot) {
  if (slot < 0 || slot >= static_cast<int>(slots_.size()) || !slots_[slot].open) {
    return;
  }
  Slot& s = slots_[slot];
  promised_ -= s.blocks_max - static_cast<int64_t>(s.blocks.size());
  if (limits_.keep_prefixes) {
    KeepTail(s);
  }
  for (int i = static_cast<int>(s.blocks.size()) - 1; i >= 0; --i) {
    const SlotBlock& block = s.blocks[i];
    if (block.node != kPrivate) {
      if (block.pages.sliding >= 0) {
        tree_->UnpinWindow(block.node);
      }
      tree_->Unpin(block.node);
      continue;
    }
    if (block.pages.full >= 0) {
      free_full_.push_back(block.pages.full);
    }
    if (block.pages.sliding >= 0) {
      free_sliding_.push_back(block.pages.sliding);
    }
  }
  CollectFreed();
  s.blocks.clear();
  s.open = false;
  s.tokens_max = 0;
}

// Leaves the block that is not full behind too, and marks where the sequence ended as a place to go on.
void KvCache::KeepTail(Slot& s) {
  const int full_blocks = s.committed / kBlock;
  if (!s.sharing || s.committed == 0) {
    return;
  }
  int32_t end = full_blocks > 0 ? s.blocks[full_blocks - 1].node : PrefixTree::kRoot;
  if (s.tail() >= kCopiedMin) {
    const auto tokens = absl::MakeConstSpan(s.tokens, s.tail());
    int common = 0;
    const int nearest = tree_->NearestChild(end, s.scope, tokens, &common);
    SlotBlock& block = s.blocks[full_blocks];
    if (common == s.tail()) {
      end = nearest;
    } else if (const int node = tree_->Insert(end, s.scope, tokens, block.pages); node != PrefixTree::kNone) {
      block.pages = KvPages();  // the tree's now
      end = node;
    }
  }
  if (end != PrefixTree::kRoot) {
    tree_->Touch(end, /*hit=*/false);
  }
}

// ---- Finding a prefix ----------------------------------------------------------------------------

int KvCache::CachedPrefix(absl::Span<const int32_t> tokens, uint64_t scope) const {
  return FindCut(tokens, scope, /*may_copy=*/true).length();
}

KvCache::Cut KvCache::FindCut(absl::Span<const int32_t> tokens, uint64_t scope, bool may_copy) const {
  match_.clear();
  int32_t end = PrefixTree::kRoot;
  int windows = 0;  // sliding pages without a gap up to here
  Cut best;
  while (tokens.size() >= kBlock) {
    const int child = tree_->Child(end, scope, tokens.first(kBlock));
    if (child == PrefixTree::kNone) {
      break;
    }
    match_.push_back(child);
    windows = tree_->has_window(child) ? windows + 1 : 0;
    const int blocks = static_cast<int>(match_.size());
    if (blocks - tree_->WindowBegin(blocks * kBlock) <= windows) {
      best.nodes = blocks;
    }
    tokens.remove_prefix(kBlock);
    end = child;
  }
  if (!may_copy) {
    return best;
  }
  // Some tokens further, in a block that goes on otherwise or is not full.
  const int blocks = static_cast<int>(match_.size());
  tokens = tokens.first(std::min<size_t>(tokens.size(), kBlock));
  Cut further;
  further.nodes = blocks;
  const int nearest = tree_->NearestChild(end, scope, tokens, &further.copied);
  if (nearest != PrefixTree::kNone && tree_->has_window(nearest)) {
    further.copied_node = nearest;
  } else {
    further.copied = 0;
  }
  for (size_t i = 0; i < slots_.size(); ++i) {
    const Slot& s = slots_[i];
    if (!s.open || !s.sharing || s.scope != scope || s.committed / kBlock != blocks ||
        (blocks > 0 && s.blocks[blocks - 1].node != end)) {
      continue;
    }
    int common = 0;
    while (common < s.tail() && common < static_cast<int>(tokens.size()) && s.tokens[common] == tokens[common]) {
      ++common;
    }
    if (common > further.copied) {
      further.copied = common;
      further.copied_node = PrefixTree::kNone;
      further.copied_slot = static_cast<int>(i);
    }
  }
  if (further.copied >= kCopiedMin && blocks - tree_->WindowBegin(further.length()) <= windows) {
    return further;
  }
  return best;
}

// ---- Growing -------------------------------------------------------------------------------------

void KvCache::CollectFreed() {
  std::vector<int32_t>& full = tree_->freed_full();
  free_full_.insert(free_full_.end(), full.begin(), full.end());
  full.clear();
  std::vector<int32_t>& sliding = tree_->freed_sliding();
  free_sliding_.insert(free_sliding_.end(), sliding.begin(), sliding.end());
  sliding.clear();
}

int32_t KvCache::TakeFull() {
  if (free_full_.empty()) {
    tree_->EvictNode();
    CollectFreed();
  }
  if (free_full_.empty()) {
    return -1;
  }
  const int32_t page = free_full_.back();
  free_full_.pop_back();
  return page;
}

int32_t KvCache::TakeSliding() {
  if (layout_.sliding_bytes == 0) {
    return -1;
  }
  if (free_sliding_.empty()) {
    tree_->EvictWindow();
    CollectFreed();
  }
  if (free_sliding_.empty()) {
    return -1;
  }
  const int32_t page = free_sliding_.back();
  free_sliding_.pop_back();
  return page;
}

// Gives back the sliding pages of the blocks before `begin`.
void KvCache::GiveBackWindows(Slot& s, int begin) {
  for (; s.window_begin < begin; ++s.window_begin) {
    SlotBlock& block = s.blocks[s.window_begin];
    if (block.pages.sliding < 0) {
      continue;
    }
    if (block.node != kPrivate) {
      tree_->UnpinWindow(block.node);
    } else {
      free_sliding_.push_back(block.pages.sliding);
    }
    block.pages.sliding = -1;
  }
  CollectFreed();
}

// Brings the slot to `blocks` blocks; those from `first_with_window` on get a sliding page.
absl::Status KvCache::TakeBlocks(Slot& s, int64_t blocks, int64_t first_with_window) {
  if (blocks > s.blocks_max) {
    return absl::InvalidArgumentError(absl::StrCat("a slot that has reserved ", s.tokens_max, " positions cannot hold ",
                                                   blocks, " blocks of ", kBlock));
  }
  while (static_cast<int64_t>(s.blocks.size()) < blocks) {
    const bool window = layout_.sliding_bytes > 0 && static_cast<int64_t>(s.blocks.size()) >= first_with_window;
    const KvPages pages = {TakeFull(), window ? TakeSliding() : -1};
    if (pages.full < 0 || (window && pages.sliding < 0)) {
      if (pages.full >= 0) {
        free_full_.push_back(pages.full);
      }
      return absl::InternalError(absl::StrCat("the KV cache has no page left for block ", s.blocks.size(),
                                              " of a slot that reserved ", s.blocks_max));
    }
    --promised_;
    s.blocks.push_back({kPrivate, pages});
  }
  s.windows_most = std::max(s.windows_most, static_cast<int>(blocks) - s.window_begin);
  return absl::OkStatus();
}

absl::Status KvCache::Extend(int slot, int start, int count) {
  Slot& s = slots_[slot];
  GiveBackWindows(s, std::min(tree_->WindowBegin(start), static_cast<int>(s.blocks.size())));
  return TakeBlocks(s, BlocksFor(int64_t{start} + count), 0);
}

absl::Status KvCache::Skip(int slot, int start, int count) {
  Slot& s = slots_[slot];
  const int begin = tree_->WindowBegin(start + count);
  s.sharing = false;
  s.committed = start + count;
  GiveBackWindows(s, std::min(begin, static_cast<int>(s.blocks.size())));
  s.window_begin = begin;
  return TakeBlocks(s, BlocksFor(int64_t{start} + count), begin);
}

void KvCache::Spoil(int slot) {
  Slot& s = slots_[slot];
  s.sharing = false;
  GiveBackWindows(s, static_cast<int>(s.blocks.size()));
}

void KvCache::Commit(int slot, absl::Span<const int32_t> tokens) {
  Slot& s = slots_[slot];
  if (s.to_count >= 0) {
    ++lookups_;
    hits_ += s.to_count > 0 ? 1 : 0;
    tokens_reused_ += s.to_count;
    s.to_count = -1;
  }
  while (!tokens.empty()) {
    const int tail = s.tail();
    const size_t count = std::min<size_t>(tokens.size(), kBlock - tail);
    std::copy_n(tokens.begin(), count, s.tokens + tail);
    s.committed += static_cast<int>(count);
    tokens.remove_prefix(count);
    if (s.sharing && s.tail() == 0) {
      CommitBlock(s);
    }
  }
  GiveBackWindows(s, tree_->WindowBegin(s.committed));
}

// The slot's last committed block, now full, goes into the tree, or is given up for an equal one there.
void KvCache::CommitBlock(Slot& s) {
  const int index = s.committed / kBlock - 1;
  SlotBlock& block = s.blocks[index];
  const int32_t parent = index > 0 ? s.blocks[index - 1].node : PrefixTree::kRoot;
  const auto tokens = absl::MakeConstSpan(s.tokens, kBlock);
  int node = tree_->Child(parent, s.scope, tokens);
  if (node == PrefixTree::kNone) {
    node = tree_->Insert(parent, s.scope, tokens, block.pages);
    CollectFreed();
    if (node == PrefixTree::kNone) {
      s.sharing = false;
      return;
    }
  } else {
    // Computed twice, at the same time; a token's keys and values are the same bits whoever computes them.
    free_full_.push_back(block.pages.full);
    if (tree_->has_window(node) && block.pages.sliding >= 0) {
      free_sliding_.push_back(block.pages.sliding);
    } else if (block.pages.sliding >= 0) {
      tree_->GiveWindow(node, block.pages.sliding);
    }
  }
  tree_->Pin(node);
  if (block.pages.sliding >= 0) {
    tree_->PinWindow(node);
  }
  block = {node, tree_->pages(node)};
}

uint64_t KvCache::BytesOf(absl::Span<const int> slots) const {
  uint64_t bytes = 0;
  for (size_t i = 0; i < slots.size(); ++i) {
    const Slot& s = slots_[slots[i]];
    if (!s.open) {
      continue;
    }
    // Blocks are shared from the first on, so the longest common path with a slot before is all that counts twice.
    size_t shared = 0;
    int shared_windows = 0;
    for (size_t before = 0; before < i; ++before) {
      const Slot& other = slots_[slots[before]];
      size_t common = 0;
      int windows = 0;
      while (common < std::min(s.blocks.size(), other.blocks.size()) && s.blocks[common].node != kPrivate &&
             s.blocks[common].node == other.blocks[common].node) {
        windows += s.blocks[common].pages.sliding >= 0 && other.blocks[common].pages.sliding >= 0 ? 1 : 0;
        ++common;
      }
      if (common > shared) {
        shared = common;
        shared_windows = windows;
      }
    }
    bytes += (s.blocks.size() - shared) * layout_.full_bytes +
             static_cast<uint64_t>(s.windows_most - shared_windows) * layout_.sliding_bytes;
  }
  return bytes;
}

PrefixCacheStats KvCache::prefix_stats() const {
  PrefixCacheStats stats;
  stats.lookups = lookups_;
  stats.hits = hits_;
  stats.tokens_reused = tokens_reused_;
  stats.blocks_evicted = tree_->evicted();
  stats.tokens_cached = tree_->cached_tokens();
  stats.bytes_cached = tree_->cached_nodes() * layout_.full_bytes + tree_->cached_windows() * layout_.sliding_bytes;
  return stats;
}

void KvCache::Store(int layer, int slot, int position, const float* k, const float* v) {
  const LayerPlace& place = places_[layer];
  uint8_t* block = BlockOf(place, slot, position / kBlock);
  const uint64_t row = (position % kBlock) * place.row_bytes;
  for (int head = 0; head < place.kv_heads; ++head) {
    uint8_t* key = block + head * 2 * place.rows_bytes + row;
    uint8_t* value = key + place.rows_bytes;
    StoreKvRow(limits_.type, k + int64_t{head} * place.head_dim, place.head_dim, key);
    StoreKvRow(limits_.type, v + int64_t{head} * place.head_dim, place.head_dim, value);
  }
}

}  // namespace embergate::engine
