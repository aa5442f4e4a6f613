#include "server/cli/chat_session.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/text/json_util.h"
#include "server/cli/client.h"
#include "server/cli/tools_file.h"
#include "storage/base/status_macros.h"

namespace embergate::server {
namespace {

using nlohmann::json;

const std::map<std::string, v1::ChatMessage::Role>& Roles() {
  static const auto* const roles = new std::map<std::string, v1::ChatMessage::Role>{
      {"system", v1::ChatMessage::ROLE_SYSTEM}, {"developer", v1::ChatMessage::ROLE_DEVELOPER},
      {"user", v1::ChatMessage::ROLE_USER},     {"assistant", v1::ChatMessage::ROLE_ASSISTANT},
      {"tool", v1::ChatMessage::ROLE_TOOL},
  };
  return *roles;
}

std::string RoleName(v1::ChatMessage::Role role) {
  for (const auto& [name, value] : Roles()) {
    if (value == role) {
      return name;
    }
  }
  return "user";
}

// The object that the text is, or the text itself.
json ObjectOrText(const std::string& text) {
  const absl::StatusOr<json> parsed = engine::ParseBoundedJson(text);
  return parsed.ok() && parsed->is_object() ? *parsed : json(text);
}

std::string StringAt(const json& object, const char* key) {
  const auto it = object.find(key);
  return it != object.end() && it->is_string() ? it->get<std::string>() : "";
}

std::string Dump(const json& value) { return value.dump(-1, ' ', false, json::error_handler_t::replace); }

absl::Status AddCall(const json& call, const std::string& where, v1::ChatMessage& message) {
  if (!call.is_object() || !call.contains("function") || !call.at("function").is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(where, " has no function"));
  }
  const json& function = call.at("function");
  v1::ToolCall& to = *message.add_tool_calls();
  to.set_id(StringAt(call, "id"));
  to.set_name(StringAt(function, "name"));
  if (function.contains("arguments")) {
    const json& arguments = function.at("arguments");
    to.set_arguments_json(arguments.is_string() ? arguments.get<std::string>() : Dump(arguments));
  }
  return absl::OkStatus();
}

absl::Status AddMessage(const json& from, const std::string& where, v1::ChatInput& chat) {
  const auto role = from.is_object() ? Roles().find(StringAt(from, "role")) : Roles().end();
  if (role == Roles().end()) {
    return absl::InvalidArgumentError(absl::StrCat(where, " has no role that is known"));
  }
  v1::ChatMessage& message = *chat.add_messages();
  message.set_role(role->second);
  message.set_thinking(StringAt(from, "thinking"));
  message.set_tool_call_id(StringAt(from, "tool_call_id"));
  if (from.contains("content") && from.at("content").is_object()) {
    message.set_tool_result_json(Dump(from.at("content")));
  } else {
    message.set_content(StringAt(from, "content"));
  }
  const json calls = from.contains("tool_calls") ? from.at("tool_calls") : json::array();
  if (!calls.is_array()) {
    return absl::InvalidArgumentError(absl::StrCat(where, ".tool_calls is no list"));
  }
  for (size_t i = 0; i < calls.size(); ++i) {
    EMBERGATE_RETURN_IF_ERROR(AddCall(calls[i], absl::StrCat(where, ".tool_calls[", i, "]"), message));
  }
  return absl::OkStatus();
}

}  // namespace

json SessionJson(const v1::ChatInput& chat) {
  json messages = json::array();
  for (const v1::ChatMessage& message : chat.messages()) {
    json out = {{"role", RoleName(message.role())}, {"content", message.content()}};
    if (!message.tool_result_json().empty()) {
      out["content"] = ObjectOrText(message.tool_result_json());
    }
    if (!message.thinking().empty()) {
      out["thinking"] = message.thinking();
    }
    if (!message.tool_call_id().empty()) {
      out["tool_call_id"] = message.tool_call_id();
    }
    for (const v1::ToolCall& call : message.tool_calls()) {
      out["tool_calls"].push_back(
          {{"id", call.id()},
           {"type", "function"},
           {"function", {{"name", call.name()}, {"arguments", ObjectOrText(call.arguments_json())}}}});
    }
    messages.push_back(std::move(out));
  }
  json session = {{"messages", std::move(messages)}};
  for (const v1::Tool& tool : chat.tools()) {
    json function = {{"name", tool.name()}, {"description", tool.description()}};
    if (!tool.parameters_json().empty()) {
      function["parameters"] = ObjectOrText(tool.parameters_json());
    }
    session["tools"].push_back({{"type", "function"}, {"function", std::move(function)}});
  }
  return session;
}

absl::StatusOr<v1::ChatInput> ParseSession(const std::string& text) {
  EMBERGATE_ASSIGN_OR_RETURN(const json session, engine::ParseBoundedJson(text));
  if (!session.is_object() || !session.contains("messages") || !session.at("messages").is_array()) {
    return absl::InvalidArgumentError("no conversation: it has no list of messages");
  }
  v1::ChatInput chat;
  const json& messages = session.at("messages");
  for (size_t i = 0; i < messages.size(); ++i) {
    EMBERGATE_RETURN_IF_ERROR(AddMessage(messages[i], absl::StrCat("messages[", i, "]"), chat));
  }
  if (session.contains("tools")) {
    EMBERGATE_RETURN_IF_ERROR(AddTools(Dump(session.at("tools")), chat));
  }
  return chat;
}

absl::StatusOr<v1::ChatInput> LoadSession(const std::string& path) {
  EMBERGATE_ASSIGN_OR_RETURN(const std::string text, ReadText(path));
  absl::StatusOr<v1::ChatInput> chat = ParseSession(text);
  if (!chat.ok()) {
    return absl::Status(chat.status().code(), absl::StrCat(path, ": ", chat.status().message()));
  }
  return chat;
}

absl::Status SaveSession(const v1::ChatInput& chat, const std::string& path) {
  const std::string text = SessionJson(chat).dump(1, ' ', false, json::error_handler_t::replace) + "\n";
  const std::string part = absl::StrCat(path, ".part");
  const int file = open(part.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (file < 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot write ", part));
  }
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t count = write(file, text.data() + done, text.size() - done);
    if (count < 0 && errno == EINTR) {
      continue;
    }
    if (count <= 0) {
      break;
    }
    done += static_cast<size_t>(count);
  }
  const bool complete = done == text.size() && fsync(file) == 0;
  const int error = errno;
  if (close(file) != 0 || !complete || std::rename(part.c_str(), path.c_str()) != 0) {
    const int reason = complete ? errno : error;
    unlink(part.c_str());
    return absl::ErrnoToStatus(reason, absl::StrCat("cannot write ", path));
  }
  return absl::OkStatus();
}

}  // namespace embergate::server
