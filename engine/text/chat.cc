#include "engine/text/chat.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/text/chat_internal.h"
#include "engine/text/json_util.h"
#include "storage/base/status_macros.h"

namespace embergate::engine {
namespace {

// The rendering recurses over these, so their depth is bounded first.
absl::Status CheckDepth(const ChatRequest& request) {
  bool within = JsonDepthWithin(request.tools);
  for (const ChatMessage& message : request.messages) {
    for (const ChatToolCall& call : message.tool_calls) {
      within = within && JsonDepthWithin(call.arguments);
    }
    for (const ChatToolResponse& response : message.tool_responses) {
      within = within && JsonDepthWithin(response.response);
    }
    within = within && (!message.result.has_value() || JsonDepthWithin(*message.result));
  }
  return within ? absl::OkStatus()
                : absl::InvalidArgumentError(
                      absl::StrCat("tools, tool calls or tool results are nested deeper than ", kJsonDepthMax));
}

}  // namespace

absl::StatusOr<std::vector<PromptPiece>> RenderChatPieces(ChatFormat format, const ChatRequest& request) {
  EMBERGATE_RETURN_IF_ERROR(CheckDepth(request));
  PromptBuilder builder;
  EMBERGATE_RETURN_IF_ERROR(format == ChatFormat::kGemma4 ? RenderGemma4(request, builder)
                                                          : RenderGemma3n(request, builder));
  return builder.Take();
}

absl::StatusOr<std::string> RenderChat(ChatFormat format, const ChatRequest& request) {
  EMBERGATE_ASSIGN_OR_RETURN(const std::vector<PromptPiece> pieces, RenderChatPieces(format, request));
  std::string text;
  for (const PromptPiece& piece : pieces) {
    text += piece.text;
  }
  return text;
}

std::vector<int32_t> EncodePrompt(const Tokenizer& tokenizer, const std::vector<PromptPiece>& pieces) {
  std::vector<int32_t> ids;
  std::string plain;
  const auto flush = [&] {
    const std::vector<int32_t> encoded = tokenizer.Encode(plain, EncodeOptions());
    ids.insert(ids.end(), encoded.begin(), encoded.end());
    plain.clear();
  };
  for (const PromptPiece& piece : pieces) {
    if (!piece.markup) {
      plain += piece.text;
      continue;
    }
    // Markers are "<...>" without another ">" inside. One that the vocabulary does not have stays plain text.
    absl::string_view rest = piece.text;
    while (!rest.empty()) {
      const size_t end = rest[0] == '<' ? rest.find('>') : absl::string_view::npos;
      const int32_t id = end == absl::string_view::npos ? -1 : tokenizer.FindPiece(rest.substr(0, end + 1));
      if (id >= 0 && tokenizer.IsControl(id)) {
        flush();
        ids.push_back(id);
        rest.remove_prefix(end + 1);
      } else {
        plain += rest[0];
        rest.remove_prefix(1);
      }
    }
  }
  flush();
  return ids;
}

std::optional<ChatFormat> ChatFormatOf(absl::string_view architecture) {
  if (architecture == "gemma4") {
    return ChatFormat::kGemma4;
  }
  if (architecture == "gemma3n") {
    return ChatFormat::kGemma3n;
  }
  return std::nullopt;
}

}  // namespace embergate::engine
