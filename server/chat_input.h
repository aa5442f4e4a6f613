// ChatInput to token ids: bounds, JSON fields, then the model's own format.
#ifndef EMBERGATE_SERVER_CHAT_INPUT_H_
#define EMBERGATE_SERVER_CHAT_INPUT_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "embergate/v1/input.pb.h"
#include "engine/text/answer_parser.h"
#include "server/request_parser.h"
#include "server/served_model.h"
#include "server/violations.h"

namespace embergate::server {

// Adds to `violations` and returns no ids where the request is wrong; FAILED_PRECONDITION where the model has no
// chat format or no tokenizer.
absl::StatusOr<std::vector<int32_t>> ChatToIds(const v1::ChatInput& proto, const ServedModel& model,
                                               const RequestLimits& limits, Violations& violations);

// For the answer to a chat prompt: takes it apart into thinking, answer and tool calls. `prompt` may end inside an open
// thinking channel.
std::unique_ptr<engine::AnswerParser> MakeAnswerParser(const engine::Tokenizer& tokenizer,
                                                       const std::vector<int32_t>& prompt);

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_CHAT_INPUT_H_
