// One open file that holds tables: its descriptor, how it may be read (O_DIRECT and at which alignment), and whether
// it is still the file that was opened.
#ifndef EMBERGATE_STORAGE_TABLE_FILE_H_
#define EMBERGATE_STORAGE_TABLE_FILE_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace embergate::storage {

// Threads: one, except that the descriptor may be read from any.
class TableFile {
 public:
  // Opens `path` for reading. With `direct_io`, O_DIRECT where the file system takes it; otherwise (and where it does
  // not) buffered, without read-ahead. Errors: NOT_FOUND, PERMISSION_DENIED, INVALID_ARGUMENT (not a regular file or
  // block device), UNAVAILABLE (anything else).
  static absl::StatusOr<TableFile> Open(const std::string& path, bool direct_io);
  TableFile(TableFile&& other) noexcept;
  TableFile& operator=(TableFile&& other) noexcept;
  TableFile(const TableFile&) = delete;
  TableFile& operator=(const TableFile&) = delete;
  ~TableFile();

  const std::string& path() const { return path_; }
  int fd() const { return fd_; }
  uint64_t bytes() const { return bytes_; }
  bool direct() const { return direct_; }
  // Why not direct, in words; empty if direct or not asked for.
  const std::string& direct_reason() const { return direct_reason_; }
  // Offsets and lengths of reads are multiples of this; so are, in memory, addresses (of memory_alignment()).
  uint32_t alignment() const { return alignment_; }
  uint32_t memory_alignment() const { return memory_alignment_; }

  // From now on buffered, through the same descriptor: for a file system that takes the flag but refuses the reads.
  absl::Status StopDirect();

  // Buffered files: drops the pages that [offset, offset + bytes) touches from the page cache. Clean pages of our own
  // reading; best effort.
  void DropPages(uint64_t offset, uint64_t bytes) const;

  // OK while size and modification time are those of Open. A file that was replaced by renaming another over it is
  // unharmed: the descriptor keeps the old one alive. One system call.
  // Errors: DATA_LOSS; remembered, so the answer stays.
  absl::Status CheckUnchanged();
  bool changed() const { return changed_; }

 private:
  TableFile() = default;
  void FindAlignment();

  std::string path_;
  std::string direct_reason_;
  int fd_ = -1;
  bool direct_ = false;
  bool changed_ = false;
  bool is_block_device_ = false;
  uint32_t alignment_ = 4096;
  uint32_t memory_alignment_ = 4096;
  uint64_t bytes_ = 0;
  int64_t modified_s_ = 0;
  int64_t modified_ns_ = 0;
};

}  // namespace embergate::storage

#endif  // EMBERGATE_STORAGE_TABLE_FILE_H_
