// How many prompt tokens a step may compute while streams decode, learnt from measured steps.
#ifndef EMBERGATE_ENGINE_STEP_PACE_H_
#define EMBERGATE_ENGINE_STEP_PACE_H_

#include <cstdint>

namespace embergate::engine {

// Model: a step with decodes takes base + prompt tokens * slope. `base` is learnt from steps that only decode,
// `slope` from the others (a secant at the working point, so a curve is followed as the budget moves). A step that
// was slower than expected counts at once, a faster one slowly: a stall is worse than a smaller chunk.
// No clock of its own; a pure state machine. Threads: one.
class StepPace {
 public:
  // `target_ns` 0 = no target: the budget is always budget_max. The budget stays within [budget_min, budget_max].
  StepPace(int64_t target_ns, int budget_min, int budget_max);

  void OnStep(int decodes, int prompt_tokens, int64_t step_ns);
  int budget() const { return budget_; }
  // Expected duration of such a step; 0 = nothing measured yet.
  int64_t ExpectedNs(int decodes, int prompt_tokens) const;

 private:
  int64_t target_ns_;
  int budget_min_;
  int budget_max_;
  int budget_;
  double base_ns_ = 0;   // of a step that decodes; 0 = unknown
  double slope_ns_ = 0;  // per prompt token; 0 = unknown
};

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_STEP_PACE_H_
