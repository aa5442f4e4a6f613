// Decides which device reads fetch a set of byte ranges: a pure function.
#ifndef EMBERGATE_STORAGE_READ_PLANNER_H_
#define EMBERGATE_STORAGE_READ_PLANNER_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace embergate::storage {

// The bytes of one row (or of its checksum group) in a file.
struct RowRange {
  uint32_t file = 0;
  uint32_t bytes = 0;
  uint64_t begin = 0;
  uint32_t row = 0;  // the caller's name for it
};

// One read of whole blocks. It serves ranges[first, first + count) of the sorted ranges.
struct PlannedRead {
  uint32_t file = 0;
  uint32_t bytes = 0;
  uint64_t begin = 0;
  uint32_t needed = 0;  // bytes from `begin` to the end of the last range: what must arrive
  uint32_t first = 0;
  uint32_t count = 0;
};

// Sorts `ranges` by (file, begin) and writes to `reads` (cleared first; never grown past its capacity if that is at
// least ranges.size()) the reads that cover them. Each range lies in one read.
//   alignment[file]  block size, a power of two
//   gap_bytes        ranges whose blocks are at most this far apart share a read
//   read_bytes_max   no read is longer, unless a single range needs it
void PlanReads(absl::Span<RowRange> ranges, absl::Span<const uint32_t> alignment, uint32_t gap_bytes,
               uint32_t read_bytes_max, std::vector<PlannedRead>* reads);

}  // namespace embergate::storage

#endif  // EMBERGATE_STORAGE_READ_PLANNER_H_
