// SentencePiece's tokenizer.model: a protocol buffer (sentencepiece_model.proto), read here by hand because the
// distribution's libsentencepiece can't live in one process with gRPC. Fields that matter:
//   ModelProto      1 pieces (repeated), 2 trainer_spec, 3 normalizer_spec
//   SentencePiece   1 piece (string), 2 score (float), 3 type (enum, default 1; numbered as in GGUF)
//   TrainerSpec     3 model_type (1 unigram, 2 BPE), 24 treat_whitespace_as_suffix, 40..43 unk, bos, eos, pad ids
//   NormalizerSpec  2 precompiled_charsmap, 3 add_dummy_prefix, 4 remove_extra_whitespaces, 5 escape_whitespaces
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/text/vocabulary.h"
#include "engine/text/vocabulary_internal.h"
#include "storage/base/status_macros.h"

namespace embergate::engine {
namespace {

// The fields of one message, one after the other. Anything malformed ends the reading with an error.
class FieldReader {
 public:
  // `offset` is where `message` lies in the file, for the errors.
  FieldReader(absl::string_view message, size_t offset) : rest_(message), offset_(offset) {}

  // False at the end of the message or after an error.
  bool Next() {
    if (rest_.empty() || !status_.ok()) {
      return false;
    }
    uint64_t tag = 0;
    if (!ReadVarint(tag)) {
      return false;
    }
    field_ = tag >> 3;
    wire_type_ = static_cast<int>(tag & 7);
    bytes_ = {};
    number_ = 0;
    switch (wire_type_) {
      case 0:
        return ReadVarint(number_);
      case 1:
        return Take(8, bytes_);
      case 5:
        return Take(4, bytes_);
      case 2: {
        uint64_t length = 0;
        return ReadVarint(length) && Take(length, bytes_);
      }
      default:
        return Fail(absl::StrCat("unknown wire type ", wire_type_));
    }
  }
  uint64_t field() const { return field_; }
  bool IsNumber() const { return wire_type_ == 0; }
  bool IsBytes() const { return wire_type_ == 2; }
  bool IsFloat() const { return wire_type_ == 5; }
  uint64_t number() const { return number_; }
  int32_t int32() const { return static_cast<int32_t>(static_cast<uint32_t>(number_)); }  // negative: 10 bytes
  absl::string_view bytes() const { return bytes_; }
  size_t bytes_offset() const { return offset_ - bytes_.size(); }
  float float_value() const {
    uint32_t bits = 0;
    for (int i = 3; i >= 0; --i) {
      bits = (bits << 8) | static_cast<uint8_t>(bytes_[static_cast<size_t>(i)]);
    }
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
  }
  const absl::Status& status() const { return status_; }

 private:
  bool Fail(const std::string& what) {
    status_ = absl::InvalidArgumentError(absl::StrCat("tokenizer.model: ", what, " at byte ", offset_));
    return false;
  }
  bool ReadVarint(uint64_t& value) {
    value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      if (rest_.empty()) {
        return Fail("the file ends inside a number");
      }
      const uint8_t byte = static_cast<uint8_t>(rest_[0]);
      rest_.remove_prefix(1);
      ++offset_;
      value |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) {
        return true;
      }
    }
    return Fail("a number longer than 10 bytes");
  }
  bool Take(uint64_t size, absl::string_view& out) {
    if (size > rest_.size()) {
      return Fail(absl::StrCat("a field of ", size, " bytes where ", rest_.size(), " are left"));
    }
    out = rest_.substr(0, static_cast<size_t>(size));
    rest_.remove_prefix(static_cast<size_t>(size));
    offset_ += static_cast<size_t>(size);
    return true;
  }

  absl::string_view rest_;
  size_t offset_;
  uint64_t field_ = 0;
  int wire_type_ = 0;
  uint64_t number_ = 0;
  absl::string_view bytes_;
  absl::Status status_;
};

absl::Status ReadPiece(absl::string_view message, size_t offset, Vocabulary& vocabulary) {
  if (vocabulary.tokens.size() >= kTokensMax) {
    return absl::InvalidArgumentError(absl::StrCat("tokenizer.model: more than ", kTokensMax, " pieces"));
  }
  std::string piece;
  float score = 0;
  int32_t type = 1;
  FieldReader reader(message, offset);
  while (reader.Next()) {
    if (reader.field() == 1 && reader.IsBytes()) {
      piece = std::string(reader.bytes());
    } else if (reader.field() == 2 && reader.IsFloat()) {
      score = reader.float_value();
    } else if (reader.field() == 3 && reader.IsNumber()) {
      type = reader.int32();
    }
  }
  EMBERGATE_RETURN_IF_ERROR(reader.status());
  if (type < 1 || type > 6) {
    return absl::InvalidArgumentError(
        absl::StrCat("tokenizer.model: piece ", vocabulary.tokens.size(), " has type ", type, "; types are 1 to 6"));
  }
  vocabulary.tokens.push_back(std::move(piece));
  vocabulary.scores.push_back(score);
  vocabulary.types.push_back(static_cast<TokenType>(type));
  return absl::OkStatus();
}

absl::Status ReadTrainer(absl::string_view message, size_t offset, Vocabulary& vocabulary) {
  uint64_t model_type = 1;
  bool suffix = false;
  FieldReader reader(message, offset);
  while (reader.Next()) {
    if (!reader.IsNumber()) {
      continue;
    }
    switch (reader.field()) {
      case 3:
        model_type = reader.number();
        break;
      case 24:
        suffix = reader.number() != 0;
        break;
      case 40:
        vocabulary.unknown_id = reader.int32();
        break;
      case 41:
        vocabulary.bos_id = reader.int32();
        break;
      case 42:
        vocabulary.eos_id = reader.int32();
        break;
      case 43:
        vocabulary.padding_id = reader.int32();
        break;
      default:
        break;
    }
  }
  EMBERGATE_RETURN_IF_ERROR(reader.status());
  if (model_type != 2) {
    return absl::UnimplementedError(
        absl::StrCat("tokenizer.model: model type ", model_type, "; this engine reads BPE (2)"));
  }
  if (suffix) {
    return absl::UnimplementedError("tokenizer.model: treat_whitespace_as_suffix is set");
  }
  return absl::OkStatus();
}

absl::Status ReadNormalizer(absl::string_view message, size_t offset, Vocabulary& vocabulary) {
  bool charsmap = false;
  bool remove_extra_whitespaces = true;
  bool escape_whitespaces = true;
  vocabulary.add_space_prefix = true;  // the defaults of the format
  FieldReader reader(message, offset);
  while (reader.Next()) {
    if (reader.field() == 2 && reader.IsBytes()) {
      charsmap = !reader.bytes().empty();
    } else if (reader.field() == 3 && reader.IsNumber()) {
      vocabulary.add_space_prefix = reader.number() != 0;
    } else if (reader.field() == 4 && reader.IsNumber()) {
      remove_extra_whitespaces = reader.number() != 0;
    } else if (reader.field() == 5 && reader.IsNumber()) {
      escape_whitespaces = reader.number() != 0;
    }
  }
  EMBERGATE_RETURN_IF_ERROR(reader.status());
  if (charsmap || remove_extra_whitespaces || !escape_whitespaces) {
    return absl::UnimplementedError(absl::StrCat("tokenizer.model: its normaliser ",
                                                 charsmap                   ? "maps characters"
                                                 : remove_extra_whitespaces ? "removes spaces"
                                                                            : "keeps spaces unescaped",
                                                 "; Gemma's is the identity apart from space to U+2581"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Vocabulary> VocabularyFromSentencePiece(absl::string_view bytes, absl::string_view config_json) {
  EMBERGATE_ASSIGN_OR_RETURN(const TokenizerConfig config, ParseTokenizerConfig(config_json));
  Vocabulary vocabulary;
  vocabulary.model = "llama";
  // Defaults of the format where a field is absent.
  vocabulary.unknown_id = 0;
  vocabulary.bos_id = 1;
  vocabulary.eos_id = 2;
  vocabulary.padding_id = -1;
  bool has_trainer = false;
  bool has_normalizer = false;
  FieldReader reader(bytes, 0);
  while (reader.Next()) {
    if (!reader.IsBytes()) {
      continue;
    }
    if (reader.field() == 1) {
      EMBERGATE_RETURN_IF_ERROR(ReadPiece(reader.bytes(), reader.bytes_offset(), vocabulary));
    } else if (reader.field() == 2) {
      has_trainer = true;
      EMBERGATE_RETURN_IF_ERROR(ReadTrainer(reader.bytes(), reader.bytes_offset(), vocabulary));
    } else if (reader.field() == 3) {
      has_normalizer = true;
      EMBERGATE_RETURN_IF_ERROR(ReadNormalizer(reader.bytes(), reader.bytes_offset(), vocabulary));
    }
  }
  EMBERGATE_RETURN_IF_ERROR(reader.status());
  if (vocabulary.tokens.empty() || !has_trainer || !has_normalizer) {
    return absl::InvalidArgumentError(
        "tokenizer.model: no SentencePiece model (pieces, trainer_spec or normalizer_spec is missing)");
  }
  EMBERGATE_RETURN_IF_ERROR(CompleteVocabulary(config, vocabulary));
  return vocabulary;
}

}  // namespace embergate::engine
