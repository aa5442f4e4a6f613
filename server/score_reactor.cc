#include "server/score_reactor.h"

#include "server/response_builder.h"
#include "server/status_mapping.h"

namespace embergate::server {

ScoreReactor::~ScoreReactor() {
  // Whoever was the last to hold the mutex has left it.
  absl::MutexLock lock(&mutex_);
}

void ScoreReactor::Start(engine::Engine& engine, engine::GenerateRequest request,
                         absl::FunctionRef<absl::Status(absl::Status)> refusal) {
  engine_ = &engine;
  response_->mutable_ids()->Assign(request.prompt.begin(), request.prompt.end());
  // gRPC calls no reaction, OnDone least of all, before the handler that called us has returned: the object stays
  // even if the engine finishes at once.
  absl::StatusOr<engine::RequestId> id = engine.Submit(std::move(request), this);
  if (!id.ok()) {
    Refuse(refusal(id.status()));
    return;
  }
  absl::MutexLock lock(&mutex_);
  id_ = *id;
}

void ScoreReactor::Refuse(const absl::Status& status) { FinishWith(status, nullptr); }

void ScoreReactor::OnStart(int /*prompt_tokens*/) {}

void ScoreReactor::OnPrompt(std::vector<engine::PositionLogprobs> logprobs) {
  for (const engine::PositionLogprobs& position : logprobs) {
    FillLogprobs(position, *response_->add_positions());
  }
}

void ScoreReactor::OnTokens(engine::TokenEvent event) {
  if (event.logprobs.empty() || response_->next_size() > 0) {
    return;
  }
  for (const engine::TokenLogprob& token : event.logprobs.front().top) {
    v1::TokenLogprob& proto = *response_->add_next();
    proto.set_id(token.id);
    proto.set_logprob(token.logprob);
  }
}

void ScoreReactor::OnFinish(engine::FinishEvent event) {
  absl::Status status = lifecycle_.Explain(event.status);
  if (status.ok() && event.reason == engine::FinishReason::kCancelled) {
    status = absl::CancelledError("the call was cancelled");
  }
  FillReceipt(event.receipt, *response_->mutable_receipt());
  FinishWith(status, &event);
}

void ScoreReactor::OnCancel() {
  std::optional<engine::RequestId> id;
  {
    absl::MutexLock lock(&mutex_);
    id = id_;
  }
  if (id.has_value()) {
    engine_->Cancel(*id);
  }
}

void ScoreReactor::OnDone() { delete this; }

void ScoreReactor::FinishWith(const absl::Status& status, const engine::FinishEvent* event) {
  AddRetryTrailer(status, *context_);
  grpc::Status sent = ToGrpc(status);
  record_.Finish(status, sent.error_code(), event);
  Finish(std::move(sent));
}

}  // namespace embergate::server
