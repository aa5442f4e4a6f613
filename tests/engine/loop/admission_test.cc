// Admission as a pure function: every limit, and deadlines against measured speeds.
#include "engine/admission.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace embergate::engine {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kMs = 1'000'000;
constexpr QueueLimits kLimits = {16, 1000, 10000, 8, 0};
// 2 ms per prompt token, 50 ms per step in any company, a departure every 500 ms.
constexpr Speed kSpeed = {2e6, 50e6, 50e6, 500e6};

Arrival Request(int prompt_tokens, int tokens_certain, int ahead, int64_t left_ms) {
  Arrival arrival;
  arrival.prompt_tokens = prompt_tokens;
  arrival.compute_tokens = prompt_tokens;
  arrival.bytes = 100;
  arrival.tokens_certain = tokens_certain;
  arrival.ahead = ahead;
  arrival.left_ns = left_ms * kMs;
  return arrival;
}

TEST(AdmissionTest, TheQueueIsBoundedByRequestsTokensAndBytes) {
  const Arrival arrival = Request(200, 1, 0, 1000'000);
  EXPECT_EQ(Admit({15, 800, 9900}, kLimits, kSpeed, arrival).refusal, Refusal::kNone);
  const struct {
    QueueState queue;
    const char* says;
  } rows[] = {
      {{16, 800, 9900}, "no more than 16"}, {{15, 801, 9900}, "exceed 1000"}, {{15, 800, 9901}, "exceed 10000"}};
  for (const auto& row : rows) {
    const Admission admission = Admit(row.queue, kLimits, kSpeed, arrival);
    EXPECT_EQ(admission.refusal, Refusal::kQueueFull);
    EXPECT_THAT(std::string(admission.status.message()), HasSubstr(row.says));
    EXPECT_TRUE(absl::IsResourceExhausted(admission.status));
  }
  Arrival large = Request(5000, 1, 0, 1000'000);
  large.bytes = 20000;
  EXPECT_EQ(Admit({0, 0, 0}, kLimits, kSpeed, large).refusal, Refusal::kNone) << "alone, it has to go in some time";
}

TEST(AdmissionTest, SeveralAnswersCountEachButGoInWhereNobodyWaits) {
  Arrival arrival = Request(200, 1, 0, 1000'000);
  arrival.sequences = 4;
  EXPECT_EQ(Admit({12, 200, 9600}, kLimits, kSpeed, arrival).refusal, Refusal::kNone);
  EXPECT_EQ(Admit({13, 200, 9600}, kLimits, kSpeed, arrival).refusal, Refusal::kQueueFull);
  EXPECT_EQ(Admit({12, 201, 9600}, kLimits, kSpeed, arrival).refusal, Refusal::kQueueFull);
  EXPECT_EQ(Admit({12, 200, 9601}, kLimits, kSpeed, arrival).refusal, Refusal::kQueueFull);
  // Together more than the queue ever holds: with a delay to come back after, it would be refused for ever.
  arrival.prompt_tokens = 900;
  arrival.bytes = 9000;
  EXPECT_EQ(Admit({0, 0, 0}, kLimits, kSpeed, arrival).refusal, Refusal::kNone);
}

TEST(AdmissionTest, ADeadlineCountsWaitPromptAndCertainTokens) {
  // 100 tokens: 200 ms; 9 more steps: 450 ms.
  EXPECT_EQ(Admit({}, kLimits, kSpeed, Request(100, 10, 0, 650)).refusal, Refusal::kNone);
  const Admission never = Admit({}, kLimits, kSpeed, Request(100, 10, 0, 649));
  EXPECT_EQ(never.refusal, Refusal::kNeverInTime);
  EXPECT_EQ(never.alone_ns, 650 * kMs);
  EXPECT_THAT(std::string(never.status.message()), HasSubstr("650ms"));
  // The same behind two departures, one of which is 100 ms on its way.
  Arrival waits = Request(100, 10, 2, 1550);
  waits.since_departure_ns = 100 * kMs;
  EXPECT_EQ(Admit({}, kLimits, kSpeed, waits).refusal, Refusal::kNone);
  waits.left_ns = 1500 * kMs;
  const Admission late = Admit({}, kLimits, kSpeed, waits);
  EXPECT_EQ(late.refusal, Refusal::kLate);
  EXPECT_EQ(late.wait_ns, 900 * kMs);
  EXPECT_EQ(late.surplus_ns, 50 * kMs) << "when it would have been in time";
  EXPECT_THAT(std::string(late.status.message()), HasSubstr("a slot is free in about 900ms (2 requests have to end"));
}

TEST(AdmissionTest, WhatOnlyTheOthersMakeTooLateMayComeAgain) {
  constexpr Speed kBeside = {2e6, 80e6, 50e6, 500e6};  // 650 ms alone, 920 now
  EXPECT_EQ(Admit({}, kLimits, kBeside, Request(100, 10, 0, 920)).refusal, Refusal::kNone);
  const Admission late = Admit({}, kLimits, kBeside, Request(100, 10, 0, 700));
  EXPECT_EQ(late.refusal, Refusal::kLate);
  EXPECT_EQ(late.surplus_ns, 220 * kMs);
  EXPECT_THAT(std::string(late.status.message()), HasSubstr("beside what runs a prompt of 100 tokens"));
  EXPECT_THAT(std::string(late.status.message()), HasSubstr("920ms"));
  EXPECT_EQ(Admit({}, kLimits, kBeside, Request(100, 10, 0, 649)).refusal, Refusal::kNeverInTime);
  constexpr Speed kNeverAlone = {2e6, 80e6, 0, 500e6};
  EXPECT_EQ(Admit({}, kLimits, kNeverAlone, Request(100, 10, 0, 649)).refusal, Refusal::kLate) << "who knows";
}

TEST(AdmissionTest, WithoutAMeasurementNobodyIsRefusedForADeadline) {
  EXPECT_EQ(Admit({}, kLimits, Speed(), Request(100, 100, 8, 1)).refusal, Refusal::kNone);
}

TEST(AdmissionTest, ADeadlineThatIsOverIsNotRefusedButEnds) {
  EXPECT_EQ(Admit({}, kLimits, kSpeed, Request(100, 1, 0, -5)).refusal, Refusal::kNone);
}

TEST(AdmissionTest, APromptThatMayBeCachedCountsAsNoTime) {
  Arrival arrival = Request(100000, 1, 0, 10);
  EXPECT_EQ(Admit({}, {16, 1 << 20, 10000, 8, 0}, kSpeed, arrival).refusal, Refusal::kNeverInTime);
  arrival.compute_tokens = 0;
  EXPECT_EQ(Admit({}, {16, 1 << 20, 10000, 8, 0}, kSpeed, arrival).refusal, Refusal::kNone);
}

TEST(SeenBeginningsTest, RemembersTheLatestByTheirFirstTokens) {
  SeenBeginnings seen;
  std::vector<int32_t> prompt(100, 7);
  EXPECT_FALSE(seen.Seen(prompt));
  seen.Add(prompt);
  EXPECT_TRUE(seen.Seen(prompt));
  prompt[40] = 8;
  EXPECT_TRUE(seen.Seen(prompt)) << "it begins alike";
  prompt[10] = 8;
  EXPECT_FALSE(seen.Seen(prompt));
  for (int32_t i = 0; i < static_cast<int32_t>(SeenBeginnings::kBeginningsMax); ++i) {
    seen.Add({i, i + 1});
  }
  EXPECT_TRUE(seen.Seen({5, 6}));
  EXPECT_FALSE(seen.Seen(std::vector<int32_t>(100, 7))) << "too long ago";
}

TEST(DecodeSpeedsTest, ManyAtOnceSayNothingOfOneAlone) {
  DecodeSpeeds speeds(4);
  EXPECT_EQ(speeds.ns(4), 0);
  speeds.OnMeasured(3, 30);
  EXPECT_EQ(speeds.ns(4), 30);
  EXPECT_EQ(speeds.ns(3), 30);
  EXPECT_EQ(speeds.ns(2), 0);
  speeds.OnMeasured(1, 10);
  EXPECT_EQ(speeds.ns(2), 10);
  speeds.OnRefusal();
  EXPECT_DOUBLE_EQ(speeds.ns(3), 27);
}

TEST(SpeedEstimateTest, OneStallHardlyCountsAndASlowdownIsFollowed) {
  SpeedEstimate estimate;
  EXPECT_EQ(estimate.ns(), 0);
  estimate.OnMeasured(1000);
  estimate.OnMeasured(2000);
  EXPECT_DOUBLE_EQ(estimate.ns(), 1200);
  estimate.OnMeasured(1e9);
  EXPECT_LT(estimate.ns(), 1500) << "a stall";
  int steps = 0;
  while (estimate.ns() < 9e4 && steps < 1000) {
    estimate.OnMeasured(1e5);
    ++steps;
  }
  EXPECT_LT(steps, 50) << "a machine that has become slow";
}

TEST(SpeedEstimateTest, SlowMeasurementsDoNotRefuseForEver) {
  SpeedEstimate estimate;
  estimate.OnMeasured(1e8);
  int refusals = 0;
  while (estimate.ns() > 2000 && refusals < 1000) {
    estimate.OnRefusal();
    ++refusals;
  }
  EXPECT_LT(refusals, 120);
  estimate.OnMeasured(1000);
  EXPECT_GT(estimate.ns(), 2000) << "a measurement, not hope, decides again";
}

}  // namespace
}  // namespace embergate::engine
