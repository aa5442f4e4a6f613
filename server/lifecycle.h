// Loading, ready, draining, and whether flash works: the one place that knows whether requests are taken.
#ifndef EMBERGATE_SERVER_LIFECYCLE_H_
#define EMBERGATE_SERVER_LIFECYCLE_H_

#include <atomic>
#include <cstdint>
#include <functional>

#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "server/served_model.h"

namespace embergate::server {

// kLoading -> kReady -> kDraining; kLoading -> kDraining. Nothing goes back.
enum class Phase { kLoading, kReady, kDraining };

// Threads: any. `on_serving` is called within SetReady, SetDraining and SetFlashHealthy, one at a time.
class Lifecycle {
 public:
  explicit Lifecycle(std::function<void(bool serving)> on_serving) : on_serving_(std::move(on_serving)) {}

  void SetLoadProgress(uint64_t done, uint64_t total);
  // `model` is borrowed and outlives every RPC. Ignored when draining has begun.
  void SetReady(const ServedModel* model);
  void SetDraining();
  // While flash fails the server is not ready, so that a balancer sends requests elsewhere, but it goes on answering
  // those that come: some need no row that fails, and they show when it works again. True at the beginning.
  void SetFlashHealthy(bool healthy);

  // The model, or UNAVAILABLE with reason and retry hint.
  absl::StatusOr<const ServedModel*> Serving() const;

  // What a client should hear of an error that the engine ended its request with: while draining, UNAVAILABLE means
  // that, and comes with a retry hint.
  absl::Status Explain(absl::Status status) const;

  Phase phase() const { return phase_.load(std::memory_order_acquire); }
  bool flash_healthy() const { return flash_healthy_.load(std::memory_order_acquire); }
  // What health checks are told.
  bool ready() const { return phase() == Phase::kReady && flash_healthy(); }
  double load_progress() const { return load_progress_.load(std::memory_order_relaxed); }  // 0 to 1
  // Null until it is loaded; stays while draining. For metrics.
  const ServedModel* model() const { return model_.load(std::memory_order_acquire); }

 private:
  const std::function<void(bool)> on_serving_;
  absl::Mutex mutex_;  // held through a change and its on_serving_
  std::atomic<Phase> phase_{Phase::kLoading};
  std::atomic<bool> flash_healthy_{true};
  std::atomic<double> load_progress_{0};
  std::atomic<const ServedModel*> model_{nullptr};
};

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_LIFECYCLE_H_
