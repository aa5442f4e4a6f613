#include "engine/model/prefix_tree.h"

#include <algorithm>
#include <limits>

namespace embergate::engine {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
// Among equals the one used longer ago is the victim. Small against a block's benefit (1) for any number of uses.
constexpr double kTick = 1e-9;
constexpr uint32_t kHitsMax = 15;

int CommonPrefix(const int32_t* a, int a_count, absl::Span<const int32_t> b) {
  const int limit = std::min(a_count, static_cast<int>(b.size()));
  int i = 0;
  while (i < limit && a[i] == b[i]) {
    ++i;
  }
  return i;
}

}  // namespace

PrefixTree::PrefixTree(int nodes_max, int window, bool retain) : window_(window), retain_(retain), nodes_(nodes_max) {
  free_nodes_.reserve(nodes_max);
  for (int i = nodes_max - 1; i >= 0; --i) {
    free_nodes_.push_back(i);
  }
  victim_rank_.assign(nodes_max, kInfinity);
  window_victim_rank_.assign(nodes_max, kInfinity);
  freed_full_.reserve(nodes_max);
  freed_sliding_.reserve(nodes_max);
}

uint64_t PrefixTree::BytesFor(int nodes_max) {
  return static_cast<uint64_t>(nodes_max) * (sizeof(Node) + 2 * sizeof(double) + 3 * sizeof(int32_t));
}

// ---- Reading -------------------------------------------------------------------------------------

int PrefixTree::Child(int parent, uint64_t scope, absl::Span<const int32_t> tokens) const {
  for (int32_t child = FirstChild(parent); child != kNone; child = nodes_[child].next) {
    const Node& node = nodes_[child];
    if (node.count == kBlock && (parent != kRoot || node.scope == scope) &&
        CommonPrefix(node.tokens, kBlock, tokens) == kBlock) {
      return child;
    }
  }
  return kNone;
}

int PrefixTree::NearestChild(int parent, uint64_t scope, absl::Span<const int32_t> tokens, int* common) const {
  int best = kNone;
  *common = 0;
  for (int32_t child = FirstChild(parent); child != kNone; child = nodes_[child].next) {
    const Node& node = nodes_[child];
    if (parent == kRoot && node.scope != scope) {
      continue;
    }
    const int length = CommonPrefix(node.tokens, node.count, tokens);
    if (length > *common) {
      *common = length;
      best = child;
    }
  }
  return best;
}

bool PrefixTree::CanResume(int node) const {
  if (window_ == 0) {
    return true;
  }
  const int length = nodes_[node].depth * kBlock + nodes_[node].count;
  const int begin = WindowBegin(length);
  for (int32_t n = node; n != kRoot && nodes_[n].depth >= begin; n = nodes_[n].parent) {
    if (nodes_[n].pages.sliding < 0) {
      return false;
    }
  }
  return true;
}

// ---- Growing and pinning -------------------------------------------------------------------------

int PrefixTree::Insert(int parent, uint64_t scope, absl::Span<const int32_t> tokens, KvPages pages) {
  for (int32_t child = FirstChild(parent); child != kNone;) {
    const Node& node = nodes_[child];
    const int32_t next = node.next;
    if (node.count < kBlock && node.users == 0 && (parent != kRoot || node.scope == scope) &&
        CommonPrefix(node.tokens, node.count, tokens) == node.count) {
      Remove(child);
    }
    child = next;
  }
  if (free_nodes_.empty()) {
    return kNone;
  }
  const int32_t index = free_nodes_.back();
  free_nodes_.pop_back();
  Node& node = nodes_[index];
  node.parent = parent;
  node.first_child = kNone;
  node.previous = kNone;
  node.depth = parent == kRoot ? 0 : nodes_[parent].depth + 1;
  node.count = static_cast<int32_t>(tokens.size());
  node.users = 0;
  node.window_users = 0;
  node.hits = 0;
  node.pages = pages;
  node.scope = scope;
  std::copy(tokens.begin(), tokens.end(), node.tokens);
  node.next = FirstChild(parent);
  if (node.next != kNone) {
    nodes_[node.next].previous = index;
  }
  FirstChildRef(parent) = index;
  ++node_count_;
  ++cached_nodes_;
  cached_tokens_ += node.count;
  cached_windows_ += pages.sliding >= 0 ? 1 : 0;
  node.rank = clock_ + static_cast<double>(node.count) / kBlock + kTick * static_cast<double>(++ticks_);
  node.window_rank = window_clock_ + 1 + kTick * static_cast<double>(ticks_);
  Refresh(index);
  if (parent != kRoot) {
    Refresh(parent);  // no leaf any more
  }
  return index;
}

void PrefixTree::GiveWindow(int node, int32_t page) {
  nodes_[node].pages.sliding = page;
  nodes_[node].window_rank = window_clock_ + 1 + kTick * static_cast<double>(++ticks_);
  ++cached_windows_;
  Refresh(node);
  RefreshLeafBelow(node);
}

void PrefixTree::Pin(int node) {
  if (nodes_[node].users++ == 0) {
    --cached_nodes_;
    cached_tokens_ -= nodes_[node].count;
    Refresh(node);
  }
}

void PrefixTree::Unpin(int node) {
  if (--nodes_[node].users > 0) {
    return;
  }
  ++cached_nodes_;
  cached_tokens_ += nodes_[node].count;
  if (retain_) {
    Refresh(node);
  } else {
    Remove(node);
  }
}

void PrefixTree::PinWindow(int node) {
  if (nodes_[node].window_users++ == 0) {
    --cached_windows_;
    Refresh(node);
  }
}

void PrefixTree::UnpinWindow(int node) {
  if (--nodes_[node].window_users > 0) {
    return;
  }
  ++cached_windows_;
  if (retain_) {
    Refresh(node);
  } else {
    DropWindow(node);
  }
}

void PrefixTree::Touch(int node, bool hit) {
  const int length = nodes_[node].depth * kBlock + nodes_[node].count;
  const int begin = WindowBegin(length);
  // A window's pages save, together, the tokens before them.
  const double window_value = std::max(1.0, window_ > 0 ? static_cast<double>(length) / window_ : 1.0);
  const double tick = kTick * static_cast<double>(++ticks_);
  for (int32_t n = node; n != kRoot; n = nodes_[n].parent) {
    Node& touched = nodes_[n];
    touched.hits = std::min(kHitsMax, touched.hits + (hit ? 1 : 0));
    const double uses = 1.0 + touched.hits;
    touched.rank = std::max(touched.rank, clock_ + uses * touched.count / kBlock + tick);
    if (touched.depth >= begin) {
      touched.window_rank = std::max(touched.window_rank, window_clock_ + uses * window_value + tick);
    }
    Refresh(n);
  }
}

void PrefixTree::Refresh(int node) {
  const Node& n = nodes_[node];
  double rank = kInfinity;
  if (n.count > 0 && n.users == 0 && n.first_child == kNone) {
    rank = CanResume(node) ? n.rank : -kInfinity;
  }
  victim_rank_[node] = rank;
  window_victim_rank_[node] = n.count > 0 && n.window_users == 0 && n.pages.sliding >= 0 ? n.window_rank : kInfinity;
}

// A window page came or went: a lone leaf below may have become useful or useless. Where paths branch, the leaves are
// left as they are; they lose nothing but their place in the order.
void PrefixTree::RefreshLeafBelow(int node) {
  int32_t n = node;
  for (int steps = window_ / kBlock + 1; steps >= 0; --steps) {
    const int32_t child = nodes_[n].first_child;
    if (child == kNone) {
      Refresh(n);
      return;
    }
    if (nodes_[child].next != kNone) {
      return;
    }
    n = child;
  }
}

// ---- Giving up -----------------------------------------------------------------------------------

void PrefixTree::DropWindow(int node) {
  freed_sliding_.push_back(nodes_[node].pages.sliding);
  nodes_[node].pages.sliding = -1;
  --cached_windows_;
  Refresh(node);
  RefreshLeafBelow(node);
}

void PrefixTree::Remove(int index) {
  Node& node = nodes_[index];
  if (node.pages.sliding >= 0) {
    freed_sliding_.push_back(node.pages.sliding);
    --cached_windows_;
  }
  freed_full_.push_back(node.pages.full);
  --cached_nodes_;
  --node_count_;
  cached_tokens_ -= node.count;
  if (node.previous != kNone) {
    nodes_[node.previous].next = node.next;
  } else {
    FirstChildRef(node.parent) = node.next;
  }
  if (node.next != kNone) {
    nodes_[node.next].previous = node.previous;
  }
  const int32_t parent = node.parent;
  node.count = 0;
  node.pages = KvPages();
  Refresh(index);
  free_nodes_.push_back(index);
  if (parent != kRoot) {
    Refresh(parent);  // perhaps a leaf now
  }
}

bool PrefixTree::EvictNode() {
  const auto least = std::min_element(victim_rank_.begin(), victim_rank_.end());
  if (least == victim_rank_.end() || *least == kInfinity) {
    return false;
  }
  clock_ = std::max(clock_, *least);
  ++evicted_;
  Remove(static_cast<int>(least - victim_rank_.begin()));
  return true;
}

bool PrefixTree::EvictWindow() {
  const auto least = std::min_element(window_victim_rank_.begin(), window_victim_rank_.end());
  if (least == window_victim_rank_.end() || *least == kInfinity) {
    return false;
  }
  window_clock_ = std::max(window_clock_, *least);
  DropWindow(static_cast<int>(least - window_victim_rank_.begin()));
  return true;
}

}  // namespace embergate::engine
