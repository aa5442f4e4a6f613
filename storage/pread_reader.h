// Block reads by a few threads that call pread: for kernels and containers that refuse io_uring. The same contract
// and batching as uring_reader: the owner takes one lock per batch, not per read.
#ifndef EMBERGATE_STORAGE_PREAD_READER_H_
#define EMBERGATE_STORAGE_PREAD_READER_H_

#include <memory>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "storage/block_reader.h"

namespace embergate::storage {

struct PreadReaderOptions {
  uint32_t queue_depth = 32;
  // Each thread holds one read at the device. 16 reach two thirds of what 32 reads in a ring do, and cost 16 small
  // stacks; more only add switches on a board's four cores.
  uint32_t threads_max = 16;
};

// The descriptors must outlive the reader.
absl::StatusOr<std::unique_ptr<BlockReader>> CreatePreadReader(absl::Span<const int> files,
                                                               const PreadReaderOptions& options);

}  // namespace embergate::storage

#endif  // EMBERGATE_STORAGE_PREAD_READER_H_
