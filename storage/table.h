// One table of a row store: where its rows lie, what a read of one must cover, and whether what came is right.
#ifndef EMBERGATE_STORAGE_TABLE_H_
#define EMBERGATE_STORAGE_TABLE_H_

#include <cstdint>

#include "absl/status/status.h"
#include "storage/read_planner.h"
#include "storage/row_store.h"

namespace embergate::storage {

constexpr uint64_t kTableRowsMax = uint64_t{1} << 48;
// A "row" or checksum group longer than this is a mistake in the file that described it.
constexpr uint64_t kTableRowBytesMax = 64u << 20;

// Immutable after creation. `spec` is valid (CheckTableSpec): no arithmetic below can overflow.
struct Table {
  TableSpec spec;
  uint32_t file = 0;       // index among the store's files
  uint32_t row_class = 0;  // index among the store's row sizes
  bool checked = false;    // has checksums

  uint64_t OffsetOf(uint64_t row) const { return spec.file_offset + row * spec.row_stride; }
  uint64_t RowsPerGroup() const { return checked ? spec.checksums.rows_per_group : 1; }

  // How many bytes of a row must be read for its first `bytes` (0: all), so that they can be checked.
  uint64_t CheckableBytes(uint64_t bytes) const;
  // The file's bytes that a read of the first `bytes` (checkable ones) of a row must cover. `ref` is passed on.
  RowRange RangeOf(uint64_t row, uint32_t bytes, uint32_t ref) const;
  // The most bytes of whole blocks that RangeOf can touch.
  uint64_t BlockBytesMax(uint64_t alignment) const;

  // Asks the processor for the checksums of a row that Extract comes to next: those of a large table are in no cache.
  void PrefetchChecksums(uint64_t row) const {
    if (checked) {
      __builtin_prefetch(
          &spec.checksums.crcs[row / spec.checksums.rows_per_group * spec.checksums.segment_ends.size()]);
    }
  }

  // Copies the first `bytes` of a row to `to` out of `data`, which holds the file's bytes from `data_begin` on, and
  // checks them. False: a checksum does not match, and `to` holds nothing of use. `checked_group` remembers the group
  // checked last in this piece of data (start with kNoGroup), so that each is checked once.
  static constexpr uint64_t kNoGroup = UINT64_MAX;
  bool Extract(uint64_t row, uint32_t bytes, const uint8_t* data, uint64_t data_begin, uint8_t* to,
               uint64_t* checked_group) const;
};

// Checks everything that can be checked without the file, and fills in defaults (stride, one segment).
// Errors: INVALID_ARGUMENT.
absl::Status CheckTableSpec(TableSpec& spec, size_t index);

}  // namespace embergate::storage

#endif  // EMBERGATE_STORAGE_TABLE_H_
