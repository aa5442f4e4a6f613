#include "engine/text/answer_parser.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"

namespace embergate::engine {
namespace {

constexpr size_t kChannelNameBytesMax = 64;
constexpr absl::string_view kThoughtChannel = "thought";

// -1 unless the vocabulary has it as a control token.
int32_t ControlToken(const Tokenizer& tokenizer, absl::string_view piece) {
  const int32_t id = tokenizer.FindPiece(piece);
  return id >= 0 && tokenizer.IsControl(id) ? id : -1;
}

std::string AsWritten(absl::string_view call) {
  return absl::StrReplaceAll(call, {{absl::string_view(&kCallQuote, 1), "<|\"|>"}});
}

}  // namespace

AnswerParser::AnswerParser(const Tokenizer& tokenizer, const AnswerParserOptions& options)
    : tokenizer_(tokenizer),
      options_(options),
      channel_open_(ControlToken(tokenizer, "<|channel>")),
      channel_close_(ControlToken(tokenizer, "<channel|>")),
      call_open_(ControlToken(tokenizer, "<|tool_call>")),
      call_close_(ControlToken(tokenizer, "<tool_call|>")),
      quote_(ControlToken(tokenizer, "<|\"|>")),
      decoder_(tokenizer),
      state_(options.starts_in_thinking ? State::kThinking : State::kAnswer) {}

void AnswerParser::Emit(AnswerEvent::Kind kind, absl::string_view text, std::vector<AnswerEvent>& events) {
  if (text.empty()) {
    return;
  }
  if (events.empty() || events.back().kind != kind || kind == AnswerEvent::Kind::kToolCall) {
    events.push_back(AnswerEvent());
    events.back().kind = kind;
  }
  events.back().text.append(text.data(), text.size());
}

void AnswerParser::Take(absl::Span<const int32_t> ids) {
  for (const int32_t id : ids) {
    if (id < 0) {
      continue;
    }
    const std::string text = decoder_.Push(id);
    text_ += text;
    decoded_ += text.size();
    if (!tokenizer_.IsControl(id)) {
      continue;
    }
    const Marker marker = id == channel_open_    ? Marker::kChannelOpen
                          : id == channel_close_ ? Marker::kChannelClose
                          : id == call_open_     ? Marker::kCallOpen
                          : id == call_close_    ? Marker::kCallClose
                          : id == quote_         ? Marker::kQuote
                                                 : Marker::kOther;
    markers_.push_back({decoded_, marker, id});
  }
}

void AnswerParser::Push(absl::Span<const int32_t> ids, size_t text_bytes, std::vector<AnswerEvent>& events) {
  Take(ids);
  released_ += text_bytes;
  Process(events);
}

void AnswerParser::Push(absl::Span<const int32_t> ids, std::vector<AnswerEvent>& events) {
  const size_t before = decoded_;
  Take(ids);
  released_ += decoded_ - before;
  Process(events);
}

void AnswerParser::Finish(std::vector<AnswerEvent>& events) {
  const std::string rest = decoder_.Finish();
  const bool nothing_held_back = released_ == decoded_;
  text_ += rest;
  decoded_ += rest.size();
  released_ += nothing_held_back ? rest.size() : 0;
  Process(events);
  if (InCall()) {
    EndCall(/*closed=*/false, events);
  }
  if (state_ == State::kChannelName) {
    EndChannelName(/*by_line_break=*/false, events);
  }
  // A line break that is still held back preceded the end of the thinking, as it does before <channel|>.
  held_line_break_ = false;
}

void AnswerParser::Process(std::vector<AnswerEvent>& events) {
  const size_t end = std::min(released_, decoded_);
  size_t consumed = 0;  // of text_
  const auto text_until = [&](size_t offset) {
    const size_t size = offset - processed_;
    OnText(absl::string_view(text_).substr(consumed, size), events);
    consumed += size;
    processed_ = offset;
  };
  while (!markers_.empty() && markers_.front().offset <= end) {
    const MarkerAt marker = markers_.front();
    markers_.pop_front();
    text_until(marker.offset);
    OnMarker(marker, events);
  }
  text_until(end);
  text_.erase(0, consumed);
}

void AnswerParser::OnText(absl::string_view text, std::vector<AnswerEvent>& events) {
  if (text.empty()) {
    return;
  }
  switch (state_) {
    case State::kAnswer:
      Emit(AnswerEvent::Kind::kAnswer, text, events);
      break;
    case State::kThinking:
      OnThinking(text, events);
      break;
    case State::kCall:
    case State::kOversizeCall:
      GrowCall(text, events);
      break;
    case State::kChannelName: {
      const size_t line_break = text.find('\n');
      const absl::string_view name = text.substr(0, line_break);
      channel_name_.append(name.data(), name.size());
      if (line_break != absl::string_view::npos) {
        EndChannelName(/*by_line_break=*/true, events);
        OnText(text.substr(line_break + 1), events);
      } else if (channel_name_.size() > kChannelNameBytesMax) {
        EndChannelName(/*by_line_break=*/false, events);
      }
      break;
    }
  }
}

// The name is markup if it is the one that the format knows; any other text is the model's own.
void AnswerParser::EndChannelName(bool by_line_break, std::vector<AnswerEvent>& events) {
  state_ = State::kThinking;
  const std::string name = std::move(channel_name_);
  channel_name_.clear();
  if (name != kThoughtChannel) {
    OnThinking(name, events);
    OnThinking(by_line_break ? "\n" : "", events);
  }
}

void AnswerParser::OnThinking(absl::string_view text, std::vector<AnswerEvent>& events) {
  if (text.empty()) {
    return;
  }
  Emit(AnswerEvent::Kind::kThinking, held_line_break_ ? "\n" : "", events);
  held_line_break_ = text.back() == '\n';
  text.remove_suffix(held_line_break_ ? 1 : 0);
  Emit(AnswerEvent::Kind::kThinking, text, events);
}

void AnswerParser::OnMarker(const MarkerAt& at, std::vector<AnswerEvent>& events) {
  if (InCall()) {
    switch (at.marker) {
      case Marker::kCallClose:
        EndCall(/*closed=*/true, events);
        return;
      case Marker::kQuote:
        GrowCall(absl::string_view(&kCallQuote, 1), events);
        return;
      case Marker::kCallOpen:
        EndCall(/*closed=*/false, events);
        break;  // and begin another one
      default:
        GrowCall(tokenizer_.Piece(at.id), events);
        return;
    }
  }
  if (state_ == State::kChannelName) {
    EndChannelName(/*by_line_break=*/false, events);
  }
  switch (at.marker) {
    case Marker::kChannelOpen:
      if (state_ == State::kAnswer) {
        state_ = State::kChannelName;
      }
      break;
    case Marker::kChannelClose:
      held_line_break_ = false;
      state_ = State::kAnswer;
      break;
    case Marker::kCallOpen:
      outside_call_ = state_;
      state_ = State::kCall;
      break;
    default:
      break;  // a turn's end and the like give no text
  }
}

void AnswerParser::GrowCall(absl::string_view text, std::vector<AnswerEvent>& events) {
  if (state_ == State::kCall && call_.size() + text.size() <= options_.call_bytes_max) {
    call_.append(text.data(), text.size());
    return;
  }
  if (state_ == State::kCall) {
    state_ = State::kOversizeCall;
    Emit(AnswerEvent::Kind::kMalformedToolCall, absl::StrCat("<|tool_call>", AsWritten(call_)), events);
    call_.clear();
  }
  Emit(AnswerEvent::Kind::kMalformedToolCall, AsWritten(text), events);
}

void AnswerParser::EndCall(bool closed, std::vector<AnswerEvent>& events) {
  const absl::string_view end = closed ? "<tool_call|>" : "";
  const std::string call = std::move(call_);
  call_.clear();
  if (state_ == State::kOversizeCall) {
    Emit(AnswerEvent::Kind::kMalformedToolCall, end, events);
  } else {
    AnswerEvent event;
    event.kind = AnswerEvent::Kind::kToolCall;
    if (closed && ParseToolCall(call, options_.call_depth_max, event.name, event.arguments)) {
      events.push_back(std::move(event));
    } else {
      Emit(AnswerEvent::Kind::kMalformedToolCall, absl::StrCat("<|tool_call>", AsWritten(call), end), events);
    }
  }
  state_ = outside_call_;
}

}  // namespace embergate::engine
