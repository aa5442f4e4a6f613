#include "server/answer_builder.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "server/response_builder.h"

namespace embergate::server {
namespace {

// About what the pending event holds in memory.
size_t BytesOf(const engine::TokenEvent& event) {
  size_t bytes = event.text.size() + event.ids.size() * sizeof(int32_t);
  for (const engine::PositionLogprobs& logprobs : event.logprobs) {
    bytes += sizeof(engine::PositionLogprobs) + logprobs.top.size() * sizeof(engine::TokenLogprob);
  }
  return bytes;
}

}  // namespace

void AnswerBuilder::Push(const engine::TokenEvent& event) {
  pending_bytes_ += BytesOf(event);
  if (parser_ != nullptr) {
    std::vector<engine::AnswerEvent> events;
    parser_->Push(event.ids, event.text.size(), events);
    Add(events);
  } else {
    delta_.mutable_text()->append(event.text);
  }
  delta_.mutable_ids()->Add(event.ids.begin(), event.ids.end());
  for (const engine::PositionLogprobs& logprobs : event.logprobs) {
    FillLogprobs(logprobs, *delta_.add_logprobs());
  }
}

void AnswerBuilder::Finish() {
  if (parser_ != nullptr) {
    std::vector<engine::AnswerEvent> events;
    parser_->Finish(events);
    Add(events);
  }
}

v1::Delta AnswerBuilder::Take() {
  v1::Delta taken;
  taken.Swap(&delta_);
  taken.set_completion(index_);
  pending_bytes_ = 0;
  return taken;
}

void AnswerBuilder::Add(const std::vector<engine::AnswerEvent>& events) {
  for (const engine::AnswerEvent& event : events) {
    switch (event.kind) {
      case engine::AnswerEvent::Kind::kAnswer:
        delta_.mutable_text()->append(event.text);
        break;
      case engine::AnswerEvent::Kind::kThinking:
        delta_.mutable_thinking()->append(event.text);
        break;
      case engine::AnswerEvent::Kind::kToolCall: {
        v1::ToolCall& call = *delta_.add_tool_calls();
        call.set_id(absl::StrCat("call_", tool_calls_++));
        call.set_name(event.name);
        call.set_arguments_json(event.arguments);
        break;
      }
      case engine::AnswerEvent::Kind::kMalformedToolCall:
        delta_.mutable_text()->append(event.text);
        delta_.set_malformed_tool_call(true);
        break;
    }
    // What Finish releases was held back before: it has to be seen as pending.
    pending_bytes_ = std::max<size_t>(pending_bytes_, 1);
  }
}

}  // namespace embergate::server
