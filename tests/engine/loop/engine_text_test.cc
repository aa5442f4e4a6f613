// Text through the engine: a real tokenizer over a small vocabulary, stop strings across token borders, characters of
// several bytes, and how text and ids go together.
#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/engine.h"
#include "engine/text/tokenizer.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/manual_clock.h"
#include "tests/support/recording_sink.h"
#include "tests/support/scripted_model.h"

namespace embergate::engine {
namespace {

using ::embergate::testing::ManualClock;
using ::embergate::testing::RecordingSink;
using ::embergate::testing::ScriptedModel;
using ::embergate::testing::ScriptedModelOptions;
using ::embergate::testing::TableScript;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr int32_t kEos = 1;
constexpr int32_t kTurn = 2;   // a control token with a piece
constexpr int32_t kBytes = 3;  // 256 byte tokens
constexpr int32_t kWords = kBytes + 256;

std::unique_ptr<Tokenizer> SmallTokenizer(const std::vector<std::string>& words) {
  Vocabulary vocabulary;
  vocabulary.model = "llama";
  const auto add = [&](const std::string& piece, TokenType type) {
    vocabulary.tokens.push_back(piece);
    vocabulary.types.push_back(type);
    vocabulary.scores.push_back(-static_cast<float>(vocabulary.tokens.size()));
  };
  add("<unk>", TokenType::kUnknown);
  add("<eos>", TokenType::kControl);
  add("<turn>", TokenType::kControl);
  for (int i = 0; i < 256; ++i) {
    char piece[8];
    std::snprintf(piece, sizeof piece, "<0x%02X>", static_cast<unsigned>(i));
    add(piece, TokenType::kByte);
  }
  for (const std::string& word : words) {
    add(word, TokenType::kNormal);
  }
  vocabulary.unknown_id = 0;
  vocabulary.eos_id = kEos;
  auto tokenizer = Tokenizer::Create(std::move(vocabulary));
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return *std::move(tokenizer);
}

// Runs one request on a model that says `script` (then end-of-sequence) after a prompt of one token.
class EngineTextTest : public ::testing::Test {
 protected:
  void Run(const std::vector<std::string>& words, std::vector<int32_t> script, GenerateRequest request) {
    const std::unique_ptr<Tokenizer> tokenizer = SmallTokenizer(words);
    ScriptedModelOptions options;
    options.limits = {tokenizer->size(), 512, 2, 64, 16};
    options.script = TableScript([script](absl::Span<const int32_t> context) {
      return context.size() <= script.size() ? script[context.size() - 1] : kEos;
    });
    ScriptedModel model(options);
    EngineOptions engine_options;
    engine_options.own_thread = false;
    auto engine = *Engine::Create(model, tokenizer.get(), {kEos}, engine_options);
    request.prompt = {0};
    request.sampling.temperature = 0;
    const auto id = engine->Submit(std::move(request), &sink_);
    ASSERT_TRUE(id.ok()) << id.status();
    while (engine->StepOnce()) {
    }
    ASSERT_TRUE(sink_.finish.has_value());
    EXPECT_THAT(sink_.violations, IsEmpty());
    EXPECT_THAT(model.violations(), IsEmpty());
  }

  RecordingSink sink_;
};

TEST_F(EngineTextTest, TextComesWithItsTokens) {
  Run({"Hel", "lo", "\xE2\x96\x81world"}, {kWords, kWords + 1, kWords + 2}, {});
  EXPECT_EQ(sink_.text, "Hello world");
  ASSERT_EQ(sink_.pieces.size(), 3u);
  EXPECT_EQ(sink_.pieces[1].text, "lo");
  EXPECT_THAT(sink_.pieces[1].ids, ElementsAre(kWords + 1));
  EXPECT_EQ(sink_.finish->reason, FinishReason::kStop);
  EXPECT_EQ(sink_.finish->stop_id, kEos);
}

TEST_F(EngineTextTest, ACharacterOfSeveralTokensComesOutWhole) {
  Run({"x"}, {kBytes + 0xE2, kBytes + 0x82, kBytes + 0xAC, kWords}, {});
  ASSERT_EQ(sink_.pieces.size(), 4u);
  EXPECT_EQ(sink_.pieces[0].text, "");
  EXPECT_EQ(sink_.pieces[1].text, "");
  EXPECT_EQ(sink_.pieces[2].text, "\xE2\x82\xAC");
  EXPECT_EQ(sink_.text, "\xE2\x82\xACx");
}

TEST_F(EngineTextTest, ACharacterThatIsCutOffEndsAsAReplacementCharacter) {
  Run({"x"}, {kWords, kBytes + 0xE2, kBytes + 0x82}, {});
  EXPECT_EQ(sink_.text, "x\xEF\xBF\xBD");
  EXPECT_THAT(sink_.ids, ElementsAre(kWords, kBytes + 0xE2, kBytes + 0x82));
}

TEST_F(EngineTextTest, AStopStringAcrossTokensEndsTheStreamBeforeIt) {
  GenerateRequest request;
  request.stop.stop_strings = {"</answer>"};
  Run({"42", "</", "answer", ">", "more"}, {kWords, kWords + 1, kWords + 2, kWords + 3, kWords + 4}, request);
  EXPECT_EQ(sink_.text, "42");
  EXPECT_THAT(sink_.ids, ElementsAre(kWords));
  EXPECT_EQ(sink_.finish->reason, FinishReason::kStopString);
  EXPECT_EQ(sink_.finish->stop_string, "</answer>");
  EXPECT_EQ(sink_.finish->stop_id, -1);
  EXPECT_EQ(sink_.finish->receipt.generated_tokens, 4);
}

TEST_F(EngineTextTest, IncludeStopGivesTheStopStringWithItsTokens) {
  GenerateRequest request;
  request.stop.stop_strings = {"</answer>"};
  request.stop.include_stop = true;
  Run({"42", "</", "answer", ">more", "more"}, {kWords, kWords + 1, kWords + 2, kWords + 3, kWords + 4}, request);
  EXPECT_EQ(sink_.text, "42</answer>");
  EXPECT_THAT(sink_.ids, ElementsAre(kWords, kWords + 1, kWords + 2, kWords + 3));
}

TEST_F(EngineTextTest, AStopStringOfByteTokensIsFoundByItsCharacters) {
  GenerateRequest request;
  request.stop.stop_strings = {"\xE2\x82\xAC"};
  Run({"x"}, {kWords, kBytes + 0xE2, kBytes + 0x82, kBytes + 0xAC, kWords}, request);
  EXPECT_EQ(sink_.text, "x");
  EXPECT_THAT(sink_.ids, ElementsAre(kWords));
  EXPECT_EQ(sink_.finish->reason, FinishReason::kStopString);
}

TEST_F(EngineTextTest, HeldTextIsFlushedWhenTheStreamEndsOtherwise) {
  GenerateRequest request;
  request.stop.stop_strings = {"</answer>"};
  request.stop.tokens_max = 3;
  Run({"42", "</", "answer", ">"}, {kWords, kWords + 1, kWords + 2, kWords + 3}, request);
  EXPECT_EQ(sink_.text, "42</answer");
  EXPECT_THAT(sink_.ids, ElementsAre(kWords, kWords + 1, kWords + 2));
  EXPECT_EQ(sink_.finish->reason, FinishReason::kLength);
}

TEST_F(EngineTextTest, AStopStringOnTheLastTokenWinsOverTheLength) {
  GenerateRequest request;
  request.stop.stop_strings = {"END"};
  request.stop.tokens_max = 2;
  Run({"x", "END"}, {kWords, kWords + 1, kWords}, request);
  EXPECT_EQ(sink_.finish->reason, FinishReason::kStopString);
  EXPECT_EQ(sink_.text, "x");
}

TEST_F(EngineTextTest, BeforeTokensMinAStopStringIsText) {
  GenerateRequest request;
  request.stop.stop_strings = {"END"};
  request.stop.tokens_min = 2;
  Run({"x", "END"}, {kWords + 1, kWords, kWords + 1, kWords}, request);
  EXPECT_EQ(sink_.text, "ENDx");
  EXPECT_EQ(sink_.finish->reason, FinishReason::kStopString);
}

TEST_F(EngineTextTest, ControlTokensShowOnlyWhenAskedFor) {
  Run({"x"}, {kTurn, kWords}, {});
  EXPECT_EQ(sink_.text, "x");
  EXPECT_THAT(sink_.ids, ElementsAre(kTurn, kWords));
}

TEST_F(EngineTextTest, ControlTokensInTheText) {
  GenerateRequest request;
  request.special_in_text = true;
  request.stop.include_stop = true;
  Run({"x"}, {kTurn, kWords}, request);
  EXPECT_EQ(sink_.text, "<turn>x<eos>");
  EXPECT_THAT(sink_.ids, ElementsAre(kTurn, kWords, kEos));
}

TEST(EngineTextCheckTest, StopStringsMustBeWholeCharactersAndFew) {
  const std::unique_ptr<Tokenizer> tokenizer = SmallTokenizer({"x"});
  ScriptedModelOptions options;
  options.limits = {tokenizer->size(), 512, 2, 64, 16};
  ScriptedModel model(options);
  EngineOptions engine_options;
  engine_options.own_thread = false;
  auto engine = *Engine::Create(model, tokenizer.get(), {kEos}, engine_options);
  RecordingSink sink;
  const auto message = [&](std::vector<std::string> stops) {
    GenerateRequest request;
    request.prompt = {0};
    request.stop.stop_strings = std::move(stops);
    return std::string(engine->Submit(std::move(request), &sink).status().message());
  };
  EXPECT_THAT(message({"\x82\xAC"}), HasSubstr("not UTF-8"));
  EXPECT_THAT(message({"ok", "\xE2\x82"}), HasSubstr("not UTF-8"));
  EXPECT_THAT(message({""}), HasSubstr("of 0 bytes"));
  EXPECT_THAT(message({std::string(2000, 'a')}), HasSubstr("of 2000 bytes"));
  EXPECT_THAT(message(std::vector<std::string>(100, "a")), HasSubstr("100 entries"));
}

}  // namespace
}  // namespace embergate::engine
