// Loading, ready, draining, which model is served, and whether flash works: the one place that knows whether requests
// are taken, and by whom.
#ifndef EMBERGATE_SERVER_LIFECYCLE_H_
#define EMBERGATE_SERVER_LIFECYCLE_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <set>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "server/served_model.h"

namespace embergate::server {

// kLoading <-> kReady, and from either to kDraining, which is for good.
enum class Phase { kLoading, kReady, kDraining };

// Threads: any. `on_serving` is called within SetReady, SetLoading, SetDraining and SetFlashHealthy, one at a time.
// Outlives every ModelUse that it has given out.
class Lifecycle {
 public:
  explicit Lifecycle(std::function<void(bool serving)> on_serving) : on_serving_(std::move(on_serving)) {}

  void SetLoadProgress(uint64_t done, uint64_t total);
  // Requests to come go to `model`, which is borrowed until AwaitUnused says that nobody uses it any more. Calls that
  // have another one go on with that. False, without effect, when draining has begun.
  bool SetReady(const ServedModel* model);
  // Takes the model out of service while another is loaded in its place: calls answer UNAVAILABLE, those under way go
  // on. False, without effect, unless it is ready.
  bool SetLoading();
  void SetDraining();
  // While flash fails the server is not ready, so that a balancer sends requests elsewhere, but it goes on answering
  // those that come: some need no row that fails, and they show when it works again. True at the beginning.
  void SetFlashHealthy(bool healthy);

  // The model, or UNAVAILABLE with reason and retry hint.
  absl::StatusOr<ModelUse> Serving() const;

  // What a client should hear of an error that the engine ended its request with: while draining or loading,
  // UNAVAILABLE means that, and comes with a retry hint.
  absl::Status Explain(absl::Status status) const;

  // Blocks until no call uses `model`, which is in service no more.
  void AwaitUnused(const ServedModel* model) const;

  Phase phase() const { return phase_.load(std::memory_order_acquire); }
  bool flash_healthy() const { return flash_healthy_.load(std::memory_order_acquire); }
  // What health checks are told.
  bool ready() const { return phase() == Phase::kReady && flash_healthy(); }
  double load_progress() const { return load_progress_.load(std::memory_order_relaxed); }  // 0 to 1
  // The model in service; null while loading, stays while draining.
  ModelUse model() const;
  // The one that was in service before, while calls still use it; else null.
  ModelUse former() const;

 private:
  // Puts `model` (null: none) in the place of the one in service.
  void Exchange(ModelUse model);

  const std::function<void(bool)> on_serving_;
  absl::Mutex mutex_;  // held through a change and its on_serving_
  std::atomic<Phase> phase_{Phase::kLoading};
  std::atomic<bool> flash_healthy_{true};
  std::atomic<double> load_progress_{0};
  // Never held while anything else is called: giving up a hold takes it.
  mutable absl::Mutex model_mutex_;
  std::multiset<const ServedModel*> used_ ABSL_GUARDED_BY(model_mutex_);  // before the holds, whose end it hears of
  std::weak_ptr<const ServedModel> former_ ABSL_GUARDED_BY(model_mutex_);
  ModelUse model_ ABSL_GUARDED_BY(model_mutex_);
};

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_LIFECYCLE_H_
