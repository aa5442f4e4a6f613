#include "server/chat_input.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "engine/text/chat.h"
#include "engine/text/json_util.h"
#include "nlohmann/json.hpp"
#include "server/status_mapping.h"

namespace embergate::server {
namespace {

constexpr int kMessagesMax = 1024;
constexpr int kToolsMax = 128;
constexpr int kToolCallsMax = 128;
constexpr int kJsonDepthMax = 32;
constexpr size_t kNameBytesMax = 128;

// A JSON object in `text`, or null with a violation; empty text gives an empty object.
nlohmann::json ObjectField(const std::string& text, const std::string& field, Violations& violations) {
  if (text.empty()) {
    return nlohmann::json::object();
  }
  absl::StatusOr<nlohmann::json> json = engine::ParseBoundedJson(text, kJsonDepthMax);
  if (!json.ok()) {
    violations.Add(field, std::string(json.status().message()));
    return nullptr;
  }
  if (!json->is_object()) {
    violations.Add(field, "must be a JSON object");
    return nullptr;
  }
  return *std::move(json);
}

void CheckName(const std::string& name, const std::string& field, Violations& violations) {
  const bool good = !name.empty() && name.size() <= kNameBytesMax && std::all_of(name.begin(), name.end(), [](char c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '-' || c == '.';
  });
  if (!good) {
    violations.Add(field, absl::StrCat("must be 1 to ", kNameBytesMax, " letters, digits, '_', '-' or '.'"));
  }
}

const char* RoleName(v1::ChatMessage::Role role) {
  switch (role) {
    case v1::ChatMessage::ROLE_SYSTEM:
      return "system";
    case v1::ChatMessage::ROLE_DEVELOPER:
      return "developer";
    case v1::ChatMessage::ROLE_USER:
      return "user";
    case v1::ChatMessage::ROLE_ASSISTANT:
      return "assistant";
    case v1::ChatMessage::ROLE_TOOL:
      return "tool";
    default:
      return nullptr;
  }
}

engine::ChatMessage ParseMessage(const v1::ChatMessage& proto, const std::string& field, Violations& violations) {
  engine::ChatMessage message;
  if (const char* role = RoleName(proto.role()); role != nullptr) {
    message.role = role;
  } else {
    violations.Add(absl::StrCat(field, ".role"), "must be one of the known roles");
  }
  message.content = proto.content();
  message.reasoning = proto.thinking();
  message.tool_call_id = proto.tool_call_id();
  message.tool_name = proto.tool_name();
  if (!proto.tool_result_json().empty()) {
    message.result = ObjectField(proto.tool_result_json(), absl::StrCat(field, ".tool_result_json"), violations);
  }
  const bool assistant = proto.role() == v1::ChatMessage::ROLE_ASSISTANT;
  if (!assistant && proto.tool_calls_size() > 0) {
    violations.Add(absl::StrCat(field, ".tool_calls"), "only an assistant message has them");
  } else if (proto.tool_calls_size() > kToolCallsMax) {
    violations.Add(absl::StrCat(field, ".tool_calls"),
                   absl::StrCat("must be at most ", kToolCallsMax, ", are ", proto.tool_calls_size()));
  } else {
    for (int i = 0; i < proto.tool_calls_size(); ++i) {
      const v1::ToolCall& call = proto.tool_calls(i);
      const std::string call_field = absl::StrCat(field, ".tool_calls[", i, "]");
      CheckName(call.name(), absl::StrCat(call_field, ".name"), violations);
      message.tool_calls.push_back(
          {call.id(), call.name(),
           ObjectField(call.arguments_json(), absl::StrCat(call_field, ".arguments_json"), violations)});
    }
  }
  return message;
}

nlohmann::json ParseTools(const v1::ChatInput& proto, Violations& violations) {
  if (proto.tools_size() == 0) {
    return nullptr;
  }
  nlohmann::json tools = nlohmann::json::array();
  for (int i = 0; i < proto.tools_size(); ++i) {
    const v1::Tool& tool = proto.tools(i);
    const std::string field = absl::StrCat("chat.tools[", i, "]");
    CheckName(tool.name(), absl::StrCat(field, ".name"), violations);
    nlohmann::json function = {{"name", tool.name()}, {"description", tool.description()}};
    if (!tool.parameters_json().empty()) {
      function["parameters"] = ObjectField(tool.parameters_json(), absl::StrCat(field, ".parameters_json"), violations);
    }
    tools.push_back({{"type", "function"}, {"function", std::move(function)}});
  }
  return tools;
}

}  // namespace

absl::StatusOr<std::vector<int32_t>> ChatToIds(const v1::ChatInput& proto, const ServedModel& model,
                                               const RequestLimits& limits, Violations& violations) {
  if (model.tokenizer == nullptr || !model.chat_format.has_value()) {
    return WithReason(
        absl::FailedPreconditionError(model.tokenizer == nullptr ? "the loaded file has no tokenizer: send token_ids"
                                                                 : "the loaded model has no chat format: send text"),
        "NOT_SUPPORTED_BY_MODEL");
  }
  // The serialized size bounds all text in the message, JSON included.
  const int64_t bytes = static_cast<int64_t>(proto.ByteSizeLong());
  if (bytes > limits.prompt_bytes_max) {
    violations.Add("chat", absl::StrCat("must be at most ", limits.prompt_bytes_max, " bytes, is ", bytes));
  }
  if (proto.messages_size() < 1 || proto.messages_size() > kMessagesMax) {
    violations.Add("chat.messages", absl::StrCat("must be 1 to ", kMessagesMax, ", are ", proto.messages_size()));
  }
  if (proto.tools_size() > kToolsMax) {
    violations.Add("chat.tools", absl::StrCat("must be at most ", kToolsMax, ", are ", proto.tools_size()));
  }
  if (!violations.empty()) {
    return std::vector<int32_t>();
  }
  engine::ChatRequest request;
  for (int i = 0; i < proto.messages_size(); ++i) {
    request.messages.push_back(ParseMessage(proto.messages(i), absl::StrCat("chat.messages[", i, "]"), violations));
  }
  request.tools = ParseTools(proto, violations);
  request.enable_thinking = proto.enable_thinking();
  request.preserve_thinking = proto.preserve_thinking();
  if (!violations.empty()) {
    return std::vector<int32_t>();
  }
  absl::StatusOr<std::vector<engine::PromptPiece>> pieces = engine::RenderChatPieces(*model.chat_format, request);
  if (!pieces.ok()) {
    violations.Add("chat", std::string(pieces.status().message()));
    return std::vector<int32_t>();
  }
  return engine::EncodePrompt(*model.tokenizer, *pieces);
}

std::unique_ptr<engine::AnswerParser> MakeAnswerParser(const engine::Tokenizer& tokenizer,
                                                       const std::vector<int32_t>& prompt) {
  const int32_t open = tokenizer.FindPiece("<|channel>");
  const int32_t close = tokenizer.FindPiece("<channel|>");
  engine::AnswerParserOptions options;
  for (auto id = prompt.rbegin(); open >= 0 && close >= 0 && id != prompt.rend() && *id != close; ++id) {
    if (*id == open) {
      options.starts_in_thinking = true;
      break;
    }
  }
  return std::make_unique<engine::AnswerParser>(tokenizer, options);
}

}  // namespace embergate::server
