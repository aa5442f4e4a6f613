// Shared by the chat*.cc files; not for other modules.
#ifndef EMBERGATE_ENGINE_TEXT_CHAT_INTERNAL_H_
#define EMBERGATE_ENGINE_TEXT_CHAT_INTERNAL_H_

#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "engine/text/chat.h"

namespace embergate::engine {

// Puts a prompt together. Neighbouring plain texts become one piece, every special token is a piece of its own.
class PromptBuilder {
 public:
  void Special(absl::string_view token) { pieces_.push_back({std::string(token), true}); }
  void Text(absl::string_view text) {
    if (text.empty()) {
      return;
    }
    if (pieces_.empty() || pieces_.back().markup) {
      pieces_.push_back({std::string(), false});
    }
    pieces_.back().text.append(text.data(), text.size());
  }
  std::vector<PromptPiece> Take() { return std::move(pieces_); }

 private:
  std::vector<PromptPiece> pieces_;
};

absl::Status RenderGemma3n(const ChatRequest& request, PromptBuilder& out);
absl::Status RenderGemma4(const ChatRequest& request, PromptBuilder& out);

// Gemma 4: a tool's declaration, between <|tool> and <tool|>, and a value in its own notation. With `quote_keys` the
// keys of objects stand between <|"|> tokens.
absl::Status AppendToolDeclaration(const nlohmann::json& tool, PromptBuilder& out);
void AppendArgument(const nlohmann::json& value, bool quote_keys, PromptBuilder& out);

inline constexpr absl::string_view kQuote = "<|\"|>";

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_TEXT_CHAT_INTERNAL_H_
