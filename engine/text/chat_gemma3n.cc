// Gemma 3n's chat format: alternating turns of user and model, the system text in front of the first user's.
#include <string>

#include "engine/text/chat_internal.h"
#include "engine/text/python_text.h"

namespace embergate::engine {

absl::Status RenderGemma3n(const ChatRequest& request, PromptBuilder& out) {
  if (request.messages.empty()) {
    return absl::InvalidArgumentError("no messages");
  }
  out.Special("<bos>");
  size_t begin = 0;
  std::string prefix;
  const ChatMessage& first = request.messages[0];
  if (first.role == "system") {
    const bool no_text =
        first.parts.has_value() &&
        (first.parts->empty() || (first.parts->front().type != "text" && first.parts->front().text.empty()));
    if (first.null_content || no_text) {
      return absl::InvalidArgumentError("messages[0]: a system message needs text");
    }
    prefix = (first.parts.has_value() ? first.parts->front().text : first.content) + "\n\n";
    begin = 1;
  }
  for (size_t i = begin; i < request.messages.size(); ++i) {
    const ChatMessage& message = request.messages[i];
    if ((message.role == "user") != ((i - begin) % 2 == 0)) {
      return absl::InvalidArgumentError("Conversation roles must alternate user/assistant/user/assistant/...");
    }
    if (message.null_content) {
      return absl::InvalidArgumentError("Invalid content type");
    }
    out.Special("<start_of_turn>");
    out.Text(message.role == "assistant" ? "model" : message.role);
    out.Text("\n");
    if (i == begin) {
      out.Text(prefix);
    }
    if (message.parts.has_value()) {
      for (const ChatPart& part : *message.parts) {
        if (part.type == "text") {
          out.Text(PythonStrip(part.text));
        } else if (part.type == "image") {
          out.Special("<image_soft_token>");
        } else if (part.type == "audio") {
          out.Special("<audio_soft_token>");
        }
      }
    } else {
      out.Text(PythonStrip(message.content));
    }
    out.Special("<end_of_turn>");
    out.Text("\n");
  }
  if (request.add_generation_prompt) {
    out.Special("<start_of_turn>");
    out.Text("model\n");
  }
  return absl::OkStatus();
}

}  // namespace embergate::engine
