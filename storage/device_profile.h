// Measures what a device gives for random reads, and derives from it how the row store should use it.
#ifndef EMBERGATE_STORAGE_DEVICE_PROFILE_H_
#define EMBERGATE_STORAGE_DEVICE_PROFILE_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "storage/row_store.h"

namespace embergate::storage {

struct DeviceDepth {
  int depth = 0;  // reads in flight
  double reads_per_second = 0;
  double latency_us_mean = 0;
  double latency_us_p99 = 0;
  uint64_t reads = 0;  // that were timed
};

struct DeviceProfile {
  std::string backend;  // "io_uring" or "pread"
  bool direct_io = false;
  uint32_t alignment = 0;
  uint32_t read_bytes = 0;            // of the reads below
  std::vector<DeviceDepth> depths;    // 1, 2, 4 .. 64
  double small_reads_per_second = 0;  // of one block, at the recommended depth
  // The smallest depth that reaches 90 % of the best rate: more only adds latency.
  int queue_depth = 0;
  // Bytes that cost as much time as another read: rows closer than this are read together.
  uint32_t merge_gap_bytes = 0;
};

struct DeviceTestOptions {
  ReaderKind reader = ReaderKind::kAuto;
  uint32_t read_bytes = 10240;  // rounded up to whole blocks; a row of Gemma 4 E2B in Q8_0
  double seconds_per_depth = 0.4;
  uint64_t reads_per_depth_max = UINT64_MAX;         // and no more than these (as many as fit in flight at least)
  std::function<void(const DeviceDepth&)> on_depth;  // may be empty
};

// Reads at random places of `path` (the range [offset, offset + bytes); bytes 0: to the end), past the page cache.
// Errors: as RowStore::Create; INVALID_ARGUMENT if the range is smaller than 1 MiB.
absl::StatusOr<DeviceProfile> MeasureDevice(const std::string& path, uint64_t offset, uint64_t bytes,
                                            const DeviceTestOptions& options);

// The depth and gap that follow from measured rates; apart from MeasureDevice so that it can be tested.
void Recommend(DeviceProfile& profile);

// Bytes read per byte of row for rows of `row_bytes` that lie densely from `offset` on.
double ReadAmplification(uint64_t offset, uint64_t row_bytes, uint32_t alignment);

}  // namespace embergate::storage

#endif  // EMBERGATE_STORAGE_DEVICE_PROFILE_H_
