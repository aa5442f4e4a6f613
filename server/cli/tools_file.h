// A file that lists functions for the model to call, as client subcommands take it (--tools).
#ifndef EMBERGATE_SERVER_CLI_TOOLS_FILE_H_
#define EMBERGATE_SERVER_CLI_TOOLS_FILE_H_

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "embergate/v1/input.pb.h"

namespace embergate::server {

// Adds the tools of a JSON text to `chat`: a list, or an object with one under "tools"; its elements are what chat APIs
// commonly take, {"type":"function","function":{"name":..,"description":..,"parameters":SCHEMA}}, or that inner object
// alone. INVALID_ARGUMENT names the element that is wrong. What a name or a schema may be is for the server to check.
absl::Status AddTools(absl::string_view json, v1::ChatInput& chat);
// The same of a file; errors name it.
absl::Status AddToolsFile(const std::string& path, v1::ChatInput& chat);

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_CLI_TOOLS_FILE_H_
