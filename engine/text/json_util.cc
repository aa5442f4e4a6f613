#include "engine/text/json_util.h"

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace embergate::engine {

using ::nlohmann::json;

absl::StatusOr<json> ParseBoundedJson(absl::string_view text, int depth_max) {
  // Brackets outside strings, counted before the parser runs: it would build the nested values first.
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') {
        ++i;
      } else if (c == '"') {
        in_string = false;
      }
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      if (++depth > depth_max) {
        return absl::InvalidArgumentError(absl::StrCat("JSON nested deeper than ", depth_max));
      }
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
  json value = json::parse(text.begin(), text.end(), /*cb=*/nullptr, /*allow_exceptions=*/false);
  if (value.is_discarded()) {
    return absl::InvalidArgumentError("not valid JSON");
  }
  return value;
}

bool JsonDepthWithin(const json& value, int depth_max) {
  if (!value.is_structured()) {
    return true;
  }
  return depth_max > 0 && std::all_of(value.begin(), value.end(), [depth_max](const json& element) {
           return JsonDepthWithin(element, depth_max - 1);
         });
}

}  // namespace embergate::engine
