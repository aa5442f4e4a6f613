// JSON from outside: bounded in size and depth, errors instead of exceptions.
#ifndef EMBERGATE_ENGINE_TEXT_JSON_UTIL_H_
#define EMBERGATE_ENGINE_TEXT_JSON_UTIL_H_

#include <cstddef>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"

namespace embergate::engine {

inline constexpr int kJsonDepthMax = 64;

// INVALID_ARGUMENT for what is no JSON or is nested deeper than `depth_max`. Does not recurse.
absl::StatusOr<nlohmann::json> ParseBoundedJson(absl::string_view text, int depth_max = kJsonDepthMax);
// Whether no array or object in `value` lies deeper than `depth_max` (a scalar has depth 0).
bool JsonDepthWithin(const nlohmann::json& value, int depth_max = kJsonDepthMax);

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_TEXT_JSON_UTIL_H_
