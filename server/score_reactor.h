// One Score call: collects the engine's events into the one answer.
#ifndef EMBERGATE_SERVER_SCORE_REACTOR_H_
#define EMBERGATE_SERVER_SCORE_REACTOR_H_

#include <grpcpp/grpcpp.h>

#include <optional>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "embergate/v1/score.pb.h"
#include "engine/engine.h"
#include "engine/token_sink.h"
#include "server/call_record.h"
#include "server/lifecycle.h"

namespace embergate::server {

// As GenerateReactor: alive as the engine's sink from a successful Submit until OnFinish, which is what finishes the
// call. `response` belongs to gRPC and may be written until then; only the engine thread does.
class ScoreReactor final : public grpc::ServerUnaryReactor, public engine::TokenSink {
 public:
  // Borrows `context`, `lifecycle` and `response`.
  ScoreReactor(grpc::CallbackServerContext* context, const Lifecycle& lifecycle, v1::ScoreResponse* response,
               CallRecord record)
      : context_(context), lifecycle_(lifecycle), response_(response), record_(std::move(record)) {}
  ~ScoreReactor() override;

  // Either of these once, from the RPC's handler.
  void Start(engine::Engine& engine, engine::GenerateRequest request,
             absl::FunctionRef<absl::Status(absl::Status)> refusal);
  void Refuse(const absl::Status& status);

  // engine::TokenSink
  void OnStart(int prompt_tokens) override;
  void OnPrompt(std::vector<engine::PositionLogprobs> logprobs) override;
  void OnTokens(engine::TokenEvent event) override;
  void OnFinish(engine::FinishEvent event) override;

  // grpc::ServerUnaryReactor
  void OnCancel() override;
  void OnDone() override;

 private:
  void FinishWith(const absl::Status& status, const engine::FinishEvent* event);

  grpc::CallbackServerContext* const context_;
  const Lifecycle& lifecycle_;
  v1::ScoreResponse* const response_;
  CallRecord record_;
  engine::Engine* engine_ = nullptr;

  absl::Mutex mutex_;
  std::optional<engine::RequestId> id_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_SCORE_REACTOR_H_
