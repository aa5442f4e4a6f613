#include "engine/text_output.h"

#include <utility>

namespace embergate::engine {

bool TextOutput::Push(int32_t id, absl::string_view piece, bool stops_allowed, PositionLogprobs* logprobs,
                      TokenEvent* event) {
  held_tokens_.push_back(HeldToken{id, released_ + held_text_.size(), logprobs != nullptr, {}});
  if (logprobs != nullptr) {
    held_tokens_.back().logprobs = std::move(*logprobs);
  }
  const bool stopped = stops_.Feed(piece, stops_allowed);
  held_text_.append(piece.data(), piece.size());
  if (stopped) {
    Release(include_stop_ ? stops_.match_end() : stops_.match_begin(), false, event);
    held_text_.clear();
    held_tokens_.clear();
    return true;
  }
  const uint64_t end = released_ + held_text_.size() - stops_.held();
  // A token without text may hold the first bytes of a character, and with it of a stop string.
  Release(end, stops_.held() == 0 && (!piece.empty() || stops_.empty()), event);
  return false;
}

void TextOutput::Flush(absl::string_view piece, TokenEvent* event) {
  held_text_.append(piece.data(), piece.size());
  Release(released_ + held_text_.size(), true, event);
}

void TextOutput::Release(uint64_t end, bool all_ids, TokenEvent* event) {
  if (end > released_) {
    const size_t bytes = static_cast<size_t>(end - released_);
    event->text.append(held_text_, 0, bytes);
    held_text_.erase(0, bytes);
    released_ = end;
  }
  while (!held_tokens_.empty() && (all_ids || held_tokens_.front().begin < released_)) {
    HeldToken& token = held_tokens_.front();
    event->ids.push_back(token.id);
    if (token.has_logprobs) {
      event->logprobs.push_back(std::move(token.logprobs));
    }
    held_tokens_.pop_front();
  }
}

}  // namespace embergate::engine
