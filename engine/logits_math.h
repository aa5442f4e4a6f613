// Passes over one row of logits (262144 floats for the released models): maximum, softmax denominator, best k.
// Sums have a fixed order, eight lanes side by side, so the results are the same on every machine.
#ifndef EMBERGATE_ENGINE_LOGITS_MATH_H_
#define EMBERGATE_ENGINE_LOGITS_MATH_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace embergate::engine {

// e^x for x <= 0, relative error below 2e-7; exactly 0 below -87. NaN gives 0.
float ExpNonPositive(float x);
// out[i] = e^((x[i] - max) * inverse_temperature); returns the sum. `max` >= every x[i]. -inf gives 0.
double ExpRow(absl::Span<const float> x, float max, float inverse_temperature, float* out);
// As ExpRow, without storing the terms.
double SumExp(absl::Span<const float> x, float max, float inverse_temperature);

// Whether no value is NaN or infinite.
bool AllFinite(absl::Span<const float> x);
// Index of the largest value, the lowest index among equals; -1 when every value is -inf. No NaN.
int32_t ArgMax(absl::Span<const float> x);
// log(sum(e^x)); x is finite.
double LogSumExp(absl::Span<const float> x);

struct ScoredId {
  float score = 0;
  int32_t id = 0;
};
// Order of candidates: best first, the lower id among equals.
inline bool Better(const ScoredId& a, const ScoredId& b) {
  return a.score != b.score ? a.score > b.score : a.id < b.id;
}

// Finds the best k of a row without sorting it. Allocates at most what Reserve did.
class TopSelector {
 public:
  // For rows of at most `width` values.
  void Reserve(int width);
  // The k-th best of x (k >= 1, k <= x.size()): an entry is among the best k iff it is Better than it or equal.
  ScoredId KthBest(absl::Span<const float> x, int k);
  // The best k, best first (fewer when x is shorter). Valid until the next call.
  absl::Span<const ScoredId> Best(absl::Span<const float> x, int k);

 private:
  // Fills entries_ with a superset of the best k.
  void Gather(absl::Span<const float> x, int k);

  std::vector<float> sample_;
  std::vector<ScoredId> entries_;
};

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_LOGITS_MATH_H_
