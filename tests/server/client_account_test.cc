// Limits per API key: a delay that is told is a delay after which there is room.
#include "server/client_account.h"

#include "gtest/gtest.h"
#include "server/status_mapping.h"
#include "tests/support/manual_clock.h"

namespace embergate::server {
namespace {

ErrorDetails Details(const absl::Status& status) { return DetailsOf(ToGrpc(status)); }

class ClientAccountTest : public ::testing::Test {
 protected:
  testing::ManualClock clock_;
  ClientAccount account_{"alice", clock_};
};

TEST_F(ClientAccountTest, WithoutLimitsEverythingGoes) {
  account_.SetLimits({});
  for (int i = 0; i < 1000; ++i) {
    EXPECT_TRUE(account_.TakeRequest().ok());
    EXPECT_TRUE(account_.TakeStream().ok());
    EXPECT_TRUE(account_.TakeTokens(1'000'000).ok());
  }
}

TEST_F(ClientAccountTest, RequestsComeBackAtTheirRate) {
  account_.SetLimits({.requests_per_minute = 6});
  for (int i = 0; i < 6; ++i) {
    EXPECT_TRUE(account_.TakeRequest().ok()) << i;
  }
  const absl::Status refused = account_.TakeRequest();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(Details(refused).reason, "REQUEST_RATE_EXCEEDED");
  EXPECT_EQ(Details(refused).retry_delay, absl::Seconds(10));
  // Truthful to both sides: not before, and then surely.
  clock_.Advance(absl::Seconds(10) - absl::Milliseconds(2));
  EXPECT_FALSE(account_.TakeRequest().ok());
  clock_.Advance(absl::Milliseconds(2));
  EXPECT_TRUE(account_.TakeRequest().ok());
  EXPECT_FALSE(account_.TakeRequest().ok());
  // Long silence is worth a minute, not more.
  clock_.Advance(absl::Hours(5));
  for (int i = 0; i < 6; ++i) {
    EXPECT_TRUE(account_.TakeRequest().ok()) << i;
  }
  EXPECT_FALSE(account_.TakeRequest().ok());
  EXPECT_EQ(account_.usage().requests, 13u);
  EXPECT_EQ(account_.usage().refused_requests, 4u);
}

TEST_F(ClientAccountTest, EveryDelayIsKept) {
  account_.SetLimits({.tokens_per_minute = 997});
  uint64_t seed = 1;
  for (int i = 0; i < 5000; ++i) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    const int64_t tokens = 1 + static_cast<int64_t>(seed >> 33) % 1500;
    const absl::Status status = account_.TakeTokens(tokens);
    if (!status.ok()) {
      const absl::Duration delay = Details(status).retry_delay;
      ASSERT_GT(delay, absl::ZeroDuration());
      clock_.Advance(delay);
      ASSERT_TRUE(account_.TakeTokens(tokens).ok()) << i << ": " << tokens << " tokens after " << delay;
    }
  }
}

TEST_F(ClientAccountTest, TokensThatWereNotUsedComeBack) {
  account_.SetLimits({.tokens_per_minute = 100});
  EXPECT_TRUE(account_.TakeTokens(90).ok());
  EXPECT_EQ(Details(account_.TakeTokens(20)).reason, "TOKEN_RATE_EXCEEDED");
  account_.ReturnTokens(90, 30);
  EXPECT_TRUE(account_.TakeTokens(70).ok());
  EXPECT_FALSE(account_.TakeTokens(1).ok());
  EXPECT_EQ(account_.usage().tokens, 30u);
  EXPECT_EQ(account_.usage().refused_tokens, 2u);
}

TEST_F(ClientAccountTest, ARequestAboveAMinutesWorthGoesAloneAndIsPaidFor) {
  account_.SetLimits({.tokens_per_minute = 60});
  EXPECT_TRUE(account_.TakeTokens(180).ok()) << "else it never could";
  const absl::Status next = account_.TakeTokens(1);
  EXPECT_EQ(Details(next).retry_delay, absl::Seconds(121)) << "120 tokens of debt, and one";
}

TEST_F(ClientAccountTest, StreamsAreCountedAndHaveNoDelayToTell) {
  account_.SetLimits({.streams = 2});
  EXPECT_TRUE(account_.TakeStream().ok());
  EXPECT_TRUE(account_.TakeStream().ok());
  const absl::Status refused = account_.TakeStream();
  EXPECT_EQ(Details(refused).reason, "TOO_MANY_STREAMS");
  EXPECT_EQ(Details(refused).retry_delay, absl::ZeroDuration());
  account_.ReturnStream();
  EXPECT_TRUE(account_.TakeStream().ok());
  EXPECT_EQ(account_.usage().streams, 2);
}

TEST_F(ClientAccountTest, NewLimitsDoNotForgetWhatWasUsed) {
  account_.SetLimits({.requests_per_minute = 10});
  for (int i = 0; i < 10; ++i) {
    EXPECT_TRUE(account_.TakeRequest().ok());
  }
  account_.SetLimits({.requests_per_minute = 20});
  EXPECT_FALSE(account_.TakeRequest().ok()) << "reading the file again must be no way to get a full bucket";
  account_.SetLimits({});
  EXPECT_TRUE(account_.TakeRequest().ok());
}

}  // namespace
}  // namespace embergate::server
