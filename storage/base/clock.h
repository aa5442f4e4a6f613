// The monotonic clock as a number: for intervals, latencies and timeouts.
#ifndef EMBERGATE_STORAGE_BASE_CLOCK_H_
#define EMBERGATE_STORAGE_BASE_CLOCK_H_

#include <time.h>

#include <cstdint>

namespace embergate::storage {

// Nanoseconds since an arbitrary start; never goes back.
inline uint64_t MonotonicNs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000u + static_cast<uint64_t>(now.tv_nsec);
}

}  // namespace embergate::storage

#endif  // EMBERGATE_STORAGE_BASE_CLOCK_H_
