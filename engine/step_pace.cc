#include "engine/step_pace.h"

#include <algorithm>

namespace embergate::engine {
namespace {

constexpr double kSlower = 0.5;    // weight of a measurement above the estimate
constexpr double kFaster = 0.125;  // and below it

void Learn(double measured, double* estimate) {
  if (*estimate <= 0) {
    *estimate = measured;
    return;
  }
  *estimate += (measured > *estimate ? kSlower : kFaster) * (measured - *estimate);
}

}  // namespace

StepPace::StepPace(int64_t target_ns, int budget_min, int budget_max)
    : target_ns_(target_ns),
      budget_min_(budget_min),
      budget_max_(std::max(budget_min, budget_max)),
      // Before anything is known, begin small: one quarter costs little throughput and cannot stall for long.
      budget_(target_ns > 0 ? std::max(budget_min, budget_max / 4) : budget_max_) {}

void StepPace::OnStep(int decodes, int prompt_tokens, int64_t step_ns) {
  if (step_ns <= 0) {
    return;
  }
  const double measured = static_cast<double>(step_ns);
  if (prompt_tokens == 0) {
    if (decodes > 0) {
      Learn(measured, &base_ns_);
    }
  } else {
    // Without decodes the step still reads every weight once, so its cost per token is an upper bound: take it only
    // as long as there is nothing better.
    if (decodes > 0 || slope_ns_ <= 0) {
      const double base = decodes > 0 ? base_ns_ : 0;
      Learn(std::max(measured - base, measured * 0.01) / prompt_tokens, &slope_ns_);
    }
  }
  if (target_ns_ <= 0 || slope_ns_ <= 0) {
    return;
  }
  const double room = (static_cast<double>(target_ns_) - base_ns_) / slope_ns_;
  budget_ = static_cast<int>(std::clamp(room, static_cast<double>(budget_min_), static_cast<double>(budget_max_)));
}

int64_t StepPace::ExpectedNs(int decodes, int prompt_tokens) const {
  return static_cast<int64_t>((decodes > 0 ? base_ns_ : 0) + slope_ns_ * prompt_tokens);
}

}  // namespace embergate::engine
