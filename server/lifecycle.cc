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
  Phase expected = Phase::kLoading;
  if (phase_.compare_exchange_strong(expected, Phase::kReady, std::memory_order_acq_rel)) {
    on_serving_(true);
    // SetDraining may have come between: its `false` has to be the last word.
    if (phase() == Phase::kDraining) {
      on_serving_(false);
    }
  }
}

void Lifecycle::SetDraining() {
  phase_.store(Phase::kDraining, std::memory_order_release);
  on_serving_(false);
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
