#include "server/unary_reactor.h"

#include "server/status_mapping.h"

namespace embergate::server {

UnaryReactor::~UnaryReactor() {
  // Whoever was the last to hold the mutex has left it.
  absl::MutexLock lock(&mutex_);
}

void UnaryReactor::Start(ModelUse model, engine::GenerateRequest request,
                         absl::FunctionRef<absl::Status(absl::Status)> refusal) {
  {
    absl::MutexLock lock(&mutex_);
    model_ = model;
  }
  // gRPC calls no reaction, OnDone least of all, before the handler that called us has returned: the object stays
  // even if the engine finishes at once.
  absl::StatusOr<engine::RequestId> id = model->engine->Submit(std::move(request), this);
  {
    absl::MutexLock lock(&mutex_);
    if (id.ok()) {
      id_ = *id;
      return;
    }
    model_.reset();
  }
  Refuse(refusal(id.status()));
}

void UnaryReactor::Refuse(const absl::Status& status) { FinishWith(status, nullptr); }

void UnaryReactor::OnFinish(engine::FinishEvent event) {
  ModelUse model;  // Complete needs it still
  {
    absl::MutexLock lock(&mutex_);
    model = std::move(model_);
  }
  absl::Status status = lifecycle_.Explain(event.status);
  if (status.ok() && event.reason == engine::FinishReason::kCancelled) {
    status = absl::CancelledError("the call was cancelled");
  }
  if (status.ok()) {
    Complete(event);
  }
  model.reset();  // before the call ends: after it, the server may be gone, which hears of the end of holds
  FinishWith(status, &event);
}

void UnaryReactor::OnCancel() {
  std::optional<engine::RequestId> id;
  ModelUse model;
  {
    absl::MutexLock lock(&mutex_);
    id = id_;
    model = model_;
  }
  if (id.has_value() && model != nullptr) {
    model->engine->Cancel(*id);
  }
}

void UnaryReactor::OnDone() { delete this; }

void UnaryReactor::FinishWith(const absl::Status& status, const engine::FinishEvent* event) {
  AddRetryTrailer(status, *context_);
  grpc::Status sent = ToGrpc(status);
  record_.Finish(status, sent, event);
  Finish(std::move(sent));
}

}  // namespace embergate::server
