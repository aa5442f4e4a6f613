// Checksums of a file we do not own, kept beside it: MODEL.gguf.crc32c holds CRC32C values of MODEL.gguf, piece by
// piece, so that every row can be checked as it is read and the whole file when somebody asks.
//
// Format, little-endian, version 1:
//   8 bytes  "EMBGCRC1"
//   u64      bytes of the file that is described
//   u32      entries; then each:
//     u32, bytes   name (a tensor's), at most 256 bytes
//     u64 u64      first byte in the file, bytes
//     u64          bytes of a piece (a table's row, or 1 MiB); the last piece may be shorter
//     u32, u64...  segments of a piece (1 to 64) and where each ends, ascending, the last with the piece
//     u32...       a CRC32C for each segment of each piece, in order
//   u32      CRC32C of all bytes before it
#ifndef EMBERGATE_STORAGE_CHECKSUM_FILE_H_
#define EMBERGATE_STORAGE_CHECKSUM_FILE_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "storage/row_store.h"

namespace embergate::storage {

struct ChecksumEntry {
  std::string name;
  uint64_t file_offset = 0;
  uint64_t bytes = 0;
  uint64_t piece_bytes = 0;
  // More than one only if `bytes` is a whole number of pieces.
  std::vector<uint64_t> segment_ends;
  std::vector<uint32_t> crcs;  // [piece][segment]

  uint64_t pieces() const { return (bytes + piece_bytes - 1) / piece_bytes; }
};

struct ChecksumFile {
  uint64_t file_bytes = 0;
  std::vector<ChecksumEntry> entries;
};

// Called now and then with the bytes read so far and in all.
using ChecksumProgress = std::function<void(uint64_t done, uint64_t total)>;

std::string ChecksumPathFor(const std::string& path);
// An upper bound of the memory that LoadRowChecksums for a table of `path` takes; 0 if there are no checksums.
uint64_t ChecksumBytesBeside(const std::string& path);

// Reads the entries' bytes of `path` once, past the page cache, and fills in their CRCs. Memory: a few MiB.
// Errors: INVALID_ARGUMENT (an entry's geometry), DATA_LOSS (the file is shorter), UNAVAILABLE (device error).
absl::Status ComputeChecksums(const std::string& path, ChecksumFile& sums, const ChecksumProgress& progress);

// As ComputeChecksums, but compares. `on_mismatch` gets the entry and the piece; the return value is their number.
absl::StatusOr<uint64_t> VerifyChecksums(const std::string& path, const ChecksumFile& sums,
                                         const std::function<void(const ChecksumEntry&, uint64_t piece)>& on_mismatch,
                                         const ChecksumProgress& progress);

// Writes beside the final name and renames, so that no half file is ever found.
absl::Status WriteChecksumFile(const std::string& path, const ChecksumFile& sums);
// Hostile input is normal input: nothing is allocated that the file's size does not cover.
// Errors: NOT_FOUND, INVALID_ARGUMENT (not such a file, or a damaged one).
absl::StatusOr<ChecksumFile> ReadChecksumFile(const std::string& path);

// The checksums for a table, from the file beside the table's. None there: empty checksums. One that describes another
// file or none of this table's rows: FAILED_PRECONDITION, since a user who made it believes to be protected.
absl::StatusOr<RowChecksums> LoadRowChecksums(const TableSpec& table);

}  // namespace embergate::storage

#endif  // EMBERGATE_STORAGE_CHECKSUM_FILE_H_
