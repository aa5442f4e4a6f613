// ChatInput to token ids: bounds, JSON fields, then the model's own format.
#ifndef EMBERGATE_SERVER_CHAT_INPUT_H_
#define EMBERGATE_SERVER_CHAT_INPUT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "embergate/v1/input.pb.h"
#include "nlohmann/json.hpp"
#include "server/request_parser.h"
#include "server/served_model.h"
#include "server/violations.h"

namespace embergate::server {

// Adds to `violations` and returns no ids where the request is wrong; FAILED_PRECONDITION where the model has no
// chat format or no tokenizer.
absl::StatusOr<std::vector<int32_t>> ChatToIds(const v1::ChatInput& proto, const ServedModel& model,
                                               const RequestLimits& limits, Violations& violations);

// Parses JSON that may come from anyone. Errors say what is wrong without quoting it: not JSON, nested deeper than
// `depth_max`. Does not recurse.
absl::StatusOr<nlohmann::json> ParseUntrustedJson(absl::string_view text, int depth_max);

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_CHAT_INPUT_H_
