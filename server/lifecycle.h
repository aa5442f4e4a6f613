// Loading, ready, draining: the one place that knows whether requests are taken.
#ifndef EMBERGATE_SERVER_LIFECYCLE_H_
#define EMBERGATE_SERVER_LIFECYCLE_H_

#include <atomic>
#include <cstdint>
#include <functional>

#include "absl/status/statusor.h"
#include "server/served_model.h"

namespace embergate::server {

// kLoading -> kReady -> kDraining; kLoading -> kDraining. Nothing goes back.
enum class Phase { kLoading, kReady, kDraining };

// Threads: any. `on_serving` is called from SetReady (true) and SetDraining (false), within the call.
class Lifecycle {
 public:
  explicit Lifecycle(std::function<void(bool serving)> on_serving) : on_serving_(std::move(on_serving)) {}

  void SetLoadProgress(uint64_t done, uint64_t total);
  // `model` is borrowed and outlives every RPC. Ignored when draining has begun.
  void SetReady(const ServedModel* model);
  void SetDraining();

  // The model, or UNAVAILABLE with reason and retry hint.
  absl::StatusOr<const ServedModel*> Serving() const;

  // What a client should hear of an error that the engine ended its request with: while draining, UNAVAILABLE means
  // that, and comes with a retry hint.
  absl::Status Explain(absl::Status status) const;

  Phase phase() const { return phase_.load(std::memory_order_acquire); }
  double load_progress() const { return load_progress_.load(std::memory_order_relaxed); }  // 0 to 1
  // Null until it is loaded; stays while draining. For metrics.
  const ServedModel* model() const { return model_.load(std::memory_order_acquire); }

 private:
  const std::function<void(bool)> on_serving_;
  std::atomic<Phase> phase_{Phase::kLoading};
  std::atomic<double> load_progress_{0};
  std::atomic<const ServedModel*> model_{nullptr};
};

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_LIFECYCLE_H_
