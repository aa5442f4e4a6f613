// Block reads through one io_uring: registered files, registered landing memory, and a ring that accepts nothing but
// reads of those files. The only file pair that knows liburing.
#ifndef EMBERGATE_STORAGE_URING_READER_H_
#define EMBERGATE_STORAGE_URING_READER_H_

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "storage/block_reader.h"

namespace embergate::storage {

struct UringReaderOptions {
  uint32_t queue_depth = 32;
  // A kernel thread polls for submissions, so that Flush needs no system call. Costs a core while reads go on, which a
  // small board rarely has to spare.
  bool submission_polling = false;
  // For tests: io_uring_setup answers this errno. 0: ask the kernel.
  int fake_setup_errno = 0;
  // For tests: registering the landing memory answers this errno.
  int fake_register_buffers_errno = 0;
};

// All reads go into `landing`, which must outlive the reader, as must the descriptors.
//
// The ring is set up disabled and enabled by the first Flush, because a single-issuer ring belongs to the thread that
// enables it and the creating thread may be another one. Flags in order of preference, each kernel takes the first set
// it knows: single issuer + deferred task run (6.1: completions run in Reap only, no interruption of compute), single
// issuer + cooperative (6.0), cooperative (5.19), none (5.11).
//
// Errors: UNAVAILABLE when the kernel or the container refuses io_uring; the message says what and what to do.
absl::StatusOr<std::unique_ptr<BlockReader>> CreateUringReader(absl::Span<const int> files, absl::Span<uint8_t> landing,
                                                               const UringReaderOptions& options);

}  // namespace embergate::storage

#endif  // EMBERGATE_STORAGE_URING_READER_H_
