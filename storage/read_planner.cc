#include "storage/read_planner.h"

#include <algorithm>

namespace embergate::storage {

void PlanReads(absl::Span<RowRange> ranges, absl::Span<const uint32_t> alignment, uint32_t gap_bytes,
               uint32_t read_bytes_max, std::vector<PlannedRead>* reads) {
  std::sort(ranges.begin(), ranges.end(), [](const RowRange& a, const RowRange& b) {
    return a.file != b.file ? a.file < b.file : a.begin < b.begin;
  });
  reads->clear();
  for (uint32_t i = 0; i < ranges.size(); ++i) {
    const RowRange& range = ranges[i];
    const uint64_t mask = alignment[range.file] - 1;
    const uint64_t begin = range.begin & ~mask;
    const uint64_t needed_end = range.begin + range.bytes;
    const uint64_t end = (needed_end + mask) & ~mask;
    if (!reads->empty()) {
      PlannedRead& last = reads->back();
      const uint64_t last_end = last.begin + last.bytes;
      if (last.file == range.file && begin <= last_end + gap_bytes &&
          std::max(end, last_end) - last.begin <= read_bytes_max) {
        last.bytes = static_cast<uint32_t>(std::max(end, last_end) - last.begin);
        last.needed = std::max(last.needed, static_cast<uint32_t>(needed_end - last.begin));
        ++last.count;
        continue;
      }
    }
    PlannedRead read;
    read.file = range.file;
    read.begin = begin;
    read.bytes = static_cast<uint32_t>(end - begin);
    read.needed = static_cast<uint32_t>(needed_end - begin);
    read.first = i;
    read.count = 1;
    reads->push_back(read);
  }
}

}  // namespace embergate::storage
