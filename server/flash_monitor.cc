#include "server/flash_monitor.h"

#include <spdlog/spdlog.h>

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"

namespace embergate::server {

bool FlashHealth::Update(const storage::RowStoreStats& stats) {
  const uint64_t failed = stats.rows_failed - failed_;
  const uint64_t read = stats.rows_read - read_;
  failed_ = stats.rows_failed;
  read_ = stats.rows_read;
  if (healthy_) {
    healthy_ = stats.failures_in_a_row < kInARowMax && (failed < kFailedMin || failed <= read);
  } else {
    healthy_ = failed == 0 && read > 0;
  }
  return healthy_;
}

std::string DescribeReader(const storage::RowStoreStats& stats) {
  std::string text = absl::StrCat(stats.backend, stats.direct_io ? " with O_DIRECT" : ", buffered");
  if (!stats.backend_reason.empty()) {
    absl::StrAppend(&text, stats.backend == "io_uring" ? "; it goes without: " : "; io_uring is not in use: ",
                    stats.backend_reason);
  }
  if (!stats.direct_reason.empty()) {
    absl::StrAppend(&text, "; O_DIRECT is not in use: ", stats.direct_reason);
  }
  return text;
}

FlashMonitor::FlashMonitor(Lifecycle& lifecycle, std::function<storage::RowStoreStats()> stats,
                           std::function<void()> probe, absl::Duration interval)
    : lifecycle_(lifecycle), stats_(std::move(stats)), probe_(std::move(probe)), interval_(interval), thread_([this] {
        Run();
      }) {}

FlashMonitor::~FlashMonitor() {
  stop_.Set();
  thread_.join();
}

void FlashMonitor::Every(absl::Duration period, std::function<void()> task) {
  absl::MutexLock lock(&mutex_);
  period_ = period;
  task_ = std::move(task);
}

void FlashMonitor::Run() {
  FlashHealth health;
  bool was_healthy = true;
  bool was_direct = stats_().direct_io;
  auto last_task = std::chrono::steady_clock::now();
  while (!stop_.WaitFor(interval_)) {
    std::function<void()> task;
    {
      absl::MutexLock lock(&mutex_);
      const auto now = std::chrono::steady_clock::now();
      if (absl::FromChrono(now - last_task) >= period_) {
        task = task_;
        last_task = now;
      }
    }
    const storage::RowStoreStats stats = stats_();
    if (was_direct && !stats.direct_io) {  // a file system that takes the flag and refuses the reads
      was_direct = false;
      spdlog::warn("row reader: {}", DescribeReader(stats));
    }
    const bool healthy = health.Update(stats);
    if (healthy != was_healthy) {
      was_healthy = healthy;
      lifecycle_.SetFlashHealthy(healthy);
      if (healthy) {
        spdlog::info("flash works again: ready");
      } else {
        spdlog::error(
            "flash keeps failing, not ready until it works again: {} rows given up so far; errors by kind: "
            "io {}, short {}, checksum {}, file changed {}, timeout {}",
            stats.rows_failed, stats.errors_io, stats.errors_short, stats.errors_checksum, stats.errors_changed,
            stats.errors_timeout);
      }
    }
    if (!healthy) {
      probe_();
    }
    if (task) {
      task();
    }
  }
}

}  // namespace embergate::server
