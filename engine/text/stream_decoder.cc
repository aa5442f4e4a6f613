#include "engine/text/stream_decoder.h"

#include "engine/text/utf8.h"

namespace embergate::engine {

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, bool special) : tokenizer_(tokenizer), special_(special) {}

std::string StreamDecoder::Push(int32_t id) {
  std::string text;
  const absl::string_view bytes =
      special_ && tokenizer_.IsControl(id) ? tokenizer_.Piece(id) : tokenizer_.TokenBytes(id);
  AppendUtf8Lossy(bytes, pending_, text);
  return text;
}

std::string StreamDecoder::Finish() {
  std::string text;
  FinishUtf8Lossy(pending_, text);
  return text;
}

}  // namespace embergate::engine
