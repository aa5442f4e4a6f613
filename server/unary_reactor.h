// What the unary calls that the engine answers have in common: the way into it and out of it.
#ifndef EMBERGATE_SERVER_UNARY_REACTOR_H_
#define EMBERGATE_SERVER_UNARY_REACTOR_H_

#include <grpcpp/grpcpp.h>

#include <optional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "engine/engine.h"
#include "engine/token_sink.h"
#include "server/call_record.h"
#include "server/lifecycle.h"

namespace embergate::server {

// As GenerateReactor: alive as the engine's sink from a successful Submit until OnFinish, which is what finishes the
// call. The response belongs to gRPC and may be written until then; only the engine thread does, in the sink's methods
// that derived classes add.
class UnaryReactor : public grpc::ServerUnaryReactor, public engine::TokenSink {
 public:
  // Borrows `context` and `lifecycle`.
  UnaryReactor(grpc::CallbackServerContext* context, const Lifecycle& lifecycle, CallRecord record)
      : context_(context), lifecycle_(lifecycle), record_(std::move(record)) {}
  ~UnaryReactor() override;

  // Either of these once, from the RPC's handler. Start submits the request to the model's engine; if that refuses it,
  // the call ends with `refusal(status)`. The model is held until the engine has ended the request.
  void Start(ModelUse model, engine::GenerateRequest request, absl::FunctionRef<absl::Status(absl::Status)> refusal);
  void Refuse(const absl::Status& status);

  // engine::TokenSink
  void OnStart(int /*prompt_tokens*/) final {}
  void OnFinish(engine::FinishEvent event) final;

  // grpc::ServerUnaryReactor
  void OnCancel() final;
  void OnDone() final;

 protected:
  const CallRecord& record() const { return record_; }

  // The generation has ended well: adds to the response what is still missing.
  virtual void Complete(const engine::FinishEvent& event) = 0;

 private:
  void FinishWith(const absl::Status& status, const engine::FinishEvent* event);

  grpc::CallbackServerContext* const context_;
  const Lifecycle& lifecycle_;
  CallRecord record_;

  absl::Mutex mutex_;
  ModelUse model_ ABSL_GUARDED_BY(mutex_);  // null when the engine has nothing to do with it
  std::optional<engine::RequestId> id_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_UNARY_REACTOR_H_
