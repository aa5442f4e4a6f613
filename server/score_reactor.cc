#include "server/score_reactor.h"

#include "server/response_builder.h"

namespace embergate::server {

void ScoreReactor::Start(ModelUse model, engine::GenerateRequest request,
                         absl::FunctionRef<absl::Status(absl::Status)> refusal) {
  response_->mutable_ids()->Assign(request.prompt.begin(), request.prompt.end());
  UnaryReactor::Start(std::move(model), std::move(request), refusal);
}

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

void ScoreReactor::Complete(const engine::FinishEvent& event) {
  FillReceipt(event.receipt, *response_->mutable_receipt());
}

}  // namespace embergate::server
