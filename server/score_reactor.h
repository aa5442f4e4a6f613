// One Score call: collects the engine's events into the one answer.
#ifndef EMBERGATE_SERVER_SCORE_REACTOR_H_
#define EMBERGATE_SERVER_SCORE_REACTOR_H_

#include <utility>
#include <vector>

#include "embergate/v1/score.pb.h"
#include "server/unary_reactor.h"

namespace embergate::server {

class ScoreReactor final : public UnaryReactor {
 public:
  // Borrows `context`, `lifecycle` and `response`.
  ScoreReactor(grpc::CallbackServerContext* context, const Lifecycle& lifecycle, v1::ScoreResponse* response,
               CallRecord record)
      : UnaryReactor(context, lifecycle, std::move(record)), response_(response) {}

  void Start(ModelUse model, engine::GenerateRequest request, absl::FunctionRef<absl::Status(absl::Status)> refusal);

  // engine::TokenSink
  void OnPrompt(std::vector<engine::PositionLogprobs> logprobs) override;
  void OnTokens(engine::TokenEvent event) override;

 private:
  void Complete(const engine::FinishEvent& event) override;

  v1::ScoreResponse* const response_;
};

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_SCORE_REACTOR_H_
