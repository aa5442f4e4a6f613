// The numbers behind RowStoreStats while they are being counted: written by the store's owner thread, read by any.
#ifndef EMBERGATE_STORAGE_ROW_STORE_COUNTERS_H_
#define EMBERGATE_STORAGE_ROW_STORE_COUNTERS_H_

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>

#include "storage/stats.h"

namespace embergate::storage {

// One writer, so an increment needs no locked instruction.
class Counter {
 public:
  void Add(uint64_t n = 1) { value_.store(value_.load(std::memory_order_relaxed) + n, std::memory_order_relaxed); }
  void Set(uint64_t n) { value_.store(n, std::memory_order_relaxed); }
  uint64_t Get() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<uint64_t> value_{0};
};

// Names and meanings as in RowStoreStats.
struct RowStoreCounters {
  Counter direct_io;
  Counter rows_requested;
  Counter rows_deduplicated;
  Counter rows_joined;
  Counter cache_hits;
  Counter cache_misses;
  Counter rows_read;
  Counter batches;
  Counter reads;
  Counter bytes_read;
  Counter bytes_useful;
  Counter retries;
  Counter rows_failed;
  Counter failures_in_a_row;
  Counter errors_io;
  Counter errors_short;
  Counter errors_checksum;
  Counter errors_changed;
  Counter errors_timeout;
  Counter in_flight;
  Counter backlog;
  Counter stall_ns;
  std::array<Counter, LatencyHistogram::kBoundsNs.size() + 1> latency;
  Counter latency_sum_ns;

  void RecordLatency(uint64_t ns) {
    const auto& bounds = LatencyHistogram::kBoundsNs;
    latency[static_cast<size_t>(std::lower_bound(bounds.begin(), bounds.end(), ns) - bounds.begin())].Add();
    latency_sum_ns.Add(ns);
  }

  void CopyTo(RowStoreStats* stats) const {
    stats->direct_io = direct_io.Get() != 0;
    stats->rows_requested = rows_requested.Get();
    stats->rows_deduplicated = rows_deduplicated.Get();
    stats->rows_joined = rows_joined.Get();
    stats->cache_hits = cache_hits.Get();
    stats->cache_misses = cache_misses.Get();
    stats->rows_read = rows_read.Get();
    stats->batches = batches.Get();
    stats->reads = reads.Get();
    stats->bytes_read = bytes_read.Get();
    stats->bytes_useful = bytes_useful.Get();
    stats->retries = retries.Get();
    stats->rows_failed = rows_failed.Get();
    stats->failures_in_a_row = failures_in_a_row.Get();
    stats->errors_io = errors_io.Get();
    stats->errors_short = errors_short.Get();
    stats->errors_checksum = errors_checksum.Get();
    stats->errors_changed = errors_changed.Get();
    stats->errors_timeout = errors_timeout.Get();
    stats->in_flight = in_flight.Get();
    stats->backlog = backlog.Get();
    stats->stall_ns = stall_ns.Get();
    for (size_t i = 0; i < latency.size(); ++i) {
      stats->read_latency.counts[i] = latency[i].Get();
    }
    stats->read_latency.sum_ns = latency_sum_ns.Get();
  }
};

}  // namespace embergate::storage

#endif  // EMBERGATE_STORAGE_ROW_STORE_COUNTERS_H_
