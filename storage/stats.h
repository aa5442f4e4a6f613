// Plain counters of the row store, copied out by RowStore::Snapshot.
#ifndef EMBERGATE_STORAGE_STATS_H_
#define EMBERGATE_STORAGE_STATS_H_

#include <array>
#include <cstdint>
#include <string>

namespace embergate::storage {

// Fixed-bucket latency histogram. Bucket i counts values <= kBoundsNs[i]; the last one counts the rest.
struct LatencyHistogram {
  // 20 us to 2 s, in a 1-2-5 series.
  static constexpr std::array<uint64_t, 16> kBoundsNs = {
      20'000,     50'000,     100'000,    200'000,     500'000,     1'000'000,   2'000'000,     5'000'000,
      10'000'000, 20'000'000, 50'000'000, 100'000'000, 200'000'000, 500'000'000, 1'000'000'000, 2'000'000'000};
  std::array<uint64_t, kBoundsNs.size() + 1> counts{};
  uint64_t sum_ns = 0;
};

struct RowStoreStats {
  std::string backend;         // "io_uring" or "pread"
  std::string backend_reason;  // why not io_uring, or what it had to go without; empty when all is as wished
  bool direct_io = false;      // O_DIRECT in use, for all files
  std::string direct_reason;   // why not; empty when it is or was not asked for
  uint32_t queue_depth = 0;
  uint64_t rows_requested = 0;
  uint64_t rows_deduplicated = 0;  // asked for more than once within one submission
  uint64_t rows_joined = 0;        // being read already for an earlier submission
  uint64_t cache_hits = 0;         // of the distinct rows
  uint64_t cache_misses = 0;       // requested = deduplicated + joined + hits + misses
  uint64_t rows_read = 0;
  uint64_t batches = 0;       // times that reads were handed to the device, however many at once
  uint64_t reads = 0;         // device reads completed
  uint64_t bytes_read = 0;    // from the device
  uint64_t bytes_useful = 0;  // of those, bytes of rows asked for
  uint64_t retries = 0;
  uint64_t rows_failed = 0;        // rows given up: their tickets got an error
  uint64_t failures_in_a_row = 0;  // rows given up since the last row that arrived whole; 0 = healthy
  uint64_t errors_io = 0;
  uint64_t errors_short = 0;
  uint64_t errors_checksum = 0;
  uint64_t errors_changed = 0;  // files written to or truncated while open
  uint64_t errors_timeout = 0;  // reads that the device did not answer in time
  uint64_t in_flight = 0;
  uint64_t backlog = 0;   // reads that wait for a place in flight
  uint64_t stall_ns = 0;  // time that Wait blocked
  // Only reads whose end was seen as it came: one that completed while its owner computed has no known latency.
  LatencyHistogram read_latency;
  // DRAM by part, all fixed at Create.
  uint64_t cache_bytes = 0;     // row cache with its index
  uint64_t held_bytes = 0;      // rows that tickets hold
  uint64_t buffer_bytes = 0;    // landing buffers of reads in flight
  uint64_t checksum_bytes = 0;  // CRCs of the tables
  uint64_t other_bytes = 0;     // tickets, read descriptors, scratch
};

}  // namespace embergate::storage

#endif  // EMBERGATE_STORAGE_STATS_H_
