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

struct ChatMessage {
  std::string role;  // "system", "developer", "user", "assistant" or "model", "tool"
  std::string content;
  std::string reasoning;                 // of an assistant message
  std::vector<ChatToolCall> tool_calls;  // of an assistant message
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

// A prompt in pieces: markup of the format itself (special tokens may be recognised in it) and text that people
// typed (never parsed for special tokens, so it can't forge them).
struct PromptPiece {
  std::string text;
  bool markup = false;
};

// INVALID_ARGUMENT where the reference's template refuses (roles that do not alternate, ...), with the reason.
absl::StatusOr<std::vector<PromptPiece>> RenderChatPieces(ChatFormat format, const ChatRequest& request);
// The pieces joined.
absl::StatusOr<std::string> RenderChat(ChatFormat format, const ChatRequest& request);
std::vector<int32_t> EncodePrompt(const Tokenizer& tokenizer, const std::vector<PromptPiece>& pieces);

// OpenAI-style JSON ({"messages":[...],"tools":[...],"enable_thinking":..}) as in tests/golden/chat.
absl::StatusOr<ChatRequest> ParseChatRequest(const nlohmann::json& json);

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_TEXT_CHAT_H_
