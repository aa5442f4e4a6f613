#include "server/inference_service.h"

#include <exception>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "engine/retry_after.h"
#include "server/chat_input.h"
#include "server/generate_once_reactor.h"
#include "server/generate_reactor.h"
#include "server/logging.h"
#include "server/response_builder.h"
#include "server/score_reactor.h"
#include "server/status_mapping.h"
#include "storage/base/status_macros.h"

namespace embergate::server {
namespace {

uint64_t RandomSeed() {
  std::random_device device;
  return (uint64_t{device()} << 32) | device();
}

// Runs `parse`, which returns a StatusOr. An exception here could only be one of the JSON library's or bad_alloc; it
// ends this call, not the server.
template <typename Parse>
auto Guarded(const Parse& parse) -> decltype(parse()) {
  try {
    return parse();
  } catch (const std::exception& error) {
    return absl::InternalError(error.what());
  }
}

// What calls from one address share: the address without its port.
std::string PeerKey(const grpc::CallbackServerContext& context) {
  const std::string peer = context.peer();
  const size_t colon = peer.rfind(':');
  return absl::StrCat("peer ",
                      absl::StartsWith(peer, "ipv") && colon != std::string::npos ? peer.substr(0, colon) : peer);
}

// What the call says, rather than the message.
void SetCaller(const grpc::CallbackServerContext& context, engine::GenerateRequest& request) {
  request.deadline = absl::FromChrono(context.deadline());
  if (request.client_key.empty()) {
    request.client_key = PeerKey(context);
  }
}

// Only where --log-prompts asks for it.
void LogPrompt(Method method, const google::protobuf::Message& request) {
  LogEvent(spdlog::level::debug, "prompt",
           {{"method", kMethodNames[static_cast<size_t>(method)]}, {"request", request.ShortDebugString()}});
}

}  // namespace

grpc::ServerWriteReactor<v1::GenerateResponse>* InferenceService::Generate(grpc::CallbackServerContext* context,
                                                                           const v1::GenerateRequest* request) {
  CallRecord record = Record(Method::kGenerate, *context, request->request_id(), /*streaming=*/true);
  CallTicket& ticket = record.ticket();  // the record's, until the call ends
  auto* reactor = new GenerateReactor(context, lifecycle_, std::move(record), options_.pending_bytes_max);
  absl::StatusOr<Generation> generation = Prepare(*context, Method::kGenerate, *request, ParseGenerateRequest, ticket);
  if (!generation.ok()) {
    reactor->Refuse(generation.status());
    return reactor;
  }
  reactor->Start(std::move(generation->model), std::move(generation->request), std::move(generation->parsers), Refusal);
  return reactor;
}

grpc::ServerUnaryReactor* InferenceService::GenerateOnce(grpc::CallbackServerContext* context,
                                                         const v1::GenerateRequest* request,
                                                         v1::GenerateOnceResponse* response) {
  CallRecord record = Record(Method::kGenerateOnce, *context, request->request_id(), /*streaming=*/true);
  CallTicket& ticket = record.ticket();  // the record's, until the call ends
  auto* reactor = new GenerateOnceReactor(context, lifecycle_, response, std::move(record));
  absl::StatusOr<Generation> generation =
      Prepare(*context, Method::kGenerateOnce, *request, ParseGenerateOnceRequest, ticket);
  if (!generation.ok()) {
    reactor->Refuse(generation.status());
    return reactor;
  }
  reactor->Start(std::move(generation->model), std::move(generation->request), std::move(generation->parsers), Refusal);
  return reactor;
}

grpc::ServerUnaryReactor* InferenceService::Score(grpc::CallbackServerContext* context, const v1::ScoreRequest* request,
                                                  v1::ScoreResponse* response) {
  CallRecord record = Record(Method::kScore, *context, request->request_id(), /*streaming=*/true);
  CallTicket& ticket = record.ticket();  // the record's, until the call ends
  auto* reactor = new ScoreReactor(context, lifecycle_, response, std::move(record));
  ModelUse model;
  absl::StatusOr<engine::GenerateRequest> parsed = Guarded([&]() -> absl::StatusOr<engine::GenerateRequest> {
    EMBERGATE_RETURN_IF_ERROR(ticket.status());
    EMBERGATE_ASSIGN_OR_RETURN(model, lifecycle_.Serving());
    EMBERGATE_ASSIGN_OR_RETURN(engine::GenerateRequest score, ParseScoreRequest(*request, *model, options_.limits));
    EMBERGATE_RETURN_IF_ERROR(ticket.Admit(request->priority(), model->limits.context_max, score));
    if (options_.log_prompts) {
      LogPrompt(Method::kScore, *request);
    }
    return score;
  });
  if (!parsed.ok()) {
    reactor->Refuse(parsed.status());
    return reactor;
  }
  SetCaller(*context, *parsed);
  reactor->Start(std::move(model), *std::move(parsed), Refusal);
  return reactor;
}

grpc::ServerUnaryReactor* InferenceService::Tokenize(grpc::CallbackServerContext* context,
                                                     const v1::TokenizeRequest* request,
                                                     v1::TokenizeResponse* response) {
  return Reply(context, Method::kTokenize, [&](const ServedModel& model) -> absl::Status {
    EMBERGATE_ASSIGN_OR_RETURN(std::vector<int32_t> ids, ParseTokenizeRequest(*request, model, options_.limits));
    if (request->with_pieces()) {
      for (const int32_t id : ids) {
        response->add_pieces(std::string(model.tokenizer->Piece(id)));
      }
    }
    response->mutable_ids()->Assign(ids.begin(), ids.end());
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* InferenceService::Detokenize(grpc::CallbackServerContext* context,
                                                       const v1::DetokenizeRequest* request,
                                                       v1::DetokenizeResponse* response) {
  return Reply(context, Method::kDetokenize, [&](const ServedModel& model) -> absl::Status {
    EMBERGATE_ASSIGN_OR_RETURN(std::vector<int32_t> ids, ParseDetokenizeRequest(*request, model));
    response->set_text(model.tokenizer->Decode(ids, request->special()));
    return absl::OkStatus();
  });
}

grpc::ServerUnaryReactor* InferenceService::GetModelInfo(grpc::CallbackServerContext* context,
                                                         const v1::GetModelInfoRequest* /*request*/,
                                                         v1::GetModelInfoResponse* response) {
  return Reply(context, Method::kGetModelInfo, [&](const ServedModel& model) {
    FillModelInfo(model, options_.limits, *response);
    return absl::OkStatus();
  });
}

absl::StatusOr<InferenceService::Generation> InferenceService::Prepare(const grpc::CallbackServerContext& context,
                                                                       Method method,
                                                                       const v1::GenerateRequest& request, Parser parse,
                                                                       CallTicket& ticket) const {
  return Guarded([&]() -> absl::StatusOr<Generation> {
    EMBERGATE_RETURN_IF_ERROR(ticket.status());
    Generation generation;
    EMBERGATE_ASSIGN_OR_RETURN(generation.model, lifecycle_.Serving());
    EMBERGATE_ASSIGN_OR_RETURN(generation.request, parse(request, *generation.model, options_.limits, RandomSeed()));
    EMBERGATE_RETURN_IF_ERROR(
        ticket.Admit(request.priority(), generation.model->limits.context_max, generation.request));
    SetCaller(context, generation.request);
    if (options_.log_prompts) {
      LogPrompt(method, request);
    }
    // With special_in_text the client wants to see the markers themselves.
    if (request.has_chat() && !request.special_in_text()) {
      for (int i = 0; i < generation.request.completions; ++i) {
        generation.parsers.push_back(MakeAnswerParser(*generation.model->tokenizer, generation.request.prompt));
      }
    }
    return generation;
  });
}

absl::Status InferenceService::Refusal(absl::Status status) {
  std::optional<absl::Duration> retry_after = engine::RetryAfter(status);
  if (absl::IsUnavailable(status)) {
    retry_after = retry_after.value_or(absl::Seconds(1));
  }
  if (const std::optional<std::string> reason = engine::RefusalReason(status); reason.has_value()) {
    status = WithReason(std::move(status), *reason);
  }
  return retry_after.has_value() ? WithRetry(std::move(status), *retry_after) : status;
}

grpc::ServerUnaryReactor* InferenceService::Reply(grpc::CallbackServerContext* context, Method method,
                                                  absl::FunctionRef<absl::Status(const ServedModel& model)> compute) {
  CallRecord record = Record(method, *context, "", /*streaming=*/false);
  const absl::Status status = Guarded([&]() -> absl::Status {
    EMBERGATE_RETURN_IF_ERROR(record.ticket().status());
    EMBERGATE_ASSIGN_OR_RETURN(const ModelUse model, lifecycle_.Serving());
    return compute(*model);
  });
  AddRetryTrailer(status, *context);
  grpc::Status sent = ToGrpc(status);
  record.Finish(status, sent, nullptr);
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(std::move(sent));
  return reactor;
}

}  // namespace embergate::server
