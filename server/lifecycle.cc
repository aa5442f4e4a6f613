#include "server/lifecycle.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "server/status_mapping.h"

namespace embergate::server {
namespace {

absl::Status Refused(absl::string_view message, absl::string_view reason) {
  return WithRetry(WithReason(absl::UnavailableError(message), reason), absl::Seconds(1));
}

}  // namespace

void Lifecycle::SetLoadProgress(uint64_t done, uint64_t total) {
  const double fraction = total == 0 ? 0.0 : static_cast<double>(done) / static_cast<double>(total);
  load_progress_.store(std::clamp(fraction, 0.0, 1.0), std::memory_order_relaxed);
}

bool Lifecycle::SetReady(const ServedModel* model) {
  load_progress_.store(1.0, std::memory_order_relaxed);
  absl::MutexLock lock(&mutex_);
  if (phase() == Phase::kDraining) {
    return false;
  }
  {
    absl::MutexLock model_lock(&model_mutex_);
    used_.insert(model);
  }
  Exchange(ModelUse(model, [this](const ServedModel* unused) {
    absl::MutexLock model_lock(&model_mutex_);
    used_.erase(used_.find(unused));
  }));
  phase_.store(Phase::kReady, std::memory_order_release);
  on_serving_(ready());
  return true;
}

bool Lifecycle::SetLoading() {
  absl::MutexLock lock(&mutex_);
  if (phase() != Phase::kReady) {
    return false;
  }
  load_progress_.store(0, std::memory_order_relaxed);
  phase_.store(Phase::kLoading, std::memory_order_release);
  on_serving_(false);
  Exchange(nullptr);
  return true;
}

void Lifecycle::Exchange(ModelUse model) {
  {
    absl::MutexLock lock(&model_mutex_);
    std::swap(model_, model);
    if (model != nullptr) {
      former_ = model;
    }
  }
  // Here the hold on the former is given up, if there was one.
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

absl::Status Lifecycle::Explain(absl::Status status) const {
  if (!absl::IsUnavailable(status)) {
    return status;
  }
  switch (phase()) {
    case Phase::kReady:
      break;
    case Phase::kLoading:
      return Refused("another model is being loaded; the time to finish running requests is over", "LOADING");
    case Phase::kDraining:
      return Refused(status.message(), "DRAINING");
  }
  return status;
}

absl::StatusOr<ModelUse> Lifecycle::Serving() const {
  if (phase() == Phase::kDraining) {
    return Refused("the server is shutting down", "DRAINING");
  }
  if (ModelUse use = model(); use != nullptr) {
    return use;
  }
  return Refused(absl::StrCat("loading the model, ", static_cast<int>(load_progress() * 100), " %"), "LOADING");
}

void Lifecycle::AwaitUnused(const ServedModel* model) const {
  const auto unused = [this, model]() ABSL_SHARED_LOCKS_REQUIRED(model_mutex_) { return used_.count(model) == 0; };
  absl::MutexLock lock(&model_mutex_);
  model_mutex_.Await(absl::Condition(&unused));
}

ModelUse Lifecycle::model() const {
  absl::MutexLock lock(&model_mutex_);
  return model_;
}

ModelUse Lifecycle::former() const {
  absl::MutexLock lock(&model_mutex_);
  return former_.lock();
}

}  // namespace embergate::server
