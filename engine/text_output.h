// From a stream of sampled tokens to what the client may see of it: text in whole characters, stop strings found and
// cut, and each token id given out together with the text that it began.
#ifndef EMBERGATE_ENGINE_TEXT_OUTPUT_H_
#define EMBERGATE_ENGINE_TEXT_OUTPUT_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "engine/request.h"
#include "engine/stop_detector.h"
#include "engine/token_sink.h"

namespace embergate::engine {

// Text that may still turn into a stop string is held back, and so are the ids of the tokens that lie wholly in it
// (with stop strings, tokens without text of their own wait for the text after them).
// When a stop string is found, its text, what follows it and the ids of the tokens that begin in it or after it are
// dropped; with include_stop only what follows it is.
// Threads: one.
class TextOutput {
 public:
  explicit TextOutput(const StopParams& stop) : stops_(stop.stop_strings), include_stop_(stop.include_stop) {}

  // A token and the text that it completes (may be empty). Appends to `event` what can go out now. True when a stop
  // string is complete: nothing more may be pushed. With `stops_allowed` false no stop string ends in this piece.
  bool Push(int32_t id, absl::string_view piece, bool stops_allowed, PositionLogprobs* logprobs, TokenEvent* event);
  // The end of the stream without a stop string: everything held goes out. `piece` is the decoder's last text.
  void Flush(absl::string_view piece, TokenEvent* event);

  bool holds() const { return !held_text_.empty() || !held_tokens_.empty(); }
  // After Push returned true.
  const std::string& stop_string() const { return stops_.stop(stops_.matched()); }

 private:
  struct HeldToken {
    int32_t id;
    uint64_t begin;  // offset of its text in the stream
    bool has_logprobs;
    PositionLogprobs logprobs;
  };
  // Gives out text up to stream offset `end` and the ids that go with it.
  void Release(uint64_t end, bool all_ids, TokenEvent* event);

  StopDetector stops_;
  bool include_stop_;
  std::string held_text_;  // text of the stream from offset released_
  uint64_t released_ = 0;  // bytes given out
  std::deque<HeldToken> held_tokens_;
};

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_TEXT_OUTPUT_H_
