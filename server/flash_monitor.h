// Watches the row store while a model is served: takes the server out of service while flash keeps failing, and puts it
// back when it works again.
#ifndef EMBERGATE_SERVER_FLASH_MONITOR_H_
#define EMBERGATE_SERVER_FLASH_MONITOR_H_

#include <cstdint>
#include <functional>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "server/lifecycle.h"
#include "server/stop_signal.h"
#include "storage/stats.h"

namespace embergate::server {

// The decision, from counters taken at even intervals. Flash fails when rows are given up several times in a row, or
// more are given up than arrive; it works again when in one interval rows arrive and none is given up. A single bad
// block is neither: other rows arrive between its failures.
class FlashHealth {
 public:
  static constexpr uint64_t kInARowMax = 3;
  static constexpr uint64_t kFailedMin = 8;  // of one interval, for the comparison with those that arrive

  // Whether flash is healthy. Threads: one.
  bool Update(const storage::RowStoreStats& stats);

 private:
  bool healthy_ = true;
  uint64_t failed_ = 0;
  uint64_t read_ = 0;
};

// How rows are read and what that goes without, for the log: "io_uring with O_DIRECT", "pread, buffered; ...".
std::string DescribeReader(const storage::RowStoreStats& stats);

// Threads: one of its own from creation to destruction, which alone calls the functions given here.
class FlashMonitor {
 public:
  // `stats`: the row store's. `probe` is called at every look while flash is unhealthy and has to cause a few reads
  // soon: without requests nothing else would. All are borrowed.
  FlashMonitor(Lifecycle& lifecycle, std::function<storage::RowStoreStats()> stats, std::function<void()> probe,
               absl::Duration interval = absl::Seconds(1));
  ~FlashMonitor();

  // Has `task` called by the monitor's thread every `period` from now on.
  void Every(absl::Duration period, std::function<void()> task);

 private:
  void Run();

  Lifecycle& lifecycle_;
  const std::function<storage::RowStoreStats()> stats_;
  const std::function<void()> probe_;
  const absl::Duration interval_;
  StopSignal stop_;
  absl::Mutex mutex_;
  std::function<void()> task_ ABSL_GUARDED_BY(mutex_);
  absl::Duration period_ ABSL_GUARDED_BY(mutex_) = absl::InfiniteDuration();
  std::thread thread_;
};

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_FLASH_MONITOR_H_
