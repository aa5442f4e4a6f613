#include "engine/text/vocabulary.h"

#include <cstdio>
#include <functional>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_replace.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "storage/gguf_file.h"
#include "storage/gguf_writer.h"
#include "tests/engine/text/text_test_util.h"
#include "tests/support/temp_folder.h"

namespace embergate::engine {
namespace {

using ::nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

const std::string kTokenizers = std::string(EMBERGATE_GOLDEN_DIR) + "/tokenizer/";

void ExpectSame(const Vocabulary& a, const Vocabulary& b) {
  EXPECT_EQ(a.model, b.model);
  EXPECT_EQ(a.tokens, b.tokens);
  EXPECT_EQ(a.scores, b.scores);
  EXPECT_EQ(a.types, b.types);
  EXPECT_EQ(a.merges, b.merges);
  EXPECT_EQ(a.bos_id, b.bos_id);
  EXPECT_EQ(a.eos_id, b.eos_id);
  EXPECT_EQ(a.eot_id, b.eot_id);
  EXPECT_EQ(a.unknown_id, b.unknown_id);
  EXPECT_EQ(a.padding_id, b.padding_id);
  EXPECT_EQ(a.eos_ids, b.eos_ids);
  EXPECT_EQ(a.add_bos, b.add_bos);
  EXPECT_EQ(a.add_eos, b.add_eos);
  EXPECT_EQ(a.add_space_prefix, b.add_space_prefix);
  EXPECT_EQ(a.chat_template, b.chat_template);
}

TEST(VocabularyTest, SurvivesTheWayThroughAGgufFile) {
  for (const char* kind : {"gemma4", "llama"}) {
    Vocabulary vocabulary = GoldenVocabulary("gemma4-tiny", "model", kind);
    vocabulary.chat_template = "{{ bos_token }}";
    vocabulary.add_bos = false;
    ExpectSame(vocabulary, ThroughGguf(vocabulary));
  }
}

TEST(VocabularyTest, BothSourcesGiveTheSameTokensIdsAndMerges) {
  for (const char* name : {"gemma4-tiny", "gemma3n-tiny", "gemma4-like-16k"}) {
    const Vocabulary from_json = GoldenVocabulary(name, "json", "gemma4");
    const Vocabulary from_model = GoldenVocabulary(name, "model", "gemma4");
    EXPECT_EQ(from_json.tokens, from_model.tokens);
    const auto as_set = [](const std::vector<std::string>& merges) {
      return std::set<std::string>(merges.begin(), merges.end());
    };
    EXPECT_EQ(from_model.merges.size(), from_json.merges.size());
    EXPECT_TRUE(as_set(from_model.merges) == as_set(from_json.merges));
    EXPECT_EQ(from_json.bos_id, 2);
    EXPECT_EQ(from_json.eos_id, 1);
    EXPECT_EQ(from_json.padding_id, 0);
    EXPECT_EQ(from_json.unknown_id, 3);
    EXPECT_EQ(from_json.eot_id, 106);
    for (const Vocabulary* vocabulary : {&from_json, &from_model}) {
      EXPECT_EQ(vocabulary->eos_ids.front(), 1);
      EXPECT_EQ(vocabulary->types[105], TokenType::kControl);
      EXPECT_EQ(vocabulary->types[3], TokenType::kUnknown);
      EXPECT_EQ(vocabulary->eos_ids.size(), std::string(name) == "gemma3n-tiny" ? 2u : 3u);
    }
  }
}

TEST(VocabularyTest, MergesOfOnePieceAreOrderedByTheLengthOfTheLeftSide) {
  // As Hugging Face's converter orders them: better score first, then the longer left side.
  Vocabulary vocabulary;
  vocabulary.model = "llama";
  vocabulary.tokens = {"<unk>", "abc", "ab", "bc", "a", "b", "c"};
  vocabulary.types.assign(7, TokenType::kNormal);
  vocabulary.types[0] = TokenType::kUnknown;
  vocabulary.scores = {0, -1, -2, -3, -4, -5, -6};
  vocabulary.unknown_id = 0;
  ASSERT_TRUE(ConvertVocabularyKind("gemma4", vocabulary).ok());
  EXPECT_THAT(vocabulary.merges, ElementsAre("ab c", "a bc", "a b", "b c"));
  ASSERT_TRUE(ConvertVocabularyKind("llama", vocabulary).ok());
  EXPECT_THAT(vocabulary.scores, ElementsAre(0, 0, -1, -2, -3, -4, -5));
}

TEST(VocabularyTest, PiecesOfTheChatFormatAreControlTokensWhateverTheFileSays) {
  Vocabulary vocabulary = GoldenVocabulary("gemma4-tiny", "json", "gemma4");
  for (const int id : {46, 47, 48, 49, 50, 51, 52, 98, 100, 101, 105, 106, 6, 4, 5}) {
    EXPECT_EQ(vocabulary.types[static_cast<size_t>(id)], TokenType::kControl)
        << vocabulary.tokens[static_cast<size_t>(id)];
    vocabulary.types[static_cast<size_t>(id)] = TokenType::kUserDefined;  // as in published files
  }
  const Vocabulary read = ThroughGguf(vocabulary);
  for (const int id : {46, 47, 48, 49, 50, 51, 52, 98, 100, 101, 105, 106, 6, 4, 5}) {
    EXPECT_EQ(read.types[static_cast<size_t>(id)], TokenType::kControl);
  }
}

TEST(VocabularyTest, OnlyMarkersLookLikeFormatTokens) {
  for (const char* piece : {"<|turn>", "<turn|>", "<|\"|>", "<|image|>", "<start_of_turn>", "<unused0>", "<unused6241>",
                            "<mask>", "[multimodal]", "<image_soft_token>"}) {
    EXPECT_TRUE(LooksLikeFormatToken(piece)) << piece;
  }
  for (const char* piece : {"<table>", "</h1>", "\n\n", "▁▁", "<", "<>", "<|>", "<unused>", "<unusedx>", "a", ""}) {
    EXPECT_FALSE(LooksLikeFormatToken(piece)) << piece;
  }
}

TEST(VocabularyTest, AFolderGivesTheKindOfItsFamilyAndTheGenerationsEndings) {
  const std::string golden = std::string(EMBERGATE_GOLDEN_DIR) + "/";
  auto gemma4 = VocabularyFromFolder(golden + "gemma4-tiny-e2b", "gemma4");
  ASSERT_TRUE(gemma4.ok()) << gemma4.status();
  EXPECT_EQ(gemma4->model, "gemma4");
  EXPECT_THAT(gemma4->eos_ids, ElementsAre(1, 106, 50));
  EXPECT_TRUE(gemma4->add_bos);
  auto gemma3n = VocabularyFromFolder(golden + "gemma3n-tiny-e2b", "gemma3n");
  ASSERT_TRUE(gemma3n.ok()) << gemma3n.status();
  EXPECT_EQ(gemma3n->model, "llama");
  EXPECT_THAT(gemma3n->eos_ids, ElementsAre(1, 106));
  EXPECT_TRUE(absl::IsNotFound(VocabularyFromFolder(golden + "chat", "gemma4").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(VocabularyFromFolder(golden, "llama").status()));
}

TEST(VocabularyTest, AFolderWithOnlyATokenizerModelAndATemplateFileWorks) {
  const test::TempFolder folder;
  folder.Write("tokenizer.model", ReadFile(kTokenizers + "gemma4-tiny.model"));
  folder.Write("chat_template.jinja", "the template");
  folder.Write("tokenizer_config.json", R"({"chat_template":"another","bos_token":{"content":"<bos>"}})");
  auto vocabulary = VocabularyFromFolder(folder.path(), "gemma4");
  ASSERT_TRUE(vocabulary.ok()) << vocabulary.status();
  EXPECT_EQ(vocabulary->chat_template, "the template");
  EXPECT_EQ(vocabulary->model, "gemma4");
  folder.Write("tokenizer_config.json", "{");
  EXPECT_FALSE(VocabularyFromFolder(folder.path(), "gemma4").ok());
}

// ---- tokenizer.json: other spellings, and what must be refused ----

json TinyJson() {
  return json::parse(R"({
    "added_tokens": [{"id": 0, "content": "<unk>", "special": true}],
    "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    "pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false},
    "model": {"type": "BPE", "unk_token": "<unk>", "byte_fallback": true,
              "vocab": {"<unk>": 0, "a": 1, "b": 2, "ab": 3, "<0x0A>": 4},
              "merges": ["a b"]}})");
}

absl::StatusOr<Vocabulary> Read(const json& value) { return VocabularyFromTokenizerJson(value.dump(), ""); }

TEST(VocabularyJsonTest, BothSpellingsOfMergesAreRead) {
  json value = TinyJson();
  const auto as_string = Read(value);
  ASSERT_TRUE(as_string.ok()) << as_string.status();
  value["model"]["merges"] = json::parse(R"([["a","b"]])");
  const auto as_pair = Read(value);
  ASSERT_TRUE(as_pair.ok()) << as_pair.status();
  EXPECT_THAT(as_string->merges, ElementsAre("a b"));
  EXPECT_EQ(as_string->merges, as_pair->merges);
  EXPECT_EQ(as_string->types[4], TokenType::kByte);
  EXPECT_EQ(as_string->unknown_id, 0);
}

TEST(VocabularyJsonTest, AddedTokensPastTheVocabularyLeaveNamedGaps) {
  json value = TinyJson();
  value["added_tokens"].push_back(json::parse(R"({"id": 8, "content": "<image_soft_token>", "special": true})"));
  value["added_tokens"].push_back(json::parse(R"({"id": 5, "content": "<h1>", "special": false})"));
  const auto vocabulary = Read(value);
  ASSERT_TRUE(vocabulary.ok()) << vocabulary.status();
  ASSERT_EQ(vocabulary->tokens.size(), 9u);
  EXPECT_EQ(vocabulary->types[8], TokenType::kControl);
  EXPECT_EQ(vocabulary->types[5], TokenType::kUserDefined);
  EXPECT_EQ(vocabulary->types[6], TokenType::kUnused);
  EXPECT_NE(vocabulary->tokens[6], vocabulary->tokens[7]);
}

TEST(VocabularyJsonTest, WhatItCannotDoIsRefusedByName) {
  const auto refused = [](const std::function<void(json&)>& change, const std::string& part) {
    json value = TinyJson();
    change(value);
    const auto vocabulary = Read(value);
    ASSERT_FALSE(vocabulary.ok()) << part;
    EXPECT_THAT(std::string(vocabulary.status().message()), HasSubstr(part));
  };
  refused([](json& v) { v["normalizer"] = json::parse(R"({"type":"NFKC"})"); }, "NFKC");
  refused([](json& v) { v["normalizer"] = json::parse(R"({"type":"Sequence"})"); }, "Sequence");
  refused([](json& v) { v["pre_tokenizer"] = json::parse(R"({"type":"ByteLevel"})"); }, "ByteLevel");
  refused([](json& v) { v["model"]["type"] = "Unigram"; }, "Unigram");
  refused([](json& v) { v["model"]["ignore_merges"] = true; }, "ignore_merges");
  refused([](json& v) { v["model"]["end_of_word_suffix"] = "</w>"; }, "end_of_word_suffix");
  refused([](json& v) { v.erase("model"); }, "model");
  refused([](json& v) { v["model"] = 1; }, "model");
  refused([](json& v) { v["model"]["vocab"] = json::object(); }, "vocab");
  refused([](json& v) { v["model"]["vocab"]["b"] = 1; }, "the id 1");
  refused([](json& v) { v["model"]["vocab"]["b"] = -1; }, "-1");
  refused([](json& v) { v["model"]["vocab"]["b"] = 70000; }, "70000");
  refused([](json& v) { v["model"]["vocab"]["b"] = uint64_t{1} << 63; }, "2^63");
  refused([](json& v) { v["model"]["vocab"]["b"] = "x"; }, "integer id");
  refused([](json& v) { v["model"]["vocab"]["b"] = json::array(); }, "array");
  refused([](json& v) { v["model"]["vocab"]["b"] = json::object(); }, "object");
  refused([](json& v) { v["model"]["merges"] = json::parse("[3]"); }, "merge 0");
  refused([](json& v) { v["model"]["merges"] = json::parse("[{}]"); }, "merges");
  refused([](json& v) { v["model"]["merges"] = json::parse(R"([["a"]])"); }, "1 parts");
  refused([](json& v) { v["model"]["merges"] = json::parse(R"([["a","b","c"]])"); }, "more than 2");
  refused([](json& v) { v["model"]["merges"] = json::parse(R"([[["a"]]])"); }, "too deep");
  refused([](json& v) { v["added_tokens"] = 3; }, "added_tokens");
  refused([](json& v) { v["added_tokens"][0].erase("id"); }, "added_tokens[0]");
  refused([](json& v) { v["added_tokens"][0]["id"] = 100000; }, "100000");
  refused([](json& v) { v["added_tokens"][0]["special"] = false, v["added_tokens"][0]["lstrip"] = true; }, "lstrip");
  refused([](json& v) { v["model"]["vocab"][std::string(2000, 'x')] = 5; }, "2000 bytes");
}

TEST(VocabularyJsonTest, AMergeOfUnknownPiecesIsRefusedWhenItIsUsed) {
  json value = TinyJson();
  for (const char* merge : {"a c", "c b", "b a", "ab", "a ", " b"}) {
    value["model"]["merges"] = json::array({merge});
    auto vocabulary = Read(value);
    ASSERT_TRUE(vocabulary.ok()) << vocabulary.status();
    const auto tokenizer = Tokenizer::Create(*vocabulary);
    ASSERT_FALSE(tokenizer.ok()) << merge;
    EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr("merge 0"));
  }
}

TEST(VocabularyJsonTest, BrokenAndHostileJsonGivesAnError) {
  for (const std::string& text :
       {std::string(), std::string("["), std::string("[]"), std::string("1"), std::string("{\"model\":"),
        std::string("{\"model\":{\"vocab\":{\"a\":1,}}}"), std::string(1000000, '['),
        "{\"a\":" + std::string(1000000, '['), std::string("\xFF\xFE"), std::string("{\"model\":{\"vocab\":[]}}"),
        std::string("{\"model\":{\"merges\":{}}}")}) {
    EXPECT_FALSE(VocabularyFromTokenizerJson(text, "").ok()) << text.substr(0, 40);
  }
  EXPECT_FALSE(VocabularyFromTokenizerJson(TinyJson().dump(), "[1]").ok());
  EXPECT_FALSE(VocabularyFromTokenizerJson(TinyJson().dump(), "{" + std::string(100000, '[')).ok());
}

TEST(VocabularyJsonTest, EveryTruncationGivesAnError) {
  const std::string text = TinyJson().dump();
  for (size_t size = 0; size < text.size(); ++size) {
    EXPECT_FALSE(VocabularyFromTokenizerJson(text.substr(0, size), "").ok()) << size;
  }
}

// ---- tokenizer.model ----

// Wire format by hand.
std::string Varint(uint64_t value) {
  std::string out;
  for (; value >= 0x80; value >>= 7) out += static_cast<char>(0x80 | (value & 0x7F));
  return out + static_cast<char>(value);
}
std::string NumberField(int field, uint64_t value) { return Varint(static_cast<uint64_t>(field) << 3) + Varint(value); }
std::string BytesField(int field, const std::string& bytes) {
  return Varint((static_cast<uint64_t>(field) << 3) | 2) + Varint(bytes.size()) + bytes;
}
std::string PieceField(const std::string& piece, int type) {
  return BytesField(1, BytesField(1, piece) + (type == 1 ? "" : NumberField(3, static_cast<uint64_t>(type))));
}
std::string Trainer(const std::string& more = "") { return BytesField(2, NumberField(3, 2) + more); }
std::string Normalizer() { return BytesField(3, NumberField(3, 0) + NumberField(4, 0)); }
std::string SmallModel() {
  return PieceField("<unk>", 2) + PieceField("<s>", 3) + PieceField("</s>", 3) + PieceField("a", 1) + Trainer() +
         Normalizer();
}

TEST(VocabularySentencePieceTest, AbsentFieldsHaveTheFormatsDefaults) {
  const auto vocabulary = VocabularyFromSentencePiece(SmallModel(), "");
  ASSERT_TRUE(vocabulary.ok()) << vocabulary.status();
  EXPECT_THAT(vocabulary->tokens, ElementsAre("<unk>", "<s>", "</s>", "a"));
  EXPECT_EQ(vocabulary->unknown_id, 0);
  EXPECT_EQ(vocabulary->bos_id, 1);
  EXPECT_EQ(vocabulary->eos_id, 2);
  EXPECT_EQ(vocabulary->padding_id, -1);
  EXPECT_EQ(vocabulary->types[3], TokenType::kNormal);
}

TEST(VocabularySentencePieceTest, NegativeIdsMeanNone) {
  const auto vocabulary = VocabularyFromSentencePiece(
      PieceField("<unk>", 2) + PieceField("a", 1) + Normalizer() +
          Trainer(NumberField(41, ~uint64_t{0}) + NumberField(42, ~uint64_t{0}) + NumberField(43, ~uint64_t{0})),
      "");
  ASSERT_TRUE(vocabulary.ok()) << vocabulary.status();
  EXPECT_EQ(vocabulary->bos_id, -1);
  EXPECT_EQ(vocabulary->eos_id, -1);
}

TEST(VocabularySentencePieceTest, UnknownFieldsOfAnyTypeAreSteppedOver) {
  const std::string more = NumberField(99, 7) + BytesField(4, "test data") + Varint((9u << 3) | 1) + "12345678" +
                           Varint((8u << 3) | 5) + "1234";
  const auto vocabulary = VocabularyFromSentencePiece(more + SmallModel() + more, "");
  ASSERT_TRUE(vocabulary.ok()) << vocabulary.status();
  EXPECT_EQ(vocabulary->tokens.size(), 4u);
}

TEST(VocabularySentencePieceTest, WhatItCannotDoIsRefusedByName) {
  const auto refused = [](const std::string& bytes, const std::string& part) {
    const auto vocabulary = VocabularyFromSentencePiece(bytes, "");
    ASSERT_FALSE(vocabulary.ok()) << part;
    EXPECT_THAT(std::string(vocabulary.status().message()), HasSubstr(part));
  };
  const std::string pieces = PieceField("<unk>", 2) + PieceField("<s>", 3) + PieceField("</s>", 3);
  refused(pieces + BytesField(2, NumberField(3, 1)) + Normalizer(), "model type 1");
  refused(pieces + Trainer(NumberField(24, 1)) + Normalizer(), "suffix");
  refused(pieces + Trainer() + BytesField(3, NumberField(4, 0) + BytesField(2, "map")), "maps characters");
  refused(pieces + Trainer() + BytesField(3, ""), "removes spaces");
  refused(pieces + Trainer() + BytesField(3, NumberField(4, 0) + NumberField(5, 0)), "unescaped");
  refused(pieces + Normalizer(), "missing");
  refused(pieces + Trainer(), "missing");
  refused(Trainer() + Normalizer(), "missing");
  refused(SmallModel() + PieceField("x", 9), "type 9");
  refused(SmallModel() + PieceField("x", 6), "<0xNN>");
  refused(SmallModel() + PieceField(std::string(5000, 'x'), 1), "5000 bytes");
  refused(pieces + Trainer(NumberField(41, 77)) + Normalizer(), "77");
  refused("\x0B", "wire type 3");
  refused(std::string("\x0A\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x01", 11), "are left");
  refused(std::string(11, '\xFF'), "longer than 10 bytes");
  refused("", "no SentencePiece model");
}

TEST(VocabularySentencePieceTest, NoTruncationAndNoChangedByteHurts) {
  const std::string bytes = ReadFile(kTokenizers + "gemma4-tiny.model");
  for (size_t size = 0; size < bytes.size(); size += 13) {
    (void)VocabularyFromSentencePiece(bytes.substr(0, size), "");
  }
  int refused = 0;
  for (size_t at = 0; at < bytes.size(); at += 7) {
    std::string changed = bytes;
    changed[at] = static_cast<char>(changed[at] ^ (1 << (at % 8)));
    auto vocabulary = VocabularyFromSentencePiece(changed, "");
    refused += vocabulary.ok() ? 0 : 1;
    if (vocabulary.ok()) {
      auto tokenizer = Tokenizer::Create(std::move(vocabulary).value());
      if (tokenizer.ok()) {
        (void)(*tokenizer)->Encode("some text <|turn> here", EncodeOptions());
      }
    }
  }
  EXPECT_GT(refused, 0);
}

// ---- GGUF ----

absl::Status ReadGguf(const std::function<void(storage::GgufWriter&)>& add) {
  const test::TempFolder folder;
  const std::string path = folder.File("v.gguf");
  auto writer = storage::GgufWriter::Create(path);
  EXPECT_TRUE(writer.ok());
  add(**writer);
  EXPECT_TRUE((*writer)->BeginData().ok());
  EXPECT_TRUE((*writer)->Finish().ok());
  auto file = storage::GgufFile::Open(path);
  EXPECT_TRUE(file.ok()) << file.status();
  return VocabularyFromGguf(**file).status();
}

TEST(VocabularyGgufTest, ListsThatDisagreeAreRefusedByKey) {
  EXPECT_TRUE(absl::IsNotFound(ReadGguf([](storage::GgufWriter&) {})));
  const auto refused = [](const std::function<void(storage::GgufWriter&)>& add, const std::string& part) {
    const absl::Status status = ReadGguf([&](storage::GgufWriter& writer) {
      writer.AddStrings("tokenizer.ggml.tokens", {"<unk>", "a"});
      writer.AddUint32("tokenizer.ggml.unknown_token_id", 0);
      add(writer);
    });
    EXPECT_FALSE(status.ok()) << part;
    EXPECT_THAT(std::string(status.message()), HasSubstr(part));
  };
  const auto llama = [](storage::GgufWriter& w) { w.AddString("tokenizer.ggml.model", "llama"); };
  const auto scores = [](storage::GgufWriter& w) { w.AddFloats("tokenizer.ggml.scores", {0.0f, 0.0f}); };
  refused([](storage::GgufWriter& w) { w.AddString("tokenizer.ggml.model", "gpt2"); }, "gpt2");
  refused([](storage::GgufWriter& w) { w.AddString("tokenizer.ggml.model", "gemma4"); }, "merges");
  refused([&](storage::GgufWriter& w) { llama(w); }, "scores");
  refused([&](storage::GgufWriter& w) { llama(w), w.AddFloats("tokenizer.ggml.scores", {0.0f}); }, "1 scores");
  refused([&](storage::GgufWriter& w) { llama(w), scores(w), w.AddInt32s("tokenizer.ggml.token_type", {1}); },
          "1 token types");
  refused(
      [&](storage::GgufWriter& w) {
        llama(w), scores(w), w.AddInt32s("tokenizer.ggml.token_type", {2, 7});
      },
      "token 1");
  refused([&](storage::GgufWriter& w) { llama(w), scores(w), w.AddUint32("tokenizer.ggml.bos_token_id", 2); },
          "bos_token_id");
  refused(
      [&](storage::GgufWriter& w) {
        llama(w), scores(w), w.AddInt32s("embergate.eos_token_ids", {1, 5});
      },
      "eos_token_ids");
  refused([&](storage::GgufWriter& w) { llama(w), scores(w), w.AddString("tokenizer.ggml.add_bos_token", "x"); },
          "add_bos");
}

TEST(VocabularyGgufTest, EveryKeyThatEndsAGenerationIsTaken) {
  const auto ends = [](const std::function<void(storage::GgufWriter&)>& add) {
    const std::string path = ::testing::TempDir() + "vocabulary_ends.gguf";
    auto writer = storage::GgufWriter::Create(path);
    EXPECT_TRUE(writer.ok()) << writer.status();
    // As llama.cpp's converter leaves them: one id of each kind, and no list.
    Vocabulary vocabulary = GoldenVocabulary("gemma4-tiny", "json", "gemma4");
    vocabulary.eos_ids.clear();
    vocabulary.eos_id = -1;
    vocabulary.eot_id = -1;
    AddVocabularyToGguf(vocabulary, **writer);
    add(**writer);
    EXPECT_TRUE((*writer)->BeginData().ok());
    EXPECT_TRUE((*writer)->Finish().ok());
    const auto file = storage::GgufFile::Open(path);
    EXPECT_TRUE(file.ok()) << file.status();
    auto read = VocabularyFromGguf(**file);
    EXPECT_TRUE(read.ok()) << read.status();
    return read.ok() ? read->eos_ids : std::vector<int32_t>();
  };
  using ::testing::UnorderedElementsAre;
  // The stock converter names the end of the turn as eos_token_id; <eos> and the call for a tool's answer end, too.
  EXPECT_THAT(ends([](storage::GgufWriter& w) { w.AddUint32("tokenizer.ggml.eos_token_id", 106); }),
              UnorderedElementsAre(106, 1, 50));
  EXPECT_THAT(ends([](storage::GgufWriter& w) {
                w.AddUint32("tokenizer.ggml.eos_token_id", 1);
                w.AddUint32("tokenizer.ggml.eot_token_id", 106);
                w.AddUint32("tokenizer.ggml.eom_token_id", 49);
              }),
              UnorderedElementsAre(1, 106, 50, 49));
  EXPECT_THAT(ends([](storage::GgufWriter& w) {
                w.AddInt32s("tokenizer.ggml.eos_token_ids", {1, 106, 106});
              }),
              UnorderedElementsAre(1, 106));
  EXPECT_THAT(ends([](storage::GgufWriter& w) { w.AddInt32s("embergate.eos_token_ids", {1}); }),
              UnorderedElementsAre(1, 106))
      << "the end of the turn, found by its spelling";
}

TEST(VocabularyGgufTest, SpacesInStoredUserDefinedPiecesMatchSpacesInTexts) {
  // The stock converter stores the runs of "▁" of a SentencePiece model as spaces.
  Vocabulary vocabulary = GoldenVocabulary("gemma3n-tiny", "model", "llama");
  const auto plain = MakeTokenizer(vocabulary);
  for (std::string& token : vocabulary.tokens) {
    if (token.find("▁▁") == 0) {
      token = absl::StrReplaceAll(token, {{"▁", " "}});
    }
  }
  const auto stored = MakeTokenizer(ThroughGguf(vocabulary));
  for (const char* text : {"  ", "a   b", "          x", "\n  \n"}) {
    EXPECT_EQ(plain->Encode(text, EncodeOptions()), stored->Encode(text, EncodeOptions())) << text;
    EXPECT_EQ(stored->Decode(stored->Encode(text, EncodeOptions())), text);
  }
}

}  // namespace
}  // namespace embergate::engine
