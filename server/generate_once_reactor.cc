#include "server/generate_once_reactor.h"

#include "server/response_builder.h"

namespace embergate::server {

void GenerateOnceReactor::Start(ModelUse model, engine::GenerateRequest request,
                                std::vector<std::unique_ptr<engine::AnswerParser>> parsers,
                                absl::FunctionRef<absl::Status(absl::Status)> refusal) {
  parsers.resize(static_cast<size_t>(request.completions));
  for (size_t i = 0; i < parsers.size(); ++i) {
    answers_.emplace_back(static_cast<int>(i), std::move(parsers[i]));
    response_->add_answers();  // each has its place, in whatever order they end
  }
  FillStarted(request, record().request_id(), *response_->mutable_started());
  UnaryReactor::Start(std::move(model), std::move(request), refusal);
}

void GenerateOnceReactor::OnPrompt(std::vector<engine::PositionLogprobs> logprobs) {
  for (const engine::PositionLogprobs& position : logprobs) {
    FillLogprobs(position, *response_->add_prompt_logprobs());
  }
}

void GenerateOnceReactor::OnTokens(engine::TokenEvent event) {
  answers_[static_cast<size_t>(event.completion)].Push(event);
}

void GenerateOnceReactor::OnCompletion(engine::FinishEvent event) { EndAnswer(event); }

void GenerateOnceReactor::Complete(const engine::FinishEvent& event) {
  if (answers_.size() == 1) {
    EndAnswer(event);
  }
  FillUsage(event.receipt, *response_->mutable_usage());
  FillReceipt(event.receipt, *response_->mutable_receipt());
}

void GenerateOnceReactor::EndAnswer(const engine::FinishEvent& event) {
  AnswerBuilder& answer = answers_[static_cast<size_t>(event.completion)];
  answer.Finish();
  FillAnswer(event, answers_.size() > 1, answer.Take(), *response_->mutable_answers(event.completion));
}

}  // namespace embergate::server
