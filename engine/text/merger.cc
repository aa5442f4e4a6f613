#include "engine/text/merger.h"

#include <algorithm>
#include <functional>

namespace embergate::engine {
namespace {

// Where the heap starts to win over scanning; 24 and 64 measure the same on prose.
constexpr size_t kShortMax = 48;
constexpr uint32_t kEnd = ~uint32_t{0};

}  // namespace

void Merger::Merge(std::vector<uint32_t>& symbols) {
  if (symbols.size() < 2) {
    return;
  }
  if (symbols.size() <= kShortMax) {
    MergeShort(symbols);
  } else {
    MergeLong(symbols);
  }
}

void Merger::MergeShort(std::vector<uint32_t>& symbols) {
  values_.resize(symbols.size());
  for (size_t i = 0; i + 1 < symbols.size(); ++i) {
    values_[i] = rules_.table.Find(symbols[i], symbols[i + 1]);
  }
  size_t count = symbols.size();
  while (count > 1) {
    size_t best = count;
    uint32_t best_priority = 0;
    for (size_t i = 0; i + 1 < count; ++i) {
      if (values_[i] == MergeTable::kNone) {
        continue;
      }
      const uint32_t priority = rules_.Priority(values_[i]);
      if (best == count || priority < best_priority) {
        best = i;
        best_priority = priority;
      }
    }
    if (best == count) {
      break;
    }
    symbols[best] = rules_.Result(values_[best]);
    std::copy(symbols.begin() + best + 2, symbols.begin() + count, symbols.begin() + best + 1);
    std::copy(values_.begin() + best + 2, values_.begin() + count, values_.begin() + best + 1);
    --count;
    if (best > 0) {
      values_[best - 1] = rules_.table.Find(symbols[best - 1], symbols[best]);
    }
    if (best + 1 < count) {
      values_[best] = rules_.table.Find(symbols[best], symbols[best + 1]);
    }
  }
  symbols.resize(count);
}

void Merger::MergeLong(std::vector<uint32_t>& symbols) {
  const uint32_t count = static_cast<uint32_t>(symbols.size());
  nodes_.resize(count);
  heap_.clear();
  const auto offer = [this](uint32_t at) {
    if (nodes_[at].value != MergeTable::kNone) {
      heap_.push_back((uint64_t{rules_.Priority(nodes_[at].value)} << 32) | at);
    }
  };
  for (uint32_t i = 0; i < count; ++i) {
    const uint32_t value = i + 1 < count ? rules_.table.Find(symbols[i], symbols[i + 1]) : MergeTable::kNone;
    nodes_[i] = {symbols[i], value, i == 0 ? kEnd : i - 1, i + 1 == count ? kEnd : i + 1};
    offer(i);
  }
  std::make_heap(heap_.begin(), heap_.end(), std::greater<uint64_t>());

  const auto update = [&](uint32_t at) {
    Node& node = nodes_[at];
    node.value = node.next == kEnd ? MergeTable::kNone : rules_.table.Find(node.symbol, nodes_[node.next].symbol);
    const size_t size = heap_.size();
    offer(at);
    if (heap_.size() != size) {
      std::push_heap(heap_.begin(), heap_.end(), std::greater<uint64_t>());
    }
  };
  while (!heap_.empty()) {
    std::pop_heap(heap_.begin(), heap_.end(), std::greater<uint64_t>());
    const uint64_t top = heap_.back();
    heap_.pop_back();
    const uint32_t at = static_cast<uint32_t>(top);
    Node& node = nodes_[at];
    // A pair that has changed since it was offered: its present form has an entry of its own. A swallowed node
    // has no value.
    if (node.value == MergeTable::kNone || rules_.Priority(node.value) != top >> 32) {
      continue;
    }
    Node& swallowed = nodes_[node.next];
    node.symbol = rules_.Result(node.value);
    node.next = swallowed.next;
    swallowed.value = MergeTable::kNone;
    if (node.next != kEnd) {
      nodes_[node.next].previous = at;
    }
    update(at);
    if (node.previous != kEnd) {
      update(node.previous);
    }
  }

  symbols.clear();
  for (uint32_t at = 0; at != kEnd; at = nodes_[at].next) {
    symbols.push_back(nodes_[at].symbol);
  }
}

}  // namespace embergate::engine
