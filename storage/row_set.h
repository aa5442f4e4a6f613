// The tables of a row store and the rows of them that are in DRAM or on the way: what the public face (row_store.cc)
// and the reads below it (read_scheduler) share.
#ifndef EMBERGATE_STORAGE_ROW_SET_H_
#define EMBERGATE_STORAGE_ROW_SET_H_

#include <cstdint>
#include <vector>

#include "storage/row_cache.h"
#include "storage/table.h"

namespace embergate::storage {

// Why a row was given up.
enum class RowFailure : uint8_t { kUnknown, kDevice, kShort, kChecksum, kChanged, kTimeout, kBroken };

// A row entry of any class (one RowCache per row size): the class above, the entry's id below.
using RowRef = uint32_t;
constexpr RowRef kNoRow = UINT32_MAX;

struct RowSet {
  static constexpr int kIdBits = 24;
  static constexpr uint32_t kIdsMax = 1u << kIdBits;
  static constexpr uint32_t kClassesMax = 250;
  static constexpr int kRowBits = 48;  // of a key; the table has the rest
  static constexpr size_t kTablesMax = 1u << 15;

  std::vector<Table> tables;
  std::vector<RowCache> caches;  // by row class

  static RowRef MakeRef(uint32_t row_class, RowCache::Id id) { return row_class << kIdBits | id; }
  static RowCache::Id IdOf(RowRef ref) { return ref & (kIdsMax - 1); }
  RowCache& CacheOf(RowRef ref) { return caches[ref >> kIdBits]; }
  const RowCache& CacheOf(RowRef ref) const { return caches[ref >> kIdBits]; }
  RowCache::Entry& EntryOf(RowRef ref) { return CacheOf(ref).entry(IdOf(ref)); }
  const RowCache::Entry& EntryOf(RowRef ref) const { return CacheOf(ref).entry(IdOf(ref)); }
  uint8_t* DataOf(RowRef ref) { return CacheOf(ref).data(IdOf(ref)); }
  const uint8_t* DataOf(RowRef ref) const { return CacheOf(ref).data(IdOf(ref)); }

  static uint64_t MakeKey(int table, uint64_t row) { return static_cast<uint64_t>(table) << kRowBits | row; }
  static int TableIndexOf(uint64_t key) { return static_cast<int>(key >> kRowBits); }
  static uint64_t RowOf(uint64_t key) { return key & ((uint64_t{1} << kRowBits) - 1); }
  const Table& TableOf(uint64_t key) const { return tables[key >> kRowBits]; }

  RowRange RangeOf(RowRef ref) const {
    const RowCache::Entry& entry = EntryOf(ref);
    return TableOf(entry.key).RangeOf(RowOf(entry.key), entry.bytes, ref);
  }
};

}  // namespace embergate::storage

#endif  // EMBERGATE_STORAGE_ROW_SET_H_
