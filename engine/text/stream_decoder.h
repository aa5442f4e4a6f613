// Incremental detokenising of one stream: whole UTF-8 characters only.
#ifndef EMBERGATE_ENGINE_TEXT_STREAM_DECODER_H_
#define EMBERGATE_ENGINE_TEXT_STREAM_DECODER_H_

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "engine/text/tokenizer.h"

namespace embergate::engine {

//   StreamDecoder decoder(tokenizer);
//   for (id : ids) text += decoder.Push(id);
//   text += decoder.Finish();          // equals tokenizer.Decode(ids)
//
// Holds back at most 3 bytes: the beginning of a character whose rest has not come. Bytes that can't become a
// character come out as U+FFFD at once. Borrows the tokenizer. Threads: one.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer, bool special = false);
  std::string Push(int32_t id);
  std::string Finish();

 private:
  const Tokenizer& tokenizer_;
  bool special_;
  std::string pending_;
};

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_TEXT_STREAM_DECODER_H_
