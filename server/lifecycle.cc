#include "server/lifecycle.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "server/status_mapping.h"

namespace embergate::server {

void Lifecycle::SetLoadProgress(uint64_t done, uint64_t total) {
  const double fraction = total == 0 ? 0.0 : static_cast<double>(done) / static_cast<double>(total);
  load_progress_.store(std::clamp(fraction, 0.0, 1.0), std::memory_order_relaxed);
}

void Lifecycle::SetReady(const ServedModel* model) {
  model_.store(model, std::memory_order_release);
  load_progress_.store(1.0, std::memory_order_relaxed);
  absl::MutexLock lock(&mutex_);
  if (phase() == Phase::kLoading) {
    phase_.store(Phase::kReady, std::memory_order_release);
    on_serving_(ready());
  }
}

void Lifecycle::SetDraining() {
  absl::MutexLock lock(&mutex_);
  phase_.store(Phase::kDraining, std::memory_order_release);
  on_serving_(false);
}

void Lifecycle::SetFlashHealthy(bool healthy) {
  absl::MutexLock lock(&mutex_);
  if (flash_healthy() != healthy) {
    flash_healthy_.store(healthy, std::memory_order_release);
    on_serving_(ready());
  }
}

namespace {

absl::Status Draining(absl::string_view message) {
  return WithRetry(WithReason(absl::UnavailableError(message), "DRAINING"), absl::Seconds(1));
}

}  // namespace

absl::Status Lifecycle::Explain(absl::Status status) const {
  if (absl::IsUnavailable(status) && phase() == Phase::kDraining) {
    return Draining(status.message());
  }
  return status;
}

absl::StatusOr<const ServedModel*> Lifecycle::Serving() const {
  switch (phase()) {
    case Phase::kReady:
      return model();
    case Phase::kLoading: {
      const int percent = static_cast<int>(load_progress() * 100);
      return WithRetry(
          WithReason(absl::UnavailableError(absl::StrCat("loading the model, ", percent, " %")), "LOADING"),
          absl::Seconds(1));
    }
    case Phase::kDraining:
      break;
  }
  return Draining("the server is shutting down");
}

}  // namespace embergate::server
