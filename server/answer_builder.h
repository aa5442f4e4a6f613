// One of a generation's answers on its way to the client.
#ifndef EMBERGATE_SERVER_ANSWER_BUILDER_H_
#define EMBERGATE_SERVER_ANSWER_BUILDER_H_

#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

#include "embergate/v1/generate.pb.h"
#include "engine/text/answer_parser.h"
#include "engine/token_sink.h"

namespace embergate::server {

// Merges the engine's events into one delta, which the owner takes as often as it likes: after each write of a stream,
// or once when all is there. Threads: one at a time.
class AnswerBuilder {
 public:
  // `parser` takes the text apart into thinking, answer and tool calls; null: all of it is text.
  AnswerBuilder(int index, std::unique_ptr<engine::AnswerParser> parser) : index_(index), parser_(std::move(parser)) {}

  void Push(const engine::TokenEvent& event);
  // The engine has given all: what the parser held back joins the delta. Once.
  void Finish();

  // About what the delta holds in memory; 0 = nothing came since it was taken.
  size_t pending_bytes() const { return pending_bytes_; }
  v1::Delta Take();

 private:
  void Add(const std::vector<engine::AnswerEvent>& events);

  const int index_;
  std::unique_ptr<engine::AnswerParser> parser_;  // may be null
  v1::Delta delta_;
  size_t pending_bytes_ = 0;
  int tool_calls_ = 0;  // so far
};

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_ANSWER_BUILDER_H_
