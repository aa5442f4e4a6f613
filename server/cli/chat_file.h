// A conversation as JSON, the form that `embergate render` takes and most clients of other servers have on file, for
// the API's ChatInput.
#ifndef EMBERGATE_SERVER_CLI_CHAT_FILE_H_
#define EMBERGATE_SERVER_CLI_CHAT_FILE_H_

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "embergate/v1/input.pb.h"

namespace embergate::server {

// `text` is an object with "messages" and, if wanted, "tools", "enable_thinking" and "preserve_thinking"; tool-call
// arguments may be objects or strings that hold one. INVALID_ARGUMENT names the field that is wrong, or that the API
// has no place for.
absl::StatusOr<v1::ChatInput> ChatInputFromJson(absl::string_view text);

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_CLI_CHAT_FILE_H_
