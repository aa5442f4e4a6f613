// Buckets of the engine's histograms.
#ifndef EMBERGATE_ENGINE_HISTOGRAM_H_
#define EMBERGATE_ENGINE_HISTOGRAM_H_

#include <algorithm>
#include <utility>
#include <vector>

#include "engine/engine.h"

namespace embergate::engine {

inline SecondsHistogram MakeHistogram(std::vector<double> bounds) {
  SecondsHistogram histogram;
  histogram.counts.resize(bounds.size() + 1);
  histogram.bounds = std::move(bounds);
  return histogram;
}

// 1 ms to 5 minutes: waits and prompts.
inline std::vector<double> WaitBounds() {
  return {0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 300};
}
// 1 ms to 5 s: steps and gaps between tokens.
inline std::vector<double> StepBounds() {
  return {0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5};
}

// A value equal to a bound belongs to that bound's bucket, as in Prometheus.
inline void Observe(double seconds, SecondsHistogram* histogram) {
  const auto bucket = std::lower_bound(histogram->bounds.begin(), histogram->bounds.end(), seconds);
  ++histogram->counts[static_cast<size_t>(bucket - histogram->bounds.begin())];
  histogram->sum += seconds;
}

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_HISTOGRAM_H_
