// The seam between the row store and the operating system: batches of reads go in, completions come out, in any
// order. Implementations: uring_reader (one ring), pread_reader (a few threads), fault_reader (wraps another one and
// makes it misbehave). Above this line nothing knows how bytes are read.
#ifndef EMBERGATE_STORAGE_BLOCK_READER_H_
#define EMBERGATE_STORAGE_BLOCK_READER_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace embergate::storage {

// `data` points into the landing memory that the reader was created with. It belongs to the reader from Queue until
// the completion of `tag` has been reaped. Offset, length and address obey the file's direct-I/O alignment.
struct BlockRead {
  int file = 0;  // index into the descriptors that the reader was created with
  uint64_t file_offset = 0;
  uint32_t bytes = 0;
  uint8_t* data = nullptr;
  uint64_t tag = 0;  // the caller's name for it, handed back with the completion
};

struct BlockCompletion {
  uint64_t tag = 0;
  int32_t result = 0;    // bytes read (fewer than asked for: short read; 0: end of file), or -errno
  uint64_t done_ns = 0;  // when it completed (MonotonicNs), 0 if only the time of Reap is known
};

// Threads: one owner thread, which is the first to call Queue (it need not be the creator). Bounds: at most
// `queue_depth` (given at creation) reads queued or in flight, counted until reaped; more is a bug. Allocates nothing
// after creation.
class BlockReader {
 public:
  virtual ~BlockReader() = default;

  virtual absl::string_view name() const = 0;
  // What the reader had to go without (e.g. registered buffers) and why; empty if nothing.
  virtual const std::string& shortcomings() const = 0;

  // Stages reads without telling the device yet.
  virtual void Queue(absl::Span<const BlockRead> reads) = 0;
  // Hands all staged reads to the device in one system call at most; does not wait for it. An error means that the
  // reader is unusable from now on.
  virtual absl::Status Flush() = 0;
  // Not OK once the reader is unusable, whichever call found out.
  virtual absl::Status broken() const { return absl::OkStatus(); }
  // Hands over what is staged, waits until `min_count` completions are there or `timeout_ns` has passed (0: does not
  // wait), and takes up to out.size() of them. Returns how many, possibly fewer than `min_count`.
  virtual size_t Reap(absl::Span<BlockCompletion> out, size_t min_count, uint64_t timeout_ns) = 0;
};

}  // namespace embergate::storage

#endif  // EMBERGATE_STORAGE_BLOCK_READER_H_
