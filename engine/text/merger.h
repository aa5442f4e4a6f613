// Byte-pair merging of one run of symbols: always the most urgent pair, the leftmost of equals.
#ifndef EMBERGATE_ENGINE_TEXT_MERGER_H_
#define EMBERGATE_ENGINE_TEXT_MERGER_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "engine/text/merge_table.h"

namespace embergate::engine {

// The rules of a vocabulary. Both kinds of vocabulary come down to a table from pairs to values:
// - merges with ranks: the value is the rank, `result[rank]` the piece that comes of it, `priority` is empty;
// - pieces with scores: the value is the piece, `priority[piece]` its place by score, `result` is empty.
struct MergeRules {
  MergeTable table;
  std::vector<uint32_t> priority;  // by value; empty: the value itself. Smaller is sooner.
  std::vector<uint32_t> result;    // by value; empty: the value itself

  uint32_t Priority(uint32_t value) const { return priority.empty() ? value : priority[value]; }
  uint32_t Result(uint32_t value) const { return result.empty() ? value : result[value]; }
  size_t resident_bytes() const {
    return table.resident_bytes() + (priority.capacity() + result.capacity()) * sizeof(uint32_t);
  }
};

// Working memory of one Encode call. Threads: one.
//
// Short runs (nearly all: text falls apart at every place where no merge is possible) are scanned, long ones use a
// heap over a linked list, so that n symbols cost O(n log n) whatever they are.
class Merger {
 public:
  explicit Merger(const MergeRules& rules) : rules_(rules) {}

  // Replaces `symbols` by what they merge to.
  void Merge(std::vector<uint32_t>& symbols);

 private:
  struct Node {
    uint32_t symbol;
    uint32_t value;  // of the pair with the next node; MergeTable::kNone if there is none
    uint32_t previous;
    uint32_t next;
  };

  void MergeShort(std::vector<uint32_t>& symbols);
  void MergeLong(std::vector<uint32_t>& symbols);

  const MergeRules& rules_;
  std::vector<uint32_t> values_;
  std::vector<Node> nodes_;
  std::vector<uint64_t> heap_;  // priority in the high half, position of the left symbol in the low one
};

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_TEXT_MERGER_H_
