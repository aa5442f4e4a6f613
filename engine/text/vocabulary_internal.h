// Shared by the vocabulary_*.cc files; not for other modules.
#ifndef EMBERGATE_ENGINE_TEXT_VOCABULARY_INTERNAL_H_
#define EMBERGATE_ENGINE_TEXT_VOCABULARY_INTERNAL_H_

#include <cstdint>
#include <set>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/text/vocabulary.h"

namespace embergate::engine {

// What tokenizer_config.json says that matters here.
struct TokenizerConfig {
  std::string bos_token, eos_token, unknown_token, padding_token, eot_token;  // "" = not said
  std::set<std::string> special_tokens;                                       // of added_tokens_decoder
  int add_bos = -1;                                                           // -1 = not said, else 0 or 1
  int add_eos = -1;
  std::string chat_template;
};
// An empty text gives an empty config.
absl::StatusOr<TokenizerConfig> ParseTokenizerConfig(absl::string_view json);

// INVALID_ARGUMENT unless the lists agree in length, stay below the limits and hold what the model kind needs.
absl::Status CheckVocabulary(const Vocabulary& vocabulary);
// Ids, flags and types from `config`; then everything that all sources share: format tokens become control tokens, the
// end-of-turn id and the list of end-of-sequence ids are completed. Ends with CheckVocabulary.
absl::Status CompleteVocabulary(const TokenizerConfig& config, Vocabulary& vocabulary);
// -1 if there is none.
int32_t FindToken(const Vocabulary& vocabulary, absl::string_view piece);

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_TEXT_VOCABULARY_INTERNAL_H_
