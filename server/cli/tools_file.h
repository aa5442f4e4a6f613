// A file that lists functions for the model to call, as client subcommands take it (--tools).
#ifndef EMBERGATE_SERVER_CLI_TOOLS_FILE_H_
#define EMBERGATE_SERVER_CLI_TOOLS_FILE_H_

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "embergate/v1/input.pb.h"
#include "nlohmann/json.hpp"

namespace embergate::server {

// Adds one tool: {"type":"function","function":{"name":..,"description":..,"parameters":SCHEMA}}, what chat APIs
// commonly take, or that inner object alone. INVALID_ARGUMENT says what of `where` is wrong. What a name or a schema
// may be is for the server to check.
absl::Status AddTool(const nlohmann::json& element, const std::string& where, v1::ChatInput& chat);
// Adds the tools of a JSON text to `chat`: a list of such, or an object with one under "tools".
absl::Status AddTools(absl::string_view json, v1::ChatInput& chat);
// The same of a file; errors name it.
absl::Status AddToolsFile(const std::string& path, v1::ChatInput& chat);

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_CLI_TOOLS_FILE_H_
