// Untrusted JSON files (config.json and its like), bounded in size, depth and number of values.
#ifndef EMBERGATE_ENGINE_CONVERT_JSON_FILE_H_
#define EMBERGATE_ENGINE_CONVERT_JSON_FILE_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"

namespace embergate::engine {

// INVALID_ARGUMENT (not JSON, nested deeper than 64, more than 4 million values; names `what`).
absl::StatusOr<nlohmann::json> ParseJson(absl::string_view text, absl::string_view what);
// Reads and parses a file of at most `bytes_max`. NOT_FOUND, PERMISSION_DENIED, INVALID_ARGUMENT (above, or larger).
absl::StatusOr<nlohmann::json> ReadJsonFile(const std::string& path, uint64_t bytes_max);

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_CONVERT_JSON_FILE_H_
