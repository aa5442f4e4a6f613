// Gemma 4's chat format: turns, the thinking channel, tool calls and their results inside the model's turn.
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/text/chat_internal.h"
#include "engine/text/python_text.h"
#include "storage/base/status_macros.h"

namespace embergate::engine {
namespace {

using ::nlohmann::json;

constexpr absl::string_view kChannelOpen = "<|channel>";
constexpr absl::string_view kChannelClose = "<channel|>";

bool IsSystem(const ChatMessage& message) { return message.role == "system" || message.role == "developer"; }

// A past answer without its thinking: of each part that ends at a closing marker, what precedes the opening one.
std::string WithoutThinking(absl::string_view text) {
  std::string kept;
  while (true) {
    const size_t close = text.find(kChannelClose);
    const absl::string_view part = text.substr(0, close);
    const absl::string_view before = part.substr(0, part.find(kChannelOpen));
    kept.append(before.data(), before.size());
    if (close == absl::string_view::npos) {
      return std::string(PythonStrip(kept));
    }
    text.remove_prefix(close + kChannelClose.size());
  }
}

// The placeholder of a media part; empty for any other type.
absl::string_view Placeholder(absl::string_view type) {
  if (type == "image" || type == "image_url") return "<|image|>";
  if (type == "audio" || type == "input_audio") return "<|audio|>";
  if (type == "video") return "<|video|>";
  return "";
}

void AppendEntries(const json& object, PromptBuilder& out) {
  bool first = true;
  for (const auto& [key, value] : DictSort(object)) {
    out.Text(first ? "" : ",");
    first = false;
    out.Text(key);
    out.Text(":");
    AppendArgument(*value, /*quote_keys=*/false, out);
  }
}

void AppendToolResponse(const std::string& name, const json& response, PromptBuilder& out) {
  out.Special("<|tool_response>");
  out.Text(absl::StrCat("response:", name, "{"));
  if (response.is_object()) {
    AppendEntries(response, out);
  } else {
    out.Text("value:");
    AppendArgument(response, /*quote_keys=*/false, out);
  }
  out.Text("}");
  out.Special("<tool_response|>");
}

// The result in a tool message that follows the calls of `caller`.
void AppendToolMessage(const ChatMessage& caller, const ChatMessage& message, PromptBuilder& out) {
  std::string name = message.tool_name.empty() ? "unknown" : message.tool_name;
  for (const ChatToolCall& call : caller.tool_calls) {
    if (call.id == message.tool_call_id) {  // both absent counts too, as in the template
      name = call.name;
    }
  }
  if (message.result.has_value()) {
    AppendToolResponse(name, *message.result, out);
  } else if (message.parts.has_value()) {
    std::string text;
    for (const ChatPart& part : *message.parts) {
      text += part.type == "text" ? part.text : "";
    }
    AppendToolResponse(name, text, out);
    for (const ChatPart& part : *message.parts) {
      if (!Placeholder(part.type).empty()) {
        out.Special(Placeholder(part.type));
      }
    }
  } else {
    AppendToolResponse(name, message.null_content ? json() : json(message.content), out);
  }
}

// Returns whether there is anything but white space.
bool AppendContent(const ChatMessage& message, bool model, PromptBuilder& out) {
  if (message.null_content) {
    return false;
  }
  const auto trimmed = [model](const std::string& text) {
    return model ? WithoutThinking(text) : std::string(PythonStrip(text));
  };
  if (!message.parts.has_value()) {
    const std::string text = trimmed(message.content);
    out.Text(text);
    return !text.empty();
  }
  bool any = false;
  for (const ChatPart& part : *message.parts) {
    if (part.type == "text") {
      const std::string text = trimmed(part.text);
      out.Text(text);
      any = any || !text.empty();
    } else if (!Placeholder(part.type).empty()) {
      out.Special(Placeholder(part.type));
      any = true;
    }
  }
  return any;
}

absl::Status AppendSystemTurn(const ChatRequest& request, bool has_tools, PromptBuilder& out) {
  out.Special("<|turn>");
  out.Text("system\n");
  if (request.enable_thinking) {
    out.Special("<|think|>");
    out.Text("\n");
  }
  if (!request.messages.empty() && IsSystem(request.messages[0]) && !request.messages[0].null_content) {
    const ChatMessage& system = request.messages[0];
    if (system.parts.has_value()) {
      for (const ChatPart& part : *system.parts) {
        out.Text(PythonStrip(part.text));
        out.Text(" ");
      }
    } else {
      out.Text(PythonStrip(system.content));
    }
  }
  if (has_tools) {
    for (const json& tool : request.tools) {
      out.Special("<|tool>");
      EMBERGATE_RETURN_IF_ERROR(AppendToolDeclaration(tool, out));
      out.Special("<tool|>");
    }
  }
  out.Special("<turn|>");
  out.Text("\n");
  return absl::OkStatus();
}

absl::Status AppendToolCalls(const ChatMessage& message, size_t index, PromptBuilder& out) {
  for (const ChatToolCall& call : message.tool_calls) {
    out.Special("<|tool_call>");
    out.Text(absl::StrCat("call:", call.name, "{"));
    if (call.arguments.is_object()) {
      AppendEntries(call.arguments, out);
    } else if (!call.arguments.is_null()) {
      return absl::InvalidArgumentError(absl::StrCat("messages[", index, "]: the arguments of the call of '", call.name,
                                                     "' must be a JSON object, not a string or another value"));
    }
    out.Text("}");
    out.Special("<tool_call|>");
  }
  return absl::OkStatus();
}

}  // namespace

void AppendArgument(const json& value, bool quote_keys, PromptBuilder& out) {
  if (value.is_null()) {
    out.Text("null");
  } else if (value.is_string()) {
    out.Special(kQuote);
    out.Text(value.get_ref<const std::string&>());
    out.Special(kQuote);
  } else if (value.is_boolean()) {
    out.Text(value.get<bool>() ? "true" : "false");
  } else if (value.is_object()) {
    out.Text("{");
    bool first = true;
    for (const auto& [key, element] : DictSort(value)) {
      out.Text(first ? "" : ",");
      first = false;
      if (quote_keys) {
        out.Special(kQuote);
        out.Text(key);
        out.Special(kQuote);
      } else {
        out.Text(key);
      }
      out.Text(":");
      AppendArgument(*element, quote_keys, out);
    }
    out.Text("}");
  } else if (value.is_array()) {
    out.Text("[");
    for (size_t i = 0; i < value.size(); ++i) {
      out.Text(i == 0 ? "" : ",");
      AppendArgument(value[i], quote_keys, out);
    }
    out.Text("]");
  } else {
    out.Text(PythonStr(value));
  }
}

absl::Status RenderGemma4(const ChatRequest& request, PromptBuilder& out) {
  enum class Last { kOther, kToolCall, kToolResponse };
  const bool has_tools = PythonTrue(request.tools);
  if (has_tools && !request.tools.is_array()) {
    return absl::InvalidArgumentError("tools must be an array");
  }
  out.Special("<bos>");
  const bool has_system = !request.messages.empty() && IsSystem(request.messages[0]);
  if (request.enable_thinking || has_tools || has_system) {
    EMBERGATE_RETURN_IF_ERROR(AppendSystemTurn(request, has_tools, out));
  }

  const std::vector<ChatMessage>& messages = request.messages;
  const size_t begin = has_system ? 1 : 0;
  size_t after_last_user = begin;  // thinking is shown from here on
  for (size_t i = begin; i < messages.size(); ++i) {
    after_last_user = messages[i].role == "user" ? i + 1 : after_last_user;
  }
  Last last = Last::kOther;
  std::string previous_role;
  for (size_t i = begin; i < messages.size(); ++i) {
    const ChatMessage& message = messages[i];
    if (message.role == "tool") {
      continue;  // written with the call that it answers
    }
    last = Last::kOther;
    const std::string role = message.role == "assistant" ? "model" : message.role;
    if (role != "model" || previous_role != "assistant") {
      out.Special("<|turn>");
      out.Text(role);
      out.Text("\n");
    }
    if (!message.reasoning.empty() &&
        (i >= after_last_user || (request.preserve_thinking && !message.tool_calls.empty()))) {
      out.Special(kChannelOpen);
      out.Text("thought\n");
      out.Text(message.reasoning);
      out.Text("\n");
      out.Special(kChannelClose);
    }
    if (!message.tool_calls.empty()) {
      EMBERGATE_RETURN_IF_ERROR(AppendToolCalls(message, i, out));
      last = Last::kToolCall;
    }
    bool answered = false;
    if (!message.tool_responses.empty()) {
      for (const ChatToolResponse& response : message.tool_responses) {
        AppendToolResponse(response.name.empty() ? "unknown" : response.name, response.response, out);
      }
      answered = true;
    } else if (!message.tool_calls.empty()) {
      for (size_t k = i + 1; k < messages.size() && messages[k].role == "tool"; ++k) {
        AppendToolMessage(message, messages[k], out);
        answered = true;
      }
    }
    last = answered ? Last::kToolResponse : last;
    const bool has_content = AppendContent(message, role == "model", out);

    size_t next = i + 1;
    while (next < messages.size() && messages[next].role == "tool") {
      ++next;
    }
    const bool has_next = next < messages.size();
    const bool same_turn_goes_on =
        role == "model" && has_next && messages[next].role == "assistant" && (message.tool_calls.empty() || answered);
    if (last == Last::kToolCall && !answered) {
      out.Special("<|tool_response>");  // the caller appends the result here
    } else if (!same_turn_goes_on && (!answered || has_content || has_next)) {
      out.Special("<turn|>");
      out.Text("\n");
    }
    previous_role = message.role;
  }

  if (request.add_generation_prompt) {
    if (last == Last::kOther) {
      out.Special("<|turn>");
      out.Text("model\n");
    } else if (last == Last::kToolResponse && request.enable_thinking) {
      out.Special(kChannelOpen);
      out.Text("thought\n");
    }
  }
  return absl::OkStatus();
}

}  // namespace embergate::engine
