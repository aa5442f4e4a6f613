// A regular file read by offset without leaving its pages in the page cache: O_DIRECT where the file system takes
// it, buffered reads followed by dropping the pages elsewhere. For streaming a file once (headers, weights); the
// row store has readers of its own.
#ifndef EMBERGATE_STORAGE_BASE_DIRECT_FILE_H_
#define EMBERGATE_STORAGE_BASE_DIRECT_FILE_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace embergate::storage {

// Threads: any may call the const methods at once.
class DirectFile {
 public:
  // Offsets, lengths and addresses that are multiples of this need no bounce buffer. Devices ask for 512 or 4096.
  static constexpr size_t kAlignment = 4096;

  // Errors: NOT_FOUND, PERMISSION_DENIED, INVALID_ARGUMENT (a directory, pipe, device), UNAVAILABLE.
  static absl::StatusOr<std::unique_ptr<DirectFile>> Open(const std::string& path);
  ~DirectFile();
  DirectFile(const DirectFile&) = delete;
  DirectFile& operator=(const DirectFile&) = delete;

  const std::string& path() const { return path_; }
  uint64_t bytes() const { return bytes_; }  // at Open
  bool direct() const { return direct_.load(std::memory_order_relaxed); }

  // Fills `out` from `offset`. Where `out.data()` and `offset` leave the same remainder modulo kAlignment, the bytes
  // go straight to `out`; otherwise through a bounce buffer of at most 1 MiB that lives as long as the call.
  // Errors: DATA_LOSS (the file ends before), UNAVAILABLE (device error), RESOURCE_EXHAUSTED (no memory).
  absl::Status Read(uint64_t offset, absl::Span<uint8_t> out) const;

 private:
  DirectFile(std::string path, int fd, uint64_t bytes, bool direct)
      : path_(std::move(path)), fd_(fd), bytes_(bytes), direct_(direct) {}
  absl::Status ReadAligned(uint64_t offset, uint8_t* out, size_t bytes, size_t needed_bytes) const;
  absl::Status ReadBuffered(uint64_t offset, absl::Span<uint8_t> out) const;
  absl::Status ShortFile(uint64_t offset) const;

  std::string path_;
  int fd_;
  uint64_t bytes_;
  mutable std::atomic<bool> direct_;  // cleared for good when a read is refused as unaligned
};

}  // namespace embergate::storage

#endif  // EMBERGATE_STORAGE_BASE_DIRECT_FILE_H_
