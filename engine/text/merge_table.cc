#include "engine/text/merge_table.h"

namespace embergate::engine {

MergeTable::MergeTable(const std::vector<Entry>& entries) {
  if (entries.empty()) {
    return;
  }
  slots_.assign(entries.size() + entries.size() / 2 + 8, kEmpty);  // two thirds full
  for (const Entry& entry : entries) {
    const uint64_t key = Key(entry.left, entry.right);
    size_t at = Slot(key);
    while (slots_[at] != kEmpty && slots_[at] >> 22 != key) {
      at = at + 1 == slots_.size() ? 0 : at + 1;
    }
    if (slots_[at] == kEmpty) {
      slots_[at] = (key << 22) | entry.value;
    }
  }
}

}  // namespace embergate::engine
