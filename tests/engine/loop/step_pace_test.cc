// The pace against simulated machines.
#include "engine/step_pace.h"

#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

#include "gtest/gtest.h"

namespace embergate::engine {
namespace {

constexpr int64_t kMs = 1'000'000;

// Runs steps that take what budget they get; returns their durations.
std::vector<int64_t> RunSteps(StepPace& pace, int steps, const std::function<int64_t(int prompt_tokens)>& machine) {
  std::vector<int64_t> durations;
  for (int i = 0; i < steps; ++i) {
    const int tokens = pace.budget();
    durations.push_back(machine(tokens));
    pace.OnStep(2, tokens, durations.back());
  }
  return durations;
}

TEST(StepPaceTest, SettlesBelowTheTargetAndUsesMostOfIt) {
  StepPace pace(200 * kMs, 8, 256);
  const auto machine = [](int tokens) { return 80 * kMs + tokens * 2 * kMs; };
  for (int i = 0; i < 5; ++i) {
    pace.OnStep(2, 0, machine(0));
  }
  const std::vector<int64_t> steps = RunSteps(pace, 30, machine);
  EXPECT_LE(*std::max_element(steps.begin() + 2, steps.end()), 200 * kMs);
  EXPECT_GE(steps.back(), 170 * kMs);
}

TEST(StepPaceTest, FollowsAMachineWhoseCostPerTokenGrows) {
  StepPace pace(200 * kMs, 8, 256);
  pace.OnStep(2, 0, 50 * kMs);
  double per_token = 1;  // ms; attention over a growing prompt
  int64_t worst = 0;
  for (int i = 0; i < 400; ++i) {
    const int tokens = pace.budget();
    const auto duration = static_cast<int64_t>((50 + per_token * tokens) * kMs);
    pace.OnStep(2, tokens, duration);
    worst = std::max(worst, duration);
    per_token *= 1.005;
  }
  EXPECT_LE(worst, 240 * kMs);
}

TEST(StepPaceTest, AConvexMachineIsFollowedToo) {
  // The first eight tokens ride along free (memory-bound), later ones cost more and more.
  StepPace pace(150 * kMs, 8, 512);
  const auto machine = [](int tokens) {
    return 70 * kMs + std::max(0, tokens - 8) * kMs + tokens * tokens * kMs / 200;
  };
  pace.OnStep(2, 0, machine(0));
  const std::vector<int64_t> steps = RunSteps(pace, 40, machine);
  EXPECT_LE(steps.back(), 160 * kMs);
  EXPECT_GE(steps.back(), 110 * kMs);
}

TEST(StepPaceTest, AStallCutsTheNextBudgetAtOnce) {
  StepPace pace(200 * kMs, 8, 256);
  const auto machine = [](int tokens) { return 80 * kMs + tokens * 2 * kMs; };
  pace.OnStep(2, 0, machine(0));
  RunSteps(pace, 20, machine);
  const int before = pace.budget();
  pace.OnStep(2, before, 600 * kMs);
  EXPECT_LT(pace.budget(), before * 2 / 3);
  RunSteps(pace, 60, machine);
  EXPECT_GE(pace.budget(), before * 9 / 10) << "and it recovers";
}

TEST(StepPaceTest, NeverLeavesItsBounds) {
  StepPace pace(200 * kMs, 8, 256);
  pace.OnStep(1, 0, 900 * kMs);  // decoding alone misses the target
  pace.OnStep(1, 16, 950 * kMs);
  EXPECT_EQ(pace.budget(), 8);
  for (int i = 0; i < 100; ++i) {
    pace.OnStep(1, 0, 1);
    pace.OnStep(1, 16, 2);
  }
  EXPECT_EQ(pace.budget(), 256);
  pace.OnStep(1, 16, 0);  // a clock that did not move teaches nothing
  pace.OnStep(1, 16, -5);
  EXPECT_EQ(pace.budget(), 256);
}

TEST(StepPaceTest, WithoutATargetTheBudgetIsTheWholeStep) {
  StepPace pace(0, 8, 256);
  pace.OnStep(1, 100, 5000 * kMs);
  EXPECT_EQ(pace.budget(), 256);
}

}  // namespace
}  // namespace embergate::engine
