// The chat templates run in Python; where they print or trim a value, its rules show in the prompt. These are the few
// that matter.
#ifndef EMBERGATE_ENGINE_TEXT_PYTHON_TEXT_H_
#define EMBERGATE_ENGINE_TEXT_PYTHON_TEXT_H_

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"

namespace embergate::engine {

// str.strip(): Unicode white space off both ends.
absl::string_view PythonStrip(absl::string_view text);
// str(value): True, None, 1.5, 1e-05, ['a', 1]. `value` is not nested deeper than the caller has checked.
std::string PythonStr(const nlohmann::json& value);
// str.upper() and str.lower() of ASCII letters and of the Latin, Greek, Cyrillic and Armenian ones that have a case
// counterpart of one letter at a fixed distance.
std::string PythonUpper(absl::string_view text);
std::string PythonLower(absl::string_view text);
// bool(value).
bool PythonTrue(const nlohmann::json& value);
// The entries of an object in the order of Jinja's dictsort: by key, upper and lower case as one.
std::vector<std::pair<std::string, const nlohmann::json*>> DictSort(const nlohmann::json& object);

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_TEXT_PYTHON_TEXT_H_
