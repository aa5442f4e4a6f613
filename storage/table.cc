#include "storage/table.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "storage/base/status_macros.h"
#include "storage/crc32c.h"

namespace embergate::storage {
namespace {

absl::Status SpecError(const TableSpec& spec, size_t index, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("table ", index, " in ", spec.path, ": ", what));
}

absl::Status CheckChecksums(TableSpec& spec, size_t index) {
  RowChecksums& sums = spec.checksums;
  if (sums.crcs.empty()) {
    return absl::OkStatus();
  }
  if (sums.segment_ends.empty()) {
    sums.segment_ends.push_back(spec.row_bytes);
  }
  uint64_t previous = 0;
  for (uint64_t end : sums.segment_ends) {
    if (end <= previous || end > spec.row_bytes) {
      return SpecError(spec, index, "checksum segments must ascend and end within the row");
    }
    previous = end;
  }
  if (previous != spec.row_bytes) {
    return SpecError(spec, index, "the last checksum segment must end with the row");
  }
  if (sums.rows_per_group == 0 || (sums.rows_per_group > 1 && sums.segment_ends.size() > 1)) {
    return SpecError(spec, index, "checksum groups have at least one row, and segments only if they have just one");
  }
  const uint64_t groups = (spec.row_count + sums.rows_per_group - 1) / sums.rows_per_group;
  if (sums.crcs.size() / sums.segment_ends.size() != groups || sums.crcs.size() % sums.segment_ends.size() != 0) {
    return SpecError(spec, index,
                     absl::StrCat(sums.crcs.size(), " checksums for ", groups, " groups of rows in ",
                                  sums.segment_ends.size(), " segments"));
  }
  if (sums.rows_per_group > kTableRowBytesMax / spec.row_stride) {
    return SpecError(spec, index, "checksum groups are too long to be read at once");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckTableSpec(TableSpec& spec, size_t index) {
  if (spec.row_bytes == 0 || spec.row_count == 0) {
    return SpecError(spec, index, "row_bytes and row_count must be positive");
  }
  if (spec.row_stride == 0) {
    spec.row_stride = spec.row_bytes;
  }
  if (spec.row_stride < spec.row_bytes) {
    return SpecError(spec, index, "row_stride is less than row_bytes");
  }
  if (spec.row_stride > kTableRowBytesMax) {
    return SpecError(spec, index, absl::StrCat("rows of more than ", kTableRowBytesMax, " bytes are not supported"));
  }
  if (spec.row_count >= kTableRowsMax) {
    return SpecError(spec, index, "too many rows");
  }
  uint64_t end = 0;
  if (__builtin_mul_overflow(spec.row_stride, spec.row_count - 1, &end) ||
      __builtin_add_overflow(end, spec.row_bytes, &end) || __builtin_add_overflow(end, spec.file_offset, &end) ||
      end > INT64_MAX) {
    return SpecError(spec, index, "its end overflows a file offset");
  }
  return CheckChecksums(spec, index);
}

uint64_t Table::CheckableBytes(uint64_t bytes) const {
  if (bytes == 0) {
    return spec.row_bytes;
  }
  if (!checked) {
    return bytes;
  }
  const std::vector<uint64_t>& ends = spec.checksums.segment_ends;
  return *std::lower_bound(ends.begin(), ends.end(), bytes);
}

RowRange Table::RangeOf(uint64_t row, uint32_t bytes, uint32_t ref) const {
  RowRange range;
  range.file = file;
  range.row = ref;
  range.begin = OffsetOf(row);
  range.bytes = bytes;
  const uint64_t group_rows = RowsPerGroup();
  if (group_rows > 1) {
    const uint64_t first = row / group_rows * group_rows;
    const uint64_t last = std::min(first + group_rows, spec.row_count) - 1;
    range.begin = OffsetOf(first);
    range.bytes = static_cast<uint32_t>(OffsetOf(last) + spec.row_bytes - range.begin);
  }
  return range;
}

uint64_t Table::BlockBytesMax(uint64_t alignment) const {
  const uint64_t group_rows = std::min(RowsPerGroup(), spec.row_count);
  const uint64_t bytes = (group_rows - 1) * spec.row_stride + spec.row_bytes;
  // Groups start at the offset plus multiples of their stride: only so many positions within a block occur.
  const uint64_t step = std::gcd(spec.row_stride * group_rows, alignment);
  const uint64_t latest_start = alignment - step + spec.file_offset % step;
  return (latest_start + bytes + alignment - 1) / alignment * alignment;
}

bool Table::Extract(uint64_t row, uint32_t bytes, const uint8_t* data, uint64_t data_begin, uint8_t* to,
                    uint64_t* checked_group) const {
  const uint8_t* from = data + (OffsetOf(row) - data_begin);
  if (!checked) {
    std::memcpy(to, from, bytes);
    return true;
  }
  const RowChecksums& sums = spec.checksums;
  if (sums.rows_per_group == 1) {
    const uint32_t* expected = &sums.crcs[row * sums.segment_ends.size()];
    uint64_t begin = 0;
    for (size_t i = 0; begin < bytes; ++i) {
      const uint64_t end = sums.segment_ends[i];
      if (CopyWithCrc32c(to + begin, absl::MakeConstSpan(from + begin, end - begin)) != expected[i]) {
        return false;
      }
      begin = end;
    }
    return true;
  }
  const uint64_t group = row / sums.rows_per_group;
  if (*checked_group != group) {
    const uint64_t first = group * sums.rows_per_group;
    const uint64_t last = std::min<uint64_t>(first + sums.rows_per_group, spec.row_count);
    uint32_t crc = 0;
    for (uint64_t i = first; i < last; ++i) {
      crc = Crc32c(absl::MakeConstSpan(data + (OffsetOf(i) - data_begin), spec.row_bytes), crc);
    }
    if (crc != sums.crcs[group]) {
      return false;
    }
    *checked_group = group;
  }
  std::memcpy(to, from, bytes);
  return true;
}

}  // namespace embergate::storage
