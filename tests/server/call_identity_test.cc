// Which traceparent headers and labels are taken; the examples of W3C Trace Context, and what is wrong with others.
#include "server/call_identity.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace embergate::server {
namespace {

constexpr char kTrace[] = "4bf92f3577b34da6a3ce929d0e0e4736";
constexpr char kSpan[] = "00f067aa0ba902b7";

std::string Header(const std::string& version, const std::string& trace = kTrace, const std::string& span = kSpan,
                   const std::string& rest = "01") {
  return absl::StrCat(version, "-", trace, "-", span, "-", rest);
}

TEST(TraceparentTest, ValidOnesAreRead) {
  for (const std::string& header : {Header("00"), Header("00", kTrace, kSpan, "00"), Header("00", kTrace, kSpan, "ff"),
                                    Header("01"), Header("cc", kTrace, kSpan, "01-what-a-later-version-adds")}) {
    const auto parent = ParseTraceparent(header);
    ASSERT_TRUE(parent.has_value()) << header;
    EXPECT_EQ(parent->trace_id, kTrace);
    EXPECT_EQ(parent->span_id, kSpan);
  }
}

TEST(TraceparentTest, OthersAreNot) {
  std::string upper = Header("00");
  upper[5] = 'F';
  std::string newline = Header("00");
  newline[54] = '\n';
  std::string dash = Header("00");
  dash[35] = '0';
  for (const std::string& header :
       {std::string(), std::string("00"), upper, newline, dash, Header("ff"), Header("0"), Header("zz"),
        Header("00", std::string(32, '0')), Header("00", kTrace, std::string(16, '0')),
        Header("00", std::string(kTrace).substr(1)), Header("00", kTrace, absl::StrCat(kSpan, "0")),
        Header("00", kTrace, kSpan, "1"), Header("00", kTrace, kSpan, "01-more"), Header("01", kTrace, kSpan, "012"),
        Header("00") + " "}) {
    EXPECT_FALSE(ParseTraceparent(header).has_value()) << header;
  }
  for (size_t length = 0; length < 55; ++length) {
    EXPECT_FALSE(ParseTraceparent(Header("00").substr(0, length)).has_value()) << length;
  }
}

TEST(LabelTest, PrintableAsciiUpTo128) {
  EXPECT_TRUE(IsLabel(""));
  EXPECT_TRUE(IsLabel(R"(a "quoted" ~label)"));
  EXPECT_TRUE(IsLabel(std::string(128, 'x')));
  EXPECT_FALSE(IsLabel(std::string(129, 'x')));
  EXPECT_FALSE(IsLabel("line\nbreak"));
  EXPECT_FALSE(IsLabel("tab\t"));
  EXPECT_FALSE(IsLabel("Grüße"));
  EXPECT_FALSE(IsLabel("\x7f"));
}

}  // namespace
}  // namespace embergate::server
