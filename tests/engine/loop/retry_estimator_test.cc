#include "engine/retry_estimator.h"

#include <deque>
#include <map>
#include <random>
#include <vector>

#include "engine/retry_after.h"
#include "gtest/gtest.h"

namespace embergate::engine {
namespace {

constexpr int64_t kMs = 1'000'000;

TEST(RetryAfterTest, ADelayTravelsInTheStatus) {
  const absl::Status status = WithRetryAfter(absl::ResourceExhaustedError("full"), absl::Milliseconds(1500));
  EXPECT_EQ(RetryAfter(status), absl::Milliseconds(1500));
  EXPECT_EQ(status.message(), "full");
  EXPECT_FALSE(RetryAfter(absl::ResourceExhaustedError("full")).has_value());
  absl::Status garbled = absl::ResourceExhaustedError("full");
  garbled.SetPayload(kRetryAfterPayload, absl::Cord("soon"));
  EXPECT_FALSE(RetryAfter(garbled).has_value());
}

TEST(RetryEstimatorTest, BeforeAnythingIsMeasuredTheGuessCounts) {
  RetryEstimator estimator;
  EXPECT_EQ(estimator.OnRefusal(0), absl::Seconds(1));
  RetryEstimator guessing;
  guessing.set_first_guess_ns(300 * kMs);
  EXPECT_EQ(guessing.OnRefusal(0), absl::Milliseconds(300));
  EXPECT_EQ(guessing.OnRefusal(0), absl::Milliseconds(600));
}

TEST(RetryEstimatorTest, ThoseRefusedTogetherComeBackOneByOne) {
  RetryEstimator estimator;
  for (int i = 0; i < 50; ++i) {
    estimator.OnDepartures(1, 3, i * 200 * kMs);
  }
  const int64_t now = 49 * 200 * kMs + 50 * kMs;
  EXPECT_EQ(estimator.OnRefusal(now), absl::Milliseconds(150));
  EXPECT_EQ(estimator.OnRefusal(now), absl::Milliseconds(350));
  EXPECT_EQ(estimator.OnRefusal(now), absl::Milliseconds(550));
}

TEST(RetryEstimatorTest, TimeWithoutAQueueIsNotAnInterval) {
  RetryEstimator estimator;
  estimator.OnDepartures(1, 1, 0);
  estimator.OnDepartures(1, 0, 100 * kMs);
  estimator.OnDepartures(1, 1, 3600'000 * kMs);  // an idle hour
  EXPECT_EQ(estimator.OnRefusal(3600'000 * kMs), absl::Milliseconds(100));
}

TEST(RetryEstimatorTest, StaysWithinItsBounds) {
  RetryEstimator estimator;
  estimator.OnDepartures(1, 5, 0);
  estimator.OnDepartures(1, 5, 1);
  EXPECT_EQ(estimator.OnRefusal(1), absl::Milliseconds(50));
  RetryEstimator slow;
  slow.OnDepartures(1, 5, 0);
  slow.OnDepartures(1, 5, 3600'000 * kMs);
  EXPECT_EQ(slow.OnRefusal(3600'000 * kMs), absl::Minutes(1));
}

// A full queue of 8 in front of a server that takes one request every 50 to 150 ms; 30 clients that were refused come
// back when told. Truthful means: most of them are taken at their first or second return.
TEST(RetryEstimatorTest, ClientsThatObeyAreSoonTaken) {
  std::mt19937 random(4);
  RetryEstimator estimator;
  int waiting = 8;
  std::multimap<int64_t, int> returns;  // time -> how often refused
  std::vector<int> refusals;
  int64_t now = 0;
  const auto depart = [&] {
    if (waiting > 0) {
      --waiting;
      estimator.OnDepartures(1, waiting, now);
    }
  };
  int64_t next_departure = 0;
  const auto step_to = [&](int64_t time) {
    while (next_departure <= time) {
      now = next_departure;
      depart();
      next_departure += (50 + static_cast<int64_t>(random() % 100)) * kMs;
    }
    now = time;
  };
  // Warm up under load, so that an interval is known.
  for (int i = 0; i < 20; ++i) {
    waiting = 8;
    step_to(now + 100 * kMs);
  }
  waiting = 8;
  for (int i = 0; i < 30; ++i) {
    returns.emplace(now + absl::ToInt64Nanoseconds(estimator.OnRefusal(now)), 1);
  }
  while (!returns.empty()) {
    const auto first = returns.begin();
    const int refused = first->second;
    step_to(first->first);
    returns.erase(first);
    if (waiting < 8) {
      ++waiting;
      refusals.push_back(refused);
    } else {
      returns.emplace(now + absl::ToInt64Nanoseconds(estimator.OnRefusal(now)), refused + 1);
    }
  }
  int soon = 0;
  for (int refused : refusals) {
    soon += refused <= 2 ? 1 : 0;
    EXPECT_LE(refused, 5);
  }
  EXPECT_GE(soon, 27) << "of 30";
}

}  // namespace
}  // namespace embergate::engine
