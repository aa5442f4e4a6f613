// Hugging Face's tokenizer.json. Its two big parts (262144 pieces, 514906 merges with Gemma) go straight into the
// vocabulary as the parser meets them; only the small rest becomes a JSON document.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/text/piece_table.h"
#include "engine/text/utf8.h"
#include "engine/text/vocabulary.h"
#include "engine/text/vocabulary_internal.h"
#include "nlohmann/json.hpp"
#include "storage/base/status_macros.h"

namespace embergate::engine {
namespace {

using ::nlohmann::json;

constexpr size_t kDepthMax = 64;
constexpr size_t kSmallValuesMax = 1u << 20;  // in the rest; Gemma 3's 6415 added tokens have 51320
constexpr size_t kGapMax = 1u << 16;          // ids that no piece has, below the largest id; Gemma 3n has 254

struct RawTokenizer {
  std::vector<std::pair<std::string, int64_t>> vocab;
  std::vector<std::string> merges;
  json rest = json::object();
};

// The events of nlohmann's parser. A handler that returns false stops the parser; `error` says why.
class Handler : public json::json_sax_t {
 public:
  explicit Handler(RawTokenizer& out) : out_(out) {}
  const std::string& error() const { return error_; }

  bool null() override { return Value(json()); }
  bool boolean(bool value) override { return Value(json(value)); }
  bool number_integer(number_integer_t value) override { return Number(value); }
  bool number_unsigned(number_unsigned_t value) override {
    return value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()) ? Stop("a number past 2^63")
                                                                              : Number(static_cast<int64_t>(value));
  }
  bool number_float(number_float_t value, const string_t&) override { return Value(json(value)); }
  bool string(string_t& value) override {
    if (region_ == Region::kMerges) {
      return Merge(value);
    }
    return Value(json(std::move(value)));
  }
  bool binary(binary_t&) override { return Stop("binary data"); }

  bool start_object(size_t) override {
    if (region_ != Region::kRest) {
      return Stop(region_ == Region::kVocab ? "model.vocab holds an object" : "model.merges holds an object");
    }
    if (InModel() && key_ == "vocab") {
      region_ = Region::kVocab;
      return Open();
    }
    return Open() && Push(json::object());
  }
  bool key(string_t& value) override {
    key_ = std::move(value);
    if (depth_ == 1) {
      top_key_ = key_;
    }
    return true;
  }
  bool end_object() override {
    --depth_;
    if (region_ == Region::kVocab) {
      region_ = Region::kRest;
    } else {
      stack_.pop_back();
    }
    return true;
  }
  bool start_array(size_t) override {
    if (region_ == Region::kVocab) {
      return Stop("model.vocab holds an array");
    }
    if (region_ == Region::kMerges) {
      if (depth_ != 3) {
        return Stop("model.merges nests too deep");
      }
      pair_.clear();
      return Open();
    }
    if (InModel() && key_ == "merges") {
      region_ = Region::kMerges;
      return Open();
    }
    return Open() && Push(json::array());
  }
  bool end_array() override {
    --depth_;
    if (region_ == Region::kMerges) {
      if (depth_ == 2) {
        region_ = Region::kRest;
        return true;
      }
      if (pair_.size() != 2) {
        return Stop(absl::StrCat("merge ", out_.merges.size(), " has ", pair_.size(), " parts, not 2"));
      }
      // A space can't reach the merging (it has become "▁"), so a merge of one never acts; GGUF could not spell it.
      const bool acts = !absl::StrContains(pair_[0], ' ') && !absl::StrContains(pair_[1], ' ');
      return !acts || AddMerge(absl::StrCat(pair_[0], " ", pair_[1]));
    }
    stack_.pop_back();
    return true;
  }
  bool parse_error(size_t, const std::string&, const nlohmann::detail::exception& e) override { return Stop(e.what()); }

 private:
  enum class Region { kRest, kVocab, kMerges };

  // Inside the object "model" of the top level, between its values.
  bool InModel() const { return depth_ == 2 && top_key_ == "model"; }
  bool Stop(std::string why) {
    error_ = std::move(why);
    return false;
  }
  bool Open() { return ++depth_ <= kDepthMax || Stop(absl::StrCat("nested deeper than ", kDepthMax)); }

  json* Place(json value) {
    if (stack_.empty()) {
      out_.rest = std::move(value);
      return &out_.rest;
    }
    json& parent = *stack_.back();
    if (parent.is_object()) {
      json& slot = parent[key_];
      slot = std::move(value);
      return &slot;
    }
    parent.push_back(std::move(value));
    return &parent.back();
  }
  // Parents never move while they are open: only their own last child is appended to.
  bool Push(json container) {
    if (++values_ > kSmallValuesMax) {
      return Stop("too many values");
    }
    stack_.push_back(Place(std::move(container)));
    return true;
  }
  bool Value(json value) {
    if (region_ == Region::kVocab) {
      return Stop(absl::StrCat("model.vocab gives a piece no integer id (entry ", out_.vocab.size(), ")"));
    }
    if (region_ == Region::kMerges) {
      return Stop(absl::StrCat("merge ", out_.merges.size(), " is neither a string nor a pair of strings"));
    }
    if (++values_ > kSmallValuesMax) {
      return Stop("too many values");
    }
    Place(std::move(value));
    return true;
  }
  bool Number(int64_t value) {
    if (region_ != Region::kVocab) {
      return Value(json(value));
    }
    if (out_.vocab.size() >= kTokensMax) {
      return Stop(absl::StrCat("model.vocab has more than ", kTokensMax, " pieces"));
    }
    out_.vocab.emplace_back(std::move(key_), value);
    return true;
  }
  bool Merge(std::string& text) {
    if (depth_ == 3) {
      return AddMerge(std::move(text));
    }
    if (pair_.size() == 2) {
      return Stop(absl::StrCat("merge ", out_.merges.size(), " has more than 2 parts"));
    }
    pair_.push_back(std::move(text));
    return true;
  }
  bool AddMerge(std::string merge) {
    if (out_.merges.size() >= kMergesMax) {
      return Stop(absl::StrCat("model.merges has more than ", kMergesMax, " entries"));
    }
    out_.merges.push_back(std::move(merge));
    return true;
  }

  RawTokenizer& out_;
  std::string error_;
  Region region_ = Region::kRest;
  size_t depth_ = 0;  // open objects and arrays
  size_t values_ = 0;
  std::string top_key_, key_;
  std::vector<json*> stack_;
  std::vector<std::string> pair_;
};

std::string TypeName(const json& value) {
  const auto it = value.is_object() ? value.find("type") : value.end();
  return value.is_object() && it != value.end() && it->is_string() ? it->get<std::string>() : "?";
}

std::string StringAt(const json& value, const char* key) {
  const auto it = value.find(key);
  return it != value.end() && it->is_string() ? it->get<std::string>() : "";
}

bool TrueAt(const json& value, const char* key) {
  const auto it = value.find(key);
  return it != value.end() && it->is_boolean() && it->get<bool>();
}

bool IsReplaceOfSpaces(const json& step) {
  if (TypeName(step) != "Replace" || StringAt(step, "content") != kSpaceLetter) {
    return false;
  }
  const auto pattern = step.find("pattern");
  return pattern != step.end() && pattern->is_object() && StringAt(*pattern, "String") == " ";
}

// Everything but " " to "▁", and "▁" in front, would change the text in a way that this engine does not do.
absl::Status ReadNormalizer(const json& rest, bool& spaces_replaced, Vocabulary& vocabulary) {
  const auto normalizer = rest.find("normalizer");
  if (normalizer == rest.end() || normalizer->is_null()) {
    return absl::OkStatus();
  }
  json steps = json::array({*normalizer});
  if (TypeName(*normalizer) == "Sequence") {
    const auto list = normalizer->find("normalizers");
    if (list == normalizer->end() || !list->is_array()) {
      return absl::InvalidArgumentError("normalizer: a Sequence without its list");
    }
    steps = *list;
  }
  for (const json& step : steps) {
    if (IsReplaceOfSpaces(step)) {
      spaces_replaced = true;
    } else if (TypeName(step) == "Prepend" && StringAt(step, "prepend") == kSpaceLetter) {
      vocabulary.add_space_prefix = true;
    } else {
      return absl::UnimplementedError(
          absl::StrCat("normalizer '", TypeName(step), "' is not one of Gemma's (spaces to U+2581)"));
    }
  }
  return absl::OkStatus();
}

absl::Status ReadPreTokenizer(const json& rest, bool spaces_replaced) {
  const auto pre = rest.find("pre_tokenizer");
  if (pre == rest.end() || pre->is_null()) {
    return absl::OkStatus();
  }
  // A split at spaces, of which the normalizer leaves none.
  if (TypeName(*pre) == "Split" && spaces_replaced) {
    const auto pattern = pre->find("pattern");
    if (pattern != pre->end() && pattern->is_object() && StringAt(*pattern, "String") == " ") {
      return absl::OkStatus();
    }
  }
  return absl::UnimplementedError(absl::StrCat("pre_tokenizer '", TypeName(*pre), "' is not one of Gemma's"));
}

absl::Status ReadModel(const json& rest, RawTokenizer& raw, Vocabulary& vocabulary) {
  const auto model = rest.find("model");
  if (model == rest.end() || !model->is_object()) {
    return absl::InvalidArgumentError("no object 'model'");
  }
  const std::string type = StringAt(*model, "type");
  if (!type.empty() && type != "BPE") {
    return absl::UnimplementedError(absl::StrCat("model type '", type, "'; this engine reads BPE"));
  }
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (!StringAt(*model, key).empty()) {
      return absl::UnimplementedError(absl::StrCat("model.", key, " is not empty"));
    }
  }
  if (TrueAt(*model, "ignore_merges")) {
    return absl::UnimplementedError("model.ignore_merges is true");
  }
  if (raw.vocab.empty()) {
    return absl::InvalidArgumentError("model.vocab is empty or missing");
  }
  int64_t largest = 0;
  for (const auto& [piece, id] : raw.vocab) {
    if (id < 0 || id >= static_cast<int64_t>(raw.vocab.size() + kGapMax)) {
      return absl::InvalidArgumentError(absl::StrCat("model.vocab has ", raw.vocab.size(), " pieces but the id ", id));
    }
    largest = std::max(largest, id);
  }
  vocabulary.tokens.resize(static_cast<size_t>(largest) + 1);
  vocabulary.types.resize(vocabulary.tokens.size(), TokenType::kUnused);
  for (auto& [piece, id] : raw.vocab) {
    const size_t at = static_cast<size_t>(id);
    if (vocabulary.types[at] != TokenType::kUnused) {
      return absl::InvalidArgumentError(absl::StrCat("model.vocab gives the id ", id, " to two pieces"));
    }
    vocabulary.types[at] = ByteTokenValue(piece) >= 0 ? TokenType::kByte : TokenType::kNormal;
    vocabulary.tokens[at] = std::move(piece);
  }
  const std::string unknown = StringAt(*model, "unk_token");
  if (!unknown.empty()) {
    vocabulary.unknown_id = FindToken(vocabulary, unknown);
  }
  raw.vocab = {};
  vocabulary.merges = std::move(raw.merges);
  return absl::OkStatus();
}

absl::Status ReadAddedTokens(const json& rest, Vocabulary& vocabulary) {
  const auto added = rest.find("added_tokens");
  if (added == rest.end() || added->is_null()) {
    return absl::OkStatus();
  }
  if (!added->is_array()) {
    return absl::InvalidArgumentError("added_tokens is not an array");
  }
  const size_t vocab_size = vocabulary.tokens.size();
  for (size_t i = 0; i < added->size(); ++i) {
    const json& token = (*added)[i];
    const auto id_field = token.is_object() ? token.find("id") : token.end();
    if (!token.is_object() || id_field == token.end() || !id_field->is_number_integer() ||
        StringAt(token, "content").empty()) {
      return absl::InvalidArgumentError(absl::StrCat("added_tokens[", i, "] has no integer 'id' or no 'content'"));
    }
    const int64_t id = id_field->get<int64_t>();
    if (id < 0 || id >= static_cast<int64_t>(vocab_size + added->size() + kGapMax)) {
      return absl::InvalidArgumentError(absl::StrCat("added_tokens[", i, "] has the id ", id));
    }
    const std::string content = StringAt(token, "content");
    const bool special = TrueAt(token, "special");
    if (!special && (TrueAt(token, "lstrip") || TrueAt(token, "rstrip") || TrueAt(token, "single_word"))) {
      return absl::UnimplementedError(absl::StrCat("added_tokens[", i, "] sets lstrip, rstrip or single_word"));
    }
    const size_t at = static_cast<size_t>(id);
    if (at >= vocabulary.tokens.size()) {
      vocabulary.tokens.resize(at + 1);
      vocabulary.types.resize(at + 1, TokenType::kUnused);
    }
    vocabulary.tokens[at] = content;
    vocabulary.types[at] = special ? TokenType::kControl : TokenType::kUserDefined;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Vocabulary> VocabularyFromTokenizerJson(absl::string_view text, absl::string_view config_json) {
  EMBERGATE_ASSIGN_OR_RETURN(TokenizerConfig config, ParseTokenizerConfig(config_json));
  RawTokenizer raw;
  Handler handler(raw);
  bool parsed = false;
  try {
    parsed = json::sax_parse(text.begin(), text.end(), &handler);
  } catch (const std::exception& e) {
    return absl::InvalidArgumentError(absl::StrCat("tokenizer.json: ", e.what()));
  }
  if (!parsed) {
    return absl::InvalidArgumentError(absl::StrCat("tokenizer.json: ", handler.error()));
  }
  if (!raw.rest.is_object()) {
    return absl::InvalidArgumentError("tokenizer.json: not a JSON object");
  }

  Vocabulary vocabulary;
  vocabulary.model = "gemma4";
  bool spaces_replaced = false;
  absl::Status status = ReadNormalizer(raw.rest, spaces_replaced, vocabulary);
  if (status.ok()) status = ReadPreTokenizer(raw.rest, spaces_replaced);
  if (status.ok()) status = ReadModel(raw.rest, raw, vocabulary);
  if (status.ok()) status = ReadAddedTokens(raw.rest, vocabulary);
  if (!status.ok()) {
    return absl::Status(status.code(), absl::StrCat("tokenizer.json: ", std::string(status.message())));
  }
  for (size_t id = 0; id < vocabulary.tokens.size(); ++id) {
    if (vocabulary.types[id] == TokenType::kUnused) {
      vocabulary.tokens[id] = absl::StrCat("[PAD", id, "]");
    }
  }
  config.bos_token = config.bos_token.empty() ? "<bos>" : config.bos_token;
  config.eos_token = config.eos_token.empty() ? "<eos>" : config.eos_token;
  config.padding_token = config.padding_token.empty() ? "<pad>" : config.padding_token;
  EMBERGATE_RETURN_IF_ERROR(CompleteVocabulary(config, vocabulary));
  return vocabulary;
}

}  // namespace embergate::engine
