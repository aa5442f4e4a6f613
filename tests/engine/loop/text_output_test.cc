// What a client sees of a token stream: text and ids that belong together, nothing of a stop string.
#include "engine/text_output.h"

#include <algorithm>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace embergate::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

StopParams Stops(std::vector<std::string> strings, bool include_stop = false) {
  StopParams stop;
  stop.stop_strings = std::move(strings);
  stop.include_stop = include_stop;
  return stop;
}

TokenEvent Push(TextOutput& output, int32_t id, absl::string_view piece, bool expect_stop = false) {
  TokenEvent event;
  EXPECT_EQ(output.Push(id, piece, true, nullptr, &event), expect_stop);
  return event;
}

TEST(TextOutputTest, WithoutStopStringsEverythingGoesOutAtOnce) {
  TextOutput output(Stops({}));
  EXPECT_EQ(Push(output, 1, "ab").text, "ab");
  const TokenEvent silent = Push(output, 2, "");
  EXPECT_EQ(silent.text, "");
  EXPECT_THAT(silent.ids, ElementsAre(2));
  EXPECT_FALSE(output.holds());
}

TEST(TextOutputTest, ATokenInsideAPossibleStopStringIsHeldWithItsText) {
  TextOutput output(Stops({"END"}));
  EXPECT_THAT(Push(output, 1, "the ").ids, ElementsAre(1));
  const TokenEvent held = Push(output, 2, "E");
  EXPECT_THAT(held.ids, IsEmpty());
  EXPECT_EQ(held.text, "");
  const TokenEvent both = Push(output, 3, "x");
  EXPECT_THAT(both.ids, ElementsAre(2, 3));
  EXPECT_EQ(both.text, "Ex");
}

TEST(TextOutputTest, ATokenPartlyInAStopStringGoesOutWithItsFirstPart) {
  TextOutput output(Stops({"END"}));
  const TokenEvent part = Push(output, 1, "xyE");
  EXPECT_THAT(part.ids, ElementsAre(1));
  EXPECT_EQ(part.text, "xy");
  const TokenEvent stop = Push(output, 2, "ND!", true);
  EXPECT_THAT(stop.ids, IsEmpty());
  EXPECT_EQ(stop.text, "");
  EXPECT_EQ(output.stop_string(), "END");
  EXPECT_FALSE(output.holds());
}

TEST(TextOutputTest, IncludeStopGivesTheStopStringAndDropsWhatFollows) {
  TextOutput output(Stops({"END"}, true));
  Push(output, 1, "E");
  const TokenEvent stop = Push(output, 2, "ND!", true);
  EXPECT_THAT(stop.ids, ElementsAre(1, 2));
  EXPECT_EQ(stop.text, "END");
}

TEST(TextOutputTest, TextBeforeAStopStringInOneTokenIsKept) {
  TextOutput output(Stops({"\n\n"}));
  const TokenEvent event = Push(output, 5, "end.\n\nNext", true);
  EXPECT_EQ(event.text, "end.");
  EXPECT_THAT(event.ids, ElementsAre(5));
}

TEST(TextOutputTest, FlushGivesWhatWasHeld) {
  TextOutput output(Stops({"END"}));
  Push(output, 1, "EN");
  TokenEvent rest;
  output.Flush("\xEF\xBF\xBD", &rest);
  EXPECT_EQ(rest.text, "EN\xEF\xBF\xBD");
  EXPECT_THAT(rest.ids, ElementsAre(1));
}

TEST(TextOutputTest, LogprobsTravelWithTheirIds) {
  TextOutput output(Stops({"ab"}));
  PositionLogprobs first;
  first.chosen = {1, -0.5f};
  TokenEvent event;
  output.Push(1, "a", true, &first, &event);
  EXPECT_THAT(event.logprobs, IsEmpty());
  PositionLogprobs second;
  second.chosen = {2, -0.25f};
  output.Push(2, "c", true, &second, &event);
  ASSERT_EQ(event.logprobs.size(), 2u);
  EXPECT_EQ(event.logprobs[0].chosen.logprob, -0.5f);
  EXPECT_EQ(event.logprobs[1].chosen.id, 2);
}

// Any cutting of the same text into tokens gives the same text, and ids are those of the tokens that began in it.
TEST(TextOutputTest, TextDoesNotDependOnTokenBorders) {
  std::mt19937 random(9);
  for (int trial = 0; trial < 3000; ++trial) {
    std::string text;
    for (size_t i = 0; i < 1 + random() % 30; ++i) {
      text += static_cast<char>('a' + random() % 2);
    }
    const std::string stop(1 + random() % 4, 'a');
    const std::string stop_string = stop + "b" + stop;
    const bool include = random() % 2 == 0;
    const size_t at = text.find(stop_string);
    const std::string expected =
        at == std::string::npos ? text : text.substr(0, include ? at + stop_string.size() : at);
    TextOutput output(Stops({stop_string}, include));
    std::string given;
    std::vector<int32_t> ids;
    std::vector<int32_t> expected_ids;
    size_t offset = 0;
    bool stopped = false;
    for (int32_t id = 0; offset < text.size() && !stopped; ++id) {
      const size_t size = std::min<size_t>(random() % 4, text.size() - offset);
      TokenEvent event;
      stopped = output.Push(id, text.substr(offset, size), true, nullptr, &event);
      given += event.text;
      ids.insert(ids.end(), event.ids.begin(), event.ids.end());
      if (offset < expected.size()) {
        expected_ids.push_back(id);
      }
      offset += size;
    }
    if (!stopped) {
      TokenEvent event;
      output.Flush("", &event);
      given += event.text;
      ids.insert(ids.end(), event.ids.begin(), event.ids.end());
    }
    ASSERT_EQ(given, expected);
    ASSERT_EQ(stopped, at != std::string::npos);
    // A token without text right at the border may count as either side of it.
    ids.erase(std::remove_if(ids.begin(), ids.end(),
                             [&](int32_t id) {
                               return std::find(expected_ids.begin(), expected_ids.end(), id) == expected_ids.end();
                             }),
              ids.end());
    ASSERT_EQ(ids, expected_ids);
  }
}

}  // namespace
}  // namespace embergate::engine
