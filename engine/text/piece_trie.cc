#include "engine/text/piece_trie.h"

#include <algorithm>

namespace embergate::engine {

PieceTrie::PieceTrie(std::vector<Entry> entries) {
  first_.fill(0);
  std::sort(entries.begin(), entries.end(),
            [](const Entry& a, const Entry& b) { return a.text != b.text ? a.text < b.text : a.id < b.id; });
  entries.erase(
      std::unique(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) { return a.text == b.text; }),
      entries.end());
  if (!entries.empty() && entries.front().text.empty()) {
    entries.erase(entries.begin());
  }

  // Breadth first, so that the children of a node are made together. A node stands for the entries
  // [begin, end), which agree in their first `depth` bytes.
  struct Range {
    size_t begin, end;
  };
  nodes_.push_back(Node());
  std::vector<Range> ranges = {{0, entries.size()}};
  size_t level_begin = 0;
  for (size_t depth = 0; level_begin < nodes_.size(); ++depth) {
    const size_t level_end = nodes_.size();
    for (size_t n = level_begin; n < level_end; ++n) {
      size_t i = ranges[n].begin;
      const size_t end = ranges[n].end;
      if (i < end && entries[i].text.size() == depth && depth > 0) {
        nodes_[n].id = entries[i].id;
        nodes_[n].special = entries[i].special;
        ++i;
      }
      nodes_[n].children = static_cast<uint32_t>(nodes_.size());
      while (i < end) {
        const char byte = entries[i].text[depth];
        size_t next = i;
        while (next < end && entries[next].text[depth] == byte) {
          ++next;
        }
        Node child;
        child.byte = static_cast<uint8_t>(byte);
        nodes_.push_back(child);
        ranges.push_back({i, next});
        ++nodes_[n].child_count;
        i = next;
      }
    }
    level_begin = level_end;
  }
  for (uint32_t c = 0; c < nodes_[0].child_count; ++c) {
    first_[nodes_[nodes_[0].children + c].byte] = nodes_[0].children + c;
  }
  nodes_.shrink_to_fit();
}

PieceTrie::Match PieceTrie::LongestPrefix(absl::string_view text, bool with_special) const {
  Match match;
  if (text.empty()) {
    return match;
  }
  uint32_t at = first_[static_cast<uint8_t>(text[0])];
  size_t depth = 1;
  while (at != 0) {
    const Node& node = nodes_[at];
    if (node.id >= 0 && (with_special || !node.special)) {
      match = {node.id, depth};
    }
    if (depth == text.size() || node.child_count == 0) {
      break;
    }
    const uint8_t byte = static_cast<uint8_t>(text[depth]);
    const auto begin = nodes_.begin() + node.children;
    const auto end = begin + node.child_count;
    const auto child = std::lower_bound(begin, end, byte, [](const Node& n, uint8_t b) { return n.byte < b; });
    at = child != end && child->byte == byte ? static_cast<uint32_t>(child - nodes_.begin()) : 0;
    ++depth;
  }
  return match;
}

size_t PieceTrie::resident_bytes() const { return sizeof(*this) + nodes_.capacity() * sizeof(Node); }

}  // namespace embergate::engine
