// A conversation as a file: what `embergate chat --session` goes on with.
#ifndef EMBERGATE_SERVER_CLI_CHAT_SESSION_H_
#define EMBERGATE_SERVER_CLI_CHAT_SESSION_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "embergate/v1/input.pb.h"
#include "nlohmann/json.hpp"

namespace embergate::server {

// {"messages": [..], "tools": [..]} in the form that chat APIs commonly take: roles system, user, assistant, tool;
// assistant messages may have "tool_calls", tool messages have "tool_call_id". A tool's result that is an object stays
// one.
nlohmann::json SessionJson(const v1::ChatInput& chat);
// The reverse. INVALID_ARGUMENT names the message that is wrong.
absl::StatusOr<v1::ChatInput> ParseSession(const std::string& text);

// Reads ParseSession's text from a file. NOT_FOUND where there is none.
absl::StatusOr<v1::ChatInput> LoadSession(const std::string& path);
// Replaces the file at once: a crash leaves the old or the new one. Readable by its owner only.
absl::Status SaveSession(const v1::ChatInput& chat, const std::string& path);

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_CLI_CHAT_SESSION_H_
