// Finds the longest of a set of strings that a text begins with.
#ifndef EMBERGATE_ENGINE_TEXT_PIECE_TRIE_H_
#define EMBERGATE_ENGINE_TEXT_PIECE_TRIE_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"

namespace embergate::engine {

// A byte trie in three flat arrays; the children of a node lie side by side, sorted by byte. Immutable.
class PieceTrie {
 public:
  struct Entry {
    std::string text;  // empty ones are left out; of equal ones the smallest id stays
    int32_t id = -1;
    bool special = false;
  };
  struct Match {
    int32_t id = -1;  // -1: nothing matches
    size_t bytes = 0;
  };

  PieceTrie() { first_.fill(0); }
  explicit PieceTrie(std::vector<Entry> entries);

  // The longest entry that `text` begins with; special ones count only if `with_special`.
  Match LongestPrefix(absl::string_view text, bool with_special) const;
  size_t resident_bytes() const;

 private:
  struct Node {
    uint32_t children = 0;  // index of the first child
    uint16_t child_count = 0;
    uint8_t byte = 0;      // on the edge that leads here
    bool special = false;  // of the entry that ends here
    int32_t id = -1;       // -1: no entry ends here
  };

  std::array<uint32_t, 256> first_;  // node of each first byte; 0 = none
  std::vector<Node> nodes_;          // [0] is the root
};

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_TEXT_PIECE_TRIE_H_
