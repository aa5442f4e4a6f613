// A tokenizer's data as a GGUF file's tokenizer.ggml.* keys hold it; read from and written to GGUF, and made from
// tokenizer.json or tokenizer.model by `convert`.
#ifndef EMBERGATE_ENGINE_TEXT_VOCABULARY_H_
#define EMBERGATE_ENGINE_TEXT_VOCABULARY_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "storage/gguf_file.h"
#include "storage/gguf_writer.h"

namespace embergate::engine {

inline constexpr size_t kPieceBytesMax = 1024;  // the longest of Gemma's have about 150
inline constexpr size_t kTokensMax = (1u << 21) - 1;
inline constexpr size_t kMergesMax = (1u << 22) - 2;

enum class TokenType : int32_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };

struct Vocabulary {
  std::string model;                // tokenizer.ggml.model: "gemma4" (BPE with merges) or "llama" (scores)
  std::vector<std::string> tokens;  // pieces as stored: U+2581 for a space, <0xNN> for a byte
  std::vector<float> scores;        // empty or one per token
  std::vector<TokenType> types;     // one per token
  std::vector<std::string> merges;  // "left right", best first; not used by "llama"
  int32_t bos_id = -1;              // -1 = none
  int32_t eos_id = -1;
  int32_t eot_id = -1;
  int32_t unknown_id = -1;
  int32_t padding_id = -1;
  std::vector<int32_t> eos_ids;  // every id that ends a generation, eos_id and eot_id included
  bool add_bos = true;
  bool add_eos = false;
  bool add_space_prefix = false;
  std::string chat_template;
};

// Every function that makes a vocabulary types the pieces which carry the chat format ("<|turn>", "<start_of_turn>",
// "<unused7>", ...) as kControl, whatever the source says: published files type some of them as user-defined, which
// would let a user's text forge them. AddVocabularyToGguf writes those back as other readers of GGUF want them.

// NOT_FOUND if the file has no tokenizer; INVALID_ARGUMENT for lists that disagree, naming the key.
absl::StatusOr<Vocabulary> VocabularyFromGguf(const storage::GgufFile& file);
void AddVocabularyToGguf(const Vocabulary& vocabulary, storage::GgufWriter& writer);
// `json` is a Hugging Face tokenizer.json; `config_json` a tokenizer_config.json or empty.
absl::StatusOr<Vocabulary> VocabularyFromTokenizerJson(absl::string_view json, absl::string_view config_json);
// `bytes` is a SentencePiece tokenizer.model (a protobuf, parsed by hand: see the .cc). `config_json` as above.
absl::StatusOr<Vocabulary> VocabularyFromSentencePiece(absl::string_view bytes, absl::string_view config_json);
// From a Hugging Face folder: tokenizer.json if there, else tokenizer.model. `family` ("gemma4" or "gemma3n") picks
// the GGUF kind where the source allows both. NOT_FOUND if the folder has neither. Also takes chat_template.jinja and
// the end-of-sequence ids of generation_config.json from there.
absl::StatusOr<Vocabulary> VocabularyFromFolder(const std::string& folder, absl::string_view family);

// Changes between the kinds "gemma4" and "llama" in place: scores from the order of merges, or merges from scores
// (every split of a piece into two pieces, better scores first, as Hugging Face's converter makes them).
absl::Status ConvertVocabularyKind(absl::string_view kind, Vocabulary& vocabulary);
// Whether a piece belongs to the chat format or is a reserved one, by its spelling.
bool LooksLikeFormatToken(absl::string_view piece);

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_TEXT_VOCABULARY_H_
