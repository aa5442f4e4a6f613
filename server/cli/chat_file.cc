#include "server/cli/chat_file.h"

#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/text/chat.h"
#include "engine/text/json_util.h"
#include "nlohmann/json.hpp"
#include "server/cli/tools_file.h"
#include "storage/base/status_macros.h"

namespace embergate::server {
namespace {

using ::nlohmann::json;

v1::ChatMessage::Role RoleOf(const std::string& name) {
  return name == "system"      ? v1::ChatMessage::ROLE_SYSTEM
         : name == "developer" ? v1::ChatMessage::ROLE_DEVELOPER
         : name == "user"      ? v1::ChatMessage::ROLE_USER
         : name == "tool"      ? v1::ChatMessage::ROLE_TOOL
                               : v1::ChatMessage::ROLE_ASSISTANT;  // "assistant" and "model"
}

std::string Dump(const json& value) { return value.dump(-1, ' ', false, json::error_handler_t::replace); }

absl::Status FillMessage(const engine::ChatMessage& from, const std::string& where, v1::ChatMessage& to) {
  to.set_role(RoleOf(from.role));
  to.set_content(from.content);
  if (from.parts.has_value()) {
    for (const engine::ChatPart& part : *from.parts) {
      to.mutable_content()->append(part.text);
    }
  }
  to.set_thinking(from.reasoning);
  for (const engine::ChatToolCall& call : from.tool_calls) {
    v1::ToolCall& out = *to.add_tool_calls();
    out.set_id(call.id);
    out.set_name(call.name);
    out.set_arguments_json(call.arguments.is_null() ? "{}" : Dump(call.arguments));
  }
  to.set_tool_call_id(from.tool_call_id);
  if (to.role() == v1::ChatMessage::ROLE_TOOL) {
    to.set_tool_name(from.tool_name);
    if (from.result.has_value()) {
      (from.result->is_object() ? *to.mutable_tool_result_json() : *to.mutable_content()) = Dump(*from.result);
    }
  }
  if (!from.tool_responses.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, ".tool_responses cannot be sent: give each result as a message of role 'tool'"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<v1::ChatInput> ChatInputFromJson(absl::string_view text) {
  EMBERGATE_ASSIGN_OR_RETURN(const json input, engine::ParseBoundedJson(text));
  EMBERGATE_ASSIGN_OR_RETURN(const engine::ChatRequest request, engine::ParseChatRequest(input));
  if (!request.add_generation_prompt) {
    return absl::InvalidArgumentError("add_generation_prompt is false: without it the model has no turn to answer in");
  }
  v1::ChatInput chat;
  for (size_t i = 0; i < request.messages.size(); ++i) {
    EMBERGATE_RETURN_IF_ERROR(
        FillMessage(request.messages[i], absl::StrCat("messages[", i, "]"), *chat.add_messages()));
  }
  for (size_t i = 0; i < request.tools.size(); ++i) {
    EMBERGATE_RETURN_IF_ERROR(AddTool(request.tools[i], absl::StrCat("tools[", i, "]"), chat));
  }
  chat.set_enable_thinking(request.enable_thinking);
  chat.set_preserve_thinking(request.preserve_thinking);
  return chat;
}

}  // namespace embergate::server
