// OpenAI-style JSON to a ChatRequest.
#include <algorithm>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/text/chat.h"
#include "engine/text/json_util.h"
#include "storage/base/status_macros.h"

namespace embergate::engine {
namespace {

using ::nlohmann::json;

constexpr absl::string_view kRoles[] = {"system", "developer", "user", "assistant", "model", "tool"};
constexpr absl::string_view kMediaTypes[] = {"image", "image_url", "audio", "input_audio", "video"};

template <typename... Parts>
absl::Status Bad(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(parts...));
}

const json* Find(const json& object, const char* key) {
  const auto it = object.find(key);
  return it == object.end() || it->is_null() ? nullptr : &*it;
}

// "" for an absent or null member.
absl::StatusOr<std::string> StringMember(const json& object, const char* key, const std::string& where) {
  const json* const value = Find(object, key);
  if (value == nullptr) {
    return std::string();
  }
  if (!value->is_string()) {
    return Bad(where, ".", key, " must be a string");
  }
  return value->get<std::string>();
}

absl::StatusOr<bool> BoolMember(const json& object, const char* key, bool fallback) {
  const json* const value = Find(object, key);
  if (value == nullptr) {
    return fallback;
  }
  if (!value->is_boolean()) {
    return Bad(key, " must be true or false");
  }
  return value->get<bool>();
}

absl::StatusOr<std::vector<ChatPart>> ParseParts(const json& list, const ChatParseOptions& options,
                                                 const std::string& where) {
  std::vector<ChatPart> parts;
  for (size_t i = 0; i < list.size(); ++i) {
    const std::string here = absl::StrCat(where, ".content[", i, "]");
    if (!list[i].is_object()) {
      return Bad(here, " must be an object with a 'type'");
    }
    ChatPart part;
    EMBERGATE_ASSIGN_OR_RETURN(part.type, StringMember(list[i], "type", here));
    EMBERGATE_ASSIGN_OR_RETURN(part.text, StringMember(list[i], "text", here));
    const bool media = std::find(std::begin(kMediaTypes), std::end(kMediaTypes), part.type) != std::end(kMediaTypes);
    if (!options.allow_media && part.type != "text") {
      return Bad(here, media ? " is media: this server takes text only" : " must have the type 'text'");
    }
    parts.push_back(std::move(part));
  }
  return parts;
}

absl::StatusOr<json> ParseArguments(const json& function, const ChatParseOptions& options, const std::string& where) {
  const auto it = function.find("arguments");
  if (it != function.end() && (it->is_object() || it->is_null())) {
    return *it;
  }
  if (!options.lenient) {
    return Bad(where, ".function.arguments must be a JSON object, not a string or another value");
  }
  if (it == function.end()) {
    return json();
  }
  if (!it->is_string()) {
    return Bad(where, ".function.arguments must be a JSON object, or a string that holds one");
  }
  const std::string& text = it->get_ref<const std::string&>();
  if (text.empty()) {
    return json();
  }
  absl::StatusOr<json> parsed = ParseBoundedJson(text);
  if (!parsed.ok() || !(parsed->is_object() || parsed->is_null())) {
    return Bad(where, ".function.arguments holds no JSON object: ",
               parsed.ok() ? "another value" : std::string(parsed.status().message()));
  }
  return parsed;
}

absl::Status ParseToolCalls(const json& list, const ChatParseOptions& options, const std::string& where,
                            ChatMessage& message) {
  if (!list.is_array()) {
    return Bad(where, ".tool_calls must be an array");
  }
  for (size_t i = 0; i < list.size(); ++i) {
    const std::string here = absl::StrCat(where, ".tool_calls[", i, "]");
    const json* const function = list[i].is_object() ? Find(list[i], "function") : nullptr;
    if (function == nullptr || !function->is_object()) {
      return Bad(here, " must have an object 'function'");
    }
    ChatToolCall call;
    EMBERGATE_ASSIGN_OR_RETURN(call.id, StringMember(list[i], "id", here));
    EMBERGATE_ASSIGN_OR_RETURN(call.name, StringMember(*function, "name", here));
    if (call.name.empty()) {
      return Bad(here, ".function.name is missing");
    }
    EMBERGATE_ASSIGN_OR_RETURN(call.arguments, ParseArguments(*function, options, here));
    message.tool_calls.push_back(std::move(call));
  }
  return absl::OkStatus();
}

absl::Status ParseToolResponses(const json& list, const std::string& where, ChatMessage& message) {
  if (!list.is_array()) {
    return Bad(where, ".tool_responses must be an array");
  }
  for (size_t i = 0; i < list.size(); ++i) {
    const std::string here = absl::StrCat(where, ".tool_responses[", i, "]");
    if (!list[i].is_object()) {
      return Bad(here, " must be an object");
    }
    ChatToolResponse response;
    EMBERGATE_ASSIGN_OR_RETURN(response.name, StringMember(list[i], "name", here));
    response.response = list[i].value("response", json());
    message.tool_responses.push_back(std::move(response));
  }
  return absl::OkStatus();
}

absl::StatusOr<ChatMessage> ParseMessage(const json& value, const ChatParseOptions& options, const std::string& where) {
  if (!value.is_object()) {
    return Bad(where, " must be an object");
  }
  ChatMessage message;
  EMBERGATE_ASSIGN_OR_RETURN(message.role, StringMember(value, "role", where));
  if (std::find(std::begin(kRoles), std::end(kRoles), message.role) == std::end(kRoles)) {
    return Bad(where, ".role must be one of system, developer, user, assistant, model, tool");
  }
  const json* const content = Find(value, "content");
  if (content == nullptr) {
    message.null_content = true;
  } else if (content->is_string()) {
    message.content = content->get<std::string>();
  } else if (content->is_array()) {
    EMBERGATE_ASSIGN_OR_RETURN(message.parts, ParseParts(*content, options, where));
  } else if (message.role == "tool") {
    message.result = *content;
  } else {
    return Bad(where, ".content must be a string or a list of parts");
  }
  EMBERGATE_ASSIGN_OR_RETURN(message.reasoning, StringMember(value, "reasoning", where));
  if (message.reasoning.empty()) {
    EMBERGATE_ASSIGN_OR_RETURN(message.reasoning, StringMember(value, "reasoning_content", where));
  }
  if (const json* const calls = Find(value, "tool_calls"); calls != nullptr) {
    EMBERGATE_RETURN_IF_ERROR(ParseToolCalls(*calls, options, where, message));
  }
  if (const json* const responses = Find(value, "tool_responses"); responses != nullptr) {
    EMBERGATE_RETURN_IF_ERROR(ParseToolResponses(*responses, where, message));
  }
  EMBERGATE_ASSIGN_OR_RETURN(message.tool_call_id, StringMember(value, "tool_call_id", where));
  EMBERGATE_ASSIGN_OR_RETURN(message.tool_name, StringMember(value, "name", where));
  return message;
}

// The template stumbles over an object as a tool's result, where it writes results: after the calls that they answer.
absl::Status RefuseObjectResults(ChatRequest& request) {
  bool written = false;
  for (size_t i = 0; i < request.messages.size(); ++i) {
    ChatMessage& message = request.messages[i];
    if (message.role != "tool") {
      written = !message.tool_calls.empty() && message.tool_responses.empty();
    } else if (written && message.result.has_value() && message.result->is_object()) {
      if (!message.result->empty()) {
        return Bad("messages[", i, "].content must be a string or a list of parts");
      }
      message.result.reset();  // an empty one it takes for an empty list
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ChatRequest> ParseChatRequest(const json& value, const ChatParseOptions& options) {
  if (!value.is_object()) {
    return Bad("a chat request must be a JSON object with 'messages'");
  }
  if (!JsonDepthWithin(value)) {
    return Bad("the chat request is nested deeper than ", kJsonDepthMax);
  }
  const json* const messages = Find(value, "messages");
  if (messages == nullptr || !messages->is_array()) {
    return Bad("'messages' must be an array");
  }
  ChatRequest request;
  request.messages.reserve(messages->size());
  for (size_t i = 0; i < messages->size(); ++i) {
    EMBERGATE_ASSIGN_OR_RETURN(ChatMessage message,
                               ParseMessage((*messages)[i], options, absl::StrCat("messages[", i, "]")));
    request.messages.push_back(std::move(message));
  }
  if (!options.lenient) {
    EMBERGATE_RETURN_IF_ERROR(RefuseObjectResults(request));
  }
  if (const json* const tools = Find(value, "tools"); tools != nullptr) {
    if (!tools->is_array()) {
      return Bad("'tools' must be an array");
    }
    request.tools = *tools;
  }
  EMBERGATE_ASSIGN_OR_RETURN(request.enable_thinking, BoolMember(value, "enable_thinking", false));
  EMBERGATE_ASSIGN_OR_RETURN(request.preserve_thinking, BoolMember(value, "preserve_thinking", false));
  EMBERGATE_ASSIGN_OR_RETURN(request.add_generation_prompt, BoolMember(value, "add_generation_prompt", true));
  return request;
}

}  // namespace embergate::engine
