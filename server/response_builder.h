// The engine's structs to the protobuf messages of the answers.
#ifndef EMBERGATE_SERVER_RESPONSE_BUILDER_H_
#define EMBERGATE_SERVER_RESPONSE_BUILDER_H_

#include <string>

#include "embergate/v1/generate.pb.h"
#include "embergate/v1/inference.pb.h"
#include "embergate/v1/logprobs.pb.h"
#include "engine/request.h"
#include "engine/token_sink.h"
#include "server/request_parser.h"
#include "server/served_model.h"

namespace embergate::server {

void FillLogprobs(const engine::PositionLogprobs& from, v1::PositionLogprobs& to);
void FillReceipt(const engine::Receipt& from, v1::Receipt& to);
// For a request that the engine takes.
void FillStarted(const engine::GenerateRequest& from, const std::string& request_id, v1::Started& to);
// For one of several answers that ended well.
void FillCompletion(const engine::FinishEvent& from, v1::CompletionFinished& to);
// For a generation that ended well.
void FillFinished(const engine::FinishEvent& from, v1::Finished& to);
// For a whole answer that ended well, of one or of several; its content is moved out of `content`.
void FillAnswer(const engine::FinishEvent& from, bool one_of_several, v1::Delta content, v1::Answer& to);
void FillUsage(const engine::Receipt& from, v1::Usage& to);
void FillSampling(const engine::SamplingParams& from, v1::Sampling& to);
void FillModelInfo(const ServedModel& model, const RequestLimits& limits, v1::GetModelInfoResponse& to);

// "gemma4", "gemma3n".
const char* ChatFormatName(engine::ChatFormat format);

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_RESPONSE_BUILDER_H_
