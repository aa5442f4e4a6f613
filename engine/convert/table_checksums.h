// The checksums of the per-layer table's rows: which, where they are written, and where they are found.
#ifndef EMBERGATE_ENGINE_CONVERT_TABLE_CHECKSUMS_H_
#define EMBERGATE_ENGINE_CONVERT_TABLE_CHECKSUMS_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "storage/gguf_file.h"
#include "storage/gguf_writer.h"
#include "storage/row_store.h"
#include "storage/tensor_type.h"

namespace embergate::engine {

// Bytes of a row's start that hold `elements` of its elements, as whole blocks.
uint64_t PrefixBytes(storage::TensorType type, uint64_t elements);

// Where the segments of a row end, each of which has a checksum of its own: prompts read the part of the first
// `prefix_elements` alone; 0, or all: one segment.
std::vector<uint64_t> ChecksumSegments(storage::TensorType type, uint64_t row_elements, uint64_t prefix_elements);

// Has the writer put the checksums of the table, which was added to it, into the file's own keys: a u32 array that
// other readers pass over.
absl::Status AddTableChecksums(storage::TensorType type, uint64_t row_elements, uint64_t prefix_elements,
                               storage::GgufWriter& writer);

// Those of the file beside the table's (`embergate checksum`), else those in the file's keys, else none. Keys that do
// not fit the table's rows are ignored: some tool has written the table anew and kept the keys. Errors: those of
// storage::LoadRowChecksums; FAILED_PRECONDITION if the keys fit and no row that is tried agrees.
absl::StatusOr<storage::RowChecksums> LoadTableChecksums(const storage::GgufFile& file,
                                                         const storage::GgufTensor& table,
                                                         const storage::TableSpec& spec);
// An upper bound of the memory that they take.
uint64_t TableChecksumBytes(const storage::GgufFile& file, const storage::GgufTensor& table);

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_CONVERT_TABLE_CHECKSUMS_H_
