// Chat messages to the exact prompt that the model was trained on, for Gemma 3n and Gemma 4.
#ifndef EMBERGATE_ENGINE_TEXT_CHAT_H_
#define EMBERGATE_ENGINE_TEXT_CHAT_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/text/tokenizer.h"
#include "nlohmann/json.hpp"

namespace embergate::engine {

enum class ChatFormat { kGemma3n, kGemma4 };

struct ChatToolCall {
  std::string id;
  std::string name;
  nlohmann::json arguments;  // an object, or null
};

// A result that an assistant message carries itself (Google's own form of tool results).
struct ChatToolResponse {
  std::string name;         // "" = unknown
  nlohmann::json response;  // any value; an object is written key by key
};

// One element of a content list.
struct ChatPart {
  std::string type;  // "text", "image", "image_url", "audio", "input_audio", "video"; others give nothing
  std::string text;  // of type "text"
};

struct ChatMessage {
  std::string role;  // "system", "developer", "user", "assistant" or "model", "tool"
  std::string content;
  std::optional<std::vector<ChatPart>> parts;  // content as a list; `content` is not looked at then
  bool null_content = false;                   // content is null or absent, which is not the same as ""
  std::string reasoning;                       // of an assistant message
  std::vector<ChatToolCall> tool_calls;        // of an assistant message
  std::vector<ChatToolResponse> tool_responses;
  // Of a tool message: which call it answers, by id and/or function name. The result is `content`, or `result`
  // when it is structured (an object).
  std::string tool_call_id;
  std::string tool_name;
  std::optional<nlohmann::json> result;
};

struct ChatRequest {
  std::vector<ChatMessage> messages;
  nlohmann::json tools;  // array of {"type":"function","function":{name, description, parameters}}; null = none
  bool enable_thinking = false;
  bool preserve_thinking = false;
  bool add_generation_prompt = true;
};

// A prompt in pieces: markup of the format itself (special tokens are recognised in it) and plain text, typed by people
// or models (special tokens are never recognised in it, so it can't forge them).
struct PromptPiece {
  std::string text;
  bool markup = false;
};

// INVALID_ARGUMENT where the reference's template refuses (roles that do not alternate, tool-call arguments that are
// no object, ...), with the reason; also for JSON that is nested deeper than 64. Every markup piece is one special
// token. Sources: the chat templates named in tests/golden/chat/README.md, whose output the tests compare.
absl::StatusOr<std::vector<PromptPiece>> RenderChatPieces(ChatFormat format, const ChatRequest& request);
// The pieces joined.
absl::StatusOr<std::string> RenderChat(ChatFormat format, const ChatRequest& request);
// The ids that the joined text has with its special tokens recognised, but those in plain pieces: plain text is
// encoded in one go from one special token to the next, so that a border between pieces leaves no trace.
std::vector<int32_t> EncodePrompt(const Tokenizer& tokenizer, const std::vector<PromptPiece>& pieces);
// The format by general.architecture; nullopt for an unknown one.
std::optional<ChatFormat> ChatFormatOf(absl::string_view architecture);

struct ChatParseOptions {
  bool allow_media = false;  // image, audio and video parts become placeholders; otherwise they are refused
  // Also take what the template refuses but clients send: tool-call arguments as a string that holds JSON (or none at
  // all), tool results that are objects.
  bool lenient = true;
};
// OpenAI-style JSON ({"messages":[...],"tools":[...],"enable_thinking":..}) as in tests/golden/chat.
// INVALID_ARGUMENT names the field.
absl::StatusOr<ChatRequest> ParseChatRequest(const nlohmann::json& json, const ChatParseOptions& options);
inline absl::StatusOr<ChatRequest> ParseChatRequest(const nlohmann::json& json) {
  return ParseChatRequest(json, ChatParseOptions());
}

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_TEXT_CHAT_H_
