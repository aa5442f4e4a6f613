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

enum class TokenType : int32_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };

struct Vocabulary {
  std::string model;                // tokenizer.ggml.model: "gemma4" (BPE with merges) or "llama" (scores)
  std::vector<std::string> tokens;  // pieces as stored: U+2581 for a space, <0xNN> for a byte
  std::vector<float> scores;        // empty or one per token
  std::vector<TokenType> types;     // one per token
  std::vector<std::string> merges;  // "left right", best first; empty for "llama"
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

// NOT_FOUND if the file has no tokenizer; INVALID_ARGUMENT for lists that disagree, naming the key.
absl::StatusOr<Vocabulary> VocabularyFromGguf(const storage::GgufFile& file);
void AddVocabularyToGguf(const Vocabulary& vocabulary, storage::GgufWriter& writer);
// `json` is a Hugging Face tokenizer.json; `config_json` a tokenizer_config.json or empty.
absl::StatusOr<Vocabulary> VocabularyFromTokenizerJson(absl::string_view json, absl::string_view config_json);
// `bytes` is a SentencePiece tokenizer.model (a protobuf, parsed by hand: see the .cc). `config_json` as above.
absl::StatusOr<Vocabulary> VocabularyFromSentencePiece(absl::string_view bytes, absl::string_view config_json);
// From a Hugging Face folder: tokenizer.json if there, else tokenizer.model. `family` ("gemma4" or "gemma3n") picks
// the GGUF kind where the source allows both. NOT_FOUND if the folder has neither.
absl::StatusOr<Vocabulary> VocabularyFromFolder(const std::string& folder, absl::string_view family);

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_TEXT_VOCABULARY_H_
