#include "engine/text/stream_decoder.h"

#include <string>
#include <vector>

#include "engine/text/utf8.h"
#include "gtest/gtest.h"
#include "tests/engine/text/text_generator.h"
#include "tests/engine/text/text_test_util.h"

namespace embergate::engine {
namespace {

bool IsWhole(const std::string& text) {
  for (absl::string_view rest = text; !rest.empty();) {
    const Utf8Step step = NextUtf8(rest);
    if (step.status != Utf8Status::kValid) return false;
    rest.remove_prefix(step.bytes);
  }
  return true;
}

TEST(StreamDecoderTest, AnyIdsGiveTheTextOfDecodeInWholeCharacters) {
  const auto tokenizer = GoldenTokenizer("gemma4-tiny");
  TextGenerator generator(5);
  for (int round = 0; round < 2000; ++round) {
    // Half of them texts, half of them random ids, where byte tokens of broken characters are frequent.
    std::vector<int32_t> ids;
    if (round % 2 == 0) {
      ids = tokenizer->Encode(generator.Text(true) + generator.Bytes(generator.Below(8)), EncodeOptions());
    } else {
      for (uint32_t i = 0, n = generator.Below(30); i < n; ++i) {
        ids.push_back(static_cast<int32_t>(generator.Below(static_cast<uint32_t>(tokenizer->size()) + 5)) - 2);
      }
    }
    const bool special = round % 3 == 0;
    StreamDecoder decoder(*tokenizer, special);
    std::string text;
    for (const int32_t id : ids) {
      const std::string part = decoder.Push(id);
      EXPECT_TRUE(IsWhole(part));
      text += part;
    }
    const std::string rest = decoder.Finish();
    EXPECT_TRUE(IsWhole(rest));
    EXPECT_EQ(text + rest, tokenizer->Decode(ids, special));
  }
}

TEST(StreamDecoderTest, ACharacterComesOutWithItsLastByte) {
  const auto tokenizer = GoldenTokenizer("gemma4-tiny");
  const auto byte = [&](const char* piece) { return tokenizer->FindPiece(piece); };
  StreamDecoder decoder(*tokenizer);
  EXPECT_EQ(decoder.Push(byte("<0xF0>")), "");
  EXPECT_EQ(decoder.Push(byte("<0x9F>")), "");
  EXPECT_EQ(decoder.Push(byte("<0x99>")), "");
  EXPECT_EQ(decoder.Push(byte("<0x82>")), "🙂");
  EXPECT_EQ(decoder.Finish(), "");
}

TEST(StreamDecoderTest, ABrokenCharacterIsReplacedAsSoonAsItIsKnownToBeBroken) {
  const auto tokenizer = GoldenTokenizer("gemma4-tiny");
  const auto byte = [&](const char* piece) { return tokenizer->FindPiece(piece); };
  StreamDecoder decoder(*tokenizer);
  EXPECT_EQ(decoder.Push(byte("<0xFF>")), "\uFFFD");
  EXPECT_EQ(decoder.Push(byte("<0xE2>")), "");
  EXPECT_EQ(decoder.Push(tokenizer->FindPiece("a")),
            "\uFFFD"
            "a");
  EXPECT_EQ(decoder.Push(byte("<0xE2>")), "");
  EXPECT_EQ(decoder.Push(byte("<0x82>")), "");
  EXPECT_EQ(decoder.Finish(), "\uFFFD");
  EXPECT_EQ(decoder.Finish(), "");
}

TEST(StreamDecoderTest, ControlTokensShowOnlyIfAskedFor) {
  const auto tokenizer = GoldenTokenizer("gemma4-tiny");
  EXPECT_EQ(StreamDecoder(*tokenizer).Push(106), "");
  EXPECT_EQ(StreamDecoder(*tokenizer, /*special=*/true).Push(106), "<turn|>");
}

TEST(Utf8Test, EverySequenceOfUpToThreeBytesIsJudgedByTheStandardsTable) {
  // Against an independent rule: decode by the bit pattern, then refuse overlong forms, surrogates and > 10FFFF.
  const auto valid = [](const std::string& s) {
    const auto b = [&](size_t i) { return static_cast<uint8_t>(s[i]); };
    if (s.size() == 1) return b(0) < 0x80;
    for (size_t i = 1; i < s.size(); ++i) {
      if ((b(i) & 0xC0) != 0x80) return false;
    }
    if (s.size() == 2) return (b(0) & 0xE0) == 0xC0 && b(0) >= 0xC2;
    const uint32_t cp =
        (static_cast<uint32_t>(b(0) & 0x0F) << 12) | (static_cast<uint32_t>(b(1) & 0x3F) << 6) | (b(2) & 0x3Fu);
    return (b(0) & 0xF0) == 0xE0 && cp >= 0x800 && !(cp >= 0xD800 && cp <= 0xDFFF);
  };
  for (uint32_t value = 0; value < (1u << 24); value += value < (1u << 16) ? 1 : 5) {
    std::string text;
    for (const uint32_t shift : {16u, 8u, 0u}) {
      if (shift == 0 || value >> shift != 0) text += static_cast<char>(value >> shift);
    }
    const Utf8Step step = NextUtf8(text);
    const bool whole = step.status == Utf8Status::kValid && step.bytes == text.size();
    ASSERT_EQ(whole, valid(text)) << value;
    ASSERT_GE(step.bytes, 1u);
    ASSERT_LE(step.bytes, text.size());
    if (whole) {
      std::string again;
      AppendCodePoint(step.code_point, again);
      ASSERT_EQ(again, text);
    }
  }
}

TEST(Utf8Test, FourByteCharactersEndAtTheLastCodePoint) {
  EXPECT_EQ(NextUtf8("\xF4\x8F\xBF\xBF").code_point, 0x10FFFFu);
  EXPECT_EQ(NextUtf8("\xF4\x90\x80\x80").status, Utf8Status::kInvalid);
  EXPECT_EQ(NextUtf8("\xF0\x8F\xBF\xBF").status, Utf8Status::kInvalid);
  EXPECT_EQ(NextUtf8("\xF0\x90\x80").status, Utf8Status::kIncomplete);
  EXPECT_EQ(NextUtf8("\xF5\x80\x80\x80").bytes, 1u);
}

}  // namespace
}  // namespace embergate::engine
