#include "engine/convert/table_checksums.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/convert/gguf_keys.h"
#include "storage/base/status_macros.h"
#include "storage/checksum_file.h"
#include "storage/crc32c.h"

namespace embergate::engine {
namespace {

constexpr size_t kSegmentsMax = 64;

// Empty if there are none that fit.
storage::RowChecksums FromKeys(const storage::GgufFile& file, const storage::GgufTensor& table) {
  const auto ends = file.GetInts(gguf::kRowCrc32cSegments);
  if (!ends.ok() || ends->empty() || ends->size() > kSegmentsMax ||
      ends->back() != static_cast<int64_t>(table.row_bytes()) || ends->front() <= 0 ||
      !std::is_sorted(ends->begin(), ends->end(), std::less_equal<>())) {
    return {};
  }
  const auto values = file.GetInts(gguf::kRowCrc32c);
  if (!values.ok() || values->size() != table.rows() * ends->size()) {
    return {};
  }
  storage::RowChecksums sums;
  sums.segment_ends.assign(ends->begin(), ends->end());
  sums.crcs.reserve(values->size());
  for (const int64_t value : *values) {
    sums.crcs.push_back(static_cast<uint32_t>(value));
  }
  return sums;
}

absl::StatusOr<bool> RowAgrees(const storage::GgufFile& file, const storage::GgufTensor& table,
                               const storage::RowChecksums& sums, uint64_t row) {
  std::vector<uint8_t> bytes(table.row_bytes());
  EMBERGATE_RETURN_IF_ERROR(file.ReadTensor(table, row * bytes.size(), absl::MakeSpan(bytes)));
  uint64_t begin = 0;
  for (size_t i = 0; i < sums.segment_ends.size(); ++i) {
    const uint64_t end = sums.segment_ends[i];
    if (storage::Crc32c(absl::MakeConstSpan(bytes).subspan(begin, end - begin)) !=
        sums.crcs[row * sums.segment_ends.size() + i]) {
      return false;
    }
    begin = end;
  }
  return true;
}

}  // namespace

uint64_t PrefixBytes(storage::TensorType type, uint64_t elements) {
  const storage::TensorTypeTraits& traits = storage::TraitsOf(type);
  return (elements + traits.block_elements - 1) / traits.block_elements * traits.block_bytes;
}

std::vector<uint64_t> ChecksumSegments(storage::TensorType type, uint64_t row_elements, uint64_t prefix_elements) {
  const uint64_t row_bytes = PrefixBytes(type, row_elements);
  const uint64_t prefix_bytes = PrefixBytes(type, prefix_elements);
  if (prefix_bytes == 0 || prefix_bytes >= row_bytes) {
    return {row_bytes};
  }
  return {prefix_bytes, row_bytes};
}

absl::Status AddTableChecksums(storage::TensorType type, uint64_t row_elements, uint64_t prefix_elements,
                               storage::GgufWriter& writer) {
  const std::vector<uint64_t> ends = ChecksumSegments(type, row_elements, prefix_elements);
  writer.AddUint32s(gguf::kRowCrc32cSegments, std::vector<uint32_t>(ends.begin(), ends.end()));
  return writer.AddRowChecksums(gguf::kRowCrc32c, gguf::kPerLayerTokenEmbd, ends);
}

absl::StatusOr<storage::RowChecksums> LoadTableChecksums(const storage::GgufFile& file,
                                                         const storage::GgufTensor& table,
                                                         const storage::TableSpec& spec) {
  EMBERGATE_ASSIGN_OR_RETURN(storage::RowChecksums beside, storage::LoadRowChecksums(spec));
  if (!beside.crcs.empty()) {
    return beside;
  }
  storage::RowChecksums sums = FromKeys(file, table);
  if (sums.crcs.empty()) {
    return sums;
  }
  // Damage is somewhere; checksums of another table are wrong everywhere.
  bool any = false;
  for (const uint64_t row : {uint64_t{0}, table.rows() / 2, table.rows() - 1}) {
    EMBERGATE_ASSIGN_OR_RETURN(const bool agrees, RowAgrees(file, table, sums, row));
    any = any || agrees;
  }
  if (!any) {
    return absl::FailedPreconditionError(absl::StrCat(
        file.shard_path(table.shard), ": the rows of '", table.name, "' are not those that its key '", gguf::kRowCrc32c,
        "' describes; if another tool has rewritten them, embergate checksum makes new checksums, which go first"));
  }
  return sums;
}

uint64_t TableChecksumBytes(const storage::GgufFile& file, const storage::GgufTensor& table) {
  bool is_array = false;
  uint64_t count = 0;
  if (!file.TypeOf(gguf::kRowCrc32c, &is_array, &count).ok()) {
    count = 0;
  }
  const uint64_t in_file = std::min(count, table.rows() * kSegmentsMax) * sizeof(uint32_t);
  return std::max(in_file, storage::ChecksumBytesBeside(file.shard_path(table.shard)));
}

}  // namespace embergate::engine
