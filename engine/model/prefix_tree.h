// Which token prefixes have their keys and values in memory: a radix tree whose nodes are blocks of kBlock tokens, each
// with the pages that hold them. Knows nothing of what pages contain; KvCache does.
//
// A node's path from the root spells the tokens it was computed from; equal tokens in equal scopes share it. A node
// keeps one page of the full-attention layers as long as it lives and, while it lasts, one of the sliding layers: a
// sequence can go on at length L if each of its blocks has a node and those that reach into the window before L have
// their sliding page too. Only a leaf may hold fewer than kBlock tokens; nobody runs on it, its rows are copied.
//
// Pinned: in the path of a running sequence (a node), or in its window (a sliding page). What is not pinned is cached
// and can be evicted: leaves for their page of the full layers, any node for its sliding page. The victim is the one of
// least rank, and rank = clock + benefit (GreedyDual): benefit is what the page saves per block's bytes, times its
// uses; the clock, the rank of the last victim, ages those that are no longer used. A leaf at which no sequence could
// go on is worth nothing and goes first.
#ifndef EMBERGATE_ENGINE_MODEL_PREFIX_TREE_H_
#define EMBERGATE_ENGINE_MODEL_PREFIX_TREE_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace embergate::engine {

// The memory of one block; -1 = none.
struct KvPages {
  int32_t full = -1;
  int32_t sliding = -1;
};

// Threads: one. Allocates in the constructor only.
class PrefixTree {
 public:
  static constexpr int kBlock = 32;  // tokens
  static constexpr int kRoot = -1;
  static constexpr int kNone = -2;

  // At most `nodes_max` blocks. `window` is the sliding layers' (0 = there are none: nodes have no sliding pages).
  // Without `retain`, what nobody pins is dropped at once.
  PrefixTree(int nodes_max, int window, bool retain);
  static uint64_t BytesFor(int nodes_max);

  // The first block that a sequence of this length needs of the sliding layers.
  int WindowBegin(int length) const { return length < window_ ? 0 : (length - window_ + 1) / kBlock; }

  // ---- Reading
  // The child that holds exactly these kBlock tokens, or kNone. `scope` matters below the root only.
  int Child(int parent, uint64_t scope, absl::Span<const int32_t> tokens) const;
  // The child that has the longest common prefix with `tokens`, and its length; kNone when there is none.
  int NearestChild(int parent, uint64_t scope, absl::Span<const int32_t> tokens, int* common) const;
  const KvPages& pages(int node) const { return nodes_[node].pages; }
  bool has_window(int node) const { return window_ == 0 || nodes_[node].pages.sliding >= 0; }
  bool pinned(int node) const { return nodes_[node].users > 0; }
  int node_count() const { return node_count_; }
  int cached_nodes() const { return cached_nodes_; }  // not pinned
  int cached_windows() const { return cached_windows_; }
  int64_t cached_tokens() const { return cached_tokens_; }
  uint64_t evicted() const { return evicted_; }

  // ---- Growing and pinning
  // Adds a block below `parent`, which is full or the root, and takes its pages. kNone when there is no room for
  // another; no child may hold these tokens (or begin with them) yet, one that is a prefix of them is dropped.
  // The node is not pinned.
  int Insert(int parent, uint64_t scope, absl::Span<const int32_t> tokens, KvPages pages);
  // Gives a node the sliding page that it lacks.
  void GiveWindow(int node, int32_t page);
  void Pin(int node);
  void Unpin(int node);  // the deepest of a path first
  void PinWindow(int node);
  void UnpinWindow(int node);
  // Marks the path to `node` as used by a sequence that goes on there; `hit` counts it as one that was served.
  void Touch(int node, bool hit);

  // ---- Giving up
  // Drops the least useful; false if everything is pinned.
  bool EvictNode();
  bool EvictWindow();
  // Pages of dropped nodes since the last call; the caller empties the lists.
  std::vector<int32_t>& freed_full() { return freed_full_; }
  std::vector<int32_t>& freed_sliding() { return freed_sliding_; }

 private:
  struct Node {
    int32_t parent = kRoot;
    int32_t first_child = kNone;
    int32_t next = kNone;  // sibling
    int32_t previous = kNone;
    int32_t depth = 0;  // blocks before it
    int32_t count = 0;  // tokens; 0 = the node is free
    int32_t users = 0;
    int32_t window_users = 0;
    uint32_t hits = 0;
    KvPages pages;
    uint64_t scope = 0;
    double rank = 0;
    double window_rank = 0;
    int32_t tokens[kBlock];
  };
  int32_t FirstChild(int parent) const { return parent == kRoot ? first_root_ : nodes_[parent].first_child; }
  int32_t& FirstChildRef(int parent) { return parent == kRoot ? first_root_ : nodes_[parent].first_child; }
  // Whether a sequence could go on at the end of this node.
  bool CanResume(int node) const;
  // Brings the victims' tables up to date after a change of the node.
  void Refresh(int node);
  void RefreshLeafBelow(int node);
  void Remove(int node);
  void DropWindow(int node);

  const int window_;
  const bool retain_;
  std::vector<Node> nodes_;
  std::vector<int32_t> free_nodes_;
  // Rank of each node as a victim, infinite if it is none: apart, so that the search for the least is quick.
  std::vector<double> victim_rank_;
  std::vector<double> window_victim_rank_;
  std::vector<int32_t> freed_full_;
  std::vector<int32_t> freed_sliding_;
  int32_t first_root_ = kNone;
  int node_count_ = 0;
  int cached_nodes_ = 0;
  int cached_windows_ = 0;
  int64_t cached_tokens_ = 0;
  uint64_t evicted_ = 0;
  double clock_ = 0;
  double window_clock_ = 0;
  uint64_t ticks_ = 0;
};

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_MODEL_PREFIX_TREE_H_
