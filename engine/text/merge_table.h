// Which two neighbouring symbols may become one, which piece that gives and how urgent it is.
#ifndef EMBERGATE_ENGINE_TEXT_MERGE_TABLE_H_
#define EMBERGATE_ENGINE_TEXT_MERGE_TABLE_H_

#include <cstddef>
#include <cstdint>
#include <vector>

namespace embergate::engine {

// A flat hash from a pair of symbols to a 22-bit value. One slot is 8 bytes: left (21 bits), right (21), value
// (22), so that the 514906 merges of Gemma's vocabulary take 6 MB and a look-up touches one cache line as a rule.
class MergeTable {
 public:
  static constexpr uint32_t kSymbolsMax = 1u << 21;
  static constexpr uint32_t kValuesMax = (1u << 22) - 1;
  static constexpr uint32_t kNone = kValuesMax;  // never a value

  struct Entry {
    uint32_t left = 0;
    uint32_t right = 0;
    uint32_t value = 0;
  };

  MergeTable() = default;
  // Of entries with the same pair the first one counts. Symbols and values must be below the limits.
  explicit MergeTable(const std::vector<Entry>& entries);

  uint32_t Find(uint32_t left, uint32_t right) const {
    if (slots_.empty()) {
      return kNone;
    }
    const uint64_t key = Key(left, right);
    for (size_t at = Slot(key);; at = at + 1 == slots_.size() ? 0 : at + 1) {
      const uint64_t slot = slots_[at];
      if (slot >> 22 == key) {
        return static_cast<uint32_t>(slot & kValuesMax);  // an empty slot's value is kNone
      }
      if (slot == kEmpty) {
        return kNone;
      }
    }
  }
  size_t resident_bytes() const { return slots_.capacity() * sizeof(uint64_t); }

 private:
  static constexpr uint64_t kEmpty = ~uint64_t{0};

  static uint64_t Key(uint32_t left, uint32_t right) { return (uint64_t{left} << 21) | right; }
  size_t Slot(uint64_t key) const {
    uint64_t hash = key * 0x9E3779B97F4A7C15u;
    hash = (hash ^ (hash >> 29)) * 0xBF58476D1CE4E5B9u;
    return static_cast<size_t>(((hash >> 32) * slots_.size()) >> 32);
  }

  std::vector<uint64_t> slots_;
};

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_TEXT_MERGE_TABLE_H_
