#include "engine/text/vocabulary.h"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/text/json_util.h"
#include "engine/text/piece_table.h"
#include "engine/text/vocabulary_internal.h"
#include "nlohmann/json.hpp"
#include "storage/base/status_macros.h"

namespace embergate::engine {
namespace {

using ::nlohmann::json;

constexpr size_t kConfigBytesMax = 16u << 20;      // Gemma 3's tokenizer_config.json has 1.2 MB
constexpr size_t kTokenizerBytesMax = 256u << 20;  // Gemma 3's tokenizer.json has 33 MB

// Markers that do not have the "<|...|>" look.
constexpr absl::string_view kFormatTokens[] = {
    "<pad>",
    "<bos>",
    "<eos>",
    "<mask>",
    "[multimodal]",
    "<start_of_turn>",
    "<end_of_turn>",
    "<start_of_image>",
    "<end_of_image>",
    "<start_of_audio>",
    "<end_of_audio>",
    "<image_soft_token>",
    "<audio_soft_token>",
};

// NOT_FOUND if there is no such file.
absl::StatusOr<std::string> ReadTextFile(const std::string& path, size_t bytes_max) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    return absl::NotFoundError(absl::StrCat("cannot open ", path));
  }
  std::string text;
  std::string chunk(1u << 20, '\0');
  while (file.read(chunk.data(), static_cast<std::streamsize>(chunk.size())) || file.gcount() > 0) {
    text.append(chunk, 0, static_cast<size_t>(file.gcount()));
    if (text.size() > bytes_max) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": larger than ", bytes_max, " bytes"));
    }
  }
  if (file.bad()) {
    return absl::UnavailableError(absl::StrCat(path, ": read error"));
  }
  return text;
}

absl::StatusOr<std::string> ReadOptionalTextFile(const std::string& path, size_t bytes_max) {
  absl::StatusOr<std::string> text = ReadTextFile(path, bytes_max);
  if (absl::IsNotFound(text.status())) {
    return std::string();
  }
  return text;
}

absl::StatusOr<json> ParseSmallJson(absl::string_view text) {
  EMBERGATE_ASSIGN_OR_RETURN(json value, ParseBoundedJson(text));
  if (!value.is_object()) {
    return absl::InvalidArgumentError("not a JSON object");
  }
  return value;
}

// "<bos>" or {"content":"<bos>",...}.
std::string TokenText(const json& config, const char* key) {
  const auto it = config.find(key);
  if (it == config.end()) {
    return "";
  }
  if (it->is_string()) {
    return it->get<std::string>();
  }
  if (it->is_object() && it->contains("content") && it->at("content").is_string()) {
    return it->at("content").get<std::string>();
  }
  return "";
}

int Flag(const json& config, const char* key) {
  const auto it = config.find(key);
  return it == config.end() || !it->is_boolean() ? -1 : static_cast<int>(it->get<bool>());
}

// A string, or a list of {"name":..., "template":...} of which the one named "default" counts.
std::string ChatTemplate(const json& config) {
  const auto it = config.find("chat_template");
  if (it == config.end()) {
    return "";
  }
  if (it->is_string()) {
    return it->get<std::string>();
  }
  if (it->is_array()) {
    for (const json& entry : *it) {
      if (entry.is_object() && entry.value("name", json()) == "default" && entry.contains("template") &&
          entry["template"].is_string()) {
        return entry["template"].get<std::string>();
      }
    }
  }
  return "";
}

void TakeToken(const Vocabulary& vocabulary, absl::string_view piece, int32_t& id) {
  if (!piece.empty()) {
    const int32_t found = FindToken(vocabulary, piece);
    id = found >= 0 ? found : id;
  }
}

// One id or a list of them.
std::vector<int32_t> EosIds(const json& generation_config) {
  std::vector<int32_t> ids;
  const auto add = [&ids](const json& value) {
    if (value.is_number_unsigned() && value.get<uint64_t>() < kTokensMax && ids.size() < 64) {
      ids.push_back(value.get<int32_t>());
    }
  };
  const auto it = generation_config.find("eos_token_id");
  if (it != generation_config.end() && it->is_array()) {
    for (const json& value : *it) {
      add(value);
    }
  } else if (it != generation_config.end()) {
    add(*it);
  }
  return ids;
}

}  // namespace

bool LooksLikeFormatToken(absl::string_view piece) {
  if (std::find(std::begin(kFormatTokens), std::end(kFormatTokens), piece) != std::end(kFormatTokens)) {
    return true;
  }
  if (piece.size() >= 4 && piece.front() == '<' && piece.back() == '>' &&
      (piece[1] == '|' || piece[piece.size() - 2] == '|')) {
    return true;  // <|turn>, <turn|>, <|image|>
  }
  if (absl::StartsWith(piece, "<unused") && absl::EndsWith(piece, ">")) {
    const absl::string_view number = piece.substr(7, piece.size() - 8);
    return !number.empty() && std::all_of(number.begin(), number.end(),
                                          [](char c) { return absl::ascii_isdigit(static_cast<unsigned char>(c)); });
  }
  return false;
}

int32_t FindToken(const Vocabulary& vocabulary, absl::string_view piece) {
  const auto it = std::find_if(vocabulary.tokens.begin(), vocabulary.tokens.end(),
                               [&](const std::string& token) { return absl::string_view(token) == piece; });
  return it == vocabulary.tokens.end() ? -1 : static_cast<int32_t>(it - vocabulary.tokens.begin());
}

absl::StatusOr<TokenizerConfig> ParseTokenizerConfig(absl::string_view text) {
  TokenizerConfig config;
  if (text.empty()) {
    return config;
  }
  absl::StatusOr<json> parsed = ParseSmallJson(text);
  if (!parsed.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("tokenizer_config.json: ", std::string(parsed.status().message())));
  }
  config.bos_token = TokenText(*parsed, "bos_token");
  config.eos_token = TokenText(*parsed, "eos_token");
  config.unknown_token = TokenText(*parsed, "unk_token");
  config.padding_token = TokenText(*parsed, "pad_token");
  config.eot_token = TokenText(*parsed, "eot_token");
  config.add_bos = Flag(*parsed, "add_bos_token");
  config.add_eos = Flag(*parsed, "add_eos_token");
  config.chat_template = ChatTemplate(*parsed);
  const auto added = parsed->find("added_tokens_decoder");
  if (added != parsed->end() && added->is_object()) {
    for (const json& token : *added) {
      if (token.is_object() && Flag(token, "special") == 1) {
        config.special_tokens.insert(TokenText(token, "content"));
      }
    }
  }
  return config;
}

absl::Status CheckVocabulary(const Vocabulary& vocabulary) {
  const size_t count = vocabulary.tokens.size();
  const auto bad = [](auto... parts) { return absl::InvalidArgumentError(absl::StrCat("tokenizer: ", parts...)); };
  if (vocabulary.model != "gemma4" && vocabulary.model != "llama") {
    return absl::UnimplementedError(absl::StrCat("tokenizer.ggml.model is '", vocabulary.model,
                                                 "'; this engine serves 'gemma4' (BPE) and 'llama' (SentencePiece)"));
  }
  if (count == 0 || count > kTokensMax) {
    return bad(count, " tokens; from 1 to ", kTokensMax, " are possible");
  }
  if (vocabulary.types.size() != count) {
    return bad(count, " tokens but ", vocabulary.types.size(), " token types");
  }
  if (!vocabulary.scores.empty() && vocabulary.scores.size() != count) {
    return bad(count, " tokens but ", vocabulary.scores.size(), " scores");
  }
  if (vocabulary.model == "llama" && vocabulary.scores.empty()) {
    return bad("the kind 'llama' needs scores (tokenizer.ggml.scores)");
  }
  if (vocabulary.merges.size() > kMergesMax) {
    return bad(vocabulary.merges.size(), " merges; at most ", kMergesMax, " are possible");
  }
  for (size_t id = 0; id < count; ++id) {
    if (vocabulary.tokens[id].size() > kPieceBytesMax) {
      return bad("token ", id, " has ", vocabulary.tokens[id].size(), " bytes; at most ", kPieceBytesMax,
                 " are possible");
    }
    const int32_t type = static_cast<int32_t>(vocabulary.types[id]);
    if (type < 1 || type > 6) {
      return bad("token ", id, " has type ", type, "; types are 1 to 6");
    }
    if (vocabulary.types[id] == TokenType::kByte && ByteTokenValue(vocabulary.tokens[id]) < 0) {
      return bad("token ", id, " has type 6 (byte) but is not of the form <0xNN>");
    }
  }
  const auto check_id = [&](const char* name, int32_t id) -> absl::Status {
    if (id < -1 || id >= static_cast<int32_t>(count)) {
      return bad(name, " is ", id, " but there are ", count, " tokens");
    }
    return absl::OkStatus();
  };
  EMBERGATE_RETURN_IF_ERROR(check_id("the bos id", vocabulary.bos_id));
  EMBERGATE_RETURN_IF_ERROR(check_id("the eos id", vocabulary.eos_id));
  EMBERGATE_RETURN_IF_ERROR(check_id("the eot id", vocabulary.eot_id));
  EMBERGATE_RETURN_IF_ERROR(check_id("the unknown id", vocabulary.unknown_id));
  EMBERGATE_RETURN_IF_ERROR(check_id("the padding id", vocabulary.padding_id));
  for (const int32_t id : vocabulary.eos_ids) {
    EMBERGATE_RETURN_IF_ERROR(check_id("an end-of-sequence id", id));
  }
  if (vocabulary.unknown_id < 0) {
    std::vector<bool> bytes(256, false);
    for (size_t id = 0; id < count; ++id) {
      if (vocabulary.types[id] == TokenType::kByte) {
        bytes[static_cast<size_t>(ByteTokenValue(vocabulary.tokens[id]))] = true;
      }
    }
    if (std::find(bytes.begin(), bytes.end(), false) != bytes.end()) {
      return bad("neither an unknown token nor all 256 byte tokens: some texts would have no ids");
    }
  }
  return absl::OkStatus();
}

absl::Status CompleteVocabulary(const TokenizerConfig& config, Vocabulary& vocabulary) {
  if (vocabulary.types.size() != vocabulary.tokens.size()) {
    return CheckVocabulary(vocabulary);
  }
  TakeToken(vocabulary, config.bos_token, vocabulary.bos_id);
  TakeToken(vocabulary, config.eos_token, vocabulary.eos_id);
  TakeToken(vocabulary, config.unknown_token, vocabulary.unknown_id);
  TakeToken(vocabulary, config.padding_token, vocabulary.padding_id);
  TakeToken(vocabulary, config.eot_token, vocabulary.eot_id);
  if (vocabulary.eot_id < 0) {
    TakeToken(vocabulary, "<end_of_turn>", vocabulary.eot_id);
    TakeToken(vocabulary, "<turn|>", vocabulary.eot_id);
  }
  vocabulary.add_bos = config.add_bos < 0 ? vocabulary.add_bos : config.add_bos == 1;
  vocabulary.add_eos = config.add_eos < 0 ? vocabulary.add_eos : config.add_eos == 1;
  if (!config.chat_template.empty()) {
    vocabulary.chat_template = config.chat_template;
  }
  for (size_t id = 0; id < vocabulary.tokens.size(); ++id) {
    const bool listed = config.special_tokens.count(vocabulary.tokens[id]) > 0;
    TokenType& type = vocabulary.types[id];
    if ((type == TokenType::kUserDefined && LooksLikeFormatToken(vocabulary.tokens[id])) ||
        (listed && (type == TokenType::kUserDefined || type == TokenType::kNormal))) {
      type = TokenType::kControl;
    }
  }
  if (vocabulary.unknown_id >= 0 && vocabulary.unknown_id < static_cast<int32_t>(vocabulary.types.size())) {
    vocabulary.types[static_cast<size_t>(vocabulary.unknown_id)] = TokenType::kUnknown;
  }

  // Without a list of its own: the ids that Gemma's instruction-tuned models end with. (The file's one eos id may be
  // the end of the turn.)
  std::vector<int32_t>& ends = vocabulary.eos_ids;
  const bool derived = ends.empty();
  const auto add_end = [&ends](int32_t id) {
    if (id >= 0 && std::find(ends.begin(), ends.end(), id) == ends.end()) {
      ends.push_back(id);
    }
  };
  add_end(vocabulary.eos_id);
  if (derived) {
    add_end(FindToken(vocabulary, "<eos>"));
  }
  add_end(vocabulary.eot_id);
  if (derived) {
    add_end(FindToken(vocabulary, "<|tool_response>"));
  }
  return CheckVocabulary(vocabulary);
}

absl::StatusOr<Vocabulary> VocabularyFromFolder(const std::string& folder, absl::string_view family) {
  if (family != "gemma4" && family != "gemma3n") {
    return absl::InvalidArgumentError(
        absl::StrCat("unknown model family '", std::string(family), "'; known are gemma4 and gemma3n"));
  }
  EMBERGATE_ASSIGN_OR_RETURN(const std::string config,
                             ReadOptionalTextFile(folder + "/tokenizer_config.json", kConfigBytesMax));
  std::string path = folder + "/tokenizer.json";
  absl::StatusOr<std::string> bytes = ReadTextFile(path, kTokenizerBytesMax);
  const bool is_json = !absl::IsNotFound(bytes.status());
  if (!is_json) {
    path = folder + "/tokenizer.model";
    bytes = ReadTextFile(path, kTokenizerBytesMax);
    if (absl::IsNotFound(bytes.status())) {
      return absl::NotFoundError(absl::StrCat(folder, ": has neither tokenizer.json nor tokenizer.model"));
    }
  }
  if (!bytes.ok()) {
    return bytes.status();
  }
  absl::StatusOr<Vocabulary> vocabulary =
      is_json ? VocabularyFromTokenizerJson(*bytes, config) : VocabularyFromSentencePiece(*bytes, config);
  bytes->clear();
  if (!vocabulary.ok()) {
    return absl::Status(vocabulary.status().code(),
                        absl::StrCat(path, ": ", std::string(vocabulary.status().message())));
  }
  EMBERGATE_RETURN_IF_ERROR(ConvertVocabularyKind(family == "gemma4" ? "gemma4" : "llama", *vocabulary));

  EMBERGATE_ASSIGN_OR_RETURN(const std::string chat_template,
                             ReadOptionalTextFile(folder + "/chat_template.jinja", kConfigBytesMax));
  if (!chat_template.empty()) {
    vocabulary->chat_template = chat_template;
  }
  EMBERGATE_ASSIGN_OR_RETURN(const std::string generation,
                             ReadOptionalTextFile(folder + "/generation_config.json", kConfigBytesMax));
  if (!generation.empty()) {
    absl::StatusOr<json> parsed = ParseSmallJson(generation);
    if (!parsed.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat(folder, "/generation_config.json: ", std::string(parsed.status().message())));
    }
    std::vector<int32_t> ids = EosIds(*parsed);
    if (!ids.empty()) {
      vocabulary->eos_ids = std::move(ids);
    }
  }
  // Both families were trained with <bos> in front. Gemma 4's tokenizer_config.json says false only because its chat
  // template writes <bos> itself; Encode never makes two.
  vocabulary->add_bos = true;
  EMBERGATE_RETURN_IF_ERROR(CompleteVocabulary(TokenizerConfig(), *vocabulary));
  return vocabulary;
}

}  // namespace embergate::engine
