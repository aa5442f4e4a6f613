// From the protobuf requests to the engine's structs: every field is bounded here, so nothing that a client sends
// reaches the engine unchecked. All violations of a request are reported together.
#ifndef EMBERGATE_SERVER_REQUEST_PARSER_H_
#define EMBERGATE_SERVER_REQUEST_PARSER_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "embergate/v1/generate.pb.h"
#include "embergate/v1/score.pb.h"
#include "embergate/v1/tokenize.pb.h"
#include "engine/request.h"
#include "server/served_model.h"

namespace embergate::server {

// Bounds that do not follow from the model. The other constants are stated in the protos' comments.
struct RequestLimits {
  int64_t prompt_bytes_max = 1 << 20;  // all text of one request
};

// Threads: any; the functions are pure but for the seed that the caller draws. Errors: INVALID_ARGUMENT with
// BadRequest, FAILED_PRECONDITION (the loaded model cannot do that). Messages never quote the prompt.
// `random_seed` is used when the request sets none.
absl::StatusOr<engine::GenerateRequest> ParseGenerateRequest(const v1::GenerateRequest& proto, const ServedModel& model,
                                                             const RequestLimits& limits, uint64_t random_seed);

// The same for GenerateOnce, whose answer has to fit in one message.
absl::StatusOr<engine::GenerateRequest> ParseGenerateOnceRequest(const v1::GenerateRequest& proto,
                                                                 const ServedModel& model, const RequestLimits& limits,
                                                                 uint64_t random_seed);

// As a generation of one greedy token with the prompt's log-probabilities: the token's alternatives are what
// ScoreResponse.next reports.
absl::StatusOr<engine::GenerateRequest> ParseScoreRequest(const v1::ScoreRequest& proto, const ServedModel& model,
                                                          const RequestLimits& limits);

absl::StatusOr<std::vector<int32_t>> ParseTokenizeRequest(const v1::TokenizeRequest& proto, const ServedModel& model,
                                                          const RequestLimits& limits);

absl::StatusOr<std::vector<int32_t>> ParseDetokenizeRequest(const v1::DetokenizeRequest& proto,
                                                            const ServedModel& model);

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_REQUEST_PARSER_H_
