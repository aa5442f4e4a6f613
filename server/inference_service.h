// The embergate.v1.Inference service: each method asks the gatekeeper, checks whether requests are taken, parses, and
// makes a reactor.
#ifndef EMBERGATE_SERVER_INFERENCE_SERVICE_H_
#define EMBERGATE_SERVER_INFERENCE_SERVICE_H_

#include <grpcpp/grpcpp.h>

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "embergate/v1/inference.grpc.pb.h"
#include "engine/request.h"
#include "engine/text/answer_parser.h"
#include "server/call_record.h"
#include "server/gatekeeper.h"
#include "server/lifecycle.h"
#include "server/request_parser.h"
#include "server/server_stats.h"

namespace embergate::server {

struct ServiceOptions {
  RequestLimits limits;
  // Answer bytes that may wait for a slow reader, per stream; past them the stream ends.
  size_t pending_bytes_max = 1 << 20;
  // Log the requests themselves, at level debug.
  bool log_prompts = false;
};

// Threads: gRPC's, several at once. Borrows `lifecycle`, `gatekeeper` and `stats`, which outlive the gRPC server.
class InferenceService final : public v1::Inference::CallbackService {
 public:
  InferenceService(const Lifecycle& lifecycle, const Gatekeeper& gatekeeper, ServerStats& stats,
                   const ServiceOptions& options)
      : lifecycle_(lifecycle), gatekeeper_(gatekeeper), stats_(stats), options_(options) {}

  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(grpc::CallbackServerContext* context,
                                                           const v1::GenerateRequest* request) override;
  grpc::ServerUnaryReactor* GenerateOnce(grpc::CallbackServerContext* context, const v1::GenerateRequest* request,
                                         v1::GenerateOnceResponse* response) override;
  grpc::ServerUnaryReactor* Score(grpc::CallbackServerContext* context, const v1::ScoreRequest* request,
                                  v1::ScoreResponse* response) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context, const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context, const v1::DetokenizeRequest* request,
                                       v1::DetokenizeResponse* response) override;
  grpc::ServerUnaryReactor* GetModelInfo(grpc::CallbackServerContext* context, const v1::GetModelInfoRequest* request,
                                         v1::GetModelInfoResponse* response) override;

 private:
  // What a request becomes before the engine gets it.
  struct Generation {
    ModelUse model;
    engine::GenerateRequest request;
    std::vector<std::unique_ptr<engine::AnswerParser>> parsers;  // one per answer, or none at all
  };
  using Parser = decltype(&ParseGenerateRequest);
  absl::StatusOr<Generation> Prepare(const grpc::CallbackServerContext& context, Method method,
                                     const v1::GenerateRequest& request, Parser parse, CallTicket& ticket) const;
  // What a client hears when the engine refuses a request.
  static absl::Status Refusal(absl::Status status);
  CallRecord Record(Method method, const grpc::CallbackServerContext& context, const std::string& request_id,
                    bool streaming) const {
    return CallRecord(method, IdentityOf(context, request_id), gatekeeper_.Enter(context, streaming), &stats_);
  }
  // A call that needs no engine: `compute` gives its answer, if the gatekeeper lets it in and the model is there.
  grpc::ServerUnaryReactor* Reply(grpc::CallbackServerContext* context, Method method,
                                  absl::FunctionRef<absl::Status(const ServedModel& model)> compute);

  const Lifecycle& lifecycle_;
  const Gatekeeper& gatekeeper_;
  ServerStats& stats_;
  const ServiceOptions options_;
};

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_INFERENCE_SERVICE_H_
