// One GenerateOnce call: what Generate streams, collected into the one answer.
#ifndef EMBERGATE_SERVER_GENERATE_ONCE_REACTOR_H_
#define EMBERGATE_SERVER_GENERATE_ONCE_REACTOR_H_

#include <memory>
#include <utility>
#include <vector>

#include "embergate/v1/generate.pb.h"
#include "server/answer_builder.h"
#include "server/unary_reactor.h"

namespace embergate::server {

class GenerateOnceReactor final : public UnaryReactor {
 public:
  // Borrows `context`, `lifecycle` and `response`.
  GenerateOnceReactor(grpc::CallbackServerContext* context, const Lifecycle& lifecycle,
                      v1::GenerateOnceResponse* response, CallRecord record)
      : UnaryReactor(context, lifecycle, std::move(record)), response_(response) {}

  // `parsers`, one per completion or none at all: see AnswerBuilder.
  void Start(ModelUse model, engine::GenerateRequest request,
             std::vector<std::unique_ptr<engine::AnswerParser>> parsers,
             absl::FunctionRef<absl::Status(absl::Status)> refusal);

  // engine::TokenSink
  void OnPrompt(std::vector<engine::PositionLogprobs> logprobs) override;
  void OnTokens(engine::TokenEvent event) override;
  void OnCompletion(engine::FinishEvent event) override;

 private:
  void Complete(const engine::FinishEvent& event) override;
  void EndAnswer(const engine::FinishEvent& event);

  v1::GenerateOnceResponse* const response_;
  std::vector<AnswerBuilder> answers_;  // the engine thread's, once submitted
};

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_GENERATE_ONCE_REACTOR_H_
