#include "server/flash_monitor.h"

#include <spdlog/spdlog.h>

#include <utility>

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

FlashMonitor::FlashMonitor(Lifecycle& lifecycle, std::function<storage::RowStoreStats()> stats,
                           std::function<void()> probe, absl::Duration interval)
    : lifecycle_(lifecycle), stats_(std::move(stats)), probe_(std::move(probe)), interval_(interval), thread_([this] {
        Run();
      }) {}

FlashMonitor::~FlashMonitor() {
  {
    absl::MutexLock lock(&mutex_);
    stop_ = true;
  }
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
  absl::Time last_task = absl::Now();
  while (true) {
    std::function<void()> task;
    {
      absl::MutexLock lock(&mutex_);
      if (mutex_.AwaitWithTimeout(absl::Condition(&stop_), interval_)) {
        return;
      }
      if (absl::Now() - last_task >= period_) {
        task = task_;
        last_task = absl::Now();
      }
    }
    const storage::RowStoreStats stats = stats_();
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
