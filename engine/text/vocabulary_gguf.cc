// The tokenizer.ggml.* keys of a GGUF file, and embergate.eos_token_ids (an array; llama.cpp's format has one id only).
#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/text/vocabulary.h"
#include "engine/text/vocabulary_internal.h"
#include "storage/base/status_macros.h"

namespace embergate::engine {
namespace {

constexpr char kModel[] = "tokenizer.ggml.model";
constexpr char kTokens[] = "tokenizer.ggml.tokens";
constexpr char kScores[] = "tokenizer.ggml.scores";
constexpr char kTypes[] = "tokenizer.ggml.token_type";
constexpr char kMerges[] = "tokenizer.ggml.merges";
constexpr char kChatTemplate[] = "tokenizer.chat_template";
constexpr char kEosIds[] = "embergate.eos_token_ids";
// Other keys with ids that end a generation: Ollama's list, and llama.cpp's "end of message".
constexpr char kOtherEosIds[] = "tokenizer.ggml.eos_token_ids";
constexpr char kEndOfMessage[] = "tokenizer.ggml.eom_token_id";

struct IdKey {
  const char* key;
  int32_t Vocabulary::*id;
};
constexpr IdKey kIds[] = {
    {"tokenizer.ggml.bos_token_id", &Vocabulary::bos_id},
    {"tokenizer.ggml.eos_token_id", &Vocabulary::eos_id},
    {"tokenizer.ggml.eot_token_id", &Vocabulary::eot_id},
    {"tokenizer.ggml.unknown_token_id", &Vocabulary::unknown_id},
    {"tokenizer.ggml.padding_token_id", &Vocabulary::padding_id},
};
struct FlagKey {
  const char* key;
  bool Vocabulary::*flag;
};
constexpr FlagKey kFlags[] = {
    {"tokenizer.ggml.add_bos_token", &Vocabulary::add_bos},
    {"tokenizer.ggml.add_eos_token", &Vocabulary::add_eos},
    {"tokenizer.ggml.add_space_prefix", &Vocabulary::add_space_prefix},
};

// Other engines show a user-defined token in the text and hide a control token. Their chat parsers read these from
// the text, so the stock converter types them as user-defined; so do we.
constexpr absl::string_view kShownByOthers[] = {
    "<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", "<|\"|>",
};

}  // namespace

absl::StatusOr<Vocabulary> VocabularyFromGguf(const storage::GgufFile& file) {
  if (!file.Has(kModel) || !file.Has(kTokens)) {
    return absl::NotFoundError(absl::StrCat(file.shard_path(0), ": no tokenizer (", kModel, " and ", kTokens, ")"));
  }
  Vocabulary vocabulary;
  EMBERGATE_ASSIGN_OR_RETURN(const absl::string_view model, file.GetString(kModel));
  vocabulary.model = std::string(model);
  {
    EMBERGATE_ASSIGN_OR_RETURN(const std::vector<absl::string_view> tokens, file.GetStrings(kTokens));
    if (tokens.size() > kTokensMax) {
      return absl::InvalidArgumentError(
          absl::StrCat(kTokens, " has ", tokens.size(), " entries; at most ", kTokensMax));
    }
    vocabulary.tokens.reserve(tokens.size());
    for (const absl::string_view token : tokens) {
      vocabulary.tokens.emplace_back(token);
    }
  }
  if (file.Has(kScores)) {
    EMBERGATE_ASSIGN_OR_RETURN(vocabulary.scores, file.GetFloats(kScores));
  }
  if (file.Has(kTypes)) {
    EMBERGATE_ASSIGN_OR_RETURN(const std::vector<int64_t> types, file.GetInts(kTypes));
    vocabulary.types.reserve(types.size());
    for (const int64_t type : types) {
      // Out-of-range numbers become 0, which CheckVocabulary refuses with the token's id.
      vocabulary.types.push_back(static_cast<TokenType>(type >= 1 && type <= 6 ? type : 0));
    }
  } else {
    vocabulary.types.assign(vocabulary.tokens.size(), TokenType::kNormal);
  }
  if (vocabulary.model == "gemma4" && !file.Has(kMerges)) {
    return absl::InvalidArgumentError(
        absl::StrCat(file.shard_path(0), ": ", kModel, " is 'gemma4', which needs ", kMerges));
  }
  if (file.Has(kMerges)) {
    EMBERGATE_ASSIGN_OR_RETURN(const std::vector<absl::string_view> merges, file.GetStrings(kMerges));
    if (merges.size() > kMergesMax) {
      return absl::InvalidArgumentError(
          absl::StrCat(kMerges, " has ", merges.size(), " entries; at most ", kMergesMax));
    }
    vocabulary.merges.reserve(merges.size());
    for (const absl::string_view merge : merges) {
      vocabulary.merges.emplace_back(merge);
    }
  }
  for (const IdKey& entry : kIds) {
    if (file.Has(entry.key)) {
      EMBERGATE_ASSIGN_OR_RETURN(const int64_t id, file.GetInt(entry.key));
      if (id < -1 || id >= static_cast<int64_t>(vocabulary.tokens.size())) {
        return absl::InvalidArgumentError(
            absl::StrCat(entry.key, " is ", id, " but there are ", vocabulary.tokens.size(), " tokens"));
      }
      vocabulary.*entry.id = static_cast<int32_t>(id);
    }
  }
  vocabulary.add_space_prefix = vocabulary.model == "llama";  // the format's default for that kind
  for (const FlagKey& entry : kFlags) {
    if (file.Has(entry.key)) {
      EMBERGATE_ASSIGN_OR_RETURN(vocabulary.*entry.flag, file.GetBool(entry.key));
    }
  }
  for (const char* key : {kEosIds, kOtherEosIds}) {
    if (!file.Has(key)) {
      continue;
    }
    EMBERGATE_ASSIGN_OR_RETURN(const std::vector<int64_t> ids, file.GetInts(key));
    for (const int64_t id : ids) {
      if (id < 0 || id >= static_cast<int64_t>(vocabulary.tokens.size())) {
        return absl::InvalidArgumentError(
            absl::StrCat(key, " holds ", id, " but there are ", vocabulary.tokens.size(), " tokens"));
      }
      if (std::find(vocabulary.eos_ids.begin(), vocabulary.eos_ids.end(), id) == vocabulary.eos_ids.end()) {
        vocabulary.eos_ids.push_back(static_cast<int32_t>(id));
      }
    }
  }
  if (file.Has(kChatTemplate)) {
    EMBERGATE_ASSIGN_OR_RETURN(const absl::string_view chat_template, file.GetString(kChatTemplate));
    vocabulary.chat_template = std::string(chat_template);
  }
  const absl::Status status = CompleteVocabulary(TokenizerConfig(), vocabulary);
  if (!status.ok()) {
    return absl::Status(status.code(), absl::StrCat(file.shard_path(0), ": ", std::string(status.message())));
  }
  if (file.Has(kEndOfMessage)) {
    EMBERGATE_ASSIGN_OR_RETURN(const int64_t id, file.GetInt(kEndOfMessage));
    std::vector<int32_t>& ends = vocabulary.eos_ids;
    if (id >= 0 && id < static_cast<int64_t>(vocabulary.tokens.size()) &&
        std::find(ends.begin(), ends.end(), id) == ends.end()) {
      ends.push_back(static_cast<int32_t>(id));
    }
  }
  return vocabulary;
}

void AddVocabularyToGguf(const Vocabulary& vocabulary, storage::GgufWriter& writer) {
  writer.AddString(kModel, vocabulary.model);
  writer.AddStrings(kTokens, vocabulary.tokens);
  if (!vocabulary.scores.empty()) {
    writer.AddFloats(kScores, vocabulary.scores);
  }
  std::vector<int32_t> types;
  types.reserve(vocabulary.types.size());
  for (size_t id = 0; id < vocabulary.types.size(); ++id) {
    TokenType type = vocabulary.types[id];
    for (const absl::string_view shown : kShownByOthers) {
      if (type == TokenType::kControl && shown == vocabulary.tokens[id]) {
        type = TokenType::kUserDefined;
      }
    }
    types.push_back(static_cast<int32_t>(type));
  }
  writer.AddInt32s(kTypes, types);
  if (vocabulary.model == "gemma4") {
    writer.AddStrings(kMerges, vocabulary.merges);
  }
  for (const IdKey& entry : kIds) {
    if (vocabulary.*entry.id >= 0) {
      writer.AddUint32(entry.key, static_cast<uint32_t>(vocabulary.*entry.id));
    }
  }
  for (const FlagKey& entry : kFlags) {
    writer.AddBool(entry.key, vocabulary.*entry.flag);
  }
  if (!vocabulary.eos_ids.empty()) {
    writer.AddInt32s(kEosIds, vocabulary.eos_ids);
  }
  if (!vocabulary.chat_template.empty()) {
    writer.AddString(kChatTemplate, vocabulary.chat_template);
  }
}

}  // namespace embergate::engine
