// A block reader that misbehaves by a seed: for the tests of everything above it, and for benches that imitate slow
// media. Wraps a real reader.
#ifndef EMBERGATE_STORAGE_FAULT_READER_H_
#define EMBERGATE_STORAGE_FAULT_READER_H_

#include <cstdint>
#include <memory>

#include "storage/block_reader.h"

namespace embergate::storage {

// Chances are per read, in [0, 1]; at most one of the faults happens to a read.
struct FaultOptions {
  uint64_t seed = 1;
  // Every completion is held back for a time drawn evenly from this range (2 ms: an SD card).
  uint64_t delay_ns_min = 0;
  uint64_t delay_ns_max = 0;
  bool reorder = false;    // completions that are due come in random order
  double io_error = 0;     // -EIO
  double interrupted = 0;  // -EINTR
  double try_again = 0;    // -EAGAIN
  double short_read = 0;   // a random part of the read, in 512-byte steps
  double end_of_file = 0;  // 0 bytes
  double torn = 0;         // "success", with up to 512 bytes of something else somewhere
  double late = 0;         // the completion comes `late_ns` later than it should
  uint64_t late_ns = 0;
  double lost = 0;        // the completion never comes
  uint64_t lost_max = 0;  // as often as this at most
  bool refuse_all =
      false;  // -EINVAL for each, as a file system that refuses O_DIRECT reads; until `refusals` are used up
  uint64_t refusals = 0;
  // Every read that touches [bad_begin, bad_end) of any file fails with -EIO: a bad block.
  uint64_t bad_begin = 0;
  uint64_t bad_end = 0;
  uint64_t flushes_max = UINT64_MAX;  // after so many the reader itself is broken: Flush fails for good
  uint64_t faults_max = UINT64_MAX;   // after so many (delays not counted) all is well again
};

// `queue_depth` as given to `inner`.
std::unique_ptr<BlockReader> CreateFaultReader(std::unique_ptr<BlockReader> inner, uint32_t queue_depth,
                                               const FaultOptions& options);

}  // namespace embergate::storage

#endif  // EMBERGATE_STORAGE_FAULT_READER_H_
