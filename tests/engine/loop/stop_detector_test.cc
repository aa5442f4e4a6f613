// The stop detector against one that looks at the whole text after each byte.
#include "engine/stop_detector.h"

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace embergate::engine {
namespace {

struct Found {
  int index = -1;
  size_t begin = 0;
  size_t end = 0;
};

bool EndsWith(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

// The first end at which a stop string is complete, and the longest of those that end there.
Found PlainFind(const std::string& text, const std::vector<std::string>& stops, const std::vector<bool>& allowed) {
  for (size_t end = 1; end <= text.size(); ++end) {
    Found found;
    for (size_t i = 0; i < stops.size(); ++i) {
      if (allowed[end - 1] && !stops[i].empty() && EndsWith(text.substr(0, end), stops[i]) &&
          (found.index < 0 || stops[i].size() > stops[static_cast<size_t>(found.index)].size())) {
        found = {static_cast<int>(i), end - stops[i].size(), end};
      }
    }
    if (found.index >= 0) {
      return found;
    }
  }
  return {};
}

// The longest end of the text that is a proper beginning of a stop string.
size_t PlainHeld(const std::string& text, const std::vector<std::string>& stops) {
  size_t held = 0;
  for (const std::string& stop : stops) {
    for (size_t n = 1; n < stop.size() && n <= text.size(); ++n) {
      if (EndsWith(text, stop.substr(0, n))) {
        held = std::max(held, n);
      }
    }
  }
  return held;
}

TEST(StopDetectorTest, TheExampleOfItsHeader) {
  StopDetector stop({"</s>", "END"});
  EXPECT_FALSE(stop.Feed("the E", true));
  EXPECT_EQ(stop.held(), 1u);
  EXPECT_TRUE(stop.Feed("ND of", true));
  EXPECT_EQ(stop.matched(), 1);
  EXPECT_EQ(stop.match_begin(), 4u);
  EXPECT_EQ(stop.match_end(), 7u);
}

TEST(StopDetectorTest, AnOverlapDoesNotHideTheMatch) {
  StopDetector stop({"aab"});
  EXPECT_FALSE(stop.Feed("aa", true));
  EXPECT_TRUE(stop.Feed("ab", true));
  EXPECT_EQ(stop.match_begin(), 1u);
}

TEST(StopDetectorTest, OfSeveralThatEndTogetherTheLongestCounts) {
  StopDetector stop({"c", "abc", "bc"});
  EXPECT_TRUE(stop.Feed("xabc", true));
  EXPECT_EQ(stop.matched(), 1);
}

TEST(StopDetectorTest, AMatchThatIsNotAllowedMayBeginALaterOne) {
  StopDetector stop({"abab"});
  EXPECT_FALSE(stop.Feed("abab", false));
  EXPECT_EQ(stop.held(), 2u);
  EXPECT_TRUE(stop.Feed("ab", true));
  EXPECT_EQ(stop.match_begin(), 2u);
}

TEST(StopDetectorTest, NothingToFindHoldsNothing) {
  StopDetector stop({""});
  EXPECT_FALSE(stop.Feed("anything", true));
  EXPECT_EQ(stop.held(), 0u);
}

TEST(StopDetectorTest, EqualsThePlainSearchHoweverTheTextIsCut) {
  std::mt19937 random(3);
  int found_some = 0;
  for (int trial = 0; trial < 4000; ++trial) {
    const auto word = [&](size_t length, int letters) {
      std::string text;
      for (size_t i = 0; i < length; ++i) {
        text += static_cast<char>('a' + random() % static_cast<unsigned>(letters));
      }
      return text;
    };
    const int letters = 1 + static_cast<int>(random() % 3);
    std::vector<std::string> stops;
    for (size_t i = 0; i < 1 + random() % 4; ++i) {
      stops.push_back(word(random() % 7, letters));
    }
    const std::string text = word(random() % 40, letters);
    StopDetector detector(stops);
    std::vector<bool> allowed;
    bool matched = false;
    for (size_t at = 0; at < text.size() && !matched;) {
      const size_t size = std::min<size_t>(random() % 5, text.size() - at);
      const bool allow = random() % 4 != 0;
      allowed.resize(at + size, allow);
      matched = detector.Feed(text.substr(at, size), allow);
      at += size;
      if (!matched) {
        ASSERT_EQ(detector.held(), PlainHeld(text.substr(0, at), stops)) << text.substr(0, at);
      }
    }
    allowed.resize(text.size(), false);
    const Found expected = PlainFind(text, stops, allowed);
    ASSERT_EQ(matched, expected.index >= 0) << text;
    if (matched) {
      ++found_some;
      EXPECT_EQ(detector.stop(detector.matched()), stops[static_cast<size_t>(expected.index)]);
      EXPECT_EQ(detector.match_begin(), expected.begin);
      EXPECT_EQ(detector.match_end(), expected.end);
    }
  }
  EXPECT_GT(found_some, 1000);
}

}  // namespace
}  // namespace embergate::engine
