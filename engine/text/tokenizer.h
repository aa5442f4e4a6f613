// Text to token ids and back, for both vocabulary kinds of GGUF files.
#ifndef EMBERGATE_ENGINE_TEXT_TOKENIZER_H_
#define EMBERGATE_ENGINE_TEXT_TOKENIZER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "engine/text/vocabulary.h"

namespace embergate::engine {

struct EncodeOptions {
  bool add_bos = false;        // prepend bos unless the text already begins with it (as a parsed special)
  bool parse_special = false;  // recognise control and user-defined special tokens (<|turn>, ...) in the text
};

// Threads: immutable, any thread. Encoding takes time in proportion to the text, O(n log n) for runs where everything
// may merge with everything (one letter a million times): a megabyte of the worst text takes 0.4 s with Gemma's
// vocabulary. What the two kinds mean:
//   "gemma4"  Hugging Face's: user-defined pieces are cut out of the text as it came, then merges by rank;
//   "llama"   SentencePiece's: user-defined pieces are cut out of the text with "▁" for spaces, then the neighbours
//             whose joined text is the piece of the best score merge. Unused pieces (type 5) never come of a text.
// Control tokens never come of a text unless `parse_special`.
class Tokenizer {
 public:
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Create(Vocabulary vocabulary);
  ~Tokenizer();

  // Any bytes are accepted; those that no piece covers become byte tokens (or unknown).
  std::vector<int32_t> Encode(absl::string_view text, const EncodeOptions& options) const;
  // The text of ids; control tokens give nothing unless `special`. Bytes that are no UTF-8 become U+FFFD, one for
  // each longest beginning of a character. Ids outside the vocabulary give nothing.
  std::string Decode(absl::Span<const int32_t> ids, bool special = false) const;

  // Raw bytes that a token adds to the text: one byte for a byte token, "" for control tokens.
  absl::string_view TokenBytes(int32_t id) const;
  // The piece as stored; "" outside the vocabulary.
  absl::string_view Piece(int32_t id) const;
  // The id of a piece as stored ("<|turn>"); -1 if there is none.
  int32_t FindPiece(absl::string_view piece) const;
  // Tokens that give no text: control, unknown and unused ones.
  bool IsControl(int32_t id) const;
  int32_t size() const;
  // Its ids, flags and chat template. The lists (tokens, scores, types, merges) are empty: they live on in a compact
  // form, about 17 MiB for Gemma's 262144 pieces; ask Piece and IsControl.
  const Vocabulary& vocabulary() const;
  size_t resident_bytes() const;

 private:
  struct Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_TEXT_TOKENIZER_H_
