// What a model generated, taken apart while it streams: thinking, answer, tool calls.
#ifndef EMBERGATE_ENGINE_TEXT_ANSWER_PARSER_H_
#define EMBERGATE_ENGINE_TEXT_ANSWER_PARSER_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "engine/text/stream_decoder.h"
#include "engine/text/tokenizer.h"

namespace embergate::engine {

struct AnswerEvent {
  enum class Kind {
    kAnswer,             // text: more of the answer
    kThinking,           // text: more of the thinking
    kToolCall,           // name, arguments: one complete call
    kMalformedToolCall,  // text: (more of) what began as a call but is none, markers included, as the model wrote it
  };
  Kind kind = Kind::kAnswer;
  std::string text;
  std::string name;
  std::string arguments;  // a JSON object; numbers are written as the model wrote them
};

struct AnswerParserOptions {
  bool starts_in_thinking = false;     // the prompt ended with an open thinking channel
  size_t call_bytes_max = 256u << 10;  // of one tool call; a longer one is malformed
  int call_depth_max = 64;             // of lists and objects in its arguments
};

// Gemma 4's output format: `<|channel>thought\n...\n<channel|>` is thinking, `<|tool_call>call:NAME{...}<tool_call|>` a
// call, the rest is the answer. The markers are control tokens, so they are told by id: an answer that spells one out
// stays an answer. A vocabulary without these tokens (Gemma 3n) gives answer text only.
//
// The events do not depend on how the tokens are cut into Push calls, apart from where texts are cut. Nothing of the
// text is lost but the channel's name and the line break before its end.
//
// Memory: the text not yet released and one call, at most call_bytes_max. Threads: one. Borrows the tokenizer.
class AnswerParser {
 public:
  explicit AnswerParser(const Tokenizer& tokenizer, const AnswerParserOptions& options = AnswerParserOptions());

  // `ids` follow those pushed before; `text_bytes` more bytes of the text of all of them have been released. (The text
  // is what a StreamDecoder makes of the ids. It may lag behind: whoever looks for stop strings holds it back, and cuts
  // it off when it finds one. What was never released does not come out.) Events are appended.
  void Push(absl::Span<const int32_t> ids, size_t text_bytes, std::vector<AnswerEvent>& events);
  // The same where nothing is held back.
  void Push(absl::Span<const int32_t> ids, std::vector<AnswerEvent>& events);
  // The generation has ended: an open call is malformed.
  void Finish(std::vector<AnswerEvent>& events);

 private:
  enum class Marker { kChannelOpen, kChannelClose, kCallOpen, kCallClose, kQuote, kOther };
  enum class State { kAnswer, kChannelName, kThinking, kCall, kOversizeCall };
  struct MarkerAt {
    size_t offset;  // in the text
    Marker marker;
    int32_t id;
  };

  void Take(absl::Span<const int32_t> ids);
  void Process(std::vector<AnswerEvent>& events);
  void OnText(absl::string_view text, std::vector<AnswerEvent>& events);
  void OnMarker(const MarkerAt& marker, std::vector<AnswerEvent>& events);
  void OnThinking(absl::string_view text, std::vector<AnswerEvent>& events);
  void EndChannelName(bool by_line_break, std::vector<AnswerEvent>& events);
  void EndCall(bool closed, std::vector<AnswerEvent>& events);
  void GrowCall(absl::string_view text, std::vector<AnswerEvent>& events);
  bool InCall() const { return state_ == State::kCall || state_ == State::kOversizeCall; }
  static void Emit(AnswerEvent::Kind kind, absl::string_view text, std::vector<AnswerEvent>& events);

  const Tokenizer& tokenizer_;
  const AnswerParserOptions options_;
  int32_t channel_open_, channel_close_, call_open_, call_close_, quote_;
  StreamDecoder decoder_;

  std::string text_;              // decoded, not yet processed; begins at offset `processed_`
  std::deque<MarkerAt> markers_;  // not yet processed
  size_t decoded_ = 0;            // bytes
  size_t released_ = 0;
  size_t processed_ = 0;

  State state_ = State::kAnswer;
  State outside_call_ = State::kAnswer;  // to go back to after a call
  std::string channel_name_;
  bool held_line_break_ = false;  // the last character of the thinking so far
  std::string call_;              // what follows <|tool_call>; quote tokens as kCallQuote
};

// The byte that stands for a <|"|> token in the text of a call: no UTF-8 text contains it.
inline constexpr char kCallQuote = '\xFF';

// `text` is what stands between <|tool_call> and <tool_call|>, with kCallQuote for quote tokens. False if it is no
// call: then `name` and `arguments` are unspecified.
bool ParseToolCall(absl::string_view text, int depth_max, std::string& name, std::string& arguments);

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_TEXT_ANSWER_PARSER_H_
