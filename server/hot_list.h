// The hot list: which tokens' rows were in the row cache, most used first, so that the next start begins with them. A
// small JSON file; it says which tokens were used lately, in no order of time.
#ifndef EMBERGATE_SERVER_HOT_LIST_H_
#define EMBERGATE_SERVER_HOT_LIST_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/model/decoder_model.h"

namespace embergate::server {

// Replaces the file as a whole or not at all. UNAVAILABLE if it cannot be written.
absl::Status SaveHotList(const std::string& path, const engine::ModelInfo& model, const std::vector<int32_t>& tokens);

// NOT_FOUND without such a file, INVALID_ARGUMENT for one that is not a hot list, FAILED_PRECONDITION for that of
// another model: its ids mean other words here.
absl::StatusOr<std::vector<int32_t>> LoadHotList(const std::string& path, const engine::ModelInfo& model);

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_HOT_LIST_H_
