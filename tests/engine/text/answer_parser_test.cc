#include "engine/text/answer_parser.h"

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/text/chat_internal.h"
#include "engine/text/utf8.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/text/text_generator.h"
#include "tests/engine/text/text_test_util.h"

namespace embergate::engine {
namespace {

using ::nlohmann::json;

// The fixture vocabulary, loaded once.
const Tokenizer& Gemma4() {
  static const Tokenizer* const tokenizer = GoldenTokenizer("gemma4-tiny").release();
  return *tokenizer;
}

// One line per event, neighbouring texts of a kind joined: the same for every way of cutting.
std::string Describe(const std::vector<AnswerEvent>& events) {
  std::vector<AnswerEvent> joined;
  for (const AnswerEvent& event : events) {
    if (!joined.empty() && joined.back().kind == event.kind && event.kind != AnswerEvent::Kind::kToolCall) {
      joined.back().text += event.text;
    } else {
      joined.push_back(event);
    }
  }
  std::string out;
  for (const AnswerEvent& event : joined) {
    switch (event.kind) {
      case AnswerEvent::Kind::kAnswer:
        out += "answer(" + event.text + ")";
        break;
      case AnswerEvent::Kind::kThinking:
        out += "thinking(" + event.text + ")";
        break;
      case AnswerEvent::Kind::kToolCall:
        out += "call(" + event.name + " " + event.arguments + ")";
        break;
      case AnswerEvent::Kind::kMalformedToolCall:
        out += "malformed(" + event.text + ")";
        break;
    }
  }
  return out;
}

std::vector<int32_t> Ids(const std::string& text) {
  EncodeOptions options;
  options.parse_special = true;
  return Gemma4().Encode(text, options);
}

std::string Parse(const std::string& text, const AnswerParserOptions& options = AnswerParserOptions()) {
  AnswerParser parser(Gemma4(), options);
  std::vector<AnswerEvent> events;
  parser.Push(Ids(text), events);
  parser.Finish(events);
  return Describe(events);
}

TEST(AnswerParserTest, PlainTextIsTheAnswer) {
  EXPECT_EQ(Parse("Hello, world"), "answer(Hello, world)");
  EXPECT_EQ(Parse(""), "");
  EXPECT_EQ(Parse("Done.<turn|>"), "answer(Done.)");
}

TEST(AnswerParserTest, ThinkingIsTakenOutOfItsChannel) {
  EXPECT_EQ(Parse("<|channel>thought\nlet me see\n<channel|>It is 4."), "thinking(let me see)answer(It is 4.)");
  EXPECT_EQ(Parse("<|channel>thought\na\n\nb<channel|>c"), "thinking(a\n\nb)answer(c)");
  EXPECT_EQ(Parse("<|channel>thought\n<channel|>c"), "answer(c)");
  EXPECT_EQ(Parse("<|channel>thought<channel|>c"), "answer(c)");
  EXPECT_EQ(Parse("<|channel>thought\nunfinished"), "thinking(unfinished)");
  EXPECT_EQ(Parse("a<|channel>thought\nb\n<channel|>c<|channel>thought\nd\n<channel|>e"),
            "answer(a)thinking(b)answer(c)thinking(d)answer(e)");
}

TEST(AnswerParserTest, AnotherChannelsNameIsKept) {
  EXPECT_EQ(Parse("<|channel>plan\nx<channel|>y"), "thinking(plan\nx)answer(y)");
  EXPECT_EQ(Parse("<|channel>" + std::string(100, 'n') + "\nx<channel|>y"),
            "thinking(" + std::string(100, 'n') + "\nx)answer(y)");
}

TEST(AnswerParserTest, ThePromptMayHaveOpenedTheThinking) {
  AnswerParserOptions options;
  options.starts_in_thinking = true;
  EXPECT_EQ(Parse("hm\n<channel|>yes", options), "thinking(hm)answer(yes)");
}

TEST(AnswerParserTest, ToolCallsBecomeNamesAndJson) {
  EXPECT_EQ(Parse("<|tool_call>call:get_weather{location:<|\"|>Paris<|\"|>,unit:<|\"|>c<|\"|>}<tool_call|>"),
            R"(call(get_weather {"location":"Paris","unit":"c"}))");
  EXPECT_EQ(Parse("<|tool_call>call:now{}<tool_call|><|tool_call>call:f{a:1}<tool_call|><|tool_response>"),
            R"(call(now {})call(f {"a":1}))");
  EXPECT_EQ(
      Parse("Wait.<|tool_call>call:f{n:-1.50e+3,t:true,f:false,z:null,l:[1,[],{}],o:{k:<|\"|><|\"|>}}<tool_call|>ok"),
      R"(answer(Wait.)call(f {"n":-1.50e+3,"t":true,"f":false,"z":null,"l":[1,[],{}],"o":{"k":""}})answer(ok))");
  EXPECT_EQ(Parse("<|tool_call>call:f{s:<|\"|>a \"b\" \\ {c},[d]:e\n\t<|\"|>}<tool_call|>"),
            R"(call(f {"s":"a \"b\" \\ {c},[d]:e\n\t"}))");
  EXPECT_EQ(Parse("<|channel>thought\nuse it\n<channel|><|tool_call>call:f{a:[<|\"|>x<|\"|>]}<tool_call|>"),
            R"(thinking(use it)call(f {"a":["x"]}))");
}

TEST(AnswerParserTest, WhiteSpaceBetweenThePartsAndQuotedKeysAreTaken) {
  EXPECT_EQ(Parse("<|tool_call> call:f { a : 1 , <|\"|>b c<|\"|>: [ 2 , 3 ] }\n<tool_call|>"),
            R"(call(f {"a":1,"b c":[2,3]}))");
}

TEST(AnswerParserTest, WhatIsNoCallComesOutAsItWasWritten) {
  for (const std::string& body : {std::string("call:f{a:1"),
                                  std::string("call:f"),
                                  std::string("f{}"),
                                  std::string("call:{}"),
                                  std::string("call:f{a}"),
                                  std::string("call:f{a:}"),
                                  std::string("call:f{a:b}"),
                                  std::string("call:f{:1}"),
                                  std::string("call:f{a:1,}"),
                                  std::string("call:f{,a:1}"),
                                  std::string("call:f{a:1 b:2}"),
                                  std::string("call:f{a:1}}"),
                                  std::string("call:f{a:1}x"),
                                  std::string("call:f{a:[1,2}"),
                                  std::string("call:f{a:[1,]}"),
                                  std::string("call:f{a:<|\"|>x}"),
                                  std::string("call:f{a:x<|\"|>}"),
                                  std::string("call:f{a:01}"),
                                  std::string("call:f{a:1.}"),
                                  std::string("call:f{a:.5}"),
                                  std::string("call:f{a:1e}"),
                                  std::string("call:f{a:--1}"),
                                  std::string("call:f{a:1e999}"),
                                  "call:f{a:-1" + std::string(400, '0') + "}",
                                  std::string("call:f{a:NaN}"),
                                  std::string("call:f{a:True}"),
                                  std::string("call:f{a:\"x\"}"),
                                  std::string("call:f{a:1,a:2}"),
                                  std::string("call:f{a:<|channel>1}"),
                                  std::string("call:f<|\"|>{}"),
                                  std::string(),
                                  std::string("{"),
                                  "call:" + std::string(300, 'n') + "{}"}) {
    EXPECT_EQ(Parse("x<|tool_call>" + body + "<tool_call|>y"),
              "answer(x)malformed(<|tool_call>" + body + "<tool_call|>)answer(y)");
  }
}

TEST(AnswerParserTest, ACallThatNeverEndsIsMalformed) {
  EXPECT_EQ(Parse("x<|tool_call>call:f{a:1}"), "answer(x)malformed(<|tool_call>call:f{a:1})");
  EXPECT_EQ(Parse("<|tool_call>call:f{<|tool_call>call:g{}<tool_call|>"), "malformed(<|tool_call>call:f{)call(g {})");
}

TEST(AnswerParserTest, DepthIsBounded) {
  const auto nested = [](int depth) {
    return "<|tool_call>call:f{a:" + std::string(static_cast<size_t>(depth), '[') +
           std::string(static_cast<size_t>(depth), ']') + "}<tool_call|>";
  };
  EXPECT_EQ(Parse(nested(63)).substr(0, 5), "call(");
  EXPECT_EQ(Parse(nested(64)).substr(0, 10), "malformed(");
  EXPECT_EQ(Parse(nested(100000)).substr(0, 10), "malformed(");
}

TEST(AnswerParserTest, ACallPastTheSizeLimitStreamsOutAsText) {
  AnswerParserOptions options;
  options.call_bytes_max = 40;
  const std::string fits = "call:f{a:<|\"|>" + std::string(28, 'x') + "<|\"|>}";  // 39 bytes: a quote counts as one
  EXPECT_EQ(Parse("<|tool_call>" + fits + "<tool_call|>", options).substr(0, 5), "call(");
  const std::string large = "call:f{a:<|\"|>" + std::string(1000, 'x') + "<|\"|>}";
  EXPECT_EQ(Parse("<|tool_call>" + large + "<tool_call|>y", options),
            "malformed(<|tool_call>" + large + "<tool_call|>)answer(y)");

  AnswerParser parser(Gemma4(), options);
  std::vector<AnswerEvent> events;
  parser.Push(Ids("<|tool_call>" + large), events);
  EXPECT_EQ(Describe(events), "malformed(<|tool_call>" + large + ")");  // before the end is there
}

TEST(AnswerParserTest, SpelledOutMarkersAreText) {
  AnswerParser parser(Gemma4());
  std::vector<AnswerEvent> events;
  const std::string text = "<|tool_call>call:f{}<tool_call|><|channel>thought\nx<channel|>";
  parser.Push(Gemma4().Encode(text, EncodeOptions()), events);
  parser.Finish(events);
  EXPECT_EQ(Describe(events), "answer(" + text + ")");
}

TEST(AnswerParserTest, AVocabularyWithoutTheMarkersGivesAnswersOnly) {
  const auto gemma3n = GoldenTokenizer("gemma3n-tiny", "json", "llama");
  AnswerParser parser(*gemma3n);
  std::vector<AnswerEvent> events;
  const std::string text = "<|tool_call>call:f{}<tool_call|>";
  EncodeOptions special;
  special.parse_special = true;
  parser.Push(gemma3n->Encode(text + "<end_of_turn>", special), events);
  parser.Finish(events);
  EXPECT_EQ(Describe(events), "answer(" + text + ")");
}

TEST(AnswerParserTest, TextIsHeldBackUntilItIsReleased) {
  AnswerParser parser(Gemma4());
  std::vector<AnswerEvent> events;
  parser.Push(Ids("abc<|tool_call>call:f{}<tool_call|>def"), 2, events);
  EXPECT_EQ(Describe(events), "answer(ab)");
  parser.Push({}, 1, events);
  EXPECT_EQ(Describe(events), "answer(abc)");
  parser.Push({}, 6, events);
  EXPECT_EQ(Describe(events), "answer(abc)");
  parser.Push({}, 3, events);
  EXPECT_EQ(Describe(events), "answer(abc)call(f {})answer(d)");
  parser.Finish(events);  // a stop string cut the rest off
  EXPECT_EQ(Describe(events), "answer(abc)call(f {})answer(d)");
}

TEST(AnswerParserTest, AStopStringInsideACallLeavesItMalformed) {
  AnswerParser parser(Gemma4());
  std::vector<AnswerEvent> events;
  parser.Push(Ids("<|tool_call>call:f{a:1}<tool_call|>"), 8, events);
  parser.Finish(events);
  EXPECT_EQ(Describe(events), "malformed(<|tool_call>call:f{a)");
}

TEST(AnswerParserTest, AnUnfinishedCharacterAtTheEndIsReplaced) {
  std::vector<int32_t> ids = Ids("a");
  ids.push_back(Gemma4().FindPiece("<0xE2>"));
  AnswerParser parser(Gemma4());
  std::vector<AnswerEvent> events;
  parser.Push(ids, events);
  parser.Finish(events);
  EXPECT_EQ(Describe(events), "answer(a\uFFFD)");
}

// ---- Random streams ----

// A value that the notation can carry, nested at most `depth`.
json RandomValue(TextGenerator& random, int depth) {
  switch (random.Below(depth > 0 ? 9 : 6)) {
    case 0:
      return random.Text(/*with_specials=*/true);
    case 1:
      return static_cast<int64_t>(random.Below(1000000)) - 500000;
    case 2:
      return (static_cast<double>(random.Below(2000000)) - 1000000) / 1024.0 * (random.Below(2) ? 1e-9 : 1e12);
    case 3:
      return random.Below(2) == 0;
    case 4:
      return nullptr;
    case 5:
      return "x";
    case 6: {
      json list = json::array();
      for (uint32_t i = 0, n = random.Below(4); i < n; ++i) list.push_back(RandomValue(random, depth - 1));
      return list;
    }
    default: {
      json object = json::object();
      for (uint32_t i = 0, n = random.Below(4); i < n; ++i) {
        std::string key = "k";
        for (uint32_t c = 0, m = random.Below(6); c < m; ++c) {
          key += static_cast<char>("abcXYZ_-.09 "[random.Below(12)]);
        }
        object[key + "z"] = RandomValue(random, depth - 1);
      }
      return object;
    }
  }
}

// Letters that are no markup of thinking at the ends.
std::string RandomWords(TextGenerator& random) { return absl::StrCat("w", random.Text(/*with_specials=*/false), "w"); }

struct Stream {
  std::vector<PromptPiece> pieces;
  std::string expected;
};

// A stream whose events are known.
Stream RandomStream(TextGenerator& random) {
  PromptBuilder builder;
  std::vector<AnswerEvent> events;
  const auto expect = [&](AnswerEvent::Kind kind, const std::string& text) {
    AnswerEvent event;
    event.kind = kind;
    event.text = LettersToSpaces(text);
    events.push_back(event);
  };
  for (uint32_t i = 0, n = 1 + random.Below(5); i < n; ++i) {
    switch (random.Below(5)) {
      case 0: {
        const std::string text = RandomWords(random);
        builder.Special("<|channel>");
        builder.Text("thought\n" + text + "\n");
        builder.Special("<channel|>");
        expect(AnswerEvent::Kind::kThinking, text);
        break;
      }
      case 1: {
        const std::string text = RandomWords(random);
        builder.Text(text);
        expect(AnswerEvent::Kind::kAnswer, text);
        break;
      }
      case 2: {  // broken: the arguments never end
        const std::string text = "call:f{a:" + RandomWords(random);
        builder.Special("<|tool_call>");
        builder.Text(text);
        builder.Special("<tool_call|>");
        expect(AnswerEvent::Kind::kMalformedToolCall, "<|tool_call>" + text + "<tool_call|>");
        break;
      }
      default: {
        json arguments = json::object();
        for (uint32_t k = 0, m = random.Below(4); k < m; ++k) {
          arguments["key" + std::to_string(k)] = RandomValue(random, 4);
        }
        builder.Special("<|tool_call>");
        builder.Text("call:tool_" + std::to_string(i));
        AppendArgument(arguments, /*quote_keys=*/random.Below(2) == 0, builder);
        builder.Special("<tool_call|>");
        AnswerEvent event;
        event.kind = AnswerEvent::Kind::kToolCall;
        event.name = "tool_" + std::to_string(i);
        event.arguments = json::parse(LettersToSpaces(arguments.dump())).dump();
        events.push_back(event);
        break;
      }
    }
  }
  Stream stream;
  stream.pieces = builder.Take();
  stream.expected = Describe(events);
  return stream;
}

// The arguments in one canonical spelling: numbers come out as the model wrote them.
void Canonicalize(std::vector<AnswerEvent>& events) {
  for (AnswerEvent& event : events) {
    if (event.kind == AnswerEvent::Kind::kToolCall) {
      const json parsed = json::parse(event.arguments, nullptr, /*allow_exceptions=*/false);
      ASSERT_FALSE(parsed.is_discarded()) << event.arguments;
      event.arguments = parsed.dump();
    }
  }
}

TEST(AnswerParserPropertyTest, RandomStreamsParseToWhatTheyWereMadeOfHoweverTheyAreCut) {
  TextGenerator random(2024);
  const Tokenizer& tokenizer = Gemma4();
  for (int round = 0; round < 10000; ++round) {
    const Stream stream = RandomStream(random);
    const std::vector<int32_t> ids = EncodePrompt(tokenizer, stream.pieces);
    std::vector<AnswerEvent> whole;
    {
      AnswerParser parser(tokenizer);
      parser.Push(ids, whole);
      parser.Finish(whole);
    }
    Canonicalize(whole);
    ASSERT_EQ(Describe(whole), stream.expected) << "round " << round;

    // Cut at random places, the release of the text lagging behind at random.
    std::vector<AnswerEvent> cut;
    AnswerParser parser(tokenizer);
    StreamDecoder decoder(tokenizer);
    size_t held_back = 0;
    for (size_t at = 0; at < ids.size();) {
      const size_t count = std::min<size_t>(ids.size() - at, 1 + random.Below(random.Below(3) == 0 ? 20 : 2));
      for (size_t i = at; i < at + count; ++i) held_back += decoder.Push(ids[i]).size();
      const size_t released = random.Below(3) == 0 ? random.Below(static_cast<uint32_t>(held_back) + 1) : held_back;
      parser.Push(absl::MakeConstSpan(ids).subspan(at, count), released, cut);
      held_back -= released;
      at += count;
    }
    parser.Push({}, held_back, cut);
    parser.Finish(cut);
    Canonicalize(cut);
    ASSERT_EQ(Describe(cut), stream.expected) << "round " << round;
  }
}

TEST(AnswerParserPropertyTest, RandomTokensLoseNothingAndParseTheSameHoweverTheyAreCut) {
  TextGenerator random(77);
  const Tokenizer& tokenizer = Gemma4();
  const std::vector<int32_t> markers = {48, 49, 52, 48, 49, 52, 106, 50};  // no channels: their names are markup
  const std::vector<std::string> words = {"call:", "f", "{", "}", "a", ":", ",", "1", "[", "]", "true", "null", "x y"};
  for (int round = 0; round < 5000; ++round) {
    std::vector<int32_t> ids;
    for (uint32_t i = 0, n = random.Below(40); i < n; ++i) {
      if (random.Below(3) == 0) {
        ids.push_back(markers[random.Below(static_cast<uint32_t>(markers.size()))]);
      } else {
        const std::vector<int32_t> word =
            tokenizer.Encode(words[random.Below(static_cast<uint32_t>(words.size()))], EncodeOptions());
        ids.insert(ids.end(), word.begin(), word.end());
      }
    }
    std::vector<AnswerEvent> whole, cut;
    {
      AnswerParser parser(tokenizer);
      parser.Push(ids, whole);
      parser.Finish(whole);
    }
    AnswerParser parser(tokenizer);
    for (const int32_t id : ids) {
      parser.Push({id}, cut);
    }
    parser.Finish(cut);
    ASSERT_EQ(Describe(whole), Describe(cut)) << "round " << round;

    // Outside the parsed calls every character of the text is there, in order.
    bool any_call = false;
    std::string text;
    for (const AnswerEvent& event : whole) {
      any_call = any_call || event.kind == AnswerEvent::Kind::kToolCall;
      text += event.text;
    }
    if (!any_call) {
      for (const char* marker : {"<|tool_call>", "<tool_call|>", "<|\"|>", "<turn|>", "<|tool_response>"}) {
        for (size_t at = text.find(marker); at != std::string::npos; at = text.find(marker)) {
          text.erase(at, std::string(marker).size());
        }
      }
      ASSERT_EQ(text, tokenizer.Decode(ids)) << "round " << round;
    }
  }
}

}  // namespace
}  // namespace embergate::engine
