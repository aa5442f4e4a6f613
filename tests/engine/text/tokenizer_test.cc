#include "engine/text/tokenizer.h"

#include <algorithm>
#include <chrono>
#include <string>
#include <tuple>
#include <vector>

#include "engine/text/utf8.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/text/text_test_util.h"

namespace embergate::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using ::testing::IsEmpty;

// ---- Golden ids: every fixture, from both source formats, as both GGUF kinds, directly and through a file ----

using GoldenParam = std::tuple<const char*, const char*, const char*, bool>;

class TokenizerGoldenTest : public ::testing::TestWithParam<GoldenParam> {};

TEST_P(TokenizerGoldenTest, GivesTheReferencesIdsAndText) {
  const auto [name, source, kind, through_gguf] = GetParam();
  Vocabulary vocabulary = GoldenVocabulary(name, source, kind, through_gguf);
  // The fixtures' first column is SentencePiece's own answer, where every user-defined piece is found in the text.
  // Ours types those of the chat format as control tokens; this second tokenizer types them as the file did.
  Vocabulary as_stored = vocabulary;
  for (size_t id = 0; id < as_stored.tokens.size(); ++id) {
    if (as_stored.types[id] == TokenType::kControl && id > 3) {
      as_stored.types[id] = TokenType::kUserDefined;
    }
  }
  const auto tokenizer = MakeTokenizer(std::move(vocabulary));
  const auto stored = MakeTokenizer(std::move(as_stored));
  const nlohmann::json golden = ReadGoldenJson(std::string("tokenizer/") + name + ".golden.json");
  int cases = 0;
  for (const auto& golden_case : golden["cases"]) {
    const std::string text = golden_case["text"];
    const std::vector<int32_t> ids = golden_case["ids"];
    const std::vector<int32_t> json_ids = golden_case["tokenizer_json_ids"];
    EncodeOptions special;
    special.parse_special = true;
    EXPECT_THAT(tokenizer->Encode(text, special), ElementsAreArray(json_ids)) << text;
    EXPECT_THAT(stored->Encode(text, EncodeOptions()), ElementsAreArray(ids)) << text;
    EXPECT_EQ(stored->Decode(ids, /*special=*/true), std::string(golden_case["decoded"])) << text;
    for (size_t i = 0; i < ids.size(); ++i) {
      EXPECT_EQ(std::string(tokenizer->Piece(ids[i])), std::string(golden_case["pieces"][i])) << text;
    }
    for (const int32_t id : tokenizer->Encode(text, EncodeOptions())) {
      EXPECT_FALSE(tokenizer->IsControl(id)) << text;
    }
    EXPECT_EQ(tokenizer->Decode(tokenizer->Encode(text, EncodeOptions())), LettersToSpaces(text));
    ++cases;
  }
  EXPECT_EQ(cases, 50);
}

std::string GoldenName(const ::testing::TestParamInfo<GoldenParam>& param) {
  const auto [name, source, kind, through_gguf] = param.param;
  std::string joined = std::string(name) + "_" + source + "_" + kind + (through_gguf ? "_gguf" : "");
  std::replace(joined.begin(), joined.end(), '-', '_');
  return joined;
}

INSTANTIATE_TEST_SUITE_P(All, TokenizerGoldenTest,
                         ::testing::Combine(::testing::Values("gemma4-tiny", "gemma3n-tiny", "gemma4-like-16k"),
                                            ::testing::Values("json", "model"), ::testing::Values("gemma4", "llama"),
                                            ::testing::Bool()),
                         GoldenName);

}  // namespace
}  // namespace embergate::engine
